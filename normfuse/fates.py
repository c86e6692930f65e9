"""What becomes of a node for a target: `Course`, one run of the stages, and `Fate`, what it did with some nodes."""

from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from typing import Any, Literal

import onnx_ir as ir

from normfuse.pipeline import rewrite, rules
from normfuse.report import Change
from normfuse.target import Target

Outcome = Literal["folded", "removed", "rewritten", "stays"]


@dataclass(frozen=True, slots=True)
class Fate:
    """What `normfuse.optimize` does with a node, or with the nodes of one normalization.

    Attributes:
        outcome: `folded` into others, `removed`, `rewritten` as other operators, or it `stays`.
        into: names of the nodes that take over what it did.
        operators: where it is rewritten, their operators in order.
        rules: the rules that did it.
        reasons: why it stays, one line each.
    """

    outcome: Outcome
    into: tuple[str, ...] = ()
    operators: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The fate as JSON-ready values."""
        return asdict(self)


class Course:
    """What the stages do with a model for one target.

    Attributes:
        model: the result.
    """

    def __init__(self, model: ir.Model, target: Target, observe: Callable[[str, ir.Model], None] | None = None) -> None:
        """Runs them on a copy."""
        self.model = model.clone()
        self._report = rewrite(self.model, target, observers=[] if observe is None else [observe])
        self._left = {str(node.name): node.op_type for node in nodes_of(self.model)}
        self._kinds = {rule.name: rule.kind for rule in rules()}
        self._by_node: dict[str, list[Change]] = {}
        for change in self._report.changes:
            for name in change.nodes:
                self._by_node.setdefault(name, []).append(change)

    def fate(self, names: Collection[str], *, is_norm: bool) -> Fate:
        """What became of some nodes.

        Args:
            names: their names.
            is_norm: whether they are a normalization with statistics of its input; an affine map that such a one takes
                into its scale and bias is folded, not rewritten.
        """
        changes = {id(change): change for name in names for change in self._by_node.get(name, ())}
        taken = tuple(dict.fromkeys(taker for change in changes.values() for taker in change.into))
        takers = self._takers(taken, set(names)) or taken
        written = [change for change in changes.values() if self._kinds.get(change.rule) in ("lower", "block")]
        used = tuple(dict.fromkeys(change.rule for change in changes.values()))
        joined = not is_norm and all(self._kinds.get(change.rule) == "lower" for change in written)
        if written and not joined:
            return Fate("rewritten", takers, tuple(self._left[name] for name in takers if name in self._left), used)
        if not any(name in self._left for name in names):
            return Fate("folded" if takers else "removed", takers, (), used)
        reasons = [one.reason for one in self._report.refusals if one.node in names]
        return Fate("stays", (), (), (), tuple(dict.fromkeys(reasons)))

    def _takers(self, names: Collection[str], seen: set[str]) -> tuple[str, ...]:
        """Nodes, those that were replaced again by what replaced them; those that stand in the result."""
        found: dict[str, None] = {}
        for name in names:
            if name in self._left:
                found[name] = None
            elif name not in seen:
                seen.add(name)
                after = [taker for change in self._by_node.get(name, ()) for taker in change.into]
                found.update(dict.fromkeys(self._takers(after, seen)))
        return tuple(found)


def nodes_of(model: ir.Model) -> list[ir.Node]:
    """All nodes, those of subgraphs and of model-local functions included."""
    nodes = list(model.graph.all_nodes())
    for function in model.functions.values():
        nodes.extend(function.all_nodes())
    return nodes

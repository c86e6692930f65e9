"""Demand: whether an affine map can be taken where it stands, found out without changing anything.

A `Plan` collects what would change while the rules of ABSORB and CARRY are asked one after another; a need that nobody
takes withdraws what was planned for it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from normfuse.affine import Affine
from normfuse.passes.access import RefusedError, dims, operator, title
from normfuse.passes.cancelling import check_magnitude, check_parting, check_weights
from normfuse.passes.deal import Deal, Need, NewWeight, Offer
from normfuse.passes.rule import Rows, Rule, Side
from normfuse.passes.weights import CLONE_BYTES, Weights, constant_tensor, fits

STEPS = 64
"""Nodes that are asked for one plan at most: a map that is taken is taken within a dozen, and in a stream of residual
blocks thousands would have to agree."""

_SHAPE_READERS = ("Shape", "Size")
"""Readers to whom a map makes no difference."""


@dataclass(slots=True)
class Plan:
    """What would change if a map were moved.

    Attributes:
        rows: the rules of ABSORB and CARRY that may be used.
        weights: the constants of the model.
        changes: new weights.
        rewrites: other changes.
        touched: nodes that take part.
        takers: nodes that took the map in, with the rule.
        carriers: the rules by which it passed other nodes on its way.
        added: nodes that would be added.
        notes: what the user should know: copies of shared weights.
    """

    rows: Rows
    weights: Weights
    changes: list[NewWeight] = field(default_factory=list)
    rewrites: list[Callable[[], None]] = field(default_factory=list)
    touched: list[ir.Node] = field(default_factory=list)
    takers: list[tuple[Rule, ir.Node]] = field(default_factory=list)
    carriers: list[str] = field(default_factory=list)
    added: int = 0
    notes: list[str] = field(default_factory=list)
    _steps: int = 0

    def take(self, need: Need) -> None:
        """Plans for a map to be taken over; leaves the plan as it was where nobody does.

        Raises:
            RefusedError: nobody takes it, with the reason.
        """
        if need.affine.is_identity:
            return
        if not need.affine.is_finite:
            raise RefusedError("the map is infinite or not a number")
        check_magnitude(need.affine)
        mark = self._mark()
        try:
            if need.side == "after":
                self._take_behind(need)
            else:
                self._take_ahead(need)
        except RefusedError:
            self._withdraw(mark)
            raise

    def commit(self) -> None:
        """Makes the changes."""
        for change in self.changes:
            self.weights.put(change.node, change.index, change.array, change.dtype)
        for rewrite in self.rewrites:
            rewrite()

    def _take_behind(self, need: Need) -> None:
        """The value at an input is to arrive mapped: its producer takes the map."""
        value = need.node.inputs[need.index]
        if value is None:
            raise RefusedError("an input is absent")
        constant = self.weights.array(value)
        if constant is not None:
            self._map_constant(need, value)
            return
        if value.is_graph_input():
            raise RefusedError(f"{value.name!r} is an input of the graph")
        if value.is_graph_output():
            raise RefusedError(f"{value.name!r} is an output of the graph")
        for use in value.uses():
            if (use.node is not need.node or use.idx != need.index) and operator(use.node) not in _SHAPE_READERS:
                raise RefusedError(f"{value.name!r} is also read by {title(use.node)}")
        producer = value.producer()
        if producer is None:
            raise RefusedError(f"{value.name!r} comes from outside the graph")
        self._ask(producer, value.index() or 0, need.affine, "after")

    def _take_ahead(self, need: Need) -> None:
        """All readers of an output apply the map themselves."""
        value = need.node.outputs[need.index]
        if value.is_graph_output():
            raise RefusedError(f"{value.name!r} is an output of the graph")
        check_parting(value, need.affine)
        uses = [use for use in value.uses() if operator(use.node) not in _SHAPE_READERS]
        # Those that can only let it pass are asked first: what takes it in computes new weights.
        for use in sorted(uses, key=lambda use: self._can_absorb(use.node)):
            self._ask(use.node, use.idx, need.affine, "before")

    def _can_absorb(self, node: ir.Node) -> bool:
        return any(rule.kind == "absorb" for rule in self.rows.get((operator(node), "before"), ()))

    def _map_constant(self, need: Need, value: ir.Value) -> None:
        constant, tensor = self.weights.array(value), constant_tensor(value)
        assert constant is not None
        assert tensor is not None
        axis = need.affine.axis
        if axis is not None and (axis >= constant.ndim or constant.shape[axis] != need.affine.size):
            raise RefusedError(f"the constant {value.name!r} does not have the channels")
        self._agree(Deal((NewWeight(need.node, need.index, need.affine(constant), tensor.dtype, axis),)))

    def _ask(self, node: ir.Node, index: int, affine: Affine, side: Side) -> None:
        """Asks the rules one after another; the first deal that can be kept is planned."""
        self._steps += 1
        if self._steps > STEPS:
            raise RefusedError("too many nodes would have to agree")
        if node in self.touched:
            raise RefusedError(f"{title(node)} would be changed twice")
        rows = self.rows.get((operator(node), side), ())
        where = "behind" if side == "after" else "in front of"
        if not rows:
            raise RefusedError(f"no rule moves it from {where} {title(node)}")
        if side == "after" and index and node.op_type != "Split":
            raise RefusedError(f"it stands behind another output of {title(node)} than the first")
        offer = Offer(node, index, affine, side, self.weights)
        stated = dims(node.outputs[index] if side == "after" else node.inputs[index])
        if affine.axis is not None and stated is not None and affine.axis >= len(stated):
            raise RefusedError(f"{where} {title(node)}: the value has no axis {affine.axis}")
        reasons: list[str] = []
        for rule in rows:
            try:
                if side == "before" and rule.kind == "absorb":
                    check_weights(node, index, affine, self.weights)
                deals = rule.law(offer)
            except RefusedError as refused:
                reasons.append(f"{where} {title(node)}: {refused}")
                continue
            for deal in deals:
                mark = self._mark()
                try:
                    self._accept(rule, node, deal)
                except RefusedError as refused:
                    self._withdraw(mark)
                    reasons.append(str(refused))
                    continue
                return
        raise RefusedError(", and ".join(dict.fromkeys(reasons)) or f"{where} {title(node)}: nothing can take it")

    def _accept(self, rule: Rule, node: ir.Node, deal: Deal) -> None:
        self.touched.append(node)
        self._agree(deal)
        if rule.kind == "absorb":
            self.takers.append((rule, node))
        else:
            self.carriers.append(rule.name)
        for need in deal.needs:
            self.take(need)

    def _agree(self, deal: Deal) -> None:
        """Adds a deal to the plan if its weights can be stored.

        Raises:
            RefusedError: a weight overflows or underflows its dtype, or a copy of it would be too large.
        """
        for change in deal.weights:
            inputs = change.node.inputs
            old = self.weights.array(inputs[change.index]) if change.index < len(inputs) else None
            if not fits(change.array, change.dtype, change.axis, old):
                raise RefusedError(f"scale overflows or underflows {change.dtype.name.lower()} in {title(change.node)}")
            reader = self.weights.shared_with(change.node, change.index)
            if reader is not None:
                size = change.array.size * change.dtype.bitwidth // 8
                if size > CLONE_BYTES:
                    raise RefusedError(f"its weight of {size >> 20} MiB is shared with {reader}")
                value = inputs[change.index]
                self.notes.append(f"copied weight {None if value is None else value.name!r}, which {reader} reads too")
        self.changes.extend(deal.weights)
        self.rewrites.extend(deal.rewrites)
        self.added += deal.added

    def _mark(self) -> tuple[int, ...]:
        return (*map(len, self._lists()), self.added)

    def _withdraw(self, mark: tuple[int, ...]) -> None:
        for entries, length in zip(self._lists(), mark, strict=False):
            del entries[length:]
        self.added = mark[-1]

    def _lists(self) -> tuple[list[Any], ...]:
        return self.changes, self.rewrites, self.touched, self.takers, self.carriers, self.notes

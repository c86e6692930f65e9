"""LIFT: normalizations and activations, however they are spelled, become one node each.

Each row of `RECOGNIZERS` finds one mathematical form that ends at a node. What it finds becomes a call of a model-local
function whose body is the very nodes found, so that no number changes. First the forms themselves, then what stands
around them: a Reshape, Transpose or Cast on both sides that makes another normalization of the one between. At last
the activations, from the last node to the first.
"""

from collections.abc import Collection

import onnx_ir as ir

from normfuse.norm import Standardize
from normfuse.passes.access import RefusedError, operator, title
from normfuse.passes.lifted import DOMAIN, lift, lifted
from normfuse.passes.recognizers import ACTIVATIONS, FORMS, RECOGNIZERS, SURROUNDINGS
from normfuse.passes.rule import Rule
from normfuse.passes.weights import Weights
from normfuse.report import Change, Refusal

_ROUNDS = 4
"""Forms are looked for around those just found at most this often."""


class LiftPass(ir.passes.InPlacePass):
    """Lifts what the rows of `RECOGNIZERS` find, in the graph and its subgraphs.

    Attributes:
        found: for each call, by the name of its node, the name of the row that found it.
        refusals: what looks like one of the forms and is none, with the reasons.
    """

    def __init__(self, ignore: Collection[str] = ()) -> None:
        """Uses all rows but those that `ignore` names."""
        super().__init__()
        self._forms = tuple(rule for rule in FORMS if rule.name not in ignore)
        self._surroundings = tuple(rule for rule in SURROUNDINGS if rule.name not in ignore)
        self._activations = tuple(rule for rule in ACTIVATIONS if rule.name not in ignore)
        self.changes: list[Change] = []
        self.refusals: list[Refusal] = []
        self._count = 0

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Lifts until nothing more is found."""
        self.refusals = []
        weights = Weights(model)
        before = len(self.changes)
        for graph in (model.graph, *model.graph.subgraphs()):
            self._lift_graph(model, graph, weights, self._forms)
            for _ in range(_ROUNDS):
                if not self._lift_graph(model, graph, weights, self._surroundings):
                    break
            self._lift_graph(model, graph, weights, self._activations, backwards=True)
        return ir.passes.PassResult(model, len(self.changes) > before)

    def _lift_graph(
        self, model: ir.Model, graph: ir.Graph, weights: Weights, rules: tuple[Rule, ...], backwards: bool = False
    ) -> bool:
        changed = False
        rows: dict[str, list[Rule]] = {}
        for rule in rules:
            for name in rule.operators:
                rows.setdefault(name, []).append(rule)
        nodes = tuple(graph)
        for node in nodes[::-1] if backwards else nodes:
            if node.graph is not graph:
                continue
            for rule in rows.get(operator(node), ()):
                try:
                    found = rule.law(node, weights)
                except RefusedError as refused:
                    self.refusals.append(Refusal(rule.name, node.name or node.op_type, str(refused)))
                    continue
                if found is None:
                    continue
                self._count += 1
                kind = "Standardize" if isinstance(found.meaning, Standardize) else "Activation"
                call = lift(model, found, kind, str(self._count))
                record = lifted(call)
                assert record is not None
                self.changes.append(Change(rule.name, record.names, (), f"is {found.meaning}"))
                changed = True
                break
        return changed


__all__ = ["DOMAIN", "RECOGNIZERS", "LiftPass", "title"]

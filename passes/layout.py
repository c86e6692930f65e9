"""Chains of Reshape and of Transpose, which a map that was folded away leaves behind, become one node or none."""

from collections.abc import Callable, Collection, Iterator

import onnx_ir as ir

from normfuse.passes.access import Dim, RefusedError, attribute, dims, only_reader, operator
from normfuse.passes.dimensions import ALIKE
from normfuse.passes.journal import Journal
from normfuse.passes.shapes import copied, left_over
from normfuse.passes.weights import Weights, is_function_body
from normfuse.report import Change

_RESHAPING = frozenset({"Flatten", "Reshape", "Squeeze", "Unsqueeze"})


class LayoutPass(ir.passes.InPlacePass):
    """Joins chains of nodes that only lay elements out anew.

    Attributes:
        changes: what was done.
    """

    def __init__(self, journal: Journal | None = None) -> None:
        """Joins nothing yet."""
        super().__init__()
        self._journal = journal or Journal()
        self.changes: list[Change] = []

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Joins the chains of all graphs."""
        before = len(self.changes)
        weights = Weights(model)
        for graph in (model.graph, *model.graph.subgraphs()):
            for node in tuple(graph):
                if node.graph is graph:
                    self.join_reshapes(node, weights)
                    self.join_transposes(node)
        return ir.passes.PassResult(model, len(self.changes) > before)

    def join_reshapes(self, node: ir.Node, weights: Weights) -> None:
        """A Reshape of a Reshape is one Reshape; to the dimensions that were there before, it is none."""
        if operator(node) not in _RESHAPING or _reads(node, _RESHAPING):
            return
        chain = [node, *_before(node, _RESHAPING)]
        data = chain[-1].inputs[0]
        old, new = dims(data), dims(node.outputs[0])
        if data is None or old is None or new is None:
            return
        new = [left_over(new, place, old) or dim for place, dim in enumerate(new)]
        if old == new and None not in new and self._bypass(chain, data):
            return
        shape = _shape_of(old, new)
        if len(chain) == 1 or shape is None or is_function_body(node.graph):
            return

        def reshape() -> None:
            for name in tuple(node.attributes):
                node.attributes.pop(name)
            node.op_type = "Reshape"
            node.resize_inputs(2)
            node.replace_input_with(0, data)
            node.replace_input_with(1, weights.new_shape(shape, node))
            _remove(chain[1:])

        self._make(chain, reshape)

    def join_transposes(self, node: ir.Node) -> None:
        """A Transpose of a Transpose is one Transpose; where they undo each other, it is none."""
        chain = [node, *_before(node, {"Transpose"})] if operator(node) == "Transpose" else []
        data = chain[-1].inputs[0] if chain else None
        if data is None or _reads(node, {"Transpose"}):
            return
        try:
            orders = [attribute(member, "perm") for member in reversed(chain)]
        except RefusedError:
            return
        if any(order is None for order in orders):
            return
        order = list(range(len(orders[0])))
        for following in orders:
            order = [order[axis] for axis in following]
        if order == sorted(order) and self._bypass(chain, data):
            return
        if len(chain) == 1:
            return

        def transpose() -> None:
            node.attributes["perm"] = ir.AttrInt64s("perm", order)
            node.replace_input_with(0, data)
            _remove(chain[1:])

        self._make(chain, transpose)

    def _bypass(self, chain: list[ir.Node], data: ir.Value) -> bool:
        """Lets the readers of a chain read its data; an output of the graph keeps the node that names it."""
        output = chain[0].outputs[0]
        if output.is_graph_output():
            return False

        def remove() -> None:
            readers = [use.node for use in output.uses() if use.idx == 0 and operator(use.node) in ALIKE]
            output.replace_all_uses_with(data)
            _remove(chain)
            for reader in readers:  # the dimensions behind the Reshape may be known less well than those before it
                if data.shape is not None:
                    reader.outputs[0].shape = data.shape.copy()

        self._make(chain, remove)
        return True

    def _make(self, chain: list[ir.Node], rewrite: Callable[[], None]) -> None:
        """Makes a change of a chain unless it is forbidden."""
        names = tuple(node.name or node.op_type for node in reversed(chain))
        if self._journal.forbids("layout", names):
            return
        change = Change("layout", names, (), "lays its elements out as they were, or twice in a row")
        seen = self._journal.before(chain)
        rewrite()
        self._journal.after(seen, change)
        self.changes.append(change)


def _reads(node: ir.Node, operators: Collection[str]) -> bool:
    """Whether the only reader of a node is of certain types, so that it ends the chain instead."""
    reader = only_reader(node.outputs[0])
    return reader is not None and operator(reader) in operators and reader.inputs[0] is node.outputs[0]


def _before(node: ir.Node, operators: Collection[str]) -> Iterator[ir.Node]:
    """The nodes in front of a node that are of certain types, each read by the next alone."""
    value = node.inputs[0]
    while value is not None and only_reader(value) is not None:
        producer = value.producer()
        if producer is None or operator(producer) not in operators or producer.graph is not node.graph:
            return
        yield producer
        value = producer.inputs[0]


def _shape_of(old: list[Dim], new: list[Dim]) -> list[int] | None:
    """The shape that a Reshape from some dimensions to others is given, None where it cannot be a constant."""
    wanted = [copied(dim, place, old) for place, dim in enumerate(new)]
    shape = [dim if isinstance(dim, int) else -1 for dim in wanted]
    return shape if shape.count(-1) <= 1 and 0 not in new else None


def _remove(nodes: list[ir.Node]) -> None:
    for node in nodes:
        assert node.graph is not None
        node.graph.remove(node, safe=True)

"""What nothing reads is removed, and reads nothing any more: not even from within its subgraphs."""

import onnx_ir as ir
from onnx_ir.passes import common

from normfuse.passes.access import graphs_of


def nodes_within(node: ir.Node) -> tuple[ir.Node, ...]:
    """The nodes in the subgraphs of a node, at any depth."""
    return tuple(inner for graph in graphs_of(node) for inner in graph.all_nodes())


def remove(node: ir.Node) -> None:
    """Removes a node that nothing reads; what its subgraphs read of the outside counts as read no longer.

    Raises:
        ValueError: a result of it is still read.
    """
    graph = node.graph
    assert graph is not None
    graph.remove(node, safe=True)
    for inner in nodes_within(node):
        for index in range(len(inner.inputs)):
            inner.replace_input_with(index, None)


class RemoveUnusedPass(ir.passes.InPlacePass):
    """Removes nodes and initializers that nothing reads.

    That of onnx_ir leaves what only the subgraphs of removed nodes have read: in memory they read it still.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Removes them from the graph, its subgraphs and the functions."""
        modified = False
        for graph in (model.graph, *(function.graph for function in model.functions.values())):
            modified |= _remove_unread(graph)
        return ir.passes.PassResult(model, common.RemoveUnusedNodesPass()(model).modified or modified)


def _remove_unread(graph: ir.Graph) -> bool:
    modified = False
    for node in reversed(graph):
        if not any(value.uses() or value.is_graph_output() for value in node.outputs):
            remove(node)
            modified = True
            continue
        for inner in graphs_of(node):
            modified |= _remove_unread(inner)
    return modified

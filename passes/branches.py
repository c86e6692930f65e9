"""An If whose condition is constant is one of its branches: `known_branches`."""

from collections.abc import Callable, Iterator
from functools import partial

import onnx_ir as ir

from normfuse.passes.access import operator
from normfuse.passes.removal import remove
from normfuse.passes.weights import Weights, constant_tensor, is_function_body


def known_branches(model: ir.Model) -> Iterator[tuple[ir.Node, Callable[[], None]]]:
    """Each If that always takes the same branch, and what puts the nodes of that branch in its place."""
    weights: Weights | None = None
    pending = [model.graph, *model.graph.subgraphs()]
    while pending:
        graph = pending.pop()
        for node in tuple(graph):
            branch = _taken(node)
            if branch is None or is_function_body(graph):
                continue
            weights = weights or Weights(model)
            yield node, partial(_put_in_place, node, branch, graph, weights)
            if node.graph is None:
                pending.append(graph)  # what stood in the branch may be such an If
                break


def _taken(node: ir.Node) -> ir.Graph | None:
    """The branch that an If always takes."""
    if operator(node) != "If":
        return None
    condition = constant_tensor(node.inputs[0])
    if condition is None or condition.size != 1:
        return None
    chosen = node.attributes.get("then_branch" if bool(condition.numpy().ravel()[0]) else "else_branch")
    return None if chosen is None or chosen.is_ref() else chosen.as_graph()


def _put_in_place(node: ir.Node, branch: ir.Graph, graph: ir.Graph | ir.Function, weights: Weights) -> None:
    assert isinstance(graph, ir.Graph)
    for value in tuple(branch.initializers.values()):
        branch.initializers.pop(str(value.name))
        value.name = weights.fresh(str(value.name))
        if value.const_value is not None:
            value.const_value.name = value.name
        graph.register_initializer(value)
    results = list(branch.outputs)
    branch.outputs.clear()
    body = list(branch)
    branch.remove(body)
    for place, result in enumerate(results):
        if result.producer() not in body or result in results[:place]:  # it is made outside, or given out twice
            copy = ir.node("Identity", [result])
            copy.outputs[0].type, copy.outputs[0].shape = result.type, result.shape
            body.append(copy)
            results[place] = copy.outputs[0]
    for inner in body:
        inner.name = weights.fresh(inner.name or inner.op_type)
        for output in inner.outputs:
            if output.name or output.uses() or output in results:
                output.name = weights.fresh(output.name or f"{inner.name}_output")
    graph.insert_before(node, body)
    for old, new in zip(node.outputs, results, strict=True):
        name, old.name = old.name, None
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        new.name = name
    remove(node)

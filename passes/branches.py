"""An If or a Where whose condition is constant is one of its branches: `known_branches`."""

from collections.abc import Callable, Iterator
from functools import partial

import onnx_ir as ir

from normfuse.passes.access import dims, operator
from normfuse.passes.removal import remove
from normfuse.passes.weights import Weights, constant_tensor, is_function_body


def known_branches(model: ir.Model) -> Iterator[tuple[ir.Node, Callable[[], None]]]:
    """Each If or Where that always takes the same branch, and what puts that branch in its place."""
    weights: Weights | None = None
    pending = [model.graph, *model.graph.subgraphs()]
    while pending:
        graph = pending.pop()
        for node in tuple(graph):
            if (chosen := _chosen(node)) is not None:
                yield node, partial(_pass_on, node, chosen)
                continue
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


def _chosen(node: ir.Node) -> ir.Value | None:
    """The value that a Where takes at every place, if it has the dimensions of the result already."""
    if operator(node) != "Where" or len(node.inputs) != 3:
        return None
    condition = constant_tensor(node.inputs[0])
    if condition is None or not condition.size:
        return None
    array = condition.numpy()
    if not array.all() and array.any():
        return None
    chosen = node.inputs[1 if array.all() else 2]
    sizes = dims(chosen)
    return chosen if sizes is not None and None not in sizes and sizes == dims(node.outputs[0]) else None


def _pass_on(node: ir.Node, value: ir.Value) -> None:
    """Puts an Identity in the place of a node with one result."""
    copy = ir.node("Identity", [value], name=node.name)
    old, new = node.outputs[0], copy.outputs[0]
    new.type, new.shape = old.type, old.shape
    assert node.graph is not None
    node.graph.insert_before(node, copy)
    name, old.name = old.name, None
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    new.name = name
    remove(node)


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

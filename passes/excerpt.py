"""A normalization as a model of its own, and the sizes that its dynamic dimensions take there.

    data, computed γ and β …  →  the nodes of the site  →  y

Everything that is computed in floating point comes from outside as an input; constants, and what computes integers
such as the shape of a Reshape, come along.
"""

from collections.abc import Iterator, Mapping, Sequence

import onnx_ir as ir

from normfuse.passes.access import RefusedError, dims
from normfuse.passes.inference import infer_shapes
from normfuse.passes.lowering import NormSite
from normfuse.passes.weights import constant_tensor

_MOST_NODES = 64
"""Nodes that compute integers for a site are followed up to this number."""


def excerpt(model: ir.Model, site: NormSite) -> ir.Model:
    """A copy of a site as a model with what computes its scale and bias as inputs; the model is not changed.

    Raises:
        RefusedError: the site cannot stand alone: with the reason.
    """
    nodes: dict[ir.Node, None] = {}
    inputs: dict[ir.Value, None] = {}
    constants: dict[ir.Value, None] = {}

    def take(value: ir.Value) -> None:
        producer = value.producer()
        if producer is None and constant_tensor(value) is not None:
            constants[value] = None
        elif producer is not None and (producer in nodes or constant_tensor(value) is not None):
            nodes[producer] = None
        elif value.dtype is not None and value.dtype.is_floating_point():
            inputs[value] = None
        elif producer is None:
            raise RefusedError(f"it reads {value.name!r}, which holds no real numbers")
        else:
            include(producer)

    def include(node: ir.Node) -> None:
        if len(nodes) == _MOST_NODES or _has_graphs(node):
            raise RefusedError("what computes its shapes is a graph of its own")
        for value in node.inputs:
            if value is not None:
                take(value)
        nodes[node] = None

    for node in site.nodes:
        include(node)
    view = ir.GraphView(
        list(inputs),
        [site.output],
        nodes=list(nodes),
        initializers=list(constants),
        opset_imports=model.opset_imports,
        name=f"{site.output.name}",
    )
    graph = view.clone()
    for value in graph.inputs:
        value.const_value = None
    functions = [model.functions[key].clone() for key in _called(model, nodes)]
    return ir.Model(graph, ir_version=model.ir_version, functions=functions)


def _has_graphs(node: ir.Node) -> bool:
    return any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values())


def _called(model: ir.Model, nodes: Iterator[ir.Node] | Mapping[ir.Node, None]) -> dict[ir.OperatorIdentifier, None]:
    """The functions that nodes call, and those that these call."""
    found: dict[ir.OperatorIdentifier, None] = {}
    pending = list(nodes)
    while pending:
        key = pending.pop().op_identifier()
        if key in model.functions and key not in found:
            found[key] = None
            pending.extend(model.functions[key].all_nodes())
    return found


def sizes_of(model: ir.Model, shapes: Mapping[str, Sequence[int]]) -> dict[str, list[int | None]]:
    """The dimensions of all values, by name, where the inputs of a model have these shapes; None where not known."""
    copy = model.clone()
    for value in copy.graph.inputs:
        if str(value.name) in shapes:
            value.shape = ir.Shape(shapes[str(value.name)])
    infer_shapes(copy)
    values = (value for graph in copy.graphs() for node in graph for value in node.outputs)
    return {
        str(value.name): [dim if isinstance(dim, int) else None for dim in found]
        for value in (*copy.graph.inputs, *values)
        if (found := dims(value)) is not None
    }

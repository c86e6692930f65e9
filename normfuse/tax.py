"""What normalization costs: a model with its normalizations and affine maps taken out, to be timed beside it.

    tax = 1 − t_without / t_with

Each normalization, each BatchNormalization, and each scale and shift by constants hands on its data as it is: shapes
stay valid, the numbers do not. γ and β go with them, and so does what only computed them. A bias behind a linear
operator belongs to that, and stays; so does what ONNX Runtime has fused with an Add (SkipLayerNormalization).

It is an upper bound of what could be won: without the normalization ONNX Runtime also fuses across the gap, and keeps
its blocked layout there. What depends on numbers (how many boxes pass a threshold, how often a loop runs) may change.
"""

from dataclasses import dataclass

import onnx_ir as ir

from normfuse.norm import Standardize
from normfuse.passes.access import RefusedError, dims, operator
from normfuse.passes.clean import CleanPass
from normfuse.passes.lift import LiftPass
from normfuse.passes.lifted import DOMAIN, forget, lifted
from normfuse.passes.lower import restore
from normfuse.passes.prepare import PreparePass
from normfuse.passes.sources import Source, read
from normfuse.passes.weights import Weights
from normfuse.pipeline import quiet
from normfuse.report import NORMALIZATIONS

_LINEAR = frozenset({"Conv", "ConvInteger", "ConvTranspose", "Einsum", "Gemm", "MatMul", "MatMulInteger"})
_BETWEEN = frozenset({"Cast", "Flatten", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
"""What may stand between a linear operator and its bias; so may the scale of a quantised one."""

_DOMAINS = ("", "ai.onnx", "com.microsoft")


@dataclass(frozen=True, slots=True)
class Untaxed:
    """A model without its normalizations and affine maps.

    Attributes:
        model: the model; it computes something else, in the same shapes.
        norms: normalizations that were taken out, those that were spelled out among them.
        affines: scales and shifts by constants that were.
    """

    model: ir.Model
    norms: int
    affines: int


def untaxed(model: ir.Model) -> Untaxed:
    """Takes the normalizations and affine maps out of a copy of a model that `normfuse.model.load` returned."""
    with quiet():
        return _untaxed(model.clone())


def _untaxed(model: ir.Model) -> Untaxed:
    PreparePass()(model)
    LiftPass()(model)
    weights = Weights(model)
    nodes = [node for graph in (model.graph, *model.graph.subgraphs()) for node in graph]
    places = {node: index for node in nodes if (index := _data_index(node, weights)) is not None}
    norms = sum(_is_norm(node) for node in places)
    for node, index in places.items():
        _bypass(model, node, index)
    restore(model)
    CleanPass()(model)
    for node in (node for graph in model.graphs() for node in graph):
        for value in node.outputs:
            if value.type is None:
                value.shape = None  # a shape without a type cannot be written
    return Untaxed(model, norms, len(places) - norms)


def _is_norm(node: ir.Node) -> bool:
    record = lifted(node)
    if record is not None:
        return isinstance(record.meaning, Standardize)
    return node.domain in _DOMAINS and node.op_type in NORMALIZATIONS


def _data_index(node: ir.Node, weights: Weights) -> int | None:
    """Which input a normalization or affine map would hand on; None for what stays."""
    if _is_norm(node):
        return _norm_index(node)
    if node.domain == DOMAIN:
        return None
    try:
        source = read(node, weights)
    except RefusedError:
        return None
    if not isinstance(source, Source) or source.affine.is_identity or _is_bias(source):
        return None
    output, sizes = node.outputs[0], dims(source.data)
    alike = source.data.dtype == output.dtype and sizes is not None and sizes == dims(output)
    return source.index if alike else None


def _norm_index(node: ir.Node) -> int | None:
    """The data of a normalization, whose shape is that of its result."""
    record, output = lifted(node), node.outputs[0]
    index = 0 if record is None else record.data
    data = node.inputs[index]
    if data is None or node.op_type.startswith("Skip"):
        return None
    if any(one.uses() or one.is_graph_output() for one in node.outputs[1:]):
        return None
    return None if None not in (data.dtype, output.dtype) and data.dtype != output.dtype else index


def _is_bias(source: Source) -> bool:
    """Whether a shift stands behind a linear operator."""
    if not source.affine.keeps_scale:
        return False
    before = source.data.producer()
    for _ in range(4):
        if before is None or operator(before) not in _BETWEEN | {"Mul"}:
            break
        if operator(before) == "Mul" and all(value is None or value.const_value is None for value in before.inputs):
            behind = [value.producer() for value in before.inputs if value is not None]
            before = next((one for one in behind if one is not None and operator(one) == "Cast"), None)
        elif operator(before) == "Mul":
            break
        else:
            before = None if before.inputs[0] is None else before.inputs[0].producer()
    return before is not None and operator(before) in _LINEAR


def _bypass(model: ir.Model, node: ir.Node, index: int) -> None:
    """Lets the readers of a node read its data, and removes it."""
    data, output, graph = node.inputs[index], node.outputs[0], node.graph
    assert data is not None
    assert graph is not None
    if output.is_graph_output():
        stand_in = ir.node("Identity", [data], name=node.name)
        graph.insert_before(node, stand_in)
        data = stand_in.outputs[0]
        data.type, data.shape = output.type, output.shape
        name, output.name = output.name, None
        output.replace_all_uses_with(data, replace_graph_outputs=True)
        data.name = name
    else:
        output.replace_all_uses_with(data)
    graph.remove(node, safe=True)
    if lifted(node) is not None:
        forget(model, node)

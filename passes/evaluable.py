"""What `prepare` evaluates: nodes that compute constants which are not much larger than what they are made of."""

import math
from collections.abc import Iterable, Iterator

import numpy as np
import onnx_ir as ir

from normfuse.passes.access import operator
from normfuse.passes.weights import EXACT, constant_tensor

GROWTH_BYTES = 32 << 20
"""A constant that is larger than four times what it is computed from is evaluated up to this size."""

_KEPT = frozenset(
    {
        "Bernoulli",
        "Constant",
        "DequantizeLinear",
        "Dropout",
        "DynamicQuantizeLinear",
        "Multinomial",
        "QuantizeLinear",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
    }
)
"""What is not evaluated: it is random, or the form in which quantized weights are stored."""

_SMOOTH = frozenset(
    {
        "Abs",
        "Add",
        "BatchNormalization",
        "Concat",
        "Div",
        "Expand",
        "Flatten",
        "Gather",
        "Gemm",
        "Identity",
        "InstanceNormalization",
        "LayerNormalization",
        "MatMul",
        "Mul",
        "Neg",
        "Pow",
        "Reciprocal",
        "ReduceL1",
        "ReduceL2",
        "ReduceMean",
        "ReduceSum",
        "ReduceSumSquare",
        "Reshape",
        "Slice",
        "Split",
        "Sqrt",
        "Squeeze",
        "Sub",
        "Sum",
        "Tile",
        "Transpose",
        "Unsqueeze",
    }
)
"""Operators whose result changes little where their input does: what weights are computed with."""

_SIZED = frozenset(
    {
        "AveragePool",
        "BlackmanWindow",
        "CenterCropPad",
        "Col2Im",
        "Conv",
        "ConvTranspose",
        "DFT",
        "Expand",
        "HammingWindow",
        "HannWindow",
        "LpPool",
        "MaxPool",
        "MaxUnpool",
        "MelWeightMatrix",
        "OneHot",
        "Pad",
        "Range",
        "Resize",
        "STFT",
        "Tile",
        "Upsample",
    }
)
"""Operators whose result can be of any size, whatever that of their inputs."""

_LONGEST = 64
"""Dimensions that a shape can sensibly have."""


def evaluable(graph: ir.Graph, most: int) -> Iterator[ir.Node]:
    """Nodes that compute constants, in order, each a reader of constants or of such nodes alone.

    Args:
        graph: the graph.
        most: bytes that one result may have: else what was evaluated could grow again, in each round.
    """
    constant: set[ir.Value] = set()
    for node in graph:
        if operator(node) in ("", *_KEPT):
            continue
        if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
            continue
        if not all(v is None or v in constant or _is_tensor(v) for v in node.inputs):
            continue
        if any(output.is_graph_output() for output in node.outputs) or not _is_worth(node, most):
            continue
        constant.update(node.outputs)
        yield node


def groups(nodes: list[ir.Node]) -> Iterator[tuple[bool, list[ir.Node]]]:
    """Nodes that are connected with one another, and whether all of them are smooth.

    A Floor, a comparison or a Cast to a narrower type turns a difference in rounding into another number: what leads to
    one is computed as the model says.
    """
    for group in connected(nodes):
        yield all(_is_smooth(node) for node in group), group


def connected(nodes: list[ir.Node]) -> Iterator[list[ir.Node]]:
    """Nodes that are connected with one another, each group in their order."""
    groups: dict[ir.Node, list[ir.Node]] = {}
    for node in nodes:
        group = [node]
        for value in node.inputs:
            other = groups.get(producer) if value is not None and (producer := value.producer()) is not None else None
            if other is not None and other is not group:
                other.extend(member for member in group if member not in other)
                group = other
        for member in group:
            groups[member] = group
    order = {node: place for place, node in enumerate(nodes)}
    for group in {id(group): group for group in groups.values()}.values():
        yield sorted(group, key=order.__getitem__)


def _is_smooth(node: ir.Node) -> bool:
    if node.op_type == "Cast":
        return node.outputs[0].dtype in (ir.DataType.FLOAT, ir.DataType.DOUBLE)
    return node.op_type in _SMOOTH


def _is_tensor(value: ir.Value) -> bool:
    tensor = constant_tensor(value)
    return tensor is not None and tensor.dtype != ir.DataType.STRING


def _is_worth(node: ir.Node, most: int) -> bool:
    """Whether the results are known not to be much larger than what they are computed from."""
    known = sum(tensor.nbytes for tensor in map(constant_tensor, node.inputs) if tensor is not None)
    limit = max(GROWTH_BYTES, min(4 * known, most))
    size = 0
    for output in node.outputs:
        if output.name and (output.dtype is None or output.dtype == ir.DataType.STRING):
            return False
        if output.dtype is None:
            continue
        count = _count(output)
        if count is None:
            count = _largest(node)
        if count is None:
            return False
        size += count * output.dtype.bitwidth // 8
    return size <= limit


def _count(value: ir.Value) -> int | None:
    """The elements of a value, or None where its shape is not known."""
    own = None if value.shape is None else [dim for dim in value.shape if isinstance(dim, int) and dim >= 0]
    return None if own is None or value.shape is None or len(own) < len(value.shape) else math.prod(own)


def _largest(node: ir.Node) -> int | None:
    """As many elements as a result can have whose shape is not known: each element of an input with each of the others.

    None where an operator makes more than that, or an input is not known.
    """
    if node.op_type == "ConstantOfShape":
        shape = constant_tensor(node.inputs[0]) if node.inputs else None
        return None if shape is None else math.prod(max(0, int(n)) for n in shape.numpy().ravel())
    if node.op_type in ("Expand", "Tile"):
        size, factors = _count_of(node.inputs[0]), constant_tensor(node.inputs[1]) if len(node.inputs) > 1 else None
        if size is None or factors is None or factors.size > _LONGEST:
            return None
        return size * math.prod(max(1, int(n)) for n in factors.numpy().ravel())
    if node.op_type in _SIZED:
        return None
    counts = []
    for value in node.inputs:
        count = 1 if value is None else _count_of(value)
        if count is None:
            return None
        counts.append(max(1, count))
    return math.prod(counts)


def _count_of(value: ir.Value | None) -> int | None:
    """The elements of an input: of the constant that it is, or by its shape."""
    tensor = constant_tensor(value)
    return tensor.size if tensor is not None else None if value is None else _count(value)


def cut_out(
    model: ir.Model,
    nodes: Iterable[ir.Node],
    wanted: Iterable[ir.Value],
    feeds: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]],
) -> ir.Model:
    """A model of some nodes alone; the constants that they read become its inputs, with their values in `feeds`."""
    values: dict[ir.Value, ir.Value] = {}
    inputs: list[ir.Value] = []

    def copy(value: ir.Value) -> ir.Value:
        if value not in values:
            values[value] = ir.Value(name=value.name, type=value.type, shape=value.shape)
            tensor = constant_tensor(value)
            if tensor is not None:
                exact = value.meta.get(EXACT)
                feeds[str(value.name)] = np.asarray(tensor.numpy() if exact is None else exact)
                values[value].dtype = tensor.dtype
                inputs.append(values[value])
        return values[value]

    copies = [
        ir.Node(
            node.domain,
            node.op_type,
            [None if value is None else copy(value) for value in node.inputs],
            list(node.attributes.values()),
            outputs=[copy(output) for output in node.outputs],
            name=node.name,
        )
        for node in nodes
    ]
    graph = ir.Graph(
        inputs, [copy(value) for value in wanted], nodes=copies, opset_imports=dict(model.opset_imports), name="weights"
    )
    return ir.Model(graph, ir_version=model.ir_version)

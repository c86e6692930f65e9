"""Names for dimensions that onnx's inference gives up on, so that equal ones are seen to be equal.

onnx takes what stands behind a computed Reshape, an Expand or a pool over an open size for new dimensions, and
everything behind these, too. Here each node says once more what dimensions it gives:

    elementwise     those of its inputs, broadcast
    Reshape, …      products and quotients of those of its input: `batch·height`
    Conv, pools     those of its input where the stride is 1 and the padding makes up for the kernel

A dimension that onnx knows is left as it is.
"""

from collections.abc import Callable, Iterable, Sequence

import onnx_ir as ir

from normfuse.passes.access import Dim, RefusedError, attribute, dims, operator
from normfuse.passes.reshaping import Extent
from normfuse.passes.sizes import MOVERS, ONE, Sizes, extent, integers_of, moved
from normfuse.passes.views import reduced_axes
from normfuse.passes.weights import Weights

_MADE_UP = "unk__"
"""What the names begin with that onnx gives to dimensions that it does not know."""

ALIKE = frozenset(
    {
        "Abs",
        "BatchNormalization",
        "Cast",
        "Ceil",
        "Celu",
        "Clip",
        "Cos",
        "CumSum",
        "DequantizeLinear",
        "Dropout",
        "Elu",
        "Erf",
        "Exp",
        "Floor",
        "Gelu",
        "GroupNormalization",
        "HardSigmoid",
        "HardSwish",
        "Identity",
        "InstanceNormalization",
        "LRN",
        "LayerNormalization",
        "LeakyRelu",
        "Log",
        "LogSoftmax",
        "LpNormalization",
        "MeanVarianceNormalization",
        "Mish",
        "Neg",
        "Not",
        "PRelu",
        "QuantizeLinear",
        "RMSNormalization",
        "Reciprocal",
        "Relu",
        "Round",
        "Selu",
        "Sigmoid",
        "Sign",
        "Sin",
        "Softmax",
        "Softplus",
        "Softsign",
        "Sqrt",
        "Swish",
        "Tanh",
        "ThresholdedRelu",
        "Trilu",
    }
)
"""Operators whose result has the dimensions of the first input."""

_BROADCAST = frozenset(
    {
        "Add",
        "And",
        "Div",
        "Equal",
        "Greater",
        "GreaterOrEqual",
        "Less",
        "LessOrEqual",
        "Max",
        "Mean",
        "Min",
        "Mod",
        "Mul",
        "Or",
        "Pow",
        "Sub",
        "Sum",
        "Where",
        "Xor",
    }
)
_REDUCTIONS = frozenset(
    {"ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare"}
)
_WINDOWS = frozenset({"AveragePool", "Conv", "LpPool", "MaxPool"})

Row = list[Extent | None]


def name_dimensions(model: ir.Model) -> None:
    """Fills in what is not known of the dimensions of all values in the graph and its subgraphs."""
    weights = Weights(model)
    given = {dim for value in model.graph.inputs for dim in dims(value) or () if isinstance(dim, str)}
    for graph in (model.graph, *model.graph.subgraphs()):
        for node in graph:
            output = node.outputs[0] if node.outputs else None
            if output is None or not operator(node) or not _is_open(output, given):
                continue
            try:
                found = _found(node, weights)
            except RefusedError:
                continue
            if found is not None:
                _fill_in(output, found, given)


def _is_open(value: ir.Value, given: set[str]) -> bool:
    """Whether not all dimensions of a value are known by size or name."""
    own = dims(value)
    return own is None or any(_is_made_up(dim, given) for dim in own)


def _is_made_up(dim: Dim, given: set[str]) -> bool:
    return dim is None or (isinstance(dim, str) and dim.startswith(_MADE_UP) and dim not in given)


def _fill_in(value: ir.Value, found: Row, given: set[str]) -> None:
    own: list[Dim] = dims(value) or [None] * len(found)
    if len(own) != len(found):
        return
    pairs = zip(own, found, strict=True)
    named = [one.dim if one is not None and _is_made_up(dim, given) else dim for dim, one in pairs]
    value.shape = ir.Shape(named)


def _row(value: ir.Value | None) -> Row:
    """The dimensions of a value.

    Raises:
        RefusedError: not even their number is known.
    """
    own = dims(value)
    if own is None:
        raise RefusedError("the number of dimensions is not known")
    return [None if dim is None else extent(dim) for dim in own]


def _axis(axis: int, row: Row) -> int:
    """An axis, counted from the front.

    Raises:
        RefusedError: there is no such axis.
    """
    if not -len(row) <= axis < len(row):
        raise RefusedError(f"axis {axis} of {len(row)} dimensions")
    return axis % len(row)


def _found(node: ir.Node, weights: Weights) -> Row | None:
    name = operator(node)
    if name in ALIKE:
        return _row(node.inputs[0])
    if name in _BROADCAST:
        return _broadcast([_row(value) for value in node.inputs])
    if name in MOVERS:
        return _moved(node, weights)
    if name in _WINDOWS:
        return _windowed(node)
    if name in _REDUCTIONS:
        return _reduced(node, weights)
    law = _LAWS.get(name)
    return None if law is None else law(node, weights)


def _broadcast(rows: Iterable[Row]) -> Row:
    """Dimensions as numpy broadcasts them; None where two differ that may be 1."""
    known = list(rows)
    rank = max(map(len, known))
    result: Row = []
    for axis in range(-rank, 0):
        own = [row[axis] for row in known if len(row) >= -axis]
        long = list(dict.fromkeys(one for one in own if one != ONE))
        numbers = [one for one in long if one is not None and not one.symbols]
        if numbers:
            result.append(numbers[0])
        else:
            result.append(ONE if not long else long[0] if len(long) == 1 else None)
    return result


def _moved(node: ir.Node, weights: Weights) -> Row | None:
    inner = _complete(_row(node.inputs[0]))
    found = None if inner is None else moved(node, inner, weights)
    if found is not None or operator(node) != "Reshape" or node.inputs[1] is None:
        return None if found is None else list(found)
    wanted = integers_of(node.inputs[1], weights)
    if wanted is None or attribute(node, "allowzero", 0):
        return None
    outer = _row(node.inputs[0])
    zero = Extent(0, ())
    if any(size == zero and place >= len(outer) for place, size in enumerate(wanted)):
        return None
    copied = [outer[place] if size == zero else size for place, size in enumerate(wanted)]
    return [None if size is None or size.number < 0 else size for size in copied]


def _complete(row: Row) -> Sizes | None:
    known = tuple(one for one in row if one is not None)
    return known if len(known) == len(row) else None


def _windowed(node: ir.Node) -> Row | None:
    """Convolutions and pools that keep a size: stride 1, and padding of dilation · (kernel − 1)."""
    data = _row(node.inputs[0])
    kernel: Sequence[Dim] | None = attribute(node, "kernel_shape")
    channels = data[1]
    if operator(node) == "Conv":
        weight = dims(node.inputs[1]) or [None, None]
        kernel, channels = kernel or weight[2:], None if weight[0] is None else extent(weight[0])
    if not kernel or len(kernel) != len(data) - 2:
        return None
    rank = len(kernel)
    strides, dilations = attribute(node, "strides", [1] * rank), attribute(node, "dilations", [1] * rank)
    pads, mode = attribute(node, "pads", [0] * (2 * rank)), attribute(node, "auto_pad", "NOTSET")
    result: Row = [data[0], channels]
    for axis, size in enumerate(kernel):
        whole = mode.startswith("SAME") or (
            mode == "NOTSET"
            and isinstance(size, int)
            and pads[axis] + pads[axis + rank] == dilations[axis] * (size - 1)
        )
        result.append(data[axis + 2] if strides[axis] == 1 and whole else None)
    return result


def _reduced(node: ir.Node, weights: Weights) -> Row | None:
    row = _row(node.inputs[0])
    axes, kept = reduced_axes(node, len(row), weights), bool(attribute(node, "keepdims", 1))
    if axes is None:
        return None
    return [ONE if place in axes else one for place, one in enumerate(row) if kept or place not in axes]


def _expanded(node: ir.Node, weights: Weights) -> Row | None:
    wanted = None if node.inputs[1] is None else integers_of(node.inputs[1], weights)
    return None if wanted is None else _broadcast([_row(node.inputs[0]), wanted])


def _transposed(node: ir.Node, weights: Weights) -> Row:
    row = _row(node.inputs[0])
    return [row[axis] for axis in attribute(node, "perm", list(range(len(row)))[::-1])]


def _joined(node: ir.Node, weights: Weights) -> Row:
    """Concat: the sum along its axis, one size along the others."""
    rows = [_row(value) for value in node.inputs]
    axis = _axis(attribute(node, "axis", 0), rows[0])
    if len(set(map(len, rows))) > 1:
        raise RefusedError("the inputs differ in their number of dimensions")
    result: Row = [next((one for one in own if one is not None), None) for own in zip(*rows, strict=True)]
    parts = [row[axis] for row in rows]
    numbers = [one.number for one in parts if one is not None and not one.symbols]
    result[axis] = Extent(sum(numbers), ()) if len(numbers) == len(parts) else None
    return result


def _split(node: ir.Node, weights: Weights) -> Row:
    row = _row(node.inputs[0])
    axis = _axis(attribute(node, "axis", 0), row)
    return [None if place == axis else one for place, one in enumerate(row)]


def _sliced(node: ir.Node, weights: Weights) -> Row | None:
    row = _row(node.inputs[0])
    axes = attribute(node, "axes")
    if axes is None and len(node.inputs) > 3 and node.inputs[3] is not None:
        axes = weights.integers(node.inputs[3])
    if axes is None:
        return None
    cut = {_axis(axis, row) for axis in axes}
    return [None if place in cut else one for place, one in enumerate(row)]


def _padded(node: ir.Node, weights: Weights) -> Row | None:
    row, pads = _row(node.inputs[0]), attribute(node, "pads")
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        return None
    if pads is None and len(node.inputs) > 1:
        pads = weights.integers(node.inputs[1])
    if pads is None or len(pads) != 2 * len(row):
        return None
    return [one if pads[axis] == pads[axis + len(row)] == 0 else None for axis, one in enumerate(row)]


def _multiplied(node: ir.Node, weights: Weights) -> Row | None:
    """MatMul of at least two dimensions each: broadcast in front, rows of the first, columns of the second."""
    first, second = _row(node.inputs[0]), _row(node.inputs[1])
    if len(first) < 2 or len(second) < 2:
        return None
    front = _broadcast([first[:-2], second[:-2]]) if len(first) > 2 or len(second) > 2 else []
    return [*front, first[-2], second[-1]]


def _gemm(node: ir.Node, weights: Weights) -> Row:
    first, second = _row(node.inputs[0]), _row(node.inputs[1])
    return [first[attribute(node, "transA", 0)], second[1 - attribute(node, "transB", 0)]]


_LAWS: dict[str, Callable[[ir.Node, Weights], Row | None]] = {
    "Concat": _joined,
    "Expand": _expanded,
    "Gemm": _gemm,
    "MatMul": _multiplied,
    "Pad": _padded,
    "Slice": _sliced,
    "Split": _split,
    "Transpose": _transposed,
}

"""Steps of random graphs: forms that rules look for and that hardly any graph would hold by chance."""

import numpy as np
import onnx

from scripts.graphs import FLOATS, Growth, Step, Value, need
from scripts.graphs_linear import convolution
from scripts.graphs_norms import affine, several, squared, standardized

INPUTS = ("x", "z")
"""Names of the inputs of a model, whose numbers nothing rounds."""


def turned(g: Growth, x: Value, *, inverse: bool = False) -> Value:
    """(N, C, …) as (N, …, C), or the way back."""
    order = (0, x.rank - 1, *range(1, x.rank - 1)) if inverse else (0, *range(2, x.rank), 1)
    return g.add("Transpose", [x.name], [x.dims[axis] for axis in order], perm=list(order))


def norm_between_transposes(g: Growth, x: Value) -> Value:
    """LayerNorm over the channels of (N, C, …), which are the last axis between two Transposes."""
    need(x.rank >= 3)
    last = turned(g, x)
    several(last, [last.rank - 1])
    if g.chance(50):
        made = standardized(g, last, [last.rank - 1])
    else:
        made = g.add("LayerNormalization", [last.name, g.scale(last.size(last.rank - 1))], last.dims, epsilon=1e-3)
    return turned(g, affine(g, made, made.rank - 1) if g.chance(50) else made, inverse=True)


def norm_in_float32(g: Growth, x: Value) -> Value:
    """A normalization in float32 between a Cast and one back, γ and β behind it."""
    need(x.dtype.name in ("float16", "bfloat16") and x.rank >= 2)
    single, name = FLOATS["float32"], g.name("v")
    g.nodes.append(
        onnx.helper.make_node("Cast", [x.name], [name], name=f"n_{name}", to=onnx.TensorProto.FLOAT),
    )
    with g.of(single):
        made = standardized(g, Value(name, x.dims, single), [x.rank - 1], centred=g.chance(50))
    back = g.name("v")
    to = onnx.helper.np_dtype_to_tensor_dtype(x.dtype)
    g.nodes.append(onnx.helper.make_node("Cast", [made.name], [back], name=f"n_{back}", to=to))
    return affine(g, Value(back, x.dims, x.dtype), x.rank - 1)


def groups_between_transposes(g: Growth, x: Value) -> Value:
    """GroupNormalization of channels that stand last, with or without SiLU."""
    need(x.rank in (3, 4) and g.opset >= 18)
    first = turned(g, x, inverse=True)
    several(first, range(2, first.rank))
    channels = first.size(1)
    groups = g.choose(*(n for n in (1, 2, channels // 2) if n and channels % n == 0))
    size = groups if g.opset < 21 else channels
    inputs = [first.name, g.scale(size), g.weight(size, low=-1.0)]
    made = g.add("GroupNormalization", inputs, first.dims, num_groups=groups, epsilon=1e-3)
    if g.chance(50):
        made = g.both("Mul", made.name, g.add("Sigmoid", [made.name], made.dims).name, made.dims)
    return turned(g, made)


def norm_by_batch_norm(g: Growth, x: Value) -> Value:
    """BatchNormalization that is given the mean and the variance of its input."""
    need(x.rank >= 3)
    axes, channels = [0, *range(2, x.rank)], x.size(1)
    several(x, axes)
    mean = g.reduce("ReduceMean", x, axes)
    centred = g.add("Sub", [x.name, mean.name], x.dims)
    variance = g.reduce("ReduceMean", squared(g, centred), axes, keepdims=False)
    own = g.reduce("ReduceMean", x, axes, keepdims=False)
    inputs = [x.name, g.scale(channels), g.weight(channels, low=-1.0), own.name, variance.name]
    return g.add("BatchNormalization", inputs, x.dims, epsilon=1e-3)


def gelu_multiplied_out(g: Growth, x: Value) -> Value:
    """½ · x + ½ · x · erf(x / √2), or tanh of a cubic in the place of erf."""
    half = g.both("Mul", x.name, g.number(0.5), x.dims)
    if g.chance(50):
        bound = g.add("Erf", [g.add("Div", [x.name, g.number(2**0.5)], x.dims).name], x.dims)
    else:
        cube = g.add("Mul", [g.add("Mul", [x.name, x.name], x.dims).name, x.name], x.dims)
        inner = g.both("Add", x.name, g.both("Mul", cube.name, g.number(0.044715), x.dims).name, x.dims)
        bound = g.add("Tanh", [g.both("Mul", inner.name, g.number((2 / np.pi) ** 0.5), x.dims).name], x.dims)
    return g.both("Add", half.name, g.both("Mul", half.name, bound.name, x.dims).name, x.dims)


def looked_up(g: Growth, x: Value) -> Value:
    """Rows of a constant table by the signs of an input, mapped affinely."""
    need(x.name in INPUTS and x.rank <= 4 and g.opset >= 9)
    size = g.choose(3, 2)
    above, index = g.name("p"), g.name("i")
    g.nodes.append(onnx.helper.make_node("Greater", [x.name, g.constant(0.0)], [above], name=f"n_{above}"))
    g.nodes.append(onnx.helper.make_node("Cast", [above], [index], name=f"n_{index}", to=onnx.TensorProto.INT64))
    made = g.add("Gather", [g.weight(2, size), index], (*x.dims, size), axis=0)
    return affine(g, made, made.rank - 1)


def softmax_of_sum(g: Growth, x: Value) -> Value:
    """A Softmax behind a shift that is the same for all that it sums, or is not."""
    need(x.rank >= 2)
    axis = g.choose(x.rank - 1, *range(1, x.rank))
    along = g.choose(*range(x.rank))
    shape = (x.size(along), *[1] * (x.rank - 1 - along))
    moved = g.both("Add", x.name, g.weight(*shape, low=-1.0), x.dims)
    return g.add(g.choose("Softmax", "LogSoftmax"), [moved.name], x.dims, axis=axis)


def affine_between_convolutions(g: Growth, x: Value) -> Value:
    """Conv → Sigmoid or MaxPool → γ, β → Conv, which pads with zeros."""
    need(x.rank == 4)
    made = convolution(g, x)
    if g.chance(50):
        made = g.add("Sigmoid", [made.name], made.dims)
    else:
        need(all(isinstance(dim, str) or dim >= 2 for dim in made.dims[2:]))
        spatial = [dim - 1 if isinstance(dim, int) else f"({dim}-1)" for dim in made.dims[2:]]
        made = g.add("MaxPool", [made.name], (*made.dims[:2], *spatial), kernel_shape=[2, 2], strides=[1, 1])
    channels = made.size(1)
    shape = (channels, 1, 1)
    made = g.both("Mul", made.name, g.scale(*shape), made.dims)
    made = g.both("Add", made.name, g.weight(*shape, low=-1.0), made.dims)
    weight = g.weight(g.choose(channels, 3), channels, 3, 3)
    outputs = next(shape[0] for (shape, *_), names in g.pool.items() if weight in names)
    return g.add("Conv", [made.name, weight], made.having(1, outputs), pads=[1, 1, 1, 1])


def by_difference(g: Growth, x: Value) -> Value:
    """(x − m) / √(E[x²] − m² + ε) over the last axis, m = E[x], with an ε that holds up what cancels."""
    several(x, [x.rank - 1])
    mean = g.reduce("ReduceMean", x, [x.rank - 1])
    square = g.reduce("ReduceMean", squared(g, x), [x.rank - 1])
    moment = g.add("Sub", [square.name, squared(g, mean).name], square.dims)
    moment = g.add("Add", [moment.name, g.number(1.0)], moment.dims)
    root = g.add("Sqrt", [moment.name], moment.dims)
    return g.add("Div", [g.add("Sub", [x.name, mean.name], x.dims).name, root.name], x.dims)


def groups_by_difference(g: Growth, x: Value) -> Value:
    """GroupNorm by parts between two Reshapes, its variance E[x²] − E[x]²."""
    need(x.rank >= 3)
    sizes = [x.size(axis) for axis in range(1, x.rank)]
    channels, size = sizes[0], int(np.prod(sizes))
    groups = g.choose(*(n for n in (2, 1, 3) if channels % n == 0))
    rows = g.add("Reshape", [x.name, g.integers(0, groups, -1)], (x.dims[0], groups, size // groups))
    made = by_difference(g, rows)
    back = g.integers(0, *sizes)
    return affine(g, g.add("Reshape", [made.name, back], x.dims), 1)


def norm_of_sum(g: Growth, x: Value) -> Value:
    """Add → RMSNorm or LayerNorm of (N, L, C), by parts; the variance is E[x²] − E[x]²."""
    need(x.rank == 3)
    axes = [2]
    several(x, axes)
    other = g.add(g.choose("Tanh", "Sigmoid"), [x.name], x.dims)
    added = g.both("Add", x.name, other.name, x.dims)
    made = standardized(g, added, axes, centred=False) if g.chance(50) else by_difference(g, added)
    made = affine(g, made, 2)
    return g.both("Add", added.name, made.name, x.dims) if g.chance(30) else made


def quantised(g: Growth, x: Value) -> Value:
    """QuantizeLinear and back, of an input: what stands further on may be rounded to the next number."""
    need(x.name in INPUTS and g.dtype.name == "float32" and g.opset >= 13)
    name = g.name("v")
    scale, zero = g.constant(0.05), g.constant(3, g.choose(np.int8, np.uint8))
    g.nodes.append(onnx.helper.make_node("QuantizeLinear", [x.name, scale, zero], [name], name=f"n_{name}"))
    return g.add_any("DequantizeLinear", [name, scale, zero], x.dims)


RARE: tuple[Step, ...] = (
    *(norm_between_transposes, norm_in_float32, groups_between_transposes, norm_by_batch_norm, gelu_multiplied_out),
    *(looked_up, softmax_of_sum, affine_between_convolutions, norm_of_sum, groups_by_difference, quantised),
)

"""Steps of random graphs: normalizations and activations, as operators of each opset and spelled out."""

from collections.abc import Iterable

import numpy as np
import onnx

from scripts.graphs import Growth, Step, Value, need
from scripts.graphs_linear import product


def affine(g: Growth, x: Value, axis: int) -> Value:
    """γ · x + β along an axis, each there or not."""
    shape = (x.size(axis), *[1] * (x.rank - 1 - axis))
    if not g.chance(25):
        x = g.both("Mul", x.name, g.scale(*shape), x.dims)
    if not g.chance(25):
        x = g.both("Add", x.name, g.weight(*shape, low=-1.0), x.dims)
    return x


def squared(g: Growth, x: Value) -> Value:
    """The square of a value."""
    if g.chance(50):
        return g.add("Mul", [x.name, x.name], x.dims)
    return g.add("Pow", [x.name, g.number(2.0)], x.dims)


def inverted(g: Growth, moment: Value, x: Value, epsilon: float) -> Value:
    """X / √(v + ε), the root spelled in some way."""
    place = g.choose("inside", "inside", "inside", "outside", "clamp")
    if place == "inside":
        moment = g.both("Add", moment.name, g.number(epsilon), moment.dims)
    elif place == "clamp":
        moment = g.both("Max", moment.name, g.number(epsilon), moment.dims)
    if place == "inside" and g.chance(15):
        inverse = g.add("Pow", [moment.name, g.number(-0.5)], moment.dims)
        return g.both("Mul", x.name, inverse.name, x.dims)
    root = g.add("Pow", [moment.name, g.number(0.5)], moment.dims) if g.chance(15) else None
    root = root or g.add("Sqrt", [moment.name], moment.dims)
    if place == "outside":
        root = g.both("Add", root.name, g.number(epsilon), root.dims)
    match g.choose("Div", "Reciprocal", "one over"):
        case "Div":
            return g.add("Div", [x.name, root.name], x.dims)
        case "Reciprocal":
            inverse = g.add("Reciprocal", [root.name], root.dims)
        case _:
            inverse = g.add("Div", [g.number(1.0), root.name], root.dims)
    return g.both("Mul", x.name, inverse.name, x.dims)


def several(x: Value, axes: Iterable[int]) -> None:
    """Lets a normalization over some axes go on where it is not one of single elements, which are exactly their mean.

    Raises:
        UnfitError: all of the axes have size 1.
    """
    need(any(x.dims[axis] != 1 for axis in axes))


def standardized(g: Growth, x: Value, axes: list[int], *, centred: bool = True) -> Value:
    """A normalization spelled out, or, seldom, something that only looks like one."""
    several(x, axes)
    epsilon = g.choose(1e-5, 1e-6, 1e-3)
    counted = [x.dims[axis] for axis in axes]
    count = int(np.prod([dim for dim in counted if isinstance(dim, int)]))
    known = all(isinstance(dim, int) for dim in counted)
    if not centred:
        return inverted(g, g.reduce("ReduceMean", squared(g, x), axes), x, epsilon)
    mean = g.reduce("ReduceMean", x, axes)
    data = g.add("Sub", [x.name, mean.name] if not g.chance(4) else [mean.name, x.name], x.dims)
    match g.choose("centred", "centred", "centred", "ddof", "fourth power", "other axes", "difference"):
        case "ddof" if known and count > 1:
            sums = g.reduce("ReduceSum", squared(g, data), axes)
            moment = g.add("Div", [sums.name, g.number(count - 1.0)], sums.dims)
        case "fourth power" if g.chance(30):
            moment = g.reduce("ReduceMean", squared(g, squared(g, data)), axes)
        case "other axes" if g.chance(30):
            other = [axis for axis in range(x.rank) if axis not in axes]
            need(other)
            moment = g.reduce("ReduceMean", squared(g, data), other)
        case "difference" if g.chance(40):
            square = g.reduce("ReduceMean", squared(g, x), axes)
            moment = g.add("Sub", [square.name, squared(g, mean).name], square.dims)
            moment = g.add("Relu", [moment.name], moment.dims)  # or the root of a rounding is no number
        case _:
            moment = g.reduce("ReduceMean", squared(g, data), axes)
    return inverted(g, moment, data, epsilon)


def spelled(g: Growth, x: Value) -> Value:
    """LayerNorm, InstanceNorm or RMSNorm by its parts, with γ and β."""
    need(x.rank >= 2)
    ways = [[x.rank - 1], [1]]
    ways += [list(range(2, x.rank)), list(range(1, x.rank))] if x.rank > 2 else []
    axes = g.choose(*ways)
    made = standardized(g, x, axes, centred=not g.chance(30))
    need(made.dims == x.dims)
    return affine(g, made, x.rank - 1 if axes == [x.rank - 1] else 1)


def multiplied_out(g: Growth, x: Value) -> Value:
    """TensorFlow's x · k + (β − E[x] · k), k = γ / √(Var[x] + ε)."""
    need(x.rank >= 3)
    axes = list(range(2, x.rank)) if g.chance(50) else [x.rank - 1]
    axis = x.rank - 1 if axes == [x.rank - 1] else 1
    shape = (x.size(axis), *[1] * (x.rank - 1 - axis))
    mean = g.reduce("ReduceMean", x, axes)
    data = g.add("Sub", [x.name, mean.name], x.dims)
    moment = g.reduce("ReduceMean", squared(g, data), axes)
    moment = g.both("Add", moment.name, g.number(1e-3), moment.dims)
    root = g.add("Sqrt", [moment.name], moment.dims)
    inverse = g.add("Reciprocal", [root.name], root.dims)
    dims = list(moment.dims)
    dims[axis] = x.dims[axis]
    k = g.both("Mul", inverse.name, g.scale(*shape), dims)
    shift = g.add("Sub", [g.weight(*shape, low=-1.0), g.both("Mul", mean.name, k.name, dims).name], dims)
    return g.both("Add", g.both("Mul", x.name, k.name, x.dims).name, shift.name, x.dims)


def layer_norm(g: Growth, x: Value) -> Value:
    """LayerNormalization from any axis, with or without β."""
    axis = g.choose(x.rank - 1, *range(1, x.rank))
    several(x, range(axis, x.rank))
    shape = [x.size(place) for place in range(axis, x.rank)]
    inputs = [x.name, g.scale(*shape), *([g.weight(*shape, low=-1.0)] if not g.chance(30) else [])]
    attributes = g.choose({}, {"epsilon": 1e-6}, {"epsilon": 1e-3})
    return g.add("LayerNormalization", inputs, x.dims, axis=axis - x.rank if g.chance(50) else axis, **attributes)


def rms_norm(g: Growth, x: Value) -> Value:
    """RMSNormalization over the trailing axes."""
    axis = g.choose(x.rank - 1, *range(1, x.rank))
    shape = [x.size(place) for place in range(axis, x.rank)]
    return g.add("RMSNormalization", [x.name, g.scale(*shape)], x.dims, axis=axis - x.rank, epsilon=1e-5)


def group_norm(g: Growth, x: Value) -> Value:
    """GroupNormalization; its scale and bias are per group below opset 21, per channel above."""
    need(x.rank >= 3)
    several(x, range(2, x.rank))
    channels = x.size(1)
    groups = g.choose(*(n for n in (2, 1, 3, channels) if channels % n == 0))
    size = groups if g.opset < 21 else channels
    inputs = [x.name, g.scale(size), g.weight(size, low=-1.0)]
    return g.add("GroupNormalization", inputs, x.dims, num_groups=groups, epsilon=g.choose(1e-5, 1e-3))


def instance_norm(g: Growth, x: Value) -> Value:
    """InstanceNormalization, with γ and β within, or behind, or both."""
    need(x.rank >= 3)
    several(x, range(2, x.rank))
    channels = x.size(1)
    if g.chance(40):
        bare = [g.constant(np.ones(channels)), g.constant(np.zeros(channels))]
        return affine(g, g.add("InstanceNormalization", [x.name, *bare], x.dims), 1)
    return g.add("InstanceNormalization", [x.name, g.scale(channels), g.weight(channels, low=-1.0)], x.dims)


def grouped_rows(g: Growth, x: Value) -> Value:
    """GroupNorm as torch exports it: InstanceNormalization between two Reshapes."""
    need(x.rank >= 3)
    several(x, range(2, x.rank))
    channels = x.size(1)
    groups = g.choose(*(n for n in (2, 1, 3, channels) if channels % n == 0))
    rows = g.add("Reshape", [x.name, g.integers(0, groups, -1)], (x.dims[0], groups, f"rows{g.numbers.next()}"))
    bare = [g.constant(np.ones(groups)), g.constant(np.zeros(groups))]
    rows = g.add("InstanceNormalization", [rows.name, *bare], rows.dims, epsilon=g.choose(1e-5, 1e-3))
    if sum(isinstance(dim, str) for dim in x.dims) <= 1 and g.chance(50):
        target = g.integers(*(dim if isinstance(dim, int) else -1 for dim in x.dims))
    else:
        target = g.name("s")
        g.nodes.append(onnx.helper.make_node("Shape", [x.name], [target], name=f"n_{target}"))
    return affine(g, g.add("Reshape", [rows.name, target], x.dims), 1)


def local_response_norm(g: Growth, x: Value) -> Value:
    """LRN of odd and even sizes."""
    need(x.rank == 4)
    attributes = {"alpha": g.choose(1e-4, 0.3), "beta": g.choose(0.75, 0.5), "bias": g.choose(1.0, 2.0)}
    return g.add("LRN", [x.name], x.dims, size=g.choose(3, 5, 1), **attributes)


def unit_norm(g: Growth, x: Value) -> Value:
    """LpNormalization.

    MeanVarianceNormalization is left out: ONNX Runtime takes the root of E[x²] − E[x]², which for constant rows is NaN
    or not by chance of rounding, so that nothing can be judged by it.
    """
    return g.add("LpNormalization", [x.name], x.dims, axis=g.choose(-1, 1 if x.rank > 1 else 0), p=g.choose(2, 1))


def adaptive(g: Growth, x: Value) -> Value:
    """A normalization whose γ and β are computed from the mean of x, one for each sample: AdaIN and AdaLN."""
    need(x.rank in (3, 4))
    if x.rank == 3:
        code = g.reduce("ReduceMean", x, [1])
        scale, shift = product(g, code), product(g, code)
        need(scale.dims == shift.dims == code.dims)
        made = standardized(g, x, [2])
    else:
        code = g.reduce("ReduceMean", x, [2, 3])
        channels = x.size(1)
        scale, shift = (g.add("Conv", [code.name, g.weight(channels, channels, 1, 1)], code.dims) for _ in range(2))
        made = standardized(g, x, [2, 3]) if g.chance(50) else instance_norm(g, x)
    if g.chance(50):
        scale = g.both("Add", scale.name, g.number(1.0), scale.dims)
    return g.both("Add", g.both("Mul", made.name, scale.name, x.dims).name, shift.name, x.dims)


def skipped(g: Growth, x: Value) -> Value:
    """A sum, then a normalization of it: Add → LayerNorm."""
    others = [value for value in g.values if (value.dims, value.dtype) == (x.dims, x.dtype) and value != x]
    need(others)
    return g.choose(layer_norm, spelled)(g, g.both("Add", x.name, g.choose(*others).name, x.dims))


def activation(g: Growth, x: Value) -> Value:
    """An operator of its own."""
    operator = g.choose("Sigmoid", "Tanh", "Elu", "HardSigmoid", "Softplus", "HardSwish", "Gelu", "Mish", "Erf")
    if operator == "HardSigmoid" and g.chance(50):
        return g.add(operator, [x.name], x.dims, alpha=1 / 6, beta=0.5)
    if operator == "Gelu" and g.chance(50):
        return g.add(operator, [x.name], x.dims, approximate="tanh")
    return g.add(operator, [x.name], x.dims)


def gate(g: Growth, x: Value) -> Value:
    """X · g(x), spelled out: SiLU, HardSwish, Mish, GELU; or a gate of another value."""
    match g.choose("SiLU", "HardSwish", "Mish", "GELU", "tanh GELU", "excite"):
        case "SiLU":
            return g.both("Mul", x.name, g.add("Sigmoid", [x.name], x.dims).name, x.dims)
        case "HardSwish":
            need(g.opset >= 11)
            moved = g.both("Add", x.name, g.number(3.0), x.dims)
            held = g.add("Clip", [moved.name, g.constant(0.0), g.constant(6.0)], x.dims)
            if g.chance(50):
                return g.add("Div", [g.both("Mul", x.name, held.name, x.dims).name, g.number(6.0)], x.dims)
            return g.both("Mul", x.name, g.add("Div", [held.name, g.number(6.0)], x.dims).name, x.dims)
        case "Mish":
            soft = g.add("Softplus", [x.name], x.dims)
            return g.both("Mul", x.name, g.add("Tanh", [soft.name], x.dims).name, x.dims)
        case "GELU":
            erf = g.add("Erf", [g.add("Div", [x.name, g.number(2**0.5)], x.dims).name], x.dims)
            more = g.both("Add", erf.name, g.number(1.0), x.dims)
            if g.chance(50):
                return g.both("Mul", g.both("Mul", x.name, more.name, x.dims).name, g.number(0.5), x.dims)
            return g.both("Mul", g.both("Mul", x.name, g.number(0.5), x.dims).name, more.name, x.dims)
        case "tanh GELU":
            cube = g.add("Mul", [g.add("Mul", [x.name, x.name], x.dims).name, x.name], x.dims)
            inner = g.both("Add", x.name, g.both("Mul", cube.name, g.number(0.044715), x.dims).name, x.dims)
            tanh = g.add("Tanh", [g.both("Mul", inner.name, g.number((2 / np.pi) ** 0.5), x.dims).name], x.dims)
            more = g.both("Add", tanh.name, g.number(1.0), x.dims)
            return g.both("Mul", g.both("Mul", x.name, g.number(0.5), x.dims).name, more.name, x.dims)
        case _:
            need(x.rank == 4)
            code = g.add("GlobalAveragePool", [x.name], (*x.dims[:2], 1, 1))
            code = g.add("Conv", [code.name, g.weight(x.size(1), x.size(1), 1, 1)], code.dims)
            return g.both("Mul", x.name, g.add("Sigmoid", [code.name], code.dims).name, x.dims)


def normalization(g: Growth, x: Value) -> Value:
    """Any normalization."""
    return g.choose(*NORMS)(g, x)


NORMS: tuple[Step, ...] = (
    *(spelled, spelled, spelled, layer_norm, layer_norm, rms_norm, group_norm, group_norm, instance_norm),
    *(grouped_rows, local_response_norm, unit_norm, adaptive, multiplied_out, skipped),
)
ACTIVATIONS: tuple[Step, ...] = (activation, gate)

"""Steps of random graphs: operators that move, select and join elements, and those that an affine map may pass."""

from typing import Any

import numpy as np
import onnx

from scripts.graphs import FLOATS, Dim, Growth, Step, Value, accepts, need


def transpose(g: Growth, x: Value) -> Value:
    """Any permutation, or the default that turns all axes around."""
    if g.chance(10):
        return g.add("Transpose", [x.name], x.dims[::-1])
    left, perm = list(range(x.rank)), []
    while left:
        perm.append(left.pop(-1 - g.choices.below(len(left)) if g.chance(50) else 0))
    return g.add("Transpose", [x.name], [x.dims[axis] for axis in perm], perm=perm)


def reshape(g: Growth, x: Value) -> Value:
    """Splits an axis or merges two; sizes are numbers, 0 for what is copied, or −1."""
    ways: list[tuple[Dim, ...]] = []
    for axis in x.sized():
        size = x.size(axis)
        ways += [(*x.dims[:axis], n, size // n, *x.dims[axis + 1 :]) for n in (2, 1, 3) if size % n == 0]
        if axis + 1 < x.rank:
            after = x.dims[axis + 1]
            merged: Dim = size * after if isinstance(after, int) else f"{after}*{size}"
            ways.append((*x.dims[:axis], merged, *x.dims[axis + 2 :]))
    ways = [way for way in ways if sum(isinstance(dim, str) for dim in way) <= 1]
    need(ways)
    dims = g.choose(*ways)
    free = next((place for place, dim in enumerate(dims) if isinstance(dim, str)), None)
    if free is None and g.chance(30):
        free = g.choices.below(len(dims))
    shape = []
    for place, dim in enumerate(dims):
        copied = x.dims[place : place + 1] == (dim,)
        if copied and (g.chance(40) or (isinstance(dim, str) and place != free)):
            shape.append(0)
        else:
            shape.append(-1 if place == free or isinstance(dim, str) else dim)
    attributes = {"allowzero": 0} if g.opset >= 14 and g.chance(20) else {}
    return g.add("Reshape", [x.name, g.integers(*shape)], dims, **attributes)


def reshape_by_shape(g: Growth, x: Value) -> Value:
    """A Reshape to sizes that are computed from those of x, as exporters write it."""
    need(x.rank >= 3 and g.opset >= 13)
    last = x.dims[-2], x.dims[-1]
    merged: Dim = last[0] * last[1] if isinstance(last[0], int) and isinstance(last[1], int) else f"{last[0]}*{last[1]}"
    sizes = g.name("s")
    g.nodes.append(onnx.helper.make_node("Shape", [x.name], [sizes], name=f"n_{sizes}"))
    kept = g.name("s")
    if g.chance(50):
        places = g.integers(*range(x.rank - 2))
        g.nodes.append(onnx.helper.make_node("Gather", [sizes, places], [kept], name=f"n_{kept}", axis=0))
    else:
        bounds = [g.integers(0), g.integers(x.rank - 2), g.integers(0)]
        g.nodes.append(onnx.helper.make_node("Slice", [sizes, *bounds], [kept], name=f"n_{kept}"))
    target = g.name("s")
    node = onnx.helper.make_node("Concat", [kept, g.integers(-1)], [target], name=f"n_{target}", axis=0)
    g.nodes.append(node)
    return g.add("Reshape", [x.name, target], (*x.dims[:-2], merged))


def flatten(g: Growth, x: Value) -> Value:
    """Flatten at any axis."""
    axis = g.choose(1, *range(x.rank + 1))
    sizes = [x.dims[:axis], x.dims[axis:]]
    dims: list[Dim] = []
    for part in sizes:
        numbers = int(np.prod([dim for dim in part if isinstance(dim, int)], dtype=int))
        symbols = [dim for dim in part if isinstance(dim, str)]
        dims.append("*".join([*symbols, *([str(numbers)] if numbers > 1 else [])]) if symbols else numbers)
    return g.add("Flatten", [x.name], dims, axis=axis - x.rank if axis < x.rank and g.opset >= 11 else axis)


def squeeze(g: Growth, x: Value) -> Value:
    """Unsqueeze, or Squeeze of what has size 1."""
    ones = [axis for axis in x.sized() if x.dims[axis] == 1]
    if ones and x.rank > 1 and g.chance(60):
        axis, operator = g.choose(*ones), "Squeeze"
        dims: tuple[Dim, ...] = (*x.dims[:axis], *x.dims[axis + 1 :])
    else:
        axis, operator = g.choices.below(x.rank + 1), "Unsqueeze"
        dims = (*x.dims[:axis], 1, *x.dims[axis:])
    stated = axis - max(len(dims), x.rank) if g.opset >= 11 and g.chance(30) else axis
    if g.opset < 13:
        return g.add(operator, [x.name], dims, axes=[stated])
    return g.add(operator, [x.name, g.integers(stated)], dims)


def slicing(g: Growth, x: Value) -> Value:
    """Slice with a start, a step and a negative axis."""
    axes = x.sized(2)
    need(axes)
    axis, start = g.choose(*axes), g.choose(0, 1)
    if g.opset < 10:
        taken = x.size(axis) - start
        return g.add("Slice", [x.name], x.having(axis, taken), axes=[axis], starts=[start], ends=[999])
    step = g.choose(1, 2, -1)
    begin, end = (start, 999) if step > 0 else (-1 - start, -999)
    taken = len(range(x.size(axis))[begin : None if step < 0 else end : step])
    stated = axis - x.rank if g.chance(30) else axis
    inputs = [g.integers(begin), g.integers(end), g.integers(stated)]
    inputs += [g.integers(step)] if step != 1 or g.chance(50) else []
    return g.add("Slice", [x.name, *inputs], x.having(axis, taken))


def split(g: Growth, x: Value) -> Value:
    """Split; one of the parts goes on, the others may be read later."""
    axes = [axis for axis in x.sized(2) if x.size(axis) % 2 == 0] if g.chance(60) else x.sized(2)
    need(axes)
    axis = g.choose(*axes)
    size = x.size(axis)
    parts = [size // 2] * 2 if size % 2 == 0 else [1, size - 1]
    need(accepts("Split", g.opset, g.dtype.name))
    names = [g.name("v") for _ in parts]
    attributes: dict[str, Any] = {"axis": axis}
    inputs = [x.name]
    if parts[0] != parts[1] or g.opset >= 18 or g.chance(50):
        if g.opset >= 13:
            inputs.append(g.integers(*parts))
        else:
            attributes["split"] = parts
    g.nodes.append(onnx.helper.make_node("Split", inputs, names, name=f"n_{names[0]}", **attributes))
    made = [Value(name, x.having(axis, part), g.dtype) for name, part in zip(names, parts, strict=True)]
    g.values.append(made.pop(g.choices.below(2)))
    return made[0]


def gather(g: Growth, x: Value) -> Value:
    """Gather by constant indices: a scalar, a vector, negative ones."""
    axes = x.sized()
    need(axes)
    axis = g.choose(*axes)
    size = x.size(axis)
    shape: tuple[int, ...] = g.choose((2,), (), (1,), (size,))
    indices = g.rng.integers(-size if g.opset >= 11 else 0, size, shape)
    dims = (*x.dims[:axis], *shape, *x.dims[axis + 1 :])
    need(dims)
    return g.add("Gather", [x.name, g.constant(indices, np.int64)], dims, axis=axis)


def pad(g: Growth, x: Value) -> Value:
    """Pad by zeros, by another number, by the edge or a reflection; pads that are negative crop."""
    axes = x.sized(3)
    need(axes and accepts("Pad", g.opset, g.dtype.name))
    mode = g.choose("constant", "value", "edge", "reflect", "crop")
    axis = g.choose(*axes)
    before, after = (0, -1) if mode == "crop" else g.choose((1, 1), (0, 1), (1, 0))
    dims = x.having(axis, x.size(axis) + before + after)
    pads = [0] * (2 * x.rank)
    pads[axis], pads[axis + x.rank] = before, after
    spelled = mode if mode in ("edge", "reflect") else "constant"
    if g.opset < 11:
        more = {"value": 0.75} if mode == "value" else {}
        return g.add("Pad", [x.name], dims, pads=pads, mode=spelled, **more)
    value = g.constant(0.75) if mode == "value" else ""
    if g.opset >= 18 and g.chance(40):
        stated = g.integers(axis - x.rank if g.chance(50) else axis)
        return g.add("Pad", [x.name, g.integers(before, after), value, stated], dims, mode=spelled)
    return g.add("Pad", [x.name, g.integers(*pads), *([value] if value else [])], dims, mode=spelled)


def pool(g: Growth, x: Value) -> Value:
    """MaxPool and AveragePool with strides and padding, and the global pools."""
    need(3 <= x.rank <= 5)
    operator = g.choose("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool")
    places = x.rank - 2
    if operator.startswith("Global"):
        return g.add(operator, [x.name], (*x.dims[:2], *[1] * places))
    kernel, stride, padded = g.choose(2, 3), g.choose(1, 2), g.choose(0, 1)
    attributes: dict[str, Any] = (
        {"count_include_pad": g.choose(0, 1)} if operator == "AveragePool" and g.chance(50) else {}
    )
    spatial: list[Dim] = []
    for dim in x.dims[2:]:
        if isinstance(dim, str):
            spatial.append(f"pool{kernel}{stride}{padded}({dim})")
            continue
        need(dim + 2 * padded >= kernel)
        spatial.append((dim + 2 * padded - kernel) // stride + 1)
    attributes |= {"kernel_shape": [kernel] * places, "strides": [stride] * places, "pads": [padded] * 2 * places}
    return g.add(operator, [x.name], (*x.dims[:2], *spatial), **attributes)


def reduction(g: Growth, x: Value) -> Value:
    """A reduction over one axis or two."""
    operator = g.choose("ReduceMean", "ReduceMean", "ReduceSum", "ReduceMax", "ReduceL2")
    need(x.rank >= 2)
    first = g.choices.below(x.rank)
    axes = sorted({first, g.choices.below(x.rank)}) if g.chance(40) else [first]
    need(len(axes) < x.rank or g.chance(20))
    keepdims = not g.chance(40) or len(axes) == x.rank
    return g.reduce(operator, x, axes, keepdims=keepdims)


def resize(g: Growth, x: Value) -> Value:
    """Resize of images to twice the height, by scales or sizes."""
    need(x.rank == 4 and g.opset >= 11 and all(isinstance(dim, int) for dim in x.dims[1:]))
    dims = x.having(2, 2 * x.size(2))
    mode = g.choose("nearest", "linear")
    roi = "" if g.opset >= 13 else g.constant(np.zeros(0), np.float32)
    if g.chance(30) and all(isinstance(dim, int) for dim in dims):
        empty = "" if g.opset >= 13 else g.constant(np.zeros(0), np.float32)
        return g.add("Resize", [x.name, roi, empty, g.integers(*(int(dim) for dim in dims))], dims, mode=mode)
    return g.add("Resize", [x.name, roi, g.constant([1, 1, 2, 1], np.float32)], dims, mode=mode)


def space(g: Growth, x: Value) -> Value:
    """DepthToSpace or SpaceToDepth."""
    need(x.rank == 4)
    channels, height, width = x.size(1), x.size(2), x.size(3)
    if channels % 4 == 0:
        dims = (x.dims[0], channels // 4, 2 * height, 2 * width)
        mode = {"mode": g.choose("DCR", "CRD")} if g.opset >= 11 else {}
        return g.add("DepthToSpace", [x.name], dims, blocksize=2, **mode)
    need(height % 2 == 0 and width % 2 == 0)
    return g.add("SpaceToDepth", [x.name], (x.dims[0], 4 * channels, height // 2, width // 2), blocksize=2)


def repeat(g: Growth, x: Value) -> Value:
    """Tile, or Expand of what has size 1."""
    axes = [axis for axis in x.sized() if x.size(axis) < 5]
    need(axes)
    axis = g.choose(*axes)
    if x.dims[axis] == 1 and g.opset >= 8 and g.chance(50):
        shape = [3 if place == axis else 1 for place in range(x.rank)]
        return g.add("Expand", [x.name, g.integers(*shape)], x.having(axis, 3))
    repeats = [1 + int(place == axis) for place in range(x.rank)]
    return g.add("Tile", [x.name, g.integers(*repeats)], x.having(axis, 2 * x.size(axis)))


def plain(g: Growth, x: Value) -> Value:
    """What changes little or nothing."""
    match g.choose("Identity", "Neg", "Dropout", "Cast"):
        case "Dropout" if g.opset < 12 and g.chance(50):
            return g.add("Dropout", [x.name], x.dims, ratio=0.3)
        case "Cast":
            return g.add("Cast", [x.name], x.dims, to=onnx.helper.np_dtype_to_tensor_dtype(x.dtype))
        case operator:
            return g.add(operator, [x.name], x.dims)


def cast(g: Growth, x: Value) -> Value:
    """A Cast to another float dtype; what follows is of that dtype."""
    others = ["float16", "float32", *(["bfloat16"] if g.opset >= 13 else [])]
    kinds = [FLOATS[name] for name in others if name != x.dtype.name]
    kind = g.choose(*kinds)
    with g.of(kind):
        name = g.name("v")
        to = onnx.helper.np_dtype_to_tensor_dtype(kind)
        g.nodes.append(onnx.helper.make_node("Cast", [x.name], [name], name=f"n_{name}", to=to))
        return Value(name, x.dims, kind)


def fork(g: Growth, x: Value) -> Value:
    """Two branches that join again: linear operators, carried values, or the value itself."""
    from scripts.graphs_linear import arithmetic, batch_norm, convolution, product
    from scripts.graphs_norms import activation, normalization

    steps: tuple[Step, ...] = (convolution, product, arithmetic, batch_norm, normalization, activation, transpose, pad)
    left = g.choose(*steps)(g, x)
    right = g.choose(*steps)(g, x) if g.chance(60) else x
    return joined(g, left, right)


def branches(g: Growth, x: Value) -> Value:
    """Joins a value of the same dimensions that was made before."""
    others = [value for value in g.values if value.dtype == x.dtype and value.rank == x.rank and value != x]
    need(others)
    return joined(g, x, g.choose(*others))


def joined(g: Growth, left: Value, right: Value) -> Value:
    """Adds, multiplies or concatenates two values."""
    need(left.rank == right.rank > 0 and left.dtype == right.dtype)
    if left.dims == right.dims and not g.chance(30):
        operator = g.choose("Add", "Add", "Sub", "Mul")
        return g.add(operator, [left.name, right.name], left.dims)
    unlike = [axis for axis in range(left.rank) if left.dims[axis] != right.dims[axis]]
    need(len(unlike) <= 1)
    axis = unlike[0] if unlike else min(1, left.rank - 1)
    dims = left.having(axis, left.size(axis) + right.size(axis))
    parts = [left.name, right.name]
    if all(isinstance(dim, int) for dim in dims) and g.chance(20):
        shape = tuple(left.size(place) if place != axis else 1 for place in range(left.rank))
        parts.insert(g.choices.below(3), g.weight(*shape))
        dims = left.having(axis, left.size(axis) + right.size(axis) + 1)
    return g.add("Concat", parts, dims, axis=axis - left.rank if g.opset >= 11 and g.chance(30) else axis)


def rectified(g: Growth, x: Value) -> Value:
    """What is homogeneous, or bounded by constants."""
    match g.choose("Relu", "LeakyRelu", "Clip", "PRelu", "Abs", "Max"):
        case "LeakyRelu":
            return g.add("LeakyRelu", [x.name], x.dims, alpha=g.choose(0.1, 0.01, -0.5))
        case "Clip":
            if g.opset < 11:
                return g.add("Clip", [x.name], x.dims, min=0.0, max=6.0)
            return g.add("Clip", [x.name, g.choose(g.constant(-0.5), ""), g.constant(g.choose(6.0, 0.4))], x.dims)
        case "PRelu":
            need(x.rank >= 3)
            return g.add("PRelu", [x.name, g.weight(x.size(1), *[1] * (x.rank - 2), low=0.0)], x.dims)
        case "Max":
            operator = g.choose("Max", "Min")
            return g.both(operator, x.name, g.constant(0.0), x.dims)
        case operator:
            return g.add(operator, [x.name], x.dims)


PLACES: tuple[Step, ...] = (
    *(transpose, transpose, reshape, reshape, reshape_by_shape, flatten, squeeze, slicing, split, gather),
    *(pad, pool, pool, reduction, resize, space, repeat),
)
JOINS: tuple[Step, ...] = (fork, fork, branches)
PLAIN: tuple[Step, ...] = (rectified, rectified, plain)

"""Steps of random graphs: affine maps and linear operators, with all their attributes."""

import numpy as np

from scripts.graphs import FLOATS, Dim, Growth, Step, Value, need


def arithmetic(g: Growth, x: Value) -> Value:
    """A constant along one axis, a scalar, one for each element, or one that enlarges x."""
    operator = g.choose("Mul", "Add", "Sub", "Div")
    axis = g.choose(None, *x.sized())
    kind = "scalar" if axis is None else g.choose("axis", "axis", "axis", "leading ones", "all", "enlarges")
    dims = x.dims
    match kind:
        case "scalar":
            shape: tuple[int, ...] = g.choose((), (1,))
            need(len(shape) <= x.rank)
        case "all":
            shape = tuple(x.size(place) for place in range(x.rank))
        case "enlarges":
            assert axis is not None
            need(x.dims[axis] == 1)
            shape, dims = (3, *[1] * (x.rank - 1 - axis)), x.having(axis, 3)
        case _:
            assert axis is not None
            shape = (x.size(axis), *[1] * (x.rank - 1 - axis))
            if kind == "leading ones":
                shape = (*[1] * axis, *shape)
    if operator in ("Add", "Sub"):
        constant = g.weight(*shape, low=-1.0)
    elif operator == "Mul":
        constant = g.scale(*shape)
    else:
        constant = g.weight(*shape, low=0.5, high=2.0)
    if operator == "Div":
        return g.add(operator, [x.name, constant], dims)
    return g.both(operator, x.name, constant, dims)


def batch_norm(g: Growth, x: Value) -> Value:
    """BatchNormalization at inference with statistics that are not the identity, some of them extreme."""
    need(x.rank >= 2)
    channels = x.size(1)
    mixed = g.opset >= 15 and x.dtype.name in ("float16", "bfloat16") and g.chance(40)
    with g.of(FLOATS["float32"] if mixed else x.dtype):
        scale = g.scale(channels)
        bias = g.weight(channels, low=-1.0)
        match g.choose("plain", "plain", "plain", "tiny variance", "large mean"):
            case "tiny variance":
                variance = g.constant(g.rng.uniform(0, 1e-4, channels))
                mean = g.weight(channels, low=-1.0)
            case "large mean":
                variance = g.constant(g.rng.uniform(1e-2, 1e-1, channels))
                mean = g.constant(g.rng.normal(0, 30, channels))
            case _:
                variance, mean = g.weight(channels, low=0.3, high=2.0), g.weight(channels, low=-1.0)
    if mixed and g.chance(50):
        scale, bias = (g.constant(g.rng.uniform(0.5, 1.5, channels)) for _ in range(2))
    attributes = g.choose({}, {"epsilon": 1e-3}, {"epsilon": 1e-5, "momentum": 0.9})
    return g.add("BatchNormalization", [x.name, scale, bias, mean, variance], x.dims, **attributes)


def moved(dim: Dim, kernel: int, stride: int, dilation: int, padding: int) -> Dim:
    """The size behind a window that moves along an axis."""
    reach = dilation * (kernel - 1) + 1
    if isinstance(dim, str):
        return dim if (reach, stride, padding) == (1, 1, 0) else f"({dim}+{padding - reach})/{stride}+1"
    need(dim + padding >= reach)
    return (dim + padding - reach) // stride + 1


def convolution(g: Growth, x: Value) -> Value:
    """Conv in one to three dimensions."""
    need(3 <= x.rank <= 5)
    channels, places = x.size(1), x.rank - 2
    groups = g.choose(1, 1, *(n for n in (2, 3, channels) if channels % n == 0))
    outputs = groups * g.choose(1, 2, 3) if groups > 1 else g.choose(channels, 2, 4, 6)
    kernel = [g.choose(1, 3, 2) for _ in range(places)] if g.chance(40) else [g.choose(1, 3)] * places
    strides = [g.choose(1, 2) for _ in range(places)] if g.chance(20) else [1] * places
    dilations = [2] * places if g.chance(15) else [1] * places
    attributes: dict[str, object] = {"group": groups} if groups > 1 or g.chance(30) else {}
    match g.choose("same", "none", "uneven", "SAME_UPPER", "SAME_LOWER", "VALID"):
        case "same":
            pads = [d * (k - 1) // 2 for d, k in zip(dilations, kernel, strict=True)] * 2
            attributes |= {"pads": pads} if any(pads) else {}
        case "uneven":
            pads = [g.choose(0, 1, 2) for _ in range(2 * places)]
            attributes["pads"] = pads
        case "SAME_UPPER" | "SAME_LOWER" as auto:
            need(dilations == [1] * places)
            attributes["auto_pad"] = auto
            pads = []
        case auto:
            attributes |= {"auto_pad": "VALID"} if auto == "VALID" else {}
            pads = [0] * (2 * places)
    spatial: list[Dim] = []
    for place, dim in enumerate(x.dims[2:]):
        if pads:
            both = pads[place] + pads[place + places]
            spatial.append(moved(dim, kernel[place], strides[place], dilations[place], both))
        elif isinstance(dim, str):
            spatial.append(dim if strides[place] == 1 else f"ceil({dim}/{strides[place]})")
        else:
            spatial.append(-(-dim // strides[place]))
    attributes |= {"strides": strides} if strides != [1] * places else {}
    attributes |= {"dilations": dilations} if dilations != [1] * places else {}
    attributes |= {"kernel_shape": kernel} if g.chance(50) else {}
    inputs = [x.name, g.weight(outputs, channels // groups, *kernel)]
    inputs += g.choose([], [g.weight(outputs, low=-1.0)], [""])
    return g.add("Conv", inputs, (x.dims[0], outputs, *spatial), **attributes)


def deconvolution(g: Growth, x: Value) -> Value:
    """ConvTranspose, whose weights are (in, out / groups, k)."""
    need(3 <= x.rank <= 5)
    channels, places = x.size(1), x.rank - 2
    groups = g.choose(1, 1, *(n for n in (2, 3, channels) if channels % n == 0))
    each = g.choose(1, 2, 3)
    kernel, stride, dilation = g.choose(1, 2, 3), g.choose(1, 1, 2), g.choose(1, 1, 2)
    pad, more = g.choose(0, 0, 1), g.choose(0, 1)
    need(more < stride)
    spatial: list[Dim] = []
    for dim in x.dims[2:]:
        grown = more + dilation * (kernel - 1) + 1 - 2 * pad
        spatial.append(f"({dim}-1)*{stride}+{grown}" if isinstance(dim, str) else (dim - 1) * stride + grown)
    attributes: dict[str, object] = {"group": groups, "strides": [stride] * places, "pads": [pad] * 2 * places}
    attributes |= {"dilations": [dilation] * places} if dilation > 1 else {}
    attributes |= {"output_padding": [more] * places} if more else {}
    inputs = [x.name, g.weight(channels, each, *[kernel] * places)]
    inputs += g.choose([], [g.weight(groups * each, low=-1.0)])
    return g.add("ConvTranspose", inputs, (x.dims[0], groups * each, *spatial), **attributes)


def gemm(g: Growth, x: Value) -> Value:
    """Gemm with x on either side, transposed or not, and every kind of C."""
    need(x.rank == 2)
    turned, right = g.chance(25), g.chance(15)
    rows, inner = (x.dims[1], x.size(0)) if turned else (x.dims[0], x.size(1))
    if right:  # W · x
        inner, rows = (x.size(1), x.dims[0]) if turned else (x.size(0), x.dims[1])
    outputs, other = g.choose(4, 3, 6), g.chance(50)
    attributes: dict[str, object] = {"alpha": 1.5} if g.chance(30) else {}
    attributes |= {"beta": g.choose(0.5, 0.0)} if g.chance(30) else {}
    shape: tuple[Dim, Dim]
    attributes |= {"transA": int(other if right else turned), "transB": int(turned if right else other)}
    if right:
        weight = g.weight(*((inner, outputs) if other else (outputs, inner)))
        shape, operands = (outputs, rows), [weight, x.name]
    else:
        weight = g.weight(*((outputs, inner) if other else (inner, outputs)))
        shape, operands = (rows, outputs), [x.name, weight]
    kinds: list[tuple[int, ...] | None] = [None] if g.opset >= 11 else []
    last = shape[1]
    kinds += [(last,), (1, last)] if isinstance(last, int) else []
    kinds += [(), (1,), (1, 1)]
    first = shape[0]
    kinds += [(first, 1)] if isinstance(first, int) else []
    kinds += [(first, last)] if isinstance(first, int) and isinstance(last, int) else []
    kind = g.choose(*kinds)
    return g.add("Gemm", [*operands, *([] if kind is None else [g.weight(*kind)])], shape, **attributes)


def product(g: Growth, x: Value) -> Value:
    """MatMul with a constant on either side, of one to three dimensions."""
    need(x.rank >= 2)
    last, below = x.rank - 1, x.rank - 2
    outputs = g.choose(4, 3, 6)
    match g.choose("right", "right", "right", "left", "vector", "batched"):
        case "right":
            return g.add("MatMul", [x.name, g.weight(x.size(last), outputs)], x.having(last, outputs))
        case "left":
            return g.add("MatMul", [g.weight(outputs, x.size(below)), x.name], x.having(below, outputs))
        case "vector":
            return g.add("MatMul", [x.name, g.weight(x.size(last))], x.dims[:last])
        case _:
            need(x.rank >= 3)
            weight = g.weight(x.size(below - 1), x.size(last), outputs)
            return g.add("MatMul", [x.name, weight], x.having(last, outputs))


def einsum(g: Growth, x: Value) -> Value:
    """Einsum of x and a constant over its last axis, or over axis 1, in any order."""
    need(2 <= x.rank <= 4)
    letters = "abcd"[: x.rank]
    axis = g.choose(x.rank - 1, 1)
    outputs = g.choose(4, 3)
    with_letter, weight = g.choose(
        (f"{letters[axis]}e", (x.size(axis), outputs)), (f"e{letters[axis]}", (outputs, x.size(axis)))
    )
    result = letters.replace(letters[axis], "e")
    dims = x.having(axis, outputs)
    operands = [(letters, x.name), (with_letter, g.weight(*weight))]
    operands = operands[::-1] if g.chance(30) else operands
    equation = f"{','.join(term for term, _ in operands)}->{result}"
    return g.add("Einsum", [name for _, name in operands], dims, equation=equation)


def embedding(g: Growth, x: Value) -> Value:
    """A row of a constant table for each position, added to x: Gather from constants."""
    need(x.rank == 3)
    rows = x.size(1)
    indices = g.constant(g.rng.integers(-3, 3, (rows,)), np.int64)
    table = g.weight(3, x.size(2))
    return g.both("Add", x.name, g.add("Gather", [table, indices], (rows, x.size(2))).name, x.dims)


def bias(g: Growth, x: Value) -> Value:
    """A linear operator and a bias behind it."""
    made = g.choose(product, convolution, gemm)(g, x)
    axis = 1 if made.rank >= 3 and g.nodes[-1].op_type == "Conv" else made.rank - 1
    shape = (made.size(axis), *[1] * (made.rank - 1 - axis))
    return g.both("Add", made.name, g.weight(*shape, low=-1.0), made.dims)


AFFINE: tuple[Step, ...] = (arithmetic, arithmetic, batch_norm, batch_norm)
LINEAR: tuple[Step, ...] = (convolution, convolution, product, gemm, bias, deconvolution, einsum, embedding)

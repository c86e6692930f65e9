"""Steps of random graphs: BatchNorm and LRN by their parts, and products with quantised weights."""

import numpy as np

from scripts.graphs import Growth, Step, Value, need


def batch_norm_by_parts(g: Growth, x: Value) -> Value:
    """γ · (x − μ) / √(σ² + ε) + β with stored statistics, its root computed from constants."""
    need(x.rank >= 2)
    shape = (x.size(1), *[1] * (x.rank - 2))
    centred = g.add("Sub", [x.name, g.weight(*shape, low=-1.0)], x.dims)
    variance = g.weight(*shape, low=0.3, high=2.0)
    root = g.add("Sqrt", [g.both("Add", variance, g.number(g.choose(1e-5, 1e-3)), shape).name], shape)
    if g.chance(50):
        scaled = g.add("Div", [centred.name, root.name], x.dims)
    else:
        inverse = g.add("Reciprocal", [root.name], shape)
        scaled = g.both("Mul", centred.name, inverse.name, x.dims)
    scaled = g.both("Mul", scaled.name, g.scale(*shape), x.dims)
    return g.both("Add", scaled.name, g.weight(*shape, low=-1.0), x.dims)


def window_by_parts(g: Growth, x: Value) -> Value:
    """LRN as torch exports it: x / (k + α · AveragePool over channels of x²)^β."""
    need(x.rank == 4 and g.opset >= 13)
    size = g.choose(3, 5, 2)
    before, after = size // 2, (size - 1) // 2
    channels = x.size(1)
    square = g.add("Mul", [x.name, x.name], x.dims)
    deep = g.add("Unsqueeze", [square.name, g.integers(1)], (x.dims[0], 1, *x.dims[1:]))
    padded = g.add(
        "Pad",
        [deep.name, g.integers(0, 0, before, 0, 0, 0, 0, after, 0, 0)],
        (x.dims[0], 1, channels + size - 1, *x.dims[2:]),
    )
    mean = g.add("AveragePool", [padded.name], deep.dims, kernel_shape=[size, 1, 1], strides=[1, 1, 1])
    flat = g.add("Squeeze", [mean.name, g.integers(1)], x.dims)
    grown = g.both("Mul", flat.name, g.number(g.choose(1e-4, 0.3)), x.dims)
    grown = g.both("Add", grown.name, g.number(g.choose(1.0, 2.0)), x.dims)
    power = g.add("Pow", [grown.name, g.number(g.choose(0.75, 0.5))], x.dims)
    return g.add("Div", [x.name, power.name], x.dims)


def quantised_product(g: Growth, x: Value) -> Value:
    """MatMul or Conv with a weight of int8 behind a DequantizeLinear, per tensor or per output channel."""
    need(g.dtype.name == "float32" and g.opset >= 13 and x.rank >= 2)
    outputs = g.choose(4, 3, 7)
    convolves = x.rank == 4 and g.chance(60)
    shape = (outputs, x.size(1), 1, 1) if convolves else (x.size(x.rank - 1), outputs)
    axis = 0 if convolves else 1
    each = g.chance(50)
    spread = g.rng.uniform(0.005, 0.02, outputs if each else ())
    integers = g.constant(g.rng.integers(-100, 100, shape), np.int8)
    zero = g.constant(np.zeros(spread.shape), np.int8)
    more = {"axis": axis} if each else {}
    weight = g.add_any("DequantizeLinear", [integers, g.constant(spread), zero], shape, **more)
    if convolves:
        return g.add("Conv", [x.name, weight.name], x.having(1, outputs))
    return g.add("MatMul", [x.name, weight.name], x.having(x.rank - 1, outputs))


SPELLED: tuple[Step, ...] = (batch_norm_by_parts, window_by_parts, quantised_product)

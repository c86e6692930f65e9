"""Random models of affine, carrying and linear operators, for `test_chains`.

A model grows node by node from one input; a step reads the newest value, seldom an older one, and adds one operator or
a fork of two that join again. Dimensions are numbers, or a symbol where they are dynamic.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st

from tests.parity import Array

Dim = int | str


@dataclass(frozen=True)
class Made:
    """A value of a growing model."""

    name: str
    dims: tuple[Dim, ...]

    @property
    def rank(self) -> int:
        return len(self.dims)

    def sized(self, axes: Sequence[int] | None = None) -> list[int]:
        """Those of the axes whose size is a number."""
        return [a for a in (range(self.rank) if axes is None else axes) if isinstance(self.dims[a], int)]

    def size(self, axis: int) -> int:
        dim = self.dims[axis]
        assert isinstance(dim, int)
        return dim

    def having(self, axis: int, dim: Dim) -> tuple[Dim, ...]:
        return (*self.dims[:axis], dim, *self.dims[axis + 1 :])


@dataclass
class Growth:
    """A model that grows.

    Attributes:
        draw: chooses.
        opset: of the model.
        dtype: of its floats.
        inline: whether constants are nodes rather than initializers.
    """

    draw: st.DrawFn
    opset: int
    dtype: type[np.floating[Any]]
    inline: bool
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)
    values: list[Made] = field(default_factory=list)
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def choose(self, options: Sequence[Any]) -> Any:
        return self.draw(st.sampled_from(list(options)))

    def chance(self, percent: int) -> bool:
        return bool(self.draw(st.integers(1, 100)) > 100 - percent)

    def constant(self, array: Array) -> str:
        name = f"k{len(self.constants) + len(self.nodes)}_{len(self.constants)}"
        tensor = onnx.numpy_helper.from_array(np.asarray(array), name)
        if self.inline:
            self.nodes.append(onnx.helper.make_node("Constant", [], [name], name=f"n_{name}", value=tensor))
        else:
            self.constants.append(tensor)
        return name

    def integers(self, *numbers: int) -> str:
        return self.constant(np.array(numbers, np.int64))

    def weight(self, *shape: int) -> str:
        return self.constant(self.rng.normal(0.1, 0.7, shape).astype(self.dtype))

    def add(self, operator: str, inputs: Sequence[str], dims: Sequence[Dim], **attributes: Any) -> Made:
        name = f"v{len(self.nodes)}"
        self.nodes.append(onnx.helper.make_node(operator, inputs, [name], name=f"n_{name}", **attributes))
        return Made(name, tuple(dims))


Step = Callable[[Growth, Made], Made | None]
"""Adds nodes that read a value, or returns None where it does not fit."""


def arithmetic(g: Growth, x: Made) -> Made | None:
    operator = g.choose(["Mul", "Mul", "Add", "Add", "Sub", "Div"])
    axis = g.choose([None, *x.sized()])
    signs = g.chance(40)
    size = 1 if axis is None else x.size(axis)
    numbers = g.rng.uniform(0.5, 2.0, size) * (np.where(g.rng.random(size) < 0.5, -1, 1) if signs else 1)
    shape = g.choose([(), (1,)]) if axis is None else (size, *[1] * (x.rank - 1 - axis))
    if len(shape) > x.rank:
        shape = ()
    name = g.constant(numbers.reshape(shape).astype(g.dtype))
    left = operator != "Div" and g.chance(30)
    return g.add(operator, [name, x.name] if left else [x.name, name], x.dims)


def batch_norm(g: Growth, x: Made) -> Made | None:
    if x.rank < 2 or 1 not in x.sized():
        return None
    size = x.size(1)
    scale = g.rng.uniform(0.5, 2, size) * (np.where(g.rng.random(size) < 0.3, -1, 1) if g.chance(50) else 1)
    vectors = (scale, g.rng.normal(size=size), g.rng.normal(size=size), g.rng.uniform(0.3, 2, size))
    return g.add(
        "BatchNormalization", [x.name, *(g.constant(v.astype(g.dtype)) for v in vectors)], x.dims, epsilon=1e-3
    )


def plain(g: Growth, x: Made) -> Made | None:
    return g.add(g.choose(["Neg", "Identity", "Dropout"]), [x.name], x.dims)


def convolution(g: Growth, x: Made) -> Made | None:
    if x.rank not in (3, 4) or 1 not in x.sized():
        return None
    channels = x.size(1)
    groups = g.choose([1, 1, *(n for n in (2, 3, channels) if channels % n == 0)])
    transposed = g.chance(25)
    kernel = g.choose([1, 1, 2]) if all(x.sized([a]) and x.size(a) > 1 for a in range(2, x.rank)) else 1
    outputs = groups * g.choose([1, 2, 3])
    pads = int(kernel == 2 and not transposed and g.chance(30))
    shape = (channels, outputs // groups) if transposed else (outputs, channels // groups)
    inputs = [x.name, g.weight(*shape, *[kernel] * (x.rank - 2)), *([g.weight(outputs)] if g.chance(50) else [])]
    grown = (kernel - 1) * (1 if transposed else 2 * pads - 1)
    spatial = [dim + grown if isinstance(dim, int) else dim for dim in x.dims[2:]]
    attributes = {"pads": [pads] * 2 * (x.rank - 2)} if pads else {}
    operator = "ConvTranspose" if transposed else "Conv"
    return g.add(operator, inputs, (x.dims[0], outputs, *spatial), group=groups, **attributes)


def product(g: Growth, x: Made) -> Made | None:
    if x.rank < 2 or x.rank - 1 not in x.sized():
        return None
    inner, outputs = x.size(x.rank - 1), g.choose([2, 3, 4])
    if x.rank == 2 and g.chance(50):
        transposed = g.chance(50)
        weight = g.weight(*((outputs, inner) if transposed else (inner, outputs)))
        inputs = [x.name, weight, *([g.weight(*g.choose([(outputs,), (1,)]))] if g.opset < 11 or g.chance(60) else [])]
        return g.add("Gemm", inputs, (x.dims[0], outputs), transB=int(transposed), alpha=1.5, beta=0.5)
    if x.rank - 2 in x.sized() and g.chance(25):
        return g.add("MatMul", [g.weight(outputs, x.size(x.rank - 2)), x.name], x.having(x.rank - 2, outputs))
    return g.add("MatMul", [x.name, g.weight(inner, outputs)], x.having(x.rank - 1, outputs))


def transpose(g: Growth, x: Made) -> Made | None:
    perm = g.draw(st.permutations(range(x.rank)))
    return g.add("Transpose", [x.name], [x.dims[a] for a in perm], perm=perm)


def reshape(g: Growth, x: Made) -> Made | None:
    ways: list[list[Dim]] = []
    for a in x.sized():
        ways += [[*x.dims[:a], n, x.size(a) // n, *x.dims[a + 1 :]] for n in (1, 2, 3) if x.size(a) % n == 0]
        if a + 1 < x.rank:
            following = x.dims[a + 1]
            merged = x.size(a) * following if isinstance(following, int) else f"{following}x{x.size(a)}"
            ways.append([*x.dims[:a], merged, *x.dims[a + 2 :]])
        if a > 0 and isinstance(x.dims[a - 1], str):
            ways.append([*x.dims[: a - 1], f"{x.dims[a - 1]}x{x.size(a)}", *x.dims[a + 1 :]])
    ways = [way for way in ways if len(way) <= 5 and sum(isinstance(dim, str) for dim in way) <= 1]
    if not ways:
        return None
    dims = g.choose(ways)
    shape = [
        dim if isinstance(dim, int) else 0 if x.dims[place : place + 1] == (dim,) and g.chance(50) else -1
        for place, dim in enumerate(dims)
    ]
    return g.add("Reshape", [x.name, g.integers(*shape)], dims)


def squeeze(g: Growth, x: Made) -> Made | None:
    ones = [a for a in x.sized() if x.size(a) == 1]
    if ones and g.chance(60):
        axis, operator, dims = g.choose(ones), "Squeeze", None
        dims = (*x.dims[:axis], *x.dims[axis + 1 :])
    elif x.rank < 5:
        axis, operator = g.draw(st.integers(0, x.rank)), "Unsqueeze"
        dims = (*x.dims[:axis], 1, *x.dims[axis:])
    else:
        return None
    if not dims:
        return None
    stated = axis - max(len(dims), x.rank) if g.chance(30) and g.opset >= 11 else axis
    if g.opset < 13:
        return g.add(operator, [x.name], dims, axes=[stated])
    return g.add(operator, [x.name, g.integers(stated)], dims)


def slicing(g: Growth, x: Made) -> Made | None:
    axes = [a for a in x.sized() if x.size(a) > 1]
    if not axes:
        return None
    axis = g.choose(axes)
    start, step = g.choose([0, 1]), g.choose([1, 1, 2])
    taken = len(range(x.size(axis))[start::step])
    inputs = [g.integers(start), g.integers(99), g.integers(axis - x.rank if g.chance(30) else axis), g.integers(step)]
    return g.add("Slice", [x.name, *inputs], x.having(axis, taken))


def gather(g: Growth, x: Made) -> Made | None:
    axes = x.sized()
    if not axes:
        return None
    axis = g.choose(axes)
    indices = g.rng.integers(0, x.size(axis), g.choose([(), (1,), (2,), (x.size(axis),), (2, 2)]))
    dims = (*x.dims[:axis], *indices.shape, *x.dims[axis + 1 :])
    if not dims or len(dims) > 5:
        return None
    return g.add("Gather", [x.name, g.constant(indices.astype(np.int64))], dims, axis=axis)


def pad(g: Growth, x: Made) -> Made | None:
    mode = g.choose(["constant", "edge", "reflect"])
    axes = [a for a in x.sized() if x.size(a) > 1]
    if not axes or (mode != "constant" and x.rank != 4):
        return None
    axis = g.choose(axes if mode == "constant" else [a for a in axes if a > 1] or axes)
    if mode != "constant" and axis < 2:
        return None
    pads = [int(end == axis) for end in range(x.rank)] * 2
    return g.add("Pad", [x.name, g.integers(*pads)], x.having(axis, x.size(axis) + 2), mode=mode)


def pool(g: Growth, x: Made) -> Made | None:
    if x.rank != 4 or not all(x.sized([a]) and x.size(a) > 1 for a in (2, 3)):
        return None
    operator = g.choose(["MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"])
    if operator.startswith("Global"):
        return g.add(operator, [x.name], (*x.dims[:2], 1, 1))
    padded = int(g.chance(40))
    counted = {"count_include_pad": int(g.chance(50))} if operator == "AveragePool" else {}
    spatial = [x.size(a) - 1 + 2 * padded for a in (2, 3)]
    return g.add(operator, [x.name], (*x.dims[:2], *spatial), kernel_shape=[2, 2], pads=[padded] * 4, **counted)


def reduction(g: Growth, x: Made) -> Made | None:
    axis = g.draw(st.integers(0, x.rank - 1))
    if x.rank == 1 or not x.sized([axis]):
        return None
    operator = g.choose(["ReduceMean", "ReduceMean", "ReduceMax", "ReduceSum"])
    keepdims = int(g.chance(50))
    dims = x.having(axis, 1) if keepdims else (*x.dims[:axis], *x.dims[axis + 1 :])
    if g.opset < (13 if operator == "ReduceSum" else 18):
        return g.add(operator, [x.name], dims, axes=[axis], keepdims=keepdims)
    return g.add(operator, [x.name, g.integers(axis)], dims, keepdims=keepdims)


def space(g: Growth, x: Made) -> Made | None:
    if x.rank != 4 or not {1, 2, 3} <= set(x.sized()):
        return None
    channels, height, width = (x.size(a) for a in (1, 2, 3))
    if channels % 4 == 0:
        dims = (x.dims[0], channels // 4, 2 * height, 2 * width)
        return g.add("DepthToSpace", [x.name], dims, blocksize=2, mode=g.choose(["DCR", "CRD"]))
    if height % 2 or width % 2:
        return None
    return g.add("SpaceToDepth", [x.name], (x.dims[0], 4 * channels, height // 2, width // 2), blocksize=2)


def resize(g: Growth, x: Made) -> Made | None:
    if x.rank != 4 or not {2, 3} <= set(x.sized()) or x.size(2) * x.size(3) > 100:
        return None
    scales = g.constant(np.array([1, 1, 2, 1], np.float32))
    roi = g.constant(np.zeros(0, np.float32))
    mode = g.choose(["nearest", "linear"])
    return g.add("Resize", [x.name, roi, scales], x.having(2, 2 * x.size(2)), mode=mode)


def tile(g: Growth, x: Made) -> Made | None:
    axes = [a for a in x.sized() if x.size(a) < 7]
    if not axes:
        return None
    axis = g.choose(axes)
    repeats = [1 + int(place == axis) for place in range(x.rank)]
    return g.add("Tile", [x.name, g.integers(*repeats)], x.having(axis, 2 * x.size(axis)))


def rectified(g: Growth, x: Made) -> Made | None:
    return g.add(g.choose(["Relu", "LeakyRelu"]), [x.name], x.dims)


def opaque(g: Growth, x: Made) -> Made | None:
    return g.add(g.choose(["Sigmoid", "Abs", "Softplus"]), [x.name], x.dims)


def fork(g: Growth, x: Made) -> Made | None:
    """Two branches, each a linear operator or the value itself, that join again."""
    steps = [step for step in (convolution, product) if g.chance(70)] or [arithmetic]
    left: Made | None = g.choose(steps)(g, x)
    right: Made | None = g.choose([*steps, arithmetic])(g, x) if g.chance(70) else x
    if left is None or right is None:
        return None
    if left.dims == right.dims and g.chance(60):
        return g.add(g.choose(["Add", "Sub", "Mul", "Add"]), [left.name, right.name], left.dims)
    unlike = [a for a in range(x.rank) if left.rank == right.rank and left.dims[a] != right.dims[a]]
    axis = unlike[0] if unlike else 1 if x.rank > 1 else 0
    joins = left.rank == right.rank and len(unlike) <= 1 and left.sized([axis]) and right.sized([axis])
    if not joins:
        return left
    return g.add("Concat", [left.name, right.name], left.having(axis, left.size(axis) + right.size(axis)), axis=axis)


def branches(g: Growth, x: Made) -> Made | None:
    """Joins a value of the same dimensions that was made before."""
    others = [value for value in g.values if value.dims == x.dims and value != x]
    if not others:
        return None
    return g.add(g.choose(["Add", "Sub", "Mul"]), [x.name, g.choose(others).name], x.dims)


AFFINE: tuple[Step, ...] = (arithmetic, batch_norm)
LINEAR: tuple[Step, ...] = (convolution, product)
OTHER: tuple[Step, ...] = (
    *(transpose, reshape, squeeze, slicing, gather, pad, pool, reduction, space, resize, tile),
    *(rectified, plain, fork, fork, branches, opaque),
)

INPUTS: tuple[tuple[Dim, ...], ...] = ((2, 4, 4, 4), (2, 4, 4, 6), (2, 6, 4), (2, 3, 6), (2, 6), (4, 4))


@st.composite
def models(draw: st.DrawFn, dtype: type[np.floating[Any]] = np.float64) -> onnx.ModelProto:
    """A model of 2 to 12 nodes, constants not counted."""
    g = Growth(draw, draw(st.sampled_from([11, 13, 18, 21])), dtype, draw(st.booleans()))
    g.rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    dims = draw(st.sampled_from(INPUTS))
    if g.chance(50):
        dims = ("N", *dims[1:])
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    x = Made("x", dims)
    g.values.append(x)
    target = draw(st.integers(2, 12))
    for _ in range(3 * target):
        if sum(node.op_type != "Constant" for node in g.nodes) >= target:
            break
        source = g.choose(g.values) if g.chance(7) else g.values[-1]
        step = g.choose(g.choose([AFFINE, LINEAR, OTHER, OTHER]))
        mark = len(g.nodes), len(g.constants)
        made = step(g, source)
        if made is None or _too_large(made):
            del g.nodes[mark[0] :], g.constants[mark[1] :]
            continue
        g.values.append(made)
    read = {name for node in g.nodes for name in node.input}
    outputs = [node.output[0] for node in g.nodes if node.output[0] not in read]
    inner = [node.output[0] for node in g.nodes if node.output[0] in read and node.op_type != "Constant"]
    if inner and g.chance(7):
        outputs.append(g.choose(inner))
    graph = onnx.helper.make_graph(
        g.nodes,
        "chain",
        [onnx.helper.make_tensor_value_info("x", kind, dims)],
        [onnx.helper.make_tensor_value_info(name, kind, None) for name in outputs],
        g.constants,
    )
    opsets = [onnx.helper.make_opsetid("", g.opset)]
    model = onnx.helper.make_model(graph, ir_version=8, opset_imports=opsets)
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    for stated, known in zip(model.graph.output, inferred.graph.output, strict=True):
        stated.CopyFrom(known)
    return model


def _too_large(made: Made) -> bool:
    return int(np.prod([dim for dim in made.dims if isinstance(dim, int)])) > 2000

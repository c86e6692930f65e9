"""Every spelling of the normalizations with statistics of the input, written out as ONNX, and what only looks like one.

A `Writing` says how each part is written: the mean, the square, the root, the axes, the place of ε, the order of
operands. `spellings` takes the product of what exporters and people combine freely, and each rarer way against all
roots and squares.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import product
from math import prod, sqrt
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from models.spelling import Spelling
from normfuse.norm import Place, Standardize

Array = npt.NDArray[Any]

MEANS = ("ReduceMean", "ReduceSum*", "ReduceSum/")
SQUARES = ("Pow", "Mul", "Abs", "ReduceSumSquare", "ReduceL2", "Twice")
ROOTS = ("Sqrt, Div", "Sqrt, Reciprocal, Mul", "Sqrt, 1/, Mul", "Pow, Div", "Pow -1/2, Mul")
AXES = ("attribute", "input", "negative")
KEEPS = ("keepdims", "Unsqueeze", "Reshape", "Expand")
PLACES: tuple[Place, ...] = ("inside", "outside", "clamp")
EPSILON = 1e-5


class Writer:
    """Writes nodes one behind the other.

    Attributes:
        opset: of the default domain.
        x: the input of the model.
    """

    def __init__(self, shape: Sequence[int | str], opset: int = 18, dtype: ir.DataType = ir.DataType.FLOAT) -> None:
        self.opset, self._dtype = opset, dtype
        self._nodes: list[ir.Node] = []
        self._constants: list[ir.Value] = []
        self.x = ir.Value(name="x", type=ir.TensorType(dtype), shape=ir.Shape(shape))

    def op(self, operator: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        """Writes a node and returns its output."""
        node = ir.node(operator, list(inputs), attributes, name=f"n{len(self._nodes)}")
        node.outputs[0].name = f"v{len(self._nodes)}"
        self._nodes.append(node)
        return node.outputs[0]

    def constant(self, content: npt.ArrayLike, dtype: npt.DTypeLike | None = None) -> ir.Value:
        """Writes a constant, of the dtype of the input where no other is given."""
        array = np.asarray(content, self._dtype.numpy() if dtype is None else dtype)
        name = f"c{len(self._constants)}"
        value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
        value.shape, value.dtype = ir.Shape(array.shape), ir.DataType.from_numpy(array.dtype)
        self._constants.append(value)
        return value

    def both(self, operator: str, first: ir.Value, second: ir.Value, swap: bool) -> ir.Value:
        """Writes a node whose two inputs may change places."""
        return self.op(operator, second, first) if swap else self.op(operator, first, second)

    def reduce(self, operator: str, data: ir.Value, axes: Sequence[int], keepdims: int = 1) -> ir.Value:
        """Writes a reduction with its axes as the opset has them."""
        if self.opset >= 18 or operator == "ReduceSum":
            return self.op(operator, data, self.constant(list(axes), np.int64), keepdims=keepdims)
        return self.op(operator, data, axes=list(axes), keepdims=keepdims)

    def model(self, output: ir.Value, *more: ir.Value) -> ir.Model:
        """The model of what was written."""
        for value in (output, *more):
            value.dtype = value.dtype or self._dtype
        output.name = "y"
        graph = ir.Graph(
            [self.x],
            [output, *more],
            nodes=self._nodes,
            initializers=self._constants,
            opset_imports={"": self.opset},
            name="spelling",
        )
        return ir.Model(graph, ir_version=10)


@dataclass(frozen=True, slots=True)
class Writing:
    """How a normalization is written.

    Attributes:
        shape: the dimensions of x.
        axes: what the statistics extend over.
        centred: whether the mean is subtracted.
        mean: a ReduceMean, a ReduceSum times 1/n, divided by n, or a GlobalAveragePool.
        square: of the difference, or `Twice` for the product of two differences that are computed apart.
        root: how the root is taken and divided by.
        reduced: how the axes are given.
        keep: how the reduced axes stay.
        place: where ε stands.
        maximum: the operator of a clamp.
        swap: whether the operands of commutative operators change places.
        affine: what stands behind: nothing, γ, or γ and β; or γ within.
        ddof: 0, or 1 for the unbiased variance.
        correction: how n/(n − 1) is written.
        variance: as the mean of squares, or as a difference, or as one with a clamp at 0.
        cast: where x is float16 and the statistics are float32, how it goes back: before or behind γ, before γ with a
            Cast of x for each reader, or the statistics alone.
        negated: whether the mean is subtracted by adding its negative.
        channels: whether γ and β stand along axis 1 where they could stand along the last.
        epsilon: ε.
    """

    shape: tuple[int | str, ...]
    axes: tuple[int, ...]
    centred: bool = True
    mean: str = "ReduceMean"
    square: str = "Pow"
    root: str = "Sqrt, Div"
    reduced: str = "input"
    keep: str = "keepdims"
    place: Place = "inside"
    maximum: str = "Max"
    swap: bool = False
    affine: str = "none"
    ddof: int = 0
    correction: str = "ReduceSum"
    variance: str = "squares"
    cast: str = "none"
    negated: bool = False
    channels: bool = False
    epsilon: float = EPSILON

    def __str__(self) -> str:
        told = []
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name not in ("shape", "axes") and value != field.default:
                told.append(f"{field.name}={value}")
        shape = "x".join(map(str, self.shape))
        return ", ".join([f"{shape} over {self.axes}", *told])

    @property
    def trailing(self) -> bool:
        """Whether γ and β stand along the last axis, as in LayerNorm and RMSNorm, and not along the channels."""
        return self.axes == (len(self.shape) - 1,) and (len(self.shape) != 3 or not self.channels)

    @property
    def count(self) -> int:
        """The number of elements of S."""
        return prod(size for axis, size in enumerate(self.shape) if axis in self.axes and isinstance(size, int))

    @property
    def opset(self) -> int:
        """The opset it is written in."""
        return 13 if self.reduced == "attribute" else 18

    @property
    def meaning(self) -> Standardize:
        """What must be found."""
        epsilon = float(np.float32(self.epsilon))
        epsilon = sqrt(epsilon) if self.place == "clamp" and self.maximum == "inner" else epsilon
        return Standardize(
            self.axes,
            epsilon,
            self.place,
            centred=self.centred,
            ddof=self.ddof,
            cancels=self.variance != "squares",
            dtype=None if self.cast in ("none", "behind γ") else ir.DataType.FLOAT,
        )

    def build(self) -> ir.Model:
        """Writes it."""
        half = self.cast != "none"
        writer = Writer(self.shape, self.opset, ir.DataType.FLOAT16 if half else ir.DataType.FLOAT)
        return writer.model(_Normalization(self, writer).write())


class _Normalization:
    """A normalization while it is written."""

    def __init__(self, how: Writing, writer: Writer) -> None:
        self.how, self.writer = how, writer
        rank = len(how.shape)
        self.axes = [axis - rank for axis in how.axes] if how.reduced == "negative" else list(how.axes)

    def write(self) -> ir.Value:
        how, writer = self.how, self.writer
        x = writer.x if how.cast == "none" else writer.op("Cast", writer.x, to=ir.DataType.FLOAT.value)
        data = self.difference(x) if how.centred else x
        inner = self.moment(x, data)
        if how.cast == "two casts":
            data = writer.op("Cast", writer.x, to=ir.DataType.FLOAT.value)
        elif how.cast == "statistics":
            data = writer.x
        scale = self.parameter(0.5, 2.0) if how.affine != "none" else None
        if how.affine == "above":
            assert scale is not None
            data, scale = writer.both("Mul", data, scale, how.swap), None
        result = self.divided(data, inner, scale if how.affine == "within" else None)
        if how.cast in ("before γ", "two casts"):
            result = writer.op("Cast", result, to=ir.DataType.FLOAT16.value)
        if how.affine in ("γ", "γβ"):
            assert scale is not None
            result = writer.both("Mul", result, scale, how.swap)
        if how.affine in ("γβ", "above", "within"):
            result = writer.both("Add", result, self.parameter(-1.0, 1.0), how.swap)
        if how.cast == "behind γ":
            result = writer.op("Cast", result, to=ir.DataType.FLOAT16.value)
        return result

    def number(self, value: float, shape: Sequence[int] = ()) -> ir.Value:
        return self.writer.constant(np.full(tuple(shape), value), np.float32)

    def parameter(self, low: float, high: float) -> ir.Value:
        """γ or β: along the last axis where that is normalized, else along axis 1."""
        rank = len(self.how.shape)
        place = rank - 1 if self.how.trailing else 1
        size = self.how.shape[place]
        assert isinstance(size, int)
        shape = [size, *([1] * (rank - 1 - place))]
        dtype = np.float16 if self.how.cast in ("before γ", "two casts", "statistics") else np.float32
        return self.writer.constant(np.linspace(low, high, size).reshape(shape), dtype)

    def reduced(self, data: ir.Value, factor: float = 1.0) -> ir.Value:
        """E_S of a value, times a factor that goes into the count."""
        how, writer = self.how, self.writer
        keepdims = int(how.keep == "keepdims")
        count = how.count / factor
        match how.mean:
            case "GlobalAveragePool":
                return writer.op("GlobalAveragePool", data)
            case "ReduceMean" if factor == 1.0:
                result = writer.reduce("ReduceMean", data, self.axes, keepdims)
            case "ReduceSum/":
                result = writer.op("Div", writer.reduce("ReduceSum", data, self.axes, keepdims), self.number(count))
            case _:
                total = writer.reduce("ReduceSum", data, self.axes, keepdims)
                result = writer.both("Mul", total, self.number(1 / count), how.swap)
        return self.kept(result)

    def kept(self, value: ir.Value) -> ir.Value:
        """A reduced value with the dimensions that broadcast against x."""
        how, writer = self.how, self.writer
        if how.keep == "keepdims":
            return value
        shape = [1 if axis in how.axes else size for axis, size in enumerate(how.shape)]
        if how.keep == "Unsqueeze":
            return writer.op("Unsqueeze", value, writer.constant(list(self.axes), np.int64))
        value = writer.op("Reshape", value, writer.constant(shape, np.int64))
        if how.keep == "Expand":
            value = writer.op("Expand", value, writer.constant(list(how.shape), np.int64))
        return value

    def difference(self, x: ir.Value) -> ir.Value:
        """X − E_S[x]."""
        mean = self.reduced(x)
        if self.how.negated:
            return self.writer.both("Add", x, self.writer.op("Neg", mean), self.how.swap)
        return self.writer.op("Sub", x, mean)

    def squares(self, data: ir.Value, x: ir.Value) -> ir.Value:
        how, writer = self.how, self.writer
        match how.square:
            case "Pow":
                return writer.op("Pow", data, self.number(2.0))
            case "Abs":
                return writer.op("Pow", writer.op("Abs", data), self.number(2.0))
            case "Twice":
                other = self.difference(x) if how.centred else writer.op("Identity", x)
                return writer.both("Mul", data, other, how.swap)
            case _:
                return writer.op("Mul", data, data)

    def moment(self, x: ir.Value, data: ir.Value) -> ir.Value:
        """E_S[d²], or of ddof 1."""
        how, writer = self.how, self.writer
        if how.variance != "squares":
            square = self.reduced(self.squares(x, x))
            mean = self.reduced(x)
            below = writer.op("Mul", mean, mean) if how.square == "Mul" else writer.op("Pow", mean, self.number(2.0))
            result = writer.op("Sub", square, below)
            if how.variance == "Relu":
                return writer.op("Relu", result)
            if how.variance == "Clip":
                return writer.op("Clip", result, self.number(0.0))
            if how.variance == "Max":
                return writer.both("Max", result, self.number(0.0), how.swap)
            return result
        factor = how.count / (how.count - how.ddof) if how.ddof else 1.0
        if how.square in ("ReduceSumSquare", "ReduceL2"):
            sums = self.kept(writer.reduce(how.square, data, self.axes, int(how.keep == "keepdims")))
            if how.square == "ReduceL2":
                sums = writer.op("Mul", sums, sums)
            count = how.count / factor
            if how.mean == "ReduceSum*":
                return writer.both("Mul", sums, self.number(1 / count), how.swap)
            return writer.op("Div", sums, self.number(count))
        squares = self.squares(data, x)
        if not how.ddof or (how.correction == "ReduceSum" and how.mean != "ReduceMean"):
            return self.reduced(squares, factor)
        result = self.reduced(squares)
        if how.correction == "Mul, Div":
            result = writer.both("Mul", result, self.number(float(how.count)), how.swap)
            return writer.op("Div", result, self.number(how.count - 1.0))
        return writer.both("Mul", result, self.number(factor), how.swap)

    def floor(self, value: ir.Value, bound: float) -> ir.Value:
        writer, constant = self.writer, self.number(bound)
        if self.how.maximum == "Clip":
            return writer.op("Clip", value, constant)
        return writer.both("Max", value, constant, self.how.swap)

    def divided(self, data: ir.Value, inner: ir.Value, scale: ir.Value | None) -> ir.Value:
        """D / σ_S, times a scale."""
        how, writer = self.how, self.writer
        if "Mul" in how.root:
            return self.times(data, self.inverse(inner), scale)
        result = writer.op("Div", data, self.deviation(inner))
        return result if scale is None else writer.both("Mul", result, scale, how.swap)

    def inverse(self, inner: ir.Value) -> ir.Value:
        """1 / σ_S."""
        writer = self.writer
        match self.how.root:
            case "Sqrt, Reciprocal, Mul":
                return writer.op("Reciprocal", self.deviation(inner))
            case "Sqrt, 1/, Mul":
                return writer.op("Div", self.number(1.0), self.deviation(inner))
            case _ if self.is_direct:
                return writer.op("Pow", self.lifted(inner), self.number(-0.5))
            case _:
                return writer.op("Pow", self.deviation(inner), self.number(-1.0))

    @property
    def is_direct(self) -> bool:
        """Whether ε stands under the root."""
        return self.how.place == "inside" or self.how.maximum == "inner"

    def lifted(self, inner: ir.Value) -> ir.Value:
        """What stands under the root."""
        how = self.how
        if how.place == "inside":
            return self.writer.both("Add", inner, self.number(how.epsilon), how.swap)
        return self.floor(inner, how.epsilon) if self.is_direct else inner

    def deviation(self, inner: ir.Value) -> ir.Value:
        """σ_S."""
        how, writer, inner = self.how, self.writer, self.lifted(inner)
        root = writer.op("Pow", inner, self.number(0.5)) if "Pow" in how.root else writer.op("Sqrt", inner)
        if how.place == "outside":
            return writer.both("Add", root, self.number(how.epsilon), how.swap)
        return root if self.is_direct else self.floor(root, how.epsilon)

    def times(self, data: ir.Value, inverse: ir.Value, scale: ir.Value | None) -> ir.Value:
        how, writer = self.how, self.writer
        if how.cast == "statistics":
            inverse = writer.op("Cast", inverse, to=ir.DataType.FLOAT16.value)
        if scale is not None:
            inverse = writer.both("Mul", inverse, scale, how.swap)
        return writer.both("Mul", data, inverse, how.swap)


FORMS: dict[str, tuple[Writing, ...]] = {
    "LayerNorm": (
        Writing((2, 3, 8), (2,)),
        Writing((4, 8), (1,)),
        Writing((2, 3, 4, 5), (2, 3)),
        Writing((2, 3, 4, 5), (1, 2, 3)),
        Writing((2, 1, 3, 2, 6), (4,)),
    ),
    "LayerNorm over channels": (Writing((2, 6, 3, 4), (1,)), Writing((2, 6, 5), (1,))),
    "InstanceNorm": (
        Writing((2, 3, 4, 5), (2, 3)),
        Writing((2, 3, 7), (2,), channels=True),
        Writing((2, 3, 2, 3, 4), (2, 3, 4)),
    ),
    "global LayerNorm": (Writing((2, 3, 7), (1, 2)),),
    "RMSNorm": (
        Writing((2, 3, 8), (2,), centred=False),
        Writing((4, 8), (1,), centred=False),
        Writing((2, 6, 3, 4), (1,), centred=False),
    ),
}
"""For each form, its dimensions; the first in every spelling, the others in some."""


def _writings(base: Writing, all_of_them: bool) -> Iterator[Writing]:
    """The spellings of a form: the plain ones as a product, each rarer way with every root."""
    for square, root in product(SQUARES, ROOTS):
        yield replace(base, square=square, root=root)
    if all_of_them:
        for mean, square, root, axes, swap in product(MEANS, SQUARES, ROOTS, AXES, (False, True)):
            yield replace(base, mean=mean, square=square, root=root, reduced=axes, swap=swap)
    for root, swap in product(ROOTS, (False, True) if all_of_them else (False,)):
        how = replace(base, root=root, swap=swap)
        for affine in ("γβ" if base.centred else "γ", "within", "above"):
            yield replace(how, affine=affine)
        for mean, keep in product(MEANS, KEEPS[1:]):
            yield replace(how, mean=mean, keep=keep, square="Mul", affine="γβ")
        yield replace(how, place="outside", reduced="attribute")
        for maximum in ("Max", "Clip", "inner"):
            yield replace(how, place="clamp", maximum=maximum, reduced="attribute")
        yield from _half(how)
        yield from _centred(how) if base.centred else ()
    if base.axes == tuple(range(2, len(base.shape))) and base.centred:
        for square, root in product(SQUARES, ROOTS):
            how = replace(base, mean="GlobalAveragePool", square=square, root=root)
            yield from (how, replace(how, affine="γβ", ddof=1, correction="Mul"))


def _half(how: Writing) -> Iterator[Writing]:
    """With statistics in float32 of an x in float16."""
    yield replace(how, cast="before γ", affine="γ")
    yield replace(how, cast="behind γ", affine="γ", square="Mul")
    if not how.centred:
        yield replace(how, cast="two casts", affine="γ")
    if not how.centred and how.root not in ("Sqrt, Div", "Pow, Div"):
        yield replace(how, cast="statistics", affine="γ")


def _centred(how: Writing) -> Iterator[Writing]:
    """With another variance or mean."""
    yield replace(how, negated=True)
    for mean in MEANS:
        for correction in ("ReduceSum", "Mul", "Mul, Div") if not how.swap or mean == "ReduceMean" else ():
            yield replace(how, ddof=1, mean=mean, correction=correction, square="Mul")
        yield replace(how, ddof=1, mean=mean, place="outside")
        for variance in ("difference", "Max", "Relu", "Clip"):
            yield replace(how, mean=mean, variance=variance)
            yield replace(how, mean=mean, variance=variance, square="Mul", keep="Expand", affine="within")


def spellings() -> Iterator[Spelling]:
    """Every spelling."""
    for form, bases in FORMS.items():
        for place, base in enumerate(bases):
            for how in dict.fromkeys(_writings(base, place == 0)):
                yield Spelling(form, str(how), how.build, how.meaning)
    yield from _multiplied_out()
    yield from _batch_statistics()
    yield from _reshaped()


_IMAGE = (2, 3, 4, 5)


def _multiplied_out() -> Iterator[Spelling]:
    """TensorFlow's x · k + (β − E[x] · k), k = γ / √(Var[x] + ε), with the terms in any order."""

    def build(how: Writing, order: str, scale: bool, bias: bool) -> ir.Model:
        writer = Writer(how.shape, how.opset)
        parts = _Normalization(how, writer)
        x = writer.x
        mean = parts.reduced(x)
        data = writer.op("Sub", x, mean) if how.variance == "squares" else x
        k = parts.inverse(parts.moment(x, data))
        if scale:
            k = writer.both("Mul", k, parts.parameter(0.5, 2.0), how.swap)
        data, shift = writer.both("Mul", x, k, how.swap), writer.both("Mul", mean, k, how.swap)
        if not bias:
            if order == "Neg":
                return writer.model(writer.both("Add", data, writer.op("Neg", shift), how.swap))
            return writer.model(writer.op("Sub", data, shift))
        beta = parts.parameter(-1.0, 1.0)
        match order:
            case "x·k + (β − m·k)":
                result = writer.both("Add", data, writer.op("Sub", beta, shift), how.swap)
            case "(x·k − m·k) + β":
                result = writer.both("Add", writer.op("Sub", data, shift), beta, how.swap)
            case "(x·k + β) − m·k":
                result = writer.op("Sub", writer.both("Add", data, beta, how.swap), shift)
            case _:
                inner = writer.both("Add", beta, writer.op("Neg", shift), how.swap)
                result = writer.both("Add", data, inner, how.swap)
        return writer.model(result)

    orders = ("x·k + (β − m·k)", "(x·k − m·k) + β", "(x·k + β) − m·k", "Neg")
    bases = (
        Writing((2, 4, 5, 3), (1, 2)),
        Writing((2, 5, 8), (2,)),
        Writing((2, 4, 5, 3), (3,)),
        Writing((6, 8), (0,)),
    )
    for base, root, variance, swap in product(
        bases,
        ("Sqrt, Reciprocal, Mul", "Sqrt, 1/, Mul", "Pow -1/2, Mul"),
        ("squares", "difference", "Max"),
        (False, True),
    ):
        how = replace(base, root=root, variance=variance, swap=swap)
        for order, scale in product(orders, (True, False)):
            name = f"{how}, {order}{', γ' if scale else ''}"
            yield Spelling("multiplied out", name, partial(build, how, order, scale, True), how.meaning)
        for order in ("Sub", "Neg"):
            name = f"{how}, {order}, γ, no β"
            yield Spelling("multiplied out", name, partial(build, how, order, True, False), how.meaning)


def _batch_statistics() -> Iterator[Spelling]:
    """A BatchNormalization that is given the statistics of its input, as torch exports one without stored ones."""

    def build(how: Writing, affine: bool) -> ir.Model:
        writer = Writer(how.shape, how.opset)
        parts = _Normalization(how, writer)
        x, channels = writer.x, how.shape[1]
        mean = parts.reduced(x)
        if how.correction == "apart":
            flat = writer.reduce("ReduceMean", x, parts.axes, 0)
        else:
            flat = writer.op("Squeeze", mean, writer.constant(list(how.axes), np.int64))
        variance = parts.moment(x, writer.op("Sub", x, mean) if how.variance == "squares" else x)
        variance = writer.op("Squeeze", variance, writer.constant(list(how.axes), np.int64))
        assert isinstance(channels, int)
        scale, bias = (np.linspace(0.5, 2, channels), np.linspace(-1, 1, channels))
        scale, bias = (scale, bias) if affine else (np.ones(channels), np.zeros(channels))
        operands = (writer.constant(scale), writer.constant(bias), flat, variance)
        return writer.model(writer.op("BatchNormalization", x, *operands, epsilon=EPSILON))

    for shape in (_IMAGE, (2, 3, 7), (2, 3, 2, 3, 4)):
        axes = (0, *range(2, len(shape)))
        for square, mean, variance, correction, affine in product(
            ("Pow", "ReduceSumSquare"), MEANS, ("squares", "difference", "Max"), ("apart", "Mul"), (True, False)
        ):
            how = Writing(shape, axes, mean=mean, square=square, variance=variance, correction=correction)
            name = f"{how}{', γβ' if affine else ''}"
            yield Spelling("batch statistics", name, partial(build, how, affine), replace(how.meaning, epsilon=EPSILON))


def _reshaped() -> Iterator[Spelling]:
    """AdaIN's own code: the statistics are those of x laid out as (N, C, H · W)."""

    def build(how: Writing, expand: bool) -> ir.Model:
        batch, channels, height, width = how.shape
        assert isinstance(height, int)
        assert isinstance(width, int)
        writer = Writer(how.shape, how.opset)
        rows = writer.op("Reshape", writer.x, writer.constant([batch, channels, height * width], np.int64))
        parts = _Normalization(replace(how, shape=(2, 3, height * width), axes=(2,)), writer)
        mean = parts.reduced(rows)
        variance = parts.moment(rows, writer.op("Sub", rows, parts.reduced(rows)))
        small = writer.constant([batch, channels, 1, 1], np.int64)
        full = writer.constant([batch, channels, height, width], np.int64)
        mean = writer.op("Reshape", mean, small)
        if how.place == "inside":
            variance = writer.both("Add", variance, parts.number(how.epsilon), how.swap)
        deviation = writer.op("Reshape", writer.op("Sqrt", variance), small)
        if how.place == "outside":
            deviation = writer.both("Add", deviation, parts.number(how.epsilon), how.swap)
        if expand:
            mean, deviation = writer.op("Expand", mean, full), writer.op("Expand", deviation, full)
        return writer.model(writer.op("Div", writer.op("Sub", writer.x, mean), deviation))

    for keep, square, ddof, place, swap, expand in product(
        ("keepdims", "Unsqueeze"), ("Pow", "Mul"), (0, 1), ("inside", "outside"), (False, True), (False, True)
    ):
        how = Writing(
            _IMAGE,
            (2, 3),
            keep=keep,
            square=square,
            ddof=ddof,
            place=PLACES[PLACES.index(place)],
            swap=swap,
            correction="Mul, Div",
        )
        yield Spelling(
            "statistics of rows", f"{how}{', Expand' if expand else ''}", partial(build, how, expand), how.meaning
        )

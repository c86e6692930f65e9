"""A graph read as algebra, so that operand order and spelling do not matter.

    product     Mul, Div, Reciprocal, Sqrt, Pow, Neg      c · Π vᵢ^eᵢ, with rational exponents
    terms       Add, Sub, Neg, Sum                        Σ ± vᵢ
    reduction   ReduceMean, ReduceSum, GlobalAveragePool  E_S[v], Σ_S v, ‖v‖_S
    squared     Pow(v, 2), Mul(v, v)                      v²

A view looks at a few nodes in front of a value and no further, so that what it costs does not grow with the graph.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

import numpy as np
import onnx_ir as ir

from normfuse.passes.access import Dim, attribute, dims, operator
from normfuse.passes.weights import Weights

REACH = 16
"""A product or sum is followed through so many nodes at most."""

_HALF = Fraction(1, 2)
_PRECISION = {ir.DataType.BFLOAT16: 0, ir.DataType.FLOAT16: 1, ir.DataType.FLOAT: 2, ir.DataType.DOUBLE: 3}


def scalar(value: ir.Value | None, weights: Weights) -> float | None:
    """The number that a constant of one element holds, whatever its rank; None for any other value."""
    array = weights.array(value)
    if array is not None:
        return float(array.ravel()[0]) if array.size == 1 else None
    integers = weights.integers(value)
    return float(integers[0]) if integers is not None and len(integers) == 1 else None


def plain(value: ir.Value) -> ir.Value:
    """The same without Identity and without a Cast to the dtype that it has already."""
    while (node := value.producer()) is not None and node.inputs:
        data = node.inputs[0]
        if data is None:
            break
        noop = operator(node) == "Cast" and data.dtype is not None and data.dtype == value.dtype
        if operator(node) != "Identity" and not noop:
            break
        value = data
    return value


def widened(value: ir.Value) -> ir.Value:
    """The value that Casts to wider floating-point dtypes have made this one of: every number in it is the same."""
    value = plain(value)
    while (node := value.producer()) is not None and operator(node) == "Cast" and node.inputs[0] is not None:
        data = node.inputs[0]
        before, after = (_PRECISION.get(one) if one is not None else None for one in (data.dtype, value.dtype))
        if before is None or after is None or before > after or (before, after) == (0, 1):
            break
        value = plain(data)
    return value


def same(first: ir.Value | None, second: ir.Value | None, weights: Weights, depth: int = 6) -> bool:
    """Whether two values are computed alike of the same values: exporters repeat nodes."""
    if first is second:
        return True
    if first is None or second is None or depth == 0:
        return False
    first, second = plain(first), plain(second)
    if first is second:
        return True
    one, two = first.producer(), second.producer()
    if one is None or two is None:
        numbers = weights.array(first), weights.array(second)
        return numbers[0] is not None and numbers[1] is not None and np.array_equal(*numbers)
    if one.op_identifier() != two.op_identifier() or len(one.inputs) != len(two.inputs):
        return False
    if first.index() != second.index() or one.attributes.keys() != two.attributes.keys():
        return False
    alike = all(one.attributes[name].value == two.attributes[name].value for name in one.attributes)
    return alike and all(same(a, b, weights, depth - 1) for a, b in zip(one.inputs, two.inputs, strict=True))


@dataclass(slots=True)
class Product:
    """c · Π vᵢ^eᵢ.

    Attributes:
        coefficient: c.
        factors: eᵢ for each vᵢ.
    """

    coefficient: float = 1.0
    factors: dict[ir.Value, Fraction] = field(default_factory=dict)

    def times(self, other: "Product", exponent: Fraction) -> None:
        """Multiplies by a power of another product."""
        self.coefficient *= other.coefficient ** float(exponent)
        for value, own in other.factors.items():
            total = self.factors.get(value, Fraction(0)) + own * exponent
            if total:
                self.factors[value] = total
            else:
                self.factors.pop(value, None)

    @property
    def single(self) -> tuple[ir.Value, Fraction] | None:
        """The only factor and its exponent."""
        return next(iter(self.factors.items())) if len(self.factors) == 1 else None


def product(value: ir.Value, weights: Weights, stops: Collection[ir.Value] = ()) -> Product:
    """A value as a product, not looked into at `stops`, at sums, and at whatever else is no product."""
    budget = [REACH]

    def expand(one: ir.Value) -> Product:
        one = one if one in stops else plain(one)
        number = None if one in stops else scalar(one, weights)
        if number is not None and number != 0.0 and np.isfinite(number):
            return Product(number)
        atom = Product(1.0, {one: Fraction(1)})
        node = one.producer()
        if one in stops or node is None or budget[0] <= 0:
            return atom
        inputs = node.inputs
        budget[0] -= 1
        match operator(node):
            case "Mul" | "Div" if len(inputs) == 2 and inputs[0] is not None and inputs[1] is not None:
                result = Product()
                result.times(expand(inputs[0]), Fraction(1))
                result.times(expand(inputs[1]), Fraction(1 if node.op_type == "Mul" else -1))
                return result
            case "Neg" | "Reciprocal" if inputs[0] is not None:
                result = Product(-1.0 if node.op_type == "Neg" else 1.0)
                result.times(expand(inputs[0]), Fraction(1 if node.op_type == "Neg" else -1))
                return result
            case "Expand" if inputs[0] is not None:
                return expand(inputs[0])
            case "Sqrt" if inputs[0] is not None:
                return _power(expand(inputs[0]), inputs[0], _HALF) or atom
            case "Pow" if inputs[0] is not None and (exponent := scalar(inputs[1], weights)) is not None:
                return _power(expand(inputs[0]), inputs[0], Fraction(exponent).limit_denominator(1 << 20)) or atom
            case _:
                return atom

    return expand(value)


def _power(base: Product, value: ir.Value, exponent: Fraction) -> Product | None:
    """A power of a product, where taking it apart loses no sign: √(v²) is |v|."""
    result = Product()
    fractional = exponent.denominator != 1
    odd = all(own.numerator % 2 for own in base.factors.values())
    if fractional and (base.coefficient <= 0 or len(base.factors) != 1 or not odd):
        base = Product(1.0, {value: Fraction(1)})
    if base.coefficient == 0:
        return None
    result.times(base, exponent)
    return result


def terms(value: ir.Value, depth: int = 1) -> list[tuple[int, ir.Value]]:
    """A value as a sum: the sign and the value of each term, through sums of sums up to a depth."""
    return _terms(plain(value), 1, depth)


def _terms(value: ir.Value, sign: int, depth: int) -> list[tuple[int, ir.Value]]:
    value = plain(value)
    node = value.producer()
    if node is None or any(one is None for one in node.inputs):
        return [(sign, value)]
    inputs = [one for one in node.inputs if one is not None]
    match operator(node):
        case "Neg":
            return _terms(inputs[0], -sign, depth)
        case "Add" | "Sum" if depth:
            return [term for one in inputs for term in _terms(one, sign, depth - 1)]
        case "Sub" if depth:
            return [*_terms(inputs[0], sign, depth - 1), *_terms(inputs[1], -sign, depth - 1)]
        case _:
            return [(sign, value)]


def squared(value: ir.Value, weights: Weights) -> ir.Value | None:
    """v where the value is v²."""
    node = plain(value).producer()
    if node is None:
        return None
    match operator(node):
        case "Pow" if scalar(node.inputs[1], weights) == 2.0:
            base = node.inputs[0]
        case "Mul" if same(node.inputs[0], node.inputs[1], weights):
            base = node.inputs[0]
        case _:
            return None
    assert base is not None
    root = plain(base).producer()
    return root.inputs[0] if root is not None and operator(root) == "Abs" else base


Kind = Literal["mean", "sum", "squares", "length", "absolutes"]
"""What a reduction computes: E[v], Σ v, Σ v², (Σ v²)^½, Σ |v|."""

_KINDS: dict[str, Kind] = {
    "ReduceMean": "mean",
    "ReduceSum": "sum",
    "ReduceSumSquare": "squares",
    "ReduceL2": "length",
    "ReduceL1": "absolutes",
}


@dataclass(frozen=True, slots=True)
class Reduction:
    """What is computed over some axes.

    Attributes:
        kind: what it computes.
        data: of what.
        axes: over which axes of the data, in order.
        output: the value that holds it.
    """

    kind: Kind
    data: ir.Value
    axes: tuple[int, ...]
    output: ir.Value


def reduction(value: ir.Value, weights: Weights) -> Reduction | None:
    """The reduction that a value comes from, through nodes that only give it other dimensions: see `stands_along`."""
    value = _undressed(value)
    node = value.producer()
    if node is None or not node.inputs or node.inputs[0] is None:
        return None
    data = node.inputs[0]
    sizes = dims(data)
    if sizes is None:
        return None
    if operator(node) == "GlobalAveragePool":
        return Reduction("mean", data, tuple(range(2, len(sizes))), value) if len(sizes) > 2 else None
    kind = _KINDS.get(operator(node))
    if kind is None:
        return None
    stated = attribute(node, "axes")
    if stated is None and len(node.inputs) > 1 and node.inputs[1] is not None:
        stated = weights.integers(node.inputs[1])
        if stated is None:
            return None
    if not stated:
        if attribute(node, "noop_with_empty_axes", 0):
            return None
        stated = range(len(sizes))
    axes = tuple(sorted({axis % len(sizes) for axis in stated}))
    return Reduction(kind, data, axes, value) if axes else None


def _undressed(value: ir.Value) -> ir.Value:
    """A value without what only gives it other dimensions."""
    for _ in range(REACH):
        value = plain(value)
        node = value.producer()
        if node is None or operator(node) not in ("Expand", "Reshape", "Squeeze", "Unsqueeze"):
            break
        if node.inputs[0] is None:
            break
        value = node.inputs[0]
    return value


def stands_along(value: ir.Value, data: ir.Value, axes: Collection[int]) -> bool:
    """Whether a value that has one number for each position outside of some axes of the data broadcasts so.

    It must have the dimensions of the data, with 1 (or, where it was expanded, all) along the axes.
    """
    own, wanted = dims(value), dims(data)
    if own is None or wanted is None or len(own) > len(wanted):
        return False
    padded: list[Dim] = [*([1] * (len(wanted) - len(own))), *own]
    for axis, (size, full) in enumerate(zip(padded, wanted, strict=True)):
        if axis in axes:
            if size != 1 and (size != full or size is None):
                return False
        elif size != full or size is None:
            return False
    return True


def keeps_axes(found: Reduction) -> bool:
    """Whether a reduction leaves 1 in the place of each axis."""
    node = found.output.producer()
    assert node is not None
    return operator(node) == "GlobalAveragePool" or bool(attribute(node, "keepdims", 1))


def through_reshape(axes: tuple[int, ...], there: ir.Value, here: ir.Value) -> tuple[int, ...] | None:
    """The axes of `here` that are the same positions as some axes of `there`, a Reshape of it.

    None where it is no such Reshape, or an axis of `here` is cut by it.
    """
    from normfuse.passes.reshaping import Extent

    if plain(there) is plain(here):
        return axes
    node = plain(there).producer()
    if node is None or operator(node) not in ("Flatten", "Reshape", "Squeeze", "Unsqueeze") or node.inputs[0] is None:
        return None
    if plain(node.inputs[0]) is not plain(here):
        return None
    inner, outer = dims(there), dims(here)
    if inner is None or outer is None:
        return None
    found: list[int] = []
    for axis in axes:
        before, upto = Extent.of(inner[:axis]), Extent.of(inner[: axis + 1])
        behind, rest = Extent.of(inner[axis + 1 :]), Extent.of(inner[axis:])
        starts = [i for i in range(len(outer) + 1) if _equal(Extent.of(outer[:i]), before, Extent.of(outer[i:]), rest)]
        ends = [i for i in range(len(outer) + 1) if _equal(Extent.of(outer[:i]), upto, Extent.of(outer[i:]), behind)]
        if not starts or not ends:
            return None
        start = min([place for place in starts if place] or starts)  # a batch of 1 is no part of it
        found.extend(range(start, max(ends)) if inner[axis] != 1 else ())
    return tuple(sorted(set(found))) or None


def _equal(before: object, wanted: object, behind: object, rest: object) -> bool:
    return (before is not None and before == wanted) or (behind is not None and behind == rest)

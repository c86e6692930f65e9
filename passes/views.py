"""A graph read as algebra, so that operand order and spelling do not matter.

    product     Mul, Div, Reciprocal, Sqrt, Pow, Neg      c · Π vᵢ^eᵢ, with rational exponents
    terms       Add, Sub, Neg, Sum                        Σ ± vᵢ
    reduction   ReduceMean, ReduceSum, GlobalAveragePool  E_S[v], Σ_S v, ‖v‖_S
                MatMul with a row of 1/n
    squared     Pow(v, 2), Mul(v, v)                      v²

A view looks at a few nodes in front of a value and no further, so that what it costs does not grow with the graph.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

import numpy as np
import onnx_ir as ir

from normfuse.passes.access import attribute, dims, operator
from normfuse.passes.weights import Weights, constant_tensor, is_float

REACH = 16
"""A product or sum is followed through so many nodes at most."""

_SMALL = 64
"""Constants of so many elements at most are compared."""

_ONE = Fraction(1)
_HALF = Fraction(1, 2)
_PRECISION = {ir.DataType.BFLOAT16: 0, ir.DataType.FLOAT16: 1, ir.DataType.FLOAT: 2, ir.DataType.DOUBLE: 3}


def scalar(value: ir.Value | None, weights: Weights) -> float | None:
    """The number that a constant of one element holds, whatever its rank; None for any other value."""
    tensor = constant_tensor(value)
    if tensor is None or tensor.size != 1:
        return None
    array = weights.array(value)
    if array is not None:
        return float(array.ravel()[0])
    integers = weights.integers(value)
    return None if integers is None else float(integers[0])


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
        tensors = constant_tensor(first), constant_tensor(second)
        if tensors[0] is None or tensors[1] is None or not tensors[0].size == tensors[1].size <= _SMALL:
            return False
        numbers = [tensor.numpy() for tensor in tensors if tensor is not None]
        return numbers[0].dtype == numbers[1].dtype and np.array_equal(numbers[0], numbers[1])
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
            self.include(value, own * exponent)

    def include(self, value: ir.Value, exponent: Fraction) -> None:
        """Multiplies by a power of a value."""
        before = self.factors.get(value)
        total = exponent if before is None else before + exponent
        if total:
            self.factors[value] = total
        else:
            self.factors.pop(value, None)

    @property
    def single(self) -> tuple[ir.Value, Fraction] | None:
        """The only factor and its exponent."""
        return next(iter(self.factors.items())) if len(self.factors) == 1 else None


def product(value: ir.Value, weights: Weights, stops: Collection[ir.Value] = ()) -> Product:
    """A value as a product, not looked into at `stops`, at sums, and at whatever else is no product.

    What gives quotients and roots another dtype or other dimensions is passed over: `Alignment` tells where they stand.
    """
    budget = [REACH]

    def expand(one: ir.Value) -> Product:
        result = Product()
        multiply(result, one, _ONE)
        return result

    def multiply(result: Product, one: ir.Value, exponent: Fraction) -> None:
        """Multiplies a result by a value to the power of 1 or −1, in place."""
        one = one if one in stops else plain(one)
        number = None if one in stops else scalar(one, weights)
        if number is not None and number != 0.0 and np.isfinite(number):
            result.coefficient *= number ** float(exponent)
            return
        node = one.producer()
        if one in stops or node is None or budget[0] <= 0:
            result.include(one, exponent)
            return
        inputs = node.inputs
        budget[0] -= 1
        inner: Product | None = None
        match operator(node):
            case "Mul" | "Div" if len(inputs) == 2 and inputs[0] is not None and inputs[1] is not None:
                multiply(result, inputs[0], exponent)
                multiply(result, inputs[1], exponent if node.op_type == "Mul" else -exponent)
                return
            case "Neg" | "Reciprocal" if inputs[0] is not None:
                result.coefficient *= -1.0 if node.op_type == "Neg" else 1.0
                multiply(result, inputs[0], exponent if node.op_type == "Neg" else -exponent)
                return
            case "Cast" | "Expand" | "Reshape" | "Squeeze" | "Unsqueeze" if inputs[0] is not None:
                if node.op_type != "Cast" or (is_float(inputs[0].dtype) and is_float(one.dtype)):
                    inner = expand(inputs[0])
                    if not any(own < 0 or own.denominator > 1 for own in inner.factors.values()):
                        inner = None
            case "Sqrt" if inputs[0] is not None:
                inner = _power(expand(inputs[0]), inputs[0], _HALF)
            case "Pow" if inputs[0] is not None and (power := scalar(inputs[1], weights)) is not None:
                inner = _power(expand(inputs[0]), inputs[0], Fraction(power).limit_denominator(1 << 20))
        if inner is None:
            result.include(one, exponent)
        else:
            result.times(inner, exponent)

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


def reduced_axes(node: ir.Node, rank: int, weights: Weights) -> tuple[int, ...] | None:
    """The axes that a reduction of data of a rank extends over, in order; None where they are not known."""
    stated = attribute(node, "axes")
    if stated is None and len(node.inputs) > 1 and node.inputs[1] is not None:
        stated = weights.integers(node.inputs[1])
        if stated is None:
            return None
    if not stated:
        return None if attribute(node, "noop_with_empty_axes", 0) else tuple(range(rank))
    if any(not -rank <= axis < rank for axis in stated):
        return None
    return tuple(sorted({axis % rank for axis in stated}))


def reduction(value: ir.Value, weights: Weights) -> Reduction | None:
    """The reduction that a value comes from, through nodes that only give it other dimensions."""
    value = undressed(value)
    node = value.producer()
    if node is None or not node.inputs or node.inputs[0] is None:
        return None
    data = node.inputs[0]
    sizes = dims(data)
    if sizes is None:
        return None
    if operator(node) == "GlobalAveragePool":
        return Reduction("mean", data, tuple(range(2, len(sizes))), value) if len(sizes) > 2 else None
    if operator(node) == "MatMul":
        found = averaged(node, weights)
        return None if found is None else Reduction("mean", found[0], (found[1],), value)
    kind = _KINDS.get(operator(node))
    if kind is None:
        return None
    axes = reduced_axes(node, len(sizes), weights)
    return Reduction(kind, data, axes, value) if axes else None


def averaged(node: ir.Node, weights: Weights) -> tuple[ir.Value, int] | None:
    """X and the axis that a MatMul with a row or column of 1/n takes the mean over; it keeps the axis."""
    for place, back in ((0, 2), (1, 1)):
        tensor, data = constant_tensor(node.inputs[place]), node.inputs[1 - place]
        if tensor is None or data is None or len(tensor.shape) != 2 or tensor.shape[place] != 1 or tensor.size < 2:
            continue
        sizes, array = dims(data), weights.array(node.inputs[place])
        if sizes is None or len(sizes) < 2 or array is None or sizes[-back] != tensor.size:
            continue
        if np.allclose(array, 1.0 / tensor.size, rtol=2.0**-22, atol=0.0):
            return data, len(sizes) - back
    return None


def undressed(value: ir.Value) -> ir.Value:
    """A value without what only gives it other dimensions or another floating-point dtype."""
    for _ in range(REACH):
        value = plain(value)
        node = value.producer()
        if node is None or operator(node) not in ("Cast", "Expand", "Reshape", "Squeeze", "Unsqueeze"):
            break
        data = node.inputs[0]
        if data is None or (node.op_type == "Cast" and not (is_float(data.dtype) and is_float(value.dtype))):
            break
        value = data
    return value

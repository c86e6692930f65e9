"""What an activation multiplies x by, read as a `Gate`: up to a factor c, a bounded function of a polynomial of x.

Sigmoid(u); 1 / (a + a·exp(−u))            σ(u), c = 1 or 1/a
a + a·erf(u)                               ½·(1 + erf(u)), c = 2a
a + a·tanh(u)                              ½·(1 + tanh(u)), c = 2a
Tanh(u)                                    tanh(u), which is a gate where u is log(1 + exp(x))
clip(u, 0, h), HardSigmoid                 min(max(u, 0), h)
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import onnx_ir as ir

from normfuse.passes.access import attribute, operator
from normfuse.passes.views import plain, product, scalar, terms
from normfuse.passes.weights import Weights

TIGHT = 2.0**-20
"""How far constants may be from those of a formula: exporters round them to float32, and products of them again."""

_STEPS = 24
_DEGREE = 3


@dataclass(frozen=True, slots=True)
class Gate:
    """c · g(u), or for the exponent −1 its reciprocal.

    Attributes:
        kind: what g is.
        argument: u.
        factor: c.
        sign: −1 where g is computed of −u.
        high: the upper bound of a hard gate.
        slope: what a hard gate multiplies u by.
        offset: what it adds to that.
        is_operator: whether it is one operator.
    """

    kind: Literal["sigmoid", "erf", "tanh", "softplus tanh", "hard"]
    argument: ir.Value
    factor: float
    sign: float = 1.0
    high: float = 1.0
    slope: float = 1.0
    offset: float = 0.0
    is_operator: bool = False


def close(number: float, wanted: float, tolerance: float) -> bool:
    """Whether a number is as wanted, up to a relative tolerance."""
    return abs(number - wanted) <= tolerance * abs(wanted)


def gate(value: ir.Value, exponent: Fraction, weights: Weights) -> Gate | None:
    """Reads a factor of a product, whose exponent is 1 or −1, as a gate."""
    node = plain(value).producer()
    if node is None or not node.inputs or node.inputs[0] is None:
        return None
    if exponent == 1:
        match operator(node):
            case "Sigmoid":
                return Gate("sigmoid", node.inputs[0], 1.0, is_operator=True)
            case "HardSigmoid":
                slope, offset = float(attribute(node, "alpha", 0.2)), float(attribute(node, "beta", 0.5))
                return Gate("hard", node.inputs[0], 1.0, slope=slope, offset=offset, is_operator=True)
            case "Tanh":
                return Gate("softplus tanh", node.inputs[0], 1.0)
            case "Clip" | "Max" | "Min" | "Relu":
                both = bounded(value, weights)
                hard = both is not None and both[1] == 0.0 and 0.0 < both[2] < 1e6
                return Gate("hard", both[0], 1.0, high=both[2]) if both is not None and hard else None
    found = terms(value)
    parts = [product(part, weights) for _, part in found]
    if len(parts) != 2:
        return None
    signs = [sign for sign, _ in found]
    for one, other in ((0, 1), (1, 0)):
        constant, function = parts[one], parts[other].single
        if constant.factors or function is None or function[1] != 1:
            continue
        inner = function[0].producer()
        level, slope = signs[one] * constant.coefficient, signs[other] * parts[other].coefficient
        if inner is None or inner.inputs[0] is None or not close(abs(slope), level, TIGHT):
            continue
        argument, sign = inner.inputs[0], 1.0 if slope > 0 else -1.0
        if operator(inner) == "Exp" and exponent == -1 and sign > 0:
            return Gate("sigmoid", argument, 1.0 / level, -1.0)
        if operator(inner) in ("Erf", "Tanh") and exponent == 1:
            return Gate("erf" if inner.op_type == "Erf" else "tanh", argument, 2.0 * level, sign)
    return None


def polynomial(value: ir.Value, data: ir.Value, weights: Weights) -> dict[int, float] | None:
    """A value as Σ cₙ·xⁿ, degrees up to 3; None where it is none."""
    budget = [_STEPS]

    def expand(one: ir.Value | None) -> dict[int, float] | None:
        if one is None:
            return None
        if one is data or plain(one) is data:
            return {1: 1.0}
        number = scalar(one, weights)
        if number is not None:
            return {0: number}
        node = plain(one).producer()
        budget[0] -= 1
        if node is None or budget[0] < 0:
            return None
        match operator(node):
            case "Add" | "Sub" | "Sum":
                sign = -1.0 if node.op_type == "Sub" else 1.0
                parts = [expand(operand) for operand in node.inputs]
                total: dict[int, float] = {}
                for place, part in enumerate(parts):
                    if part is None:
                        return None
                    for degree, own in part.items():
                        total[degree] = total.get(degree, 0.0) + own * (sign if place else 1.0)
                return total
            case "Neg":
                part = expand(node.inputs[0])
                return None if part is None else {degree: -own for degree, own in part.items()}
            case "Mul":
                return _times(expand(node.inputs[0]), expand(node.inputs[1]))
            case "Div":
                below = scalar(node.inputs[1], weights)
                part = expand(node.inputs[0]) if below else None
                return None if part is None or not below else {degree: own / below for degree, own in part.items()}
            case "Pow":
                exponent, part = scalar(node.inputs[1], weights), expand(node.inputs[0])
                if exponent == 2.0:
                    return _times(part, part)
                return _times(part, _times(part, part)) if exponent == 3.0 else None
            case _:
                return None

    return expand(value)


def _times(one: dict[int, float] | None, other: dict[int, float] | None) -> dict[int, float] | None:
    if one is None or other is None or max(one, default=0) + max(other, default=0) > _DEGREE:
        return None
    result: dict[int, float] = {}
    for first, left in one.items():
        for second, right in other.items():
            result[first + second] = result.get(first + second, 0.0) + left * right
    return result


def softplus(value: ir.Value, data: ir.Value, weights: Weights) -> bool:
    """Whether a value is log(1 + exp(x))."""
    node = plain(value).producer()
    if node is None or not node.inputs or node.inputs[0] is None:
        return False
    inner = plain(node.inputs[0])
    if operator(node) == "Softplus":
        return inner is data
    if operator(node) != "Log":
        return False
    parts = terms(inner)
    numbers = [sign * number for sign, part in parts if (number := scalar(part, weights)) is not None]
    others = [part.producer() for sign, part in parts if sign == 1 and scalar(part, weights) is None]
    if len(parts) != 2 or numbers != [1.0] or len(others) != 1 or others[0] is None:
        return False
    argument = others[0].inputs[0] if operator(others[0]) == "Exp" else None
    return argument is not None and plain(argument) is data


def bounded(value: ir.Value, weights: Weights) -> tuple[ir.Value, float, float] | None:
    """v, low and high where a value is clip(v, low, high): Clip, or Min and Max in either order."""
    node = plain(value).producer()
    if node is None or not node.inputs or node.inputs[0] is None:
        return None
    if operator(node) == "Clip":
        low, high = attribute(node, "min"), attribute(node, "max")
        low = scalar(node.inputs[1], weights) if len(node.inputs) > 1 and node.inputs[1] is not None else low
        high = scalar(node.inputs[2], weights) if len(node.inputs) > 2 and node.inputs[2] is not None else high
        return None if low is None or high is None else (node.inputs[0], float(low), float(high))
    outer = one_sided(node, weights)
    if outer is None:
        return None
    within = plain(outer[1]).producer()
    inner = None if within is None else one_sided(within, weights)
    if inner is None or {outer[0], inner[0]} != {"Max", "Min"}:
        return None
    low, high = (outer[2], inner[2]) if outer[0] == "Max" else (inner[2], outer[2])
    return inner[1], low, high


def one_sided(node: ir.Node, weights: Weights) -> tuple[str, ir.Value, float] | None:
    """`Max` or `Min`, v and the constant where a node is max(v, constant) or min(v, constant)."""
    if operator(node) == "Relu" and node.inputs[0] is not None:
        return "Max", node.inputs[0], 0.0
    if operator(node) not in ("Max", "Min") or len(node.inputs) != 2:
        return None
    for index in (0, 1):
        number, data = scalar(node.inputs[1 - index], weights), node.inputs[index]
        if number is not None and data is not None:
            return node.op_type, data, number
    return None

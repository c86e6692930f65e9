"""Recognisers of activations that exporters spell out.

c · clip(a·x + b, 0, h)          HardSigmoid, where c·h = 1
x · c · clip(a·x + b, 0, h)      HardSwish, where it is x · HardSigmoid(x; ⅙, ½)
"""

from dataclasses import dataclass
from fractions import Fraction

import onnx_ir as ir

from normfuse.activation import Activation
from normfuse.passes.access import attribute, dims, operator
from normfuse.passes.lifted import Found, members
from normfuse.passes.views import plain, product, scalar, terms
from normfuse.passes.weights import Weights

_TOLERANCE = 2.0**-20
"""How far c·a, c·b and c·h may be from ⅙, ½ and 1: exporters round them to float32, and products of them again."""


@dataclass(frozen=True, slots=True)
class _Clip:
    """clip(a·x + b, 0, h)."""

    data: ir.Value
    slope: float
    offset: float
    high: float


def hard(node: ir.Node, weights: Weights) -> Found | None:
    """HardSwish and HardSigmoid in any order of their factors; Div, Mul or Clip."""
    output = node.outputs[0]
    view = product(output, weights)
    for value, exponent in view.factors.items():
        clip = _clip(value, weights) if exponent == 1 else None
        if clip is None:
            continue
        whole = product(output, weights, {clip.data, value})
        factors, factor = dict(whole.factors), whole.coefficient
        if factors.pop(value, None) != 1 or not _is(factor * clip.high, 1.0):
            return None
        alpha, beta = factor * clip.slope, factor * clip.offset
        if not factors:
            meaning = Activation("HardSigmoid", alpha, beta)
        elif factors == {clip.data: Fraction(1)} and _is(alpha, 1.0 / 6.0) and _is(beta, 0.5):
            meaning = Activation("HardSwish")
        else:
            return None
        if dims(output) is None or dims(output) != dims(clip.data) or output.dtype != clip.data.dtype:
            return None
        return Found(meaning, clip.data, output, members(output, [clip.data]))
    return None


def _is(number: float, wanted: float) -> bool:
    return abs(number - wanted) <= _TOLERANCE * wanted


def _clip(value: ir.Value, weights: Weights) -> _Clip | None:
    """Reads a value as clip(a·x + b, 0, h) with a > 0 and b ≠ 0, x being no constant."""
    bounded = _bounded(plain(value), weights)
    if bounded is None or bounded[1] != 0.0 or not 0.0 < bounded[2] < 1e6:
        return None
    parts = terms(bounded[0])
    numbers = [(sign, scalar(part, weights)) for sign, part in parts]
    constants = [sign * number for sign, number in numbers if number is not None]
    others = [part for (sign, part), (_, number) in zip(parts, numbers, strict=True) if number is None and sign == 1]
    if len(parts) != 2 or len(constants) != 1 or len(others) != 1 or constants[0] <= 0.0:
        return None
    inner = others[0]
    node = inner.producer()
    if node is not None and operator(node) in ("Div", "Mul"):
        for index in (0, 1):
            number, data = scalar(node.inputs[1 - index], weights), node.inputs[index]
            if number is None or data is None or number <= 0 or (node.op_type == "Div" and index == 1):
                continue
            slope = number if node.op_type == "Mul" else 1.0 / number
            if _is(bounded[2], 1.0):
                return _Clip(data, slope, constants[0], bounded[2])
    return _Clip(inner, 1.0, constants[0], bounded[2])


def _bounded(value: ir.Value, weights: Weights) -> tuple[ir.Value, float, float] | None:
    """v, low and high where a value is clip(v, low, high): Clip, or Min and Max in either order."""
    node = value.producer()
    if node is None or node.inputs[0] is None:
        return None
    if operator(node) == "Clip":
        low, high = attribute(node, "min"), attribute(node, "max")
        low = scalar(node.inputs[1], weights) if len(node.inputs) > 1 and node.inputs[1] is not None else low
        high = scalar(node.inputs[2], weights) if len(node.inputs) > 2 and node.inputs[2] is not None else high
        return None if low is None or high is None else (node.inputs[0], float(low), float(high))
    outer = _one_sided(node, weights)
    if outer is None:
        return None
    within = plain(outer[1]).producer()
    inner = None if within is None else _one_sided(within, weights)
    if inner is None or {outer[0], inner[0]} != {"Max", "Min"}:
        return None
    low, high = (outer[2], inner[2]) if outer[0] == "Max" else (inner[2], outer[2])
    return inner[1], low, high


def _one_sided(node: ir.Node, weights: Weights) -> tuple[str, ir.Value, float] | None:
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

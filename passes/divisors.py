"""What is divided by: `divisor_of`.

(m + ε)^e, m^e + ε, max(m^e, ε), with m a moment
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import onnx_ir as ir

from normfuse.norm import Place
from normfuse.passes.access import operator
from normfuse.passes.moments import Moment, maximum, moment_of
from normfuse.passes.views import product, reduction, scalar, terms, undressed
from normfuse.passes.weights import Weights
from normfuse.passes.windows import window_of

_HALF = Fraction(1, 2)
_TOLERANCE = 2.0**-22
"""How far a number that an exporter rounded to float32 may be from what it stands for."""

_HALF = Fraction(1, 2)


@dataclass(frozen=True, slots=True)
class Divisor:
    """(m + ε)^e, m^e + ε, or max(m^e, ε).

    Attributes:
        moment: m.
        epsilon: ε.
        place: where it stands.
        exponent: e.
        value: the value whose power is divided by.
    """

    moment: Moment
    epsilon: float
    place: Place
    exponent: float
    value: ir.Value


def divisor_of(value: ir.Value, exponent: Fraction, weights: Weights) -> Divisor | None:
    """Reads a value to the power of −e as 1 / σ_S."""
    power = float(exponent)
    if exponent == 1:
        within = product(undressed(value), weights)
        if within.single is not None and within.single[1] == _HALF and within.coefficient == 1.0:
            found = divisor_of(within.single[0], _HALF, weights)
            if found is not None:
                return replace(found, value=value)
        for epsilon, root in _plus_constant(value, weights):
            moment = _root(root, weights)
            if moment is not None:
                return Divisor(moment, epsilon, "outside", _root_exponent(moment), value)
        clamp = maximum(undressed(value), weights)
        if clamp is not None:
            moment = _root(clamp[0], weights)
            if moment is not None:
                return Divisor(moment, clamp[1], "clamp", _root_exponent(moment), value)
        length = _root(value, weights)
        if length is not None:
            return Divisor(length, 0.0, "inside", _root_exponent(length), value)
    moments: Iterator[tuple[float, ir.Value]] = _plus_constant(value, weights)
    for epsilon, inner in moments:
        moment = moment_of(inner, weights)
        if moment is not None and moment.order == 2 and (exponent == _HALF or moment.window):
            return Divisor(moment, epsilon, "inside", power, value)
    window = window_of(value, weights)
    if window is not None and window.shift:
        moment = Moment(window.data, (window.channel,), value, alpha=window.factor, window=window.sides)
        return Divisor(moment, window.shift, "inside", power, value)
    if exponent != _HALF:
        return None
    clamp = maximum(undressed(value), weights)
    if clamp is not None and clamp[1] > 0:
        moment = moment_of(clamp[0], weights)
        if moment is not None and moment.order == 2:
            return Divisor(moment, float(np.sqrt(clamp[1])), "clamp", 0.5, value)
    moment = moment_of(value, weights)
    if moment is not None and moment.order == 2 and moment.window is None:
        return Divisor(moment, 0.0, "inside", 0.5, value)
    return None


def _root_exponent(moment: Moment) -> float:
    return 1.0 / moment.order


def _root(value: ir.Value, weights: Weights) -> Moment | None:
    """m where a value is √m, or m where it is Σ |d|: the length of a vector."""
    found = reduction(value, weights)
    if found is not None and found.kind == "length":
        return Moment(found.data, found.axes, value, total=True)
    if found is not None and found.kind == "absolutes":
        return Moment(found.data, found.axes, value, total=True, order=1)
    view = product(undressed(value), weights)
    if view.single is None or view.coefficient <= 0:
        return None
    base, exponent = view.single
    if exponent == 1:
        moment = moment_of(base, weights)
        return moment if moment is not None and moment.order == 1 and view.coefficient == 1.0 else None
    if exponent != _HALF:
        return None
    if view.coefficient == 1.0:
        return moment_of(base, weights)
    node = undressed(value).producer()
    inside = None if node is None or operator(node) not in ("Sqrt", "Pow") else node.inputs[0]
    return None if inside is None else moment_of(inside, weights)


def _plus_constant(value: ir.Value, weights: Weights) -> Iterator[tuple[float, ir.Value]]:
    """A value as a constant plus one other term."""
    parts = terms(undressed(value), 2)
    for place, (sign, part) in enumerate(parts):
        number = scalar(part, weights)
        rest = parts[:place] + parts[place + 1 :]
        if number is None or not rest:
            continue
        if len(rest) == 1 and rest[0][0] == 1:
            yield sign * number, rest[0][1]
        elif len(rest) == 2:  # E[x²] − E[x]² + ε, added up in any order
            node = undressed(value).producer()
            inner = [one for one in ([] if node is None else node.inputs) if one is not None]
            yield from ((sign * number, one) for one in inner if scalar(one, weights) is None)

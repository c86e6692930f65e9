"""Recognisers of what is divided by a moment of itself, in any spelling.

(x − E[x]) / √(Var[x] + ε)           LayerNorm, InstanceNorm, and over any other axes
x / √(E[x²] + ε)                     RMSNorm
x / max(‖x‖, ε)                      L2 and L1 normalization
x / (k + α · E_window[x²])^β         LRN
x · k + (β − E[x] · k)               TensorFlow's, k = γ / √(Var[x] + ε)
BN(x; E[x], Var[x])                  a BatchNormalization that is given the statistics of its input
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import onnx_ir as ir

from normfuse.norm import Place, Standardize
from normfuse.passes.access import RefusedError, attribute, dims, known_dims, only_reader, operator
from normfuse.passes.alignment import Alignment, through_reshape
from normfuse.passes.lifted import Found, members
from normfuse.passes.views import (
    Product,
    Reduction,
    plain,
    product,
    reduction,
    same,
    scalar,
    squared,
    terms,
    undressed,
    widened,
)
from normfuse.passes.weights import Weights
from normfuse.passes.windows import window_of

_HALF = Fraction(1, 2)
_TOLERANCE = 2.0**-22
"""How far a number that an exporter rounded to float32 may be from what it stands for."""


@dataclass(frozen=True, slots=True)
class Mean:
    """E_S[x].

    Attributes:
        data: x.
        axes: S, axes of the data.
        value: the value that holds it.
    """

    data: ir.Value
    axes: tuple[int, ...]
    value: ir.Value


@dataclass(frozen=True, slots=True)
class Moment:
    """α · E_S[|d|^p] or Σ_S |d|^p.

    Attributes:
        data: d, or x where `cancels`.
        axes: S, axes of the data.
        total: whether it is the sum.
        ddof: what the number of elements is reduced by.
        order: p.
        alpha: α, of a window only.
        window: the channels before and after, where S is a window of channels.
        cancels: whether it is E[x²] − E[x]².
        value: the value that holds it.
    """

    data: ir.Value
    axes: tuple[int, ...]
    value: ir.Value
    total: bool = False
    ddof: int = 0
    order: int = 2
    alpha: float = 1.0
    window: tuple[int, int] | None = None
    cancels: bool = False


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


def quotient(node: ir.Node, weights: Weights) -> Found | None:
    """(x − μ_S) / σ_S or x / σ_S, times a scale where that stands between them; Mul or Div."""
    output = node.outputs[0]
    view = product(output, weights)
    below = [(value, -exponent) for value, exponent in view.factors.items() if exponent < 0]
    for value, exponent in below:
        divisor = _divisor(value, exponent, weights)
        if divisor is None:
            continue
        found = _found(output, divisor, weights)
        if found is not None:
            return found
    return None


def _found(output: ir.Value, divisor: Divisor, weights: Weights) -> Found | None:
    """What is left above the divisor must be x, or x − μ, and at most a scale."""
    moment = divisor.moment
    stops = {divisor.value, moment.data, plain(moment.data), widened(moment.data)}
    above = _without(product(output, weights, stops), divisor)
    if above is None or any(exponent != 1 for exponent in above.factors.values()):
        return None
    factors = list(above.factors)
    read = _numerator(factors, moment, weights)
    if read is None or len(factors) > 2 or abs(above.coefficient - 1.0) > _TOLERANCE:
        return None
    numerator, data, axes, centred = read
    if not centred and any(mean_of(part, weights) is not None for _, part in terms(data) if part is not data):
        raise RefusedError("it divides a difference from a mean, but of other axes or with the other sign")
    rest = [value for value in factors if value is not numerator]
    scale = rest[0] if rest else None
    return _finish(output, divisor, data, axes, centred, scale, None, weights)


def _without(view: Product, divisor: Divisor) -> Product | None:
    """A product times the divisor."""
    exponent = view.factors.get(divisor.value)
    if exponent is None or exponent >= 0:
        return None
    return Product(view.coefficient, {value: own for value, own in view.factors.items() if value is not divisor.value})


def _finish(
    output: ir.Value,
    divisor: Divisor,
    data: ir.Value,
    axes: tuple[int, ...],
    centred: bool,
    scale: ir.Value | None,
    bias: ir.Value | None,
    weights: Weights,
) -> Found:
    """The find, once all that it says is sure.

    Raises:
        RefusedError: it looks like a normalization, but is none that can be lifted.
    """
    moment = divisor.moment
    sizes = known_dims(data)
    alignment = Alignment(data, weights)
    for operand in (scale, bias):
        if operand is None:
            continue
        alignment.set(operand, None)
        if not _broadcasts(operand, data):
            raise RefusedError("its scale or shift has other dimensions than the data")
    if moment.window and dims(moment.value) == sizes:
        alignment.set(moment.value, tuple((axis,) for axis in range(len(sizes))))
    alignment.check(output, axes)
    rank = len(sizes)
    if not centred and not moment.total and moment.window is None and rank > 3 and axes == tuple(range(2, rank)):
        raise RefusedError("it is a filter response normalization: statistics of each channel, but no mean")
    if not 0 <= divisor.epsilon < np.inf:
        raise RefusedError("its ε is negative or not finite")
    wide = moment.value.dtype
    standardize = Standardize(
        axes,
        divisor.epsilon,
        divisor.place,
        centred=centred,
        window=moment.window,
        channel=axes[0] if moment.window else 1,
        total=moment.total,
        ddof=moment.ddof,
        order=moment.order,
        alpha=moment.alpha,
        exponent=divisor.exponent,
        dtype=wide if wide != data.dtype else None,
        cancels=moment.cancels,
    )
    inputs = [value for value in (data, scale, bias) if value is not None]
    if scale is None and bias is None and wide == data.dtype:
        half = _between_casts(standardize, data, output)
        if half is not None:
            return half
    return Found(standardize, data, output, members(output, inputs), scale, bias)


def _between_casts(standardize: Standardize, data: ir.Value, output: ir.Value) -> Found | None:
    """The same with the Casts of half precision around it: to a wider dtype and back, read by nobody else."""
    narrow, reader = widened(data), only_reader(output)
    if narrow is data or reader is None or operator(reader) != "Cast" or reader.outputs[0].dtype != narrow.dtype:
        return None
    try:
        nodes = members(reader.outputs[0], (narrow,))
    except RefusedError:
        return None
    return Found(replace(standardize, dtype=data.dtype), narrow, reader.outputs[0], nodes)


def _broadcasts(operand: ir.Value, data: ir.Value) -> bool:
    own, wanted = dims(operand), dims(data)
    if own is None or wanted is None or len(own) > len(wanted):
        return False
    behind = wanted[len(wanted) - len(own) :]
    return all(size in (1, full) and size is not None for size, full in zip(own, behind, strict=True))


def _numerator(
    factors: list[ir.Value], moment: Moment, weights: Weights
) -> tuple[ir.Value, ir.Value, tuple[int, ...], bool] | None:
    """Which factor is the data: the factor, x, S as axes of x, and whether the mean is subtracted."""
    for factor in factors:
        mean = centred(factor, weights)
        if moment.cancels:
            if mean is not None:
                axes = _common_axes(mean, Mean(moment.data, moment.axes, moment.value))
                if axes is not None:
                    return factor, mean.data, axes, True
            continue
        own = centred(moment.data, weights)
        if own is not None and own.axes == moment.axes:
            if mean is not None:
                axes = _common_axes(mean, own)
                if axes is not None:
                    return factor, mean.data, axes, True
            continue
        if widened(factor) is widened(moment.data) or same(factor, moment.data, weights):
            return factor, factor, moment.axes, False
        axes = through_reshape(moment.axes, moment.data, factor) if moment.window is None else None
        if axes is not None:
            return factor, factor, axes, False
    return None


def _common_axes(one: Mean, other: Mean) -> tuple[int, ...] | None:
    """The axes of the data of `one`, where both are of the same data and the same axes of it."""
    if widened(one.data) is widened(other.data):
        return one.axes if one.axes == other.axes else None
    return one.axes if through_reshape(other.axes, other.data, one.data) == one.axes else None


def centred(value: ir.Value, weights: Weights) -> Mean | None:
    """The mean that a value is the difference from: E_S[x] where it is x − E_S[x], with S as axes of x."""
    parts = terms(value)
    if len(parts) != 2 or {sign for sign, _ in parts} != {1, -1}:
        return None
    data = next(part for sign, part in parts if sign == 1)
    mean = mean_of(next(part for sign, part in parts if sign == -1), weights)
    if mean is None:
        return None
    axes = mean.axes if widened(mean.data) is widened(data) else through_reshape(mean.axes, mean.data, data)
    if axes is None:
        return None
    return Mean(data, axes, mean.value)


def mean_of(value: ir.Value, weights: Weights) -> Mean | None:
    """Reads a value as E_S[x]: ReduceMean, ReduceSum · 1/n, GlobalAveragePool; with a Reshape or Expand behind."""
    scaled = _scaled_reduction(value, weights)
    if scaled is None:
        return None
    found, factor = scaled
    count = _count(found)
    match found.kind:
        case "mean" if factor == 1.0:
            return Mean(found.data, found.axes, value)
        case "sum" if count is not None and _is(factor * count, 1.0):
            return Mean(found.data, found.axes, value)
        case _:
            return None


def _scaled_reduction(value: ir.Value, weights: Weights) -> tuple[Reduction, float] | None:
    """A value as a constant times a reduction."""
    factor = 1.0
    for _ in range(4):
        found = reduction(value, weights)
        if found is not None:
            return found, factor
        one = undressed(value)
        view = product(one, weights)
        if view.single is None or view.single[0] is one:
            return None
        base, exponent = view.single
        length = reduction(base, weights)
        if exponent == 2 and length is not None and length.kind == "length":
            return replace(length, kind="squares"), factor * view.coefficient
        if exponent != 1:
            return None
        factor, value = factor * view.coefficient, base
    return None


def _count(found: Reduction) -> int | None:
    """How many elements each number of a reduction is taken over."""
    sizes = dims(found.data)
    assert sizes is not None
    count = 1
    for axis in found.axes:
        size = sizes[axis]
        if not isinstance(size, int):
            return None
        count *= size
    return count


def _is(number: float, wanted: float) -> bool:
    return abs(number - wanted) <= _TOLERANCE * abs(wanted)


def moment_of(value: ir.Value, weights: Weights) -> Moment | None:
    """Reads a value as a moment: E[d²], Σ d², n/(n − 1) · E[d²], Σ |d|, E[x²] − E[x]², or over a window."""
    scaled = _scaled_reduction(value, weights)
    if scaled is not None:
        found, factor = scaled
        return _plain_moment(found, factor, value, weights)
    view = product(undressed(value), weights)
    if view.single is None or view.single[1] != 1 or view.coefficient <= 0:
        return None
    inner = view.single[0]
    window = window_of(inner, weights)
    if window is not None:
        data, channel, before, after = window
        return Moment(data, (channel,), inner, alpha=view.coefficient, window=(before, after))
    difference = _cancelling(inner, weights)
    if difference is None:
        return None
    ddof = _ddof(difference.data, difference.axes, view.coefficient, mean=True)
    return None if ddof is None else replace(difference, ddof=ddof, value=value)


def _plain_moment(found: Reduction, factor: float, value: ir.Value, weights: Weights) -> Moment | None:
    order, data = 2, found.data
    match found.kind:
        case "mean" | "sum":
            base = squared(found.data, weights)
            if base is None:
                node = plain(found.data).producer()
                if node is None or operator(node) != "Abs" or node.inputs[0] is None:
                    return None
                base, order = node.inputs[0], 1
            data = base
        case "absolutes":
            order = 1
        case "squares":
            pass
        case _:
            return None
    if found.kind == "mean":
        ddof = _ddof(data, found.axes, factor, mean=True)
        total = False
    else:
        ddof = _ddof(data, found.axes, factor, mean=False)
        total = ddof is None and factor == 1.0
    if ddof is None and not total:
        return None
    return Moment(data, found.axes, found.output, total, ddof or 0, order)


def _ddof(data: ir.Value, axes: tuple[int, ...], factor: float, mean: bool) -> int | None:
    """0 where a factor makes a mean over n elements of a mean or sum, 1 where n − 1; None where neither."""
    if mean and factor == 1.0:
        return 0
    count = _count(Reduction("sum", data, axes, data))
    if count is None or count < 1:
        return None
    means = factor if mean else factor * count
    if count > 1 and not mean and factor == 1.0:
        return None
    if _is(means, 1.0):
        return 0
    return 1 if count > 1 and _is(means, count / (count - 1)) else None


def _cancelling(value: ir.Value, weights: Weights) -> Moment | None:
    """E[x²] − E[x]², with or without a clamp at 0."""
    value = _clamped(value, 0.0, weights) or value
    parts = terms(value)
    if len(parts) != 2 or {sign for sign, _ in parts} != {1, -1}:
        return None
    square = moment_of(next(part for sign, part in parts if sign == 1), weights)
    if square is None or square.total or square.ddof or square.order != 2 or square.cancels or square.window:
        return None
    below = next(part for sign, part in parts if sign == -1)
    root = squared(below, weights)
    mean = None if root is None else mean_of(root, weights)
    if mean is None or mean.axes != square.axes or widened(mean.data) is not widened(square.data):
        return None
    return Moment(square.data, square.axes, value, cancels=True)


def _clamped(value: ir.Value, bound: float, weights: Weights) -> ir.Value | None:
    """v where a value is max(v, bound)."""
    found = _maximum(value, weights)
    return found[0] if found is not None and found[1] == bound else None


def _maximum(value: ir.Value, weights: Weights) -> tuple[ir.Value, float] | None:
    """v and the constant where a value is max(v, constant): Max, Clip, Relu."""
    node = plain(value).producer()
    if node is None or node.inputs[0] is None:
        return None
    match operator(node):
        case "Relu":
            return node.inputs[0], 0.0
        case "Max" if len(node.inputs) == 2:
            for one, other in ((0, 1), (1, 0)):
                number, data = scalar(node.inputs[one], weights), node.inputs[other]
                if number is not None and data is not None:
                    return data, number
        case "Clip":
            low, high = attribute(node, "min"), attribute(node, "max")
            if len(node.inputs) > 1 and node.inputs[1] is not None:
                low = scalar(node.inputs[1], weights)
            if len(node.inputs) > 2 and node.inputs[2] is not None:
                high = scalar(node.inputs[2], weights)
                if high is None:
                    return None
            if low is not None and (high is None or high >= 3e38):
                return node.inputs[0], float(low)
    return None


def _divisor(value: ir.Value, exponent: Fraction, weights: Weights) -> Divisor | None:
    """Reads a value to the power of −e as 1 / σ_S."""
    power = float(exponent)
    if exponent == 1:
        within = product(undressed(value), weights)
        if within.single is not None and within.single[1] == _HALF and within.coefficient == 1.0:
            found = _divisor(within.single[0], _HALF, weights)
            if found is not None:
                return replace(found, value=value)
        for epsilon, root in _plus_constant(value, weights):
            moment = _root(root, weights)
            if moment is not None:
                return Divisor(moment, epsilon, "outside", _root_exponent(moment), value)
        maximum = _maximum(value, weights)
        if maximum is not None:
            moment = _root(maximum[0], weights)
            if moment is not None:
                return Divisor(moment, maximum[1], "clamp", _root_exponent(moment), value)
        length = _root(value, weights)
        if length is not None:
            return Divisor(length, 0.0, "inside", _root_exponent(length), value)
    moments: Iterator[tuple[float, ir.Value]] = _plus_constant(value, weights)
    for epsilon, inner in moments:
        moment = moment_of(inner, weights)
        if moment is not None and moment.order == 2 and (exponent == _HALF or moment.window):
            return Divisor(moment, epsilon, "inside", power, value)
    if exponent != _HALF:
        return None
    maximum = _maximum(value, weights)
    if maximum is not None and maximum[1] > 0:
        moment = moment_of(maximum[0], weights)
        if moment is not None and moment.order == 2:
            return Divisor(moment, float(np.sqrt(maximum[1])), "clamp", 0.5, value)
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


def combination(node: ir.Node, weights: Weights) -> Found | None:
    """x · k + (β − E[x] · k) with k = γ / √(Var[x] + ε); Add or Sub."""
    output = node.outputs[0]
    parts = [(sign, part, product(part, weights)) for sign, part in terms(output, 2)]
    if len(parts) not in (2, 3):
        return None
    divided = [one for one in parts if any(exponent < 0 for exponent in one[2].factors.values())]
    if len(divided) != 2 or {sign for sign, _, _ in divided} != {1, -1}:
        return None
    plus = next(one for one in divided if one[0] == 1)
    minus = next(one for one in divided if one[0] == -1)
    shifts = [one for one in parts if one not in divided]
    if any(sign != 1 for sign, _, _ in shifts):
        return None
    for value, exponent in plus[2].factors.items():
        if exponent >= 0:
            continue
        divisor = _divisor(value, -exponent, weights)
        if divisor is None:
            continue
        own, other = plus[2].factors, minus[2].factors
        if plus[2].coefficient != minus[2].coefficient or plus[2].coefficient != 1.0:
            return None
        rest, mirrored = _differing(own, other)
        if len(rest) != 1 or len(mirrored) != 1:
            return None
        data, mean = rest[0], mean_of(mirrored[0], weights)
        moment = divisor.moment
        if mean is None or widened(mean.data) is not widened(data):
            return None
        spread = Mean(moment.data, moment.axes, moment.value) if moment.cancels else centred(moment.data, weights)
        if spread is None or spread.axes != mean.axes or widened(spread.data) is not widened(data):
            return None
        if not moment.cancels and moment.axes != mean.axes:
            return None
        scales = [one for one in own if one is not data and one is not value]
        if len(scales) > 1 or any(own[one] != 1 for one in scales):
            return None
        scale, bias = (scales[0] if scales else None), (shifts[0][1] if shifts else None)
        return _finish(output, divisor, data, mean.axes, True, scale, bias, weights)
    return None


def _differing(one: dict[ir.Value, Fraction], other: dict[ir.Value, Fraction]) -> tuple[list[ir.Value], list[ir.Value]]:
    """The factors of two products that the other does not have."""
    return (
        [value for value, exponent in one.items() if other.get(value) != exponent],
        [value for value, exponent in other.items() if one.get(value) != exponent],
    )


def batch_statistics(node: ir.Node, weights: Weights) -> Found | None:
    """BatchNormalization(x, γ, β, E[x], Var[x]) with both computed of x, over N and the spatial axes."""
    if attribute(node, "training_mode", 0) or len(node.inputs) < 5 or any(one is None for one in node.inputs):
        return None
    data, scale, bias, mean_value, variance = (one for one in node.inputs[:5] if one is not None)
    if weights.array(mean_value) is not None:
        return None
    mean, moment = mean_of(mean_value, weights), moment_of(variance, weights)
    sizes = dims(data)
    if mean is None or moment is None or sizes is None or moment.total or moment.order != 2 or moment.window:
        return None
    axes = (0, *range(2, len(sizes)))
    if mean.axes != axes or widened(mean.data) is not widened(data):
        return None
    spread = Mean(moment.data, moment.axes, moment.value) if moment.cancels else centred(moment.data, weights)
    if spread is None or spread.axes != axes or moment.axes != axes or widened(spread.data) is not widened(data):
        return None
    if dims(mean_value) != [sizes[1]] or dims(variance) != [sizes[1]]:
        return None
    standardize = replace(
        Standardize.batch_norm(len(sizes), float(attribute(node, "epsilon", 1e-5))),
        ddof=moment.ddof,
        cancels=moment.cancels,
    )
    nodes = members(node.outputs[0], (data, scale, bias))
    return Found(standardize, data, node.outputs[0], nodes, scale, bias, (1,))

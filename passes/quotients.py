"""Recognisers of what is divided by a moment of itself, in any spelling.

(x − E[x]) / √(Var[x] + ε)           LayerNorm, InstanceNorm, and over any other axes
x / √(E[x²] + ε)                     RMSNorm
x / max(‖x‖, ε)                      L2 and L1 normalization
x / (k + α · E_window[x²])^β         LRN
x · k + (β − E[x] · k)               TensorFlow's, k = γ / √(Var[x] + ε)
BN(x; E[x], Var[x])                  a BatchNormalization that is given the statistics of its input
"""

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np
import onnx_ir as ir

from normfuse.norm import Standardize
from normfuse.passes.access import Dim, RefusedError, attribute, dims, known_dims, only_reader, operator
from normfuse.passes.alignment import Alignment, through_layout
from normfuse.passes.counts import is_near
from normfuse.passes.divisors import Divisor, divisor_of
from normfuse.passes.lifted import Found, members
from normfuse.passes.moments import Mean, Moment, centred, mean_of, moment_of
from normfuse.passes.views import Product, plain, product, same, terms, widened
from normfuse.passes.weights import Weights


def quotient(node: ir.Node, weights: Weights) -> Found | None:
    """(x − μ_S) / σ_S or x / σ_S, times a scale where that stands between them; Mul or Div."""
    output = node.outputs[0]
    view = product(output, weights)
    below = [(value, -exponent) for value, exponent in view.factors.items() if exponent < 0]
    for value, exponent in below:
        divisor = divisor_of(value, exponent, weights)
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
    if read is None or len(factors) > 2 or not is_near(above.coefficient, 1.0):
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
    output = _narrowed(output, data, scale, bias)
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


def _narrowed(output: ir.Value, data: ir.Value, scale: ir.Value | None, bias: ir.Value | None) -> ir.Value:
    """The output in the dtype of the data: behind the Cast back, where half precision is widened within.

    Raises:
        RefusedError: there is none.
    """
    if None in (output.dtype, data.dtype) or output.dtype == data.dtype:
        return output
    reader = only_reader(output)
    is_bare = scale is None and bias is None
    if is_bare and reader is not None and operator(reader) == "Cast" and reader.outputs[0].dtype == data.dtype:
        return reader.outputs[0]
    raise RefusedError("its result has another dtype than its data")


def _between_casts(standardize: Standardize, data: ir.Value, output: ir.Value) -> Found | None:
    """The same with the Casts of half precision around it: to a wider dtype and back, read by nobody else."""
    narrow, reader = widened(data), only_reader(output)
    if narrow is data or reader is None or operator(reader) != "Cast" or reader.outputs[0].dtype != narrow.dtype:
        return None
    try:
        nodes = members(reader.outputs[0], (narrow,))
    except RefusedError:
        return None
    wide = data.dtype if data.dtype != narrow.dtype else None
    return Found(replace(standardize, dtype=wide), narrow, reader.outputs[0], nodes)


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
        axes = through_layout(moment.axes, moment.data, factor) if moment.window is None else None
        if axes is not None:
            return factor, factor, axes, False
    return None


def _common_axes(one: Mean, other: Mean) -> tuple[int, ...] | None:
    """The axes of the data of `one`, where both are of the same data and the same axes of it."""
    if widened(one.data) is widened(other.data):
        return one.axes if one.axes == other.axes else None
    found, sizes = through_layout(other.axes, other.data, one.data), dims(one.data)
    return one.axes if sizes is not None and _is_over(one.axes, found, sizes) else None


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
        divisor = divisor_of(value, -exponent, weights)
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


def _is_over(axes: tuple[int, ...], found: tuple[int, ...] | None, sizes: Sequence[Dim]) -> bool:
    """Whether two sets of axes are the same but for axes of one element."""
    return found is not None and all(sizes[axis] == 1 for axis in {*axes} ^ {*found})


def _axes_in(data: ir.Value, mean: Mean) -> tuple[int, ...] | None:
    """The axes of some data that a mean of the same data, perhaps laid out anew, extends over."""
    if widened(mean.data) is widened(data):
        return mean.axes
    return through_layout(mean.axes, mean.data, data)


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
    spread = Mean(moment.data, moment.axes, moment.value) if moment.cancels else centred(moment.data, weights)
    if spread is None or spread.axes != moment.axes:
        return None
    if any(not _is_over(axes, _axes_in(data, one), sizes) for one in (mean, spread)):
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

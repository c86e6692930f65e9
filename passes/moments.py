"""Means and moments of a value, in any spelling: `mean_of`, `centred`, `moment_of`.

E[x], E[d²], Σ d², n/(n − 1) · E[d²], Σ |d|, E[x²] − E[x]², and E over a window of channels
"""

from dataclasses import dataclass, replace

import onnx_ir as ir

from normfuse.passes.access import attribute, dims, operator
from normfuse.passes.alignment import through_layout
from normfuse.passes.counts import Ratio, scaled
from normfuse.passes.reshaping import Extent
from normfuse.passes.sizes import stated, times
from normfuse.passes.views import Reduction, plain, product, reduction, scalar, squared, terms, undressed, widened
from normfuse.passes.weights import Weights
from normfuse.passes.windows import window_of


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


def centred(value: ir.Value, weights: Weights) -> Mean | None:
    """The mean that a value is the difference from: E_S[x] where it is x − E_S[x], with S as axes of x."""
    parts = terms(widened(value))
    if len(parts) != 2 or {sign for sign, _ in parts} != {1, -1}:
        return None
    data = next(part for sign, part in parts if sign == 1)
    mean = mean_of(next(part for sign, part in parts if sign == -1), weights)
    if mean is None:
        return None
    axes = mean.axes if widened(mean.data) is widened(data) else through_layout(mean.axes, mean.data, data)
    return None if axes is None else Mean(data, axes, mean.value)


def mean_of(value: ir.Value, weights: Weights) -> Mean | None:
    """Reads a value as E_S[x]: ReduceMean, ReduceSum · 1/n, GlobalAveragePool; with a Reshape or Expand behind."""
    scaled_by = _scaled_reduction(value, weights)
    if scaled_by is None:
        return None
    found, ratio = scaled_by
    if found.kind == "sum":
        ratio = ratio.times(_count(found))
    elif found.kind != "mean":
        return None
    if not ratio.is_one:
        return None
    inner = mean_of(found.data, weights) if _keeps_rank(found.data) else None
    if (
        inner is not None
        and dims(inner.data) is not None
        and len(dims(inner.data) or ()) == len(dims(found.data) or ())
    ):
        return Mean(inner.data, _joined(inner.axes, found.axes), value)  # E over one axis of E over another
    return Mean(found.data, found.axes, value)


def _keeps_rank(value: ir.Value) -> bool:
    """Whether a value is reduced with its dimensions kept, and by nothing else."""
    node = plain(value).producer()
    return node is not None and operator(node) in ("ReduceMean", "ReduceSum") and bool(attribute(node, "keepdims", 1))


def _joined(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted({*one, *other}))


def _scaled_reduction(value: ir.Value, weights: Weights) -> tuple[Reduction, Ratio] | None:
    """A value as a ratio times a reduction."""
    found = reduction(value, weights)
    if found is not None:
        return found, Ratio()
    one = undressed(value)
    ratio, rest = scaled(product(one, weights), weights)
    if rest.single is None or rest.single[0] is one:
        return None
    base, exponent = rest.single
    found = reduction(base, weights)
    if found is None:
        return None
    if exponent == 2 and found.kind == "length":
        return replace(found, kind="squares"), ratio
    return (found, ratio) if exponent == 1 else None


def _count(found: Reduction) -> Extent:
    """How many elements each number of a reduction is taken over."""
    sizes = stated(found.data)
    assert sizes is not None  # a reduction is read only where they are known
    return times(*(sizes[axis] for axis in found.axes))


def moment_of(value: ir.Value, weights: Weights) -> Moment | None:
    """Reads a value as a moment: E[d²], Σ d², n/(n − 1) · E[d²], Σ |d|, E[x²] − E[x]², or over a window."""
    reduced = _scaled_reduction(value, weights)
    if reduced is not None:
        found, ratio = reduced
        return _plain_moment(found, ratio, value, weights)
    ratio, rest = scaled(product(undressed(value), weights), weights)
    if rest.single is None or rest.single[1] != 1 or ratio.number <= 0:
        return None
    inner = rest.single[0]
    window = window_of(inner, weights)
    if window is not None and ratio.plain is not None and not window.shift:
        return Moment(window.data, (window.channel,), inner, alpha=ratio.plain * window.factor, window=window.sides)
    difference = _cancelling(inner, weights)
    if difference is None:
        return None
    ddof = ratio.ddof(_count(Reduction("mean", difference.data, difference.axes, inner)))
    return None if ddof is None else replace(difference, ddof=ddof, value=value)


def _plain_moment(found: Reduction, ratio: Ratio, value: ir.Value, weights: Weights) -> Moment | None:
    order, data, axes, count = 2, found.data, found.axes, _count(found)
    match found.kind:
        case "mean" | "sum":
            base = squared(found.data, weights)
            if base is None:
                inner = moment_of(found.data, weights) if found.kind == "mean" and _keeps_rank(found.data) else None
                if inner is not None and ratio.is_one and inner == Moment(inner.data, inner.axes, inner.value):
                    return replace(inner, axes=_joined(inner.axes, axes), value=found.output)
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
    ddof = (ratio if found.kind == "mean" else ratio.times(count)).ddof(count)
    if found.kind != "mean" and ratio.is_one and count != Extent(1, ()):
        return Moment(data, axes, found.output, True, 0, order)
    return None if ddof is None else Moment(data, axes, found.output, False, ddof, order)


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
    found = maximum(value, weights)
    return found[0] if found is not None and found[1] == bound else None


def maximum(value: ir.Value, weights: Weights) -> tuple[ir.Value, float] | None:
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

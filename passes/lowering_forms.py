"""What the laws of LOWER have in common: γ and β as vectors, affine maps behind, the way back from a Reshape."""

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from normfuse.affine import Float64
from normfuse.norm import Standardize
from normfuse.passes.access import Dim, RefusedError, known_dims
from normfuse.passes.emitter import Emitter
from normfuse.passes.lowering import NormSite, Operand, OtherFormError

MOST = 1 << 24
"""Elements that a constant of equal numbers may have: a model of few bytes can state dimensions of any size."""


def need(condition: bool, reason: str) -> None:
    """Refuses where a condition does not hold.

    Raises:
        RefusedError: with the reason.
    """
    if not condition:
        raise RefusedError(reason)


def form(condition: bool, reason: str) -> None:
    """A condition on what is computed; where it does not hold, the row is for something else.

    Raises:
        OtherFormError: with the reason.
    """
    if not condition:
        raise OtherFormError(reason)


def not_by_layer_norm(site: NormSite) -> None:
    """Sums in float32 lose accuracy at large means, as those of LayerNormalization do not."""
    need("LayerNormalization" not in site.operators, "it is a LayerNormalization, which is more accurate")


def plain_root(site: NormSite) -> tuple[Standardize, float]:
    """The description with n in the mean and no α, and the factor that its result must be multiplied by.

    (d / √(α·n/(n − 1)·m + ε)) = √((n − 1)/(α·n)) · d / √(m + ε·(n − 1)/(α·n)).

    Raises:
        RefusedError: ε does not stand inside of a square root.
    """
    found = site.standardize
    if found.place != "inside" and found.epsilon:
        raise RefusedError("ε does not stand inside of the root")
    if found.place == "clamp":
        raise RefusedError("LpNormalization makes zeros of a row of zeros, a division by a root does not")
    if found.exponent != 0.5 or found.order != 2 or found.window is not None:
        raise OtherFormError("it does not divide by a square root")
    ratio = found.alpha
    count = found.count(site.dims)
    if found.ddof:
        if count is None:
            raise RefusedError("the number of elements of its variance is not known")
        ratio *= count / (count - found.ddof)
    if found.total:
        if count is None:
            raise RefusedError("the number of elements of its sum is not known")
        ratio *= count
    return (
        Standardize(
            found.axes, found.epsilon / ratio, centred=found.centred, groups=found.groups, channel=found.channel
        ),
        float(ratio**-0.5),
    )


def operator_root(site: NormSite) -> tuple[Standardize, float]:
    """The same for an operator that holds ε as an attribute, which is a float32.

    Raises:
        RefusedError: ε does not stand inside of a square root, or is another number in float32.
    """
    root, factor = plain_root(site)
    rounded = float(np.float32(root.epsilon))
    if site.dtype == ir.DataType.DOUBLE and rounded != root.epsilon:
        raise RefusedError("the attribute epsilon is a float32, which is another number than the ε of a float64 model")
    return root, factor


def scaled(operand: Operand | None, factor: float) -> Operand | None:
    """γ times a number.

    Raises:
        RefusedError: γ is computed.
    """
    if factor == 1.0:
        return operand
    if operand is None:
        return Operand(np.asarray(factor))
    if operand.array is None:
        raise RefusedError("its γ is computed, and its variance is not the mean of squares")
    return Operand(operand.array * factor)


def vector(
    operand: Operand | None,
    neutral: float,
    axes: Sequence[int],
    dims: Sequence[Dim],
    emitter: Emitter,
    dtype: ir.DataType,
) -> ir.Value | None:
    """γ or β of the dimensions that some axes have, as a constant or the value that holds it; None if of others."""
    sizes = [dims[axis] for axis in axes]
    if not all(isinstance(size, int) for size in sizes):
        return None
    wanted = [int(size) for size in sizes if isinstance(size, int)]
    if operand is None:
        return emitter.constant(filled(wanted, neutral), dtype, "weight" if neutral else "bias")
    if operand.array is None:
        return _computed_vector(operand, axes)
    array = operand.array.reshape((1,) * (len(dims) - operand.array.ndim) + operand.array.shape)
    if any(size != 1 for axis, size in enumerate(array.shape) if axis not in axes):
        return None
    own = array.reshape([array.shape[axis] for axis in axes])
    if any(size not in (1, one) for size, one in zip(own.shape, wanted, strict=True)):
        return None  # of a model whose shapes contradict one another
    return emitter.constant(np.broadcast_to(own, wanted).copy(), dtype, "weight" if neutral else "bias")


def is_along(operand: Operand | None, axes: Sequence[int], rank: int) -> bool:
    """Whether γ or β is absent, or varies along some axes only; a computed one must have their dimensions."""
    if operand is None:
        return True
    if operand.array is None:
        return _computed_vector(operand, axes) is not None
    shape = (1,) * (rank - operand.array.ndim) + operand.array.shape
    return all(size == 1 for axis, size in enumerate(shape) if axis not in axes)


def _computed_vector(operand: Operand, axes: Sequence[int]) -> ir.Value | None:
    """A computed γ or β that has the dimensions of some axes; a dimension of 1 may be broadcast, others may not."""
    parameter = operand.parameter
    if parameter is None or parameter.repeats != 1 or parameter.axes != tuple(axes):
        return None
    sizes = known_dims(parameter.value)
    return parameter.value if all(isinstance(size, int) and size != 1 for size in sizes) else None


def affine(site: NormSite, value: ir.Value, scale: Operand | None, bias: Operand | None, emitter: Emitter) -> ir.Value:
    """γ · y + β behind a value, as Mul and Add."""
    for operator, operand in (("Mul", scale), ("Add", bias)):
        if operand is not None:
            value = emitter.op(operator, value, _broadcast(operand, site, emitter), dims=site.dims)
    return value


def _broadcast(operand: Operand, site: NormSite, emitter: Emitter) -> ir.Value:
    if operand.array is not None:
        array: Float64 = operand.array
        while array.ndim and array.shape[0] == 1:
            array = array[0]
        return emitter.constant(array, site.dtype)
    parameter = operand.parameter
    assert parameter is not None
    own, rank = known_dims(parameter.value), site.rank
    if parameter.repeats != 1:
        raise RefusedError("its γ or β holds for groups and is computed")
    if parameter.axes == tuple(range(rank - len(own), rank)):
        return parameter.value
    if len(own) != 1:
        raise RefusedError("its γ or β is computed and stands along other axes")
    behind = rank - 1 - parameter.axes[0]
    return emitter.op(
        "Reshape", parameter.value, emitter.integers([-1, *([1] * behind)]), dims=[own[0], *([1] * behind)]
    )


def batch_norm(
    site: NormSite, value: ir.Value, scale: Operand | None, bias: Operand | None, emitter: Emitter
) -> ir.Value:
    """γ · y + β behind a value, as one BatchNormalization(γ, β, 0, 1, ε = 0) where both stand along the channels."""
    channels = site.dims[1] if site.rank > 1 else None
    fits = is_along(scale, (1,), site.rank) and is_along(bias, (1,), site.rank)
    if (scale is None and bias is None) or not fits or not isinstance(channels, int):
        return affine(site, value, scale, bias, emitter)
    if site.dtype not in (ir.DataType.FLOAT, ir.DataType.DOUBLE) or site.weights.opset < 9:
        return affine(site, value, scale, bias, emitter)
    gamma = vector(scale, 1.0, (1,), site.dims, emitter, site.dtype)
    beta = vector(bias, 0.0, (1,), site.dims, emitter, site.dtype)
    mean = emitter.constant(filled([channels], 0.0), site.dtype, "mean")
    variance = emitter.constant(filled([channels], 1.0), site.dtype, "variance")
    return emitter.op("BatchNormalization", value, gamma, beta, mean, variance, dims=site.dims, epsilon=0.0)


def back(site: NormSite, value: ir.Value, emitter: Emitter, leading: int = 1) -> ir.Value:
    """A value of as many elements as x, in the dimensions of x, whose first `leading` ones it has already."""
    shape = [dim if isinstance(dim, int) else 0 if axis < leading else -1 for axis, dim in enumerate(site.dims)]
    if shape.count(-1) > 1:
        computed = emitter.op("Shape", site.data, dims=[site.rank], dtype=ir.DataType.INT64)
        return emitter.op("Reshape", value, computed, dims=site.dims)
    return emitter.op("Reshape", value, emitter.integers(shape), dims=site.dims)


def filled(shape: Sequence[int], number: float) -> Float64:
    """An array of one number.

    Raises:
        RefusedError: it would have more than `MOST` elements.
    """
    if math.prod(shape) > MOST:
        raise RefusedError(f"it takes a constant of {math.prod(shape):,} equal numbers, more than {MOST:,}")
    return np.full(tuple(shape), number)


def ones(size: int, emitter: Emitter, dtype: ir.DataType) -> ir.Value:
    """A constant vector of ones."""
    return emitter.constant(filled([size], 1.0), dtype, "ones")


def zeros(size: int, emitter: Emitter, dtype: ir.DataType) -> ir.Value:
    """A constant vector of zeros."""
    return emitter.constant(filled([size], 0.0), dtype, "zeros")


def product(dims: Sequence[Dim]) -> int | None:
    """How many elements some dimensions hold; None where one is not known."""
    result = 1
    for dim in dims:
        if not isinstance(dim, int):
            return None
        result *= dim
    return result


def laid(site: NormSite, sets: int) -> list[int]:
    """The shape (N, sets, size) for a Reshape of x.

    −1 stands where the size is not known alone: of an empty batch, which detectors have that find nothing, no −1 can
    be inferred.
    """
    size = product(site.dims[1:])
    return [0, sets, -1 if size is None else size // sets]

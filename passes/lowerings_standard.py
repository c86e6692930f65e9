"""Laws of LOWER that write standard operators: each takes a site and returns y, or refuses."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from normfuse.passes.access import Dim, RefusedError, dims
from normfuse.passes.emitter import Emitter
from normfuse.passes.lowering import NormSite, Operand, OtherFormError
from normfuse.passes.lowering_forms import (
    affine,
    back,
    batch_norm,
    filled,
    is_along,
    ones,
    operator_root,
    plain_root,
    product,
    scaled,
    vector,
    zeros,
)
from normfuse.target import CUDA_OPSET, Target

_ANY_FLOAT = (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_INSTANCE_FLOAT = (ir.DataType.FLOAT, ir.DataType.FLOAT16)


_SMALL_ALPHA = 2e-4
"""α / k up to which LRN is as accurate as its definition: measured up to values of 100, and with heavy tails."""


def _form(condition: bool, reason: str) -> None:
    """A condition on what is computed; where it does not hold, the row is for something else."""
    if not condition:
        raise OtherFormError(reason)


def _need(condition: bool, reason: str) -> None:
    if not condition:
        raise RefusedError(reason)


def _same_precision(site: NormSite) -> None:
    """InstanceNormalization and GroupNormalization have statistics of the dtype of x."""
    wide = site.standardize.dtype
    _need(wide is None or wide == site.dtype, "its statistics are computed in another dtype")


def _not_by_layer_norm(site: NormSite) -> None:
    """Sums in float32 lose accuracy at large means, as those of LayerNormalization do not."""
    _need("LayerNormalization" not in site.operators, "it is a LayerNormalization, which is more accurate")


def _has_layer_norm(site: NormSite, target: Target) -> None:
    """ONNX Runtime has LayerNormalization in the default domain since opset 1: it is what it fuses its nodes to."""
    has = site.weights.opset >= 17 or target.provider != "portable"
    _need(has, f"opset {site.weights.opset} has no LayerNormalization, opset 17 has")


def _has_instance_norm(site: NormSite, target: Target) -> None:
    """A kernel that is registered for one version of an operator serves no later one."""
    has = target.provider != "cuda" or site.weights.opset <= CUDA_OPSET
    _need(has, f"ONNX Runtime has no InstanceNormalization on CUDA above opset {CUDA_OPSET}")


def layer_norm(site: NormSite, emitter: Emitter, target: Target) -> ir.Value:
    """LayerNormalization(x, γ, β) over the last axes; γ or β that do not stand along them follow as Mul and Add."""
    root, factor = operator_root(site)
    axis = root.axes[0]
    _form(root.centred and root.groups is None, "it is no LayerNorm")
    _form(root.axes == tuple(range(axis, site.rank)), "its axes are not the last ones")
    _has_layer_norm(site, target)
    _need(site.dtype in _ANY_FLOAT, "its dtype")
    stash = site.standardize.dtype or site.dtype
    _need(stash in (ir.DataType.FLOAT, site.dtype), "its statistics are computed in another dtype")
    scale, bias = scaled(site.scale, factor), site.bias
    whole = is_along(scale, root.axes, site.rank)
    gamma = vector(scale if whole else None, 1.0, root.axes, site.dims, emitter, site.dtype)
    _need(gamma is not None, "the size of its last axes is not known")
    joins = whole and bias is not None and is_along(bias, root.axes, site.rank)
    beta = vector(bias, 0.0, root.axes, site.dims, emitter, site.dtype) if joins else None
    inputs = (site.data, gamma) if beta is None else (site.data, gamma, beta)
    value = emitter.op("LayerNormalization", *inputs, dims=site.dims, axis=axis - site.rank, epsilon=root.epsilon)
    return affine(site, value, None if whole else scale, None if joins else bias, emitter)


def rms_norm(site: NormSite, emitter: Emitter, target: Target) -> ir.Value:
    """RMSNormalization(x, γ) over the last axes, from opset 23 on; SimplifiedLayerNormalization below."""
    root, factor = operator_root(site)
    axis = root.axes[0]
    _form(not root.centred and root.groups is None, "it is no RMSNorm")
    _form(root.axes == tuple(range(axis, site.rank)), "its axes are not the last ones")
    standard = site.weights.opset >= 23
    _need(
        standard or target.provider != "portable", f"opset {site.weights.opset} has no RMSNormalization, opset 23 has"
    )
    _need(standard or axis == site.rank - 1, "SimplifiedLayerNormalization is for the last axis")
    _need(site.dtype in _ANY_FLOAT[:3], "its dtype")
    stash = site.standardize.dtype or site.dtype
    _need(stash in (ir.DataType.FLOAT, site.dtype), "its statistics are computed in another dtype")
    scale = scaled(site.scale, factor)
    whole = is_along(scale, root.axes, site.rank)
    gamma = vector(scale if whole else None, 1.0, root.axes, site.dims, emitter, site.dtype)
    _need(gamma is not None, "the size of its last axes is not known")
    name = "RMSNormalization" if standard else "SimplifiedLayerNormalization"
    value = emitter.op(name, site.data, gamma, dims=site.dims, axis=axis - site.rank, epsilon=root.epsilon)
    return affine(site, value, None if whole else scale, site.bias, emitter)


def instance_norm(site: NormSite, emitter: Emitter, target: Target) -> ir.Value:
    """InstanceNormalization(x, γ, β) over the spatial axes."""
    root, factor = operator_root(site)
    _same_precision(site)
    _has_instance_norm(site, target)
    _form(root.centred and root.groups is None and site.rank > 2, "it is no InstanceNorm")
    _form(root.axes == tuple(range(2, site.rank)), "its axes are not the spatial ones")
    _not_by_layer_norm(site)
    _need(site.dtype in _INSTANCE_FLOAT, "ONNX Runtime has no InstanceNormalization of its dtype")
    channels = site.dims[1]
    _need(isinstance(channels, int), "the number of its channels is not known")
    scale, bias = scaled(site.scale, factor), site.bias
    scales = is_along(scale, (1,), site.rank)
    shifts = scales and is_along(bias, (1,), site.rank)
    gamma = vector(scale if scales else None, 1.0, (1,), site.dims, emitter, site.dtype)
    beta = vector(bias if shifts else None, 0.0, (1,), site.dims, emitter, site.dtype)
    if not shifts and _are_per_image(site, (scale, bias), target):
        return _by_image(site, root.epsilon, (scale, bias), emitter)
    value = emitter.op("InstanceNormalization", site.data, gamma, beta, dims=site.dims, epsilon=root.epsilon)
    return affine(site, value, None if scales else scale, None if shifts else bias, emitter)


def _are_per_image(site: NormSite, operands: tuple[Operand | None, ...], target: Target) -> bool:
    """Whether γ and β are computed for each image; several are laid side by side where that was measured."""
    images = site.dims[0]
    if images != 1 and (target.provider != "cpu" or (None in operands and not isinstance(images, int))):
        return False
    return all(operand is None or _is_per_image(site, operand) for operand in operands)


def _is_per_image(site: NormSite, operand: Operand) -> bool:
    """Whether γ or β is computed as (N, C, 1, …): AdaIN."""
    if operand.parameter is None or operand.parameter.repeats != 1:
        return False
    own, axes, (images, channels, *spatial) = dims(operand.parameter.value), operand.parameter.axes, site.dims
    if own is None or images is None or axes != tuple(sorted(axes)):
        return False
    whole: list[Dim] = [1] * site.rank
    for axis, size in zip(axes, own, strict=True):
        whole[axis] = size
    return whole == [images, channels, *([1] * len(spatial))]


def _by_image(site: NormSite, epsilon: float, operands: tuple[Operand | None, ...], emitter: Emitter) -> ir.Value:
    """InstanceNormalization(x, γ, β) with computed γ and β of each image: N images of C channels are one of N · C."""
    images, channels = site.dims[:2]
    assert isinstance(channels, int)
    count = images * channels if isinstance(images, int) else None
    vectors = []
    for operand, neutral in zip(operands, (1.0, 0.0), strict=True):
        if operand is not None and operand.parameter is not None:
            value, flat = operand.parameter.value, [channels] if images == 1 else [-1]
            is_flat = len(operand.parameter.axes) == 1
            vectors.append(value if is_flat else emitter.op("Reshape", value, emitter.integers(flat), dims=[count]))
        else:
            assert count is not None
            vectors.append(emitter.constant(filled([count], neutral), site.dtype, "weight" if neutral else "bias"))
    kept = [0] * (site.rank - 2)
    data = site.data
    if images != 1:
        data = emitter.op("Reshape", data, emitter.integers([1, -1, *kept]), dims=[1, count, *site.dims[2:]])
    value = emitter.op("InstanceNormalization", data, *vectors, epsilon=epsilon)
    if images != 1:
        value = emitter.op("Reshape", value, emitter.integers([-1, channels, *kept]), dims=site.dims)
    return value


def group_norm(site: NormSite, emitter: Emitter, target: Target) -> ir.Value:
    """GroupNormalization(x, γ, β), from opset 21 on."""
    root, factor = operator_root(site)
    _same_precision(site)
    _form(root.centred and root.axes == tuple(range(1, site.rank)) and site.rank > 2, "it is no GroupNorm")
    _form(root.groups is not None and root.channel == 1, "it has no groups of channels")
    _need(site.weights.opset >= 21, f"opset {site.weights.opset} has no GroupNormalization per channel, opset 21 has")
    kept = site.norm.node.op_type == "GroupNormalization" or site.standardize.cancels
    _need(kept, "ONNX Runtime computes GroupNormalization by E[x²] − E[x]², which loses accuracy at large means")
    channels = site.dims[1]
    _need(isinstance(channels, int), "the number of its channels is not known")
    scale, bias = scaled(site.scale, factor), site.bias
    scales = is_along(scale, (1,), site.rank)
    shifts = scales and is_along(bias, (1,), site.rank)
    gamma = vector(scale if scales else None, 1.0, (1,), site.dims, emitter, site.dtype)
    beta = vector(bias if shifts else None, 0.0, (1,), site.dims, emitter, site.dtype)
    value = emitter.op(
        "GroupNormalization", site.data, gamma, beta, dims=site.dims, num_groups=root.groups, epsilon=root.epsilon
    )
    return affine(site, value, None if scales else scale, None if shifts else bias, emitter)


def _sets(site: NormSite, groups: int | None, axes: tuple[int, ...]) -> tuple[list[int], int]:
    """The shape (N, sets, size) that lays each set of a group or of trailing axes in a row, and the number of sets."""
    if groups is not None:
        _form(site.standardize.channel == 1, "its groups are not of channels and all that follows")
        _form(axes == tuple(range(1, site.rank)), "its groups are not of channels and all that follows")
        return _laid(site, groups), groups
    _form(axes == tuple(range(axes[0], site.rank)) and axes[0] > 0, "its axes are not the last ones")
    if axes[0] == 1:
        return _laid(site, 1), 1
    sets = product(site.dims[1 : axes[0]])
    _need(sets is not None, "the number of its rows is not known")
    assert sets is not None
    return _laid(site, sets), sets


def _laid(site: NormSite, sets: int) -> list[int]:
    """The shape (N, sets, size) for a Reshape of x.

    −1 stands where the size is not known alone: of an empty batch, which detectors have that find nothing, no −1 can
    be inferred.
    """
    size = product(site.dims[1:])
    return [0, sets, -1 if size is None else size // sets]


def by_instance_norm(site: NormSite, emitter: Emitter, target: Target) -> ir.Value:
    """Reshape (N, G, size) → InstanceNormalization(1, 0) → Reshape → γ, β."""
    root, factor = operator_root(site)
    _same_precision(site)
    _has_instance_norm(site, target)
    _form(root.centred, "it subtracts no mean")
    _need(site.dtype in _INSTANCE_FLOAT, "ONNX Runtime has no InstanceNormalization of its dtype")
    _not_by_layer_norm(site)
    shape, sets = _sets(site, root.groups, root.axes)
    scale = scaled(site.scale, factor)
    rows = emitter.op("Reshape", site.data, emitter.integers(shape), dims=[site.dims[0], sets, None])
    one, zero = ones(sets, emitter, site.dtype), zeros(sets, emitter, site.dtype)
    value = emitter.op("InstanceNormalization", rows, one, zero, epsilon=root.epsilon)
    value = back(site, value, emitter)
    if target.provider == "cpu":
        return batch_norm(site, value, scale, site.bias, emitter)
    return affine(site, value, scale, site.bias, emitter)


def by_layer_norm(site: NormSite, emitter: Emitter, target: Target) -> ir.Value:
    """Reshape (N, G, size) → LayerNormalization(1) → Reshape → Mul → Add."""
    root, factor = operator_root(site)
    _form(root.centred, "it subtracts no mean")
    _has_layer_norm(site, target)
    stash = site.standardize.dtype or site.dtype
    _need(stash in (ir.DataType.FLOAT, site.dtype), "its statistics are computed in another dtype")
    shape, sets = _sets(site, root.groups, root.axes)
    size = product(site.dims[1:])
    _need(size is not None, "the size of its sets is not known")
    assert size is not None
    scale = scaled(site.scale, factor)
    rows = emitter.op("Reshape", site.data, emitter.integers(shape), dims=[site.dims[0], sets, size // sets])
    value = emitter.op(
        "LayerNormalization", rows, ones(size // sets, emitter, site.dtype), axis=-1, epsilon=root.epsilon
    )
    return affine(site, back(site, value, emitter), scale, site.bias, emitter)


def by_transposes(site: NormSite, emitter: Emitter, target: Target) -> ir.Value:
    """Transpose → LayerNormalization or SimplifiedLayerNormalization → Transpose, for one axis that is not the last."""
    root, factor = operator_root(site)
    _form(root.groups is None and len(root.axes) == 1 and root.axes[0] < site.rank - 1, "its axis is the last one")
    axis = root.axes[0]
    if root.centred:
        _has_layer_norm(site, target)
    else:
        _need(target.provider != "portable" or site.weights.opset >= 23, "there is no RMSNormalization below opset 23")
    _need(site.standardize.dtype in (None, site.dtype, ir.DataType.FLOAT), "its statistics are of another dtype")
    scale, bias = scaled(site.scale, factor), site.bias
    whole = is_along(scale, (axis,), site.rank)
    joins = whole and root.centred and bias is not None and is_along(bias, (axis,), site.rank)
    gamma = vector(scale if whole else None, 1.0, (axis,), site.dims, emitter, site.dtype)
    _need(gamma is not None, "the number of its channels is not known")
    beta = vector(bias, 0.0, (axis,), site.dims, emitter, site.dtype) if joins else None
    order = [place for place in range(site.rank) if place != axis] + [axis]
    inverse = [int(place) for place in np.argsort(order)]
    name = "LayerNormalization" if root.centred else _rms_name(site)
    turned = emitter.op("Transpose", site.data, dims=[site.dims[place] for place in order], perm=order)
    inputs = (turned, gamma) if beta is None else (turned, gamma, beta)
    value = emitter.op(name, *inputs, axis=-1, epsilon=root.epsilon)
    value = emitter.op("Transpose", value, dims=site.dims, perm=inverse)
    return affine(site, value, None if whole else scale, None if joins else bias, emitter)


def _rms_name(site: NormSite) -> str:
    return "RMSNormalization" if site.weights.opset >= 23 else "SimplifiedLayerNormalization"


def by_products(site: NormSite, emitter: Emitter, target: Target) -> ir.Value:
    """Channels first: E over C as a product with a row of 1/C; d · 1/√(E[d²] + ε).

    m = r·x, d = x − m, v = r·d², with r = (1/C … 1/C) and x as (N, C, size), which three dimensions are already.
    """
    root, factor = plain_root(site)
    is_one = root.centred and root.axes == (1,) and root.groups is None
    _form(is_one and site.rank > 2, "it is no LayerNorm over the channels")
    _not_by_layer_norm(site)
    _need(site.dtype == ir.DataType.FLOAT and site.standardize.dtype in (None, site.dtype), "its dtype is not float32")
    channels = site.dims[1]
    _need(isinstance(channels, int), "the number of its channels is not known")
    assert isinstance(channels, int)
    inner = product(site.dims[2:])
    scale = scaled(site.scale, factor)
    row = emitter.constant(filled((1, channels), 1.0 / channels), site.dtype, "row")
    rows, is_flat = site.data, site.rank == 3
    if not is_flat:
        shape = emitter.integers(_laid(site, channels))
        rows = emitter.op("Reshape", site.data, shape, dims=[site.dims[0], channels, inner])
    mean = emitter.op("MatMul", row, rows, dims=[site.dims[0], 1, inner])
    centred = emitter.op("Sub", rows, mean)
    variance = emitter.op("MatMul", row, emitter.op("Mul", centred, centred), dims=[site.dims[0], 1, inner])
    root_of = emitter.op("Sqrt", emitter.op("Add", variance, emitter.constant(np.asarray(root.epsilon), site.dtype)))
    value = emitter.op("Mul", centred, emitter.op("Reciprocal", root_of))
    value = value if is_flat else back(site, value, emitter)
    if target.threads == 1:
        return batch_norm(site, value, scale, site.bias, emitter)
    return affine(site, value, scale, site.bias, emitter)


def local_response(site: NormSite, emitter: Emitter, target: Target) -> ir.Value:
    """LRN(x): 4-D, odd window."""
    found = site.standardize
    _form(found.window is not None, "it is no LRN")
    assert found.window is not None
    before, after = found.window
    _need(before == after, "its window is even; LRN puts an even one elsewhere")
    _form(found.channel == 1, "its window is not one of channels")
    _need(site.rank == 4, "LRN runs on four dimensions")
    _need(found.dtype in (None, site.dtype), "its statistics are of another dtype")
    _form(found.place == "inside" and found.order == 2, "it is no LRN")
    _need(found.alpha > 0.0 and found.exponent > 0.0, "LRN takes α and β above 0 only")
    exact = all(float(np.float32(number)) == number for number in (found.alpha, found.exponent, found.epsilon))
    _need(site.dtype != ir.DataType.DOUBLE or exact, "α, β or k of a float64 model are no float32 attributes")
    cuda = target.provider == "cuda"
    _need(not cuda or before + after + 1 <= 16, "cuDNN sums over 16 channels at most")
    _need(not cuda or (found.exponent >= 0.01 and found.epsilon >= 1e-5), "cuDNN takes β from 0.01 and k from 1e-5 on")
    keeps = target.provider != "portable" or "LRN" in site.operators or found.alpha <= _SMALL_ALPHA * found.epsilon
    _need(keeps, "ONNX Runtime adds and subtracts squares as the window moves, which loses accuracy for large α / k")
    size = before + after + 1
    value = emitter.op(
        "LRN", site.data, dims=site.dims, size=size, alpha=found.alpha, beta=found.exponent, bias=found.epsilon
    )
    return affine(site, value, site.scale, site.bias, emitter)


def by_window(site: NormSite, emitter: Emitter, target: Target) -> ir.Value:
    """LRN with its sum over the window by Conv: x / d^β with d = k + Σ α/n · x².

    β = ½ is √d and β = ¾ is √d · √√d, which are much faster than Pow. The channels become the depth of the Conv, whose
    one filter holds n times α/n, with k as its bias: (N, 1, C, H, W).

    ONNX Runtime 1.32 computes an AveragePool of opset 19 or later 5 to 10 times slower.
    """
    found = site.standardize
    _form(found.window is not None, "it is no LRN")
    assert found.window is not None
    before, after = found.window
    _form(found.channel == 1 and site.rank >= 3, "its window is not one of channels")
    _need(site.dtype == ir.DataType.FLOAT and found.dtype in (None, site.dtype), "its dtype is not float32")
    channels, size = site.dims[1], before + after + 1
    _form(size >= 1, "its window is empty")
    _need(isinstance(channels, int), "the number of its channels is not known")
    assert isinstance(channels, int)
    square = emitter.op("Mul", site.data, site.data)
    flat = site.rank != 4
    inner = [1] if flat else [1, 1]
    if flat:
        dims: list[Dim] = [site.dims[0], 1, channels, product(site.dims[2:])]
        images, *rest = _laid(site, channels)
        rows = emitter.op("Reshape", square, emitter.integers([images, 1, *rest]), dims=dims)
    else:
        rows = _with_axis("Unsqueeze", square, [site.dims[0], 1, *site.dims[1:]], site, emitter)
    weight = emitter.constant(filled((1, 1, size, *inner), found.alpha / size), site.dtype, "window")
    still = [0] * len(inner)
    bias = emitter.constant(np.asarray([found.epsilon]), site.dtype, "bias")
    pads = [before, *still, after, *still]
    grown = emitter.op("Conv", rows, weight, bias, kernel_shape=[size, *inner], pads=pads)
    grown = back(site, grown, emitter) if flat else _with_axis("Squeeze", grown, site.dims, site, emitter)
    value = emitter.op("Div", site.data, _power(grown, found.exponent, site, emitter))
    return affine(site, value, site.scale, site.bias, emitter)


def _with_axis(operator: str, value: ir.Value, sizes: Sequence[Dim], site: NormSite, emitter: Emitter) -> ir.Value:
    """Squeeze or Unsqueeze of axis 1."""
    if site.weights.opset >= 13:
        return emitter.op(operator, value, emitter.integers([1], "axes"), dims=sizes)
    return emitter.op(operator, value, dims=sizes, axes=[1])


def _power(value: ir.Value, exponent: float, site: NormSite, emitter: Emitter) -> ir.Value:
    """v^β by square roots where β is a sum of 1, ½ and ¼."""
    root = quarter = None
    if exponent in (0.5, 0.75):
        root = emitter.op("Sqrt", value)
    if exponent == 0.5:
        assert root is not None
        return root
    if exponent == 0.75:
        assert root is not None
        quarter = emitter.op("Sqrt", root)
        return emitter.op("Mul", root, quarter)
    if exponent == 1.0:
        return value
    return emitter.op("Pow", value, emitter.constant(np.asarray(exponent), site.dtype))


def two_pass(site: NormSite, emitter: Emitter, target: Target) -> ir.Value:
    """d = x − E[x], d / σ with σ from E[d²], in nodes: for a variance that was E[x²] − E[x]²."""
    found = site.standardize
    _form(found.cancels and found.centred and found.groups is None, "its variance is computed in two passes already")
    _need(found.dtype in (None, site.dtype) and found.order == 2, "its statistics are of another dtype")
    count = found.count(site.dims)
    _need(not found.ddof or count is not None, "the number of elements of its variance is not known")
    kept = [1 if axis in found.axes else dim for axis, dim in enumerate(site.dims)]

    def mean(value: ir.Value) -> ir.Value:
        if site.weights.opset >= 18:
            return emitter.op("ReduceMean", value, emitter.integers(found.axes, "axes"), dims=kept, keepdims=1)
        return emitter.op("ReduceMean", value, dims=kept, axes=list(found.axes), keepdims=1)

    def number(value: float) -> ir.Value:
        return emitter.constant(np.asarray(value), site.dtype)

    centred = emitter.op("Sub", site.data, mean(site.data), dims=site.dims)
    spread = mean(emitter.op("Mul", centred, centred))
    ratio = found.alpha * (count / (count - found.ddof) if found.ddof and count else 1.0)
    if ratio != 1.0:
        spread = emitter.op("Mul", spread, number(ratio))
    if found.place == "inside":
        divisor = emitter.op("Sqrt", emitter.op("Add", spread, number(found.epsilon)))
    else:
        _need(found.exponent == 0.5, "its exponent")
        operator = "Add" if found.place == "outside" else "Max"
        divisor = emitter.op(operator, emitter.op("Sqrt", spread), number(found.epsilon))
    value = emitter.op("Div", centred, divisor, dims=site.dims)
    return affine(site, value, site.scale, site.bias, emitter)


def lp_norm(site: NormSite, emitter: Emitter, target: Target) -> ir.Value:
    """LpNormalization(x) along one axis, where no ε guards the division or the op itself stood there."""
    found = site.standardize
    _form(found.total and not found.centred and len(found.axes) == 1, "it is no Lp normalization")
    _form(found.epsilon == 0.0, "LpNormalization has no ε")
    _need(found.dtype in (None, site.dtype), "its statistics are of another dtype")
    _need(site.norm.node.op_type == "LpNormalization", "LpNormalization makes zeros of a row of zeros, this does not")
    value = emitter.op("LpNormalization", site.data, dims=site.dims, axis=found.axes[0], p=found.order)
    return affine(site, value, site.scale, site.bias, emitter)

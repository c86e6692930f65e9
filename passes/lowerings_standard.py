"""Laws of LOWER that write standard operators: each takes a site and returns y, or refuses."""

import numpy as np
import onnx_ir as ir

from normfuse.passes.access import Dim, dims
from normfuse.passes.emitter import Emitter
from normfuse.passes.lowering import NormSite, Operand
from normfuse.passes.lowering_forms import (
    affine,
    back,
    batch_norm,
    filled,
    form,
    is_along,
    laid,
    need,
    not_by_layer_norm,
    ones,
    operator_root,
    product,
    scaled,
    vector,
    zeros,
)
from normfuse.target import CUDA_OPSET, Target

_ANY_FLOAT = (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_INSTANCE_FLOAT = (ir.DataType.FLOAT, ir.DataType.FLOAT16)


def _same_precision(site: NormSite) -> None:
    """InstanceNormalization and GroupNormalization have statistics of the dtype of x."""
    wide = site.standardize.dtype
    need(wide is None or wide == site.dtype, "its statistics are computed in another dtype")


def _has_layer_norm(site: NormSite, target: Target) -> None:
    """ONNX Runtime has LayerNormalization in the default domain since opset 1: it is what it fuses its nodes to."""
    has = site.weights.opset >= 17 or target.provider != "portable"
    need(has, f"opset {site.weights.opset} has no LayerNormalization, opset 17 has")


def _has_instance_norm(site: NormSite, target: Target) -> None:
    """A kernel that is registered for one version of an operator serves no later one."""
    has = target.provider != "cuda" or site.weights.opset <= CUDA_OPSET
    need(has, f"ONNX Runtime has no InstanceNormalization on CUDA above opset {CUDA_OPSET}")


def layer_norm(site: NormSite, emitter: Emitter, target: Target) -> ir.Value:
    """LayerNormalization(x, γ, β) over the last axes; γ or β that do not stand along them follow as Mul and Add."""
    root, factor = operator_root(site)
    axis = root.axes[0]
    form(root.centred and root.groups is None, "it is no LayerNorm")
    form(root.axes == tuple(range(axis, site.rank)), "its axes are not the last ones")
    _has_layer_norm(site, target)
    need(site.dtype in _ANY_FLOAT, "its dtype")
    stash = site.standardize.dtype or site.dtype
    need(stash in (ir.DataType.FLOAT, site.dtype), "its statistics are computed in another dtype")
    scale, bias = scaled(site.scale, factor), site.bias
    whole = is_along(scale, root.axes, site.rank)
    gamma = vector(scale if whole else None, 1.0, root.axes, site.dims, emitter, site.dtype)
    need(gamma is not None, "the size of its last axes is not known")
    joins = whole and bias is not None and is_along(bias, root.axes, site.rank)
    beta = vector(bias, 0.0, root.axes, site.dims, emitter, site.dtype) if joins else None
    inputs = (site.data, gamma) if beta is None else (site.data, gamma, beta)
    value = emitter.op("LayerNormalization", *inputs, dims=site.dims, axis=axis - site.rank, epsilon=root.epsilon)
    return affine(site, value, None if whole else scale, None if joins else bias, emitter)


def rms_norm(site: NormSite, emitter: Emitter, target: Target) -> ir.Value:
    """RMSNormalization(x, γ) over the last axes, from opset 23 on; SimplifiedLayerNormalization below."""
    root, factor = operator_root(site)
    axis = root.axes[0]
    form(not root.centred and root.groups is None, "it is no RMSNorm")
    form(root.axes == tuple(range(axis, site.rank)), "its axes are not the last ones")
    standard = site.weights.opset >= 23
    need(standard or target.provider != "portable", f"opset {site.weights.opset} has no RMSNormalization, opset 23 has")
    need(standard or axis == site.rank - 1, "SimplifiedLayerNormalization is for the last axis")
    need(site.dtype in _ANY_FLOAT[:3], "its dtype")
    stash = site.standardize.dtype or site.dtype
    need(stash in (ir.DataType.FLOAT, site.dtype), "its statistics are computed in another dtype")
    scale = scaled(site.scale, factor)
    whole = is_along(scale, root.axes, site.rank)
    gamma = vector(scale if whole else None, 1.0, root.axes, site.dims, emitter, site.dtype)
    need(gamma is not None, "the size of its last axes is not known")
    name = "RMSNormalization" if standard else "SimplifiedLayerNormalization"
    value = emitter.op(name, site.data, gamma, dims=site.dims, axis=axis - site.rank, epsilon=root.epsilon)
    return affine(site, value, None if whole else scale, site.bias, emitter)


def instance_norm(site: NormSite, emitter: Emitter, target: Target) -> ir.Value:
    """InstanceNormalization(x, γ, β) over the spatial axes."""
    root, factor = operator_root(site)
    _same_precision(site)
    _has_instance_norm(site, target)
    form(root.centred and root.groups is None and site.rank > 2, "it is no InstanceNorm")
    form(root.axes == tuple(range(2, site.rank)), "its axes are not the spatial ones")
    not_by_layer_norm(site)
    need(site.dtype in _INSTANCE_FLOAT, "ONNX Runtime has no InstanceNormalization of its dtype")
    channels = site.dims[1]
    need(isinstance(channels, int), "the number of its channels is not known")
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
    form(root.centred and root.axes == tuple(range(1, site.rank)) and site.rank > 2, "it is no GroupNorm")
    form(root.groups is not None and root.channel == 1, "it has no groups of channels")
    need(site.weights.opset >= 21, f"opset {site.weights.opset} has no GroupNormalization per channel, opset 21 has")
    kept = site.norm.node.op_type == "GroupNormalization" or site.standardize.cancels
    need(kept, "ONNX Runtime computes GroupNormalization by E[x²] − E[x]², which loses accuracy at large means")
    channels = site.dims[1]
    need(isinstance(channels, int), "the number of its channels is not known")
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
        form(site.standardize.channel == 1, "its groups are not of channels and all that follows")
        form(axes == tuple(range(1, site.rank)), "its groups are not of channels and all that follows")
        return laid(site, groups), groups
    form(axes == tuple(range(axes[0], site.rank)) and axes[0] > 0, "its axes are not the last ones")
    if axes[0] == 1:
        return laid(site, 1), 1
    sets = product(site.dims[1 : axes[0]])
    need(sets is not None, "the number of its rows is not known")
    assert sets is not None
    return laid(site, sets), sets


def by_instance_norm(site: NormSite, emitter: Emitter, target: Target) -> ir.Value:
    """Reshape (N, G, size) → InstanceNormalization(1, 0) → Reshape → γ, β."""
    root, factor = operator_root(site)
    _same_precision(site)
    _has_instance_norm(site, target)
    form(root.centred, "it subtracts no mean")
    need(site.dtype in _INSTANCE_FLOAT, "ONNX Runtime has no InstanceNormalization of its dtype")
    not_by_layer_norm(site)
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
    form(root.centred, "it subtracts no mean")
    _has_layer_norm(site, target)
    stash = site.standardize.dtype or site.dtype
    need(stash in (ir.DataType.FLOAT, site.dtype), "its statistics are computed in another dtype")
    shape, sets = _sets(site, root.groups, root.axes)
    size = product(site.dims[1:])
    need(size is not None, "the size of its sets is not known")
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
    form(root.groups is None and len(root.axes) == 1 and root.axes[0] < site.rank - 1, "its axis is the last one")
    axis = root.axes[0]
    if root.centred:
        _has_layer_norm(site, target)
    else:
        need(target.provider != "portable" or site.weights.opset >= 23, "there is no RMSNormalization below opset 23")
    need(site.standardize.dtype in (None, site.dtype, ir.DataType.FLOAT), "its statistics are of another dtype")
    scale, bias = scaled(site.scale, factor), site.bias
    whole = is_along(scale, (axis,), site.rank)
    joins = whole and root.centred and bias is not None and is_along(bias, (axis,), site.rank)
    gamma = vector(scale if whole else None, 1.0, (axis,), site.dims, emitter, site.dtype)
    need(gamma is not None, "the number of its channels is not known")
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


def lp_norm(site: NormSite, emitter: Emitter, target: Target) -> ir.Value:
    """LpNormalization(x) along one axis, where no ε guards the division or the op itself stood there."""
    found = site.standardize
    form(found.total and not found.centred and len(found.axes) == 1, "it is no Lp normalization")
    form(found.epsilon == 0.0, "LpNormalization has no ε")
    need(found.dtype in (None, site.dtype), "its statistics are of another dtype")
    need(site.norm.node.op_type == "LpNormalization", "LpNormalization makes zeros of a row of zeros, this does not")
    value = emitter.op("LpNormalization", site.data, dims=site.dims, axis=found.axes[0], p=found.order)
    return affine(site, value, site.scale, site.bias, emitter)

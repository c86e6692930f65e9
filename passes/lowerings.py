"""LOWERINGS: the table of LOWER, rows by target; the first that fits and suits wins, or with `--tune` the fastest.

What suits was measured with ONNX Runtime 1.32 on x86-64: `python -m scripts.bench lowerings` measures it again.
"""

from normfuse.passes import lowerings_cuda as cuda
from normfuse.passes import lowerings_nodes as nodes
from normfuse.passes import lowerings_standard as laws
from normfuse.passes import lowerings_windows as windows
from normfuse.passes.lowering import Lowering, NormSite
from normfuse.passes.lowering_forms import product
from normfuse.target import CUDA_OPSET, Provider, Target

_CPU: tuple[Provider, ...] = ("cpu",)
_RUNTIME: tuple[Provider, ...] = ("cpu", "cuda")
_ALL: tuple[Provider, ...] = ("portable", "cpu", "cuda")
_FEW_THREADS = 2
_FEW_POSITIONS = 256
"""Up to 16 × 16, the products took 1.0 to 2.1 times as long as the Transposes; from 20 × 20 on 0.4 to 1.0 times."""

_LARGE = 1 << 19
"""On two threads InstanceNormalization of groups took 0.6 to 0.95 times as long as LayerNormalization below so many
elements, and 1.0 to 1.25 times from twice as many on."""


def _few_threads(site: NormSite, target: Target) -> bool:
    """InstanceNormalization runs on one thread, at a bit less than twice the speed of LayerNormalization on one."""
    return target.threads <= _FEW_THREADS


def _spatial(site: NormSite) -> bool:
    return site.standardize.axes == tuple(range(2, site.rank))


def _last_axes(site: NormSite, target: Target) -> bool:
    """Not for the spatial axes of (N, C, *spatial), unless that is one axis and no InstanceNormalization there."""
    if len(site.standardize.axes) == 1:
        return "InstanceNormalization" not in site.operators or not _few_threads(site, target)
    return not (target.provider == "cpu" or _spatial(site))


def _by_nodes(site: NormSite, target: Target) -> bool:
    """Below the opset of the operator for the last axis; on CUDA for a batch norm in training, which has no kernel."""
    if target.provider != "portable":
        return "BatchNormalization" in site.operators
    if site.standardize.axes != (site.rank - 1,) or "InstanceNormalization" in site.operators:
        return False
    if site.standardize.centred:
        return site.weights.opset < 17 and not (site.scale is None and site.bias is None)
    return site.weights.opset < 23


def _as_instance_norm(site: NormSite, target: Target) -> bool:
    """Not for a LayerNorm of three dimensions in a portable model: its nodes are what runtimes know and fuse."""
    return target.provider != "portable" or not _by_nodes(site, target)


def _by_instance_norm(site: NormSite, target: Target) -> bool:
    """Not for a LayerNorm in a portable model, where InstanceNormalization over rows is for groups."""
    if target.provider == "portable":
        return not _by_nodes(site, target)
    elements = product(site.dims)
    large = target.threads > 1 and elements is not None and elements >= _LARGE
    return target.provider != "cpu" or (_few_threads(site, target) and not large)


_CUDA: tuple[Provider, ...] = ("cuda",)


def _many_positions(site: NormSite, target: Target) -> bool:
    """Where there are few positions, and LayerNormalization is there, two Transposes cost less than eight nodes."""
    positions = product(site.dims[2:])
    return positions is None or positions > _FEW_POSITIONS or site.weights.opset < 17


LOWERINGS: tuple[Lowering, ...] = (
    Lowering(
        "group-norm-channels-last",
        "lower",
        (),
        None,
        cuda.group_norm,
        "com.microsoft.GroupNorm normalizes channels last, with the sum in front and the SiLU behind, in one kernel",
        targets=_CUDA,
    ),
    Lowering(
        "skip-layer-norm",
        "lower",
        (),
        None,
        cuda.skip_layer_norm,
        "SkipLayerNormalization adds and normalizes in one pass over memory",
        targets=_CUDA,
    ),
    Lowering(
        "skip-rms-norm",
        "lower",
        (),
        None,
        cuda.skip_rms_norm,
        "SkipSimplifiedLayerNormalization adds and normalizes in one pass over memory",
        targets=_CUDA,
    ),
    Lowering(
        "layer-norm",
        "lower",
        (),
        None,
        laws.layer_norm,
        "LayerNormalization computes γ · (x − E[x]) / √(Var[x] + ε) + β over the last axes in one pass over memory",
        targets=_ALL,
        suits=_last_axes,
    ),
    Lowering(
        "rms-norm",
        "lower",
        (),
        None,
        laws.rms_norm,
        "RMSNormalization computes γ · x / √(E[x²] + ε) over the last axes in one pass over memory",
        targets=_ALL,
    ),
    Lowering(
        "group-norm",
        "lower",
        (),
        None,
        laws.group_norm,
        "GroupNormalization has mean and variance of each group of channels",
        targets=("portable",),
    ),
    Lowering(
        "instance-norm",
        "lower",
        (),
        None,
        laws.instance_norm,
        "InstanceNormalization has mean and variance of each channel; γ and β of each image may be computed",
        targets=_ALL,
        suits=_as_instance_norm,
    ),
    Lowering(
        "channels-first-by-products",
        "lower",
        (),
        None,
        nodes.by_products,
        "a mean over the channels is a product with a row of 1/C, which needs no Transpose",
        targets=_CPU,
        suits=_many_positions,
    ),
    Lowering(
        "norm-by-instance-norm",
        "lower",
        (),
        None,
        laws.by_instance_norm,
        "a group of channels laid in one row is one channel of an InstanceNormalization",
        targets=_ALL,
        suits=_by_instance_norm,
    ),
    Lowering(
        "norm-by-layer-norm",
        "lower",
        (),
        None,
        laws.by_layer_norm,
        "a group of channels laid in one row is one row of a LayerNormalization, which runs on all threads",
        targets=_RUNTIME,
        suits=lambda site, target: target.provider == "cpu" or site.weights.opset > CUDA_OPSET,
    ),
    Lowering(
        "norm-by-instance-norm-threaded",
        "lower",
        (),
        None,
        laws.by_instance_norm,
        "the same as norm-by-instance-norm, where the size of a row is not known",
        targets=_CPU,
    ),
    Lowering(
        "norm-by-transposes",
        "lower",
        (),
        None,
        laws.by_transposes,
        "an axis that is moved to the end is normalized there",
        targets=_ALL,
    ),
    Lowering(
        "lrn-by-conv",
        "lower",
        (),
        None,
        windows.by_window,
        "a sum over a window of channels is a Conv along them, and d^¾ is √d · √√d",
        targets=_CPU,
        suits=lambda site, target: site.standardize.exponent in (0.5, 0.75, 1.0),
    ),
    Lowering(
        "lrn",
        "lower",
        (),
        None,
        windows.local_response,
        "LRN divides by (k + α/n · Σ x²)^β over an odd window of channels",
        targets=("portable", "cuda"),
    ),
    Lowering(
        "lp-norm",
        "lower",
        (),
        None,
        laws.lp_norm,
        "LpNormalization divides by the length of a vector",
        targets=_ALL,
    ),
    Lowering(
        "norm-in-nodes",
        "lower",
        (),
        None,
        nodes.in_nodes,
        "without an operator, (x − E[x]) / √(E[(x − E[x])²] + ε) takes the fewest nodes and loses nothing",
        targets=("portable", "cuda"),
        suits=_by_nodes,
    ),
    Lowering(
        "two-pass",
        "lower",
        (),
        None,
        nodes.two_pass,
        "E[x²] − E[x]² loses the variance at large means, E[(x − E[x])²] does not",
        targets=_ALL,
    ),
)

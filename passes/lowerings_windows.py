"""Laws of LOWER for sums over a window of channels: LRN, and the same by Conv."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from normfuse.passes.access import Dim
from normfuse.passes.emitter import Emitter
from normfuse.passes.lowering import NormSite
from normfuse.passes.lowering_forms import affine, back, filled, form, laid, need, product
from normfuse.target import Target

_SMALL_ALPHA = 2e-4
"""α / k up to which LRN is as accurate as its definition: measured up to values of 100, and with heavy tails."""


def local_response(site: NormSite, emitter: Emitter, target: Target) -> ir.Value:
    """LRN(x): 4-D, odd window."""
    found = site.standardize
    form(found.window is not None, "it is no LRN")
    assert found.window is not None
    before, after = found.window
    need(before == after, "its window is even; LRN puts an even one elsewhere")
    form(found.channel == 1, "its window is not one of channels")
    need(site.rank == 4, "LRN runs on four dimensions")
    need(found.dtype in (None, site.dtype), "its statistics are of another dtype")
    form(found.place == "inside" and found.order == 2, "it is no LRN")
    need(found.alpha > 0.0 and found.exponent > 0.0, "LRN takes α and β above 0 only")
    exact = all(float(np.float32(number)) == number for number in (found.alpha, found.exponent, found.epsilon))
    need(site.dtype != ir.DataType.DOUBLE or exact, "α, β or k of a float64 model are no float32 attributes")
    cuda = target.provider == "cuda"
    need(not cuda or before + after + 1 <= 16, "cuDNN sums over 16 channels at most")
    need(not cuda or (found.exponent >= 0.01 and found.epsilon >= 1e-5), "cuDNN takes β from 0.01 and k from 1e-5 on")
    keeps = target.provider != "portable" or "LRN" in site.operators or found.alpha <= _SMALL_ALPHA * found.epsilon
    need(keeps, "ONNX Runtime adds and subtracts squares as the window moves, which loses accuracy for large α / k")
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
    form(found.window is not None, "it is no LRN")
    assert found.window is not None
    before, after = found.window
    form(found.channel == 1 and site.rank >= 3, "its window is not one of channels")
    need(site.dtype == ir.DataType.FLOAT and found.dtype in (None, site.dtype), "its dtype is not float32")
    channels, size = site.dims[1], before + after + 1
    form(size >= 1, "its window is empty")
    need(isinstance(channels, int), "the number of its channels is not known")
    assert isinstance(channels, int)
    square = emitter.op("Mul", site.data, site.data)
    flat = site.rank != 4
    inner = [1] if flat else [1, 1]
    if flat:
        dims: list[Dim] = [site.dims[0], 1, channels, product(site.dims[2:])]
        images, *rest = laid(site, channels)
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

"""Laws of LOWER that write a normalization in plain nodes.

Where the opset or the provider has no operator for it, or nodes are faster than that, or lose less.
"""

import numpy as np
import onnx_ir as ir

from normfuse.passes.emitter import Emitter
from normfuse.passes.lowering import NormSite
from normfuse.passes.lowering_forms import (
    affine,
    back,
    batch_norm,
    filled,
    form,
    laid,
    need,
    not_by_layer_norm,
    plain_root,
    product,
    scaled,
)
from normfuse.target import Target


def in_nodes(site: NormSite, emitter: Emitter, target: Target) -> ir.Value:
    """d / √(E[d²] + ε) · γ + β with d = x − E[x], or d = x without a mean.

    The square is a Pow: ONNX Runtime fuses that spelling, over the last axis and with γ and β, into one kernel.
    """
    root, factor = plain_root(site)
    need(root.groups is None, "its groups of channels take a Reshape")
    need(site.standardize.dtype in (None, site.dtype), "its statistics are computed in another dtype")
    need(site.dtype in (ir.DataType.FLOAT, ir.DataType.DOUBLE), "its dtype")
    scale = scaled(site.scale, factor)
    kept = [1 if axis in root.axes else dim for axis, dim in enumerate(site.dims)]

    def mean(value: ir.Value) -> ir.Value:
        if site.weights.opset >= 18:
            return emitter.op("ReduceMean", value, emitter.integers(root.axes, "axes"), dims=kept, keepdims=1)
        return emitter.op("ReduceMean", value, dims=kept, axes=list(root.axes), keepdims=1)

    def number(value: float, stem: str) -> ir.Value:
        return emitter.constant(np.asarray(value), site.dtype, stem)

    data = emitter.op("Sub", site.data, mean(site.data), dims=site.dims) if root.centred else site.data
    spread = mean(emitter.op("Pow", data, number(2.0, "two"), dims=site.dims))
    deviation = emitter.op("Sqrt", emitter.op("Add", spread, number(root.epsilon, "epsilon")))
    value = emitter.op("Div", data, deviation, dims=site.dims)
    return affine(site, value, scale, site.bias, emitter)


def by_products(site: NormSite, emitter: Emitter, target: Target) -> ir.Value:
    """Channels first: E over C as a product with a row of 1/C; d · 1/√(E[d²] + ε).

    m = r·x, d = x − m, v = r·d², with r = (1/C … 1/C) and x as (N, C, size), which three dimensions are already.
    """
    root, factor = plain_root(site)
    is_one = root.centred and root.axes == (1,) and root.groups is None
    form(is_one and site.rank > 2, "it is no LayerNorm over the channels")
    not_by_layer_norm(site)
    need(site.dtype == ir.DataType.FLOAT and site.standardize.dtype in (None, site.dtype), "its dtype is not float32")
    channels = site.dims[1]
    need(isinstance(channels, int), "the number of its channels is not known")
    assert isinstance(channels, int)
    inner = product(site.dims[2:])
    scale = scaled(site.scale, factor)
    row = emitter.constant(filled((1, channels), 1.0 / channels), site.dtype, "row")
    rows, is_flat = site.data, site.rank == 3
    if not is_flat:
        shape = emitter.integers(laid(site, channels))
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


def two_pass(site: NormSite, emitter: Emitter, target: Target) -> ir.Value:
    """d = x − E[x], d / σ with σ from E[d²], in nodes: for a variance that was E[x²] − E[x]²."""
    found = site.standardize
    form(found.cancels and found.centred and found.groups is None, "its variance is computed in two passes already")
    need(found.dtype in (None, site.dtype) and found.order == 2, "its statistics are of another dtype")
    count = found.count(site.dims)
    need(not found.ddof or count is not None, "the number of elements of its variance is not known")
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
        need(found.exponent == 0.5, "its exponent")
        operator = "Add" if found.place == "outside" else "Max"
        divisor = emitter.op(operator, emitter.op("Sqrt", spread), number(found.epsilon))
    value = emitter.op("Div", centred, divisor, dims=site.dims)
    return affine(site, value, site.scale, site.bias, emitter)

"""Laws of LOWER that write a normalization in plain nodes, where the opset or the provider has no operator for it."""

import numpy as np
import onnx_ir as ir

from normfuse.passes.emitter import Emitter
from normfuse.passes.lowering import NormSite
from normfuse.passes.lowering_forms import affine, need, plain_root, scaled
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

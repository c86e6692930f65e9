"""A sum in front of a LayerNormalization, written so that ONNX Runtime leaves both as they are on CPU.

It fuses Add → LayerNormalization of three dimensions into SkipLayerNormalization, whose CPU kernel takes 6 to 18 times
as long as the two, and is less accurate. It does not look at Sum.
"""

import onnx_ir as ir

from normfuse.passes.access import attribute, dims, only_reader, operator
from normfuse.passes.emitter import Emitter
from normfuse.passes.weights import Weights
from normfuse.target import Target

_RANK = 3


def residual(
    node: ir.Node, weights: Weights, emitter: Emitter, target: Target
) -> tuple[list[ir.Node], ir.Value] | None:
    """Sum(a, b) for Add(a, b) that a LayerNormalization alone reads."""
    if target.provider != "cpu" or operator(node) != "Add" or weights.opset < 8:
        return None
    output = node.outputs[0]
    reader = only_reader(output)
    if reader is None or operator(reader) != "LayerNormalization" or reader.inputs[0] is not output:
        return None
    sizes = [dims(value) for value in node.inputs]
    if any(size is None or len(size) != _RANK for size in sizes) or output.dtype != ir.DataType.FLOAT:
        return None
    if attribute(reader, "axis", -1) not in (-1, _RANK - 1):
        return None
    return [node], emitter.op("Sum", *node.inputs, dims=dims(output))

"""A sum over a window of channels: pooling, or a Conv of equal weights, along an axis that channels were put on."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from normfuse.passes.access import attribute, dims, operator
from normfuse.passes.views import plain, scalar, squared
from normfuse.passes.weights import Weights


@dataclass(frozen=True, slots=True)
class Window:
    """k + α · E[x²] over a window of channels.

    Attributes:
        data: x.
        channel: the axis of its channels.
        sides: how many channels before and after each one belong to its window.
        factor: α.
        shift: k.
    """

    data: ir.Value
    channel: int
    sides: tuple[int, int]
    factor: float = 1.0
    shift: float = 0.0


def window_of(value: ir.Value, weights: Weights) -> Window | None:
    """Reads a value as a mean over a window of channels of x², zeros beyond the border counted.

    x² → Reshape or Unsqueeze → Pad → AveragePool → Reshape or Squeeze, as torch writes F.local_response_norm; or with a
    Conv of one filter that holds one number, as LOWER writes it: then it is multiplied, and has a bias.
    """
    wanted = dims(value)
    if wanted is None or len(wanted) < 2:
        return None
    pool = _inside(value).producer()
    if pool is None or operator(pool) not in ("AveragePool", "Conv") or pool.inputs[0] is None:
        return None
    is_conv = operator(pool) == "Conv"
    line = _filter(pool, weights) if is_conv else (1.0, 0.0)
    pooled = dims(pool.inputs[0])
    kernel = attribute(pool, "kernel_shape", [])
    if line is None or not kernel:
        return None
    spatial = len(kernel)
    long = [axis for axis, size in enumerate(kernel) if size != 1]
    if pooled is None or len(pooled) != spatial + 2 or len(long) != 1:
        return None
    plainly = (
        set(attribute(pool, "strides", [1])) == {1}
        and set(attribute(pool, "dilations", [1])) == {1}
        and attribute(pool, "auto_pad", "NOTSET") == "NOTSET"
        and not attribute(pool, "ceil_mode", 0)
    )
    if not plainly:
        return None
    place, size = long[0], kernel[long[0]]
    pads = attribute(pool, "pads", [0] * (2 * spatial))
    if any(pad for index, pad in enumerate(pads) if index % spatial != place):
        return None
    before, after = pads[place], pads[place + spatial]
    if (before or after) and not is_conv and not attribute(pool, "count_include_pad", 0):
        return None
    source = plain(pool.inputs[0])
    padding = source.producer()
    if padding is not None and operator(padding) == "Pad":
        stated = _pads(padding, weights)
        rank = len(pooled)
        if stated is None or any(pad for index, pad in enumerate(stated) if index % rank != place + 2):
            return None
        before, after = before + stated[place + 2], after + stated[place + 2 + rank]
        if padding.inputs[0] is None:
            return None
        source = padding.inputs[0]
    if before + after != size - 1:
        return None
    spread = dims(source)
    square = _inside(source)
    data = squared(square, weights)
    sizes = dims(data)
    if data is None or sizes is None or spread is None or sizes != wanted or len(sizes) < 2:
        return None
    # (N, C, …) → (N, 1, C, …): what is pooled along must be the channels, whole and alone.
    channels = sizes[1]
    if not isinstance(channels, int) or spread[place + 2] != channels or spread[0] != sizes[0]:
        return None
    if any(size != 1 for size in spread[1 : place + 2]):
        return None
    return Window(data, 1, (before, after), *line)


def _filter(node: ir.Node, weights: Weights) -> tuple[float, float] | None:
    """The sum of the weights of a Conv of one channel with one filter, where all of them are equal, and its bias."""
    given = node.inputs[2] if len(node.inputs) > 2 else None
    bias = 0.0 if given is None else scalar(given, weights)
    array = weights.array(node.inputs[1])
    if bias is None or array is None or array.shape[:2] != (1, 1) or not array.size:
        return None
    return None if np.any(array != array.flat[0]) else (float(array.flat[0]) * array.size, bias)


def _pads(node: ir.Node, weights: Weights) -> list[int] | None:
    """The pads of a Pad with zeros."""
    if attribute(node, "mode", "constant") != "constant":
        return None
    if len(node.inputs) < 2:
        return attribute(node, "pads") if not attribute(node, "value", 0.0) else None
    if len(node.inputs) > 2 and node.inputs[2] is not None and scalar(node.inputs[2], weights) != 0.0:
        return None
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        return None
    return weights.integers(node.inputs[1])


def _inside(value: ir.Value) -> ir.Value:
    """A value in front of what only gives it other dimensions."""
    while (node := plain(value).producer()) is not None:
        if operator(node) not in ("Flatten", "Reshape", "Squeeze", "Unsqueeze") or node.inputs[0] is None:
            break
        value = node.inputs[0]
    return plain(value)

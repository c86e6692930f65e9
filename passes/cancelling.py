"""Where an affine map must stay whole: s · x + t that cancels loses its value once s · x is rounded without t.

    (1 − m) · −1e9 + z        m is 0 or 1: where it is 1 nothing is added to z, exactly
    m · 1e9 + z − 1e9         the same formula, and z is lost in the rounding of 1e9

What x is decides how much that costs. Where x is rounded itself, by u · |x|, the map could not be more accurate than
u · |t| however it is computed, and parting it loses little. Where x is exact (an input, a cast integer, a comparison,
and what only moves these) s · x + t may be exact too: then log₂|t| bits of a result of order 1 are lost.

Constants alone do not tell the distribution of x. So the limits go by what is common: bytes less a mean (|t| ≤ 256 with
s = ±1), and inputs less a mean in units of their deviation (mean/σ ≤ 32).
"""

import numpy as np
import onnx_ir as ir

from normfuse.affine import Affine, Float64
from normfuse.passes.access import RefusedError, operator, title
from normfuse.passes.weights import Weights

UNITS = 32.0
"""The largest shift of a scaled exact input that may be parted from it: five bits where all of it cancels."""

BYTES = 256.0
"""The same where the scale is ±1: a mean of bytes."""

ROUNDED = 2.0**10
"""The same of what was rounded before: far above what normalizations have, far below what masks have."""

MAGIC = 2.0**20
"""Whoever adds this much to what was rounded wants it rounded once more."""

_MOST_NODES = 256

_LINEAR = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum"})
_ROUNDING = frozenset(
    {*_LINEAR, "GRU", "LSTM", "RNN"}
    | {"AveragePool", "GlobalAveragePool", "GlobalLpPool", "LpPool", "Resize", "Upsample"}
    | {"ReduceMean", "ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceProd", "ReduceLogSumExp", "CumSum"}
    | {"BatchNormalization", "InstanceNormalization", "LayerNormalization", "GroupNormalization", "RMSNormalization"}
    | {"LRN", "LpNormalization", "MeanVarianceNormalization", "Softmax", "LogSoftmax", "Softplus", "Softsign"}
    | {"Sigmoid", "Tanh", "Elu", "Selu", "Celu", "Gelu", "Mish", "Swish", "Erf", "HardSigmoid", "HardSwish"}
    | {"Exp", "Log", "Sqrt", "Reciprocal", "Pow", "Sin", "Cos", "Tan", "Atan", "DequantizeLinear", "Attention"}
)
"""Operators whose results are rounded, whatever they read."""


def check_magnitude(affine: Affine) -> None:
    """Makes sure that a map does not round on purpose: (x + 2²³) − 2²³ is the nearest integer.

    Raises:
        RefusedError: it may.
    """
    if _size(affine.shift) > MAGIC:
        raise RefusedError(f"its shift of {_size(affine.shift):.3g} rounds what it is added to")


def check_weights(node: ir.Node, index: int, affine: Affine, weights: Weights) -> None:
    """Makes sure that W · (s · x + t) + b does not lose b in the rounding of W · t.

    Args:
        node: a linear operator.
        index: the input that is mapped.
        affine: the map.
        weights: the constants of the model.

    Raises:
        RefusedError: it may: x is exact, so that s · x + t may be zero, and W is large.
    """
    value = node.inputs[index]
    if affine.keeps_origin or operator(node) not in _LINEAR or value is None or not is_exact(value):
        return
    arrays = [
        array for i, one in enumerate(node.inputs[:2]) if i != index and (array := weights.array(one)) is not None
    ]
    size = max(map(_size, arrays), default=0.0) * _size(affine.shift)
    if size > ROUNDED:
        raise RefusedError(
            f"what its shift adds in {title(node)}, {size:.3g}, may cancel: apart from it, that would be rounded"
        )


def check_parting(value: ir.Value, affine: Affine) -> None:
    """Makes sure that a map of a value may go elsewhere, its shift apart from what it cancels.

    Args:
        value: what was mapped, or what it was computed of.
        affine: the map.

    Raises:
        RefusedError: it may not.
    """
    size = _size(affine.shift)
    if size <= UNITS:
        return
    whole = bool((np.abs(affine.scale) == 1.0).all())
    limit = ROUNDED if size > ROUNDED or not is_exact(value) else BYTES if whole else UNITS
    if size > limit:
        raise RefusedError(
            f"its shift of {size:.3g} may cancel what it is added to: apart from it, that would be rounded"
        )


def check_composing(value: ir.Value, first: Affine, second: Affine) -> None:
    """Makes sure that two maps of a value may become one.

    Args:
        value: what the first one maps, or what that was computed of.
        first: the map that is applied first.
        second: the other one.

    Raises:
        RefusedError: they may not.
    """
    if first.keeps_origin:
        return
    size = _size(first.shift) * _size(second.scale)
    if size <= UNITS:
        return
    if _size(first.shift) < MAGIC:
        whole = bool((np.abs(first.scale) == 1.0).all() and (np.abs(second.scale) == 1.0).all())
        if size <= (BYTES if whole else UNITS) or not is_exact(value):
            return
    raise RefusedError(f"its shift of {_size(first.shift):.3g} may cancel what it is added to, and must do so first")


def is_exact(value: ir.Value) -> bool:
    """Whether a value may be exact: nothing that it is computed of is rounded for sure."""
    pending, seen = [value], set[ir.Value]()
    while pending:
        current = pending.pop()
        if current in seen or current.const_value is not None:
            continue
        seen.add(current)
        node = current.producer()
        if node is None:
            continue  # an input of the model, or of a graph within: it may be anything
        if operator(node) in _ROUNDING or node.domain not in ("", "ai.onnx"):
            return False
        if node.op_type == "Cast" and _is_discrete(node.inputs[0]):
            continue
        if len(seen) > _MOST_NODES:
            return True
        pending.extend(one for one in node.inputs if one is not None and not _is_discrete(one))
    return True


def _is_discrete(value: ir.Value | None) -> bool:
    """Whether a value is an integer or a truth value."""
    return value is not None and value.dtype is not None and not value.dtype.is_floating_point()


def _size(numbers: Float64) -> float:
    return float(np.abs(numbers).max(initial=0.0))

"""What the float64 oracle computes by itself: one table, `KERNELS`, of the operators that `onnx.reference` gets wrong.

A row stands here for one of these reasons:

- the reference is wrong: BatchNormalization below opset 14 (runs in training mode), Erf (rounds to float32), LRN (loops
  over the batch), ConvTranspose with groups, Softmax below opset 13, DequantizeLinear of int32, pools with ceil_mode,
  GlobalMaxPool but of four dimensions, GatherElements of one row, OneHot of a depth in brackets, STFT of (N, length);
- the reference stays in float32: MeanVarianceNormalization, GroupNormalization, Gelu;
- the reference has none: opset-specific and com.microsoft operators, LSTM in two directions, stash types;
- the reference takes minutes on a real model: Conv, pools, Resize.

Each kernel takes the node's `Call` and its inputs (float64 wherever the model says float) and returns its outputs.
"""

from collections.abc import Callable
from math import erf as _erf
from math import prod

import numpy as np

from normfuse.kernels_recurrent import gru, lstm, sigmoid, stft
from normfuse.kernels_spatial import (
    Array,
    Call,
    Outputs,
    average_pool,
    conv,
    conv_transpose,
    gather_elements,
    global_max_pool,
    lp_pool,
    max_pool,
    one_hot,
    pad,
    resize,
    upsample,
)

_ERF = np.frompyfunc(_erf, 1, 1)


def _along_channels(vector: Array, rank: int) -> Array:
    return vector.reshape(1, -1, *(1,) * (rank - 2))


def _standardize(x: Array, axes: tuple[int, ...], epsilon: float) -> tuple[Array, Array, Array]:
    """(x − μ)/σ with σ² = Var + ε, and μ and 1/σ; axes are kept with size 1."""
    mean = x.mean(axis=axes, keepdims=True)
    centred = x - mean
    inverse = 1.0 / np.sqrt(np.square(centred).mean(axis=axes, keepdims=True) + epsilon)
    return centred * inverse, mean, inverse


def batch_normalization(call: Call, x: Array, scale: Array, bias: Array, mean: Array, variance: Array) -> Outputs:
    """γ · (x − μ)/σ + β with the stored statistics, or with those of the batch where the node says training.

    Below opset 14 training is said by naming the extra outputs, from 14 on by training_mode.
    """
    epsilon, momentum = float(call.get("epsilon", 1e-5)), float(call.get("momentum", 0.9))
    training = bool(call.get("training_mode", 0)) if call.opset >= 14 else call.outputs > 1
    if call.opset < 9 and not call.get("spatial", 1):
        if training:
            raise NotImplementedError("BatchNormalization with spatial=0 in training mode")
        return (scale * (x - mean) / np.sqrt(variance + epsilon) + bias,)
    axes = (0, *range(2, x.ndim))
    running: Outputs = ()
    if training:
        batch_mean, batch_variance = x.mean(axis=axes), x.var(axis=axes)
        running = (
            momentum * mean + (1 - momentum) * batch_mean,
            momentum * variance + (1 - momentum) * batch_variance,
            batch_mean,
            batch_variance,
        )
        mean, variance = batch_mean, batch_variance
    rank = max(x.ndim, 2)
    factor = _along_channels(scale / np.sqrt(variance + epsilon), rank)
    y = (x - _along_channels(mean, rank)) * factor + _along_channels(bias, rank)
    return (y.reshape(x.shape), *running)[: call.outputs]


def layer_normalization(call: Call, x: Array, scale: Array | None = None, bias: Array | None = None) -> Outputs:
    """γ · (x − μ)/σ + β over the axes from `axis` on; the stash type is the oracle's own."""
    axes = tuple(range(call.get("axis", -1) % x.ndim, x.ndim))
    y, mean, inverse = _standardize(x, axes, float(call.get("epsilon", 1e-5)))
    y = y if scale is None else y * scale
    return (y if bias is None else y + bias, mean, inverse)[: call.outputs]


def rms_normalization(call: Call, x: Array, scale: Array | None = None) -> Outputs:
    """γ · x / sqrt(mean(x²) + ε) over the axes from `axis` on."""
    axes = tuple(range(call.get("axis", -1) % x.ndim, x.ndim))
    inverse = 1.0 / np.sqrt(np.square(x).mean(axis=axes, keepdims=True) + float(call.get("epsilon", 1e-5)))
    y = x * inverse
    return (y if scale is None else y * scale, inverse)[: call.outputs]


def skip_layer_normalization(
    call: Call, x: Array, skip: Array, scale: Array, beta: Array | None = None, bias: Array | None = None
) -> Outputs:
    """The LayerNorm of x + skip + bias; its default epsilon is 1e-12."""
    total = x + skip if bias is None else x + skip + bias
    inner = Call({"epsilon": call.get("epsilon", 1e-12)}, call.opset, 3)
    y, mean, inverse = layer_normalization(inner, total, scale, beta)
    return (y, mean, inverse, total)[: call.outputs]


def skip_rms_normalization(call: Call, x: Array, skip: Array, scale: Array, bias: Array | None = None) -> Outputs:
    """The RMSNorm of x + skip + bias; its default epsilon is 1e-12."""
    total = x + skip if bias is None else x + skip + bias
    y, inverse = rms_normalization(Call({"epsilon": call.get("epsilon", 1e-12)}, call.opset, 2), total, scale)
    return (y, np.zeros_like(inverse), inverse, total)[: call.outputs]


def instance_normalization(call: Call, x: Array, scale: Array, bias: Array) -> Outputs:
    """γ · (x − μ)/σ + β, statistics for each sample and channel."""
    y, _, _ = _standardize(x, tuple(range(2, x.ndim)), float(call.get("epsilon", 1e-5)))
    return (y * _along_channels(scale, x.ndim) + _along_channels(bias, x.ndim),)


def group_normalization(call: Call, x: Array, scale: Array, bias: Array) -> Outputs:
    """γ · (x − μ)/σ + β, statistics for each group; γ and β per group at opset 18, per channel from 21 on."""
    groups = call.attributes["num_groups"]
    y, _, _ = _standardize(x.reshape(x.shape[0], groups, -1), (2,), float(call.get("epsilon", 1e-5)))
    repeat = x.shape[1] // scale.size
    scale, bias = np.repeat(scale, repeat), np.repeat(bias, repeat)
    return (y.reshape(x.shape) * _along_channels(scale, x.ndim) + _along_channels(bias, x.ndim),)


def fused_group_norm(call: Call, x: Array, scale: Array, bias: Array) -> Outputs:
    """GroupNorm of (N, H, W, C), or of (N, C, H, W) with channels_last=0; activation=1 is y · σ(y) behind it."""
    last = bool(call.get("channels_last", 1))
    first = np.moveaxis(x, -1, 1) if last else x
    inner = Call({"num_groups": call.attributes["groups"], "epsilon": call.get("epsilon", 1e-5)}, call.opset, 1)
    (y,) = group_normalization(inner, first, scale, bias)
    y = y * sigmoid(y) if call.attributes["activation"] else y
    return (np.moveaxis(y, 1, -1) if last else y,)


def skip_group_norm(call: Call, x: Array, scale: Array, beta: Array, skip: Array, bias: Array | None = None) -> Outputs:
    """The GroupNorm of x + skip + bias, and that sum; skip is like x, (N, 1, 1, C) or (N, C)."""
    skip = skip[:, None, None, :] if skip.ndim == 2 else skip
    total = x + skip if bias is None else x + skip + bias
    return (*fused_group_norm(call, total, scale, beta), total)[: call.outputs]


def mean_variance_normalization(call: Call, x: Array) -> Outputs:
    """(x − μ)/(σ + 1e-9), as the standard's function body has it."""
    axes = tuple(call.get("axes", (0, 2, 3)))
    centred = x - x.mean(axis=axes, keepdims=True)
    return (centred / (np.sqrt(np.square(centred).mean(axis=axes, keepdims=True)) + 1e-9),)


def lrn(call: Call, x: Array) -> Outputs:
    """x / (k + α/n · Σ x²)^β, the sum over a window of n channels."""
    size = call.attributes["size"]
    before, after = (size - 1) // 2, size // 2
    squares = np.pad(np.square(x), [(0, 0), (before, after), *[(0, 0)] * (x.ndim - 2)])
    total = sum(squares[:, i : i + x.shape[1]] for i in range(size))
    base = float(call.get("bias", 1.0)) + float(call.get("alpha", 1e-4)) / size * total
    return (x / base ** float(call.get("beta", 0.75)),)


def lp_normalization(call: Call, x: Array) -> Outputs:
    """x / ‖x‖_p along one axis, 0 where the norm is 0."""
    axis, p = call.get("axis", -1), call.get("p", 2)
    norm = np.linalg.norm(x, ord=p, axis=axis, keepdims=True)
    return (np.divide(x, norm, out=np.zeros_like(x), where=norm != 0),)


def erf(_: Call, x: Array) -> Outputs:
    """The error function to the last bit of float64."""
    return (np.asarray(_ERF(x), dtype=np.float64),)


def gelu(call: Call, x: Array) -> Outputs:
    """x · Φ(x), Φ by erf or by its approximation with tanh."""
    if call.get("approximate", "none") == "tanh":
        return fast_gelu(call, x)
    return (0.5 * x * (1.0 + erf(call, x / np.sqrt(2.0))[0]),)


def bias_gelu(call: Call, x: Array, bias: Array) -> Outputs:
    """Gelu(x + b)."""
    return gelu(call, x + bias)


def fast_gelu(_: Call, x: Array, bias: Array | None = None) -> Outputs:
    """Gelu(x + b) with Φ approximated by tanh."""
    x = x if bias is None else x + bias
    return (0.5 * x * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3))),)


def quick_gelu(call: Call, x: Array) -> Outputs:
    """x · σ(αx)."""
    return (x * sigmoid(float(call.get("alpha", 1.702)) * x),)


def mish(_: Call, x: Array) -> Outputs:
    """x · tanh(log(1 + exp(x)))."""
    return (x * np.tanh(np.logaddexp(0.0, x)),)


def hard_sigmoid(call: Call, x: Array) -> Outputs:
    """clip(αx + β, 0, 1)."""
    return (np.clip(float(call.get("alpha", 0.2)) * x + float(call.get("beta", 0.5)), 0.0, 1.0),)


def hard_swish(_: Call, x: Array) -> Outputs:
    """x · clip(x/6 + ½, 0, 1)."""
    return (x * np.clip(x / 6.0 + 0.5, 0.0, 1.0),)


def _rows(call: Call, x: Array) -> tuple[Array, int]:
    """What a softmax runs over: one axis, or everything from the axis on below opset 13."""
    if call.opset >= 13:
        return x, call.get("axis", -1)
    axis = call.get("axis", 1) % max(x.ndim, 1)
    return x.reshape(*x.shape[:axis], prod(x.shape[axis:])), -1


def softmax(call: Call, x: Array) -> Outputs:
    """exp(x) / Σ exp(x)."""
    rows, axis = _rows(call, x)
    powers = np.exp(rows - rows.max(axis=axis, keepdims=True, initial=-np.inf))
    return ((powers / powers.sum(axis=axis, keepdims=True)).reshape(x.shape),)


def log_softmax(call: Call, x: Array) -> Outputs:
    """x − log Σ exp(x)."""
    rows, axis = _rows(call, x)
    shifted = rows - rows.max(axis=axis, keepdims=True, initial=-np.inf)
    return ((shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))).reshape(x.shape),)


def gemm(call: Call, a: Array, b: Array, c: Array | None = None) -> Outputs:
    """α · A B + β · C."""
    a, b = a.T if call.get("transA", 0) else a, b.T if call.get("transB", 0) else b
    y = call.get("alpha", 1.0) * (a @ b)
    return ((y if c is None else y + call.get("beta", 1.0) * c).astype(a.dtype, copy=False),)


def fused_matmul(call: Call, a: Array, b: Array) -> Outputs:
    """α · A B with either operand transposed on its last two axes."""
    if call.get("transBatchA", 0) or call.get("transBatchB", 0):
        raise NotImplementedError("FusedMatMul with transBatchA or transBatchB")
    a = a.swapaxes(-1, -2) if call.get("transA", 0) else a
    b = b.swapaxes(-1, -2) if call.get("transB", 0) else b
    return (float(call.get("alpha", 1.0)) * (a @ b),)


def fused_conv(
    call: Call, x: Array, weight: Array, bias: Array | None = None, residual: Array | None = None
) -> Outputs:
    """act(Conv(x) + residual)."""
    (y,) = conv(call, x, weight, bias)
    y = y if residual is None else y + residual
    first, second = (*map(float, call.get("activation_params", ())), 0.0, 0.0)[:2]
    match call.get("activation", ""):
        case "":
            return (y,)
        case "Relu":
            return (np.maximum(y, 0.0),)
        case "Sigmoid":
            return (sigmoid(y),)
        case "Tanh":
            return (np.tanh(y),)
        case "LeakyRelu":
            return (np.where(y < 0, first * y, y),)
        case "Clip":
            return (np.clip(y, first, second),)
        case "HardSigmoid":
            return (np.clip(first * y + second, 0.0, 1.0),)
        case name:
            raise NotImplementedError(f"FusedConv with activation {name}")


def dequantize_linear(call: Call, x: Array, scale: Array, zero_point: Array | None = None) -> Outputs:
    """(x − zero point) · scale, the difference in float64."""
    block, axis = call.get("block_size", 0), call.get("axis", 1)

    def spread(parameter: Array) -> Array:
        if block:
            return np.repeat(parameter, block, axis=axis).take(range(x.shape[axis]), axis=axis)
        if parameter.ndim == 0 or parameter.size == 1:
            return parameter.reshape(())
        return parameter.reshape(*(-1 if i == axis % x.ndim else 1 for i in range(x.ndim)))

    values = x.astype(np.float64)
    if zero_point is not None:
        values = values - spread(zero_point.astype(np.float64))
    return (values * spread(scale),)


Kernel = Callable[..., Outputs]

KERNELS: dict[tuple[str, str], Kernel] = {
    ("", "AveragePool"): average_pool,
    ("", "BatchNormalization"): batch_normalization,
    ("", "Conv"): conv,
    ("", "ConvTranspose"): conv_transpose,
    ("", "DequantizeLinear"): dequantize_linear,
    ("", "Erf"): erf,
    ("", "GRU"): gru,
    ("", "GatherElements"): gather_elements,
    ("", "Gelu"): gelu,
    ("", "Gemm"): gemm,
    ("", "GlobalMaxPool"): global_max_pool,
    ("", "GroupNormalization"): group_normalization,
    ("", "HardSigmoid"): hard_sigmoid,
    ("", "HardSwish"): hard_swish,
    ("", "InstanceNormalization"): instance_normalization,
    ("", "LRN"): lrn,
    ("", "LSTM"): lstm,
    ("", "LayerNormalization"): layer_normalization,
    ("", "LogSoftmax"): log_softmax,
    ("", "LpNormalization"): lp_normalization,
    ("", "LpPool"): lp_pool,
    ("", "MaxPool"): max_pool,
    ("", "MeanVarianceNormalization"): mean_variance_normalization,
    ("", "Mish"): mish,
    ("", "OneHot"): one_hot,
    ("", "Pad"): pad,
    ("", "RMSNormalization"): rms_normalization,
    ("", "Resize"): resize,
    ("", "SimplifiedLayerNormalization"): rms_normalization,
    ("", "STFT"): stft,
    ("", "Softmax"): softmax,
    ("", "Upsample"): upsample,
    ("com.microsoft", "BiasGelu"): bias_gelu,
    ("com.microsoft", "FastGelu"): fast_gelu,
    ("com.microsoft", "FusedConv"): fused_conv,
    ("com.microsoft", "FusedMatMul"): fused_matmul,
    ("com.microsoft", "Gelu"): gelu,
    ("com.microsoft", "GroupNorm"): fused_group_norm,
    ("com.microsoft", "QuickGelu"): quick_gelu,
    ("com.microsoft", "SkipGroupNorm"): skip_group_norm,
    ("com.microsoft", "SkipLayerNormalization"): skip_layer_normalization,
    ("com.microsoft", "SkipSimplifiedLayerNormalization"): skip_rms_normalization,
}
"""The operators that the oracle computes by itself, by domain and type."""

RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)
"""Operators whose result no two runtimes share."""

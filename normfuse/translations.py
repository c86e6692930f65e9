"""How each normalization of torch is written in ONNX: `TRANSLATIONS`, a row per operator, for `normfuse.exporting`.

============== ============================= =====================================================
torch.ops.aten one node                      what it is in the file
============== ============================= =====================================================
group_norm     normfuse::GroupNormalization  a function: see `normfuse.functions.STANDARD`
rms_norm       normfuse::RMSNormalization    RMSNormalization from opset 23 on
layer_norm     LayerNormalization            the same
instance_norm  InstanceNormalization         the same, in float32; with running statistics a BatchNormalization
batch_norm     normfuse::BatchNormalization  BatchNormalization; torch names it _native_batch_norm_legit
batch_norm     normfuse::BatchStatistics     a function: by the statistics of the batch; where running statistics
                                             are kept as well, torch names it _native_batch_norm_legit_functional
============== ============================= =====================================================

A float64 ε that is no float32 stands in a function, too, for an attribute would round it. Where the opset has no such
operator, the function of that name stays, whose body is standard (`normfuse.functions`).

Other normalizations reach ONNX as one operator by themselves or are taken apart before an exporter can see them:
local_response_norm, F.normalize, weight_norm, spectral_norm, and what people write themselves. LIFT recognises those,
and what is computed of weights alone is evaluated once.

This module imports torch and onnxscript.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxscript
import torch
from onnxscript import opset18

from normfuse import functions

op: Any = opset18
"""Its own types are those of arrays."""

_OWN = onnxscript.values.Opset(functions.DOMAIN, 1)
_CALL = {name: onnxscript.values.Op(_OWN, name, functions.schema(name)) for name in functions.FUNCTIONS}

TRANSLATIONS: dict[Any, Callable[..., Any]] = {}
"""What torch.onnx.export takes as `custom_translation_table`."""


def _row(operator: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(law: Callable[..., Any]) -> Callable[..., Any]:
        TRANSLATIONS[operator] = law
        return law

    return register


@_row(torch.ops.aten.group_norm.default)
def group_norm(
    x: Any, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, cudnn_enabled: bool = True
) -> Any:
    """γ · (x − μ) / √(Var + ε) + β, statistics for each group of channels: Wu and He, 2018."""
    shape = (_size(x, 1),)
    scale, shift = _parameter(weight, 1.0, shape, x), _parameter(bias, 0.0, shape, x)
    call, epsilon = _call("GroupNormalization", x, eps)
    return call(x, scale, shift, num_groups=groups, epsilon=epsilon)


@_row(torch.ops.aten.rms_norm.default)
def rms_norm(x: Any, normalized_shape: Sequence[Any], weight: Any = None, eps: float | None = None) -> Any:
    """γ · x / √(E[x²] + ε) over the last axes: Zhang and Sennrich, 2019."""
    if eps is None:  # that of the dtype it computes in, not of the dtype of x
        eps = float(np.finfo(np.float64 if x.dtype == ir.DataType.DOUBLE else np.float32).eps)
    scale = _parameter(weight, 1.0, _sizes(normalized_shape), x)
    axes = list(range(-len(normalized_shape), 0))
    call, epsilon = _call("RMSNormalization", x, eps)
    return call(x, scale, axes=axes, epsilon=epsilon)


@_row(torch.ops.aten.layer_norm.default)
def layer_norm(
    x: Any,
    normalized_shape: Sequence[Any],
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Any:
    """γ · (x − μ) / √(Var + ε) + β over the last axes: Ba, Kiros and Hinton, 2016."""
    scale = _parameter(weight, 1.0, _sizes(normalized_shape), x)
    if _rounds(eps, x):
        shift = _parameter(bias, 0.0, _sizes(normalized_shape), x)
        call, epsilon = _call("LayerNormalization", x, eps)
        return call(x, scale, shift, axes=list(range(-len(normalized_shape), 0)), epsilon=epsilon)
    inputs = (x, scale) if bias is None else (x, scale, _like(bias, x))
    stash = ir.DataType.DOUBLE if x.dtype == ir.DataType.DOUBLE else ir.DataType.FLOAT
    y, *_ = op.LayerNormalization(*inputs, axis=-len(normalized_shape), epsilon=eps, stash_type=int(stash))
    return y


@_row(torch.ops.aten.instance_norm.default)
def instance_norm(
    x: Any,
    weight: Any = None,
    bias: Any = None,
    running_mean: Any = None,
    running_var: Any = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Any:
    """γ · (x − μ) / √(Var + ε) + β over the spatial axes: Ulyanov, Vedaldi and Lempitsky, 2016.

    With running statistics it is what a BatchNormalization computes at inference.
    """
    shape = (_size(x, 1),)
    scale, shift = _parameter(weight, 1.0, shape, x), _parameter(bias, 0.0, shape, x)
    if not use_input_stats:
        return batch_norm(x, weight, bias, running_mean, running_var, momentum, eps)[0]
    if _rounds(eps, x):  # a group for each channel
        return group_norm(x, _size(x, 1), weight, bias, eps)
    if _is_narrow(x):
        return _CALL["WideInstanceNormalization"](x, scale, shift, epsilon=eps)
    return op.InstanceNormalization(x, scale, shift, epsilon=eps)


@_row(torch.ops.aten._native_batch_norm_legit_no_training.default)
def batch_norm(
    x: Any, weight: Any, bias: Any, running_mean: Any, running_var: Any, momentum: float, eps: float
) -> tuple[Any]:
    """γ · (x − E[x]) / √(Var[x] + ε) + β with stored statistics: Ioffe and Szegedy, 2015."""
    shape = (_size(x, 1),)
    scale, shift = _parameter(weight, 1.0, shape, x), _parameter(bias, 0.0, shape, x)
    mean, variance = _like(running_mean, x), _like(running_var, x)
    if _rounds(eps, x):  # what float32 takes from ε the variance gets
        rounded = float(np.float32(eps))
        variance, eps = op.Add(variance, _constant(eps - rounded, x.dtype)), rounded
    return (_CALL["BatchNormalization"](x, scale, shift, mean, variance, epsilon=eps),)


@_row(torch.ops.aten._native_batch_norm_legit.no_stats)
def batch_statistics(x: Any, weight: Any, bias: Any, training: bool, momentum: float, eps: float) -> tuple[Any]:
    """γ · (x − μ) / √(Var + ε) + β with the statistics of the batch, where no others are kept."""
    shape = (_size(x, 1),)
    scale, shift = _parameter(weight, 1.0, shape, x), _parameter(bias, 0.0, shape, x)
    if _rounds(eps, x):
        _, centred = _moments(x)
        variance = op.ReduceMean(op.Mul(centred, centred), op.Constant(value_ints=_all_but_channels(x)))
        normalized = op.Div(centred, op.Sqrt(op.Add(variance, _constant(eps, x.dtype))))
        return (op.Add(op.Mul(normalized, _column(scale, x)), _column(shift, x)),)
    call, epsilon = _call("BatchStatistics", x, eps)
    return (call(x, scale, shift, axes=_all_but_channels(x), epsilon=epsilon),)


@_row(torch.ops.aten._native_batch_norm_legit_functional.default)
def batch_norm_in_training(
    x: Any, weight: Any, bias: Any, running_mean: Any, running_var: Any, training: bool, momentum: float, eps: float
) -> tuple[Any, ...]:
    """The same where running statistics are kept as well: only what reads them later sees them move.

    Returns:
        y, μ, 1 / √(Var + ε), (1 − m) · E + m · μ and (1 − m) · V + m · n / (n − 1) · Var, with m the momentum.
    """
    if not training:
        inverse = op.Reciprocal(op.Sqrt(op.Add(running_var, op.CastLike(eps, running_var))))
        y = batch_norm(x, weight, bias, running_mean, running_var, momentum, eps)
        # copies, for torch.onnx renames what it is given
        return (*y, op.Identity(running_mean), inverse, op.Identity(running_mean), op.Identity(running_var))
    axes = op.Constant(value_ints=_all_but_channels(x))
    wide = x if x.dtype == running_mean.dtype else op.Cast(x, to=int(running_mean.dtype))
    mean, centred = _moments(wide)
    square = op.Mul(centred, centred)
    variance = op.ReduceMean(square, axes, keepdims=0)
    count = op.Div(op.Size(x), op.Shape(x, start=1, end=2))
    unbiased = op.Div(op.ReduceSum(square, axes, keepdims=0), op.CastLike(op.Sub(count, 1), wide))
    old, new = op.CastLike(1.0 - momentum, wide), op.CastLike(momentum, wide)
    inverse = op.Reciprocal(op.Sqrt(op.Add(variance, op.CastLike(eps, wide))))
    return (
        *batch_statistics(x, weight, bias, training, momentum, eps),
        mean,
        inverse,
        op.Add(op.Mul(old, running_mean), op.Mul(new, mean)),
        op.Add(op.Mul(old, running_var), op.Mul(new, unbiased)),
    )


@_row(torch.ops.aten.scalar_tensor.default)
def scalar_tensor(s: Any, dtype: int = -1, layout: Any = None, device: Any = None, pin_memory: Any = None) -> Any:
    """A number in its own type: torch.onnx rounds it to float32 first, such as the α of a float64 LRN.

    A complex number has its two parts along an axis, as torch.onnx writes them.
    """
    kind = ir.DataType(dtype) if dtype > 0 else ir.DataType.FLOAT
    if not isinstance(s, bool | int | float | complex):
        return op.Cast(s, to=int(kind))
    if kind in (ir.DataType.COMPLEX64, ir.DataType.COMPLEX128):
        part = ir.DataType.FLOAT if kind == ir.DataType.COMPLEX64 else ir.DataType.DOUBLE
        return _constant([s.real, s.imag], part)
    return _constant(s, kind)


def _call(name: str, x: Any, eps: float) -> tuple[Any, Any]:
    """The function of a normalization for the type of x, and its attribute epsilon.

    Narrow types have their statistics in float32, as torch has them, and float64 has its own ε.
    """
    if _rounds(eps, x):
        return _CALL[f"Exact{name}"], ir.tensor(np.float64(eps))
    return _CALL[f"Wide{name}" if _is_narrow(x) else name], eps


def _is_narrow(x: Any) -> bool:
    return x.dtype not in (ir.DataType.FLOAT, ir.DataType.DOUBLE)


def _rounds(eps: float, x: Any) -> bool:
    """Whether an attribute, which is a float32, would be another ε than a float64 x has."""
    return x.dtype == ir.DataType.DOUBLE and float(np.float32(eps)) != eps


def _constant(value: Any, dtype: ir.DataType) -> Any:
    tensor: Any = ir.tensor(np.asarray(value).astype(dtype.numpy()), dtype=dtype)
    return op.Constant(value=tensor)


def _moments(x: Any) -> tuple[Any, Any]:
    """μ of each channel, and x − μ."""
    axes = op.Constant(value_ints=_all_but_channels(x))
    centred = op.Sub(x, op.ReduceMean(x, axes))
    return op.ReduceMean(x, axes, keepdims=0), centred


def _column(value: Any, x: Any) -> Any:
    """γ or β along the channels of x."""
    axes = list(range(1, len(x.shape) - 1))
    return op.Unsqueeze(value, op.Constant(value_ints=axes)) if axes else value


def _all_but_channels(x: Any) -> list[int]:
    """The axes that the statistics of a batch are taken over."""
    return [axis for axis in range(len(x.shape)) if axis != 1]


def _sizes(shape: Sequence[Any]) -> tuple[int, ...]:
    """A shape whose sizes are known.

    Raises:
        ValueError: they are not.
    """
    if not all(isinstance(size, int) for size in shape):
        raise ValueError("the size of what it normalizes over is dynamic; leave that axis static")
    return tuple(shape)


def _size(x: Any, axis: int) -> int:
    """The size of an axis of x.

    Raises:
        ValueError: it is not known.
    """
    return _sizes([x.shape[axis]])[0]


def _parameter(value: Any, default: float, shape: tuple[int, ...], x: Any) -> Any:
    """γ or β in the dtype of x, all ones or zeros where there is none."""
    if value is not None:
        return _like(value, x)
    return _constant(np.full(shape, default), x.dtype)


def _like(value: Any, x: Any) -> Any:
    """A value in the dtype of x."""
    return value if value.dtype == x.dtype else op.Cast(value, to=int(x.dtype))

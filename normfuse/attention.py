"""Attention as torch computes it: softmax(s · q kᵀ + mask) v, and 0 where a query is shown no key at all.

torch has a safe softmax: a row whose mask hides every key gives 0, as in a batch that is padded on the left under a
causal mask. torch.onnx fills a boolean mask with the lowest finite number, so that such a row becomes the mean of all
v; a mask of floats holds −∞ there, and the row becomes NaN. Both are written here with one Where behind the product:

    y = any(mask) ? softmax(s · q kᵀ + mask) v : 0

What is computed of the mask is the same for all layers that share it, and stands in the file once.

This module imports torch and onnxscript.
"""

from collections.abc import Callable
from math import sqrt
from typing import Any

import onnx_ir as ir
import onnxscript
import torch

OPERATOR = torch.ops.aten.scaled_dot_product_attention.default

_18: Any = onnxscript.opset18
_23: Any = onnxscript.opset23

ATTENTION_SINCE = 23
"""The opset from which on ONNX has an operator Attention."""


def attention(opset: int) -> Callable[..., Any]:
    """The row of `torch.onnx.export(custom_translation_table=…)` for an opset."""
    return _composed if opset < ATTENTION_SINCE else _operator


def _composed(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """softmax(s · q kᵀ + mask) v: Vaswani et al., 2017."""
    op, rank = _18, len(key.shape)
    mask, seen = _causal(query, key) if is_causal else _mask(attn_mask, query)
    if enable_gqa:
        key, value = _repeated(key, query), _repeated(value, query)
    turned = op.Transpose(key, perm=[*range(rank - 2), rank - 1, rank - 2])
    scores = op.MatMul(op.Mul(query, _scale(query, scale)), turned)
    if mask is not None:
        scores = op.Add(scores, mask)
    weights = op.Softmax(scores, axis=-1)
    if dropout_p:
        weights, _ = op.Dropout(weights, dropout_p)
    return _where(seen, op.MatMul(weights, value), query)


def _operator(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """The same by the operator Attention, which has no dropout and wants four axes."""
    if dropout_p or any(len(one.shape) != 4 for one in (query, key, value)):
        return _composed(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
    mask, seen = _mask(attn_mask, query)
    y, *_ = _23.Attention(query, key, value, mask, scale=scale, is_causal=int(is_causal))
    return _where(seen, y, query)


def _scale(query: Any, scale: float | None) -> Any:
    """s, by default one over the root of the size of a head."""
    size = query.shape[-1]
    if scale is not None or isinstance(size, int):
        return _number(1 / sqrt(size) if scale is None else scale, query)
    last = _18.Shape(query, start=-1)
    return _18.Reciprocal(_18.Sqrt(_18.CastLike(last, query)))


def _mask(mask: Any, query: Any) -> tuple[Any, Any]:
    """What is added to the scores, and for each query whether it is shown a key."""
    if mask is None:
        return None, None
    hidden = float("-inf")
    if mask.dtype == ir.DataType.BOOL:
        hidden = float(query.dtype.min)
        mask = _18.Where(mask, _number(0.0, query), _number(hidden, query))
    most = _18.ReduceMax(mask, _18.Constant(value_ints=[-1]), keepdims=1)
    return mask, _18.Greater(most, _number(hidden, query))


def _causal(query: Any, key: Any) -> tuple[Any, Any]:
    """A mask that shows each query the keys up to its own place, the first among them always."""
    op = _18
    sizes = op.Concat(op.Shape(query, start=-2, end=-1), op.Shape(key, start=-2, end=-1), axis=0)
    lowest = op.Expand(_number(float(query.dtype.min), query), sizes)
    return op.Trilu(lowest, op.Constant(value_int=1), upper=1), None


def _repeated(value: Any, query: Any) -> Any:
    """Keys or values with each head as often as there are queries for it.

    Raises:
        ValueError: how many heads there are is not known.
    """
    op = _18
    own, wanted = value.shape[-3], query.shape[-3]
    if not isinstance(own, int) or not isinstance(wanted, int):
        raise ValueError("the number of heads is dynamic; leave that axis static")
    if own == wanted:
        return value
    before, after = op.Shape(value, end=-2), op.Shape(value, start=-2)
    times = op.Constant(value_ints=[wanted // own])
    spread = op.Expand(op.Unsqueeze(value, op.Constant(value_ints=[-3])), op.Concat(before, times, after, axis=0))
    outer = op.Shape(value, end=-3)
    return op.Reshape(spread, op.Concat(outer, op.Constant(value_ints=[wanted]), after, axis=0))


def _where(seen: Any, y: Any, query: Any) -> Any:
    return y if seen is None else _18.Where(seen, y, _number(0.0, query))


def _number(value: float, like: Any) -> Any:
    """A number in the dtype of a value."""
    return _18.Constant(value=ir.tensor(value, dtype=like.dtype))

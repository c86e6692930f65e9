"""Attention as torch computes it: softmax(s · q kᵀ + mask) v, and 0 where a query is shown no key at all.

torch has a safe softmax: a row whose mask hides every key gives 0, as in a batch that is padded on the left under a
causal mask. torch.onnx fills a boolean mask with the lowest finite number, so that such a row becomes the mean of all
v; a mask of floats holds −∞ there, and the row becomes NaN. Both are written here with one Where behind the product:

    y = any(mask) ? softmax(s · q kᵀ + mask) v : 0

What is computed of the mask is the same for all layers that share it, and stands in the file once. A mask of floats
that is a bias, such as one that is learned or computed of the queries, hides nothing, and `drop_choices` takes out the
Where.

This module imports torch and onnxscript.
"""

from collections.abc import Callable
from math import sqrt
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxscript
import torch

OPERATOR = torch.ops.aten.scaled_dot_product_attention.default

_18: Any = onnxscript.opset18
_23: Any = onnxscript.opset23

ATTENTION_SINCE = 23
"""The opset from which on ONNX has an operator Attention."""

_MOVES = frozenset(
    {"Cast", "CastLike", "Expand", "Gather", "Identity", "Neg", "Reshape", "Slice", "Split", "Squeeze", "Tile"}
    | {"Transpose", "Trilu", "Unsqueeze"}
)
"""Operators whose first input alone decides whether there is an infinity in the result."""

_MIXES = frozenset({"Add", "Concat", "Max", "Min", "Mul", "Sub", "Sum"})
"""Operators that give none where no input has one."""

_FINITE = frozenset(
    {"Conv", "ConvTranspose", "Einsum", "Gemm", "InstanceNormalization", "LayerNormalization", "MatMul", "Sigmoid"}
    | {"Softmax", "Tanh"}
)
"""Operators that nobody makes −∞ with."""


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
    op, sizes = _18, list(key.shape)
    mask, seen = _causal(query, key) if is_causal else _mask(attn_mask, query)
    if enable_gqa:
        key, value = _repeated(key, query), _repeated(value, query)
        sizes[-3] = query.shape[-3]
    scores = op.MatMul(op.Mul(query, _scale(query, scale)), _turned(key, sizes))
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


def _turned(key: Any, sizes: list[Any]) -> Any:
    """kᵀ, by three axes where the sizes are known.

    ONNX Runtime moves a Transpose of four axes up through what turns the keys by their places, and cannot make it part
    of the product then: with rotary embeddings attention took 4 to 8 % longer.
    """
    op, rank = _18, len(sizes)
    if rank < 4 or not all(isinstance(size, int) for size in sizes):
        return op.Transpose(key, perm=[*range(rank - 2), rank - 1, rank - 2])
    *outer, length, width = sizes
    flat = op.Reshape(key, op.Constant(value_ints=[-1, length, width]))
    return op.Reshape(op.Transpose(flat, perm=[0, 2, 1]), op.Constant(value_ints=[*outer, width, length]))


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


def drop_choices(model: ir.Model) -> None:
    """Takes out what asks whether a mask of floats hides all keys, where no −∞ can be in it."""
    for node in [node for node in model.graph.all_nodes() if node.op_type == "Where" and node.domain == ""]:
        mask = _asked(node.inputs[0])
        if mask is not None and not _may_hide(mask):
            chosen = node.inputs[1]
            assert chosen is not None
            node.outputs[0].replace_all_uses_with(chosen, replace_graph_outputs=True)


def _asked(condition: ir.Value | None) -> ir.Value | None:
    """m, where a condition is max(m) > −∞."""
    node = None if condition is None else condition.producer()
    if node is None or node.op_type != "Greater" or node.domain:
        return None
    most, bound = node.inputs
    number = ir.convenience.get_const_tensor(bound) if bound is not None else None
    reduced = None if most is None else most.producer()
    if number is None or reduced is None or reduced.op_type != "ReduceMax" or reduced.domain:
        return None
    return reduced.inputs[0] if np.isneginf(number.numpy().astype(np.float64)).all() else None


def _may_hide(value: ir.Value | None) -> bool:
    """Whether there may be −∞ in a value, by what it is computed of."""
    queue, seen = [value], set[ir.Value | None]()
    while queue:
        value = queue.pop()
        if value is None or value in seen:
            continue
        seen.add(value)
        number, node = ir.convenience.get_const_tensor(value), value.producer()
        if number is not None:
            if not np.isfinite(number.numpy().astype(np.float64)).all():
                return True
        elif node is None or node.domain:
            return True
        elif node.op_type == "Where":
            queue += node.inputs[1:]
        elif node.op_type in _MOVES:
            queue += node.inputs[:1]
        elif node.op_type in _MIXES:
            queue += node.inputs
        elif node.op_type not in _FINITE:
            return True
    return False

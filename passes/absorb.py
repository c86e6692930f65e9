"""ABSORB, linear operators: they take an affine map into their weights.

after     s · (W x + b) + t  =  (s W) x + (s b + t)
before    W (s · x + t) + b  =  (W s) x + (W t + b)
"""

import math
from functools import partial

import numpy as np
import onnx_ir as ir

from normfuse.affine import Affine, Float64
from normfuse.passes.access import RefusedError, attribute, dims, rank
from normfuse.passes.deal import Deal, Need, NewWeight, Offer
from normfuse.passes.norms import need_more_than_rounding
from normfuse.passes.rule import Rule


def conv_takes_after(offer: Offer) -> tuple[Deal, ...]:
    """W'[o] = s[o] · W[o], b'[o] = s[o] · b[o] + t[o]; W (O, I/groups, *kernel), along axis 1 of the output."""
    weight = offer.constant(1)
    return _scaled_rows(offer, weight, weight.shape[0], 0)


def conv_transpose_takes_after(offer: Offer) -> tuple[Deal, ...]:
    """W'[i, o'] = s[g(i) · O/groups + o'] · W[i, o']; W (I, O/groups, *kernel), g(i) the group of input channel i."""
    weight, groups = offer.constant(1), attribute(offer.node, "group", 1)
    return _scaled_rows(offer, weight, weight.shape[1] * groups, 1, groups)


def _scaled_rows(offer: Offer, weight: Float64, channels: int, axis: int, groups: int = 1) -> tuple[Deal, ...]:
    scale, shift = _channels(offer.affine, 1, channels)
    if axis == 0:
        scaled = weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
    else:
        grouped = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
        scaled = (grouped * scale.reshape(groups, 1, -1, *[1] * (weight.ndim - 2))).reshape(weight.shape)
    dtype = offer.dtype(1)
    changed: tuple[NewWeight, ...] = (NewWeight(offer.node, 1, scaled, dtype, axis),)
    bias = offer.optional(2)
    if bias is not None or np.any(shift):
        changed += (NewWeight(offer.node, 2, scale * (0.0 if bias is None else bias) + shift, dtype, None),)
    return (Deal(changed),)


def conv_takes_before(offer: Offer) -> tuple[Deal, ...]:
    """W'[o, i] = W[o, i] · s[c], b'[o] = b[o] + Σ_{i, kernel} W[o, i] · t[c], c = g(o) · I/groups + i.

    The shift is constant only where every tap of the kernel meets data: no zero padding.
    """
    offer.only_data()
    weight, groups = offer.constant(1), attribute(offer.node, "group", 1)
    scale, shift = _channels(offer.affine, 1, weight.shape[1] * groups)
    kernel = [1] * (weight.ndim - 2)
    grouped = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
    scaled = (grouped * scale.reshape(groups, 1, -1, *kernel)).reshape(weight.shape)
    dtype = offer.dtype(1)
    changed: tuple[NewWeight, ...] = (NewWeight(offer.node, 1, scaled, dtype, 0),)
    if np.any(shift):
        if _pads(offer.node, weight.shape[2:]):
            raise RefusedError("shift crosses a zero-padded border")
        taps = grouped.reshape(*grouped.shape[:3], -1).sum(axis=3)
        moved = np.einsum("goi,gi->go", taps, shift.reshape(groups, -1)).ravel()
        bias = offer.optional(2)
        changed += (NewWeight(offer.node, 2, moved + (0.0 if bias is None else bias), dtype),)
    return (Deal(changed),)


def conv_transpose_takes_before(offer: Offer) -> tuple[Deal, ...]:
    """W'[i] = s[i] · W[i]; b'[o] = b[o] + Σ_i W[i, o] · t[i] only where the kernel is a single tap.

    Elsewhere the number of taps that meet differs from output to output.
    """
    offer.only_data()
    weight, groups = offer.constant(1), attribute(offer.node, "group", 1)
    scale, shift = _channels(offer.affine, 1, weight.shape[0])
    dtype = offer.dtype(1)
    changed: tuple[NewWeight, ...] = (
        NewWeight(offer.node, 1, weight * scale.reshape(-1, *[1] * (weight.ndim - 1)), dtype),
    )
    if np.any(shift):
        steps = attribute(offer.node, "strides", [1])
        outer = attribute(offer.node, "output_padding", [0])
        odd_size = "output_shape" in offer.node.attributes
        if math.prod(weight.shape[2:]) != 1 or max(steps) > 1 or any(outer) or odd_size:
            raise RefusedError("shift meets a different number of kernel taps from output to output")
        if _pads(offer.node, weight.shape[2:]):
            raise RefusedError("shift crosses a cropped border")
        taps = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1])
        moved = np.einsum("gio,gi->go", taps, shift.reshape(groups, -1)).ravel()
        bias = offer.optional(2)
        changed += (NewWeight(offer.node, 2, moved + (0.0 if bias is None else bias), dtype),)
    return (Deal(changed),)


def gemm_takes_after(offer: Offer) -> tuple[Deal, ...]:
    """s · (α A B + β C) + t = α A (B s) + (β C s + t), along the columns; along the rows with A constant: (s A) B."""
    rows = offer.affine.axis == 0 or (offer.affine.axis is None and offer.weights.array(offer.input(1)) is None)
    index, transposed = (0, "transA") if rows else (1, "transB")
    weight = offer.constant(index)
    axis = (
        int(bool(attribute(offer.node, transposed, 0))) if rows else 1 - int(bool(attribute(offer.node, transposed, 0)))
    )
    scale, shift = _channels(offer.affine, 0 if rows else 1, weight.shape[axis])
    scaled = weight * (scale[:, None] if axis == 0 else scale[None, :])
    addend = offer.optional(2)
    changed: tuple[NewWeight, ...] = (NewWeight(offer.node, index, scaled, offer.dtype(index), axis),)
    if addend is None and not np.any(shift):
        return (Deal(changed),)
    along = (slice(None), None) if rows else (slice(None),)
    kept = 0.0 if addend is None else float(attribute(offer.node, "beta", 1.0)) * addend
    return (_with_addend(offer, changed, kept * scale[along] + shift[along], addend),)


def gemm_takes_before(offer: Offer) -> tuple[Deal, ...]:
    """α (A s + t) B + β C = α A (s B) + (α t B + β C), with B constant; with A constant alike from the left."""
    if offer.index > 1:
        raise RefusedError("it is the addend of a Gemm")
    left = offer.index == 0
    weight = offer.constant(1 if left else 0)
    data_transposed = bool(attribute(offer.node, "transA" if left else "transB", 0))
    transposed = bool(attribute(offer.node, "transB" if left else "transA", 0))
    inner = int(not data_transposed) if left else int(data_transposed)
    axis = int(transposed) if left else int(not transposed)
    scale, shift = _channels(offer.affine, inner, weight.shape[axis])
    scaled = weight * (scale[:, None] if axis == 0 else scale[None, :])
    slot = 1 if left else 0
    changed: tuple[NewWeight, ...] = (NewWeight(offer.node, slot, scaled, offer.dtype(slot)),)
    if not np.any(shift):
        return (Deal(changed),)
    addend = offer.optional(2)
    moved = float(attribute(offer.node, "alpha", 1.0)) * np.tensordot(shift, weight, (0, axis))
    kept = 0.0 if addend is None else float(attribute(offer.node, "beta", 1.0)) * addend
    return (_with_addend(offer, changed, kept + (moved if left else moved[:, None]), addend),)


def _with_addend(offer: Offer, changed: tuple[NewWeight, ...], new: Float64, old: Float64 | None) -> Deal:
    if old is not None and new.size > old.size and new.ndim == 2 and min(new.shape) > 1:
        raise RefusedError("its addend would grow from a vector to a matrix")
    node = offer.node
    dtype = changed[0].dtype
    return Deal((*changed, NewWeight(node, 2, np.asarray(new), dtype)), (lambda: _set_float(node, "beta", 1.0),))


def matmul_takes_after(offer: Offer) -> tuple[Deal, ...]:
    """s · (x W) + t = x (W s) + t along the last axis; s · (W x) + t = (s W) x + t along the last but one.

    The shift becomes the bias of a Gemm where both operands are matrices, an Add elsewhere.
    """
    index = 0 if offer.weights.array(offer.input(0)) is not None else 1
    weight = offer.constant(index)
    if weight.ndim < 2:
        raise RefusedError("its weight is a vector")
    if index == 0 and rank(offer.input(1)) < 2:
        raise RefusedError("its data is a vector")
    out_rank = rank(offer.node.outputs[0]) if offer.affine.axis is not None or index == 0 else None
    axis = weight.ndim - (1 if index == 1 else 2)
    place = None if out_rank is None else out_rank - (1 if index == 1 else 2)
    scale, shift = _channels(offer.affine, place, weight.shape[axis])
    scaled = weight * (scale if index == 1 else scale[:, None])
    changed: tuple[NewWeight, ...] = (NewWeight(offer.node, index, scaled, offer.dtype(index), axis),)
    if not np.any(shift):
        return (Deal(changed),)
    return (_biased(offer, changed, shift if index == 1 else shift[:, None], weight, index),)


def matmul_takes_before(offer: Offer) -> tuple[Deal, ...]:
    """(s · x + t) W = x (s W) + t W: the scale joins the weight, t W goes on as a shift of the output."""
    index = 1 - offer.index
    weight = offer.constant(index)
    if weight.ndim < 2:
        raise RefusedError("its weight is a vector")
    data_rank = rank(offer.input(offer.index))
    if data_rank < 2:
        raise RefusedError("its data is a vector")
    axis = weight.ndim - (2 if index == 1 else 1)
    place = data_rank - (1 if index == 1 else 2)
    scale, shift = _channels(offer.affine, place, weight.shape[axis])
    scaled = weight * (scale[:, None] if index == 1 else scale)
    changed: tuple[NewWeight, ...] = (NewWeight(offer.node, index, scaled, offer.dtype(index)),)
    if not np.any(shift):
        return (Deal(changed),)
    if weight.ndim > 2:
        raise RefusedError("the shift would differ from batch to batch of its weight")
    moved = shift @ weight if index == 1 else weight @ shift
    onward = Affine.of(max(data_rank, 2) - (1 if index == 1 else 2), 1.0, moved)
    further = Deal(changed, needs=(Need(offer.node, 0, onward, "before"),))
    return further, _biased(offer, changed, moved if index == 1 else moved[:, None], weight, index)


def _biased(offer: Offer, changed: tuple[NewWeight, ...], bias: Float64, weight: Float64, index: int) -> Deal:
    """A MatMul that has to add a bias: a Gemm where both operands are matrices, a MatMul and an Add elsewhere."""
    node, weights, dtype = offer.node, offer.weights, changed[0].dtype
    data = dims(offer.input(1 - index))
    if weight.ndim == 2 and data is not None and len(data) == 2 and weights.opset >= 7:

        def become_gemm() -> None:
            node.op_type = "Gemm"
            weights.put(node, 2, bias, dtype)

        return Deal(changed, (become_gemm,))
    return Deal(changed, (partial(_append_add, offer, bias, dtype),), added=1)


def _append_add(offer: Offer, bias: Float64, dtype: ir.DataType) -> None:
    output = offer.node.outputs[0]
    graph = offer.node.graph
    assert graph is not None
    add = ir.node("Add", [output], name=offer.weights.fresh(f"{offer.node.name}_bias"))
    total, stem = add.outputs[0], output.name
    total.name, total.shape, total.type = offer.weights.fresh(f"{stem}_biased"), output.shape, output.type
    if output.is_graph_output():
        output.name, total.name = total.name, stem
        total.metadata_props.update(output.metadata_props)
    output.replace_all_uses_with(total, replace_graph_outputs=True)
    graph.insert_after(offer.node, add)
    add.resize_inputs(2)
    add.replace_input_with(0, output)
    add.replace_input_with(1, offer.weights.new(bias, dtype, f"{stem}_bias", add))


def einsum_takes_after(offer: Offer) -> tuple[Deal, ...]:
    """The scale joins the constant operand along the label of the output's axis; the shift becomes an Add."""
    operands, result = _equation(offer)
    index = _constant_operand(offer)
    axis = offer.affine.axis
    deal = _einsum_scaled(offer, operands[index], index, None if axis is None else result[axis])
    shift = offer.affine.shift
    if not np.any(shift):
        return (deal,)
    bias = shift if axis is None else shift.reshape(-1, *[1] * (len(result) - 1 - axis))
    return (Deal(deal.weights, (partial(_append_add, offer, bias, offer.dtype(index)),), added=1),)


def einsum_takes_before(offer: Offer) -> tuple[Deal, ...]:
    """The scale joins the constant operand along the label of the data's axis; the shift goes on as a product."""
    operands, result = _equation(offer)
    index = _constant_operand(offer)
    if index == offer.index:
        raise RefusedError("both operands are constant")
    axis = offer.affine.axis
    label = None if axis is None else operands[offer.index][axis]
    deal = _einsum_scaled(offer, operands[index], index, label)
    shift = offer.affine.shift
    if not np.any(shift):
        return (deal,)
    sizes = dict(zip(operands[index], offer.constant(index).shape, strict=True))
    data = operands[offer.index]
    if any(c not in sizes and c not in result for c in data):
        raise RefusedError("the shift is summed over an axis of unknown size")
    spread = np.broadcast_to(shift.reshape([-1 if c == label else 1 for c in data]), [sizes.get(c, 1) for c in data])
    pair = (spread, offer.constant(index)) if index == 1 else (offer.constant(index), spread)
    moved = np.einsum(f"{','.join(operands)}->{result}", *pair)
    wide = [i for i, size in enumerate(moved.shape) if size > 1]
    if len(wide) > 1:
        raise RefusedError("the shift would vary along more than one axis")
    onward = Affine.of(wide[0] if wide else None, 1.0, moved.ravel())
    return (Deal(deal.weights, needs=(Need(offer.node, 0, onward, "before"),)),)


def _einsum_scaled(offer: Offer, labels: str, index: int, label: str | None) -> Deal:
    weight = offer.constant(index)
    if label is None:
        return Deal((NewWeight(offer.node, index, weight * offer.affine.scale, offer.dtype(index)),))
    if label not in labels:
        raise RefusedError("its constant operand does not have the channels")
    axis = labels.index(label)
    scale, _ = _channels(offer.affine, offer.affine.axis, weight.shape[axis])
    shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
    return Deal((NewWeight(offer.node, index, weight * scale.reshape(shape), offer.dtype(index), axis),))


def _equation(offer: Offer) -> tuple[list[str], str]:
    text = attribute(offer.node, "equation", "").replace(" ", "")
    terms, arrow, result = text.partition("->")
    operands = terms.split(",")
    if not arrow:
        result = "".join(sorted(c for c in set(terms) - {","} if terms.count(c) == 1))
    repeated = any(len(set(labels)) != len(labels) for labels in (*operands, result))
    if len(operands) != 2 or "." in text or repeated:
        raise RefusedError("its equation is not a product of two plain operands")
    return operands, result


def _constant_operand(offer: Offer) -> int:
    for index in (0, 1):
        if offer.weights.array(offer.input(index)) is not None:
            return index
    raise RefusedError("its weight is computed at run time")


def gather_takes_after(offer: Offer) -> tuple[Deal, ...]:
    """s · table[i] + t = (s · table + t)[i], along an axis of the table that is not looked up."""
    table = offer.constant(0)
    looked_up = attribute(offer.node, "axis", 0) % table.ndim
    axis = offer.affine.axis
    if axis is not None:
        spread = rank(offer.input(1)) - 1
        if looked_up <= axis <= looked_up + spread:
            raise RefusedError("the map differs along the axis that is looked up")
        axis = axis if axis < looked_up else axis - spread
        _channels(offer.affine, offer.affine.axis, table.shape[axis])
        moved = offer.affine.along(axis)(table)
    else:
        moved = offer.affine(table)
    return (Deal((NewWeight(offer.node, 0, moved, offer.dtype(0), axis),)),)


def norm_takes_after(offer: Offer) -> tuple[Deal, ...]:
    """s · (γ x̂ + β) + t = (s γ) x̂ + (s β + t), x̂ the standardized input; γ and β along one axis of it."""
    need_more_than_rounding(offer.node, offer.weights)
    gamma = offer.constant(1)
    if gamma.ndim != 1:
        raise RefusedError("its scale varies along more than one axis")
    if offer.node.op_type == "LayerNormalization":
        axis = rank(offer.input(0)) - 1
    elif offer.node.op_type == "GroupNormalization" and offer.weights.opset < 21:
        raise RefusedError("its scale is per group before opset 21")
    else:
        axis = 1
    scale, shift = _channels(offer.affine, axis, gamma.size)
    dtype = offer.dtype(1)
    changed: tuple[NewWeight, ...] = (NewWeight(offer.node, 1, gamma * scale, dtype, 0),)
    beta = offer.optional(2)
    if beta is not None or np.any(shift):
        changed += (NewWeight(offer.node, 2, scale * (0.0 if beta is None else beta) + shift, dtype),)
    return (Deal(changed),)


def _channels(affine: Affine, axis: int | None, size: int) -> tuple[Float64, Float64]:
    """Scale and shift for each of `size` channels along an axis.

    Raises:
        RefusedError: the map varies along another axis.
    """
    if affine.axis not in (None, axis):
        raise RefusedError(f"the map varies along axis {affine.axis}, the channels are axis {axis}")
    if affine.size not in (1, size):
        raise RefusedError(f"the map has {affine.size} channels, the weight {size}")
    return affine.spread(size)


def _pads(node: ir.Node, kernel: tuple[int, ...]) -> bool:
    """Whether a convolution pads with zeros."""
    if attribute(node, "auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER"):
        return any(size != 1 for size in kernel)
    return any(attribute(node, "pads", [0]))


def _set_float(node: ir.Node, name: str, number: float) -> None:
    node.attributes[name] = ir.AttrFloat32(name, number)


_LINEAR = "a linear operator followed by an affine map is a linear operator"
_LINEAR_BEFORE = "a linear operator of an affine map is a linear operator and a bias"

LINEAR: tuple[Rule, ...] = (
    Rule("conv-after", "absorb", ("Conv",), "after", conv_takes_after, _LINEAR),
    Rule(
        "conv-before",
        "absorb",
        ("Conv",),
        "before",
        conv_takes_before,
        f"{_LINEAR_BEFORE}, where no tap of the kernel meets padding",
    ),
    Rule("conv-transpose-after", "absorb", ("ConvTranspose",), "after", conv_transpose_takes_after, _LINEAR),
    Rule(
        "conv-transpose-before",
        "absorb",
        ("ConvTranspose",),
        "before",
        conv_transpose_takes_before,
        f"{_LINEAR_BEFORE}, where each output meets every tap",
    ),
    Rule("gemm-after", "absorb", ("Gemm",), "after", gemm_takes_after, _LINEAR),
    Rule("gemm-before", "absorb", ("Gemm",), "before", gemm_takes_before, _LINEAR_BEFORE),
    Rule("matmul-after", "absorb", ("MatMul",), "after", matmul_takes_after, _LINEAR),
    Rule("matmul-before", "absorb", ("MatMul",), "before", matmul_takes_before, _LINEAR_BEFORE),
    Rule("einsum-after", "absorb", ("Einsum",), "after", einsum_takes_after, _LINEAR),
    Rule("einsum-before", "absorb", ("Einsum",), "before", einsum_takes_before, _LINEAR_BEFORE),
    Rule(
        "gather-after", "absorb", ("Gather",), "after", gather_takes_after, "looking up commutes with mapping the table"
    ),
    Rule(
        "norm-after",
        "absorb",
        ("GroupNormalization", "InstanceNormalization", "LayerNormalization"),
        "after",
        norm_takes_after,
        "a normalization ends in a scale and a shift of its own",
    ),
)

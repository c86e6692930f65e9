"""ABSORB, other maps: an affine map takes another one in, constants take all, a centred norm drops a shift.

A₂(A₁(x)) = A(x)        and where one node cannot hold A, half of it is taken and half passes.
"""

from functools import partial

import numpy as np
import onnx_ir as ir

from normfuse.affine import Affine
from normfuse.passes.access import RefusedError, attribute, known_dims, rank
from normfuse.passes.cancelling import check_composing
from normfuse.passes.deal import Deal, Need, Offer
from normfuse.passes.norms import need_more_than_rounding
from normfuse.passes.rule import Rule
from normfuse.passes.sources import Source, read
from normfuse.passes.weights import Weights, constant_tensor, fits, is_float


def affine_takes_affine(offer: Offer) -> tuple[Deal, ...]:
    """The composition of two maps is one map: written as one BatchNormalization, Mul or Add, or as nothing at all."""
    source = _source(offer)
    if source is None:
        return ()
    if offer.side == "after":
        check_composing(source.data, source.affine, offer.affine)
    else:
        check_composing(source.data, offer.affine, source.affine)
    merged = _merged(offer, source)
    deals = []
    if is_writable(source, merged, offer.weights):
        deals.append(Deal(rewrites=(partial(write, source, merged, offer.weights),)))
    return (*deals, *_half_taken(offer, source))


def _half_taken(offer: Offer, source: Source) -> tuple[Deal, ...]:
    """s · (x + b) + t = s · x + (s · b + t); (s · x + t) + b = s · (x + (t + b) / s); and with Mul the shift passes."""
    here, passing = source.affine, offer.affine
    deals = []
    if offer.side == "after":
        need = partial(Need, source.node, source.index, side="after")
        if here.keeps_scale:
            kept = here.then(passing).shifting
            deals.append((kept, need(affine=passing.scaling)))
        if here.keeps_origin and here.is_invertible and passing.is_invertible:
            kept = here.then(passing).scaling
            deals.append((kept, need(affine=here.then(passing).preshifting)))
    else:
        need = partial(Need, source.node, 0, side="before")
        if here.keeps_scale and passing.is_invertible:
            kept = passing.then(here).preshifting
            deals.append((kept, need(affine=passing.scaling)))
        if here.keeps_origin:
            kept = passing.then(here).scaling
            deals.append((kept, need(affine=passing.then(here).shifting)))
    return tuple(
        Deal(rewrites=(partial(write, source, kept, offer.weights),), needs=(onward,))
        for kept, onward in deals
        if not onward.affine.is_identity and is_writable(source, kept, offer.weights)
    )


def _source(offer: Offer) -> Source | None:
    """The node as a map of the value the offer stands at, None where none of its operands is constant."""
    source = read(offer.node, offer.weights)
    if isinstance(source, str):
        raise RefusedError(source)
    if source is None or (offer.side == "before" and source.index != offer.index):
        return None
    if not source.affine.meets(offer.affine):
        raise RefusedError(f"the maps vary along axes {source.affine.axis} and {offer.affine.axis}")
    return source


def _merged(offer: Offer, source: Source) -> Affine:
    if offer.side == "after":
        return source.affine.then(offer.affine)
    return offer.affine.then(source.affine)


def is_writable(source: Source, affine: Affine, weights: Weights) -> bool:
    """Whether one node in the place of a source can hold a map."""
    dtype = source.data.dtype
    if dtype is None:
        return False
    if source.node.op_type == "BatchNormalization":
        gamma = constant_tensor(source.node.inputs[1])
        return (
            affine.axis in (None, 1)
            and gamma is not None
            and fits(affine.scale, gamma.dtype, 0)
            and fits(affine.shift, gamma.dtype, 0)
        )
    if affine.axis is not None and source.data.shape is None:
        return False
    if affine.is_identity or _is_negation(source, affine):
        return True
    if not is_float(dtype) or weights.opset < 7:
        return False
    if affine.keeps_origin:
        return fits(affine.scale, dtype, 0)
    return affine.keeps_scale and fits(affine.shift, dtype, 0)


def write(source: Source, affine: Affine, weights: Weights) -> None:
    """Makes the node of a source hold a map: γ, β, 0, 1 with ε = 0 for a BatchNormalization, else one Mul or Add."""
    node = source.node
    if node.op_type == "BatchNormalization":
        write_batch_norm(node, affine, weights)
        return
    if _is_negation(source, affine):
        return
    dtype, data = source.data.dtype, source.data
    assert dtype is not None
    for name in tuple(node.attributes):
        node.attributes.pop(name)
    if affine.is_identity:
        node.op_type = "Identity"
        node.resize_inputs(1)
        node.replace_input_with(0, data)
        return
    scales = affine.keeps_origin
    vector = affine.scale if scales else affine.shift
    shape = () if affine.axis is None else (-1, *[1] * (rank(data) - 1 - affine.axis))
    constant = weights.new(
        vector.reshape(shape), dtype, f"{node.outputs[0].name}_{'scale' if scales else 'shift'}", node
    )
    node.op_type = "Mul" if scales else "Add"
    node.resize_inputs(2)
    node.replace_input_with(0, data)
    node.replace_input_with(1, constant)


def _is_negation(source: Source, affine: Affine) -> bool:
    """Whether a Neg computes the map as it stands: of integers too, at any opset."""
    return source.node.op_type == "Neg" and affine.keeps_origin and affine.axis is None and affine.scale[0] == -1.0


def write_batch_norm(node: ir.Node, affine: Affine, weights: Weights) -> None:
    """y = (scale · (x − 0) / √(1 + 0)) + shift."""
    old = node.inputs[1:5]
    gamma = weights.array(old[0])
    assert gamma is not None
    scale, shift = affine.spread(gamma.size)
    for index, array in enumerate((scale, shift, np.zeros(gamma.size), np.ones(gamma.size)), 1):
        tensor = constant_tensor(node.inputs[index])
        assert tensor is not None
        weights.put(node, index, np.array(array), tensor.dtype)
    node.attributes["epsilon"] = ir.AttrFloat32("epsilon", 0.0)


def instance_norm_drops_shift(offer: Offer) -> tuple[Deal, ...]:
    """(x + t) − mean(x + t) = x − mean(x) for t constant over the spatial axes."""
    return _dropped(offer, {None, 0, 1})


def layer_norm_drops_shift(offer: Offer) -> tuple[Deal, ...]:
    """(x + t) − mean(x + t) = x − mean(x) for t constant over the normalized axes."""
    axis = attribute(offer.node, "axis", -1)
    size = rank(offer.node.inputs[0]) if offer.affine.axis is not None else 1
    if any(output.uses() or output.is_graph_output() for output in offer.node.outputs[1:2]):
        raise RefusedError("its mean is read")
    return _dropped(offer, {None, *range(axis % size)})


def group_norm_drops_shift(offer: Offer) -> tuple[Deal, ...]:
    """(x + t) − mean(x + t) = x − mean(x) for t constant over each group of channels."""
    groups = attribute(offer.node, "num_groups")
    affine = offer.affine
    if affine.axis == 1 and affine.size % groups == 0:
        shift = affine.shift.reshape(groups, -1)
        if np.any(shift != shift[:, :1]):
            raise RefusedError("the shift varies within a group")
        return _dropped(offer, {1})
    return _dropped(offer, {None, 0})


def mean_variance_drops_shift(offer: Offer) -> tuple[Deal, ...]:
    """(x + t) − mean(x + t) = x − mean(x) for t constant over the axes of the mean."""
    axes = attribute(offer.node, "axes", [0, 2, 3])
    size = len(known_dims(offer.node.inputs[0]))
    return _dropped(offer, {None, *range(size)} - {axis % size for axis in axes})


def softmax_drops_shift(offer: Offer) -> tuple[Deal, ...]:
    """exp(x + t) / Σ exp(x + t) = exp(x) / Σ exp(x) for t constant over the axis of the sum."""
    if offer.weights.opset < 13:
        return _dropped(offer, {None})
    size = rank(offer.node.inputs[0])
    return _dropped(offer, {None, *range(size)} - {attribute(offer.node, "axis", -1) % size})


def _dropped(offer: Offer, axes: set[int | None]) -> tuple[Deal, ...]:
    if offer.index != 0:
        raise RefusedError("it is not the data of the operator")
    if not offer.affine.keeps_scale:
        raise RefusedError(
            "a scale in front of it would change what ε weighs" if _has_epsilon(offer) else "it is scaled"
        )
    if offer.affine.axis not in axes:
        raise RefusedError("the shift varies over the elements of one mean")
    need_more_than_rounding(offer.node, offer.weights)
    return (Deal(),)


def _has_epsilon(offer: Offer) -> bool:
    return offer.node.op_type.endswith("Normalization")


_COMPOSE = "affine maps along one axis compose to one"
_CENTRED = "what is the same for all that is averaged goes with the mean"

AFFINE: tuple[Rule, ...] = (
    Rule("affine-after", "absorb", ("BatchNormalization",), "after", affine_takes_affine, _COMPOSE),
    Rule("affine-before", "absorb", ("BatchNormalization",), "before", affine_takes_affine, _COMPOSE),
    Rule("arithmetic-after", "absorb", ("Add", "Div", "Mul", "Sub"), "after", affine_takes_affine, _COMPOSE),
    Rule("arithmetic-before", "absorb", ("Add", "Div", "Mul", "Sub"), "before", affine_takes_affine, _COMPOSE),
    Rule(
        "instance-norm-drops-shift",
        "absorb",
        ("InstanceNormalization",),
        "before",
        instance_norm_drops_shift,
        _CENTRED,
    ),
    Rule("layer-norm-drops-shift", "absorb", ("LayerNormalization",), "before", layer_norm_drops_shift, _CENTRED),
    Rule("group-norm-drops-shift", "absorb", ("GroupNormalization",), "before", group_norm_drops_shift, _CENTRED),
    Rule(
        "mean-variance-drops-shift",
        "absorb",
        ("MeanVarianceNormalization",),
        "before",
        mean_variance_drops_shift,
        _CENTRED,
    ),
    Rule(
        "softmax-drops-shift",
        "absorb",
        ("LogSoftmax", "Softmax"),
        "before",
        softmax_drops_shift,
        "a common factor cancels in the quotient",
    ),
)

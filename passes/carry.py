"""CARRY: operators that let an affine map pass, and how it looks on their other side.

    f(s · x + t) = s' · f(x) + t'

An offer from behind (`after`) goes on to the inputs, one from the front (`before`) to the outputs. A law that sees one
side serves the other by swapping the dimensions of input and output.
"""

import numpy as np
import onnx_ir as ir

from normfuse.affine import Affine
from normfuse.passes.access import RefusedError, attribute, known_dims, rank
from normfuse.passes.carry_places import PLACES
from normfuse.passes.deal import Deal, Need, Offer, passes_on
from normfuse.passes.rule import Rule
from normfuse.passes.sources import drops_nothing
from normfuse.passes.weights import is_float

_RANGE = {ir.DataType.FLOAT16: 5, ir.DataType.BFLOAT16: 8, ir.DataType.FLOAT: 8, ir.DataType.DOUBLE: 11}
"""Bits of the exponent."""

_FREE_SCALE = 2.0**40
"""Scales within this bound move freely past products, but for float16."""

_BRANCHES = 8
"""So many branches of a sum are asked at most to take a shift for all of it."""


def _keeps_range(offer: Offer) -> None:
    """Makes sure that no intermediate result overflows which did not overflow before.

    A scale that leaves the front of a product makes it larger where it was less than one; one that goes in front makes
    a factor larger where it is more than one.

    Raises:
        RefusedError: one could overflow.
    """
    value = offer.node.outputs[0]
    bound = 1.0 if value.dtype == ir.DataType.FLOAT16 else _FREE_SCALE
    sizes = np.abs(offer.affine.scale)
    if (offer.side == "before" and sizes.min() < 1 / bound) or (offer.side == "after" and sizes.max() > bound):
        raise RefusedError(f"without the scale in its place a {offer.node.op_type} could overflow")


def unchanged(offer: Offer) -> tuple[Deal, ...]:
    """f = identity: s' = s, t' = t."""
    offer.only_data()
    return (passes_on(offer, offer.affine),)


def cast(offer: Offer) -> tuple[Deal, ...]:
    """A Cast between floating-point dtypes commutes with the map up to rounding.

    Into a dtype of smaller range only maps go that cannot overflow there what did not overflow before: |t| ≤ 1024, and
    where s · x + t is stored in it 1/16 ≤ |s| ≤ 1, where x is stored in it 1 ≤ |s| ≤ 16.
    """
    here, there = offer.ends
    dtypes = [None if value is None else value.dtype for value in (here, there)]
    if dtypes[0] is None or dtypes[1] is None or not all(map(is_float, dtypes)):
        raise RefusedError("it casts to or from a dtype that is not floating-point")
    if dtypes[1].bitwidth < dtypes[0].bitwidth or _RANGE[dtypes[1]] < _RANGE[dtypes[0]]:
        size, shift = np.abs(offer.affine.scale), np.abs(offer.affine.shift)
        least, most = (1 / 16, 1) if offer.side == "after" else (1, 16)
        if size.max() > most or size.min() < least or shift.max() > 1024:
            raise RefusedError(f"the map could overflow or underflow {dtypes[1].name} on the other side of the Cast")
    return (passes_on(offer, offer.affine),)


def scale_through_relu(offer: Offer) -> tuple[Deal, ...]:
    """max(s · x, α · s · x) = s · max(x, α · x) for s > 0 and 0 ≤ α; also where α is negative, by the sign of x."""
    offer.only_data()
    if not offer.affine.keeps_origin:
        raise RefusedError(f"shift does not pass a {offer.node.op_type}")
    if not offer.affine.is_positive:
        raise RefusedError(f"a scale that is not positive does not pass a {offer.node.op_type}")
    return (passes_on(offer, offer.affine),)


def through_max(offer: Offer) -> tuple[Deal, ...]:
    """max(s · x + t) = s · max(x) + t for s > 0, the border being −∞."""
    offer.only_data()
    if any(output.uses() or output.is_graph_output() for output in offer.node.outputs[1:]):
        raise RefusedError("the positions of its maxima are read")
    if not offer.affine.is_positive:
        raise RefusedError(f"a scale that is not positive does not pass a {offer.node.op_type}")
    _spatial(offer)
    return (passes_on(offer, offer.affine),)


def through_average(offer: Offer) -> tuple[Deal, ...]:
    """mean(s · x + t) = s · mean(x) + t where all that is averaged is data."""
    offer.only_data()
    node = offer.node
    _spatial(offer)
    if not offer.affine.keeps_origin and node.op_type == "AveragePool" and attribute(node, "count_include_pad", 0):
        same = attribute(node, "auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER")
        if same or any(attribute(node, "pads", [0])) or attribute(node, "ceil_mode", 0):
            raise RefusedError("shift meets padding that is counted in the average")
    return (passes_on(offer, offer.affine),)


def _spatial(offer: Offer) -> None:
    if offer.affine.axis not in (None, 0, 1):
        raise RefusedError("the map varies along an axis that is pooled")


def through_reduction(offer: Offer) -> tuple[Deal, ...]:
    """mean(s · x + t) = s · mean(x) + t over axes along which s and t are constant.

    A sum carries the scale only, a maximum or minimum a positive scale and the shift.
    """
    offer.only_data()
    node, affine = offer.node, offer.affine
    if node.op_type == "ReduceSum":
        if not affine.keeps_origin:
            raise RefusedError("shift does not pass a sum as it is")
        _keeps_range(offer)
    if node.op_type in ("ReduceMax", "ReduceMin") and not affine.is_positive:
        raise RefusedError(f"a scale that is not positive does not pass a {node.op_type}")
    if affine.axis is None:
        return (passes_on(offer, affine),)
    size = rank(node.inputs[0])
    reduced = _axes(offer, size)
    kept = [axis for axis in range(size) if axis not in reduced]
    kept_out = kept if attribute(node, "keepdims", 1) else list(range(len(kept)))
    pairs = dict(zip(kept_out, kept, strict=True)) if offer.side == "after" else dict(zip(kept, kept_out, strict=True))
    if affine.axis not in pairs:
        raise RefusedError("the map varies along an axis that is reduced")
    return (passes_on(offer, affine.along(pairs[affine.axis])),)


def _axes(offer: Offer, size: int) -> set[int]:
    """The axes of an operator that takes them as attribute or as input 1; all where there are none."""
    axes = attribute(offer.node, "axes")
    if axes is None and offer.input(1) is not None:
        axes = offer.weights.integers(offer.input(1))
        if axes is None:
            raise RefusedError("its axes are computed at run time")
    if not axes:
        if attribute(offer.node, "noop_with_empty_axes", 0):
            return set()
        return set(range(size))
    return {axis % size for axis in axes}


def sum_of_branches(offer: Offer) -> tuple[Deal, ...]:
    """s · (a ± b) + t = (s · a + t) ± s · b: all branches take the scale, one of them the shift.

    From the front only a shift passes: (a + t) + b = (a + b) + t, or (a + t) + b = a + (b + t).
    """
    node, affine = offer.node, offer.affine
    count = len(node.inputs)
    signs = [-1.0 if node.op_type == "Sub" and i == 1 else 1.0 for i in range(count)]
    if offer.side == "before":
        if not affine.keeps_scale:
            raise RefusedError("only one of the branches that are added is scaled")
        sign = signs[offer.index]
        onward = Affine.of(affine.axis, 1.0, sign * affine.shift)
        deals = [Deal(needs=(Need(node, 0, _to_output(offer, onward), "before"),))]
        for i in range(min(count, _BRANCHES)):
            if i != offer.index:
                other = Affine.of(affine.axis, 1.0, sign * signs[i] * affine.shift)
                try:
                    needs = (Need(node, i, _to_input(node, i, _to_output(offer, other)), "after"),)
                except RefusedError:
                    continue
                deals.append(Deal(needs=needs))
        return tuple(deals)
    scaling = [] if affine.keeps_scale else [_to_input(node, i, affine.scaling) for i in range(count)]
    deals = []
    reason = ""
    for shifted in range(min(count, _BRANCHES)):
        try:
            whole = Affine.of(affine.axis, affine.scale, signs[shifted] * affine.shift)
            shifted_need = Need(node, shifted, _to_input(node, shifted, whole), "after")
        except RefusedError as refused:
            reason = str(refused)
            continue
        others = [Need(node, i, scale, "after") for i, scale in enumerate(scaling) if i != shifted]
        deals.append(Deal(needs=(shifted_need, *others)))
        if affine.keeps_origin:
            break
    if not deals:
        raise RefusedError(reason)
    return tuple(deals)


def product_of_branches(offer: Offer) -> tuple[Deal, ...]:
    """s · (a · b) = (s · a) · b = a · (s · b), and s · (a / b) = (s · a) / b: one factor takes the scale."""
    node, affine = offer.node, offer.affine
    if not affine.keeps_origin:
        raise RefusedError(f"shift does not pass a {node.op_type}")
    _keeps_range(offer)
    if offer.side == "before":
        if node.op_type == "Div" and offer.index == 1:
            raise RefusedError("it is a divisor")
        return (Deal(needs=(Need(node, 0, _to_output(offer, affine), "before"),)),)
    deals = []
    reason = ""
    for i in range(1 if node.op_type == "Div" else len(node.inputs)):
        try:
            deals.append(Deal(needs=(Need(node, i, _to_input(node, i, affine), "after"),)))
        except RefusedError as refused:
            reason = str(refused)
    if not deals:
        raise RefusedError(reason)
    return tuple(deals)


def scale_through_matmul(offer: Offer) -> tuple[Deal, ...]:
    """s · (A B) = (s · A) B = A (s · B) for computed A and B and one scale s for all."""
    affine = offer.affine
    if offer.weights.array(offer.input(0)) is not None or offer.weights.array(offer.input(1)) is not None:
        raise RefusedError("one of its operands is a weight")
    if affine.axis is not None or not affine.keeps_origin:
        raise RefusedError("only one scale for all passes a product of two computed operands")
    _keeps_range(offer)
    if offer.side == "before":
        return (Deal(needs=(Need(offer.node, 0, affine, "before"),)),)
    return tuple(Deal(needs=(Need(offer.node, i, affine, "after"),)) for i in (0, 1))


def _to_input(node: ir.Node, index: int, affine: Affine) -> Affine:
    """A map of an element-wise operator's output as a map of one of its inputs, which may broadcast."""
    if affine.axis is None:
        return affine
    found, output = known_dims(node.inputs[index]), rank(node.outputs[0])
    axis = affine.axis - (output - len(found))
    if axis < 0 or found[axis] != affine.size:
        raise RefusedError(f"its input {index} does not have the channels")
    return affine.along(axis)


def _to_output(offer: Offer, affine: Affine) -> Affine:
    """A map of an element-wise operator's input as a map of its output."""
    if affine.axis is None:
        return affine
    node = offer.node
    found, output = known_dims(node.inputs[offer.index]), known_dims(node.outputs[0])
    axis = affine.axis + len(output) - len(found)
    if output[axis] != affine.size:
        raise RefusedError("the channels broadcast to more")
    return affine.along(axis)


def pad(offer: Offer) -> tuple[Deal, ...]:
    """Padding with zeros carries a scale; padding with the data's own values carries the map as it is."""
    offer.only_data()
    node, affine = offer.node, offer.affine
    mode = attribute(node, "mode", "constant")
    if mode == "constant" and not affine.keeps_origin:
        raise RefusedError("shift crosses a padded border")
    if mode == "constant":
        number = attribute(node, "value", 0.0)
        if offer.input(2) is not None:
            array = offer.weights.array(offer.input(2))
            if array is None:
                raise RefusedError("what it pads with is computed at run time")
            number = float(array.ravel()[0])
        if number != 0.0:
            raise RefusedError("it pads with another constant than zero")
    if affine.axis is not None and affine.axis in _padded(offer):
        raise RefusedError("it pads the channels")
    return (passes_on(offer, affine),)


def _padded(offer: Offer) -> set[int]:
    """The axes that a Pad pads or crops."""
    size = rank(offer.node.inputs[0])
    pads = attribute(offer.node, "pads")
    if pads is None:
        pads = offer.weights.integers(offer.input(1))
    axes = list(range(size)) if offer.input(3) is None else offer.weights.integers(offer.input(3))
    if pads is None or axes is None:
        raise RefusedError("what it pads is computed at run time")
    ends = zip(axes, pads[: len(axes)], pads[len(axes) :], strict=True)
    return {axis % size for axis, before, after in ends if before or after}


def resize(offer: Offer) -> tuple[Deal, ...]:
    """Interpolation weights sum to one, so that f(s · x + t) = s · f(x) + t where the channels are not resized."""
    offer.only_data()
    node, affine = offer.node, offer.affine
    if attribute(node, "mode", "nearest") == "cubic" and attribute(node, "exclude_outside", 0):
        raise RefusedError("cubic interpolation excludes what lies outside")
    if attribute(node, "coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        raise RefusedError("it extrapolates with a constant")
    if affine.axis is not None and affine.axis in _resized(offer):
        raise RefusedError("it resizes the channels")
    return (passes_on(offer, affine),)


def _resized(offer: Offer) -> set[int]:
    """The axes that a Resize or Upsample may resize."""
    node = offer.node
    size = rank(node.inputs[0])
    axes = [axis % size for axis in attribute(node, "axes", list(range(size)))]
    of_version_10 = node.op_type == "Upsample" or offer.weights.opset < 11
    scales = offer.input(1 if of_version_10 else 2)
    if "scales" in node.attributes or (scales is not None and (scales.shape is None or 0 not in scales.shape)):
        factors = attribute(node, "scales", offer.weights.array(scales))
        return set(axes) if factors is None else {axis for axis, s in zip(axes, factors, strict=True) if s != 1.0}
    if attribute(node, "keep_aspect_ratio_policy", "stretch") != "stretch":
        return set(axes)
    kept = zip(known_dims(node.inputs[0]), known_dims(node.outputs[0]), strict=True)
    same = {axis for axis, (before, after) in enumerate(kept) if isinstance(before, int) and before == after}
    return set(axes) - same


def dropout(offer: Offer) -> tuple[Deal, ...]:
    """At inference a Dropout is the identity."""
    offer.only_data()
    drops_nothing(offer.node, offer.weights)
    return (passes_on(offer, offer.affine),)


_LINEAR = "it weighs data only, by weights that sum to one"

CARRY: tuple[Rule, ...] = (
    Rule("identity-carries", "carry", ("Identity",), None, unchanged, "it changes nothing"),
    Rule("dropout-carries", "carry", ("Dropout",), None, dropout, "at inference it changes nothing"),
    Rule("cast-carries", "carry", ("Cast",), None, cast, "rounding to another float commutes with it up to rounding"),
    Rule(
        "relu-carries",
        "carry",
        ("LeakyRelu", "PRelu", "Relu"),
        None,
        scale_through_relu,
        "it is linear on each side of zero, and a positive scale keeps the side",
    ),
    Rule(
        "max-carries",
        "carry",
        ("GlobalMaxPool", "MaxPool"),
        None,
        through_max,
        "a growing map keeps the order, and the border of a MaxPool is −∞",
    ),
    Rule("average-carries", "carry", ("AveragePool", "GlobalAveragePool"), None, through_average, _LINEAR),
    Rule(
        "reduce-carries",
        "carry",
        ("ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum"),
        None,
        through_reduction,
        "the map is the same for all that is reduced to one element",
    ),
    Rule("sum-carries", "carry", ("Add", "Sub", "Sum"), None, sum_of_branches, "multiplication distributes over a sum"),
    Rule("product-carries", "carry", ("Div", "Mul"), None, product_of_branches, "multiplication is associative"),
    Rule("matmul-carries", "carry", ("MatMul",), None, scale_through_matmul, "a product is linear in each operand"),
    Rule("pad-carries", "carry", ("Pad",), None, pad, "zero stays zero under a scale; copies of data stay copies"),
    Rule("resize-carries", "carry", ("Resize", "Upsample"), None, resize, _LINEAR),
    *PLACES,
)

"""CARRY, operators that move elements: the map stays the same, and its channels are found in their new places."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from normfuse.affine import Affine
from normfuse.passes.access import Dim, RefusedError, attribute, dims, known_dims, rank
from normfuse.passes.deal import Deal, Need, Offer, passes_on
from normfuse.passes.reshaping import through_dims
from normfuse.passes.rule import Rule

Indices = npt.NDArray[np.int64]


def transpose(offer: Offer) -> tuple[Deal, ...]:
    """Output axis i is input axis perm[i]."""
    if offer.affine.axis is None:
        return (passes_on(offer, offer.affine),)
    perm = attribute(offer.node, "perm")
    if perm is None:
        perm = list(reversed(range(rank(offer.node.inputs[0]))))
    axis = perm[offer.affine.axis] if offer.side == "after" else perm.index(offer.affine.axis)
    return (passes_on(offer, offer.affine.along(axis)),)


def reshape(offer: Offer) -> tuple[Deal, ...]:
    """The channels keep their place, are merged with neighbours, or are split from those they do not differ among."""
    offer.only_data()
    here, there = offer.ends
    if offer.affine.axis is None:
        return (passes_on(offer, offer.affine),)
    return (passes_on(offer, through_dims(offer.affine, known_dims(here), known_dims(there))),)


def squeeze(offer: Offer) -> tuple[Deal, ...]:
    """Axes of size 1 come or go; the others keep their order."""
    offer.only_data()
    if offer.affine.axis is None:
        return (passes_on(offer, offer.affine),)
    node = offer.node
    wide, narrow = (node.inputs[0], node.outputs[0]) if node.op_type == "Squeeze" else (node.outputs[0], node.inputs[0])
    if "axes" in node.attributes or offer.input(1) is not None:
        listed = _listed(offer, "axes", 1, [])
        size = len(dims(wide) or ()) or rank(narrow) + len(listed)
        gone = {axis % size for axis in listed}
    else:
        found = known_dims(wide)
        if not all(isinstance(dim, int) for dim in found):
            raise RefusedError("which axes it squeezes is known at run time only")
        size, gone = len(found), {axis for axis, dim in enumerate(found) if dim == 1}
    kept = [axis for axis in range(size) if axis not in gone]
    widens = (offer.side == "after") == (node.op_type == "Squeeze")
    axis = offer.affine.axis
    if not widens and axis not in kept:
        raise RefusedError("it removes the axis that the map varies along")
    return (passes_on(offer, offer.affine.along(kept[axis] if widens else kept.index(axis))),)


def _listed(offer: Offer, name: str, index: int, default: list[int]) -> list[int]:
    """Integers that older opsets give as an attribute and newer ones as an input.

    Raises:
        RefusedError: they are computed at run time.
    """
    listed = attribute(offer.node, name)
    if listed is None and offer.input(index) is not None:
        listed = offer.weights.integers(offer.input(index))
        if listed is None:
            raise RefusedError(f"its {name} are computed at run time")
    return default if listed is None else list(listed)


def slicing(offer: Offer) -> tuple[Deal, ...]:
    """Other axes change nothing; along the channels s' = s[slice], and from behind those left out keep still."""
    offer.only_data()
    node, affine = offer.node, offer.affine
    if affine.axis is None:
        return (passes_on(offer, affine),)
    size = rank(node.inputs[0])
    axes = [axis % size for axis in _listed(offer, "axes", 3, list(range(size)))]
    if affine.axis not in axes:
        return (passes_on(offer, affine),)
    starts, ends = _listed(offer, "starts", 1, []), _listed(offer, "ends", 2, [])
    steps = _listed(offer, "steps", 4, [1] * size)
    place = axes.index(affine.axis)
    if place >= len(starts):
        return (passes_on(offer, affine),)
    if steps[place] < 1:
        raise RefusedError("it reverses the channels")
    channels = known_dims(node.inputs[0])[affine.axis]
    if not isinstance(channels, int):
        raise RefusedError("how many channels it slices is not known")
    taken = np.arange(channels)[starts[place] : ends[place] : steps[place]]
    return (passes_on(offer, _taken(offer, taken, channels)),)


def _taken(offer: Offer, taken: Indices, channels: int) -> Affine:
    """The map on the other side of an operator that takes some of the channels."""
    affine = offer.affine
    if offer.side == "before":
        return Affine.of(affine.axis, affine.scale[taken], affine.shift[taken])
    return _set_in(affine, affine.axis, channels, taken)


def _set_in(affine: Affine, axis: int | None, channels: int, taken: slice | Indices) -> Affine:
    """A map of some of the channels as a map of all, which leaves the others as they are."""
    scale, shift = np.ones(channels), np.zeros(channels)
    scale[taken], shift[taken] = affine.spread(len(scale[taken]))
    return Affine.of(axis, scale, shift)


def split(offer: Offer) -> tuple[Deal, ...]:
    """Split along the channels takes s by ranges; along another axis all parts have to agree."""
    node, affine = offer.node, offer.affine
    offer.only_data()
    size = rank(node.inputs[0])
    axis = attribute(node, "axis", 0) % size
    if offer.side == "before":
        if affine.axis != axis:
            return (Deal(needs=tuple(Need(node, i, affine, "before") for i in range(len(node.outputs)))),)
        parts = _ranges([known_dims(output)[axis] for output in node.outputs])
        needs = [
            Need(node, i, Affine.of(axis, affine.scale[part], affine.shift[part]), "before")
            for i, part in enumerate(parts)
        ]
        return (Deal(needs=tuple(needs)),)
    if affine.axis not in (None, axis):
        raise RefusedError("the other parts of the Split would be mapped too")
    parts = _ranges([known_dims(output)[axis] for output in node.outputs])
    whole = _set_in(affine, axis, parts[-1].stop, parts[offer.index])
    return (Deal(needs=(Need(node, 0, whole, "after"),)),)


def _ranges(sizes: Sequence[Dim]) -> list[slice]:
    ranges, start = [], 0
    for size in sizes:
        if not isinstance(size, int):
            raise RefusedError("how many channels each part has is not known")
        ranges.append(slice(start, start + size))
        start += size
    return ranges


def gather(offer: Offer) -> tuple[Deal, ...]:
    """Gather on another axis moves the channels' axis; along the channels, s' = s[indices] for constant indices."""
    offer.only_data()
    node, affine = offer.node, offer.affine
    if affine.axis is None:
        return (passes_on(offer, affine),)
    looked_up = attribute(node, "axis", 0) % rank(node.inputs[0])
    spread = rank(offer.input(1)) - 1
    if offer.side == "after":
        if looked_up <= affine.axis <= looked_up + spread:
            raise RefusedError("the map varies along the axis that is looked up")
        return (passes_on(offer, affine.along(affine.axis - (spread if affine.axis >= looked_up else 0))),)
    if affine.axis == looked_up:
        indices = offer.weights.integers(offer.input(1))
        if indices is None:
            raise RefusedError("which channels it looks up is computed at run time")
        if spread > 0:
            raise RefusedError("it lays the channels out over several axes")
        if spread < 0:
            return (passes_on(offer, Affine.of(None, affine.scale[indices], affine.shift[indices])),)
        return (passes_on(offer, Affine.of(affine.axis, affine.scale[indices], affine.shift[indices])),)
    return (passes_on(offer, affine.along(affine.axis + (spread if affine.axis > looked_up else 0))),)


def concat(offer: Offer) -> tuple[Deal, ...]:
    """From behind, each part takes its range of s and t; from the front, the channels of the other parts keep still."""
    node, affine = offer.node, offer.affine
    axis = attribute(node, "axis", 1)
    if axis < 0 or affine.axis is not None:
        axis %= rank(node.outputs[0]) if offer.side == "after" else rank(node.inputs[offer.index])
    count = len(node.inputs)
    if offer.side == "after":
        if affine.axis != axis:
            return (Deal(needs=tuple(Need(node, i, affine, "after") for i in range(count))),)
        needs = [
            Need(node, i, Affine.of(axis, affine.scale[part], affine.shift[part]), "after")
            for i, part in enumerate(_ranges([known_dims(value)[axis] for value in node.inputs]))
        ]
        return (Deal(needs=tuple(needs)),)
    if affine.axis not in (None, axis):
        raise RefusedError("the other parts of the Concat are not mapped")
    parts = _ranges([known_dims(value)[axis] for value in node.inputs])
    whole = _set_in(affine, axis, parts[-1].stop, parts[offer.index])
    return (Deal(needs=(Need(node, 0, whole, "before"),)),)


def channels_to_space(offer: Offer) -> tuple[Deal, ...]:
    """The channels are regrouped: axis 1 is (block, block, C) for DCR and (C, block, block) for CRD."""
    node, affine = offer.node, offer.affine
    if affine.axis is None:
        return (passes_on(offer, affine),)
    if affine.axis != 1:
        raise RefusedError("the map varies along an axis that is regrouped")
    blocks = attribute(node, "blocksize") ** 2
    inner = node.op_type == "DepthToSpace" and attribute(node, "mode", "DCR") == "CRD"
    spreads = (offer.side == "after") == (node.op_type == "DepthToSpace")
    vectors = []
    for vector in (affine.scale, affine.shift):
        if spreads:
            vectors.append(np.repeat(vector, blocks) if inner else np.tile(vector, blocks))
            continue
        grid = vector.reshape(-1, blocks) if inner else vector.reshape(blocks, -1).T
        if np.any(grid != grid[:, :1]):
            raise RefusedError("the map differs within a block")
        vectors.append(grid[:, 0])
    return (passes_on(offer, Affine.of(1, *vectors)),)


def repeating(offer: Offer) -> tuple[Deal, ...]:
    """Repeating elements commutes with a map that is the same for all of them."""
    offer.only_data()
    if offer.affine.axis is not None:
        here, there = offer.ends
        before, after = known_dims(here), known_dims(there)
        axis = offer.affine.axis + len(after) - len(before)
        if axis < 0 or after[axis] != offer.affine.size:
            raise RefusedError("the channels are repeated")
        return (passes_on(offer, offer.affine.along(axis)),)
    return (passes_on(offer, offer.affine),)


_MOVES = "it moves elements and computes nothing"

PLACES: tuple[Rule, ...] = (
    Rule("transpose-carries", "carry", ("Transpose",), None, transpose, _MOVES),
    Rule("reshape-carries", "carry", ("Flatten", "Reshape"), None, reshape, _MOVES),
    Rule("squeeze-carries", "carry", ("Squeeze", "Unsqueeze"), None, squeeze, _MOVES),
    Rule("slice-carries", "carry", ("Slice",), None, slicing, _MOVES),
    Rule("split-carries", "carry", ("Split",), None, split, _MOVES),
    Rule("gather-carries", "carry", ("Gather",), None, gather, _MOVES),
    Rule("concat-carries", "carry", ("Concat",), None, concat, _MOVES),
    Rule("repeat-carries", "carry", ("Expand", "Tile"), None, repeating, _MOVES),
    Rule("depth-carries", "carry", ("DepthToSpace", "SpaceToDepth"), None, channels_to_space, _MOVES),
)

"""Bugs as patches of what a rule looks up: a function, a property, or a row of its table; no rule is copied."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from normfuse.affine import Affine
from normfuse.passes import (
    absorb,
    access,
    branches,
    fold,
    layout,
    sources,
)
from normfuse.passes.deal import Deal, Need, NewWeight, Offer, passes_on
from scripts.planting import Patches

Law = Callable[..., Any]


def with_law(table: str, name: str, law: Callable[[Law], Law], **changes: Any) -> Patches:
    """A row of a table of FOLD with another law, made of its own."""
    rows = tuple(replace(row, law=law(row.law), **changes) if row.name == name else row for row in getattr(fold, table))
    return {(fold, table): rows}


def with_operator(table: str, name: str, operator: str) -> Patches:
    """A row of a table of FOLD that serves an operator too many."""
    rows = getattr(fold, table)
    wider = tuple(replace(row, operators=(*row.operators, operator)) if row.name == name else row for row in rows)
    return {(fold, table): wider}


def offered(change: Callable[[Offer], Affine]) -> Callable[[Law], Law]:
    """The law for another map than the one that is offered."""
    return lambda law: lambda offer: law(replace(offer, affine=change(offer)))


def passing(law: Law) -> Law:
    """The law without its conditions: the map passes as it is."""
    return lambda offer: (passes_on(offer, offer.affine),)


def without_attribute(module: Any, *names: str) -> Patches:
    """A module that sees the default of some attributes, whatever a node says."""
    found = module.attribute

    def attribute(node: Any, name: str, default: Any = None) -> Any:
        return default if name in names else found(node, name, default)

    return {(module, "attribute"): attribute}


def batch_norm_with(change: Callable[[Any, Any], tuple[Any, float]]) -> Patches:
    """A BatchNormalization of another variance and ε."""
    found = Affine.batch_norm

    def batch_norm_of(gamma: Any, beta: Any, mean: Any, variance: Any, epsilon: float) -> Affine:
        variance, epsilon = change(variance, epsilon)
        return found(gamma, beta, mean, variance, epsilon)

    return {(Affine, "batch_norm"): staticmethod(batch_norm_of)}


def epsilon_outside(variance: Any, epsilon: float) -> tuple[Any, float]:
    """√Var + ε for √(Var + ε)."""
    return np.square(np.sqrt(variance) + epsilon), 0.0


def weight_axis() -> Patches:
    """The weight of a ConvTranspose scaled along the axis of its inputs."""
    found = absorb._scaled_rows

    def along_the_inputs(offer: Offer, weight: Any, channels: int, axis: int, groups: int = 1) -> Any:
        return found(offer, weight, channels, 0)

    return {(absorb, "_scaled_rows"): along_the_inputs}


def groups_transposed(offer: Offer) -> Affine:
    """The channels of two groups, taken in turn from each."""
    scale, shift = (vector.reshape(2, -1).T.ravel() for vector in (offer.affine.scale, offer.affine.shift))
    return Affine.of(offer.affine.axis, scale, shift)


def doubled_shift(law: Law) -> Law:
    """All branches of a sum take the shift."""

    def spoiled(offer: Offer) -> tuple[Deal, ...]:
        if offer.side == "before":
            return tuple(law(offer))
        return (Deal(needs=tuple(Need(offer.node, i, offer.affine, "after") for i in range(len(offer.node.inputs)))),)

    return spoiled


def both_factors(law: Law) -> Law:
    """Both factors of a product take the scale."""

    def spoiled(offer: Offer) -> tuple[Deal, ...]:
        if offer.side == "before":
            return tuple(law(offer))
        return (Deal(needs=tuple(Need(offer.node, i, offer.affine, "after") for i in (0, 1))),)

    return spoiled


def wrong_perm(law: Law) -> Law:
    """The permutation taken for its inverse."""

    def spoiled(offer: Offer) -> tuple[Deal, ...]:
        perm = list(offer.node.attributes["perm"].as_ints())
        axis = offer.affine.axis
        if axis is None:
            return tuple(law(offer))
        return (passes_on(offer, offer.affine.along(perm.index(axis) if offer.side == "after" else perm[axis])),)

    return spoiled


def by_size() -> Patches:
    """The axis of a constant found by its size."""
    found = sources._single_axis

    def first_of_that_size(constant: Any, data: Any) -> Any:
        axis, vector = found(constant, data)
        sizes = list(data.shape) if axis is not None else []
        return (next(i for i, size in enumerate(sizes) if size == len(vector)) if sizes else axis), vector

    return {(sources, "_single_axis"): first_of_that_size}


def other_branch(node: Any) -> Any:
    """The branch that is not taken."""
    names = {"then_branch": "else_branch", "else_branch": "then_branch"}
    taken = _TAKEN(node)
    if taken is None:
        return None
    return next(node.attributes[names[name]].as_graph() for name in names if node.attributes[name].as_graph() is taken)


_TAKEN = branches._taken


def inverse_order() -> Patches:
    """A permutation that is read as its inverse."""
    found = access.attribute

    def attribute(node: Any, name: str, default: Any = None) -> Any:
        value = found(node, name, default)
        return [int(place) for place in np.argsort(value)] if name == "perm" and value is not None else value

    return {(layout, "attribute"): attribute}


def fitting(*_: Any) -> bool:
    """Whatever it is, it fits."""
    return True


def exchanged(law: Law) -> Law:
    """What is for one part goes to the other."""

    def spoiled(offer: Offer) -> tuple[Deal, ...]:
        (deal,) = law(offer)
        if offer.side == "before":
            return (deal,)
        affines = [need.affine for need in deal.needs][::-1]
        return (Deal(needs=tuple(replace(need, affine=one) for need, one in zip(deal.needs, affines, strict=True))),)

    return spoiled


def all_taps(law: Law) -> Law:
    """A shift in front of a ConvTranspose counted as if each output met all taps of the kernel."""

    def spoiled(offer: Offer) -> tuple[Deal, ...]:
        (deal,) = law(replace(offer, affine=offer.affine.scaling))
        kernel = offer.constant(1)
        _, shift = offer.affine.spread(kernel.shape[0])
        bias = np.einsum("io...,i->o...", kernel, shift).reshape(kernel.shape[1], -1).sum(axis=1)
        return (Deal((*deal.weights, NewWeight(offer.node, 2, bias, offer.dtype(1)))),)

    return spoiled


ALWAYS_POSITIVE: Patches = {(Affine, "is_positive"): property(lambda self: True)}
"""No scale is taken for a negative one."""

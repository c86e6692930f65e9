"""Classic bugs of optimizers, each planted into the code of a rule: `classic_mutants`.

Each changes what the rule itself looks up, a function, a property or a row of its table, for as long as one model is
rewritten; no rule is copied.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import onnx

from normfuse.affine import Affine
from normfuse.passes import (
    absorb,
    absorb_affine,
    branches,
    carry,
    carry_places,
    fold,
    layout,
    plan,
    sources,
    weights,
)
from normfuse.passes.deal import Deal, Need, NewWeight, Offer, passes_on
from scripts.mutants_subjects import FOLD_ONLY
from scripts.planting import Mutant, Patches, Subject
from tests.parity import batch_norm, build

Law = Callable[..., Any]

IMAGES = "(float[N,4,8,8] x) => (float[N,4,H,W] y) {{ {} }}"
BATCH_NORM = "BatchNormalization({}, n_scale, n_bias, n_mean, n_var)"
NORM = batch_norm("n", 4)
SQUARE: dict[str, Any] = {"w": (4, 4, 3, 3), "k": (4, 4, 1, 1)}
SHIFTED: dict[str, Any] = {"s": np.array([0.5, -1.5, 2.0, 3.0], np.float32).reshape(4, 1, 1), "t": (4, 1, 1)}


def with_law(table: str, name: str, law: Callable[[Law], Law], **changes: Any) -> Patches:
    """A row of a table of FOLD with another law, made of its own."""
    rows = tuple(
        replace(row, law=law(row.law), **changes) if row.name == name else row for row in getattr(fold, table)
    )
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


def _epsilon(change: Callable[[Any, Any], tuple[Any, float]]) -> Patches:
    found = Affine.batch_norm

    def batch_norm_of(gamma: Any, beta: Any, mean: Any, variance: Any, epsilon: float) -> Affine:
        variance, epsilon = change(variance, epsilon)
        return found(gamma, beta, mean, variance, epsilon)

    return {(Affine, "batch_norm"): staticmethod(batch_norm_of)}


def _outside(variance: Any, epsilon: float) -> tuple[Any, float]:
    return np.square(np.sqrt(variance) + epsilon), 0.0


def _weight_axis() -> Patches:
    found = absorb._scaled_rows

    def along_the_inputs(offer: Offer, weight: Any, channels: int, axis: int, groups: int = 1) -> Any:
        return found(offer, weight, channels, 0)

    return {(absorb, "_scaled_rows"): along_the_inputs}


def _groups_transposed(offer: Offer) -> Affine:
    scale, shift = (
        vector.reshape(2, -1).T.ravel() for vector in (offer.affine.scale, offer.affine.shift)
    )
    return Affine.of(offer.affine.axis, scale, shift)


def _doubled_shift(law: Law) -> Law:
    """All branches of a sum take the shift."""

    def spoiled(offer: Offer) -> tuple[Deal, ...]:
        if offer.side == "before":
            return tuple(law(offer))
        return (Deal(needs=tuple(Need(offer.node, i, offer.affine, "after") for i in range(len(offer.node.inputs)))),)

    return spoiled


def _both_factors(law: Law) -> Law:
    """Both factors of a product take the scale."""

    def spoiled(offer: Offer) -> tuple[Deal, ...]:
        if offer.side == "before":
            return tuple(law(offer))
        return (Deal(needs=tuple(Need(offer.node, i, offer.affine, "after") for i in (0, 1))),)

    return spoiled


def _wrong_perm(law: Law) -> Law:
    """The permutation taken for its inverse."""

    def spoiled(offer: Offer) -> tuple[Deal, ...]:
        perm = list(offer.node.attributes["perm"].as_ints())
        axis = offer.affine.axis
        if axis is None:
            return tuple(law(offer))
        return (passes_on(offer, offer.affine.along(perm.index(axis) if offer.side == "after" else perm[axis])),)

    return spoiled


def _by_size() -> Patches:
    """The axis of a constant found by its size."""
    found = sources._single_axis

    def first_of_that_size(constant: Any, data: Any) -> Any:
        axis, vector = found(constant, data)
        sizes = list(data.shape) if axis is not None else []
        return (next(i for i, size in enumerate(sizes) if size == len(vector)) if sizes else axis), vector

    return {(sources, "_single_axis"): first_of_that_size}


def _other_branch(node: Any) -> Any:
    names = {"then_branch": "else_branch", "else_branch": "then_branch"}
    taken = _TAKEN(node)
    if taken is None:
        return None
    return next(node.attributes[names[name]].as_graph() for name in names if node.attributes[name].as_graph() is taken)


_TAKEN = branches._taken


def _inverse_order() -> Patches:
    found = layout.attribute

    def attribute(node: Any, name: str, default: Any = None) -> Any:
        value = found(node, name, default)
        return [int(place) for place in np.argsort(value)] if name == "perm" and value is not None else value

    return {(layout, "attribute"): attribute}


def _fitting(*_: Any) -> bool:
    return True


def _exchanged(law: Law) -> Law:
    """What is for one part goes to the other."""

    def spoiled(offer: Offer) -> tuple[Deal, ...]:
        (deal,) = law(offer)
        if offer.side == "before":
            return (deal,)
        affines = [need.affine for need in deal.needs][::-1]
        return (Deal(needs=tuple(replace(need, affine=one) for need, one in zip(deal.needs, affines, strict=True))),)

    return spoiled


def _all_taps(law: Law) -> Law:
    """A shift in front of a ConvTranspose counted as if each output met all taps of the kernel."""

    def spoiled(offer: Offer) -> tuple[Deal, ...]:
        (deal,) = law(replace(offer, affine=offer.affine.scaling))
        kernel = offer.constant(1)
        _, shift = offer.affine.spread(kernel.shape[0])
        bias = np.einsum("io...,i->o...", kernel, shift).reshape(kernel.shape[1], -1).sum(axis=1)
        return (Deal((*deal.weights, NewWeight(offer.node, 2, bias, offer.dtype(1)))),)

    return spoiled


def _half(text: str, **given: Any) -> onnx.ModelProto:
    return build(text, dtype=np.float16, **given)


PROPERTIES = {
    "is_positive": {(Affine, "is_positive"): property(lambda self: True)},
}

_MUL = "m = Mul(x, s)"
_MOVED = "m = Mul(x, s) a = Add(m, t)"
_IN_CONV = "c = Conv(x, w)"

BUGS: tuple[tuple[str, str, str, dict[str, Any], Callable[[], Patches]], ...] = (
    ("batch-norm", "ε dropped", f"{_IN_CONV} y = {BATCH_NORM.format('c')}", {"w": (4, 4, 3, 3), **NORM},
     lambda: _epsilon(lambda variance, epsilon: (variance, 0.0))),
    ("batch-norm", "ε outside the root", f"{_IN_CONV} y = {BATCH_NORM.format('c')}", {"w": (4, 4, 3, 3), **NORM},
     lambda: _epsilon(_outside)),
    ("batch-norm", "the variance taken for the deviation", f"{_IN_CONV} y = {BATCH_NORM.format('c')}",
     {"w": (4, 4, 3, 3), **NORM}, lambda: _epsilon(lambda variance, epsilon: (variance**2, epsilon))),
    ("conv-transpose-after", "scaled along the axis of its inputs", "c = ConvTranspose(x, w) y = Mul(c, s)",
     SQUARE | SHIFTED, _weight_axis),
    ("conv-before", "groups transposed", f"{_MUL} y = Conv<group=2>(m, w)", SHIFTED | {"w": (4, 2, 3, 3)},
     lambda: with_law("ABSORB", "conv-before", offered(_groups_transposed))),
    ("conv-before", "shift across zero padding", f"{_MOVED} y = Conv<pads=[1,1,1,1]>(a, w)", SQUARE | SHIFTED,
     lambda: {(absorb, "_pads"): lambda *_: False}),
    ("conv-before", "groups ignored", f"{_MUL} y = Conv<group=2>(m, w)",
     SHIFTED | {"w": (4, 2, 3, 3), "s": np.array([2, 3, 2, 5], np.float32).reshape(4, 1, 1)},
     lambda: with_law("ABSORB", "conv-before", offered(
         lambda offer: Affine.of(1, np.tile(offer.affine.scale[:2], 2), offer.affine.shift)))),
    ("conv-transpose-before", "shift where taps are missing at the border", f"{_MOVED} y = ConvTranspose(a, w)",
     SQUARE | SHIFTED, lambda: with_law("ABSORB", "conv-transpose-before", _all_taps)),
    ("relu-carries", "a negative scale moved through Relu", f"{_IN_CONV} r = Relu(c) y = Mul(r, s)", SQUARE | SHIFTED,
     lambda: PROPERTIES["is_positive"]),
    ("relu-carries", "a shift moved through Relu", f"{_IN_CONV} r = Relu(c) y = Add(r, t)", SQUARE | SHIFTED,
     lambda: with_law("CARRY", "relu-carries", passing)),
    ("relu-carries", "the bound of a Clip not moved", f"{_IN_CONV} r = Clip(c, lo, hi) y = Mul(r, p)",
     SQUARE | {"p": np.float32(2.5), "lo": np.float32(0), "hi": np.float32(6)},
     lambda: with_operator("CARRY", "relu-carries", "Clip")),
    ("relu-carries", "the gate of a SiLU taken for one that carries", f"{_IN_CONV} r = Sigmoid(c) y = Mul(r, p)",
     SQUARE | {"p": np.float32(2.5)}, lambda: with_operator("CARRY", "relu-carries", "Sigmoid")),
    ("product-carries", "a SiLU taken for a product: both factors scaled",
     f"{_IN_CONV} d = Conv(x, v) g = Mul(c, d) y = Mul(g, p)",
     {"w": (4, 4, 3, 3), "v": (4, 4, 3, 3), "p": np.float32(2.5)},
     lambda: with_law("CARRY", "product-carries", _both_factors)),
    ("max-carries", "a negative scale moved through MaxPool", f"{_IN_CONV} r = MaxPool<kernel_shape=[2,2]>(c) y = Mul(r, s)",
     SQUARE | SHIFTED, lambda: PROPERTIES["is_positive"]),
    ("average-carries", "count_include_pad ignored",
     f"{_MOVED} r = AveragePool<kernel_shape=[2,2], pads=[1,1,1,1], count_include_pad=1>(a) y = Conv(r, k)",
     SQUARE | SHIFTED, lambda: with_law("CARRY", "average-carries", passing)),
    ("pad-carries", "a shift moved across zeros", f"{_MOVED} r = Pad(a, z) y = Conv(r, k)",
     SQUARE | SHIFTED | {"z": np.array([0, 0, 1, 1, 0, 0, 1, 1])}, lambda: with_law("CARRY", "pad-carries", passing)),
    ("reduce-carries", "a negative scale moved through ReduceMax",
     f"{_IN_CONV} r = ReduceMax(c, axes) y = Mul(r, s)", SQUARE | SHIFTED | {"axes": np.array([2, 3])},
     lambda: PROPERTIES["is_positive"]),
    ("sum-carries", "a shift taken by both branches", f"{_IN_CONV} d = Conv(x, v) g = Add(c, d) y = Add(g, t)",
     {"w": (4, 4, 3, 3), "v": (4, 4, 3, 3), "t": (4, 1, 1)},
     lambda: with_law("CARRY", "sum-carries", _doubled_shift)),
    ("concat-carries", "the channels of its parts exchanged",
     f"{_IN_CONV} d = Conv(x, v) g = Concat<axis=1>(c, d) y = {BATCH_NORM.format('g')}",
     {"w": (2, 4, 3, 3), "v": (2, 4, 3, 3), **NORM}, lambda: with_law("CARRY", "concat-carries", _exchanged)),
    ("depth-carries", "CRD taken for DCR",
     "(float[N,4,8,8] x) => (float[N,4,H,W] y) { c = Conv(x, w) g = DepthToSpace<blocksize=2, mode=\"CRD\">(c) y = Mul(g, s) }",
     SHIFTED | {"w": (16, 4, 3, 3)}, lambda: without_attribute(carry_places, "mode")),
    ("transpose-carries", "the order taken for its inverse",
     "(float[N,4,4,4] x) => (float[N,A,B,D] y) { c = Conv(x, k) r = Transpose<perm=[0,2,3,1]>(c) y = Mul(r, p) }",
     SQUARE | {"p": (4, 1)}, lambda: with_law("CARRY", "transpose-carries", _wrong_perm)),
    ("mul", "a constant per position taken for one per channel, by its size",
     "(float[N,4,6,4] x) => (float[N,4,6,4] y) { c = Conv(x, k) y = Mul(c, p) }", SQUARE | {"p": (4,)}, _by_size),
    ("gemm-before", "α ignored", "(float[N,4] x) => (float[N,5] y) { a = Add(x, t) y = Gemm<alpha=0.5>(a, w, b) }",
     {"t": (4,), "w": (4, 5), "b": (5,)}, lambda: without_attribute(absorb, "alpha")),
    ("gemm-after", "β ignored", "(float[N,4] x) => (float[N,5] y) { a = Gemm<beta=0.5>(x, w, b) y = Mul(a, t) }",
     {"t": (5,), "w": (4, 5), "b": (5,)}, lambda: without_attribute(absorb, "beta")),
    ("gemm-after", "transB ignored", "(float[N,4] x) => (float[N,4] y) { a = Gemm<transB=1>(x, w, b) y = Mul(a, t) }",
     {"t": (4,), "w": (4, 4), "b": (4,)}, lambda: without_attribute(absorb, "transB")),
    ("layer-norm-drops-shift", "a shift along the normalized axis dropped",
     "(float[N,5,4] x) => (float[N,5,4] y) { a = Add(x, t) y = LayerNormalization(a, g) }", {"t": (4,), "g": (4,)},
     lambda: {(absorb_affine, "_dropped"): lambda offer, axes: (Deal(),)}),
    ("instance-norm-drops-shift", "a scale dropped, of which ε is left",
     f"{_MUL} y = InstanceNormalization<epsilon=0.1>(m, g, b)",
     {"s": np.float32(0.5), "g": (4,), "b": (4,)}, lambda: {(absorb_affine, "_dropped"): lambda offer, axes: (Deal(),)}),
    ("conv-after", "float16 overflows", "(float16[N,4,8,8] x) => (float16[N,4,6,6] y) { c = Conv(x, w) d = Mul(c, u) y = Mul(d, v) }",
     {"w": (4, 4, 3, 3), "u": np.float16(3e4), "v": np.float16(10.0), "dtype": np.float16},
     lambda: {(plan, "fits"): _fitting, (absorb_affine, "fits"): _fitting, (weights, "fits"): _fitting}),
    ("conv-after", "a shared weight changed in place",
     "(float[N,4,8,8] x) => (float[N,4,6,6] y, float[N,4,6,6] z) { c = Conv(x, w) y = Mul(c, s) d = Relu(x) z = Conv(d, w) }",
     SQUARE | SHIFTED, lambda: {(weights.Weights, "shared_with"): lambda self, node, index: None}),
    ("known-branch", "the branch that is not taken", "", {}, lambda: {(branches, "_taken"): _other_branch}),
    ("layout", "the order inverted", "(float[2,3,4,5] x) => (float[A,B,C,D] y) "
     "{ r = Transpose<perm=[0,2,3,1]>(x) q = Transpose<perm=[0,3,1,2]>(r) s = Transpose<perm=[1,2,3,0]>(q) y = Relu(s) }",
     {}, _inverse_order),
)
"""Row, bug, nodes or the whole model as text, weights, and what is patched."""

_BRANCHES = (
    "(float[2,4] x) => (float[2,4] y) { y = If (k) <then_branch = one () => (float[2,4] a) { a = Tanh(x) }, "
    "else_branch = two () => (float[2,4] b) { b = Relu(x) }> }"
)


def classic_mutants() -> Iterator[Mutant]:
    """The bugs, one model each."""
    for rule, bug, body, given, plant in BUGS:
        text = body if body.startswith("(") else IMAGES.format(body)
        made = dict(given)
        if rule == "known-branch":
            text, made = _BRANCHES, {"k": np.array(True)}
        used = {name: one for name, one in made.items() if name in _words(text) or name == "dtype"}
        subject = Subject(rule, f"{bug}: {text}", partial(build, text, **used), ignore=FOLD_ONLY)
        yield Mutant(rule, bug, subject, plant, must=True)


def _words(text: str) -> set[str]:
    return set(text.replace("(", " ").replace(")", " ").replace(",", " ").split())


__all__ = ["BUGS", "classic_mutants", "carry"]

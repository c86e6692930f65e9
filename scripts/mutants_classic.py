"""Classic bugs of optimizers, each planted into the code of a rule: `classic_mutants`."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from normfuse.affine import Affine
from normfuse.passes import absorb, absorb_affine, carry_places, plan, weights
from normfuse.passes.deal import Deal
from scripts import mutants_plants as plants
from scripts.mutants_subjects import FOLD_ONLY
from scripts.planting import Mutant, Patches, Subject
from tests.parity import batch_norm, build

IMAGES = "(float[N,4,8,8] x) => (float[N,4,H,W] y) {{ {} }}"
BATCH_NORM = "BatchNormalization({}, n_scale, n_bias, n_mean, n_var)"
NORM = batch_norm("n", 4)
SQUARE: dict[str, Any] = {"w": (4, 4, 3, 3), "k": (4, 4, 1, 1)}
SHIFTED: dict[str, Any] = {"s": np.array([0.5, -1.5, 2.0, 3.0], np.float32).reshape(4, 1, 1), "t": (4, 1, 1)}


_MUL = "m = Mul(x, s)"
_MOVED = "m = Mul(x, s) a = Add(m, t)"
_IN_CONV = "c = Conv(x, w)"

BUGS: tuple[tuple[str, str, str, dict[str, Any], Callable[[], Patches]], ...] = (
    (
        "identity",
        "an Abs taken for it",
        f"{_IN_CONV} y = Abs(c)",
        SQUARE,
        lambda: plants.with_operator("SOURCES", "identity", "Abs"),
    ),
    (
        "batch-norm",
        "ε dropped",
        f"{_IN_CONV} y = {BATCH_NORM.format('c')}",
        {"w": (4, 4, 3, 3), **NORM},
        lambda: plants.batch_norm_with(lambda variance, epsilon: (variance, 0.0)),
    ),
    (
        "batch-norm",
        "ε outside the root",
        f"{_IN_CONV} y = {BATCH_NORM.format('c')}",
        {"w": (4, 4, 3, 3), **NORM},
        lambda: plants.batch_norm_with(plants.epsilon_outside),
    ),
    (
        "batch-norm",
        "the variance taken for the deviation",
        f"{_IN_CONV} y = {BATCH_NORM.format('c')}",
        {"w": (4, 4, 3, 3), **NORM},
        lambda: plants.batch_norm_with(lambda variance, epsilon: (variance**2, epsilon)),
    ),
    (
        "conv-transpose-after",
        "scaled along the axis of its inputs",
        "c = ConvTranspose(x, w) y = Mul(c, s)",
        SQUARE | SHIFTED,
        plants.weight_axis,
    ),
    (
        "conv-before",
        "groups transposed",
        f"{_MUL} y = Conv<group=2>(m, w)",
        SHIFTED | {"w": (4, 2, 3, 3)},
        lambda: plants.with_law("ABSORB", "conv-before", plants.offered(plants.groups_transposed)),
    ),
    (
        "conv-before",
        "shift across zero padding",
        f"{_MOVED} y = Conv<pads=[1,1,1,1]>(a, w)",
        SQUARE | SHIFTED,
        lambda: {(absorb, "_pads"): lambda *_: False},
    ),
    (
        "conv-before",
        "groups ignored",
        f"{_MUL} y = Conv<group=2>(m, w)",
        SHIFTED | {"w": (4, 2, 3, 3), "s": np.array([2, 3, 2, 5], np.float32).reshape(4, 1, 1)},
        lambda: plants.with_law(
            "ABSORB",
            "conv-before",
            plants.offered(lambda offer: Affine.of(1, np.tile(offer.affine.scale[:2], 2), offer.affine.shift)),
        ),
    ),
    (
        "conv-transpose-before",
        "shift where taps are missing at the border",
        f"{_MOVED} y = ConvTranspose(a, w)",
        SQUARE | SHIFTED,
        lambda: plants.with_law("ABSORB", "conv-transpose-before", plants.all_taps),
    ),
    (
        "relu-carries",
        "a negative scale moved through Relu",
        f"{_IN_CONV} r = Relu(c) y = Mul(r, s)",
        SQUARE | SHIFTED,
        lambda: plants.ALWAYS_POSITIVE,
    ),
    (
        "relu-carries",
        "a shift moved through Relu",
        f"{_IN_CONV} r = Relu(c) y = Add(r, t)",
        SQUARE | SHIFTED,
        lambda: plants.with_law("CARRY", "relu-carries", plants.passing),
    ),
    (
        "relu-carries",
        "the bound of a Clip not moved",
        f"{_IN_CONV} r = Clip(c, lo, hi) y = Mul(r, p)",
        SQUARE | {"p": np.float32(2.5), "lo": np.float32(0), "hi": np.float32(6)},
        lambda: plants.with_operator("CARRY", "relu-carries", "Clip"),
    ),
    (
        "relu-carries",
        "the gate of a SiLU taken for one that carries",
        f"{_IN_CONV} r = Sigmoid(c) y = Mul(r, p)",
        SQUARE | {"p": np.float32(2.5)},
        lambda: plants.with_operator("CARRY", "relu-carries", "Sigmoid"),
    ),
    (
        "product-carries",
        "a SiLU taken for a product: both factors scaled",
        f"{_IN_CONV} d = Conv(x, v) g = Mul(c, d) y = Mul(g, p)",
        {"w": (4, 4, 3, 3), "v": (4, 4, 3, 3), "p": np.float32(2.5)},
        lambda: plants.with_law("CARRY", "product-carries", plants.both_factors),
    ),
    (
        "max-carries",
        "a negative scale moved through MaxPool",
        f"{_IN_CONV} r = MaxPool<kernel_shape=[2,2]>(c) y = Mul(r, s)",
        SQUARE | SHIFTED,
        lambda: plants.ALWAYS_POSITIVE,
    ),
    (
        "average-carries",
        "count_include_pad ignored",
        f"{_MOVED} r = AveragePool<kernel_shape=[2,2], pads=[1,1,1,1], count_include_pad=1>(a) y = Conv(r, k)",
        SQUARE | SHIFTED,
        lambda: plants.with_law("CARRY", "average-carries", plants.passing),
    ),
    (
        "pad-carries",
        "a shift moved across zeros",
        f"{_MOVED} r = Pad(a, z) y = Conv(r, k)",
        SQUARE | SHIFTED | {"z": np.array([0, 0, 1, 1, 0, 0, 1, 1])},
        lambda: plants.with_law("CARRY", "pad-carries", plants.passing),
    ),
    (
        "reduce-carries",
        "a negative scale moved through ReduceMax",
        f"{_IN_CONV} r = ReduceMax(c, axes) y = Mul(r, s)",
        SQUARE | SHIFTED | {"axes": np.array([2, 3])},
        lambda: plants.ALWAYS_POSITIVE,
    ),
    (
        "sum-carries",
        "a shift taken by both branches",
        f"{_IN_CONV} d = Conv(x, v) g = Add(c, d) y = Add(g, t)",
        {"w": (4, 4, 3, 3), "v": (4, 4, 3, 3), "t": (4, 1, 1)},
        lambda: plants.with_law("CARRY", "sum-carries", plants.doubled_shift),
    ),
    (
        "concat-carries",
        "the channels of its parts exchanged",
        f"{_IN_CONV} d = Conv(x, v) g = Concat<axis=1>(c, d) y = {BATCH_NORM.format('g')}",
        {"w": (2, 4, 3, 3), "v": (2, 4, 3, 3), **NORM},
        lambda: plants.with_law("CARRY", "concat-carries", plants.exchanged),
    ),
    (
        "depth-carries",
        "CRD taken for DCR",
        '(float[N,4,8,8] x) => (float[N,4,H,W] y) { c = Conv(x, w) g = DepthToSpace<blocksize=2, mode="CRD">(c)'
        " y = Mul(g, s) }",
        SHIFTED | {"w": (16, 4, 3, 3)},
        lambda: plants.without_attribute(carry_places, "mode"),
    ),
    (
        "transpose-carries",
        "the order taken for its inverse",
        "(float[N,4,4,4] x) => (float[N,A,B,D] y) { c = Conv(x, k) r = Transpose<perm=[0,2,3,1]>(c) y = Mul(r, p) }",
        SQUARE | {"p": (4, 1)},
        lambda: plants.with_law("CARRY", "transpose-carries", plants.wrong_perm),
    ),
    (
        "arithmetic",
        "a constant per position taken for one per channel, by its size",
        "(float[N,4,6,4] x) => (float[N,4,6,4] y) { c = Conv(x, k) y = Mul(c, p) }",
        SQUARE | {"p": (4,)},
        plants.by_size,
    ),
    (
        "gemm-before",
        "α ignored",
        "(float[N,4] x) => (float[N,5] y) { a = Add(x, t) y = Gemm<alpha=0.5>(a, w, b) }",
        {"t": (4,), "w": (4, 5), "b": (5,)},
        lambda: plants.without_attribute(absorb, "alpha"),
    ),
    (
        "gemm-after",
        "β ignored",
        "(float[N,4] x) => (float[N,5] y) { a = Gemm<beta=0.5>(x, w, b) y = Mul(a, t) }",
        {"t": (5,), "w": (4, 5), "b": (5,)},
        lambda: plants.without_attribute(absorb, "beta"),
    ),
    (
        "gemm-after",
        "transB ignored",
        "(float[N,4] x) => (float[N,4] y) { a = Gemm<transB=1>(x, w, b) y = Mul(a, t) }",
        {"t": (4,), "w": (4, 4), "b": (4,)},
        lambda: plants.without_attribute(absorb, "transB"),
    ),
    (
        "layer-norm-drops-shift",
        "a shift along the normalized axis dropped",
        "(float[N,5,4] x) => (float[N,5,4] y) { a = Add(x, t) y = LayerNormalization(a, g) }",
        {"t": (4,), "g": (4,)},
        lambda: {(absorb_affine, "_dropped"): lambda offer, axes: (Deal(),)},
    ),
    (
        "instance-norm-drops-shift",
        "a scale dropped, of which ε is left",
        f"{_MUL} y = InstanceNormalization<epsilon=0.1>(m, g, b)",
        {"s": np.float32(0.5), "g": (4,), "b": (4,)},
        lambda: {(absorb_affine, "_dropped"): lambda offer, axes: (Deal(),)},
    ),
    (
        "conv-after",
        "float16 overflows",
        "(float16[N,4,8,8] x) => (float16[N,4,6,6] y) { c = Conv(x, w) d = Mul(c, u) y = Mul(d, v) }",
        {"w": (4, 4, 3, 3), "u": np.float16(3e4), "v": np.float16(10.0), "dtype": np.float16},
        lambda: {
            (plan, "fits"): plants.fitting,
            (absorb_affine, "fits"): plants.fitting,
            (weights, "fits"): plants.fitting,
        },
    ),
    (
        "conv-after",
        "a shared weight changed in place",
        "(float[N,4,8,8] x) => (float[N,4,6,6] y, float[N,4,6,6] z)"
        " { c = Conv(x, w) y = Mul(c, s) d = Relu(x) z = Conv(d, w) }",
        SQUARE | SHIFTED,
        lambda: {(weights.Weights, "shared_with"): lambda self, node, index: None},
    ),
)
"""Row, bug, nodes or the whole model as text, weights, and what is patched."""


def classic_mutants() -> Iterator[Mutant]:
    """The bugs, one model each."""
    for rule, bug, body, given, plant in BUGS:
        text = body if body.startswith("(") else IMAGES.format(body)
        used = {name: one for name, one in given.items() if name in _words(text) or name == "dtype"}
        subject = Subject(rule, f"{bug}: {text}", partial(build, text, **used), ignore=FOLD_ONLY)
        yield Mutant(rule, bug, subject, plant, must=True)


def _words(text: str) -> set[str]:
    return set(text.replace("(", " ").replace(")", " ").replace(",", " ").split())

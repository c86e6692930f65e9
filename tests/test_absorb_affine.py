"""ABSORB, other maps: maps compose, take half of one another, and shifts in front of centred norms go."""

from typing import Any

import numpy as np
import pytest

from normfuse.passes.absorb_affine import AFFINE
from tests.parity import Array, Case, batch_norm, build, case, fold, names, ops, rng, rules_of, weights_of

NORM = "n_scale, n_bias, n_mean, n_var"


def positive(*shape: int) -> Array:
    return rng(f"positive {shape}").uniform(0.5, 2.0, shape).astype(np.float32)


def image(rule: str, what: str, nodes: str, expected: str, y: str = "N,4,3,3", **weights: Any) -> Case:
    """A model of images (N, 4, 6, 6)."""
    return case(rule, what, f"(float[N,4,6,6] x) => (float[{y}] y) {{ {nodes} }}", expected, **weights)


def tokens(rule: str, what: str, nodes: str, expected: str, **weights: Any) -> Case:
    """A model of sequences (N, 3, 6)."""
    return case(rule, what, f"(float[N,3,6] x) => (float[N,3,6] y) {{ {nodes} }}", expected, **weights)


POOL = "MaxPool<kernel_shape=[2,2], strides=[2,2]>"
GROUP = "y = GroupNormalization<num_groups=2>(a, s, b)"

APPLIES = [
    image(
        "affine-after",
        "through a MaxPool",
        f"a = BatchNormalization(x, {NORM}) b = {POOL}(a) y = Mul(k, b)",
        "BatchNormalization MaxPool",
        k=positive(4, 1, 1),
        **batch_norm("n", 4),
    ),
    image(
        "affine-after",
        "through a Transpose",
        f"a = BatchNormalization(x, {NORM}) b = Transpose<perm=[0,2,3,1]>(a) y = Sub(k, b)",
        "BatchNormalization Transpose",
        "N,6,6,4",
        k=(4,),
        **batch_norm("n", 4),
    ),
    image(
        "affine-before",
        "through a MaxPool",
        f"a = Mul(x, k) b = {POOL}(a) y = BatchNormalization(b, {NORM})",
        "MaxPool BatchNormalization",
        k=positive(4, 1, 1),
        **batch_norm("n", 4),
    ),
    image(
        "affine-before",
        "a shift",
        f"a = Sub(x, k) b = {POOL}(a) y = BatchNormalization(b, {NORM})",
        "MaxPool BatchNormalization",
        k=(4, 1, 1),
        **batch_norm("n", 4),
    ),
    image(
        "arithmetic-before",
        "Mul, Mul",
        f"a = Mul(x, k) b = {POOL}(a) y = Div(b, j)",
        "MaxPool Mul",
        k=positive(4, 1, 1),
        j=positive(1),
    ),
    image(
        "arithmetic-before",
        "Add, Sub",
        f"a = Add(x, k) b = {POOL}(a) y = Sub(b, j)",
        "MaxPool Add",
        k=(4, 1, 1),
        j=(4, 1, 1),
    ),
    image(
        "arithmetic-before",
        "Add, Mul: the shift goes on",
        f"a = Add(x, k) b = {POOL}(a) c = Mul(b, j) y = Conv(c, w)",
        "MaxPool Conv",
        k=(4, 1, 1),
        j=(4, 1, 1),
        w=(4, 4, 1, 1),
    ),
    image(
        "arithmetic-after",
        "Mul of any sign, Mul",
        f"a = Mul(x, k) b = {POOL}(a) y = Mul(b, j)",
        "Mul MaxPool",
        k=(4, 1, 1),
        j=positive(4, 1, 1),
    ),
    image(
        "arithmetic-after",
        "Add, Mul: the scale goes on",
        f"c = Conv(x, w) r = Relu(c) a = Add(r, k) b = {POOL}(a) y = Mul(b, j)",
        "Conv Relu Add MaxPool",
        k=(4, 1, 1),
        j=positive(4, 1, 1),
        w=(4, 4, 1, 1),
    ),
    image(
        "instance-norm-drops-shift",
        "per channel",
        "a = Add(x, k) y = InstanceNormalization(a, s, b)",
        "InstanceNormalization",
        "N,4,6,6",
        k=(4, 1, 1),
        s=(4,),
        b=(4,),
    ),
    image(
        "instance-norm-drops-shift",
        "for all, on the left",
        "a = Add(k, x) y = InstanceNormalization(a, s, b)",
        "InstanceNormalization",
        "N,4,6,6",
        k=(1,),
        s=(4,),
        b=(4,),
    ),
    tokens(
        "layer-norm-drops-shift",
        "per token",
        "a = Sub(x, k) y = LayerNormalization(a, s, b)",
        "LayerNormalization",
        k=(3, 1),
        s=(6,),
        b=(6,),
    ),
    tokens(
        "layer-norm-drops-shift",
        "for all, two axes",
        "a = Sub(x, k) y = LayerNormalization<axis=1>(a, s)",
        "LayerNormalization",
        k=(),
        s=(3, 6),
    ),
    image(
        "group-norm-drops-shift",
        "per group",
        f"a = Add(x, k) {GROUP}",
        "GroupNormalization",
        "N,4,6,6",
        opset=21,
        s=(4,),
        b=(4,),
        k=np.array([1, 1, -3, -3], np.float32).reshape(4, 1, 1),
    ),
    image(
        "group-norm-drops-shift",
        "for all",
        f"a = Add(x, k) {GROUP}",
        "GroupNormalization",
        "N,4,6,6",
        opset=21,
        s=(4,),
        b=(4,),
        k=(),
    ),
    image(
        "mean-variance-drops-shift",
        "per channel",
        "a = Add(x, k) y = MeanVarianceNormalization(a)",
        "MeanVarianceNormalization",
        "N,4,6,6",
        k=(4, 1, 1),
    ),
    image(
        "mean-variance-drops-shift",
        "per column",
        "a = Add(x, k) y = MeanVarianceNormalization<axes=[0,1,2]>(a)",
        "MeanVarianceNormalization",
        "N,4,6,6",
        k=(6,),
    ),
    tokens("softmax-drops-shift", "per token", "a = Add(x, k) y = Softmax(a)", "Softmax", k=(3, 1)),
    tokens(
        "softmax-drops-shift",
        "LogSoftmax, another axis",
        "a = Add(x, k) y = LogSoftmax<axis=1>(a)",
        "LogSoftmax",
        k=(6,),
    ),
    tokens(
        "softmax-drops-shift", "for all, opset 11", "a = Add(x, k) y = Softmax<axis=2>(a)", "Softmax", opset=11, k=(1,)
    ),
]

REFUSES = [
    image(
        "affine-after",
        "along another axis",
        f"a = BatchNormalization(x, {NORM}) y = Mul(a, k)",
        "behind BatchNormalization 'a': the maps vary along axes 1 and 3",
        "N,4,6,6",
        k=(6,),
        **batch_norm("n", 4),
    ),
    image(
        "affine-before",
        "along another axis",
        f"a = Mul(x, k) y = BatchNormalization(a, {NORM})",
        "in front of BatchNormalization 'y': the maps vary along axes 1 and 3",
        "N,4,6,6",
        k=(6,),
        **batch_norm("n", 4),
    ),
    image(
        "affine-before",
        "a BatchNormalization in training mode",
        f"a = Mul(x, k) y = BatchNormalization<spatial=0>(a, {NORM})",
        "in front of BatchNormalization 'y': spatial=0",
        "N,4,6,6",
        opset=8,
        k=(1,),
        **{name: np.abs(np.resize(array, (4, 6, 6))) for name, array in batch_norm("n", 7).items()},
    ),
    image(
        "arithmetic-after",
        "along another axis",
        "a = Mul(x, k) y = Add(a, j)",
        "behind Mul 'a': the maps vary along axes 3 and 1",
        "N,4,6,6",
        k=(6,),
        j=(4, 1, 1),
    ),
    image(
        "arithmetic-before",
        "along another axis",
        "a = Mul(x, k) y = Add(a, j)",
        "in front of Add 'y': the maps vary along axes 1 and 3",
        "N,4,6,6",
        k=(6,),
        j=(4, 1, 1),
    ),
    image(
        "instance-norm-drops-shift",
        "a scale",
        "a = Mul(x, k) y = InstanceNormalization(a, s, b)",
        "a scale in front of it would change what ε weighs",
        "N,4,6,6",
        k=(4, 1, 1),
        s=(4,),
        b=(4,),
    ),
    image(
        "instance-norm-drops-shift",
        "per column",
        "a = Add(x, k) y = InstanceNormalization(a, s, b)",
        "the shift varies over the elements of one mean",
        "N,4,6,6",
        k=(6,),
        s=(4,),
        b=(4,),
    ),
    case(
        "instance-norm-drops-shift",
        "into its bias",
        "(float[N,4,6] x, float[4] v) => (float[N,4,6] y) { a = Add(v, k) y = InstanceNormalization(x, s, a) }",
        "it is not the data of the operator",
        k=(4,),
        s=(4,),
    ),
    tokens(
        "layer-norm-drops-shift",
        "per feature",
        "a = Add(x, k) y = LayerNormalization(a, s)",
        "the shift varies over the elements of one mean",
        k=(6,),
        s=(6,),
    ),
    case(
        "layer-norm-drops-shift",
        "its mean is read",
        "(float[N,3,6] x) => (float[N,3,6] y, float[N,3,1] m) { a = Add(x, k) y, m = LayerNormalization(a, s) }",
        "its mean is read",
        k=(1,),
        s=(6,),
    ),
    image(
        "group-norm-drops-shift",
        "per channel",
        f"a = Add(x, k) {GROUP}",
        "the shift varies within a group",
        "N,4,6,6",
        opset=21,
        s=(4,),
        b=(4,),
        k=(4, 1, 1),
    ),
    image(
        "group-norm-drops-shift",
        "per column",
        f"a = Add(x, k) {GROUP}",
        "the shift varies over the elements of one mean",
        "N,4,6,6",
        opset=21,
        s=(4,),
        b=(4,),
        k=(6,),
    ),
    image(
        "mean-variance-drops-shift",
        "per column",
        "a = Add(x, k) y = MeanVarianceNormalization(a)",
        "the shift varies over the elements of one mean",
        "N,4,6,6",
        k=(6,),
    ),
    image(
        "mean-variance-drops-shift",
        "a scale",
        "a = Mul(x, k) y = MeanVarianceNormalization(a)",
        "a scale in front of it",
        "N,4,6,6",
        k=(4, 1, 1),
    ),
    tokens(
        "softmax-drops-shift",
        "per class",
        "a = Add(x, k) y = Softmax(a)",
        "the shift varies over the elements of one mean",
        k=(6,),
    ),
    tokens("softmax-drops-shift", "a scale", "a = Mul(x, k) y = Softmax(a)", "it is scaled", k=(3, 1)),
    tokens(
        "softmax-drops-shift",
        "opset 11 flattens",
        "a = Add(x, k) y = Softmax<axis=1>(a)",
        "the shift varies over the elements of one mean",
        opset=11,
        k=(6,),
    ),
]


@pytest.mark.parametrize("item", APPLIES, ids=str)
def test_it_applies(item: Case) -> None:
    item.assert_applies()


@pytest.mark.parametrize("item", REFUSES, ids=str)
def test_it_refuses(item: Case) -> None:
    item.assert_refuses()


def test_every_row_is_tested() -> None:
    rows = {rule.name for rule in AFFINE}
    assert names(APPLIES) == rows
    assert names(REFUSES) == rows


@pytest.mark.parametrize(
    ("y", "nodes"),
    [
        ("N,5,4,4", "c = Conv(x, w, b) y = InstanceNormalization(c, s, t)"),
        ("N,5,8,8", "c = ConvTranspose(x, v, b) y = InstanceNormalization(c, s, t)"),
        ("N,5,4,4", "c = Conv(x, w, b) y = LayerNormalization(c, u)"),
    ],
)
def test_a_bias_in_front_of_a_centred_norm_goes(y: str, nodes: str) -> None:
    text = f"(float[N,4,6,6] x) => (float[{y}] y) {{ {nodes} }}"
    result = fold(build(text, w=(5, 4, 3, 3), v=(4, 5, 3, 3), b=(5,), s=(5,), t=(5,), u=(4,)))
    assert rules_of(result) == {"bias"}
    assert "b" not in weights_of(result.model)
    assert result.report.changes[0].nodes == ("c",)


@pytest.mark.parametrize(
    "nodes",
    [
        "c = Conv(x, w, b) r = Relu(c) y = InstanceNormalization(r, s, t)",
        "c = Conv(x, w, b) i = InstanceNormalization(c, s, t) y = Add(i, c)",
        "c = Conv(x, w, b) y = LayerNormalization<axis=1>(c, u)",
    ],
)
def test_a_bias_that_somebody_sees_stays(nodes: str) -> None:
    text = f"(float[N,4,6,6] x) => (float[N,5,4,4] y) {{ {nodes} }}"
    model = build(text, w=(5, 4, 3, 3), b=(5,), s=(5,), t=(5,), u=(5, 4, 4))
    result = fold(model)
    assert ops(result.model) == ops(model)
    assert "b" in weights_of(result.model)


def test_a_shift_goes_into_the_addend_of_the_other_branch() -> None:
    text = "(float[N,4,6,6] x) => (float[N,4,6,6] y) { c = Conv(x, w) r = Relu(x) a = Add(c, r) y = Add(a, k) }"
    result = fold(build(text, w=(4, 4, 1, 1), k=(4, 1, 1)))
    assert ops(result.model) == {"Conv": 1, "Relu": 1, "Add": 1}


def test_maps_that_undo_each_other_go() -> None:
    text = "(float[N,4] x) => (float[N,4] y) { r = Relu(x) a = Mul(r, k) b = Div(a, k) y = Exp(b) }"
    result = fold(build(text, k=np.array([2.0, 0.5, -4.0, 8.0], np.float32)))
    assert ops(result.model) == {"Relu": 1, "Exp": 1}


def test_a_zero_scale_makes_a_channel_constant_and_is_not_inverted() -> None:
    norm = {**batch_norm("n", 4), "n_scale": np.array([1.5, 0.0, -2.0, 0.0], np.float32)}
    text = f"(float[N,3,8,8] x) => (float[N,4,6,6] y) {{ c = Conv(x, w) y = BatchNormalization(c, {NORM}) }}"
    result = fold(build(text, w=(4, 3, 3, 3), **norm))
    assert ops(result.model) == {"Conv": 1}
    assert not weights_of(result.model)["w"][1].any()

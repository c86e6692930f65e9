"""LOWER: each row writes what it should, says why it does not, and loses no accuracy against a float64 oracle."""

import re
from collections import Counter
from typing import Any

import numpy as np
import pytest

import normfuse
from normfuse.passes.lowerings import LOWERINGS
from normfuse.target import Target
from tests import lowered_elsewhere
from tests.lowered import CENTRED, EPSILON, RMS, E, Lowered, centred, image, refusal_of, rows
from tests.lowered_elsewhere import ROW_WEIGHTS, WINDOW
from tests.parity import build, ops, reasons_of, rules_of

GROUPS = "r = Reshape(x, s) n = InstanceNormalization(r, one, zero) b = Reshape(n, t) g = Mul(b, w) y = Add(g, c)"
GROUP_WEIGHTS: dict[str, Any] = {
    "s": np.array([0, 2, -1]),
    "t": np.array([2, 6, 4, 4]),
    "one": np.ones(2, np.float32),
    "zero": np.zeros(2, np.float32),
    "w": (6, 1, 1),
    "c": (6, 1, 1),
}
CANCELLING = (
    "m = ReduceMean<axes=[1]>(x) q = Mul(x, x) p = ReduceMean<axes=[1]>(q) k = Mul(m, m) v = Sub(p, k)"
    " a = Add(v, e) r = Sqrt(a) d = Sub(x, m) y = Div(d, r)"
)
WINDOW_WEIGHTS = lowered_elsewhere.WINDOW_WEIGHTS | {"alpha": np.float32(0.3)}

ROWS = np.array([2, 5, 16])
AFFINE_ROWS = "n = Div(d, r) g = Mul(n, w) y = Add(g, c)"
SPELLED_ROWS = rows(centred("[-1]", AFFINE_ROWS))
GIVEN_ROWS = SPELLED_ROWS.replace("x)", "x, float[16] w, float[16] c)", 1)
SPELLED_CHANNELS = image(centred("[1]", AFFINE_ROWS))
MANY_POSITIONS = SPELLED_CHANNELS.replace("4,4", "18,18")
CHANNEL_WEIGHTS = E | {"w": (6, 1, 1), "c": (6, 1, 1)}
UNBIASED = f"{CENTRED.format(axes='[2,3]')} u = Mul(v, f) a = Add(u, e) r = Sqrt(a) y = Div(d, r)"

POOLED = "Conv Div Mul Mul Sqrt Sqrt Squeeze Unsqueeze"
TURNED = "LayerNormalization Transpose Transpose"
GAMMA_ROWS = rows(f"{RMS} y = Mul(n, w)")
THREADED = "norm-by-instance-norm-threaded"

ADAIN = (
    "(float[2,6,4,4] x, float[2,6,1,1] s, float[2,6,1,1] t) => (float[2,6,4,4] y)"
    " { n = InstanceNormalization(x, one, zero) g = Mul(n, s) y = Add(g, t) }"
)
ADAIN_WEIGHTS: dict[str, Any] = {"one": np.ones(6, np.float32), "zero": np.zeros(6, np.float32)}

APPLIES = (
    Lowered("layer-norm", SPELLED_ROWS, "LayerNormalization", weights=ROW_WEIGHTS),
    Lowered("layer-norm", SPELLED_ROWS, "LayerNormalization", "portable", weights=ROW_WEIGHTS),
    Lowered("layer-norm", SPELLED_ROWS, "LayerNormalization", "cuda", weights=ROW_WEIGHTS),
    Lowered("rms-norm", rows(f"{RMS} y = Mul(n, w)"), "SimplifiedLayerNormalization", weights=ROW_WEIGHTS),
    Lowered(
        "rms-norm",
        rows(f"{RMS} y = Mul(n, w)").replace("<axes=[-1]>(q)", "(q, k)"),
        "RMSNormalization",
        "portable",
        opset=23,
        weights=ROW_WEIGHTS | {"k": np.array([-1])},
    ),
    Lowered(
        "group-norm",
        image("g = GroupNormalization<num_groups=2>(x, w, c) y = Mul(g, k)"),
        "GroupNormalization",
        "portable",
        opset=21,
        weights={"w": (6,), "c": (6,), "k": (6, 1, 1)},
    ),
    Lowered("instance-norm", image(centred("[2,3]")), "InstanceNormalization", "portable", weights=E),
    Lowered("instance-norm", image(centred("[2,3]")), "InstanceNormalization", weights=E),
    Lowered("instance-norm", image(UNBIASED), "InstanceNormalization", weights=E | {"f": np.float32(16 / 15)}),
    Lowered(
        "channels-first-by-products",
        MANY_POSITIONS,
        "Add BatchNormalization MatMul MatMul Mul Mul Reciprocal Reshape Reshape Sqrt Sub",
        weights=CHANNEL_WEIGHTS,
    ),
    Lowered(
        "channels-first-by-products",
        MANY_POSITIONS,
        "Add Add MatMul MatMul Mul Mul Mul Reciprocal Reshape Reshape Sqrt Sub",
        threads=4,
        weights=CHANNEL_WEIGHTS,
    ),
    Lowered("layer-norm", GIVEN_ROWS, "LayerNormalization", weights=E),
    Lowered("norm-by-transposes", SPELLED_CHANNELS, TURNED, weights=CHANNEL_WEIGHTS),
    Lowered(
        "channels-first-by-products",
        SPELLED_CHANNELS,
        "Add BatchNormalization MatMul MatMul Mul Mul Reciprocal Reshape Reshape Sqrt Sub",
        opset=13,
        weights=CHANNEL_WEIGHTS,
    ),
    Lowered("instance-norm", ADAIN, "InstanceNormalization Reshape Reshape Reshape Reshape", weights=ADAIN_WEIGHTS),
    Lowered(
        "instance-norm",
        ADAIN.replace("[2,6", "[N,6").replace("6,4,4]", "6,H,W]"),
        "InstanceNormalization Reshape Reshape Reshape Reshape",
        weights=ADAIN_WEIGHTS,
    ),
    Lowered(
        "instance-norm",
        ADAIN.replace("2,6,1,1", "1,6,1,1").replace("2,6,4,4", "1,6,4,4"),
        "InstanceNormalization Reshape Reshape",
        weights=ADAIN_WEIGHTS,
    ),
    Lowered(
        "instance-norm",
        ADAIN.replace("y = Add(g, t)", "y = Relu(g)"),
        "InstanceNormalization Relu Reshape Reshape Reshape",
        weights=ADAIN_WEIGHTS,
    ),
    Lowered(
        "norm-by-transposes",
        SPELLED_CHANNELS,
        "LayerNormalization Transpose Transpose",
        "cuda",
        weights=CHANNEL_WEIGHTS,
    ),
    Lowered(
        "norm-by-instance-norm",
        image(GROUPS),
        "BatchNormalization InstanceNormalization Reshape Reshape",
        weights=GROUP_WEIGHTS,
    ),
    Lowered(
        "norm-by-instance-norm",
        image("y = GroupNormalization<num_groups=2>(x, w, c)"),
        "BatchNormalization InstanceNormalization Reshape Reshape",
        opset=21,
        weights={"w": (6,), "c": (6,)},
    ),
    Lowered(
        "norm-by-layer-norm",
        image(GROUPS),
        "Add LayerNormalization Mul Reshape Reshape",
        threads=4,
        weights=GROUP_WEIGHTS,
    ),
    Lowered(
        "norm-by-instance-norm-threaded",
        image(GROUPS).replace("[2,6,4,4]", "[N,6,H,4]").replace("r = ", "t = Shape(x) r = "),
        "BatchNormalization InstanceNormalization Reshape Reshape",
        threads=4,
        weights={name: weight for name, weight in GROUP_WEIGHTS.items() if name != "t"},
    ),
    Lowered(
        "lrn-by-conv",
        image(WINDOW),
        "Conv Div Mul Mul Sqrt Sqrt Squeeze Unsqueeze",
        weights=WINDOW_WEIGHTS,
    ),
    Lowered(
        "lrn-by-conv",
        image("y = LRN<size=5, alpha=0.3>(x)"),
        "Conv Div Mul Mul Sqrt Sqrt Squeeze Unsqueeze",
    ),
    Lowered(
        "lrn-by-conv",
        image("y = LRN<size=5, alpha=0.3>(x)").replace("[2,6,4,4]", "[1,6,48,48]"),
        "Conv Div Mul Mul Sqrt Sqrt Squeeze Unsqueeze",
    ),
    Lowered(
        "lrn-by-conv",
        image("y = LRN<size=5, alpha=0.3>(x)").replace("[2,6,4,4]", "[N,6,H,W]"),
        "Conv Div Mul Mul Sqrt Sqrt Squeeze Unsqueeze",
        opset=12,
    ),
    Lowered(
        "lrn-by-conv",
        rows(WINDOW).replace("[5,1,1], strides=[1,1,1]", "[5,1], strides=[1,1]"),
        "Conv Div Mul Mul Reshape Reshape Sqrt Sqrt",
        weights=WINDOW_WEIGHTS | {"s": np.array([2, 1, 5, 16]), "z": np.array([0, 0, 2, 0, 0, 0, 2, 0]), "t": ROWS},
    ),
    Lowered("lrn", image(WINDOW), "LRN", "cuda", weights=WINDOW_WEIGHTS | {"alpha": np.float32(1e-4)}),
    Lowered(
        "lp-norm",
        rows("n = LpNormalization(x) y = Mul(n, w)"),
        "LpNormalization Mul",
        "portable",
        weights={"w": (16,)},
    ),
    Lowered(
        "two-pass",
        rows(CANCELLING.replace("[1]", "[0,2]")),
        "Add Div Mul ReduceMean ReduceMean Sqrt Sub",
        weights=E,
    ),
    *lowered_elsewhere.APPLIES,
)

REFUSES = (
    Lowered("layer-norm", rows(centred("[-1]")), "opset 13 has no LayerNormalization", "portable", opset=13, weights=E),
    Lowered("rms-norm", GAMMA_ROWS, "opset 17 has no RMSNormalization", "portable", weights=ROW_WEIGHTS),
    Lowered("group-norm", image(GROUPS), "opset 17 has no GroupNormalization", "portable", weights=GROUP_WEIGHTS),
    Lowered(
        "group-norm",
        image(GROUPS),
        "ONNX Runtime computes GroupNormalization by E[x²] − E[x]²",
        "portable",
        opset=21,
        weights=GROUP_WEIGHTS,
    ),
    Lowered("instance-norm", rows(centred("[1]")), "its axes are not the spatial ones", weights=E),
    Lowered("channels-first-by-products", rows(centred("[0]")), "it is no LayerNorm over the channels", weights=E),
    Lowered("norm-by-instance-norm", rows(centred("[0]")), "its axes are not the last ones", weights=E),
    Lowered("norm-by-layer-norm", rows(centred("[0]")), "its axes are not the last ones", threads=4, weights=E),
    Lowered(
        "norm-by-instance-norm-threaded", rows(centred("[0]")), "its axes are not the last ones", threads=4, weights=E
    ),
    Lowered("norm-by-transposes", image(centred("[1,3]")), "its axis is the last one", "cuda", weights=E),
    Lowered("lrn-by-conv", rows(centred("[0]")), "it is no LRN", weights=E),
    Lowered(
        "lrn",
        image(WINDOW).replace("[5,1,1]", "[4,1,1]"),
        "its window is even",
        "cuda",
        weights=WINDOW_WEIGHTS | {"z": np.array([0, 0, 2, 0, 0, 0, 0, 1, 0, 0])},
    ),
    Lowered("lp-norm", rows("n = ReduceL2<axes=[-1]>(x) y = Div(x, n)"), "makes zeros of a row of zeros", weights=E),
    Lowered("two-pass", image(centred("[1,3]")), "its variance is computed in two passes already", weights=E),
    *lowered_elsewhere.REFUSES,
)


@pytest.mark.parametrize(("epsilon", "expected"), [(2.0**-17, "LayerNormalization"), (1e-5, "Div")])
@pytest.mark.parametrize("provider", ["cpu", "portable"])
def test_epsilon_of_float64_is_kept_where_an_attribute_is_another_number(
    epsilon: float, expected: str, provider: Any
) -> None:
    body = centred("[-1]", "n = Div(d, r) g = Mul(n, w) y = Add(g, c)")
    model = build(
        rows(body).replace("float[", "double["), opset=17, dtype=np.float64, e=np.float64(epsilon), w=(16,), c=(16,)
    )
    result = normfuse.optimize(model, Target(provider, 1))
    assert expected in ops(result.model), reasons_of(result)


@pytest.mark.parametrize("provider", ["cpu", "portable"])
def test_nothing_is_written_that_has_no_kernel_for_float64(provider: Any) -> None:
    body = f"h = Reshape(x, s) {centred('[2]').replace('(x', '(h').replace('y = ', 'n = ')} y = Reshape(n, t)"
    weights: dict[str, Any] = {"s": np.array([0, 2, -1]), "t": np.array([2, 6, 4, 4]), "e": np.float64(2.0**-17)}
    model = build(image(body).replace("float[", "double["), opset=17, **weights)
    result = normfuse.optimize(model, Target(provider, 1))
    assert "InstanceNormalization" not in ops(result.model)


@pytest.mark.parametrize("item", APPLIES, ids=str)
def test_it_applies(item: Lowered) -> None:
    _, result = item.run()
    assert ops(result.model) == Counter(item.expected.split()), reasons_of(result)
    unchanged = item.rule in ("lp-norm", "group-norm") and item.rule not in rules_of(result)
    assert unchanged or item.rule in rules_of(result), rules_of(result)
    assert result.report.parity is not None
    assert result.report.parity.passed
    again = normfuse.optimize(result.model, Target(item.provider, item.threads), verify=False)
    assert not again.report.changes, "a second run must find nothing to do"


@pytest.mark.parametrize("item", REFUSES, ids=str)
def test_it_refuses(item: Lowered) -> None:
    model, result = item.run()
    assert item.rule not in rules_of(result)
    if item.rule in {refusal.reason.split(":")[0] for refusal in result.report.refusals}:
        assert f"{item.rule}: {item.expected}" in reasons_of(result)
    else:
        assert item.expected in refusal_of(item.rule, model, Target(item.provider, item.threads))


def test_a_window_by_conv_is_found_as_an_lrn() -> None:
    item = next(item for item in APPLIES if item.rule == "lrn-by-conv")
    _, result = item.run()
    back = normfuse.optimize(result.model, Target("cuda"), verify=False)
    assert "LRN" in ops(back.model)
    assert "Conv" not in ops(back.model)


def test_every_row_is_tested() -> None:
    known = {row.name for row in LOWERINGS}
    assert {item.rule for item in APPLIES} == known
    assert {item.rule for item in REFUSES} == known


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize(
    "body",
    [
        "r = Reshape(x, s) l = LayerNormalization(r, one) b = Reshape(l, t) g = Mul(b, w) y = Add(g, c)",
        "r = Reshape(x, u) l = LayerNormalization(r, one) y = Reshape(l, t)",
        "r = Transpose<perm=[0,2,3,1]>(x) l = LayerNormalization(r, o) y = Transpose<perm=[0,3,1,2]>(l)",
    ],
    ids=["GroupNorm", "InstanceNorm", "over channels"],
)
def test_what_a_layer_normalization_computes_stays_as_accurate(body: str, threads: int) -> None:
    """At a mean of 1000 sums in float32, as InstanceNormalization and MatMul have them, lose two digits."""
    text = f"(float[1,4,32,32] x) => (float[1,4,32,32] y) {{ {body} }}"
    shapes: dict[str, Any] = {"s": np.array([0, 2, -1]), "t": np.array([0, 4, 32, 32]), "u": np.array([0, 4, -1])}
    ones = np.ones(1024 if "(x, u)" in body else 2048, np.float32)
    model = build(text, opset=17, one=ones, o=(4,), w=(4, 1, 1), c=(4, 1, 1), **shapes)
    result = normfuse.optimize(model, "cpu", threads=threads)
    assert "LayerNormalization" in ops(result.model)
    assert "InstanceNormalization" not in ops(result.model)


def test_a_variance_that_cancels_is_mended() -> None:
    text = f"(float[5,16] x) => (float[5,16] y) {{ {CANCELLING} }}"
    result = normfuse.optimize(build(text, opset=17, e=EPSILON), "cpu")
    assert ops(result.model) == Counter(["LayerNormalization"])
    assert any("more accurate" in change.detail for change in result.report.changes)


@pytest.mark.parametrize(
    ("text", "opset"),
    [
        (image("y = InstanceNormalization(x, w, c)").replace("x)", "x, float[6] w, float[6] c)", 1), 17),
        (rows("y = LayerNormalization<axis=2>(x, w, c)").replace("x)", "x, float[16] w, float[16] c)", 1), 17),
        (rows("y = RMSNormalization(x, w)").replace("x)", "x, float[16] w)", 1), 23),
        (rows("y = LpNormalization(x)"), 17),
    ],
)
def test_an_operator_that_is_given_its_parameters_stays(text: str, opset: int) -> None:
    """γ and β that the caller gives, attributes that are written in another way: there is nothing to gain."""
    result = normfuse.optimize(build(text, opset=opset), "cpu")
    assert not result.report.changes
    assert len(result.model.graph.node) == 1


@pytest.mark.parametrize("axis", [-1, 1])
def test_a_row_of_zeros_has_no_direction(axis: int) -> None:
    """LpNormalization leaves zeros where a division by a root makes NaN of them."""
    model = build(rows(f"y = LpNormalization<axis={axis}>(x)"), opset=17)
    result = normfuse.optimize(model, "cpu", verify=False)
    assert ops(result.model) == Counter(["LpNormalization"])


@pytest.mark.parametrize(
    "body",
    [
        centred("[-1]").replace("q = Mul(d, d)", "d2 = Mul(d, d) q = Mul(d2, d2)"),
        centred("[-1]", "y = Div(r, d)"),
        centred("[-1]").replace("d = Sub(x, m)", "d = Sub(m, x)"),
        centred("[-1]", "h = Sigmoid(x) l = Mul(x, h) y = Div(l, r)"),
        "g = ReduceL2<axes=[1]>(x) m = ReduceMean<axes=[-1]>(g) a = Add(m, e) n = Div(g, a) y = Mul(x, n)",
        "m = ReduceMax<axes=[-1]>(x) d = Sub(x, m) q = Exp(d) s = ReduceSum(q, k) y = Div(q, s)",
    ],
    ids=["fourth power", "inverted", "mean minus x", "EvoNorm", "GRN", "softmax"],
)
def test_look_alikes_stay(body: str) -> None:
    model = build(rows(body), opset=17, e=EPSILON, k=np.array([-1]))
    result = normfuse.optimize(model, "cpu", verify=False)
    assert not rules_of(result) & {row.name for row in LOWERINGS}, rules_of(result)
    assert "LayerNormalization" not in ops(result.model)


@pytest.mark.parametrize(
    ("scale", "batch"), [("1,6,1,1", "2"), ("1,6,1,1", "N"), ("2,6,4,4", "2"), ("2,1,1,1", "2"), ("1,6,1,1", "M")]
)
def test_a_scale_that_is_not_of_each_image_stays_behind(scale: str, batch: str) -> None:
    text = ADAIN.replace("[2,6,4,4]", f"[{batch},6,4,4]").replace("[2,6,1,1]", f"[{scale}]")
    result = normfuse.optimize(build(text, opset=17, **ADAIN_WEIGHTS), "cpu")
    assert ops(result.model) == Counter(["InstanceNormalization", "Mul", "Add"])


def test_a_norm_of_heads_is_lowered_within_its_reshapes() -> None:
    """RMSNorm of each head: no row writes groups of the last axis, but what stands between the Reshapes is served."""
    inner = re.sub(r"\bx\b", "h", RMS)
    body = f"h = Reshape(x, s) {inner} y = Reshape(n, t)"
    model = build(rows(body), opset=17, e=EPSILON, s=np.array([2, 5, 4, 4]), t=np.array([2, 5, 16]))
    result = normfuse.optimize(model, "cpu")
    assert ops(result.model) == Counter(["Reshape", "SimplifiedLayerNormalization", "Reshape"]), reasons_of(result)


def test_groups_of_channels_alone_are_not_the_whole_of_them() -> None:
    """LayerNorm over groups of channels, per position."""
    body = f"h = Reshape(x, s) {centred('[2]').replace('(x', '(h').replace('y = ', 'n = ')} y = Reshape(n, t)"
    model = build(image(body), opset=17, e=EPSILON, s=np.array([2, 2, 3, 4, 4]), t=np.array([2, 6, 4, 4]))
    result = normfuse.optimize(model, "cpu")
    assert result.report.parity is not None
    assert result.report.parity.passed

"""Activations: their references are what their spellings compute, and each is written in the form that runs fastest."""

import itertools
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime  # type: ignore[import-untyped]  # it ships no types
import pytest

import normfuse
from models import spellings_activations
from models.spelling import Spelling
from normfuse.activation import Activation, Kind
from normfuse.passes.lift import LiftPass
from normfuse.passes.lifted import lifted
from normfuse.passes.prepare import PreparePass
from tests.parity import build, ops, reasons_of, rules_of

Array = npt.NDArray[Any]
ONE_OF_EACH = list({item.form: item for item in spellings_activations.spellings()}.values())

NUMBERS: dict[str, Any] = {
    "half": np.float32(0.5),
    "one": np.float32(1),
    "minus": np.float32(-1),
    "three": np.float32(3),
    "six": np.float32(6),
    "zero": np.float32(0),
    "tenth": np.float32(0.1),
    "quick": np.float32(1.702),
    "root2": np.float32(2**0.5),
    "root12": np.float32(0.5**0.5),
    "root": np.float32((2 / np.pi) ** 0.5),
    "cubic": np.float32(0.044715),
}
ERF = "a = Mul(x, root12) f = Erf(a) h = Mul(x, half) p = Mul(h, f) y = Add(h, p)"
TANH = (
    "q = Mul(x, x) c = Mul(q, cubic) s = Add(c, one) r = Mul(x, root) a = Mul(r, s) t = Tanh(a) g = Add(t, one)"
    " h = Mul(x, half) y = Mul(h, g)"
)
EXP = "m = Neg(x) e = Exp(m) d = Add(e, one) y = Div(x, d)"
FAST_ERF = "a = Div(x, root2) f = Erf(a) g = Add(one, f) p = Mul(g, x) y = Mul(half, p)"
FAST_ERF_2 = "a = Div(x, root2) f = Erf(a) g = Add(one, f) p = Mul(half, x) y = Mul(g, p)"
FAST_TANH = (
    "q = Pow(x, three) c = Mul(cubic, q) s = Add(x, c) a = Mul(s, root) t = Tanh(a) g = Add(t, one)"
    " h = Mul(x, half) y = Mul(g, h)"
)
MISH = "e = Exp(x) d = Add(e, one) s = Log(d) t = Tanh(s) y = Mul(x, t)"
FUSED_TANH = "Pow Mul Add Mul Tanh Add Mul Mul"
FUSED_ERF = "Div Erf Add Mul Mul"
LOWERED = (
    ("cpu", 17, "l = Relu(x) y = Min(l, six)", "Clip"),
    ("cpu", 9, "l = Max(x, zero) y = Min(l, six)", "Clip"),
    ("cpu", 7, EXP, "Sigmoid Mul"),
    ("cpu", 17, "y = Max(zero, x)", "Relu"),
    ("cpu", 17, "m = Mul(tenth, x) y = Max(m, x)", "LeakyRelu"),
    ("portable", 17, "m = Mul(tenth, x) y = Max(m, x)", "LeakyRelu"),
    ("portable", 14, "g = HardSigmoid<alpha=0.16666667>(x) y = Mul(g, x)", "HardSwish"),
    ("cpu", 17, EXP, "Sigmoid Mul"),
    ("portable", 17, EXP, "Sigmoid Mul"),
    ("cpu", 17, EXP.replace("Div(x, d)", "Div(one, d)"), "Sigmoid"),
    ("cpu", 17, f"u = Mul(x, quick) {EXP.replace('Neg(x)', 'Neg(u)')}", "Mul Sigmoid Mul"),
    ("cpu", 24, "y = Swish(x)", "Sigmoid Mul"),
    ("cpu", 24, "y = Swish<alpha=1.5>(x)", "Mul Sigmoid Mul"),
    ("cpu", 17, ERF, FUSED_ERF),
    ("cpu", 20, ERF, "Gelu"),
    ("cpu", 20, FAST_ERF, "Gelu"),
    ("portable", 20, ERF, "Gelu"),
    ("cpu", 17, f"{TANH.replace('y =', 'z =')} y = Exp(z)", f"{FUSED_TANH} Exp"),
    ("cpu", 20, TANH, "Gelu"),
    ("cpu", 17, MISH, "Min Exp Add Mul Add Div Mul"),
    ("cpu", 18, "y = Mish(x)", "Min Exp Add Mul Add Div Mul"),
    ("portable", 18, MISH, "Mish"),
    ("cpu", 17, "y = PRelu(x, slopes)", "Mul Max"),
    ("cpu", 17, "y = PRelu(x, tenth)", "LeakyRelu"),
)
STAYS = (
    ("cpu", 17, FAST_ERF),
    ("cpu", 17, FAST_ERF_2),
    ("cpu", 17, f"{FAST_TANH.replace('y =', 'z =')} y = Exp(z)"),
    ("cpu", 17, TANH),
    ("cpu", 7, MISH),
    ("cpu", 17, "g = Sigmoid(x) y = Mul(g, x)"),
    ("cpu", 17, "g = HardSigmoid<alpha=0.16666667>(x) y = Mul(g, x)"),
    ("portable", 13, "g = HardSigmoid<alpha=0.16666667>(x) y = Mul(g, x)"),
    ("cpu", 17, "m = Mul(quick, x) g = Sigmoid(m) y = Mul(g, x)"),
    ("cpu", 20, "y = Gelu(x)"),
    ("cpu", 17, "y = Clip(x, zero, six)"),
    ("portable", 17, ERF),
    ("portable", 17, TANH),
    ("portable", 17, MISH),
    ("portable", 24, "y = Swish(x)"),
    ("portable", 17, "y = PRelu(x, slopes)"),
    ("cpu", 17, "y = PRelu(x, steep)"),
    ("cpu", 17, "y = PRelu(x, flat)"),
    ("cpu", 17, "y = Softplus(x)"),
)
SLOPES: dict[str, Any] = {
    "slopes": np.array([0.1, 0.9, -0.5, 1.0, 0.2, 0.3, 0.4, 0.5], np.float32).reshape(8, 1, 1),
    "steep": np.array([0.1, 0.9, -0.5, 1.5, 0.2, 0.3, 0.4, 0.5], np.float32).reshape(8, 1, 1),
    "flat": np.array([0.1, 0.9, -0.5, 0.0, 0.2, 0.3, 0.4, 0.5], np.float32).reshape(8, 1, 1),
}


def model(body: str, opset: int = 17, dims: str = "2,8,4,4") -> onnx.ModelProto:
    used = {name: number for name, number in (NUMBERS | SLOPES).items() if name in body}
    return build(f"(float[{dims}] x) => (float[{dims}] y) {{ {body} }}", opset=opset, **used)


def run(content: onnx.ModelProto, x: Array) -> Array:
    session = onnxruntime.InferenceSession(content.SerializeToString(), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": x})
    return np.asarray(y)


@pytest.mark.parametrize("spelling", ONE_OF_EACH, ids=lambda item: item.form)
def test_the_reference_is_what_the_spelling_computes(spelling: Spelling) -> None:
    content = spelling.build()
    found = spelling.build()
    PreparePass()(found)
    LiftPass()(found)
    (record,) = (record for node in found.graph if (record := lifted(node)) is not None)
    assert isinstance(record.meaning, Activation)
    x = np.linspace(-8.0, 8.0, 48, dtype=np.float32).reshape(2, 3, 8)
    expected = record.meaning(x.astype(np.float64))
    np.testing.assert_allclose(run(ir.to_proto(content), x), expected, rtol=0, atol=2e-6)
    assert np.ptp(expected) > 0.5


def test_every_kind_has_a_spelling_and_a_formula() -> None:
    assert {item.form for item in ONE_OF_EACH} == set(get_args(Kind))
    formulas = [Activation(kind).formula for kind in get_args(Kind)]
    assert len(set(formulas)) == len(formulas)
    assert Activation("HardSwish").formula == "x · max(0, min(1, 0.166667·x + 0.5))"
    assert Activation("Swish", 1.702).formula == "x · σ(1.702·x)"


@pytest.mark.parametrize(("target", "opset", "body", "expected"), LOWERED)
def test_an_activation_is_written_in_its_best_form(target: Any, opset: int, body: str, expected: str) -> None:
    before = model(body, opset)
    result = normfuse.optimize(before, target)
    assert ops(result.model) == Counter(expected.split()), reasons_of(result)
    assert rules_of(result) == {"slopes-as-maximum" if "PRelu" in body else "activation"}
    assert result.report.parity is not None
    assert result.report.parity.passed
    again = normfuse.optimize(result.model, target, verify=False)
    assert not again.report.changes


@pytest.mark.parametrize(("target", "opset", "body"), STAYS)
def test_what_is_in_its_best_form_stays(target: Any, opset: int, body: str) -> None:
    before = model(body, opset)
    result = normfuse.optimize(before, target)
    assert not result.report.changes
    assert ops(result.model) == ops(before)


def test_mish_keeps_its_relative_accuracy() -> None:
    x = np.concatenate([np.linspace(-80, 30, 1101), [-1e-30, 0.0, 1e30]]).astype(np.float32).reshape(1, 1, 1, -1)
    before = model("y = Mish(x)", 18, "1,1,1,1104")
    after = normfuse.optimize(before, "cpu").model
    assert "Exp" in ops(after)
    expected = Activation("Mish")(x.astype(np.float64))
    np.testing.assert_allclose(run(after, x), expected, rtol=1e-6, atol=0)
    infinite = np.full((1, 1, 1, 1104), np.inf, np.float32)
    np.testing.assert_array_equal(run(after, infinite), infinite)


@pytest.mark.parametrize("name", ["steep", "flat"])
def test_slopes_that_a_maximum_cannot_have(name: str) -> None:
    assert "a slope is zero or more than one" in reasons_of(normfuse.optimize(model(f"y = PRelu(x, {name})"), "cpu"))


def test_rounded_constants_stay() -> None:
    body = ERF.replace("root12", "rounded")
    before = build(f"(float[2,8] x) => (float[2,8] y) {{ {body} }}", half=NUMBERS["half"], rounded=np.float32(0.70711))
    result = normfuse.optimize(before, "cpu")
    assert ops(result.model) == ops(before)
    assert "its constants are rounded" in reasons_of(result)


def test_half_precision_stays() -> None:
    body = model(EXP)
    half = build(f"(float16[2,8] x) => (float16[2,8] y) {{ {EXP} }}", opset=17, one=np.float16(1))
    result = normfuse.optimize(half, "cpu", verify=False)
    assert ops(result.model) == ops(body)
    assert "has the operators of Swish for float32 only" in reasons_of(result)


def test_it_can_be_left_out() -> None:
    before = model(EXP)
    for names in (["activation"], ["block"], ["lift"], ["gated-activation"]):
        assert ops(normfuse.optimize(before, "cpu", ignore=names, verify=False).model) == ops(before)


SPELLED = {
    "HardSwish": "a = Add(x, three) c = Clip(a, zero, six) p = Mul(x, c) y = Div(p, six)",
    "Relu6": "l = Relu(x) y = Min(l, six)",
    "LeakyRelu": "m = Mul(x, tenth) y = Max(x, m)",
    "SiLU": EXP,
    "Gelu": ERF,
}


@pytest.mark.parametrize("body", SPELLED.values(), ids=SPELLED)
def test_a_chain_of_convolutions_stays_in_the_blocked_layout(body: str) -> None:
    used = {name: number for name, number in NUMBERS.items() if name in body}
    text = f"(float[1,16,8,8] i) => (float[A,B,C,D] o) {{ x = Conv(i, k) {body} o = Conv(y, k) }}"
    before = build(text, opset=17, k=(16, 16, 1, 1), **used)
    after = normfuse.optimize(before, "cpu", verify=False).model
    counts = [reorders(one) for one in (before, after)]
    if not counts[0]:
        pytest.skip("this processor has no blocked layout")
    assert counts[1] == 2 < counts[0]


def reorders(content: onnx.ModelProto) -> int:
    """How often ONNX Runtime changes the layout in a model."""
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(Path(folder, "optimized.onnx"))
        options.log_severity_level = 4
        onnxruntime.InferenceSession(content.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return sum(
            node.op_type.startswith("Reorder") for node in onnx.load(options.optimized_model_filepath).graph.node
        )


def test_what_stands_in_a_row_is_found_one_by_one() -> None:
    second = "n = Neg(z) f = Exp(n) g = Add(f, one) y = Div(z, g)"
    result = normfuse.optimize(model(f"{EXP.replace('y = ', 'z = ')} {second}"), "cpu")
    assert ops(result.model) == {"Sigmoid": 2, "Mul": 2}


def test_all_orders_of_a_fused_gelu_stay() -> None:
    for first, second, third in itertools.product((0, 1), repeat=3):
        sums, gates, halves = ("f, one", "one, f"), ("x, g", "g, x"), ("p, half", "half, p")
        body = f"a = Div(x, root2) f = Erf(a) g = Add({sums[first]}) p = Mul({gates[second]}) y = Mul({halves[third]})"
        assert not normfuse.optimize(model(body), "cpu", verify=False).report.changes

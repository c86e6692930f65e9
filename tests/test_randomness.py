"""Outputs that are drawn at random are refused by the proof; the rest of such a model is optimized and judged."""

from typing import Any

import numpy as np
import onnx
import pytest

import normfuse
from normfuse.certification import certify
from normfuse.errors import ParityError
from normfuse.model import load
from normfuse.randomness import random_outputs
from tests.parity import build, ops

WEIGHTS: dict[str, Any] = {"w": (3, 3), "k": (3,)}
RATIO: dict[str, Any] = {"ratio": np.float32(0.4), "on": np.array(True), "off": np.array(False)}
RANDOM = {
    "RandomNormalLike": "r = RandomNormalLike(x)",
    "RandomUniform": "r = RandomUniform<shape=[2,3]>()",
    "Bernoulli": "p = Sigmoid(x) r = Bernoulli(p)",
    "Dropout": "r = Dropout(x, ratio, on)",
}


def adding(drawn: str, opset: int = 17, **weights: Any) -> onnx.ModelProto:
    """(x · w) · k + r, with r as it is drawn."""
    text = f"(float[2,3] x) => (float[2,3] y) {{ {drawn} m = MatMul(x, w) s = Mul(m, k) y = Add(s, r) }}"
    return build(text, opset=opset, **WEIGHTS, **(weights or {name: RATIO[name] for name in RATIO if name in drawn}))


@pytest.mark.parametrize("operator", RANDOM)
def test_a_random_output_is_refused_in_one_line_before_anything_is_run(operator: str) -> None:
    model = adding(RANDOM[operator])
    reason = f"output 'y' depends on {operator}.*no run can prove it"
    parity = normfuse.verify(model, model)
    assert not parity.passed
    assert parity.reason.startswith(f"output 'y' depends on {operator}")
    assert parity.probes == 0
    with pytest.raises(ParityError, match=f"{reason}; --no-verify leaves the proof out"):
        normfuse.optimize(model, "cpu")


def test_without_the_proof_what_stands_elsewhere_is_optimized() -> None:
    result = normfuse.optimize(adding(RANDOM["RandomNormalLike"]), "cpu", verify=False)
    assert ops(result.model) == {"RandomNormalLike": 1, "MatMul": 1, "Add": 1}


@pytest.mark.parametrize(
    "drawn",
    [
        "r = Dropout(x, ratio, off)",
        "r = Dropout(x, ratio)",
        "n = RandomNormalLike(x) r = Neg(x)",
        "n = RandomNormalLike(x) e = Shape(n) r = Reshape(x, e)",
    ],
)
def test_what_is_not_drawn_is_proved(drawn: str) -> None:
    model = adding(drawn)
    result = normfuse.optimize(model, "cpu")
    assert result.report.parity is not None
    assert result.report.parity.passed
    assert not random_outputs(load(model))


def test_a_dropout_that_drops_nothing_is_not_random() -> None:
    model = adding("r = Dropout(x, zero, on)", zero=np.float32(0), on=RATIO["on"])
    assert not random_outputs(load(model))
    half = adding("r = Dropout(x, , on)", on=RATIO["on"])
    assert random_outputs(load(half)) == {"y": "Dropout 'r'"}


def test_only_the_outputs_that_depend_on_it_are_named() -> None:
    model = build(
        "(float[2,3] x) => (float[2,3] y, float[2,3] z) { y = Relu(x) r = RandomNormalLike(x) z = Mul(y, r) }"
    )
    assert set(random_outputs(load(model))) == {"z"}


def test_it_is_found_in_a_branch_and_behind_one() -> None:
    model = build(
        "(float[2,3] x, bool c) => (float[2,3] y) { t = If(c) <then_branch = one () => (float[2,3] o) "
        "{ o = RandomNormalLike(x) }, else_branch = two () => (float[2,3] u) { u = Relu(x) }> y = Neg(t) }"
    )
    assert list(random_outputs(load(model))) == ["y"]
    captured = build(
        "(float[2,3] x, bool c) => (float[2,3] y) { r = RandomNormalLike(x) y = If(c) <then_branch = one () => "
        "(float[2,3] o) { o = Neg(r) }, else_branch = two () => (float[2,3] u) { u = Relu(x) }> }"
    )
    assert list(random_outputs(load(captured))) == ["y"]


@pytest.mark.parametrize(("training", "outputs"), [("on", ["y"]), ("off", [])])
def test_a_function_draws_or_not_as_it_is_called(training: str, outputs: list[str]) -> None:
    model = build(
        f"(float[2,3] x) => (float[2,3] y) {{ y = local.drop(x, ratio, {training}) }}",
        **{name: RATIO[name] for name in ("ratio", training)},
    )
    function = onnx.helper.make_function(
        "local",
        "drop",
        ["a", "b", "c"],
        ["d"],
        [onnx.helper.make_node("Dropout", ["a", "b", "c"], ["d"])],
        [onnx.helper.make_opsetid("", 18)],
    )
    model.functions.append(function)
    model.opset_import.append(onnx.helper.make_opsetid("local", 1))
    assert list(random_outputs(load(model))) == outputs


def test_a_part_that_draws_is_not_judged() -> None:
    part = load(adding(RANDOM["Bernoulli"]))
    found = certify(part, part)
    assert found.verdict == "not judged"
    assert "depends on Bernoulli" in found.reason

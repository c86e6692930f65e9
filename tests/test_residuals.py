"""A residual sum in front of a LayerNormalization is a Sum on CPU, where ONNX Runtime would fuse an Add badly."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]  # it ships no types
import pytest

import normfuse
from tests.parity import build, ops, reasons_of, rules_of

NAME = "residual-as-sum"
NORM = "n = LayerNormalization(z, w, c)"


def model(body: str = f"z = Add(x, s) {NORM} y = Relu(n)", shape: str = "2,5,16", opset: int = 17) -> onnx.ModelProto:
    text = f"(float[{shape}] x, float[{shape}] s) => (float[{shape}] y) {{ {body} }}"
    return build(text, opset=opset, w=(16,), c=(16,))


def fused(given: onnx.ModelProto, place: Path) -> Counter[str]:
    """The operators that ONNX Runtime makes of a model."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(place / "fused.onnx"), 4
    onnxruntime.InferenceSession(given.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return ops(onnx.load(options.optimized_model_filepath))


@pytest.mark.parametrize("shape", ["2,5,16", "N,T,16"])
def test_it_is_a_sum_that_stays(shape: str, tmp_path: Path) -> None:
    result = normfuse.optimize(model(shape=shape), "cpu")
    assert ops(result.model) == Counter(["Sum", "LayerNormalization", "Relu"]), reasons_of(result)
    assert NAME in rules_of(result)
    assert result.report.parity is not None
    assert result.report.parity.passed
    assert "SkipLayerNormalization" not in fused(result.model, tmp_path)


def test_what_is_fused_otherwise(tmp_path: Path) -> None:
    assert "SkipLayerNormalization" in fused(model(), tmp_path)


def test_a_norm_that_is_spelled_is_written_first() -> None:
    spelled = "m = ReduceMean<axes=[-1]>(z) d = Sub(z, m) q = Mul(d, d) v = ReduceMean<axes=[-1]>(q)"
    body = f"z = Add(x, s) {spelled} a = Add(v, e) r = Sqrt(a) n = Div(d, r) y = Relu(n)"
    text = f"(float[2,5,16] x, float[2,5,16] s) => (float[2,5,16] y) {{ {body} }}"
    result = normfuse.optimize(build(text, opset=17, e=np.float32(1e-5)), "cpu")
    assert ops(result.model) == Counter(["Sum", "LayerNormalization", "Relu"]), reasons_of(result)


def test_a_second_run_finds_nothing() -> None:
    first = normfuse.optimize(model(), "cpu", verify=False)
    assert not normfuse.optimize(first.model, "cpu", verify=False).report.changes


@pytest.mark.parametrize(
    ("given", "target"),
    [
        (model(), "portable"),
        (model(), "cuda"),
        (model(f"z = Add(x, s) {NORM} y = Mul(n, z)"), "cpu"),
        (model(shape="5,16"), "cpu"),
        (model(shape="2,3,5,16"), "cpu"),
        (model(f"z = Sub(x, s) {NORM} y = Relu(n)"), "cpu"),
        (model("z = Add(x, s) n = RMSNormalization(z, w) y = Relu(n)", opset=23), "cpu"),
        (model("z = Add(x, s) n = Softmax(z) y = Relu(n)"), "cpu"),
    ],
    ids=["portable", "cuda", "two readers", "rank 2", "rank 4", "Sub", "RMSNorm", "Softmax"],
)
def test_it_stays(given: onnx.ModelProto, target: str) -> None:
    result = normfuse.optimize(given, target, verify=False)
    assert "Sum" not in ops(result.model)
    assert NAME not in rules_of(result)

"""Sessions: levels, providers, and errors of one line."""

import sys

import numpy as np
import onnx_ir as ir
import onnxruntime  # type: ignore[import-untyped]  # it ships no types
import pytest

from normfuse.errors import TargetError
from normfuse.runtime import LEVELS, Level, session

NEG = "g (float[2] x) => (float[2] y) { y = Neg (x) }"


def parse(body: str) -> ir.Model:
    return ir.from_onnx_text(f'<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]> {body}')


@pytest.mark.parametrize("level", LEVELS)
def test_a_session_runs_at_each_level(level: Level) -> None:
    loaded = session(parse(NEG), level)
    assert (loaded.inputs, loaded.outputs) == (["x"], ["y"])
    np.testing.assert_array_equal(loaded.run({"x": np.array([1, -2], np.float32)})["y"], [-1, 2])


def test_a_model_that_cannot_be_loaded_is_named() -> None:
    with pytest.raises(TargetError, match=r"^mine: ONNX Runtime cannot load it: .*Unheard") as caught:
        session(parse("g (float[2] x) => (float[2] y) { y = com.microsoft.Unheard (x) }"), name="mine")
    assert "\n" not in str(caught.value)


def test_a_failing_run_is_one_line() -> None:
    with pytest.raises(TargetError, match=r"^g: ONNX Runtime failed to run it: ") as caught:
        session(parse(NEG)).run({"x": np.zeros(3, np.float32)})
    assert "\n" not in str(caught.value)


def test_without_onnxruntime_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(TargetError, match=r"pip install normfuse\[cpu\]"):
        session(parse(NEG))


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="it has the provider")
def test_cuda_does_not_fall_back() -> None:
    with pytest.raises(TargetError, match="has no CUDAExecutionProvider"):
        session(parse(NEG), provider="cuda")


@pytest.mark.cuda
@pytest.mark.skipif("CUDAExecutionProvider" not in onnxruntime.get_available_providers(), reason="no CUDA here")
def test_cuda_runs() -> None:
    np.testing.assert_array_equal(
        session(parse(NEG), provider="cuda").run({"x": np.ones(2, np.float32)})["y"], [-1, -1]
    )


def test_outputs_of_another_rank_than_the_file_says_are_bound_anew() -> None:
    model = ir.from_onnx_text(
        '<ir_version: 8, opset_import: ["" : 17]>'
        " g (float[2,6] x, int64[n] shape) => (float[1,s] y) { y = Reshape (x, shape) }"
    )
    loaded = session(model, "disabled")
    inputs = {"x": np.zeros((2, 6), np.float32), "shape": np.asarray([2, 3, 2])}
    assert loaded.run(inputs)["y"].shape == (2, 3, 2)
    loaded.bound(inputs)()

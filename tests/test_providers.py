"""What runs the models of a verification: CUDA by itself, with TF32 as a level of its own, or onnx's evaluator."""

import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from normfuse import contest, runtime
from normfuse.errors import TargetError
from normfuse.pipeline import optimize
from normfuse.runtime import LEVELS, TF32, has_provider, session
from normfuse.verification import Parity, verify
from tests.parity import batch_norm, build

Array = np.ndarray[Any, Any]

HIDDEN = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "onnxruntime":
            raise ModuleNotFoundError("No module named 'onnxruntime'", name="onnxruntime")
sys.meta_path.insert(0, Hidden())
from normfuse.cli import main
main()
"""
"""The command line where ONNX Runtime is not installed."""


def net(kind: str = "float", scale: float = 1.0) -> onnx.ModelProto:
    dtype = {"float": np.float32, "float16": np.float16}[kind]
    weights: dict[str, Any] = {name: np.asarray(array, dtype) for name, array in batch_norm("n", 4).items()}
    weights["n_scale"] = weights["n_scale"] * dtype(scale)
    weights["w"] = np.random.default_rng(2).standard_normal((4, 3, 3, 3)).astype(dtype)
    text = "{ c = Conv(x, w) y = BatchNormalization(c, n_scale, n_bias, n_mean, n_var) }"
    return build(f"({kind}[N,3,8,8] x) => ({kind}[N,4,6,6] y) {text}", **weights)


def command(*arguments: str | Path, code: str = HIDDEN) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)


class Rounded:
    """A session whose results are rounded to ten bits, and then made worse."""

    def __init__(self, loaded: runtime.Session, worse: float) -> None:
        self._loaded, self._worse = loaded, worse

    def run(self, inputs: Any, names: Any = None) -> dict[str, Array]:
        return {name: self._round(y) for name, y in self._loaded.run(inputs, names).items()}

    def _round(self, y: Array) -> Array:
        bits = (y.astype(np.float32).view(np.uint32) + np.uint32(0x1000)) & np.uint32(0xFFFFE000)
        rounded = bits.view(np.float32)
        return np.asarray(y + (rounded - y) * np.float32(self._worse), y.dtype)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """The CPU plays CUDA; the errors that TF32 makes in the candidate are as many times as large as "worse" says."""
    settings = {"worse": 1.0}

    def play(model: ir.Model, level: Any, provider: str, *, name: str, strict: bool = True) -> Any:
        assert (provider, strict) == ("cuda", True)
        loaded = session(model, "enabled" if level == TF32 else level, "cpu", name=name)
        return Rounded(loaded, settings["worse"] if name == "the candidate" else 1.0) if level == TF32 else loaded

    monkeypatch.setattr(contest, "session", play)
    monkeypatch.setattr(contest, "has_provider", lambda provider: True)
    return settings


def by_level(parity: Parity) -> dict[str, bool]:
    return {output.level: output.passed for output in parity.outputs}


class TestTF32:
    def test_it_is_judged_beside_the_others_by_its_own_unit(self, cuda: dict[str, float]) -> None:
        parity = verify(net(), net(), seeds=1, provider="cuda")
        assert parity.passed, parity.reason
        assert by_level(parity) == {"disabled": True, "enabled": True, TF32: True}
        errors = {output.level: output.candidate for output in parity.outputs}
        assert errors[TF32] > 1e-4 > 100 * errors["enabled"]

    def test_errors_within_its_rounding_are_none(self, cuda: dict[str, float]) -> None:
        cuda["worse"] = 3.0
        assert verify(net(), net(), seeds=1, provider="cuda").passed

    @pytest.mark.parametrize("budget", [60.0, 0.0])
    def test_it_is_a_gate(self, cuda: dict[str, float], budget: float) -> None:
        cuda["worse"] = 40.0
        parity = verify(net(), net(), seeds=1, provider="cuda", budget=budget)
        assert by_level(parity) == {"disabled": True, "enabled": True, TF32: False}
        assert not parity.passed
        assert "optimizer enabled, TF32" in parity.reason

    def test_noise_of_tf32_does_not_excuse_errors_of_float32(self, cuda: dict[str, float]) -> None:
        parity = verify(net(), net(scale=1.0003), seeds=1, provider="cuda", budget=0.0)
        assert by_level(parity) == {"disabled": False, "enabled": False, TF32: True}

    def test_other_types_have_none(self, cuda: dict[str, float]) -> None:
        half = ir.from_proto(net("float16"))
        assert contest.Contest(half, half, "cuda").levels == LEVELS

    def test_one_session_at_a_time_judges_it_too(self, cuda: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(contest, "STREAMED", 0)
        monkeypatch.setattr(contest, "settled", lambda model: model)
        assert by_level(verify(net(), net(), seeds=1, provider="cuda")).keys() == {*LEVELS, TF32}

    def test_the_cpu_has_none(self) -> None:
        with pytest.raises(TargetError, match="only CUDA has TF32"):
            session(ir.from_proto(net()), TF32)

    @pytest.mark.cuda
    @pytest.mark.skipif(not has_provider("cuda"), reason="needs CUDA")
    def test_on_cuda(self) -> None:
        parity = verify(net(), net(), provider="cuda")
        assert by_level(parity) == {"disabled": True, "enabled": True, TF32: True}


class Fake(types.ModuleType):
    """An ONNX Runtime that only notes what it was asked for."""

    __version__ = "0"

    def __init__(self, started: list[str]) -> None:
        super().__init__("onnxruntime")
        self.asked: dict[str, Any] = {}
        fake = self

        class Options:
            def add_session_config_entry(self, key: str, value: str) -> None:
                fake.asked[key] = value

        class InferenceSession:
            def __init__(self, payload: Any, settings: Any, providers: Any, enable_fallback: bool) -> None:
                fake.asked |= {"providers": providers, "fallback": enable_fallback}

            def get_providers(self) -> list[str]:
                return started

            def get_inputs(self) -> list[Any]:
                return []

            get_outputs = get_overridable_initializers = get_inputs

        class Levels:
            ORT_ENABLE_ALL = ORT_DISABLE_ALL = 0

        self.SessionOptions, self.InferenceSession, self.GraphOptimizationLevel = Options, InferenceSession, Levels

    def set_default_logger_severity(self, level: int) -> None: ...

    def get_available_providers(self) -> list[str]:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]


class TestCuda:
    @pytest.mark.parametrize(("level", "tf32"), [("disabled", "0"), ("enabled", "0"), (TF32, "1")])
    def test_it_is_asked_for_alone(self, monkeypatch: pytest.MonkeyPatch, level: Any, tf32: str) -> None:
        fake = Fake(["CUDAExecutionProvider", "CPUExecutionProvider"])
        monkeypatch.setitem(sys.modules, "onnxruntime", fake)
        session(b"", level, "cuda")
        assert fake.asked["providers"] == [("CUDAExecutionProvider", {"use_tf32": tf32})]
        assert fake.asked["fallback"] is False
        assert fake.asked["session.disable_cpu_ep_fallback"] == "1"

    def test_a_runtime_that_falls_back_is_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "onnxruntime", Fake(["CPUExecutionProvider"]))
        with pytest.raises(TargetError, match="did not start CUDAExecutionProvider, only CPUExecutionProvider"):
            session(b"", "enabled", "cuda")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and one that is not the same."""
    folder = tmp_path_factory.mktemp("models")
    onnx.save(net(), folder / "a.onnx")
    onnx.save(net(scale=1.01), folder / "wrong.onnx")
    return folder


class TestWithoutOnnxRuntime:
    def test_optimize_and_verify_work_and_say_what_was_judged(self, folder: Path) -> None:
        done = command("optimize", folder / "a.onnx", "-o", folder / "b.onnx", "--json")
        assert done.returncode == 0, done.stderr
        answer = json.loads(done.stdout)
        assert answer["parity"]["passed"]
        assert answer["parity"]["notes"][0].startswith("ONNX Runtime is not installed: judged by onnx's reference")
        assert {output["level"] for output in answer["parity"]["outputs"]} == {"disabled"}
        assert verify(folder / "a.onnx", folder / "b.onnx", seeds=1).passed

    def test_what_differs_fails(self, folder: Path) -> None:
        done = command("verify", folder / "a.onnx", folder / "wrong.onnx")
        assert done.returncode == 1
        assert "FAILED" in done.stdout
        assert "the runtime's own optimizer make of it was not judged" in done.stdout

    def test_cuda_is_an_error_where_it_is_asked_for(self, folder: Path) -> None:
        done = command("verify", folder / "a.onnx", folder / "a.onnx", "--provider", "cuda")
        assert done.returncode == 4
        assert done.stderr == "Error: ONNX Runtime is not installed; run: pip install normfuse[cpu]\n"

    def test_one_that_is_broken_is_not_taken_for_missing(self, folder: Path) -> None:
        broken = HIDDEN.replace('ModuleNotFoundError("No module named \'onnxruntime\'", name="onnxruntime")', "E")
        assert broken != HIDDEN
        code = f"E = ImportError('libcudart.so: cannot open')\n{broken}"
        done = command("verify", folder / "a.onnx", folder / "a.onnx", code=code)
        assert done.returncode == 4
        assert done.stderr == "Error: ONNX Runtime cannot be imported: libcudart.so: cannot open; install it again\n"


BFLOAT16 = "(bfloat16[N,3] x) => (bfloat16[N,4] y) { m = MatMul(x, w) y = Mul(m, k) }"
INSIDE = "(float[N,3] x) => (float[N,4] y) { c = Cast<to=16>(x) m = MatMul(c, w) n = Mul(m, k) y = Cast<to=1>(n) }"
CARRIED = "(bfloat16[N,3] x) => (bfloat16[3,N] y) { t = Transpose(x) y = Identity(t) }"


class TestWithoutKernels:
    @pytest.mark.parametrize("target", ["cpu", "portable"])
    @pytest.mark.parametrize(
        ("text", "dtype", "rules"),
        [(BFLOAT16, ml_dtypes.bfloat16, {"matmul-after"}), (INSIDE, ml_dtypes.bfloat16, {"matmul-after"})],
    )
    def test_the_evaluator_stands_in_and_the_report_says_so(
        self, target: str, text: str, dtype: Any, rules: set[str]
    ) -> None:
        result = optimize(build(text, dtype=dtype, w=(3, 4), k=(4,)), target)
        assert {change.rule for change in result.report.changes} == rules
        assert {one.verdict for one in result.report.certificates} == {"passed"}
        parity = result.report.parity
        assert parity is not None
        assert parity.passed
        assert parity.notes[0].startswith(f"not run on {target.upper()}: ONNX Runtime ")
        assert "judged by the reference evaluator" in parity.notes[0]

    def test_what_it_can_load_but_takes_no_arrays_for_is_judged_too(self) -> None:
        model = build(CARRIED)
        parity = verify(model, model, stand_in=True)
        assert parity.passed
        assert "takes and gives no bfloat16 in Python" in parity.notes[0]

    def test_what_is_wrong_still_fails(self) -> None:
        right, wrong = (
            build(INSIDE, dtype=ml_dtypes.bfloat16, w=(3, 4), k=np.full(4, scale, ml_dtypes.bfloat16))
            for scale in (1.5, 1.25)
        )
        assert not verify(right, wrong, stand_in=True).passed

    def test_nothing_stands_in_unasked_or_for_a_candidate(self) -> None:
        model = build(INSIDE, dtype=ml_dtypes.bfloat16, w=(3, 4), k=(4,))
        with pytest.raises(TargetError, match="the reference: ONNX Runtime cannot load it"):
            verify(model, model)
        runs = build("(float[N,3] x) => (float[N,4] y) { m = MatMul(x, w) y = Mul(m, k) }", w=(3, 4), k=(4,))
        with pytest.raises(TargetError, match="the candidate: ONNX Runtime cannot load it"):
            verify(runs, model, stand_in=True)

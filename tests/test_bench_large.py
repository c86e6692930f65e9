"""The study of large models, small."""

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from models.large import write_large
from scripts.bench_large import MEMORY, LargeBench, Usage, main, watch

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")


def test_a_process_is_ended_at_its_limits(tmp_path: Path) -> None:
    hungry = "import time; held = bytearray(200 << 20); time.sleep(60)"
    usage = watch([sys.executable, "-c", hungry], tmp_path / "log", limit=100e6)
    assert "more than 0.1 GB" in usage.problem
    assert usage.anonymous > 100e6
    slow = watch([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path / "log", seconds=0.2)
    assert "not done" in slow.problem
    broken = watch([sys.executable, "-c", "raise SystemExit('no such thing')"], tmp_path / "log")
    assert broken.problem == "no such thing"


def test_the_children_of_a_process_count(tmp_path: Path) -> None:
    child = "import time; held = bytearray(200 << 20); time.sleep(1)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    assert watch([sys.executable, "-c", parent], tmp_path / "log").anonymous > 200e6


def test_the_limits_decide() -> None:
    def passed(anonymous: float, seconds: float, problem: str = "") -> bool:
        return LargeBench(6.0, (10.0,), (Usage(seconds, int(anonymous), problem),), {}, None).passed

    assert passed(1e9, 29.0)
    assert not passed(MEMORY, 29.0)
    assert not passed(1e9, 31.0)
    assert not passed(1e9, 29.0, "killed")
    assert not LargeBench(6.0, (10.0,), (Usage(20.0, 10**9),), {}, Usage(60.0, 10**9, "FAILED")).passed


def test_the_study_measures_a_small_model(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    main(["--gb", "0.002", "--rounds", "1", "--no-rivals", "--no-verify", "--json", "--folder", str(tmp_path)])
    content = json.loads(capsys.readouterr().out)
    assert content["gigabytes"] > 0.002
    assert content["optimizing"][0]["problem"] == ""
    assert 0 < content["anonymous"] < MEMORY
    assert content["ratio"] > 0
    assert list(tmp_path.iterdir()) == []


def test_nonsense_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--gb", "0"])
    assert ended.value.code == 2


def test_the_model_is_valid_and_of_the_size_that_was_asked_for(tmp_path: Path) -> None:
    write_large(tmp_path / "model.onnx", 3 << 20, width=48)
    onnx.checker.check_model(str(tmp_path / "model.onnx"), full_check=True)
    assert 3 << 20 <= (tmp_path / "model.onnx.data").stat().st_size < 4 << 20
    model = onnx.load(tmp_path / "model.onnx")
    kinds = {node.op_type for node in model.graph.node}
    assert {"Conv", "BatchNormalization", "MatMul", "LayerNormalization", "ReduceMean"} <= kinds
    first = onnx.numpy_helper.to_array(model.graph.initializer[0])
    assert np.std(first) > 0

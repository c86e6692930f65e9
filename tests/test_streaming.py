"""Large models: the runtime maps their weights, and verification opens one session at a time."""

import gc
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from models.large import write_large
from normfuse import contest, judging, pipeline, streaming
from normfuse.model import load, save
from normfuse.runtime import session
from normfuse.scaled import Folded
from normfuse.verification import Parity, verify

pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model with a data file, and what became of it."""
    folder = tmp_path_factory.mktemp("large")
    write_large(folder / "model.onnx", 1 << 20, width=32)
    model = load(folder / "model.onnx")
    pipeline.rewrite(model)
    save(model, folder / "fast.onnx")
    return folder / "model.onnx", folder / "fast.onnx"


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """Every model is large, and has no oracle; the list tells how many sessions were open whenever one was opened."""
    for name in ("MAPPED", "ORACLE"):
        monkeypatch.setattr(streaming, name, 0)
    monkeypatch.setattr(contest, "STREAMED", 0)
    monkeypatch.setattr(judging, "ORACLE", 0)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    counts: list[int] = []
    alive: list[Any] = []

    def spy(*arguments: Any, **options: Any) -> Any:
        import weakref

        gc.collect()
        counts.append(sum(one() is not None for one in alive) + 1)
        loaded = session(*arguments, **options)
        alive.append(weakref.ref(loaded))
        return loaded

    monkeypatch.setattr(contest, "session", spy)
    return counts


def test_one_session_is_open_at_a_time(pair: tuple[Path, Path], opened: list[int], tmp_path: Path) -> None:
    parity = verify(*pair, seeds=1)
    assert parity.passed, parity.reason
    assert parity.judged_by == "noise"
    assert parity.probes > 5
    assert any("one session is open at a time" in note for note in parity.notes)
    assert any("float64 oracle would hold" in note for note in parity.notes)
    assert opened[:5] == [1] * 5
    assert set(opened) == {1}
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_streaming_gives_the_same_verdict(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    plain = verify(*pair, seeds=1)
    monkeypatch.setattr(contest, "STREAMED", 0)
    streamed = verify(*pair, seeds=1)
    assert plain.judged_by == streamed.judged_by == "oracle"
    assert (plain.passed, plain.probes) == (streamed.passed, streamed.probes)
    assert _figures(plain) == _figures(streamed)


def _figures(parity: Parity) -> list[tuple[Any, ...]]:
    return [(one.name, one.level, one.reference, one.candidate, one.ratio) for one in parity.outputs]


def test_a_wrong_candidate_fails(pair: tuple[Path, Path], opened: list[int], tmp_path: Path) -> None:
    model = load(pair[1])
    value = next(v for v in model.graph.initializers.values() if isinstance(v.const_value, ir.ExternalTensor))
    assert value.const_value is not None
    value.const_value = ir.tensor(value.const_value.numpy() * np.float32(1.001), name=value.name)
    parity = verify(load(pair[0]), model, seeds=1)
    assert not parity.passed
    assert parity.reason


def test_what_was_not_written_yet_is_judged_from_a_temporary_folder(
    pair: tuple[Path, Path], opened: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("normfuse.scaled.LARGE", 0)
    model = load(pair[0])
    pipeline.rewrite(model)
    assert any(isinstance(value.const_value, Folded) for value in model.graph.initializers.values())
    copy = streaming.settled(model)
    assert copy is not model
    assert len(list(tmp_path.iterdir())) == 1
    for name, value in copy.graph.initializers.items():
        before = model.graph.initializers[name].const_value
        assert before is not None
        assert value.const_value is not None
        assert not isinstance(value.const_value, Folded)
        np.testing.assert_array_equal(value.const_value.numpy(), before.numpy())
    del copy, value
    gc.collect()
    assert list(tmp_path.iterdir()) == []
    assert verify(load(pair[0]), model, seeds=1).passed


def test_the_budget_bounds_the_probes(pair: tuple[Path, Path], opened: list[int]) -> None:
    parity = verify(*pair, budget=1e-9)
    assert parity.probes == 1
    assert any("allowed 1 probes" in note for note in parity.notes)

"""`normfuse calibrate`: its files, its options, and what it exits with."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result

from normfuse import cli
from normfuse.calibration import calibrate
from tests.parity import build
from tests.test_calibration import data, net


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.main, ["calibrate", *(str(argument) for argument in arguments)])


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save(net(), path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for index, batch in enumerate(data()):
        np.savez(folder / f"{index}.npz", allow_pickle=False, **batch)
    return folder


class TestWrites:
    def test_the_model_that_the_function_returns(self, model: Path, folder: Path, tmp_path: Path) -> None:
        done = run(model, folder, "-o", tmp_path / "new.onnx")
        assert done.exit_code == 0, done.output
        assert onnx.load(tmp_path / "new.onnx") == calibrate(net(), data()).model
        assert "4 layers, 3 batches, 3 passes, estimator mean" in done.stdout
        assert f"written: {tmp_path / 'new.onnx'}" in done.stdout

    def test_one_pass_warns_of_what_it_approximates(self, model: Path, folder: Path, tmp_path: Path) -> None:
        done = run(model, folder, "-o", tmp_path / "new.onnx", "--one-pass", "--estimator", "pooled")
        assert done.exit_code == 0, done.output
        assert "Warning: --one-pass measures each layer behind layers that normalize by the" in done.stderr
        assert onnx.load(tmp_path / "new.onnx") == calibrate(net(), data(), estimator="pooled", flow="batch").model

    def test_what_is_left_out_or_doubled_is_told(self, model: Path, folder: Path, tmp_path: Path) -> None:
        np.savez(folder / "0.npz", allow_pickle=False, **data()[0], labels=np.arange(2))
        told = ("note: left out of the data, as no input of that name can be fed: 'labels'", "counted as often: ")
        for output, shard in (("new.onnx", ()), ("part.npz", ("--shard", "1/1"))):
            done = run(model, folder, folder / "2.npz", "-o", tmp_path / output, *shard)
            assert done.exit_code == 0, done.output
            assert all(one in done.stdout for one in told), done.stdout

    def test_a_dry_run_writes_nothing(self, model: Path, folder: Path, tmp_path: Path) -> None:
        before = set(tmp_path.iterdir())
        done = run(model, folder, "--dry-run", "--json")
        assert done.exit_code == 0, done.output
        found = json.loads(done.stdout)
        assert found["written"] is None
        assert [layer["level"] for layer in found["layers"]] == [1, 1, 2, 3]
        assert len(found["layers"][0]["new"]["mean"]) == 4
        assert set(tmp_path.iterdir()) == before


class TestErrors:
    def test_without_an_output(self, model: Path, folder: Path) -> None:
        done = run(model, folder)
        assert done.exit_code == 2
        assert "where to?" in done.stderr

    def test_the_output_is_the_input(self, model: Path, folder: Path) -> None:
        done = run(model, folder, "-o", model)
        assert done.exit_code == 2
        assert "is the input" in done.stderr

    def test_folded_batch_norms_cannot_be_estimated(self, folder: Path, tmp_path: Path) -> None:
        onnx.save(
            build("(float[N,3,H,W] x) => (float[N,4,H,W] y) { y = Conv(x, w) }", w=(4, 3, 1, 1)), tmp_path / "m.onnx"
        )
        done = run(tmp_path / "m.onnx", folder, "-o", tmp_path / "new.onnx")
        assert done.exit_code == 2
        assert "cannot be estimated anew; export it with its BatchNormalizations kept" in done.stderr
        assert done.stderr.count("\n") == 1

    def test_what_is_no_model(self, folder: Path, tmp_path: Path) -> None:
        (tmp_path / "m.onnx").write_bytes(b"")
        assert run(tmp_path / "m.onnx", folder, "-o", tmp_path / "new.onnx").exit_code == 3

    def test_data_that_does_not_fit_is_found_before_any_work(self, model: Path, folder: Path, tmp_path: Path) -> None:
        np.savez(folder / "9.npz", allow_pickle=False, x=np.ones((2, 4, 6, 5), np.float32))
        done = run(model, folder, "-o", tmp_path / "new.onnx")
        assert done.exit_code == 2
        assert done.stderr.endswith("9.npz: axis 1 of input 'x' has size 3, that of the array 4\n")
        assert not (tmp_path / "new.onnx").exists()

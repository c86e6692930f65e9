"""A cluster finds the same bits as one process."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from normfuse.calibration import calibrate
from normfuse.errors import NormfuseError
from tests.test_calibration import data, net
from tests.test_calibration_state import SIZES
from tests.test_cli_calibrate import folder as folder  # a fixture
from tests.test_cli_calibrate import model as model  # a fixture
from tests.test_cli_calibrate import run

distributed = pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    """Two workers in this process."""
    settings = {"dashboard_address": ":0", "scheduler_kwargs": {"dashboard": False}}  # a port that is free
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=False, **settings) as cluster:
        yield cluster.scheduler_address


@pytest.mark.parametrize("flow", ["levels", "batch"])
@pytest.mark.parametrize("estimator", ["mean", "pooled"])
def test_it_is_what_one_process_finds(flow: Any, estimator: Any, scheduler: str) -> None:
    found = calibrate(net(), data(SIZES), flow=flow, estimator=estimator, scheduler=scheduler)
    expected = calibrate(net(), data(SIZES), flow=flow, estimator=estimator)
    assert found.model == expected.model
    assert found.report.to_dict() == expected.report.to_dict()


def test_it_goes_on_from_what_one_process_has_found(scheduler: str, tmp_path: Path) -> None:
    from tests.test_calibration_state import Interrupted

    path = tmp_path / "checkpoint.npz"
    with pytest.raises(KeyboardInterrupt):
        calibrate(net(), Interrupted(7), checkpoint=path)
    with pytest.raises(NormfuseError, match="the first pass had other batches"):
        calibrate(net(), data(SIZES[1:]), checkpoint=path, scheduler=scheduler)
    found = calibrate(net(), data(SIZES), checkpoint=path, scheduler=scheduler)
    assert found.model == calibrate(net(), data(SIZES)).model
    assert not path.exists()


def test_an_error_on_a_worker_is_that_of_one_process(scheduler: str) -> None:
    batches = data(SIZES)
    batches[3]["x"][0] = float("nan")
    with pytest.raises(NormfuseError, match="reads NaN or infinities"):
        calibrate(net(), batches, scheduler=scheduler)


class Shuffled:
    """Known how many, but in another order each time, as a DataLoader that shuffles gives them."""

    def __len__(self) -> int:
        return len(SIZES)

    def __iter__(self) -> Iterator[Any]:
        batches = data(SIZES)
        random.shuffle(batches)
        return iter(batches)


@pytest.mark.parametrize("batches", [Shuffled(), iter(data()), [], (batch for batch in data())])
def test_batches_that_each_worker_might_read_otherwise(batches: Any, scheduler: str) -> None:
    reason = "there are no batches" if batches == [] else "reads the batches by itself, and an iterable may give others"
    with pytest.raises(NormfuseError, match=reason):
        calibrate(net(), batches, scheduler=scheduler, flow="batch")


def test_files_that_a_worker_has_otherwise(folder: Path, scheduler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other data under the same path on another machine: here they change when the files have been looked at."""
    from normfuse import calibration_dask, calibration_passes

    begun = calibration_passes.begun

    def changing(*arguments: Any) -> Any:
        np.savez(folder / "1.npz", allow_pickle=False, **data()[0])
        return begun(*arguments)

    monkeypatch.setattr(calibration_dask, "begun", changing)
    with pytest.raises(NormfuseError, match=r"1\.npz is not what it was when the calibration began"):
        calibrate(net(), folder, scheduler=scheduler, flow="batch")


def test_a_scheduler_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    from normfuse import calibration_dask

    monkeypatch.setattr(calibration_dask, "_PATIENCE", "100ms")
    with pytest.raises(NormfuseError, match=r"cannot reach a scheduler at tcp://127\.0\.0\.1:9"):
        calibrate(net(), data(), scheduler="tcp://127.0.0.1:9")
    with pytest.raises(NormfuseError, match="cannot reach a scheduler at nonsense"):
        calibrate(net(), data(), scheduler="nonsense")


@pytest.mark.parametrize("scheduler", ["tcp://127.0.0.1:9", "nonsense"])
def test_a_client_that_reached_nobody_is_closed_at_once(scheduler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The garbage collector would do it within whatever runs then, and stop for ever at a lock that is held."""
    from normfuse import calibration_dask

    made: list[Any] = []
    start = distributed.Client.start

    def starting(self: Any, **options: Any) -> Any:
        made.append(self)
        return start(self, **options)

    monkeypatch.setattr(calibration_dask, "_PATIENCE", "100ms")
    monkeypatch.setattr(distributed.Client, "start", starting)
    with pytest.raises(NormfuseError, match="cannot reach a scheduler"):
        calibrate(net(), data(), scheduler=scheduler)
    assert [client.status for client in made] == ["closed"]


def test_a_scheduler_without_workers(scheduler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed.Client, "nthreads", lambda _: {})
    with pytest.raises(NormfuseError, match="has no workers; start some with `dask worker"):
        calibrate(net(), data(), scheduler=scheduler)


def test_a_local_cluster_on_the_command_line(model: Path, folder: Path, tmp_path: Path) -> None:
    done = run(model, folder, "-o", tmp_path / "new.onnx", "--scheduler", "local")
    assert done.exit_code == 0, done.output
    assert onnx.load(tmp_path / "new.onnx") == calibrate(net(), data()).model

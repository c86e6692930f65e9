"""Saves that are killed, run out of room or meet one another leave the old file or the new one, whole."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("fcntl", reason="scripts.faults wants a Unix")

from normfuse.leftovers import TEMPORARY, reserve, sweep
from normfuse.model import load, save
from scripts import faults
from scripts.faults import KINDS, Row

SMALL = 0.1
"""MiB of the weights."""


def held(row: Row) -> Row:
    assert row.lost == 0, row.note
    assert row.rounds
    return row


@pytest.mark.parametrize("kind", KINDS)
def test_killed_saves(kind: str) -> None:
    row = held(faults.killed_saves(kind, 8, seed=1, mebibytes=SMALL))
    assert row.old + row.new == 8


@pytest.mark.parametrize("kind", KINDS)
def test_processes_at_once(kind: str) -> None:
    row = held(faults.rivals(kind, 4, seed=1, mebibytes=SMALL))
    assert row.old + row.new == 4


@pytest.mark.parametrize("kind", KINDS)
def test_no_room(kind: str) -> None:
    row = held(faults.full_files(kind, 4, seed=1, mebibytes=SMALL))
    assert row.old == row.refused == 4


@pytest.mark.parametrize("kind", KINDS)
def test_forbidden_and_odd_targets(kind: str) -> None:
    assert held(faults.forbidden(kind, seed=1, mebibytes=SMALL)).refused == 1
    row = held(faults.odd_targets(kind, seed=1, mebibytes=SMALL))
    assert row.refused == row.rounds == 8


def test_what_is_lost_is_seen() -> None:
    """The judge knows a target that is cut short, one that is another model, and a save that goes through."""
    with faults.staged("external", 1, mebibytes=SMALL) as stage:
        row = Row("planted")
        save(load(faults.made(9, SMALL)), stage.target)
        stage.judge(row)
        assert row.lost == 1
        save(stage.models[1], stage.target)
        stage.judge(row)
        assert (row.lost, row.new) == (1, 1)
        data = next(stage.folder.glob("*.data"))
        data.write_bytes(data.read_bytes()[:-1])
        stage.judge(row)
        assert row.lost == 2
        stage.refuses(row)  # it is not refused, and another data file stands there now
        assert row.lost == 4


def test_leftovers_of_the_dead_are_removed_those_of_the_living_are_not(tmp_path: Path) -> None:
    dead = tmp_path / f".normfuse-{'0' * 16}.tmp"
    alive = tmp_path / f".normfuse-{'1' * 16}.tmp"
    other = tmp_path / ".normfuse-notes.tmp"
    link = tmp_path / f".normfuse-{'2' * 16}.tmp"
    dead.write_bytes(b"half")
    other.write_bytes(b"mine")
    link.symlink_to(other)
    release = reserve(str(alive))
    assert release is not None
    sweep(str(tmp_path), TEMPORARY)
    assert set(os.listdir(tmp_path)) == {alive.name, other.name, link.name}
    release()
    assert not alive.exists()


def test_names_reserved_by_the_dead_are_free_again(tmp_path: Path) -> None:
    """An empty data file that nobody holds is no one's; one with content may belong to a model of another name."""
    pattern = re.compile(r"m\.onnx(\.[0-9a-f]{8})?\.data")
    (tmp_path / "m.onnx.data").touch()
    (tmp_path / "m.onnx.01234567.data").write_bytes(b"weights of another model")
    (tmp_path / "n.onnx.data").touch()
    sweep(str(tmp_path), pattern, empty=True)
    assert set(os.listdir(tmp_path)) == {"m.onnx.01234567.data", "n.onnx.data"}
    release = reserve(str(tmp_path / "m.onnx.data"))
    assert release is not None
    sweep(str(tmp_path), pattern, empty=True)
    assert (tmp_path / "m.onnx.data").exists()
    assert reserve(str(tmp_path / "m.onnx.data")) is None
    (tmp_path / "m.onnx.data").write_bytes(b"written meanwhile")
    release()
    assert (tmp_path / "m.onnx.data").exists()


def test_the_command_line_refuses_what_it_does_not_know() -> None:
    done = subprocess.run([sys.executable, "-m", "scripts.faults", "--never"], capture_output=True, check=False)
    assert done.returncode == 2

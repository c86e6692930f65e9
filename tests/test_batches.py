"""Batches in files: what is read, and what is said of what cannot be."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from normfuse.batches import Shard, batches_of
from normfuse.errors import NormfuseError
from normfuse.model import load
from tests.parity import Array, build, rng

MODEL = load(build("(float[N,3] x) => (float[N,3] y) { y = Relu(x) }"))
PAIR = load(build("(float[N,3] x, float[N,2] z) => (float[N,5] y) { y = Concat<axis: int = 1>(x, z) }"))


def array(index: int) -> Array:
    return rng(str(index)).normal(0, 1, (2 + index, 3)).astype(np.float32)


def safetensors(**arrays: Array) -> bytes:
    """A .safetensors file by hand: the length of the header, the header, the numbers."""
    names, header, start = {"float32": "F32", "int64": "I64"}, {}, 0
    for name, one in arrays.items():
        header[name] = {
            "dtype": names[one.dtype.name],
            "shape": list(one.shape),
            "data_offsets": [start, start + one.nbytes],
        }
        start += one.nbytes
    text = json.dumps({"__metadata__": {"by": "hand"}, **header}).encode()
    return len(text).to_bytes(8, "little") + text + b"".join(one.tobytes() for one in arrays.values())


def check(given: Any, expected: list[int], **settings: Any) -> None:
    """Asserts that those arrays are read, each time."""
    batches = batches_of(given, MODEL)
    for _ in range(2):
        found = list(batches.read(**settings))
        assert len(found) == len(expected)
        for batch, index in zip(found, expected, strict=True):
            np.testing.assert_array_equal(batch["x"], array(index), strict=True)


class TestFiles:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """Batches 0 to 4, in files of two kinds, and what is none."""
        for index in range(3):
            np.savez(tmp_path / f"{index}.npz", allow_pickle=False, x=array(index), labels=np.arange(2))
        for index in (3, 4):
            np.save(tmp_path / f"{index}.npy", array(index))
        (tmp_path / "README.txt").write_text("notes")
        (tmp_path / ".hidden.npz").write_text("no archive")
        return tmp_path

    def test_a_folder(self, folder: Path) -> None:
        check(folder, [0, 1, 2, 3, 4])
        assert batches_of(str(folder), MODEL).count == 5

    def test_files_in_the_order_given(self, folder: Path) -> None:
        check([folder / "3.npy", folder / "1.npz"], [3, 1])

    def test_a_shard(self, folder: Path) -> None:
        check(folder, [1, 4], shard=Shard(1, 3))
        assert batches_of(folder, MODEL).share(Shard(1, 3)) == 2

    def test_safetensors(self, tmp_path: Path) -> None:
        pytest.importorskip("safetensors")
        (tmp_path / "2.safetensors").write_bytes(safetensors(x=array(2), labels=np.arange(2)))
        check(tmp_path, [2])

    def test_safetensors_are_checked_by_their_header(self, tmp_path: Path) -> None:
        (tmp_path / "2.safetensors").write_bytes(safetensors(x=np.arange(6).reshape(2, 3)))
        with pytest.raises(NormfuseError, match=r"2\.safetensors: input 'x' is float, the array int64"):
            batches_of(tmp_path, MODEL)

    def test_safetensors_that_cannot_be_read_here(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(__import__("sys").modules, "safetensors.numpy", None)
        (tmp_path / "2.safetensors").write_bytes(safetensors(x=array(2)))
        with pytest.raises(NormfuseError, match=r"needs safetensors; run: pip install normfuse\[data\]"):
            check(tmp_path, [2])

    @pytest.mark.parametrize(
        ("name", "content", "reason"),
        [
            ("a.npz", b"no archive", r"a\.npz is no \.npz file of arrays"),
            ("a.npz", b"", r"a\.npz is no \.npz file of arrays"),
            ("a.npy", b"no array", r"a\.npy is no \.npy file of arrays"),
            ("a.safetensors", b"\xff" * 20, r"a\.safetensors is no \.safetensors file of arrays: its header would"),
            ("a.safetensors", b"\x05" + bytes(7) + b"no js", r"a\.safetensors is no \.safetensors file"),
            ("a.txt", b"", r"holds no batch; give \.npz or \.npy or \.safetensors files"),
        ],
    )
    def test_what_is_no_such_file(self, name: str, content: bytes, reason: str, tmp_path: Path) -> None:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(NormfuseError, match=reason):
            batches_of(tmp_path / name, MODEL)

    def test_objects_are_never_loaded(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", x=np.array([{}], dtype=object))
        with pytest.raises(NormfuseError, match="the array object; convert it first"):
            batches_of(tmp_path, MODEL)

    def test_what_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(NormfuseError, match="there is no file"):
            batches_of(tmp_path / "a.npz", MODEL)
        with pytest.raises(NormfuseError, match="holds no batches"):
            batches_of(tmp_path, MODEL)

    def test_one_array_for_two_inputs(self, tmp_path: Path) -> None:
        np.save(tmp_path / "0.npy", array(0))
        with pytest.raises(NormfuseError, match=r"holds one array, the model has 2 inputs: x, z; write a \.npz"):
            batches_of(tmp_path, PAIR)

    def test_dimensions_of_one_name_have_one_size(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "0.npz", allow_pickle=False, x=array(0), z=np.ones((5, 2), np.float32))
        with pytest.raises(NormfuseError, match=r"0\.npz: dimension 'N' is 2 in input 'x', 5 in 'z'"):
            batches_of(tmp_path, PAIR)


class TestUrls:
    @pytest.fixture
    def memory(self) -> Any:
        fsspec = pytest.importorskip("fsspec")
        system = fsspec.filesystem("memory")
        for index in range(2):
            with system.open(f"/calibration/{index}.npy", "wb") as file:
                np.save(file, array(index))
        yield system
        system.rm("/calibration", recursive=True)

    @pytest.mark.usefixtures("memory")
    def test_a_folder_and_a_file(self) -> None:
        check("memory://calibration", [0, 1])
        check("memory://calibration/1.npy", [1])

    @pytest.mark.usefixtures("memory")
    def test_what_is_not_there(self) -> None:
        with pytest.raises(NormfuseError, match="memory://nowhere holds no batches"):
            batches_of("memory://nowhere", MODEL)
        with pytest.raises(NormfuseError, match="cannot read unheard-of://a"):
            batches_of("unheard-of://a", MODEL)

    def test_without_fsspec(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(__import__("sys").modules, "fsspec.core", None)
        with pytest.raises(NormfuseError, match=r"s3://bucket/a needs fsspec; run: pip install normfuse\[data\]"):
            batches_of("s3://bucket/a", MODEL)

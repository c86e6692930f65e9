"""Batches in files: what is read, and what is said of what cannot be."""

import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from normfuse.batches import Shard, batches_of
from normfuse.errors import NormfuseError
from normfuse.model import load
from tests.parity import Array, batch_norm, build, rng

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

    def test_files_that_are_given_twice_are_told(self, folder: Path) -> None:
        assert batches_of([folder, folder / "../" / folder.name / "1.npz"], MODEL).twice == (str(folder / "1.npz"),)
        assert not batches_of(folder, MODEL).twice

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

    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("deflate.npz", "while decompressing data"),
            ("lzma.npz", "Corrupt input data"),
            ("encrypted.npz", "is encrypted"),
            ("method.npz", "compression method is not supported"),
            ("huge.npy", "it holds 24 bytes of numbers, where its header tells of 48,000,000,000,000"),
            ("huge.npz", "it holds 24 bytes of numbers, where its header tells of 48,000,000,000,000"),
            ("list.safetensors", "its header is no object"),
            ("deep.safetensors", "recursion"),
            ("short.safetensors", "it is cut short"),
        ],
    )
    def test_what_is_damaged(self, name: str, reason: str, tmp_path: Path) -> None:
        (tmp_path / name).write_bytes(damaged(name))
        with pytest.raises(NormfuseError, match=rf"{name} is no \.\w+ file of arrays: .*{reason}.*; write it again"):
            list(batches_of(tmp_path / name, MODEL).read())

    def test_what_is_too_large(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        batches = batches_of(folder, MODEL)

        def load(*_: Any, **__: Any) -> None:
            raise MemoryError

        monkeypatch.setattr(np, "load", load)
        with pytest.raises(NormfuseError, match=r"0\.npz does not fit into memory; write smaller batches"):
            next(batches.read())

    def test_what_has_changed_meanwhile(self, folder: Path) -> None:
        for name in ("1.npz", "3.npy"):
            batches = batches_of(folder, MODEL)
            (np.savez if name.endswith(".npz") else np.save)(folder / name, array(1) + 1)
            with pytest.raises(NormfuseError, match=rf"{name} is not what it was when the calibration began"):
                list(batches.read())
            np.savez(folder / "1.npz", allow_pickle=False, x=array(1))

    def test_a_fingerprint_is_of_what_files_hold_and_of_their_order(self, folder: Path) -> None:
        files = [folder / f"{index}.npz" for index in range(3)]
        whole = batches_of(files, MODEL).fingerprint
        assert len(whole) == 64
        others = [file.rename(folder / f"other-{file.name}") for file in files]
        assert batches_of(others, MODEL).fingerprint == whole
        assert batches_of(others[::-1], MODEL).fingerprint != whole
        assert batches_of(others[:2], MODEL).fingerprint != whole
        np.savez(others[1], allow_pickle=False, x=-array(1), labels=np.arange(2))
        assert batches_of(others, MODEL).fingerprint != whole
        assert not batches_of([{"x": array(0)}], MODEL).fingerprint

    def test_nothing_is_written_over_them_or_beside_them(self, folder: Path, tmp_path: Path) -> None:
        files, inside = batches_of([folder / "0.npz", folder / "3.npy"], MODEL), batches_of(folder, MODEL)
        (tmp_path / "link").symlink_to(folder / "0.npz")
        os.link(folder / "0.npz", tmp_path / "hard.npz")
        for path in (folder / "0.npz", folder / "3.npy", tmp_path / "link", tmp_path / "hard.npz"):
            with pytest.raises(NormfuseError, match="it is one of the batches; choose another output"):
                files.check_apart(str(path))
        with pytest.raises(NormfuseError, match="it would be taken for a batch; choose another folder"):
            inside.check_apart(str(folder / "part.npz"))
        inside.check_apart(str(folder / "new.onnx"))
        files.check_apart(str(folder / "part.npz"))

    def test_objects_are_never_loaded(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", x=np.array([{}], dtype=object))
        with pytest.raises(NormfuseError, match="the array object; convert it first"):
            batches_of(tmp_path, MODEL)

    def test_arrays_that_nothing_takes_may_be_of_any_kind(self, tmp_path: Path) -> None:
        labels = np.array([{}], dtype=object)
        np.savez(tmp_path / "0.npz", x=array(0), labels=labels)
        check(tmp_path, [0])
        check([{"x": array(0), "labels": [[1], [2, 3]]}], [0])

    def test_relative_paths_are_those_of_the_caller(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Workers of a cluster run elsewhere."""
        monkeypatch.chdir(folder)
        batches = batches_of("1.npz", MODEL)
        monkeypatch.chdir("/")
        np.testing.assert_array_equal(next(batches.read())["x"], array(1))

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


def damaged(name: str) -> bytes:
    """A file of (2, 3) float32 that is not what its name says."""
    header = np.lib.format.header_data_from_array_1_0(array(0)) | {"shape": (4 * 10**12, 3)}
    huge = io.BytesIO()
    np.lib.format.write_array_header_1_0(huge, header)
    content = huge.getvalue() + array(0).tobytes()
    if name == "huge.npy":
        return content
    if name.endswith(".safetensors"):
        text = {"list": b"[]", "deep": b"[" * 100_000}.get(name.partition(".")[0])
        whole = safetensors(x=array(0))
        return whole[:-1] if text is None else len(text).to_bytes(8, "little") + text
    stream, method = io.BytesIO(), {"deflate.npz": zipfile.ZIP_DEFLATED, "lzma.npz": zipfile.ZIP_LZMA}
    with zipfile.ZipFile(stream, "w", method.get(name, zipfile.ZIP_STORED)) as archive, archive.open("x.npy", "w") as x:
        if name == "huge.npz":
            x.write(content)
        else:
            np.lib.format.write_array(x, np.tile(array(0), (500, 1)) * rng("much").normal(0, 1, (1000, 1)))
    found = bytearray(stream.getvalue())
    central = found.rfind(b"PK\x01\x02")
    if name in method:
        found[60:90] = b"\xff" * 30
    elif name == "encrypted.npz":
        found[6] |= 1
        found[central + 8] |= 1
    elif name == "method.npz":
        found[8] = found[central + 10] = 97
    return bytes(found)


class TestInputs:
    """What the inputs of a model take."""

    @staticmethod
    def model(ir_version: int = 10) -> ir.Model:
        proto = build("(float[N,3] x) => (float[N,3] y) { y = Mul(x, k) }", listed=True, k=np.ones(3, np.float32))
        proto.ir_version = ir_version
        return load(proto)

    def test_an_input_with_a_default_may_be_given(self) -> None:
        given = [{"x": array(0), "k": np.full(3, 2.0)}, {"x": array(1)}]
        for source in (given, iter(given)):
            batches = batches_of(source, self.model())
            for _ in range(2):
                first, second = batches.read()
                np.testing.assert_array_equal(first["k"], np.full(3, 2, np.float32), strict=True)
                assert list(second) == ["x"]
            assert not batches.ignored

    @pytest.mark.parametrize("k", [np.ones(2, np.float32), np.ones(3, np.int64)])
    def test_it_is_checked(self, k: Array) -> None:
        with pytest.raises(NormfuseError, match=r"of input 'k'|input 'k' is float"):
            list(batches_of([{"x": array(0), "k": k}], self.model()).read())

    def test_what_no_input_takes_is_named(self) -> None:
        for ir_version, names in ((10, ("labels",)), (3, ("k", "labels"))):
            batches = batches_of([{"x": array(0), "k": np.ones(3), "labels": array(1)}], self.model(ir_version))
            assert set(next(batches.read())) == {"x", "k"} - set(names)
            assert batches.ignored == names

    def test_statistics_are_no_inputs(self) -> None:
        text = "(float[N,3] x) => (float[N,3] y) { y = BatchNormalization(x, p_scale, p_bias, p_mean, p_var) }"
        proto = build(text, listed=True, **batch_norm("p", 3))
        with pytest.raises(NormfuseError, match="an array for 'p_mean', a statistic of a BatchNormalization"):
            list(batches_of([{"x": array(0), "p_mean": np.ones(3)}], load(proto)).read())

    @pytest.mark.filterwarnings("error")
    def test_what_is_larger_than_its_dtype(self) -> None:
        model = load(build("(float16[N,3] x) => (float16[N,3] y) { y = Relu(x) }"))
        with pytest.raises(
            NormfuseError, match=r"batch 0: .* 'x' holds 1e\+05, more than float16 holds \(6\.55e\+04\)"
        ):
            list(batches_of([{"x": np.array([[1, -1e5, 2]], np.float32)}], model).read())
        (batch,) = batches_of([{"x": np.array([[1, -np.inf, np.nan]], np.float32)}], model).read()
        np.testing.assert_array_equal(batch["x"], np.array([[1, -np.inf, np.nan]], np.float16), strict=True)

    def test_what_the_runtime_cannot_be_given(self) -> None:
        model = load(build("(bfloat16[N,3] x) => (bfloat16[N,3] y) { y = Relu(x) }"))
        with pytest.raises(NormfuseError, match="input 'x' is bfloat16: ONNX Runtime takes and gives no bfloat16"):
            batches_of([array(0)], model)

    def test_strings_are_spooled(self) -> None:
        model = load(build("(string[N] x) => (string[N] y) { y = Identity(x) }"))
        batches = batches_of(iter([{"x": np.array(["a", "bcd"])}]), model)
        for _ in range(2):
            assert [batch["x"].tolist() for batch in batches.read()] == [["a", "bcd"]]


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

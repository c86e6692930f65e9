"""What has been measured is kept: records go through JSON, and what is no record is left alone with one warning."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from normfuse.tuning_cache import Measured, Record, TuningCache, cache_folder, machine

FORMS = (
    Measured("norm-by-layer-norm", 898e-6, 0.8, (0.79, 0.82)),
    Measured("as it was", 1022e-6, 1.0, (1.0, 1.0)),
    Measured("group-norm", problem="ONNX Runtime cannot load it"),
)
RECORD = Record("GroupNorm", "norm-by-layer-norm", FORMS, "a machine, 2 cores", "1.32.0", "2026-01-02T03:04:05+00:00")


@pytest.fixture
def cache(tmp_path: Path) -> TuningCache:
    """An empty cache, whose folder does not exist yet."""
    return TuningCache(tmp_path / "deep" / "tuning")


class TestRecords:
    def test_one_comes_back_under_its_key_only(self, cache: TuningCache) -> None:
        cache.put({"threads": 1}, RECORD)
        assert cache.get({"threads": 1}) == RECORD
        assert cache.get({"threads": 2}) is None
        assert cache.warning == ""

    def test_the_order_of_a_key_does_not_matter(self, cache: TuningCache) -> None:
        cache.put({"threads": 1, "opset": 17}, RECORD)
        assert cache.get({"opset": 17, "threads": 1}) == RECORD

    def test_a_new_one_replaces_the_old(self, cache: TuningCache) -> None:
        cache.put({}, RECORD)
        cache.put({}, replace(RECORD, chosen="as it was"))
        assert [record.chosen for record in cache.records()] == ["as it was"]

    def test_they_are_listed_by_description(self, cache: TuningCache) -> None:
        for index, name in enumerate(("b", "a")):
            cache.put({"index": index}, replace(RECORD, description=name))
        assert [record.description for record in cache.records()] == ["a", "b"]

    def test_clearing_removes_them_and_nothing_else(self, cache: TuningCache) -> None:
        cache.put({"threads": 1}, RECORD)
        cache.put({"threads": 2}, RECORD)
        foreign = cache.folder / "notes.txt"
        foreign.write_text("mine")
        assert cache.clear() == 2
        assert cache.records() == []
        assert [path.name for path in cache.folder.iterdir()] == ["notes.txt"]

    def test_nothing_is_there_at_first(self, cache: TuningCache) -> None:
        assert cache.records() == []
        assert cache.clear() == 0
        assert cache.warning == ""


class TestDamage:
    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"\xff\xfe\x00",
            b"[1, 2]",
            b"[" * 100_000,
            json.dumps({**RECORD.to_dict(), "schema_version": 2}).encode(),
            json.dumps({**RECORD.to_dict(), "forms": [{"form": "as it was"}]}).encode(),
            json.dumps({**RECORD.to_dict(), "chosen": "another"}).encode(),
        ],
        ids=["empty", "binary", "list", "deep", "other version", "half a form", "unknown choice"],
    )
    def test_a_file_that_is_no_record_is_ignored_with_a_warning(self, cache: TuningCache, content: bytes) -> None:
        cache.put({}, RECORD)
        (path,) = cache.folder.iterdir()
        path.write_bytes(content)
        assert cache.get({}) is None
        assert cache.records() == []
        assert cache.warning.startswith(f"{path} is ignored")
        assert "normfuse tune --clear" in cache.warning
        assert "\n" not in cache.warning
        assert cache.clear() == 1

    def test_many_are_one_line(self, cache: TuningCache) -> None:
        for index in range(3):
            cache.put({"index": index}, RECORD)
        for path in cache.folder.iterdir():
            path.write_text("damaged")
        assert cache.records() == []
        assert cache.warning.endswith("(and 2 more)")

    def test_a_foreign_file_is_named(self, cache: TuningCache) -> None:
        cache.put({}, RECORD)
        (cache.folder / "notes.txt").write_text("mine")
        assert cache.records() == [RECORD]
        assert "notes.txt was not written by normfuse" in cache.warning

    def test_a_folder_that_cannot_be_made_costs_a_warning(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("a file where a folder should be")
        cache = TuningCache(tmp_path / "file" / "tuning")
        cache.put({}, RECORD)
        assert cache.get({}) is None
        assert "what was measured is not kept" in cache.warning

    def test_nothing_temporary_is_left(self, cache: TuningCache) -> None:
        cache.put({}, RECORD)
        assert [path.suffix for path in cache.folder.iterdir()] == [".json"]


def test_writers_at_once_leave_whole_records(tmp_path: Path) -> None:
    def write(index: int) -> str:
        cache = TuningCache(tmp_path)
        for turn in range(20):
            cache.put({"shared": True}, replace(RECORD, date=f"{index} {turn}"))
            assert cache.get({"shared": True}) is not None
        return cache.warning

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(write, range(3))) == [""] * 3
    (record,) = TuningCache(tmp_path).records()
    assert record.date.endswith(" 19")


class TestFolder:
    def test_follows_the_environment(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.delenv("NORMFUSE_CACHE", raising=False)
        assert cache_folder() == tmp_path / "normfuse"
        assert TuningCache().folder == tmp_path / "normfuse" / "tuning"
        monkeypatch.setenv("NORMFUSE_CACHE", str(tmp_path / "mine"))
        assert cache_folder() == tmp_path / "mine"

    @pytest.mark.parametrize(
        ("platform", "place"),
        [
            ("linux", ".cache/normfuse"),
            ("darwin", "Library/Caches/normfuse"),
            ("win32", "AppData/Local/normfuse/Cache"),
        ],
    )
    def test_is_below_home_without_it(
        self, platform: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("NORMFUSE_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(sys, "platform", platform)
        monkeypatch.setattr(Path, "home", lambda: tmp_path)
        assert cache_folder() == tmp_path / place


def test_a_machine_is_its_processor_and_its_cores() -> None:
    processor, _, cores = machine().rpartition(", ")
    assert processor
    assert cores.endswith(" cores")
    assert int(cores.split()[0]) >= 1

"""What has been measured on this machine: one small JSON file for each description, in the user's cache folder.

A file is written beside its place and renamed, so that processes which tune at the same time cannot harm one another.
What is no such file is left alone.
"""

import hashlib
import json
import os
import platform
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

SCHEMA_VERSION = 1

_NAME = re.compile(r"[0-9a-f]{32}\.json")


def cache_folder() -> Path:
    """The folder for what can be made again: `$NORMFUSE_CACHE`, or `normfuse` in the platform's cache folder."""
    if own := os.environ.get("NORMFUSE_CACHE"):
        return Path(own).expanduser()
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        return Path(xdg) / "normfuse"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "normfuse"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "normfuse" / "Cache"
    return Path.home() / ".cache" / "normfuse"


def machine() -> str:
    """The model of the processor of this machine, and how many of its cores this process may use."""
    from normfuse.target import available_threads

    return f"{_processor()}, {available_threads()} cores"


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return " ".join(value.split())
    return platform.processor() or platform.machine() or "unknown processor"


@dataclass(frozen=True, slots=True)
class Measured:
    """How one form of a normalization did.

    Attributes:
        form: the row of LOWERINGS that writes it, or `as it was`.
        seconds: per run, the median; None where it was not timed.
        ratio: its time divided by that of the form the table chooses, within a round: the median; None likewise.
        ratio_quartiles: first and third quartile of that ratio.
        problem: why it cannot be chosen, or empty.
    """

    form: str
    seconds: float | None = None
    ratio: float | None = None
    ratio_quartiles: tuple[float, float] | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of one normalization on one machine.

    Attributes:
        description: what was measured, for people.
        chosen: the form to use.
        forms: how each form did, fastest first; those that were not timed are the last.
        machine: where it was measured.
        onnxruntime: the version of ONNX Runtime.
        date: when, in UTC as ISO 8601 has it.
    """

    description: str
    chosen: str
    forms: tuple[Measured, ...]
    machine: str
    onnxruntime: str
    date: str

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON-ready values; times in seconds."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self)}

    @classmethod
    def from_dict(cls, content: Any) -> Self:
        """Reads what `to_dict` made.

        Raises:
            ValueError: it is something else.
        """
        match content:
            case {
                "schema_version": int(version),
                "description": str(description),
                "chosen": str(chosen),
                "forms": list(forms),
                "machine": str(where),
                "onnxruntime": str(runtime),
                "date": str(date),
            } if version == SCHEMA_VERSION:
                measured = tuple(_measured(form) for form in forms)
                if not any(form.form == chosen and form.seconds is not None for form in measured):
                    raise ValueError("the form it chose is not among those it timed")
                return cls(description, chosen, measured, where, runtime, date)
            case _:
                raise ValueError("it holds no measurement of this version")


def _measured(content: Any) -> Measured:
    match content:
        case {
            "form": str(form),
            "seconds": float() | None as seconds,
            "ratio": float() | None as ratio,
            "ratio_quartiles": [float(), float()] | None as quartiles,
            "problem": str(problem),
        }:
            return Measured(form, seconds, ratio, None if quartiles is None else (quartiles[0], quartiles[1]), problem)
        case _:
            raise ValueError("one of its measurements is incomplete")


class TuningCache:
    """The records in a folder.

    Attributes:
        folder: where they lie; `tuning` in the cache folder by default.
        warning: the first thing that went wrong, as one line that says how often something did, or empty.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = cache_folder() / "tuning" if folder is None else folder
        self._problems: list[str] = []

    @property
    def warning(self) -> str:
        """What went wrong, in one line."""
        if not self._problems:
            return ""
        more = f" (and {len(self._problems) - 1} more)" if len(self._problems) > 1 else ""
        return f"{self._problems[0]}{more}"

    def get(self, key: Mapping[str, Any]) -> Record | None:
        """The record under a key; None where there is none that can be read."""
        path = self.folder / _file_name(key)
        return self._read(path) if path.is_file() else None

    def put(self, key: Mapping[str, Any], record: Record) -> None:
        """Keeps a record under a key; where the folder cannot be written, nothing is kept."""
        from normfuse.errors import NormfuseError
        from normfuse.storage import write

        content = json.dumps(record.to_dict(), indent=2, ensure_ascii=False).encode()
        path = self.folder / _file_name(key)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write([(str(path), lambda file: file.write(content))])
        except (OSError, NormfuseError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
            self._warn(f"what was measured is not kept: {self.folder} cannot be written: {reason}")

    def records(self) -> list[Record]:
        """All records, by description and date."""
        found = [record for path in self._files() if (record := self._read(path)) is not None]
        return sorted(found, key=lambda record: (record.description, record.machine, record.date))

    def clear(self) -> int:
        """Removes all records, those that cannot be read among them, and tells how many; other files stay."""
        count = 0
        for path in self._files():
            with suppress(FileNotFoundError):
                path.unlink()
                count += 1
        return count

    def _files(self) -> Iterator[Path]:
        if self.folder.is_dir():
            for path in sorted(self.folder.iterdir()):
                if _NAME.fullmatch(path.name) and path.is_file():
                    yield path
                elif not path.name.startswith("."):
                    self._warn(f"{path} was not written by normfuse and is left alone")

    def _read(self, path: Path) -> Record | None:
        try:
            return Record.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None  # cleared by another process
        except (OSError, ValueError, RecursionError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            self._warn(f"{path} is ignored, it is no measurement ({reason}); `normfuse tune --clear` removes it")
            return None

    def _warn(self, problem: str) -> None:
        if problem not in self._problems:
            self._problems.append(problem)


def _file_name(key: Mapping[str, Any]) -> str:
    canonical = json.dumps(key, sort_keys=True, ensure_ascii=False)
    return f"{hashlib.sha256(canonical.encode()).hexdigest()[:32]}.json"

"""What can be gone through again for each pass, whatever batches come as: `paths_of` and `opened`.

A `CalibrationDataReader` that can be rewound is rewound; what comes only once goes through a `Spool`.
"""

import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from normfuse.errors import NormfuseError

_END = object()
Kept = TypeVar("Kept")


def paths_of(source: Any) -> list[str] | None:
    """The path or paths that a source is; None where it is something else."""
    if isinstance(source, str | os.PathLike):
        return [os.fspath(source)]
    if isinstance(source, list | tuple) and source and all(isinstance(one, str | os.PathLike) for one in source):
        return [os.fspath(one) for one in source]
    return None


def opened(source: Any) -> tuple[Iterable[Any], bool]:
    """The batches of what holds no paths, and whether they come only once; a mapping or an array is the only one.

    Raises:
        NormfuseError: it holds none.
    """
    if isinstance(source, Mapping) or hasattr(source, "__array__"):
        return [source], False
    if callable(getattr(source, "get_next", None)):
        if callable(getattr(source, "rewind", None)):
            return Rewinding(source), False
        return iter(source.get_next, None), True
    try:
        iterator = iter(source)
    except TypeError:
        raise NormfuseError(
            f"a {type(source).__name__} holds no batches; give an iterable of mappings from input names to arrays, or "
            "paths of .npz files"
        ) from None
    return source, iterator is source


class Rewinding:
    """The batches of a `CalibrationDataReader` that can be rewound."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader

    def __iter__(self) -> Iterator[Any]:
        self._reader.rewind()  # the first time too: who has read from it before left it where it was
        return iter(self._reader.get_next, None)


class Spool(Generic[Kept]):
    """Batches that come only once: they are written to a temporary folder, and read from there the next time.

    TMPDIR says where it is made. It is removed with this object.
    """

    def __init__(
        self,
        source: Iterator[Any],
        suffix: str,
        prepare: Callable[[Any, int], Kept],
        write: Callable[[Kept, str], None],
        load: Callable[[str], Kept],
    ) -> None:
        """Takes the batches, how files end, what is kept of a batch, and how that is written and read."""
        self._source, self._suffix = source, suffix
        self._prepare, self._write, self._load = prepare, write, load
        self._folder = tempfile.mkdtemp(prefix="normfuse-")
        weakref.finalize(self, shutil.rmtree, self._folder, True)
        self._spooled = 0

    def __iter__(self) -> Iterator[Kept]:
        index = 0
        while True:
            path = os.path.join(self._folder, f"{index}{self._suffix}")
            if index < self._spooled:
                yield self._load(path)
            else:
                given = next(self._source, _END)
                if given is _END:
                    return
                kept = self._prepare(given, index)
                self._write(kept, path)
                self._spooled = index + 1
                yield kept
            index += 1

"""Batches of inputs to calibrate with, whatever they come as: `Batches`, which can be read again for each pass.

| given | a batch is |
|---|---|
| a `.npz` file | its arrays, under the names of the inputs |
| a `.npy` file | the array; for models with one input |
| a `.safetensors` file | its tensors, under the names of the inputs |
| a folder | as many batches as it has such files, in the order of their names |
| a URL such as `s3://bucket/folder` | the same, where fsspec is installed |
| several of these | those of the first, then those of the second, … |
| a `CalibrationDataReader` of ONNX Runtime | what its `get_next` gives, until that is None |
| any other iterable | a mapping of arrays by input name; for models with one input the array alone will do, or a list \
that begins with it, as a torch DataLoader gives |

Everything is checked against the inputs of the model: files by their headers before any work begins, the rest as it
comes.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from normfuse.batch_inputs import Batch, Signature, Taker
from normfuse.replay import Spool, opened, paths_of
from normfuse.runtime import Array


@dataclass(frozen=True, slots=True)
class Shard:
    """Every `count`-th batch, from batch `index` on; the first has index 0."""

    index: int = 0
    count: int = 1


WHOLE = Shard()
"""All batches."""


class Batches:
    """Batches that can be read again.

    Attributes:
        count: how many there are, where that is known.
        is_fixed: whether each reading gives the same, in another process too, as far as anybody can promise that.
        fingerprint: what tells them from others without reading them all; "" where nothing does.
        twice: files that are given more than once.
    """

    count: int | None = None
    is_fixed = False
    fingerprint = ""
    twice: tuple[str, ...] = ()

    def __init__(self, signature: Taker) -> None:
        self._signature = signature

    @property
    def ignored(self) -> tuple[str, ...]:
        """Names of arrays that no input takes, as far as batches have been seen."""
        return tuple(self._signature.ignored)

    def title(self, index: int) -> str:
        """What errors call a batch."""
        return f"batch {index}"

    def check_apart(self, path: str) -> None:
        """Checks that a file can be written without harm to the batches.

        Raises:
            NormfuseError: it is one of them, or would be taken for one.
        """

    def read(self, shard: Shard = WHOLE) -> Iterator[Batch]:
        """The batches of a shard in their order, checked.

        Raises:
            NormfuseError: one cannot be read, or the model does not take it.
        """
        raise NotImplementedError

    def share(self, shard: Shard) -> int | None:
        """How many batches a shard has, where that is known."""
        return None if self.count is None else len(range(shard.index, self.count, shard.count))


class Iterated(Batches):
    """Batches of an iterable that begins anew each time."""

    def __init__(self, source: Iterable[Any], signature: Signature) -> None:
        super().__init__(signature)
        self._source, self.is_fixed = source, type(source) in (list, tuple)  # others may shuffle
        try:
            self.count = len(source)  # type: ignore[arg-type]  # tried
        except (TypeError, NotImplementedError):
            self.count = None

    def read(self, shard: Shard = WHOLE) -> Iterator[Batch]:
        """As for `Batches`."""
        for index, batch in enumerate(self._source):
            if index % shard.count == shard.index:
                yield self._signature.fed(batch, self.title(index))


class Spooled(Batches):
    """Batches that come only once, kept as they were checked."""

    def __init__(self, source: Iterator[Any], signature: Signature) -> None:
        super().__init__(signature)
        # nothing of this object, so that the folder goes with it at once
        keep, names = signature.fed, [value.name for value in signature.all]
        self._spool = Spool(
            source,
            ".npz",
            lambda given, index: keep(given, f"batch {index}"),
            lambda batch, path: _write(names, batch, path),
            lambda path: _load(names, path),
        )

    def read(self, shard: Shard = WHOLE) -> Iterator[Batch]:
        """As for `Batches`."""
        index = -1
        for index, batch in enumerate(self._spool):
            if index % shard.count == shard.index:
                yield batch
        self.count = index + 1


def _write(names: Sequence[str], batch: Batch, path: str) -> None:
    # by place, as not every name of an input is one of a file
    named = {f"array_{place}": _spooled(batch[name]) for place, name in enumerate(names) if name in batch}
    np.savez(path, allow_pickle=False, **named)


def _load(names: Sequence[str], path: str) -> Batch:
    with np.load(path, allow_pickle=False) as archive:
        return {
            name: _unspooled(archive[f"array_{place}"])
            for place, name in enumerate(names)
            if f"array_{place}" in archive
        }


def _spooled(array: Array) -> Array:
    """An array as it is written: strings as such, not as objects, which would be pickled."""
    return array.astype("U") if array.dtype.kind == "O" else array


def _unspooled(array: Array) -> Array:
    return array.astype(object) if array.dtype.kind == "U" else array


def batches_of(source: Any, model: ir.Model) -> Batches:
    """Batches for a model.

    Raises:
        NormfuseError: they cannot be read, or the model does not take them.
    """
    signature = Signature(model)
    if (paths := paths_of(source)) is not None:
        from normfuse.batch_files import Files

        return Files(paths, signature)
    iterable, comes_once = opened(source)
    return Spooled(iter(iterable), signature) if comes_once else Iterated(iterable, signature)

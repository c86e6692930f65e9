"""Batches in files, local or wherever fsspec reaches: `Files`. What the files hold is checked by their headers.

A local file is known by a mark: the checksums in an archive, else the length, the beginning and the end. Where it has
another mark when it is read, it has been changed meanwhile, or another machine has something else under that name.
"""

import hashlib
import json
import math
import os
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from normfuse.batch_inputs import Batch, Header, Taker
from normfuse.batches import WHOLE, Batches, Shard
from normfuse.errors import NormfuseError
from normfuse.runtime import Array

SUFFIXES = (".npz", ".npy", ".safetensors")
"""Files that hold a batch."""

_SAFETENSORS = {
    "BOOL": "bool",
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "U8": "uint8",
    "U16": "uint16",
    "U32": "uint32",
    "U64": "uint64",
}
"""The dtypes of safetensors that numpy has."""

_LONGEST_HEADER = 100 << 20
"""Bytes of the longest header that safetensors allows."""


@dataclass(frozen=True, slots=True)
class File:
    """A file with a batch.

    Attributes:
        name: what errors call it.
        open: opens it for reading.
        is_local: whether its header costs little to read.
    """

    name: str
    open: Callable[[], BinaryIO]
    is_local: bool = True


class Files(Batches):
    """Batches in files and folders."""

    is_fixed = True

    def __init__(self, paths: Sequence[str], signature: Taker) -> None:
        """Finds the files, and checks the headers of the local ones; of the others that of the first.

        Raises:
            NormfuseError: one cannot be read, or the model does not take it.
        """
        super().__init__(signature)
        self._paths = tuple(map(_local_path, paths))
        self._files = [file for path in paths for file in _found(path)]
        self.count = len(self._files)
        self._marks: list[str] = []
        remote = 0
        for file in self._files:
            remote += not file.is_local
            self._marks.append("")
            if file.is_local or remote == 1:
                with _reading(file) as stream:
                    headers = _headers(stream, file.name)
                    if file.is_local:
                        self._marks[-1] = _mark(stream, file.name)
                signature.check(_named(headers, signature, file.name), file.name)
        counts = Counter(os.path.realpath(file.name) if file.is_local else file.name for file in self._files)
        self.twice = tuple(name for name, count in counts.items() if count > 1)
        if not remote:
            self.fingerprint = hashlib.sha256(" ".join(self._marks).encode()).hexdigest()

    def read(self, shard: Shard = WHOLE) -> Iterator[Batch]:
        """As for `Batches`."""
        for index in range(shard.index, len(self._files), shard.count):
            file = self._files[index]
            with _reading(file) as stream:
                if self._marks[index] and _mark(stream, file.name) != self._marks[index]:
                    raise NormfuseError(
                        f"{file.name} is not what it was when the calibration began: it has been changed, or this "
                        "machine has another file there; begin anew"
                    )
                arrays = _arrays(stream, file.name, self._signature.takes)
            yield self._signature.fed(_named(arrays, self._signature, file.name), file.name)

    def title(self, index: int) -> str:
        """As for `Batches`."""
        return self._files[index].name

    def check_apart(self, path: str) -> None:
        """As for `Batches`."""
        end = os.path.realpath(path)
        for file in self._files:
            name = _local_path(file.name)
            if os.path.realpath(name) == end or (
                os.path.exists(path) and os.path.exists(name) and os.path.samefile(path, name)
            ):
                raise NormfuseError(f"cannot write {path}: it is one of the batches; choose another output")
        for folder in self._paths:
            if path.endswith(SUFFIXES) and os.path.isdir(folder) and os.path.dirname(end) == os.path.realpath(folder):
                raise NormfuseError(
                    f"cannot write {path}: in the folder {folder} it would be taken for a batch; choose another folder"
                )


def _local_path(path: str) -> str:
    return path.partition("://")[2] if path.startswith(("file://", "local://")) else path


def _mark(stream: BinaryIO, name: str) -> str:
    """What tells a file from others without reading all of it."""
    if name.endswith(".npz"):
        with zipfile.ZipFile(stream) as archive:
            known = repr([(one.filename, one.file_size, one.CRC) for one in archive.infolist()]).encode()
    else:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(0)
        known = size.to_bytes(8, "little") + stream.read(_ENDS)
        stream.seek(max(0, size - _ENDS))
        known += stream.read()
    stream.seek(0)
    return hashlib.sha256(known).hexdigest()


_ENDS = 1 << 16
"""Bytes at the beginning and at the end of a file by which it is known."""


def _found(path: str) -> list[File]:
    """The files at a path or a URL.

    Raises:
        NormfuseError: there are none.
    """
    if "://" in path:
        return _found_elsewhere(path)
    if os.path.isdir(path):
        try:
            names = sorted(name for name in os.listdir(path) if name.endswith(SUFFIXES) and not name.startswith("."))
        except OSError as error:
            raise NormfuseError(f"cannot read {path}: {error.strerror}; check its permissions") from error
        if not names:
            raise NormfuseError(f"the folder {path} holds no batches; put {' or '.join(SUFFIXES)} files into it")
        return [_local(os.path.join(path, name)) for name in names]
    if not os.path.exists(path):
        raise NormfuseError(f"there is no file or folder {path}; check the path")
    if not path.endswith(SUFFIXES):
        raise NormfuseError(f"{path} holds no batch; give {' or '.join(SUFFIXES)} files, or a folder of them")
    return [_local(path)]


def _local(path: str) -> File:
    place = os.path.abspath(path)  # the workers of a cluster run in folders of their own
    return File(path, lambda: open(place, "rb"))


def _found_elsewhere(url: str) -> list[File]:
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        raise NormfuseError(f"{url} needs fsspec; run: pip install normfuse[data], or copy the files here") from None
    try:
        system, path = url_to_fs(url)
        if system.isdir(path):
            names = sorted(name for name in system.ls(path, detail=False) if name.endswith(SUFFIXES))
        else:
            names = [path] if system.exists(path) else []
    except Exception as error:  # each file system has its own
        what = " ".join(str(error).split()) or type(error).__name__
        raise NormfuseError(
            f"cannot read {url}: {what}; check the URL, and that its file system is installed"
        ) from error
    if not names or not names[0].endswith(SUFFIXES):
        raise NormfuseError(f"{url} holds no batches; give {' or '.join(SUFFIXES)} files, or a folder of them")

    def opener(name: str) -> Callable[[], BinaryIO]:
        return lambda: system.open(name, "rb")

    return [File(f"{url.partition('://')[0]}://{name.lstrip('/')}", opener(name), False) for name in names]


def _named(content: Any, signature: Taker, name: str) -> dict[str, Any]:
    """What a file holds by input name: an array without a name is for the only input.

    Raises:
        NormfuseError: there are several.
    """
    if isinstance(content, dict):
        return content
    if len(signature.names) != 1:
        wanted = f"the model has {len(signature.names)} inputs: {', '.join(signature.names)}"
        raise NormfuseError(f"{name} holds one array, {wanted}; write a .npz with numpy.savez(path, **inputs)")
    return {signature.names[0]: content}


@contextmanager
def _reading(file: File) -> Iterator[BinaryIO]:
    """Opens a file, and says what is wrong with it.

    Raises:
        NormfuseError: it cannot be read, or is not what its name says.
    """
    try:
        with file.open() as stream:
            yield stream
    except NormfuseError:
        raise
    except OSError as error:
        raise NormfuseError(f"cannot read {file.name}: {error.strerror or error}; check it") from error
    except MemoryError as error:
        raise NormfuseError(f"{file.name} does not fit into memory; write smaller batches") from error
    except Exception as error:  # each decompressor and parser has its own for bytes that are damaged
        kind = file.name.rpartition(".")[2]
        what = " ".join(str(error).split())[:200] or type(error).__name__
        raise NormfuseError(f"{file.name} is no .{kind} file of arrays: {what}; write it again") from error


def _headers(stream: BinaryIO, name: str) -> dict[str, Header] | Header:
    """The dtypes and shapes of the arrays in a file."""
    length = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    if name.endswith(".npy"):
        return _npy_header(stream, length)
    if name.endswith(".npz"):
        with zipfile.ZipFile(stream) as archive:
            headers = {}
            for member in archive.namelist():
                with archive.open(member) as inner:
                    left = archive.getinfo(member).file_size
                    headers[member.removesuffix(".npy")] = _npy_header(inner, left)
            return headers
    size = int.from_bytes(stream.read(8), "little")
    if size > _LONGEST_HEADER:
        raise ValueError(f"its header would have {size:,} bytes")
    fields = json.loads(stream.read(size))
    if not isinstance(fields, dict):
        raise ValueError("its header is no object")
    fields.pop("__metadata__", None)
    for field in fields.values():
        if max(field["data_offsets"]) > length - size - 8:
            raise ValueError("it is cut short")
    return {key: Header(_numpy_dtype(field["dtype"]), tuple(field["shape"])) for key, field in fields.items()}


def _numpy_dtype(name: str) -> np.dtype[Any]:
    if name not in _SAFETENSORS:
        raise ValueError(f"numpy has no {name}")
    return np.dtype(_SAFETENSORS[name])


def _npy_header(stream: Any, length: int) -> Header:
    """The dtype and shape of an array in a stream of so many bytes."""
    version = np.lib.format.read_magic(stream)
    match version:
        case (1, 0):
            shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
        case (2, 0):
            shape, _, dtype = np.lib.format.read_array_header_2_0(stream)
        case _:
            raise ValueError(f"format {'.'.join(map(str, version))} is not one for plain arrays")
    if not dtype.hasobject:
        wanted, held = math.prod(shape) * dtype.itemsize, length - stream.tell()
        if wanted > held:
            raise ValueError(f"it holds {held:,} bytes of numbers, where its header tells of {wanted:,}")
    return Header(dtype, shape)


def _arrays(stream: BinaryIO, name: str, takes: Callable[[str], bool]) -> dict[str, Array] | Array:
    """The arrays in a file; of an archive with empty ones for those that are not taken, which may be of any kind."""
    if not name.endswith(".safetensors"):
        found = np.load(stream, allow_pickle=False)
        return found if isinstance(found, np.ndarray) else {key: found[key] if takes(key) else _EMPTY for key in found}
    try:
        from safetensors.numpy import load
    except ImportError:
        raise NormfuseError(f"{name} needs safetensors; run: pip install normfuse[data]") from None
    try:
        arrays: dict[str, Array] = load(stream.read())
    except Exception as error:  # of a type of its own
        raise ValueError(str(error)) from error
    return arrays


_EMPTY: Array = np.empty(0)

"""Models as files: reading one with a word about what it is when it is no model, and writing it whole or not at all."""

import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import BinaryIO

import onnx
from google.protobuf.message import DecodeError, EncodeError  # type: ignore[import-untyped]  # it ships no types

from normfuse.errors import ModelError, NormfuseError
from normfuse.leftovers import TEMPORARY, hold, new_temporary, sweep, unwritable

LARGEST = 2**31 - 1
"""Bytes of the largest message that protobuf can write."""

SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (0, b"version https://git-lfs", "a git-lfs pointer, not the file itself; run `git lfs pull`"),
    (
        0,
        b"PK\x03\x04",
        "a zip archive, such as torch.save writes; export the model with torch.onnx.export, or unpack it",
    ),
    (0, b"\x1f\x8b", "compressed by gzip; unpack it"),
    (0, b"\x89HDF", "an HDF5 file, such as Keras writes; convert it with tf2onnx"),
    (4, b"TFL3", "a TensorFlow Lite model; convert it with tf2onnx"),
    (4, b"ORTM", "in ONNX Runtime's own format; optimize the .onnx file it was made from"),
    (8, b'{"', "a safetensors file, which holds weights and no graph; export the model to ONNX"),
)
"""What other files begin with: offset, bytes, and what to say."""


def read(path: str) -> bytes:
    """Reads a file.

    Raises:
        NormfuseError: it does not exist, is no regular file, or may not be read.
    """
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise NormfuseError(f"{path} is a folder; name the .onnx file in it")
        if not stat.S_ISREG(status.st_mode):
            raise NormfuseError(f"{path} is no regular file; save the model to a file first")
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        raise NormfuseError(f"there is no file {path}; check the path") from None
    except ValueError as error:
        raise NormfuseError(f"{path!r} is no path: {error}; check it") from None
    except OSError as error:
        raise NormfuseError(f"cannot read {path}: {error.strerror}; check the path and its permissions") from error


def parse(data: bytes) -> onnx.ModelProto:
    """Parses a model.

    Raises:
        ModelError: it is none; the message says what it is instead, not where it came from.
    """
    try:
        model: onnx.ModelProto = onnx.ModelProto.FromString(data)
    except DecodeError:
        raise ModelError(f"this is {_kind(data)}") from None
    if not model.HasField("graph"):
        if not data or _text(data):
            raise ModelError(f"this is {_kind(data)}")
        raise ModelError("the model has no graph; the file is cut short or no ONNX model, fetch or export it again")
    return model


def to_bytes(proto: onnx.ModelProto) -> bytes | None:
    """A model as bytes, or None where it is larger than protobuf allows."""
    try:
        data: bytes = proto.SerializeToString()
    except (EncodeError, ValueError):
        return None
    return data if len(data) <= LARGEST else None


def _text(data: bytes) -> bool:
    head = data[:512]
    return not any(byte < 9 or 13 < byte < 32 for byte in head) and b"\xff" not in head


def _kind(data: bytes) -> str:
    """What bytes are that are no model, and what to do."""
    if not data:
        return "empty (0 bytes); fetch or export the model again"
    for offset, magic, what in SIGNATURES:
        if data.startswith(magic, offset):
            return what
    if data[:1] == b"\x80" and data[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "a Python pickle, such as old torch.save wrote; export the model with torch.onnx.export"
    if data[:512].lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "an HTML page, not a model; the download went to a web page, fetch the file itself"
    if _text(data):
        return "text, not a model; name the binary .onnx file"
    return f"no ONNX model, or a part of one ({len(data):,} bytes); fetch or export it again"


def destination(path: str) -> str:
    """Where a file is written that is to be at `path`: the end of the links there, or `path` itself."""
    return os.path.realpath(path) if os.path.islink(path) else path


def validate_place(path: str) -> None:
    """Checks that a file can be written at `path`, or where a link there leads.

    Raises:
        NormfuseError: the folder is missing or not writable, something else stands there, or it is write-protected.
    """
    if not path or "\0" in path:
        raise NormfuseError(f"{path!r} is no path to write to; name a .onnx file")
    end = destination(path)
    if os.path.islink(end):
        raise NormfuseError(f"cannot write {path}: it is a link in a circle; choose another output")
    folder = os.path.dirname(end) or os.curdir
    if not os.path.exists(folder):
        raise NormfuseError(f"cannot write {path}: there is no folder {folder}; make it first")
    if not os.path.isdir(folder):
        raise NormfuseError(f"cannot write {path}: {folder} is no folder; choose another output")
    if os.path.isdir(path):
        raise NormfuseError(f"cannot write {path}: it is a folder; name a file in it")
    if os.path.exists(path) and not os.path.isfile(path):
        raise NormfuseError(f"cannot write {path}: it is no regular file; choose another output")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise NormfuseError(f"cannot write {path}: the folder {folder} is read-only; choose another output")
    if os.path.exists(end) and not os.access(end, os.W_OK):
        raise NormfuseError(f"cannot write {path}: the file is write-protected; choose another output")


def write(
    files: Sequence[tuple[str, Callable[[BinaryIO], object]]], replaced: Callable[[], Iterable[str]] = tuple
) -> None:
    """Writes files so that either all of them are there and complete, or none.

    Each is written beside its place under a temporary name and synced, then they are renamed in order, while no other
    process does so in that folder. Only the last may replace a file that exists, the names of the others are reserved;
    while it is not in place, whatever goes wrong removes all that was written. What a killed process has left under
    temporary names in that folder is removed first. Where the last is a link, the file that it leads to is written.

    All get the permissions and, as far as this process may give them, the owners of the file that the last replaces;
    where there is none, umask tells.

    Args:
        files: paths, each with a function that writes its content.
        replaced: names the files that belong to the one which the last replaces, just before it does; they are removed.

    Raises:
        NormfuseError: the system could not write, such as on a full disk.
    """
    files = [*files[:-1], (destination(files[-1][0]), files[-1][1])]
    folder = os.path.dirname(files[-1][0])
    sweep(folder, TEMPORARY)
    temporary: list[str] = []
    try:
        status = os.stat(files[-1][0]) if os.path.exists(files[-1][0]) else None
        with ExitStack() as held:
            for path, fill in files:
                name, descriptor = new_temporary(os.path.dirname(path))
                temporary.append(name)
                if status is not None:
                    _take_after(descriptor, status)
                with open(descriptor, "wb") as file:
                    if os.name != "nt":  # where an open file cannot be renamed
                        held.callback(os.close, os.dup(file.fileno()))
                    fill(file)
                    file.flush()
                    os.fsync(file.fileno())
            with _alone_in(folder):
                stale = set(replaced()) - {path for path, _ in files}
                for name, (path, _) in zip(temporary, files, strict=True):
                    os.replace(name, path)
                for name in stale:
                    with suppress(OSError):
                        os.unlink(name)
    except BaseException as error:
        unfinished = len(temporary) < len(files) or os.path.exists(temporary[-1]) or isinstance(error, OSError)
        for name in temporary + [path for path, _ in files[:-1]] * unfinished:
            with suppress(OSError):
                os.unlink(name)
        if isinstance(error, OSError):
            raise unwritable(files[-1][0], error) from error
        raise


def _take_after(descriptor: int, status: os.stat_result) -> None:
    """Gives a file the permissions of another one, before anything is in it."""
    if os.name == "nt":  # where permissions go with the folder
        return
    with suppress(OSError):
        os.fchown(descriptor, status.st_uid, status.st_gid)
    os.fchmod(descriptor, stat.S_IMODE(status.st_mode) & 0o777)


@contextmanager
def _alone_in(folder: str) -> Iterator[None]:
    """Keeps other processes from renaming files in a folder meanwhile, as far as the system and they care."""
    if os.name == "nt":  # where folders cannot be opened
        yield
        return
    descriptor = os.open(folder or os.curdir, os.O_RDONLY)
    try:
        hold(descriptor)
        yield
        with suppress(OSError):
            os.fsync(descriptor)  # the names, too, outlive a power failure
    finally:
        os.close(descriptor)

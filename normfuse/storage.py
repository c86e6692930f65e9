"""Models as files: reading one with a word about what it is when it is no model, and writing it whole or not at all."""

import os
import re
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import BinaryIO

import onnx
from google.protobuf.message import DecodeError, EncodeError  # type: ignore[import-untyped]  # it ships no types

from normfuse.errors import ModelError, NormfuseError

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


def validate_place(path: str) -> None:
    """Checks that a file can be written at `path`.

    Raises:
        NormfuseError: the folder is missing or not writable, or something else stands there.
    """
    if not path or "\0" in path:
        raise NormfuseError(f"{path!r} is no path to write to; name a .onnx file")
    folder = os.path.dirname(path) or os.curdir
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


TEMPORARY = re.compile(r"\.normfuse-[0-9a-f]{16}\.tmp")
"""Names of files that are being written."""


def reserve(path: str) -> Callable[[], None] | None:
    """Takes a name for a file that is yet to be written.

    Returns:
        what gives it back, if no file has come to stand there; until then nobody takes it for a leftover. None where
        the name is taken.

    Raises:
        NormfuseError: nothing can be written there.
    """
    try:
        descriptor = _create(path)
    except FileExistsError:
        return None
    except OSError as error:
        raise _unwritable(path, error) from error
    if os.name == "nt":  # where an open file cannot be replaced
        os.close(descriptor)

    def release() -> None:
        with suppress(OSError):
            if os.path.getsize(path) == 0 and (os.name == "nt" or _is_at(descriptor, path)):
                os.unlink(path)
        if os.name != "nt":
            os.close(descriptor)

    return release


def _create(path: str) -> int:
    """Makes a file that is not there, and holds it.

    Raises:
        FileExistsError: it is there, or somebody took it for a leftover that very moment.
        OSError: it cannot be made.
    """
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0), 0o666)
    if not _hold(descriptor) or _is_at(descriptor, path):
        return descriptor
    os.close(descriptor)
    raise FileExistsError(path)


def _new_temporary(folder: str) -> tuple[str, int]:
    """The path of a new temporary file, and its descriptor.

    Raises:
        OSError: it cannot be made.
    """
    while True:
        path = os.path.join(folder, f".normfuse-{secrets.token_hex(8)}.tmp")
        with suppress(FileExistsError):
            return path, _create(path)


def _hold(descriptor: int, wait: bool = True) -> bool:
    """Locks a file as long as the process lives. False where another holds it, or there are no locks."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:  # some network file systems have none
        return False
    return True


def _is_at(descriptor: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def sweep(folder: str, names: re.Pattern[str], empty: bool = False) -> None:
    """Removes what killed processes left in a folder: files of such names that nobody holds.

    Args:
        folder: where to look.
        names: what they are called.
        empty: whether only those without content are removed.
    """
    folder = folder or os.curdir
    with suppress(OSError):
        for path in [os.path.join(folder, name) for name in os.listdir(folder) if names.fullmatch(name)]:
            with suppress(OSError):
                _remove_abandoned(path, empty)


def _remove_abandoned(path: str, empty: bool) -> None:
    status = os.lstat(path)
    if not stat.S_ISREG(status.st_mode) or (empty and status.st_size):
        return
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    try:
        if _hold(descriptor, wait=False) and _is_at(descriptor, path) and not (empty and os.fstat(descriptor).st_size):
            os.unlink(path)
    finally:
        os.close(descriptor)


def write(
    files: Sequence[tuple[str, Callable[[BinaryIO], object]]], replaced: Callable[[], Iterable[str]] = tuple
) -> None:
    """Writes files so that either all of them are there and complete, or none.

    Each is written beside its place under a temporary name and synced, then they are renamed in order, while no other
    process does so in that folder. Only the last may replace a file that exists, the names of the others are reserved;
    while it is not in place, whatever goes wrong removes all that was written. What a killed process has left under
    temporary names in that folder is removed first.

    Args:
        files: paths, each with a function that writes its content.
        replaced: names the files that belong to the one which the last replaces, just before it does; they are removed.

    Raises:
        NormfuseError: the system could not write, such as on a full disk.
    """
    folder = os.path.dirname(files[-1][0])
    sweep(folder, TEMPORARY)
    temporary: list[str] = []
    try:
        with ExitStack() as held:
            for path, fill in files:
                name, descriptor = _new_temporary(os.path.dirname(path))
                temporary.append(name)
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
            raise _unwritable(files[-1][0], error) from error
        raise


def _unwritable(path: str, error: OSError) -> NormfuseError:
    reason = error.strerror or error
    return NormfuseError(f"cannot write {path}: {reason}; nothing was changed, make room or choose another output")


@contextmanager
def _alone_in(folder: str) -> Iterator[None]:
    """Keeps other processes from renaming files in a folder meanwhile, as far as the system and they care."""
    if os.name == "nt":  # where folders cannot be opened
        yield
        return
    descriptor = os.open(folder or os.curdir, os.O_RDONLY)
    try:
        _hold(descriptor)
        yield
        with suppress(OSError):
            os.fsync(descriptor)  # the names, too, outlive a power failure
    finally:
        os.close(descriptor)

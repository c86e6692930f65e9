"""Names that are held while something is written under them, and what killed processes have left under such names.

A process locks what it writes; the system lets go of the lock when the process ends, however it ends. So what bears
such a name and is not locked is nobody's. Where there are no locks, as on Windows, nothing is taken for a leftover.
"""

import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from normfuse.errors import NormfuseError

TEMPORARY = re.compile(r"\.normfuse-[0-9a-f]{16}\.(tmp|dir)")
"""Names of files that are being written, and of folders, beside each of which such a file is held."""


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
        raise unwritable(path, error) from error
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
    if not hold(descriptor) or _is_at(descriptor, path):
        return descriptor
    os.close(descriptor)
    raise FileExistsError(path)


def new_temporary(folder: str) -> tuple[str, int]:
    """The path of a new temporary file, and its descriptor.

    Raises:
        OSError: it cannot be made.
    """
    while True:
        path = os.path.join(folder, f".normfuse-{secrets.token_hex(8)}.tmp")
        with suppress(FileExistsError):
            return path, _create(path)


@contextmanager
def folder_beside(path: str) -> Iterator[str]:
    """Makes a folder beside a file for what is needed meanwhile, and removes it; if this process cannot, a later one.

    Args:
        path: the file, which need not be there.

    Raises:
        NormfuseError: nothing can be written there.
    """
    beside = os.path.dirname(os.path.abspath(path))
    sweep(beside, TEMPORARY)
    try:
        held, descriptor = new_temporary(beside)
    except OSError as error:
        raise unwritable(path, error) from error
    folder = f"{held.removesuffix('.tmp')}.dir"
    try:
        os.mkdir(folder, 0o700)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)
        with suppress(OSError):
            os.unlink(held)


def hold(descriptor: int, wait: bool = True) -> bool:
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
    """Removes what killed processes left in a folder: files of such names that nobody holds, folders beside none.

    Args:
        folder: where to look.
        names: what they are called.
        empty: whether only those without content are removed.
    """
    folder = folder or os.curdir
    with suppress(OSError):
        found = [os.path.join(folder, name) for name in os.listdir(folder) if names.fullmatch(name)]
        for path in sorted(found, reverse=True):  # the held file before its folder
            with suppress(OSError):
                _remove_abandoned(path, empty)


def _remove_abandoned(path: str, empty: bool) -> None:
    status = os.lstat(path)
    if path.endswith(".dir"):
        if stat.S_ISDIR(status.st_mode) and not os.path.lexists(f"{path.removesuffix('.dir')}.tmp"):
            shutil.rmtree(path)
        return
    if not stat.S_ISREG(status.st_mode) or (empty and status.st_size):
        return
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    try:
        if hold(descriptor, wait=False) and _is_at(descriptor, path) and not (empty and os.fstat(descriptor).st_size):
            os.unlink(path)
    finally:
        os.close(descriptor)


def unwritable(path: str, error: OSError) -> NormfuseError:
    """What to say where the system does not let a file be written."""
    reason = error.strerror or error
    return NormfuseError(f"cannot write {path}: {reason}; nothing was changed, make room or choose another output")

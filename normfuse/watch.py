"""The command line as two processes: one works, the other waits and tells how it ended.

ONNX Runtime and onnx are C++ that trusts its input: some models make them abort, or read where nothing is, and no
exception says so. The work is done in a child, which is forked before anything is imported or started, so that it costs
no time and no memory; where a crash ends it, the parent says so in one line. Only Linux: elsewhere a fork is not safe,
or a child cannot be bound to the life of its parent.
"""

import os
import signal
import sys
from contextlib import suppress
from typing import NoReturn

from normfuse.errors import TargetError
from normfuse.interrupts import INTERRUPTED

CRASHES = {signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV} if os.name == "posix" else set()
"""Signals that native code ends a process with."""

_BY_KERNEL = 128
"""`si_code` of a signal that the terminal sent, to the child as well."""

_PR_SET_PDEATHSIG = 1


def watched() -> None:
    """Returns in a child process; this one ends when the child does, as the child does.

    Signals that are sent to this process go on to the child. Where it is killed, the child is, too.
    """
    if sys.platform != "linux":
        return
    sent = {signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2}
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {*sent, signal.SIGCHLD})
    parent = os.getpid()
    child = os.fork()
    if not child:
        _die_with(parent)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return
    while True:
        info = signal.sigwaitinfo({*sent, signal.SIGCHLD})
        if info.si_signo != signal.SIGCHLD:
            if info.si_code != _BY_KERNEL:
                os.kill(child, info.si_signo)
            continue
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            _end(os.waitstatus_to_exitcode(status))


def _die_with(parent: int) -> None:
    """Binds this process to the life of its parent."""
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def _end(status: int) -> NoReturn:
    """Ends this process as a child ended: with an exit status, by a signal, or with what a crash means."""
    if status >= 0:
        os._exit(status)
    number = -status
    if number in CRASHES:
        _say(
            f"{signal.Signals(number).name} ended the process: onnx or ONNX Runtime crashed at this model; no file is "
            "half-written; --no-verify leaves ONNX Runtime out"
        )
        os._exit(TargetError.exit_status)
    if number == signal.SIGKILL:  # as Linux does with whom it has no memory left for
        _say("the process was killed, most likely for want of memory; no file is half-written")
    if number == signal.SIGINT:  # Python ends by it where an interrupted `exec` was caught, too
        os._exit(INTERRUPTED)
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    os._exit(128 + number)


def _say(error: str) -> None:
    with suppress(OSError):  # nobody listens
        os.write(2, f"Error: {error}\n".encode())

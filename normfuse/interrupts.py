"""Ctrl-C of the program: one line and exit status 130, whenever it comes.

While it starts there is nothing to tidy up, and it ends at once. While a verb works KeyboardInterrupt is raised, so
that what is half-written is removed; once, as terminals, shells and the process that waits may all pass on the same
Ctrl-C. When the work has ended it is ignored: only the interpreter is left to end.
"""

import os
import signal
import time
from contextlib import suppress
from types import FrameType, TracebackType
from typing import NoReturn, Self

INTERRUPTED = 130
"""The exit status."""

LINE = "interrupted"

AGAIN = 1.0
"""Seconds after which another Ctrl-C is one of its own: something may have swallowed the first."""


def end_at_once() -> None:
    """From here on Ctrl-C ends the process at once; not where it is ignored, such as in a shell's background."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    with suppress(OSError):  # nobody listens
        os.write(2, f"{LINE}\n".encode())
    os._exit(INTERRUPTED)


class Interrupts:
    """Within it Ctrl-C raises KeyboardInterrupt, and behind it does nothing; only after `end_at_once`.

    Attributes:
        came: whether there was one. Native code may have made another exception of it.
    """

    def __init__(self) -> None:
        self.came = False
        self._last = 0.0
        self._ours = False

    def __enter__(self) -> Self:
        self._ours = signal.getsignal(signal.SIGINT) is _end
        if self._ours:
            signal.signal(signal.SIGINT, self._raise)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._ours:
            signal.signal(signal.SIGINT, signal.SIG_IGN)

    def _raise(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.came or now - self._last > AGAIN:
            self.came, self._last = True, now
            raise KeyboardInterrupt

"""`Stopwatch`: how long something has taken, whatever else the machine does meanwhile."""

import time

PATIENCE = 4.0
"""A wall second counts for at least a quarter of one."""


class Stopwatch:
    """Seconds since it was made, as the calling thread was at work.

    A verdict should not depend on what else runs on the machine, so what other processes take from this one does not
    count, as far as it runs at a quarter of its speed or better; waiting for a disk or a device counts a quarter.
    """

    def __init__(self) -> None:
        """Starts it."""
        self._wall, self._own = time.perf_counter(), time.thread_time()

    @property
    def seconds(self) -> float:
        """The seconds since it was made."""
        return max(time.thread_time() - self._own, (time.perf_counter() - self._wall) / PATIENCE)


def wall_deadline(seconds: float) -> float:
    """The `time.perf_counter()` at which so many seconds will have passed on any stopwatch that is started now."""
    return time.perf_counter() + PATIENCE * max(seconds, 0.0)

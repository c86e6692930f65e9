"""The stopwatch: work counts whole, waiting a quarter."""

import time

import pytest

from normfuse.stopwatch import PATIENCE, Stopwatch, wall_deadline


@pytest.mark.parametrize(("own", "wall", "seconds"), [(3.0, 3.1, 3.0), (3.0, 9.0, 3.0), (0.5, 8.0, 2.0)])
def test_what_others_take_does_not_count(
    own: float, wall: float, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = {"thread_time": 10.0, "perf_counter": 100.0}
    for name in now:
        monkeypatch.setattr(time, name, lambda name=name: now[name])
    watch = Stopwatch()
    now |= {"thread_time": 10.0 + own, "perf_counter": 100.0 + wall}
    assert watch.seconds == pytest.approx(seconds)


def test_a_deadline_leaves_room_for_the_others() -> None:
    assert wall_deadline(2.0) - time.perf_counter() == pytest.approx(2.0 * PATIENCE, abs=0.5)
    assert wall_deadline(-1.0) <= time.perf_counter()

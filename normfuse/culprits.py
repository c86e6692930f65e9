"""The smallest set of changes that still fails, by delta debugging.

    A. Zeller, R. Hildebrandt, Simplifying and isolating failure-inducing input, IEEE TSE 28(2), 2002: algorithm ddmin

Changes depend on one another: without an earlier one a later one may not come about. Such a set simply does not fail.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeVar

Item = TypeVar("Item")


def minimal(items: Sequence[Item], fails: Callable[[Sequence[Item]], bool]) -> list[Item]:
    """A part of the items that fails, and of which no item can be left out.

    Args:
        items: all of them, which fail together.
        fails: whether some of them, in their order, fail; asked once for each set.

    Example:
        >>> minimal(range(100), lambda some: 17 in some and 42 in some)
        [17, 42]
    """
    known: dict[tuple[int, ...], bool] = {}

    def failing(places: list[int]) -> bool:
        key = tuple(places)
        if key not in known:
            known[key] = fails([items[place] for place in places])
        return known[key]

    kept, count = list(range(len(items))), 2
    if failing([]):
        return []
    while len(kept) > 1:
        bounds = [len(kept) * i // count for i in range(count + 1)]
        parts = [kept[start:end] for start, end in pairwise(bounds)]
        rests = [[place for place in kept if place not in part] for part in parts]
        if (part := next((part for part in parts if failing(part)), None)) is not None:
            kept, count = part, 2
        elif (rest := next((rest for rest in rests if failing(rest)), None)) is not None:
            kept, count = rest, max(count - 1, 2)
        elif count >= len(kept):
            break
        else:
            count = min(2 * count, len(kept))
    return [items[place] for place in kept]

"""Sizes that the dynamic axes of a module may have together, and such at which a guard does not hold: `Space`."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, product

from normfuse.guards import Axis, Formula, Guard, Sizes

_SCANNED = 256
"""Sizes up to this are looked at one by one, for a guard on one axis that none of the likely ones violates."""

_COMBINED = 1500
"""So many assignments are looked at for a guard on several axes."""

Places = dict[tuple[int, int], int]
"""The size of each dynamic axis, by its place among the arguments."""


class Space:
    """The sizes that dynamic axes may be given together."""

    def __init__(self, axes: Sequence[Axis]) -> None:
        """Takes the axes; those of one root have their sizes from one number."""
        self.axes = axes
        self.symbols = sorted({symbol for axis in axes for symbol in axis.formula.free_symbols}, key=str)
        self.base = {symbol: self._value(symbol) for symbol in self.symbols}
        groups = {symbol: {symbol} for symbol in self.symbols}
        roots: dict[str, Formula] = {}
        for axis in axes:
            if axis.formula.is_Symbol and axis.name == axis.root:
                first = roots.setdefault(axis.root, axis.formula)
                joined = groups[first] | groups[axis.formula]
                groups.update(dict.fromkeys(joined, joined))
        self.groups = {symbol: frozenset(group) for symbol, group in groups.items()}

    def _value(self, symbol: Formula) -> int:
        """What a symbol stands for in the example."""
        rows = [axis for axis in self.axes if axis.formula.free_symbols == {symbol}]
        for axis in sorted(rows, key=lambda axis: not axis.formula.is_Symbol):
            for value in (axis.size, *range(axis.size + 1)):
                if axis.formula.subs(symbol, value) == axis.size:
                    return int(value)
        return 1

    def sizes(self, values: Sizes) -> dict[tuple[int, int], int] | None:
        """The size of each axis; None where one is none that the user declared."""
        found: dict[tuple[int, int], int] = {}
        for axis in self.axes:
            number = values[axis.formula] if axis.formula.is_Symbol else axis.formula.subs(dict(values))
            if int(number) != number or not axis.limit.allows(int(number)):
                return None
            found[axis.place] = int(number)
        return found

    def violating(self, guard: Guard) -> Iterator[Sizes]:
        """Values of the symbols at which a guard does not hold, those near the example first."""
        groups = sorted({self.groups[symbol] for symbol in guard.symbols}, key=lambda group: sorted(map(str, group)))
        likely = [self._likely(group, guard.numbers) for group in groups]
        some = self._combined(groups, islice(product(*likely), _COMBINED))
        found = [values for values in some if not guard.holds(values)]
        if not found and len(groups) == 1:
            every = ((size,) for size in range(1, _SCANNED))
            found = [values for values in self._combined(groups, every) if not guard.holds(values)]
        yield from sorted(found, key=self._distance)

    def _likely(self, group: frozenset[Formula], numbers: Iterable[int]) -> list[int]:
        here = {self.base[symbol] for symbol in group}
        some = {1, 2, 3, 4, 5, 7, 8, 9, 16} | {factor * size for size in here for factor in (4, 8)}
        some |= {size + change for size in here for change in range(-3, 4)}
        some |= {2 * size + change for size in here for change in (-1, 0, 1)}
        some |= {number + change for number in numbers for change in (-1, 0, 1)} | {
            2 * number + 1 for number in numbers
        }
        some |= {axis.limit.step * factor for axis in self.axes for factor in (1, 2, 3)}
        return sorted((size for size in some if size > 0), key=lambda size: abs(size - min(here)))

    def _combined(self, groups: Sequence[frozenset[Formula]], rows: Iterable[tuple[int, ...]]) -> Iterator[Sizes]:
        for row in rows:
            values = dict(self.base)
            for group, size in zip(groups, row, strict=True):
                values.update(dict.fromkeys(group, size))
            if self.sizes(values) is not None:
                yield values

    def _distance(self, values: Sizes) -> int:
        return sum(abs(values[symbol] - size) for symbol, size in self.base.items())

    def size(self, axis: Axis, values: Sizes) -> int:
        """The size of an axis."""
        return int(axis.formula.subs(dict(values)))

    def parted(self) -> Iterator[tuple[str, str, list[Places]]]:
        """Names of which torch took one for the other, and sizes at which they are not what it took them for."""
        seen: dict[Formula, str] = {}
        for axis in self.axes:
            for symbol in axis.formula.free_symbols:
                other = seen.setdefault(symbol, axis.root)
                if other != axis.root:
                    yield other, axis.root, [*self._moved(axis.root), *self._moved(other)]

    def _moved(self, root: str) -> Iterator[Places]:
        """Other sizes for the axes of one name only; those of the example where they contradict the formulas."""
        base = {axis.place: axis.size for axis in self.axes}
        if any(self.size(axis, self.base) != axis.size for axis in self.axes):
            yield base
        mine = [axis for axis in self.axes if axis.root == root]
        for change in (1, 2, -1, 3, 7):
            places = base | {axis.place: axis.size + change * axis.limit.step for axis in mine}
            if all(axis.limit.allows(places[axis.place]) for axis in mine):
                yield places

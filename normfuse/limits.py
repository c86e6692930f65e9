"""Which sizes a dynamic dimension may have: `Limit`, as the user declared it for an export, kept in the model.

Exporters let a dimension be anything. Where the user of `normfuse.export` said that it is not, the file says so in its
metadata, so that whoever judges it draws no other sizes.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

import onnx_ir as ir

KEY = "normfuse.limits"
"""The entry of a model's metadata: JSON, for each name of a dimension the fields of its `Limit`."""


@dataclass(frozen=True, slots=True)
class Limit:
    """The sizes `step · k + offset` from `least` to `most`.

    Attributes:
        least: the smallest.
        most: the largest; None where there is none.
        step: the distance from one to the next.
        offset: what is left of a size when it is divided by the step.
    """

    least: int = 1
    most: int | None = None
    step: int = 1
    offset: int = 0

    def allows(self, size: int) -> bool:
        """Whether a size is one of them."""
        return self.least <= size <= (self.most or size) and (size - self.offset) % self.step == 0

    def nearest(self, size: int) -> int:
        """The nearest of them; the size itself where there is none."""
        inside = min(max(size, self.least), self.most or max(size, self.least))
        down = inside - (inside - self.offset) % self.step
        return next((one for one in (down, down + self.step) if self.allows(one)), size)

    def fitted(self, sizes: Iterable[int]) -> tuple[int, ...]:
        """Sizes moved to the nearest that are allowed, each once."""
        return tuple(dict.fromkeys(map(self.nearest, sizes)))

    def __str__(self) -> str:
        span = f"{self.least} to {self.most}" if self.most is not None else f"at least {self.least}"
        rest = f" plus {self.offset % self.step}" if self.offset % self.step else ""
        return span + (f", a multiple of {self.step}{rest}" if self.step > 1 else "")


def limits_of(model: ir.Model) -> dict[str, Limit]:
    """The limits that a model carries, by the name of the dimension; nothing where what it carries cannot be read."""
    try:
        rows = json.loads(model.metadata_props.get(KEY, "{}"))
        return {str(name): _limit(**row) for name, row in rows.items()}
    except (AttributeError, TypeError, ValueError):
        return {}


def note_limits(model: ir.Model, limits: Mapping[str, Limit]) -> None:
    """Writes into a model which sizes its dimensions may have; what says nothing is left out."""
    rows = {name: asdict(limit) for name, limit in limits.items() if limit != Limit()}
    if rows:
        model.metadata_props[KEY] = json.dumps(rows, sort_keys=True)


def _limit(least: object, most: object, step: object, offset: object) -> Limit:
    if (
        type(least) is int
        and (most is None or type(most) is int)
        and type(step) is int
        and step > 0
        and type(offset) is int
    ):
        return Limit(least, most, step, offset)
    raise TypeError("these are no sizes")

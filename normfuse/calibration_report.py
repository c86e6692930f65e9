"""What a calibration found: statistics old and new, and how far the outputs have moved."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from normfuse.measuring import Flow
from normfuse.population import Estimator, Statistics
from normfuse.report import Change, Report
from normfuse.runtime import Array
from normfuse.schema import SCHEMA_VERSION
from normfuse.stored import RULE, is_trivial
from normfuse.superaccumulator import Float64

UNLIKE = "the batches, or their order, were not the same in each pass: another run may differ"

NOTABLE = 0.1
"""A share of the variance that is worth a word when it is left out."""


@dataclass(frozen=True, slots=True)
class Layer:
    """What became of one BatchNormalization.

    Attributes:
        name: of the node.
        level: its depth level.
        epsilon: ε.
        old: the statistics that it had.
        new: those that it has.
    """

    name: str
    level: int
    epsilon: float
    old: Statistics
    new: Statistics

    @property
    def drift(self) -> Float64:
        """|E[x] − E[x]_old| / √(Var[x] + ε) for each channel."""
        return np.abs(self.new.mean - self.old.mean) / np.sqrt(self.new.variance + self.epsilon)

    @property
    def growth(self) -> Float64:
        """(Var[x] + ε) / (Var[x]_old + ε) for each channel."""
        with np.errstate(all="ignore"):
            return np.asarray((self.new.variance + self.epsilon) / (self.old.variance + self.epsilon))

    @property
    def missing(self) -> float:
        """What the estimator left out, as a share of the variance that it found: the median of the channels."""
        if self.new.missing is None:
            return 0.0
        with np.errstate(all="ignore"):
            return float(np.median(self.new.missing / (self.new.variance + self.epsilon)))

    @property
    def constant_channels(self) -> int:
        """Channels that are the same everywhere in the data: they are scaled by γ/√ε."""
        return int(np.sum(self.new.variance == 0))

    def to_dict(self) -> dict[str, Any]:
        """The layer as JSON-ready values."""
        return {
            "name": self.name,
            "level": self.level,
            "channels": len(self.new.mean),
            "constant_channels": self.constant_channels,
            "missing": _finite(self.missing),
            "drift": [_finite(one) for one in spread(self.drift)],
            "growth": [_finite(one) for one in spread(self.growth)],
            "old": _statistics(self.old),
            "new": _statistics(self.new),
        }


@dataclass(frozen=True, slots=True)
class Moved:
    """How far an output has moved.

    Attributes:
        name: the output.
        relative: ‖after − before‖₂ / ‖before‖₂; for integers the share of elements that differ.
        largest: max |after − before|.
    """

    name: str
    relative: float
    largest: float


@dataclass(slots=True)
class Calibration(Report):
    """What `normfuse.calibrate` did.

    Attributes:
        estimator: `mean` or `pooled`.
        flow: `levels` or `batch`.
        passes: passes over the data.
        batches: in one pass.
        layers: those that have new statistics.
        outputs: how far each output has moved, on the first batches.
        notes: what else the user should know.
    """

    estimator: Estimator = "mean"
    flow: Flow = "levels"
    passes: int = 0
    batches: int = 0
    layers: list[Layer] = field(default_factory=list)
    outputs: list[Moved] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready values."""
        return {
            "schema_version": SCHEMA_VERSION,
            "estimator": self.estimator,
            "flow": self.flow,
            "passes": self.passes,
            "batches": self.batches,
            "layers": [layer.to_dict() for layer in self.layers],
            "refusals": [{"rule": one.rule, "node": one.node, "reason": one.reason} for one in self.refusals],
            "outputs": [
                {"name": one.name, "relative": _finite(one.relative), "largest": _finite(one.largest)}
                for one in self.outputs
            ],
            "notes": self.notes,
        }

    def add(self, layer: Layer) -> None:
        """Adds a layer that has new statistics, and what the user should know of it."""
        self.layers.append(layer)
        self.changes.append(Change(RULE, (layer.name,), (), _detail(layer)))
        if still := layer.constant_channels:
            which = f"{still} channel{'s' if still > 1 else ''} of {layer.name!r} {'are' if still > 1 else 'is'}"
            self.notes.append(f"{which} constant in the data: whatever differs from that is enlarged by γ/√ε")
        if is_trivial(layer.old):
            self.notes.append(
                f"{layer.name!r} had mean 0 and variance 1: if it was no untrained layer but a plain scale and shift, "
                "it is wrong now"
            )

    def compare(self, outputs: list[Moved]) -> None:
        """Takes how far the outputs have moved, and says where that is no number."""
        self.outputs = outputs
        for output in outputs:
            if not math.isfinite(output.largest):
                self.notes.append(
                    f"output {output.name!r} holds NaN or infinities, before or after, on the first batches"
                )

    def weigh(self) -> None:
        """Says where the estimator `mean` is too small, once all layers are there."""
        small = [layer for layer in self.layers if layer.missing > NOTABLE]
        if small:
            worst = max(small, key=lambda layer: layer.missing)
            self.notes.append(
                f"{len(small)} layer{'s' if len(small) > 1 else ''}: the means of batches differ by more than chance, "
                f"which the estimator mean leaves out of the variance ({worst.missing:.0%} of it in {worst.name!r}); "
                "give larger and shuffled batches, or take pooled"
            )


def told_of(ignored: Iterable[str], twice: Iterable[str]) -> list[str]:
    """What is said of batches, once they have been read.

    Args:
        ignored: arrays in them that nothing takes.
        twice: files that were given more than once.
    """
    names, files = ", ".join(map(repr, ignored)), ", ".join(twice)
    told = [f"left out of the data, as no input of that name can be fed: {names}"] if names else []
    return [*told, f"given more than once, and counted as often: {files}"] if files else told


class Movement:
    """How far outputs move, over several runs."""

    def __init__(self) -> None:
        self._sums: dict[str, list[float]] = {}
        self._exact: set[str] = set()

    def add(self, name: str, before: Array, after: Array) -> None:
        """Adds one output of one run; what is no number does not count, nor what has changed its shape."""
        if before.dtype.kind not in "biuf" or before.shape != after.shape:
            return
        was, now = before.astype(np.float64), after.astype(np.float64)
        is_exact = before.dtype.kind != "f"
        self._exact.update([name] if is_exact else [])
        off, size, largest = self._sums.get(name, [0.0, 0.0, 0.0])
        with np.errstate(all="ignore"):
            distance = np.abs(now - was)
            off += float(np.sum(distance > 0 if is_exact else distance**2))
            size += float(was.size if is_exact else np.sum(was**2))
            largest = float(np.max(distance, initial=largest))
        self._sums[name] = [off, size, largest]

    def moved(self) -> list[Moved]:
        """The outputs, and how far each has moved."""
        found = []
        for name, (off, size, largest) in self._sums.items():
            share = off / size if size else (math.inf if off else 0.0)
            found.append(Moved(name, share if name in self._exact else math.sqrt(share), largest))
        return found


def _detail(layer: Layer) -> str:
    """What became of a layer, in one line."""
    drift, growth = spread(layer.drift), spread(layer.growth)
    return f"mean moved by up to {drift[2]:.2g} σ, variance by factors of {growth[0]:.2g} to {growth[2]:.2g}"


def spread(vector: Float64) -> tuple[float, float, float]:
    """The smallest, the median and the largest number of a vector."""
    return float(np.min(vector)), float(np.median(vector)), float(np.max(vector))


def _statistics(statistics: Statistics) -> dict[str, list[float | None]]:
    return {
        "mean": [_finite(one) for one in statistics.mean.tolist()],
        "variance": [_finite(one) for one in statistics.variance.tolist()],
    }


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None

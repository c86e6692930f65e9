"""How far an output is from the float64 truth, in units of what the original's own rounding makes.

For each probe family f, pooled over its seeds (they have one scale):

    E_f(y) = ‖y − y64‖₂ / ‖y64‖₂        noise_f = max(E_f(original), E_f(original, inputs moved by one ulp), c·u)
    ratio_f = E_f(candidate) / noise_f   ratio = sqrt(mean over f of ratio_f²)

u is the unit round-off of the dtype the model computes in, c = 4. Ratios are pooled, not errors: a family of large
scale or of bad conditioning weighs as much as any other and cannot hide one that fails (with ten families, one of
ratio 7 fails the output). The moved inputs measure the conditioning: a constant row into a LayerNorm has no accuracy
to lose. Where one ulp moves the original by more than LOST in a family that is not sane, a jump was taken another way
(an argmax that feeds back, a threshold): both results are as good as drawn, E of either is 0 or of order 1 by chance,
and noise_f is at least 1. As one move may not take the jump, the inputs are moved several times on a probe of a family
that alone would fail.

The same is done for the largest channel, with a wider limit. An output passes with ratio ≤ 2, channel ratio ≤ 4, every
E_f(candidate) below a ceiling (where the original leaves it room), and NaN and infinities only where the original or
y64 has them; if they are everywhere, nothing was compared, and nothing is proved. Integer, boolean and string outputs
are compared for equality.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from normfuse.probes import SANE

Array = np.ndarray[Any, Any]

RATIO = 2.0
"""The limit of the pooled ratio: one bit."""
CHANNEL_RATIO = 4.0
"""The limit of the ratio of the worst channels."""
ROUNDINGS = 4.0
"""c: errors below this many unit round-offs are no errors."""
CONDITIONED = 4.0
"""An original this many times further off than one ulp of its inputs moves it is off by more than rounding."""
LOST = 2.0**-7
"""Moved this far by one ulp of its inputs (or by √u where that is more) an output has no accuracy to lose."""
FLIPS = 1e-3
"""The part of an integer output's elements that may differ: indices of nearly equal values change places."""

UNJUDGED = "nothing could be judged"
"""How the reason of a parity begins that shows nothing, neither that a candidate is right nor that it is wrong."""

BLIND = "is NaN or infinite on every probe"
"""Why an output of which no element could be compared is not proved: its ratio of 0 is that of no errors at all."""


@dataclass(frozen=True, slots=True)
class Precision:
    """What can be expected of a dtype.

    Attributes:
        name: the dtype.
        unit: its unit round-off, 2^-p for p bits of significand.
        ceiling: the largest relative error a candidate may have where the original leaves it room.
        doubt: an original further than this from the oracle puts the oracle in doubt.
    """

    name: str
    unit: float
    ceiling: float
    doubt: float


PRECISIONS = {
    "float64": Precision("float64", 2.0**-53, 1e-10, 1e-3),
    "float32": Precision("float32", 2.0**-24, 1e-4, 1e-3),
    "float16": Precision("float16", 2.0**-11, 1e-2, 5e-2),
    "bfloat16": Precision("bfloat16", 2.0**-8, 8e-2, 4e-1),
}
"""From the finest to the coarsest."""

TF32 = Precision("tf32", 2.0**-11, 1e-2, 5e-2)
"""Of float32 models whose products are rounded to TF32: ten bits behind the leading one."""


@dataclass(frozen=True, slots=True)
class OutputParity:
    """How one output fared at one optimization level of the runtime.

    Attributes:
        name: the output, or `output (before Sigmoid)` for what a saturating operator hides.
        dtype: its dtype.
        shapes: the shapes it took, one for each probe shape.
        level: `disabled` (the proof), `enabled` (what the user gets), or `float64` (the formula: `normfuse.apart`).
        reference: E of the original in the worst family.
        candidate: E of the candidate in the worst family.
        ratio: pooled over families; at most 2 passes.
        family: the family with the largest ratio.
        channel_ratio: the same for the worst channel; at most 4 passes.
        spread: standard deviation of the true output over all probes; 0 means that nothing moved it.
        passed: whether it computes the same.
        reason: why not, in one line.
    """

    name: str
    dtype: str
    shapes: tuple[tuple[int, ...], ...]
    level: str
    reference: float
    candidate: float
    ratio: float
    family: str
    channel_ratio: float
    spread: float
    passed: bool
    reason: str = ""


_NO_NOISE = ("truth", "candidate")
"""What the sums hold besides errors of the original."""


@dataclass(slots=True)
class _Sums:
    """Sums of squares over the probes of one family: of the truth, and of the errors of each contestant."""

    size: int = 0
    elements: int = 0
    squares: dict[str, float] = field(default_factory=dict)
    moves: dict[str, float] = field(default_factory=dict)
    channels: dict[tuple[int, int, str], Array] = field(default_factory=dict)

    def add(self, who: str, values: Array) -> None:
        squares = np.square(values)
        self.squares[who] = self.squares.get(who, 0.0) + float(squares.sum())
        if values.ndim < 2:
            return
        for axis in {1, values.ndim - 1}:
            rest = tuple(i for i in range(values.ndim) if i != axis)
            key = (axis, values.shape[axis], who)
            self.channels[key] = self.channels.get(key, 0.0) + squares.sum(axis=rest)

    def error(self, who: str) -> float:
        """E of one contestant; absolute where the truth is zero throughout."""
        truth = self.squares.get("truth", 0.0)
        return float(np.sqrt(self.squares.get(who, 0.0) / (truth or 1.0)))

    def noise(self) -> float:
        """The largest E of a result that rounding makes of the original."""
        return max(self.error(who) for who in self.squares if who not in _NO_NOISE)

    def add_move(self, who: str, values: Array) -> None:
        """Adds how far moved inputs moved the original."""
        self.moves[who] = self.moves.get(who, 0.0) + float(np.square(values).sum())

    def move(self) -> float:
        """How far moved inputs move the original, relative; the farthest of several draws."""
        truth = self.squares.get("truth", 0.0)
        return float(np.sqrt(max(self.moves.values(), default=0.0) / (truth or 1.0)))

    def channel_ratio(self, floor: float) -> float:
        """The largest E of a channel of the candidate, in units of the original's, at least the floor."""
        others = [self.channel_error(who) for who in self.squares if who not in _NO_NOISE]
        return self.channel_error("candidate") / max(floor, *others)

    def channel_error(self, who: str) -> float:
        """The largest E of a channel; a channel hundred times smaller than the mean one counts as that large."""
        worst = 0.0
        for (axis, size, other), errors in self.channels.items():
            if other == who:
                truth = self.channels[axis, size, "truth"]
                truth = np.maximum(truth, 1e-4 * truth.mean())
                worst = max(worst, float(np.sqrt((errors / np.where(truth > 0, truth, 1.0)).max(initial=0.0))))
        return worst


class Tally:
    """Gathers what an output did on each probe, and judges it."""

    def __init__(self, name: str, dtype: str, precision: Precision, *, absolute: bool = False) -> None:
        """Begins a tally.

        Args:
            name: the output.
            dtype: its dtype.
            precision: of the dtype that the model computes in.
            absolute: whether an error of c·u in every element is none, however small the elements are.
        """
        self.name = name
        self.dtype = dtype
        self.precision = precision
        self.families: dict[str, _Sums] = {}
        self._absolute = absolute
        self._shapes: dict[tuple[int, ...], None] = {}
        self._moments = np.zeros(3)
        self._counts = np.zeros(3, dtype=np.int64)
        self._reason = ""

    def add(self, family: str, truth: Array, reference: Array, candidate: Array, noise: Sequence[Array] = ()) -> None:
        """Adds one probe.

        Args:
            family: of the probe.
            truth: what the output should be.
            reference: what the original made.
            candidate: what the candidate made.
            noise: other results of the original that rounding makes as likely, first that on moved inputs.
        """
        self._shapes[reference.shape] = None
        if candidate.shape != reference.shape or candidate.dtype != reference.dtype:
            self._reject(
                f"it is {candidate.dtype}{list(candidate.shape)}, not {reference.dtype}{list(reference.shape)}", family
            )
        elif truth.shape != reference.shape:
            self.families.setdefault(family, _Sums()).squares["reference"] = np.inf
        elif is_float(reference):
            wide = [_float64(y) for y in (truth, reference, candidate, *noise)]
            self._add_floats(family, wide[0], wide[1], wide[2], wide[3:])
        else:
            self._add_discrete(truth, reference, candidate, noise)

    def _add_floats(
        self, family: str, truth: Array, reference: Array, candidate: Array, noise: Sequence[Array]
    ) -> None:
        strange = (_kinds(candidate) != _kinds(reference)) & (_kinds(candidate) != _kinds(truth))
        if strange.any():
            self._reject(
                f"NaN or infinite in {int(strange.sum())} elements where the original is not, or the reverse", family
            )
        finite = np.isfinite(truth) & np.isfinite(reference) & np.isfinite(candidate)
        for other in noise:
            finite &= np.isfinite(other)
        kept = np.where(finite, truth, 0.0)
        sums = self.families.setdefault(family, _Sums())
        sums.size += int(finite.sum())
        sums.elements += finite.size
        sums.add("truth", kept)
        contestants = {"reference": reference, "candidate": candidate}
        contestants |= {f"noise {i}": other for i, other in enumerate(noise)}
        for who, values in contestants.items():
            sums.add(who, np.where(finite, values, 0.0) - kept)
        for other in noise[:1]:
            sums.add_move("moved", np.where(finite, other, 0.0) - np.where(finite, reference, 0.0))
        self._moments += (finite.sum(), kept.sum(), np.square(kept).sum())

    def add_noise(self, family: str, draw: int, truth: Array, reference: Array, moved: Array) -> None:
        """Adds what inputs that are moved once more make of the original, on a probe that was added before.

        Args:
            family: of the probe.
            draw: the how-manieth time they are moved.
            truth: what the output should be.
            reference: what the original made.
            moved: what it made of the moved inputs.
        """
        if family not in self.families or not is_float(reference) or truth.shape != reference.shape:
            return
        wide = [_float64(y) for y in (truth, reference, moved)]
        finite = np.isfinite(wide[0]) & np.isfinite(wide[1]) & np.isfinite(wide[2])
        sums = self.families[family]
        kept = [np.where(finite, values, 0.0) for values in wide]
        sums.add(f"draw {draw}", kept[2] - kept[0])
        sums.add_move(f"draw {draw}", kept[2] - kept[1])

    def suspicious(self, family: str) -> bool:
        """Whether a family alone would fail the candidate."""
        if family not in self.families:
            return False
        sums, noise = self.families[family], self.noise(family)
        return (
            sums.error("candidate") > RATIO * noise
            or sums.channel_ratio(noise) > CHANNEL_RATIO
            or sums.error("candidate") > self.precision.ceiling >= 2 * noise
        )

    def _add_discrete(self, truth: Array, reference: Array, candidate: Array, noise: Sequence[Array]) -> None:
        own = reference != truth
        for other in noise:
            own |= reference != other
        self._counts += (reference.size, int((candidate != reference).sum()), int(own.sum()))
        if reference.dtype.kind in "biu":
            values = truth.astype(np.float64)
            self._moments += (values.size, values.sum(), np.square(values).sum())

    def _reject(self, what: str, family: str) -> None:
        self._reason = self._reason or f"{what} (probes {family!r})"

    def noise(self, family: str) -> float:
        """The noise of the original in a family, at least c·u."""
        sums = self.families[family]
        truth = sums.squares.get("truth", 0.0)
        floor = ROUNDINGS * self.precision.unit
        if self._absolute and truth:
            floor *= max(1.0, float(np.sqrt(sums.size / truth)))
        if self.lost(family):
            floor = 1.0
        return max(floor, sums.noise())

    def lost(self, family: str) -> bool:
        """Whether a family tells nothing: one ulp of the inputs decides what comes out, on inputs out of the usual."""
        return family not in SANE and self.conditioning(family) > max(LOST, float(np.sqrt(self.precision.unit)))

    def conditioning(self, family: str) -> float:
        """How much moved inputs move the original, relative."""
        return self.families[family].move()

    def doubtful(self, families: Iterable[str]) -> bool:
        """Whether the original is further from the truth than rounding explains, in each of these families."""
        seen = [f for f in families if f in self.families and self.families[f].squares.get("truth", 1.0) > 0]
        return bool(seen) and all(
            self.families[f].error("reference") > max(self.precision.doubt, CONDITIONED * self.conditioning(f))
            for f in seen
        )

    @property
    def spread(self) -> float:
        """The standard deviation of the true output over all probes."""
        count, total, squares = self._moments
        return float(np.sqrt(max(squares / count - (total / count) ** 2, 0.0))) if count else 0.0

    @property
    def blind(self) -> bool:
        """Whether no element could be compared: where the output has elements, they are all NaN or infinite."""
        sums = self.families.values()
        return any(one.elements for one in sums) and not any(one.size for one in sums)

    @property
    def still(self) -> bool:
        """Whether the probes do not move the output: its spread is lost in its rounding."""
        count, _, squares = self._moments
        return bool(count) and self.spread <= 64 * self.precision.unit * float(np.sqrt(squares / count))

    def verdict(self, level: str) -> OutputParity:
        """Judges what was gathered."""
        if not self.families:
            return self._discrete_verdict(level)
        ratios, channels, over = {}, [], ""
        for family, sums in self.families.items():
            noise, error = self.noise(family), sums.error("candidate")
            ratios[family] = error / noise
            channels.append(sums.channel_ratio(noise))
            if error > self.precision.ceiling >= 2 * noise:
                over = f"relative error {error:.1e} on probes {family!r} is above {self.precision.ceiling:g}"
        worst = max(ratios, key=lambda family: ratios[family])
        ratio, channel = _mean_square(ratios.values()), _mean_square(channels)
        reason = self._reason
        if not reason and ratio > RATIO:
            reason = f"its error is {ratio:.3g} times the original's (most on probes {worst!r}), the limit is {RATIO:g}"
        if not reason and channel > CHANNEL_RATIO:
            reason = (
                f"the error of its worst channel is {channel:.3g} times the original's, the limit is {CHANNEL_RATIO:g}"
            )
        reason = reason or over
        reference, candidate = (self.families[worst].error(who) for who in ("reference", "candidate"))
        return OutputParity(
            self.name,
            self.dtype,
            tuple(self._shapes),
            level,
            reference,
            candidate,
            ratio,
            worst,
            channel,
            self.spread,
            not reason,
            reason,
        )

    def _discrete_verdict(self, level: str) -> OutputParity:
        size, wrong, own = map(int, self._counts)
        allowed = 2 * own + int(FLIPS * size)
        reason = self._reason
        if not reason and wrong > allowed:
            reason = f"{wrong} of {size} elements differ from the original's, {allowed} may"
        part = float("inf") if self._reason else wrong / max(size, 1)
        ratio = float("inf") if self._reason else wrong / max(allowed, 1)
        return OutputParity(
            self.name,
            self.dtype,
            tuple(self._shapes),
            level,
            own / max(size, 1),
            part,
            ratio * RATIO if reason else min(ratio, 1.0),
            "",
            0.0,
            self.spread,
            not reason,
            reason,
        )


def is_float(array: Array) -> bool:
    """Whether an array holds floats, bfloat16 included."""
    return bool(array.dtype.kind == "f" or array.dtype.name == "bfloat16")


def _float64(array: Array) -> Array:
    return array.astype(np.float64)


def _kinds(values: Array) -> Array:
    """0 for a finite element, 1 and 2 for +inf and −inf, 3 for NaN."""
    return np.asarray(np.isposinf(values) + 2 * np.isneginf(values) + 3 * np.isnan(values))


def _mean_square(values: Iterable[float]) -> float:
    return float(np.sqrt(np.mean(np.square(list(values)))))

"""The worst element of each output that failed: where it stands, and what each side made of it.

It is looked for when the verdict is known: the probes of the family with the largest ratio (of all where NaN is what
failed) are drawn and run again, which the seeds make the same.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from normfuse.apart import FORMULA, truth_of_candidate
from normfuse.contest import Array, Contest, Values
from normfuse.errors import TargetError
from normfuse.judging import Deck, Judgement
from normfuse.metric import OutputParity, is_float
from normfuse.oracle import OracleError
from normfuse.probes import Probe
from normfuse.stopwatch import wall_deadline

SHOWN = 4
"""The elements that are looked for: those of so many rows."""


@dataclass(frozen=True, slots=True)
class Worst:
    """The element of an output that is furthest from what it should be.

    Attributes:
        output: the output.
        level: the optimization level of the runtime, as in `OutputParity`.
        family: the probe family.
        seed: the seed of the probe, from 0.
        index: the place of the element.
        reference: what the reference made of it.
        candidate: what the candidate made of it.
        oracle: what it is in float64, or None where the reference's own noise was the judge.
    """

    output: str
    level: str
    family: str
    seed: int
    index: tuple[int, ...]
    reference: float
    candidate: float
    oracle: float | None

    def __str__(self) -> str:
        exact = "" if self.oracle is None else f", {self.oracle:.12g} in float64"
        return (
            f"{self.output}[{', '.join(map(str, self.index))}] is {self.candidate:.9g}, of the reference "
            f"{self.reference:.9g}{exact} (probes {self.family!r}, seed {self.seed})"
        )


def worst_elements(
    contest: Contest, deck: Deck, judgement: Judgement, rows: Sequence[OutputParity], seeds: int, budget: float
) -> tuple[Worst, ...]:
    """The worst element of each row that failed, as far as it can be found.

    Args:
        contest: both models.
        deck: the probes.
        judgement: how the candidate failed.
        rows: the rows of the verdict.
        seeds: how often each probe is drawn.
        budget: seconds that this may take.
    """
    failed = [row for row in rows if not row.passed][:SHOWN]
    found: dict[tuple[str, str], tuple[float, Worst]] = {}
    families = {_family(row) for row in failed}
    deadline = wall_deadline(budget)
    names = [*contest.outputs, *(hidden.names[0] for hidden in contest.hidden)]
    try:
        oracle = contest.oracle() if failed and judgement.judged_by == "oracle" else None
        own = truth_of_candidate(contest) if any(row.level == FORMULA for row in failed) else None
        for seed, probe in _drawn(deck, 1 if contest.streams else seeds):
            if (probe.family not in families and "" not in families) or time.perf_counter() > deadline:
                continue
            truth = contest.titled(oracle.run(probe.inputs, names, deadline=deadline), 0) if oracle else None
            for row in failed:
                if _family(row) not in ("", probe.family):
                    continue
                try:
                    level: Any = "disabled" if row.level == FORMULA else row.level
                    reference = contest.run(0, level, probe.inputs)
                    if row.level == FORMULA and own:
                        candidate: Values = own.run(probe.inputs, names, deadline=deadline)
                    else:
                        candidate = contest.run(1, level, probe.inputs)
                except TargetError:
                    continue
                one = _worst(row, seed, probe, reference, candidate, truth)
                if one is not None and one[0] > found.get((row.name, row.level), (0.0,))[0]:
                    found[row.name, row.level] = one
    except OracleError:
        pass  # the verdict stands without them
    return tuple(found[row.name, row.level][1] for row in failed if (row.name, row.level) in found)


def _family(row: OutputParity) -> str:
    """The family that a row failed on, or nothing where it may be any: NaN is in no ratio."""
    return "" if row.reason.startswith("NaN") else row.family


def _drawn(deck: Deck, seeds: int) -> Iterator[tuple[int, Probe]]:
    for seed in range(seeds):
        for probe in deck.draw(seed):
            yield seed, probe


def _worst(
    row: OutputParity, seed: int, probe: Probe, reference: Values, candidate: Values, truth: Values | None
) -> tuple[float, Worst] | None:
    """How far off the worst element of one probe is, relative to the norm of the output, and that element."""
    sides = [values.get(row.name) for values in (reference, candidate, reference if truth is None else truth)]
    y, other, exact = sides
    if y is None or other is None or exact is None or not y.shape == other.shape == exact.shape or not y.size:
        return None
    if y.dtype.kind not in "fiub" and not is_float(y):
        return None
    wide = [np.asarray(side).astype(np.float64) for side in (y, other, exact)]
    distance = _distance(*wide)
    place = int(np.argmax(distance))
    finite = wide[2][np.isfinite(wide[2])]
    size = float(np.linalg.norm(finite)) or 1.0
    index = tuple(int(i) for i in np.unravel_index(place, y.shape))
    values = [float(side.flat[place]) for side in wide]
    oracle = None if truth is None else values[2]
    worst = Worst(row.name, row.level, probe.family, seed, index, values[0], values[1], oracle)
    return float(distance.flat[place]) / size, worst


def _distance(reference: Array, candidate: Array, truth: Array) -> Array:
    """How far each element is from the truth: infinitely where it is NaN or infinite and the other two are not."""
    with np.errstate(invalid="ignore"):
        distance = np.abs(candidate - truth)
    same = (candidate == truth) | (np.isnan(candidate) & np.isnan(truth))
    as_reference = (candidate == reference) | (np.isnan(candidate) & np.isnan(reference))
    strange = ~np.isfinite(distance) & ~same & ~as_reference
    return np.where(strange, np.inf, np.where(np.isfinite(distance), distance, 0.0))

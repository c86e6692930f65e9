"""Where two libraries run the two models: what is wrong with a candidate, its formula or the rounding of its library.

ONNX Runtime adds 90,000 numbers one by one, torch in pairs; on constant rows the one is off by 770 u and the other by
2 u, and a model that was exported without a fault fails a metric that grants the candidate one bit. So a candidate that
fails by its error alone is taken apart, with y64' what it computes itself in float64:

    y − y64 = (y64' − y64) + (y − y64')        formula + rounding

The formula is judged as strictly as ever, by E(y64') against the noise of the original: that is a row of its own, as
rounding can hide nothing in it. The rounding is what the candidate's library makes of the very same formula; y64 +
(y − y64') is therefore one more result that rounding makes as likely of the original, and joins its noise. What loses
much by itself, whatever runs it (a Cast to float16 inside, a variance in one pass), is a fault of the candidate: so
rounding counts on a probe only where it is below the ceiling of the metric, or where onnx's reference evaluator, which
runs the candidate as it is written in its own types, stays within the limit of the metric; and never where it is so far
off that a runtime would not be believed at all (`Precision.doubt`). It is measured with the runtime's optimizer off, so
that what an optimizer changes is no rounding. A candidate that holds narrower types than the original is not taken
apart.

A pass of this kind is never silent: a note says how much the library loses.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from normfuse.contest import Array, Contest, Values, precision_of
from normfuse.errors import TargetError
from normfuse.evaluated import Evaluated
from normfuse.foreign import Foreign, Truth
from normfuse.judging import Deck, Judgement, Say
from normfuse.metric import CONDITIONED, RATIO, ROUNDINGS, OutputParity, is_float
from normfuse.oracle import Oracle, OracleError
from normfuse.probes import Inputs, moved
from normfuse.stopwatch import wall_deadline

FORMULA = "float64"
"""The level of the rows that hold the candidate's formula against the reference's."""


def are_apart(contest: Contest) -> bool:
    """Whether two libraries run the two models."""
    return isinstance(contest.reference, Foreign) != isinstance(contest.candidate, Foreign)


def take_apart(
    contest: Contest, deck: Deck, judgement: Judgement, seeds: int, budget: float, say: Say
) -> list[OutputParity]:
    """Judges formula and rounding of a candidate that failed, where its error alone is to blame.

    Args:
        contest: both models.
        deck: the probes.
        judgement: how the candidate failed; where it passes after all, a note is added to it.
        seeds: how often each probe is drawn.
        budget: seconds that this may take.
        say: called with what is being done.

    Returns:
        the rows of the verdict: those of the judgement where it stands.
    """
    strict = judgement.verdicts()
    by_error = all(row.passed or (np.isfinite(row.ratio) and row.dtype.startswith(_FLOATS)) for row in strict)
    narrower = precision_of(contest.candidate).unit > contest.precision.unit
    if judgement.judged_by != "oracle" or judgement.refused or judgement.failure or not by_error or narrower:
        return strict
    formula, whole = Judgement(contest, "oracle"), Judgement(contest, "oracle")
    rounding = _Rounding(contest)
    deadline = wall_deadline(budget)
    try:
        truths = contest.oracle(), truth_of_candidate(contest)
        for seed in range(seeds):
            for probe in deck.draw(seed):
                say(f"taking apart probes {probe.family!r}, seed {seed + 1}")
                truth, own = (
                    contest.titled(one.run(probe.inputs, contest.outputs, deadline=deadline), 0) for one in truths
                )
                try:
                    noise = [contest.run(0, "disabled", moved(probe.inputs, seed))]
                    reference = contest.run(0, "disabled", probe.inputs)
                    results = {level: contest.run(1, level, probe.inputs) for level in contest.levels}
                except TargetError:
                    continue  # the judgement has said so
                typed = {name: _as(value, reference.get(name)) for name, value in own.items()}
                formula.add("disabled", probe.family, truth, reference, typed, noise)
                others = [*noise, reference]
                others.append(rounding.of(probe.inputs, truth, own, results["disabled"], others))
                for level, result in results.items():
                    whole.add(level, probe.family, truth, reference, result, others)
    except OracleError as failure:
        judgement.notes.append(f"whether the formula or rounding is to blame is not known: {failure}")
        return strict
    rows = [replace(row, level=FORMULA) for row in formula.verdicts()] + whole.verdicts()
    if {(row.name, row.level) for row in strict} - {(row.name, row.level) for row in rows}:
        return strict  # not all of it could be taken apart
    first = next(row for row in strict if not row.passed)
    differing = next((row for row in rows if row.level == FORMULA and not row.passed), None)
    holds = all(row.passed for row in rows)
    loss = f"E {first.candidate:.1e} on probes {first.family!r}, {first.ratio:.3g} times the reference's"
    if differing is not None:
        note = f"in float64 the two outputs {differing.name!r} are {differing.candidate:.1e} apart: the formulas differ"
    elif holds:
        note = f"output {first.name!r}: the formula is the same, the library that runs the candidate rounds to {loss}"
    else:
        note = f"output {first.name!r}: the formula is the same in float64; as it is written it loses too much: {loss}"
    judgement.notes.append(note)
    return rows if holds or differing is not None else strict


_FLOATS = ("float", "bfloat")


def truth_of_candidate(contest: Contest) -> Truth:
    """What computes y64'. Casts of a module to narrower types are its formula: nothing else would judge them.

    Raises:
        OracleError: the candidate holds what nothing can compute in float64.
    """
    candidate = contest.candidate
    return candidate.truth(widens=False) if isinstance(candidate, Foreign) else Oracle(candidate)


def _as(value: Array, like: Array | None) -> Array:
    """A value in the type that it has to have, rounded once."""
    return value if like is None or not is_float(like) else value.astype(like.dtype)


class _Rounding:
    """The rounding of the candidate's library, as far as it may count."""

    def __init__(self, contest: Contest) -> None:
        self._contest = contest
        self._evaluated: Evaluated | None = None

    def of(self, inputs: Inputs, truth: Values, own: Values, result: Values, noise: Sequence[Values]) -> Values:
        """What the library would make of the reference, by output.

        Args:
            inputs: of the probe.
            truth: y64.
            own: y64', the candidate in float64.
            result: y, the candidate as it ran with the runtime's optimizer off.
            noise: results of the original, first that on moved inputs.
        """
        values: Values = {}
        written: Values | None = None
        for name, y in result.items():
            exact, same = truth.get(name), own.get(name)
            if exact is None or same is None or not is_float(y) or not y.shape == same.shape == exact.shape:
                continue
            rounding, size, precision = _difference(y, same), _norm(exact), self._contest.precision
            if _norm(rounding) > precision.ceiling * size:
                others = [_norm(_difference(other[name], exact)) for other in noise if other[name].shape == y.shape]
                if _norm(rounding) > max(precision.doubt * size, CONDITIONED * others[0]):
                    continue
                limit = RATIO * max(ROUNDINGS * precision.unit * size, *others)
                written = self._as_written(inputs) if written is None else written
                if name not in written or not _norm(_difference(written[name], same)) <= limit:
                    continue
            values[name] = exact + rounding
        return values

    def _as_written(self, inputs: Inputs) -> Values:
        """What the reference evaluator makes of the candidate in its own types, as far as it can run it."""
        if isinstance(self._contest.candidate, Foreign):
            return {}
        try:
            self._evaluated = self._evaluated or Evaluated(self._contest.candidate, "the candidate")
            return self._evaluated.run(inputs)
        except TargetError:
            return {}


def _difference(y: Array, other: Array) -> Array:
    """y − other where both are finite, else 0."""
    with np.errstate(invalid="ignore"):
        difference = y.astype(np.float64) - other.astype(np.float64)
    return np.where(np.isfinite(difference), difference, 0.0)


def _norm(values: Array) -> float:
    return float(np.linalg.norm(values[np.isfinite(values)]))

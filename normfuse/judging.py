"""Runs probes through two models and gathers their errors: against the float64 oracle, or the original's noise."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from normfuse.contest import Array, Contest, Values, first_divergence
from normfuse.errors import NormfuseError, TargetError
from normfuse.foreign import Truth
from normfuse.metric import CHANNEL_RATIO, RATIO, OutputParity, Tally
from normfuse.metric import TF32 as TF32_PRECISION
from normfuse.oracle import Oracle, OracleError
from normfuse.probes import SANE, Inputs, Plan, Probe, moved
from normfuse.runtime import LEVELS, TF32, Level
from normfuse.shaken import Shaken
from normfuse.stopwatch import Stopwatch, wall_deadline
from normfuse.streaming import ORACLE, oracle_bytes

MARGIN = 4.0
"""A ratio above its limit but below this multiple of it is drawn again with more seeds: it may be chance."""

ROUNDS = 3
"""How many times the asked number of seeds may be drawn then."""

DRAWS = 16
"""How often the inputs of a probe may be moved again where its family alone would fail the candidate: chance decides
whether one draw takes the jump that the candidate's rounding took."""

_ROUNDINGS = 2
"""So many times the roundings of a float64 model are drawn for each probe."""

Say = Callable[[str], None]

_QUANTISED = frozenset({"DynamicQuantizeLinear", "DynamicQuantizeMatMul", "QuantizeLinear"})


@dataclass(frozen=True, slots=True)
class Deck:
    """The probes: the user's own, and those that are planned."""

    data: list[Probe]
    plan: Plan | None

    def told(self, probe: Probe, error: TargetError) -> str:
        """A note that the reference does not run on a probe.

        Raises:
            NormfuseError: it is the user's own data, which somebody wants judged.
        """
        numbers = [number for number, own in enumerate(self.data, 1) if own is probe and own.family == "data"]
        if not numbers:
            return f"the reference does not run on probes {probe.family!r}: {error}"
        which = f"set {numbers[0]} of {len(self.data)} of the data" if len(self.data) > 1 else "the data"
        arrays = ", ".join(
            f"{name} {'×'.join(map(str, array.shape)) or 'scalar'} {array.dtype}"
            for name, array in ((name, np.asarray(array)) for name, array in probe.inputs.items())
        )
        raise NormfuseError(f"{which} ({arrays}) cannot be judged, give what the model takes: {error}") from error

    def draw(self, seed: int) -> Iterator[Probe]:
        """The probes of one seed."""
        if seed == 0:
            yield from self.data
        if self.plan is not None:
            yield from self.plan.probes(seed)


class Judgement:
    """What has been gathered about all outputs.

    Attributes:
        contest: the two models.
        judged_by: what the truth was taken from; `noise` where that holds of some families only.
        tallies: by output and level.
        judged: how many probes of each family were judged.
        complete: whether every family was.
        refused: why this is no verdict, or empty.
        doubtful: whether that is because the oracle cannot be believed.
        failure: how the candidate failed to run, or empty.
        notes: for the user.
    """

    def __init__(self, contest: Contest, judged_by: Literal["oracle", "noise"]) -> None:
        self.contest = contest
        self.judged_by = judged_by
        self.tallies: dict[tuple[str, Level], Tally] = {}
        self.judged: Counter[str] = Counter()
        self.refused = ""
        self.doubtful = False
        self.complete = False
        self.failure = ""
        self.notes: list[str] = []

    def add(
        self,
        level: Level,
        family: str,
        truth: Values,
        reference: Values,
        candidate: Values,
        noise: list[Values],
    ) -> None:
        """Adds what one probe showed at one level."""
        for name, value in reference.items():
            if name not in truth or name not in candidate:
                continue
            if name not in self.contest.outputs and candidate[name].shape != value.shape:
                continue  # an inner value may be laid out in another way
            tally = self.tallies.get((name, level))
            if tally is None:
                absolute = name in self.contest.absolute
                dtype = reference[self.contest.owners.get(name, name)].dtype.name
                precision = TF32_PRECISION if level == TF32 else self.contest.precision
                tally = Tally(name, dtype, precision, absolute=absolute)
                self.tallies[name, level] = tally
            results = [value, candidate[name]]
            results += [other[name] for other in noise if name in other and other[name].shape == value.shape]
            if name in self.contest.axes and truth[name].shape == value.shape:
                results = [aligned(result, truth[name], self.contest.axes[name]) for result in results]
            tally.add(family, truth[name], results[0], results[1], results[2:])

    def add_noise(self, level: Level, family: str, draw: int, truth: Values, reference: Values, moved: Values) -> None:
        """Adds what one more draw of moved inputs makes of the original, on a probe that was added before."""
        for name, value in reference.items():
            tally = self.tallies.get((name, level))
            if tally is None or name not in truth or name not in moved or moved[name].shape != value.shape:
                continue
            results = [value, moved[name]]
            if name in self.contest.axes and truth[name].shape == value.shape:
                results = [aligned(result, truth[name], self.contest.axes[name]) for result in results]
            tally.add_noise(family, draw, truth[name], results[0], results[1])

    def suspicious(self, level: Level, family: str) -> bool:
        """Whether a family alone would fail the candidate at a level."""
        return any(tally.suspicious(family) for (_, at), tally in self.tallies.items() if at == level)

    def candidate(self, probe: Probe, level: Level) -> Values | None:
        """Runs the candidate; that it fails where the reference runs is a verdict."""
        try:
            return self.contest.run(1, level, probe.inputs)
        except TargetError as error:
            self.failure = self.failure or f"{error} (probes {probe.family!r}, optimizer {level})"
            return None

    def verdicts(self) -> list[OutputParity]:
        """One verdict for each output and level."""
        return [tally.verdict(level) for (_, level), tally in self.tallies.items()]

    @property
    def blind(self) -> frozenset[tuple[str, Level]]:
        """The outputs, and the levels, of which no probe made a finite element: nothing is known of them.

        A single probe may well be blind; without inputs there is none other, and what it makes is all there is.
        """
        if not self.contest.reference.graph.inputs:
            return frozenset()
        outputs = self.contest.outputs
        return frozenset(key for key, tally in self.tallies.items() if key[0] in outputs and tally.blind)

    def keep_whole(self, families: Iterable[str]) -> frozenset[str]:
        """Forgets the families of which not all probes were judged, and gives those that remain.

        Args:
            families: the family of each probe.
        """
        whole = frozenset(family for family, count in Counter(families).items() if self.judged[family] >= count)
        for tally in self.tallies.values():
            for family in [family for family in tally.families if family not in whole]:
                del tally.families[family]
        self.judged = Counter({family: self.judged[family] for family in whole})
        return whole

    @property
    def probes(self) -> int:
        """How many probes were judged."""
        return self.judged.total()

    @property
    def failed(self) -> bool:
        """Whether what has been gathered is enough to fail the candidate."""
        return bool(self.failure) or not all(verdict.passed for verdict in self.verdicts())

    def marginal(self) -> bool:
        """Whether the only failures are ratios that chance may explain."""
        failed = [verdict for verdict in self.verdicts() if not verdict.passed]
        return (
            bool(failed)
            and not self.failure
            and all(
                math.isfinite(v.ratio) and v.ratio <= RATIO * MARGIN and v.channel_ratio <= CHANNEL_RATIO * MARGIN
                for v in failed
            )
        )


def aligned(y: Array, truth: Array, axis: int) -> Array:
    """y with the mean that the truth has along an axis: a Softmax behind it sees no difference."""
    means = (array.astype(np.float64).mean(axis=axis, keepdims=True) for array in (truth, y))
    return np.asarray(y + (next(means) - next(means)))


def judge(contest: Contest, deck: Deck, seeds: int, budget: float, say: Say) -> Judgement:
    """Compares both models with the oracle, or with the original's own noise where that cannot judge."""
    judgement = judge_by_oracle(contest, deck, seeds, budget, say)
    if not judgement.refused:
        return judgement
    refused = judgement.refused
    if judgement.doubtful:
        judgement = Judgement(contest, "noise")
    if not judgement.failed:
        judge_by_noise(judgement, deck, seeds, budget, say)
    judgement.notes.insert(0, refused)
    return judgement


def judge_by_oracle(contest: Contest, deck: Deck, seeds: int, budget: float, say: Say) -> Judgement:
    """Compares both models with y64 on every probe, as far as the budget goes."""
    judgement = Judgement(contest, "oracle")
    quantised = {node.op_type for node in contest.reference.graph.all_nodes()} & _QUANTISED
    if quantised:
        judgement.refused = (
            f"judged by its own noise: the model quantises its activations ({', '.join(sorted(quantised))})"
        )
        return judgement
    held = oracle_bytes(contest.reference)
    if held > ORACLE:
        judgement.refused = (
            f"judged by its own noise: the float64 oracle would hold {held / 1e9:.1f} GB of weights, more than "
            f"{ORACLE / 1e9:.1f} GB"
        )
        return judgement
    watch = Stopwatch()
    try:
        truths = _Truths(contest, watch, budget)
        for seed in range(ROUNDS * seeds):
            if seed >= seeds and not judgement.marginal():
                break
            share = 2 if judgement.marginal() else 4  # what chance may explain is worth another seed
            if seed and watch.seconds > budget / share:
                judgement.notes.append(f"the budget of {budget:g} s allowed {seed} of {seeds} seeds")
                break
            hands = _hands(deck, seed)
            ran = contest.rehearse([inputs for _, inputs in hands], (budget - watch.seconds) / 2)
            for probe, (_, shifted) in hands[:ran]:
                say(f"judging probes {probe.family!r}, seed {seed + 1}")
                if not _judge_probe(judgement, deck, truths, probe, shifted, seed):
                    return judgement
            if ran < len(hands):
                raise OracleError("the other probes would exceed the budget")
            judgement.complete = True
            judgement.refused = _doubt(contest, judgement, truths.oracle, deck)
            if judgement.refused:
                judgement.doubtful = True
                break
    except OracleError as error:
        families = len(judgement.judged)
        if judgement.complete:
            judgement.notes.append(f"the oracle judged {judgement.probes} probes, then stopped: {error}")
        elif families:
            judgement.refused = f"the float64 oracle judged {families} families, its own noise the others: {error}"
        else:
            judgement.refused = f"judged by its own noise: the float64 oracle judged no family: {error}"
    _note_runtime(judgement)
    return judgement


class _Truths:
    """The oracle on a time limit."""

    def __init__(self, contest: Contest, watch: Stopwatch, budget: float) -> None:
        self.oracle = contest.oracle()
        self._contest = contest
        self._watch, self._budget = watch, budget
        self._names = [*contest.outputs, *(hidden.names[0] for hidden in contest.hidden)]
        self._slowness = 1.5
        fine = contest.precision.name == "float64" and isinstance(self.oracle, Oracle)
        self._shaken = Shaken(contest.truth, contest.precision.unit) if fine else None

    def of(self, probe: Probe, seconds: float) -> Values:
        """y64, by title.

        Args:
            probe: the inputs.
            seconds: how long the runtime took, from which the oracle's time is estimated: numpy's float64 was never
                seen faster than half as much again, and after the first probe its own slowness is known.

        Raises:
            OracleError: it cannot be computed, or not in time.
        """
        start = self._watch.seconds
        if start + self._slowness * seconds > self._budget:
            raise OracleError("the next probe would exceed the budget")
        values = self.oracle.run(probe.inputs, self._names, deadline=self._deadline)
        self._slowness = max(1.5, (self._watch.seconds - start) / max(seconds, 1e-4))
        return self._contest.titled(values, 0)

    @property
    def _deadline(self) -> float:
        return wall_deadline(self._budget - self._watch.seconds)

    def roundings(self, probe: Probe, truth: Values) -> list[Values]:
        """What roundings make of the original, by title, where the oracle is no finer than it: in float64.

        Args:
            probe: the inputs.
            truth: y64; what a rounding made NaN or infinite is taken from it, so that it hides no element.

        Raises:
            OracleError: it cannot be computed, or not in time.
        """
        if self._shaken is None:
            return []
        runs = (self._shaken.run(probe.inputs, self._names, deadline=self._deadline) for _ in range(_ROUNDINGS))
        return [
            {name: _where_finite(value, truth.get(name)) for name, value in self._contest.titled(values, 0).items()}
            for values in runs
        ]


def _where_finite(rounded: Array, truth: Array | None) -> Array:
    if truth is None or rounded.dtype.kind != "f" or rounded.shape != truth.shape:
        return rounded
    return np.where(np.isfinite(rounded), rounded, truth)


def _hands(deck: Deck, seed: int) -> list[tuple[Probe, tuple[Inputs, Inputs]]]:
    """The probes of a seed, each with its inputs, and with these moved by one unit in the last place."""
    return [(probe, (probe.inputs, moved(probe.inputs, seed))) for probe in deck.draw(seed)]


def _judge_probe(judgement: Judgement, deck: Deck, truths: _Truths, probe: Probe, shifted: Inputs, seed: int) -> bool:
    """Adds one probe; False where the candidate does not run on it."""
    contest = judgement.contest
    watch = Stopwatch()
    try:
        reference = contest.run(0, "disabled", probe.inputs)
    except TargetError as error:
        judgement.notes.append(deck.told(probe, error))
        return True
    truth = truths.of(probe, watch.seconds)
    roundings = truths.roundings(probe, truth)
    noise = [contest.run(0, "disabled", shifted), *roundings]
    for level in contest.levels:
        candidate = judgement.candidate(probe, level)
        if candidate is None:
            return False
        if level == "enabled":
            # the original need not be more accurate than it is as written
            noise = [*noise, reference]
            reference = contest.run(0, level, probe.inputs)
        elif level == TF32:
            # against the original under TF32: what float32 would have made is no measure
            noise = [contest.run(0, level, shifted), *roundings]
            reference = contest.run(0, level, probe.inputs)
        judgement.add(level, probe.family, truth, reference, candidate, noise)
        _draw_again(judgement, level, probe, truth, reference, seed)
    judgement.judged[probe.family] += 1
    return True


def _draw_again(judgement: Judgement, level: Level, probe: Probe, truth: Values, reference: Values, seed: int) -> None:
    """Moves the inputs again where the family would fail, until what rounding makes of the original explains it."""
    if judgement.contest.streams:
        return  # that would open its session again
    for draw in range(1, DRAWS + 1):
        if not judgement.suspicious(level, probe.family):
            return
        try:
            values = judgement.contest.run(0, level, moved(probe.inputs, seed, draw))
        except TargetError:
            continue
        judgement.add_noise(level, probe.family, draw, truth, reference, values)


def judge_by_noise(judgement: Judgement, deck: Deck, seeds: int, budget: float, say: Say) -> None:
    """Holds the candidate's distance from the original against the original's own noise, in families not yet judged."""
    contest, judged = judgement.contest, judgement.keep_whole(probe.family for probe in deck.draw(0))
    judgement.judged_by = "noise"
    watch = Stopwatch()
    for seed in range(ROUNDS * seeds):
        if seed >= seeds and not judgement.marginal():
            break
        hands = [hand for hand in _hands(deck, seed) if hand[0].family not in judged]
        ran = contest.rehearse([inputs for _, inputs in hands], budget - watch.seconds, shaken=True)
        for number, (probe, (_, shifted)) in enumerate(hands):
            if number == ran or (judgement.probes and not contest.streams and watch.seconds > budget):
                judgement.notes.append(f"the budget of {budget:g} s allowed {judgement.probes} probes")
                return
            say(f"measuring the noise of probes {probe.family!r}, seed {seed + 1}")
            try:
                base = contest.run(0, "disabled", probe.inputs)
                others = {level: contest.run(0, level, probe.inputs) for level in contest.levels[1:]}
            except TargetError as error:
                judgement.notes.append(deck.told(probe, error))
                continue
            noise = [
                contest.run(0, "disabled", shifted),
                contest.run(2, "disabled", probe.inputs),
            ]
            for level in contest.levels:
                candidate = judgement.candidate(probe, level)
                if candidate is None:
                    return
                if level == TF32:
                    noise = [contest.run(0, level, shifted)]
                reference = others.get(level, others.get("enabled", base))
                judgement.add(level, probe.family, base, {**base, **reference}, candidate, noise)
                _draw_again(judgement, level, probe, base, {**base, **reference}, seed)
            judgement.judged[probe.family] += 1


def _doubt(contest: Contest, judgement: Judgement, oracle: Truth, deck: Deck) -> str:
    """Why the oracle is not to be believed, or nothing."""
    for (name, level), tally in judgement.tallies.items():
        if level == "disabled" and name not in contest.sigmoids and tally.doubtful(SANE):
            probe = next(deck.draw(0))
            where = first_divergence(contest, oracle, probe.inputs)
            return (
                f"oracle and runtime disagree about the original's {name!r}, first at {where}: judged by its own noise"
            )
    return ""


def _note_runtime(judgement: Judgement) -> None:
    """Says where the original has no accuracy to lose, and where the runtime's own optimizer changes its results."""
    for name in judgement.contest.outputs:
        tally = judgement.tallies.get((name, "disabled"))
        lost = [family for family in tally.families if tally.lost(family)] if tally else []
        if tally and lost:
            judgement.notes.append(
                f"one unit in the last place of the inputs moves the original's {name!r} by "
                f"{max(map(tally.conditioning, lost)):.1e} on probes {', '.join(map(repr, lost))}: they prove nothing"
            )
        written, optimized = (judgement.tallies.get((name, level)) for level in LEVELS)
        if written is None or optimized is None:
            continue
        for family, sums in optimized.families.items():
            error = sums.error("reference")
            if error > max(judgement.contest.precision.ceiling, 30 * written.noise(family)):
                judgement.notes.append(
                    f"ONNX Runtime's own optimizer changes the original's {name!r} by {error:.1e} on probes {family!r}"
                )
                break

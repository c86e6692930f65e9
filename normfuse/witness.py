"""One probe on which a candidate fails: `Witness`, against which other candidates are held quickly.

A verdict rests on many probes; to look for its cause one of them is enough. What the reference makes of it, and what it
should be, is computed once.
"""

from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from normfuse.contest import Array, Contest, Values, hidden_values, with_outputs
from normfuse.errors import NormfuseError, TargetError
from normfuse.judging import Deck, Judgement, judge
from normfuse.metric import OutputParity
from normfuse.oracle import Oracle, OracleError
from normfuse.probes import Probe, moved
from normfuse.runtime import LEVELS, Level

SEEDS = 6
"""How many sets of probes are looked through for one that fails."""

_BUDGET = 60.0
"""Seconds that the oracle may take for one probe."""


@dataclass(frozen=True, slots=True)
class Witness:
    """A probe on which a candidate fails.

    Attributes:
        probe: the inputs.
        level: the optimization level at which it fails, `disabled` where it fails at both.
        verdict: on the output that fails most; None where the candidate does not run.
        reason: why it fails, in one line.
        judged_by: what the truth is taken from.
    """

    probe: Probe
    level: Level
    verdict: OutputParity | None
    reason: str
    judged_by: Literal["oracle", "noise"]

    @property
    def inputs(self) -> dict[str, Array]:
        """The inputs by name."""
        return self.probe.inputs


def judge_probe(contest: Contest, probe: Probe) -> Witness | None:
    """How a candidate fails on one probe, or None where it does not."""
    judgement = judge(contest, Deck([probe], None), 1, _BUDGET, lambda doing: None)
    if judgement.failure:
        at_once = "optimizer disabled" in judgement.failure
        level: Level = "disabled" if at_once else "enabled"
        return Witness(probe, level, None, judgement.failure, judgement.judged_by)
    failed = [verdict for verdict in judgement.verdicts() if not verdict.passed]
    for level in contest.levels:
        worst = max((one for one in failed if one.level == level), key=lambda one: one.ratio, default=None)
        if worst is not None:
            reason = f"output {worst.name!r}, optimizer {level}: {worst.reason}"
            return Witness(probe, level, worst, reason, judgement.judged_by)
    return None


def fails(before: ir.Model, after: ir.Model, inputs: dict[str, Array], level: Level, provider: str) -> bool:
    """Whether a candidate fails at a level on these inputs; a reference that does not run proves nothing."""
    try:
        levels = LEVELS if level == "enabled" else LEVELS[:1]
        contest = Contest(before, after, provider, levels=levels)
        judgement = judge(contest, Deck([Probe("data", inputs)], None), 1, _BUDGET, lambda doing: None)
    except NormfuseError:
        return False
    return bool(judgement.failure) or any(not one.passed and one.level == level for one in judgement.verdicts())


def find_witness(contest: Contest, deck: Deck, verdicts: Iterable[OutputParity]) -> Witness | None:
    """The first probe on which the candidate fails, in the families first that fail most; None where there is none."""
    families: dict[str, float] = {}
    for verdict in verdicts:
        if not verdict.passed:
            order = (verdict.level == "disabled") * 1e9 + min(verdict.ratio, 1e8)
            families[verdict.family] = max(order, families.get(verdict.family, 0.0))
    for seed in range(SEEDS):
        probes = sorted(deck.draw(seed), key=lambda probe: -families.get(probe.family, 0.0))
        for probe in probes:
            if (found := judge_probe(contest, probe)) is not None:
                return found
    return None


class Gauge:
    """What the reference makes of a failing probe, and what it should be: holds other candidates against it.

    Attributes:
        contest: the reference, and the candidate that fails.
        witness: the probe.
    """

    def __init__(self, contest: Contest, witness: Witness) -> None:
        """Runs the reference, and the oracle."""
        self.contest = contest
        self.witness = witness
        inputs, level = witness.inputs, witness.level
        self._reference = contest.run(0, "disabled", inputs)
        self._noise = [contest.run(0, "disabled", moved(inputs, 0))]
        self._truth = self._reference
        names = [*contest.outputs, *(hidden.names[0] for hidden in contest.hidden)]
        if (truth := truth_of(contest, witness, names)) is not None:
            self._truth = contest.titled(truth, 0)
        if level != "disabled":
            self._noise.append(self._reference)
            self._reference = contest.run(0, level, inputs)

    def fails(self, candidate: ir.Model) -> bool:
        """Whether another candidate fails on the probe in the same way; not running counts only where that is it."""
        contest, level = self.contest, self.witness.level
        # what stands before a Sigmoid may bear another name in each candidate
        hidden = {one.title: one.names[1] for one in hidden_values(contest.reference, candidate)}
        watched = with_outputs(candidate, list(hidden.values())) if level == "disabled" else candidate
        try:
            values = contest.open(watched, level, "the candidate").run(self.witness.inputs)
        except TargetError:
            return self.witness.verdict is None
        titles = dict(zip(contest.outputs, contest.outputs, strict=True)) | hidden
        found = {title: np.asarray(values[name]) for title, name in titles.items() if name in values}
        judgement = Judgement(contest, self.witness.judged_by)
        judgement.add(level, self.witness.probe.family, self._truth, self._reference, found, self._noise)
        seen = self.witness.verdict
        if seen is None:
            return judgement.failed
        # another output, or this one by a hair, would be another failure: rounding adds up in a single probe
        tally = judgement.tallies.get((seen.name, level))
        verdict = None if tally is None else tally.verdict(level)
        return verdict is not None and not verdict.passed and verdict.ratio >= min(seen.ratio, seen.ratio**0.5)


def truth_of(contest: Contest, witness: Witness, names: Collection[str]) -> Values | None:
    """What values of the reference should be by the oracle; None where it cannot judge."""
    if witness.judged_by == "oracle":
        with suppress(OracleError):
            return Oracle(contest.reference).run(witness.inputs, names)
    return None

"""Proves that a candidate computes what a reference computes: `verify`.

Two models are never judged against each other alone, or a better model would fail. Each is compared with the float64
oracle (`normfuse.oracle`) on probes that tell near-equal formulas apart (`normfuse.probes`), by the metric and the
limits of `normfuse.metric`; first with ONNX Runtime's optimizer off (the proof), then with it on (what the user gets).

With CUDA a float32 model is judged a third time, with TF32 on, as ONNX Runtime runs it by default: products then have
ten bits behind the leading one, so the candidate is held against the original under TF32 and the u of TF32, 2⁻¹¹, never
against what float32 would have made. That level is a gate like the other two: it is what users get.

Where ONNX Runtime is not installed, onnx's reference evaluator runs both models as they are written, in their own
types; a note says so.

What a Sigmoid, Tanh or Softmax at an output would hide is judged in front of it as well: a detector that answers 1e-8
everywhere is not proved by its zeros.

Where the oracle cannot judge (it does not run, it exceeds its time, it disagrees with the runtime about the original,
or the model quantises its activations), the candidate's distance from the original is held against the original's own
noise: its spread between the runtime's levels and under inputs and weights moved by one unit in the last place. Outputs
that depend on a random operator have nothing but noise: they are refused (`normfuse.randomness`).
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from os import PathLike
from typing import Any, Literal

import onnx_ir as ir

from normfuse.apart import FORMULA, are_apart, take_apart
from normfuse.arguments import check
from normfuse.contest import Array, Contest
from normfuse.errors import NormfuseError, ParityError
from normfuse.foreign import Foreign
from normfuse.interface import interface_difference
from normfuse.judging import Deck, Judgement, judge
from normfuse.metric import BLIND, UNJUDGED, OutputParity
from normfuse.model import Source, load
from normfuse.printable import printable
from normfuse.probes import data_probes, plan
from normfuse.randomness import unprovable
from normfuse.worst import Worst, worst_elements

Data = str | PathLike[str] | Mapping[str, Array] | Collection[Any] | None


@dataclass(frozen=True, slots=True)
class Parity:
    """Whether a candidate computes what a reference computes.

    Attributes:
        passed: the verdict.
        ratio: the candidate's error in units of the reference's, worst output and level; at most 2 passes.
        outputs: how each output fared at each level.
        notes: what was and was not judged, and what else the user should know.
        judged_by: `oracle` (the float64 oracle) or `noise` (the reference's own noise).
        probes: how many sets of inputs were judged.
        reason: why it failed, in one line.
        worst: the worst element of each output that failed, as far as it was found.
    """

    passed: bool
    ratio: float
    outputs: tuple[OutputParity, ...]
    notes: tuple[str, ...] = ()
    judged_by: Literal["oracle", "noise"] = "oracle"
    probes: int = 0
    reason: str = ""
    worst: tuple[Worst, ...] = ()

    @property
    def judged(self) -> bool:
        """Whether anything could be judged; where not, it has not passed."""
        return not self.reason.startswith(UNJUDGED)

    def against(self, title: str) -> str:
        """Why it failed, as what is said of a result that was made of `title`."""
        return f"the result does not compute what the {title} computes: {self.reason}" if self.judged else self.reason

    @property
    def bits_lost(self) -> float:
        """log2 of the ratio, at least 0: how many bits of accuracy the candidate gives away."""
        return max(0.0, math.log2(self.ratio)) if self.ratio > 0 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """The parity as JSON-ready values; NaN and infinities become None."""
        values: dict[str, Any] = _finite({**asdict(self), "bits_lost": self.bits_lost})
        return values

    def __str__(self) -> str:
        verdict = "passed" if self.passed else f"FAILED: {self.reason}"
        lines = [
            f"parity {verdict}",
            f"judged by {self.judged_by} on {self.probes} probes: error ratio {self.ratio:.2f}, "
            f"{self.bits_lost:.1f} bits lost",
        ]
        lines += [
            f"  {output.name} {output.dtype}, optimizer {output.level}: E {output.candidate:.1e}, original "
            f"{output.reference:.1e}, ratio {output.ratio:.2f}, most on {output.family or 'any'!r}"
            for output in self.outputs
        ]
        return "\n".join(map(printable, [*lines, *(f"  note: {note}" for note in self.notes)]))


def verify(
    reference: Source | Foreign,
    candidate: Source | Foreign,
    *,
    data: Data = None,
    seeds: int = 2,
    budget: float = 60.0,
    provider: str = "cpu",
    stand_in: bool = False,
    shapes: Mapping[str, Sequence[int] | int] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Parity:
    """Judges whether a candidate computes what a reference computes.

    Args:
        reference: the model as it was, or what is no ONNX model.
        candidate: the model as it became, or what is no ONNX model.
        data: inputs of the user's own to judge on besides the probes: an .npz file, arrays by input name, or several.
        seeds: how often each probe family is drawn.
        budget: seconds that the oracle may take; the noise of the reference judges what it leaves.
        provider: `cpu` or `cuda`, where both models run.
        stand_in: whether the CPU provider or the reference evaluator may run them where that provider is not here; a
            note says so.
        shapes: shapes by input name, or sizes by the name of a dynamic dimension.
        progress: called with what is being done.

    Returns:
        The verdict; a failing one is returned, not raised.

    Raises:
        ModelError: a model cannot be read.
        TargetError: ONNX Runtime cannot load a model, or has not the provider.
        NormfuseError: no inputs could be made for the reference.
    """
    check(data=data, seeds=seeds, budget=budget, provider=provider, shapes=shapes, progress=progress)
    say = progress or (lambda doing: None)
    models = _loaded(reference), _loaded(candidate)
    if difference := interface_difference(*models):
        return Parity(False, math.inf, (), reason=difference.what, notes=(difference.hint,))
    if random := next(filter(None, map(unprovable, models)), ""):
        return Parity(False, math.inf, (), reason=random)
    say("loading both models")
    contest = Contest(*models, provider, stand_in=stand_in)
    deck, notes = deck_of(contest, data, shapes)
    notes = [*contest.notes, *(note for model in models if isinstance(model, Foreign) for note in model.notes), *notes]
    kept = {value.name for value in models[1].graph.inputs}
    lost = [str(value.name) for value in models[0].graph.inputs if value.is_initializer() and value.name not in kept]
    if lost:
        named = ", ".join(map(repr, lost[:3])) + (f" and {len(lost) - 3} more" if len(lost) > 3 else "")
        notes.append(f"initializers that a caller could set are constants in the candidate: {named}")
    judgement = judge(contest, deck, seeds, budget, say)
    rows = judgement.verdicts()
    if judgement.failed and are_apart(contest):
        rows = take_apart(contest, deck, judgement, seeds, budget, say)
    parity = _parity(judgement, rows, notes)
    if any(not row.passed for row in rows):
        say("looking for the worst elements")
        parity = replace(parity, worst=worst_elements(contest, deck, judgement, rows, seeds, budget))
    return parity


def _loaded(source: Source | Foreign) -> ir.Model:
    return source if isinstance(source, Foreign) else load(source)


def require(parity: Parity) -> None:
    """Lets a passing parity pass.

    Raises:
        ParityError: it failed; the message is its reason.
    """
    if not parity.passed:
        raise ParityError(parity.reason)


def _parity(judgement: Judgement, outputs: Sequence[OutputParity], notes: list[str]) -> Parity:
    """The verdict on all outputs."""
    judged = {name for name, _ in judgement.tallies}
    moving = {name for (name, _), tally in judgement.tallies.items() if not tally.still and not tally.blind}
    inner = {output: f"; judged as {title!r}" for title, output in judgement.contest.owners.items() if title in moving}
    for name in judgement.contest.outputs:
        if name in judged - moving:
            notes.append(f"the probes do not move output {name!r}" + inner.get(name, ""))
    failed = [verdict for verdict in outputs if not verdict.passed]
    outputs = [
        replace(row, passed=False, ratio=math.inf, reason=BLIND)
        if row.passed and (row.name, row.level) in judgement.blind
        else row
        for row in outputs
    ]
    blind = next((row for row in outputs if row.reason == BLIND), None)
    reason = judgement.failure
    if not reason and failed:
        how = "in float64" if failed[0].level == FORMULA else f"optimizer {failed[0].level}"
        reason = f"output {failed[0].name!r}, {how}: {failed[0].reason}"
    if not reason and blind is not None:
        reason = f"{UNJUDGED}: output {blind.name!r} {blind.reason} (give --data)"
    if not reason and not judgement.probes:
        reason = f"{UNJUDGED}: the reference ran on no probe"
    ratio = math.inf if judgement.failure or not outputs else max(verdict.ratio for verdict in outputs)
    everything = tuple(dict.fromkeys([*notes, *judgement.notes]))
    return Parity(not reason, ratio, tuple(outputs), everything, judgement.judged_by, judgement.probes, reason)


def of_unchanged(parity: Parity) -> Parity:
    """The verdict on a model that nothing was changed of, where nothing could be judged: it computes what it computes.

    Any other verdict stays as it is.
    """
    if parity.judged:
        return parity
    rows = tuple(row if row.passed else replace(row, passed=True, ratio=1.0, reason="") for row in parity.outputs)
    note = f"{parity.reason}; it passes, as nothing was changed: the result is the same model"
    return replace(parity, passed=True, ratio=1.0, outputs=rows, reason="", notes=(*parity.notes, note))


def deck_of(contest: Contest, data: Data, shapes: Mapping[str, Sequence[int] | int] | None) -> tuple[Deck, list[str]]:
    """The probes, and notes about them."""
    model = contest.reference
    if isinstance(model, Foreign) and model.like is not None:
        model = model.like
    own = data_probes(model, data)
    try:
        return Deck(own, plan(model, contest.accepts, shapes)), []
    except NormfuseError as error:
        if not own or shapes:  # what was asked for is not left out with a note
            raise NormfuseError(f"{error}{contest.refused and ': '}{contest.refused}") from error
        return Deck(own, None), [f"judged on the given data only: {error}"]


def _finite(value: Any) -> Any:
    """The same with None for NaN and infinities, which JSON does not have."""
    match value:
        case float() if not math.isfinite(value):
            return None
        case dict():
            return {key: _finite(item) for key, item in value.items()}
        case list() | tuple():
            return [_finite(item) for item in value]
    return value

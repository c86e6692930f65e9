"""A certificate for each change: the part of the graph around it, run as it was and as it became.

A change is judged where it was made, by the same probes, oracle and limits as a whole model (`normfuse.verification`):
what flows into the part is drawn at random, so that a fault which the rest of the model would hide shows. A change that
fails is rolled back alone: the model is rewritten anew with that change forbidden.

Parts are judged with ONNX Runtime's optimizer off, first at smaller sizes where the part runs at any; a verdict against
a change is only given at its true sizes.
"""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import onnx_ir as ir

from normfuse.contest import Contest, takes_bfloat16
from normfuse.errors import NormfuseError, TargetError
from normfuse.judging import Deck, Judgement, judge
from normfuse.metric import BLIND, OutputParity
from normfuse.overflow import overflow
from normfuse.passes.access import RefusedError
from normfuse.passes.journal import Journal
from normfuse.passes.region import DisturbedError, Region
from normfuse.ports import BATCH, Port, inputs_of
from normfuse.probes import Plan, Probe, plan
from normfuse.randomness import unprovable
from normfuse.report import Certificate, Change
from normfuse.runtime import session
from normfuse.stopwatch import Stopwatch

ATTEMPTS = 8
"""How often a model is rewritten anew to leave out what failed."""

_LARGE = 1 << 14
"""Elements from which on an input is tried at smaller sizes first."""

_SMALL, _MODULUS = 8, 8
"""A size d is tried as _SMALL + d mod _MODULUS: strides and groups of up to eight see the same remainder."""

_SIZES = (9, 12, 16, 7, 32, 64)
"""Sizes to try for a dimension that is not known."""

_MOST_SIZES = 4
"""So many sizes of weights are tried for it at most."""

_MANY = 1 << 10
"""Sizes of weights above this are tried last: a vocabulary is rarely the length of a sequence; squared it is much."""

_SEEDS = 1


class Certifier(Journal):
    """Judges each change when it is made.

    Attributes:
        certificates: what became of each change, in the order in which they were made.
        failed: the changes that failed, with the reason.
    """

    def __init__(
        self,
        failed: Mapping[tuple[str, tuple[str, ...]], str],
        *,
        provider: str = "cpu",
        budget: float = 60.0,
        say: Callable[[str], None] | None = None,
    ) -> None:
        """Forbids what has failed before.

        Args:
            failed: reasons by rule and nodes.
            provider: `cpu`, `portable` or `cuda`: where the model will run.
            budget: seconds that all certificates together may take.
            say: called with what is being done.
        """
        super().__init__(lambda change: failed.get((change.rule, change.nodes)))
        self.certificates: list[Certificate] = []
        self.failed: dict[tuple[str, tuple[str, ...]], str] = {}
        self._provider = provider
        self._budget, self._left = budget, budget
        self._say = say or (lambda doing: None)

    def before(self, nodes: Collection[ir.Node]) -> object:
        """Cuts out the nodes that a change will touch."""
        if self._left <= 0:
            return f"the budget of {self._budget:g} s for certificates is used up"
        watch = Stopwatch()
        try:
            return Region(self.model, nodes)
        except RefusedError as refused:
            return str(refused)
        finally:
            self._left -= watch.seconds

    def after(self, seen: object, change: Change, opset: int | None = None) -> None:
        """Judges a change."""
        if not isinstance(seen, Region):
            self.certificates.append(Certificate(change.rule, change.nodes, (), (), "not judged", reason=str(seen)))
            return
        self._say(f"judging {change.rule} of {change.nodes[0] if change.nodes else 'the model'}")
        watch = Stopwatch()
        certificate = self._certificate(seen, change, opset)
        self._left -= watch.seconds
        self.certificates.append(certificate)
        if certificate.verdict == "failed":
            self.failed[change.rule, change.nodes] = f"its certificate failed: {certificate.reason}"

    def _certificate(self, region: Region, change: Change, opset: int | None) -> Certificate:
        after: tuple[str, ...] = ()
        try:
            now, after = region.after(self.model, opset)
            found = certify(region.before, now, region.exact, self._provider, self._left)
        except DisturbedError as error:
            return Certificate(change.rule, change.nodes, region.names, after, "failed", reason=str(error))
        except (NormfuseError, RefusedError) as error:
            return Certificate(change.rule, change.nodes, region.names, after, "not judged", reason=str(error))
        return Certificate(
            change.rule,
            change.nodes,
            region.names,
            after,
            found.verdict,
            found.judged_by,
            found.families,
            found.seeds,
            found.ratio if math.isfinite(found.ratio) else 0.0,
            found.bits_lost if math.isfinite(found.bits_lost) else 0.0,
            found.reason,
            found.family,
        )


@dataclass(frozen=True, slots=True)
class Found:
    """What two versions of a part showed.

    Attributes:
        verdict: `passed`, `failed` or `not judged`.
        judged_by: `oracle` or `noise`.
        families: the probe families that were drawn.
        seeds: how often each of them was.
        ratio: the error of what it became in units of what it was, worst output.
        reason: why it failed or was not judged, in one line.
        family: the probe family with the largest ratio; empty where no ratio was measured.
    """

    verdict: Literal["passed", "failed", "not judged"]
    judged_by: str = ""
    families: tuple[str, ...] = ()
    seeds: int = 0
    ratio: float = 0.0
    reason: str = ""
    family: str = ""

    @property
    def bits_lost(self) -> float:
        """log2 of the ratio, at least 0."""
        return max(0.0, math.log2(self.ratio)) if self.ratio > 0 else 0.0


def certify(
    before: ir.Model, after: ir.Model, truth: ir.Model | None = None, provider: str = "cpu", budget: float = 60.0
) -> Found:
    """Judges what became of a part of a model.

    Args:
        before: the part as it was.
        after: the part as it became.
        truth: the part as it was, with the weights that are known in float64.
        provider: where the model will run.
        budget: seconds that it may take.

    Raises:
        NormfuseError: no inputs could be made for the part.
    """
    if reason := unprovable(before):
        return Found("not judged", reason=reason)
    small = _small_shapes(before)
    if small:
        try:
            found = _judged(
                _resized(before, small), _resized(after, small), truth and _resized(truth, small), provider, budget
            )
        except NormfuseError:
            found = None  # it does not run at other sizes
        if found is not None and found.verdict == "passed":
            return found
    return _judged(before, after, truth, provider, budget)


def _judged(before: ir.Model, after: ir.Model, truth: ir.Model | None, provider: str, budget: float) -> Found:
    """Judges a part at the sizes of its inputs.

    Raises:
        NormfuseError: it runs on none that were tried.
    """
    enter = partial(Contest, before, after, provider, stand_in=True, levels=("disabled",), truth=truth)
    try:
        contest = enter()
    except TargetError as error:
        try:
            session(before, "disabled")
        except TargetError as unable:
            try:
                contest = enter(evaluates=True)  # bfloat16, say, has few kernels
            except TargetError:
                return Found("not judged", reason=f"the part cannot be run by itself: {unable}")
        else:
            return Found("failed", reason=f"the runtime does not take what was written: {error}")
    else:
        if contest.provider != "cuda" and takes_bfloat16(before):
            contest = enter(evaluates=True)
    deck = Deck([Probe("constant", {})], None)
    if inputs_of(contest.reference):
        drawn = plan(contest.reference, contest.accepts, None, partial(_candidates, _weight_sizes(contest.reference)))
        deck = Deck([], drawn)
        if not any(dtype is not None and dtype.is_floating_point() for dtype in _output_types(contest.reference)):
            deck = Deck(_few(drawn), None)
    judgement = judge(contest, deck, _SEEDS, budget, lambda doing: None)
    verdicts = judgement.verdicts()
    families = tuple(dict.fromkeys(family for tally in judgement.tallies.values() for family in tally.families))
    families = families or tuple(probe.family for probe in deck.draw(0))
    if not judgement.probes and not judgement.failure:
        return Found("not judged", reason="it ran on no probe: " + "; ".join(judgement.notes))
    worst = max(verdicts, key=lambda verdict: verdict.ratio, default=None)
    ratio, family = (0.0, "") if worst is None else (worst.ratio, worst.family)
    failed = [verdict for verdict in verdicts if not verdict.passed]
    reason = judgement.failure or (_told(failed[0]) if failed else "")
    if not reason and contest.provider != "cuda":
        reason = overflow(before, after, ((probe, contest.run(0, "disabled", probe.inputs)) for probe in deck.draw(0)))
    blind = sorted(name for name, _ in judgement.blind)
    if not reason and blind:
        return Found("not judged", reason=f"its value {blind[0]!r} {BLIND}")
    verdict: Literal["passed", "failed"] = "failed" if reason else "passed"
    return Found(verdict, judgement.judged_by, families, _seeds(judgement, deck), ratio, reason, family)


def _told(verdict: OutputParity) -> str:
    return f"{verdict.reason} (E {verdict.candidate:.1e}, before {verdict.reference:.1e})"


def _seeds(judgement: Judgement, deck: Deck) -> int:
    """How often each family was drawn: once, and again where chance may have explained a verdict."""
    return max(1, -(-judgement.probes // max(1, sum(1 for _ in deck.draw(0)))))


def _few(drawn: Plan) -> list[Probe]:
    """Probes for what computes integers, as sizes are: only the shapes of the inputs matter."""
    return [probe for probe in drawn.probes(0) if probe.family in ("scale 1", "batch 3", "second size")]


def _output_types(model: ir.Model) -> list[ir.DataType | None]:
    return [value.dtype for value in model.graph.outputs]


def _candidates(weights: tuple[int, ...], port: Port, axis: int) -> tuple[int, ...]:
    """Sizes to try for a dimension that is not known, best first: for channels those of the weights."""
    if axis == 0:
        return BATCH
    large = tuple(size for size in weights if size > _MANY)
    usual = tuple(size for size in weights if size <= _MANY)
    return (*usual, *_SIZES, *large) if axis == 1 else (*_SIZES, *usual, *large)


def _weight_sizes(model: ir.Model) -> tuple[int, ...]:
    """The sizes of all constants that are tensors, each once."""
    shapes = (value.const_value.shape for value in model.graph.initializers.values() if value.const_value is not None)
    sizes = dict.fromkeys(int(size) for shape in shapes for size in shape.numpy())
    return tuple(size for size in sizes if size > 1 and size not in _SIZES)[:_MOST_SIZES]


def _small_shapes(model: ir.Model) -> dict[str, tuple[int, ...]]:
    """Smaller sizes for large inputs: of all axes behind the channels; empty where none is large."""
    shapes: dict[str, tuple[int, ...]] = {}
    for value in inputs_of(model):
        if value.shape is None or len(value.shape) < 3:
            continue
        sizes = [dim for dim in value.shape if isinstance(dim, int) and dim > 0]
        if len(sizes) < len(value.shape) or math.prod(sizes) < _LARGE:
            continue
        shapes[str(value.name)] = (*sizes[:2], *(min(size, _SMALL + size % _MODULUS) for size in sizes[2:]))
    return shapes


def _resized(model: ir.Model, shapes: Mapping[str, tuple[int, ...]]) -> ir.Model:
    """A copy with inputs of these shapes, which says nothing of the shapes of what it computes."""
    copy = model.clone()
    for value in copy.graph.inputs:
        if str(value.name) in shapes:
            value.shape = ir.Shape(shapes[str(value.name)])
    nodes = [node for graph in copy.graphs() for node in graph]
    nodes += [node for function in copy.functions.values() for node in function.all_nodes()]
    for node in nodes:
        for output in node.outputs:
            output.shape = None
    return copy

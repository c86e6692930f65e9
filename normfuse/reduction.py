"""Finds what makes a candidate fail: `reduce`.

    verdict  →  one probe that fails  →  smallest set of changes  →  first value that diverges  →  smallest case

With one model alone it is optimized, and the changes are searched; of two models, ours or another optimizer's, only
what they compute is known.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from normfuse import cut
from normfuse.arguments import check
from normfuse.contest import Contest
from normfuse.culprits import minimal
from normfuse.cut import Case
from normfuse.divergence import Compared, Divergence
from normfuse.errors import NormfuseError
from normfuse.interface import interface_difference
from normfuse.model import Source, load
from normfuse.passes.journal import Journal
from normfuse.pipeline import Settings, check_rules, prove, rewrite
from normfuse.report import Change
from normfuse.schema import SCHEMA_VERSION
from normfuse.target import Target
from normfuse.verification import Data, Parity, deck_of, verify
from normfuse.witness import Gauge, Witness, find_witness

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Reduction:
    """Where a candidate fails, and by what.

    Attributes:
        parity: the verdict on the whole models.
        reason: why the candidate fails on one probe, in one line; empty where nothing diverges.
        family: that of the probe.
        level: the optimization level at which it fails; `enabled` where ONNX Runtime's own optimizer is what diverges.
        first: the first value that diverges, where one could be named.
        operators: what makes it in the reference and in the candidate.
        values: the values that bear the same name in both models, in order.
        changes: the smallest set of changes that fails; None where the candidate was given.
        changed: how many changes there were.
        case: the smallest case, or None where there is none.
        folder: where it was written.
        notes: for the user.
    """

    parity: Parity
    reason: str = ""
    family: str = ""
    level: str = ""
    first: str | None = None
    operators: tuple[str, str] = ("", "")
    values: tuple[Compared, ...] = ()
    changes: tuple[Change, ...] | None = None
    changed: int = 0
    case: Case | None = None
    folder: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def diverges(self) -> bool:
        """Whether the candidate fails."""
        return not self.parity.passed

    def to_dict(self) -> dict[str, Any]:
        """The reduction as JSON-ready values; NaN and infinities become None."""
        case = self.case and {
            "folder": self.folder,
            "nodes": list(self.case.sizes),
            "inputs": {name: list(array.shape) for name, array in self.case.inputs.items()},
            "output": self.case.output,
            "whole": self.case.whole,
        }
        return {
            "schema_version": SCHEMA_VERSION,
            "diverges": self.diverges,
            "reason": self.reason,
            "family": self.family,
            "level": self.level,
            "first": self.first,
            "operators": list(self.operators),
            "values": [_finite(asdict(row)) for row in self.values],
            "changes": None if self.changes is None else [asdict(change) for change in self.changes],
            "changed": self.changed,
            "case": case,
            "notes": list(self.notes),
            "parity": self.parity.to_dict(),
        }


def reduce(
    source: Source,
    candidate: Source | None = None,
    folder: str | Path | None = None,
    *,
    target: str | Target = "cpu",
    data: Data = None,
    seeds: int = 2,
    budget: float = 60.0,
    provider: str | None = None,
    shapes: Mapping[str, Sequence[int] | int] | None = None,
    progress: Say | None = None,
    threads: int | None = None,
    opset: int | None = None,
    select: Collection[str] = (),
    ignore: Collection[str] = (),
    freeze: bool | None = None,
) -> Reduction:
    """Finds the smallest thing that makes a candidate compute something else than a reference.

    Args:
        source: the reference.
        candidate: the model to compare with it; the reference as normfuse optimizes it where None.
        folder: where to write the case, a new or an empty folder; it is not written where None.
        target: what to optimize for, where no candidate is given; so are the arguments from `threads` on.
        data: inputs to judge on besides the probes, as `normfuse.verify` takes them.
        seeds: how often each probe family is drawn.
        budget: seconds that the oracle may take for the verdict.
        provider: `cpu` or `cuda`, where both models run; that of the target where None.
        shapes: as for `normfuse.verify`.
        progress: called with what is being done.
        threads: as for `normfuse.optimize`.
        opset: as for `normfuse.optimize`.
        select: as for `normfuse.optimize`.
        ignore: as for `normfuse.optimize`.
        freeze: as for `normfuse.optimize`.

    Raises:
        ModelError: a model cannot be read.
        TargetError: ONNX Runtime is missing, or cannot load a model.
        NormfuseError: no inputs could be made for the reference, or the folder cannot be written to.
    """
    check(target=target, threads=threads, opset=opset, select=select, ignore=ignore, freeze=freeze, folder=folder)
    check(data=data, seeds=seeds, budget=budget, shapes=shapes, progress=progress)
    if provider is not None:
        check(provider=provider)
    Target.parse(target, threads)
    check_rules(select, ignore)
    say = progress or (lambda doing: None)
    if folder is not None:
        cut.check_folder(folder)
    original = load(source)
    where = provider or (Target.parse(target).provider if candidate is None else "cpu")
    settings: Settings = {
        "threads": threads,
        "opset": opset,
        "select": select,
        "ignore": ignore,
        "freeze": freeze,
        "shapes": shapes,
    }
    left_out: set[tuple[str, tuple[str, ...]]] = set()
    made: list[Change] | None = None
    if candidate is None:
        model, report = prove(original, target, verify_budget=budget, data=data, progress=say, **settings)
        assert report.parity is not None
        parity, made = report.parity, report.changes
        left_out = {(rule, nodes) for rule, nodes, _ in report.left_out}
    else:
        model = load(candidate)
        parity = verify(
            original, model, data=data, seeds=seeds, budget=budget, provider=where, shapes=shapes, progress=say
        )
    if parity.passed:
        return Reduction(parity, changed=len(made or ()), changes=None if made is None else ())
    if interface_difference(original, model):
        return Reduction(parity, parity.reason, notes=("models of other inputs or outputs cannot be reduced yet",))
    if not parity.judged:
        return Reduction(parity, parity.reason)
    say("looking for a probe that fails")
    contest = Contest(original, model, where, stand_in=candidate is None)
    deck, _ = deck_of(contest, data, shapes)
    witness = find_witness(contest, deck, parity.outputs)
    if witness is None:
        return Reduction(parity, parity.reason, notes=("no single probe fails: only all of them together do",))
    notes: list[str] = []
    changes: tuple[Change, ...] | None = None
    if made is not None:
        changes, model = _culprits(original, made, left_out, Gauge(contest, witness), target, settings, say)
        if not changes:
            notes.append("it fails without any change, too: what is wrong is not in a rule")
        contest = Contest(original, model, where, stand_in=True)
    return _located(contest, model, witness, parity, folder, say, changes, len(made or ()), notes)


def _culprits(
    original: ir.Model,
    made: Sequence[Change],
    left_out: Collection[tuple[str, tuple[str, ...]]],
    gauge: Gauge,
    target: str | Target,
    settings: Settings,
    say: Say,
) -> tuple[tuple[Change, ...], ir.Model]:
    """The smallest set of changes that fails, and the model that they make."""
    keys = list(dict.fromkeys((change.rule, change.nodes) for change in made))
    tried = 0

    def made_by(some: Sequence[tuple[str, tuple[str, ...]]]) -> tuple[ir.Model, list[Change]]:
        allowed = set(some) - set(left_out)

        def forbid(change: Change) -> str | None:
            return None if (change.rule, change.nodes) in allowed else "left out to find what fails"

        model = original.clone()
        report = rewrite(model, target, journal=Journal(forbid), **settings)
        return model, report.changes

    def fails(some: Sequence[tuple[str, tuple[str, ...]]]) -> bool:
        nonlocal tried
        tried += 1
        say(f"trying {len(some)} of {len(keys)} changes ({tried})")
        return gauge.fails(made_by(some)[0])

    smallest = minimal(keys, fails)
    model, changes = made_by(smallest)
    return tuple(changes), model


def _located(
    contest: Contest,
    model: ir.Model,
    witness: Witness,
    parity: Parity,
    folder: str | Path | None,
    say: Say,
    changes: tuple[Change, ...] | None,
    changed: int,
    notes: list[str],
) -> Reduction:
    """The first value that diverges, and the case that shows it."""
    say("comparing the values of both models")
    divergence = Divergence(contest, model, witness)
    if witness.level == "enabled":
        notes.append(
            "as it is written the candidate is right: ONNX Runtime's own optimizer makes it compute something else"
        )
        if not divergence.seen:
            notes.append("with its values as outputs it computes the same: the table does not show where it fails")
    whole = Case(contest.reference, model, dict(witness.inputs), divergence.endpoint, whole=True)
    first, case = None, None
    for name, part in divergence.reduce(whole):
        say(f"confirming that {name!r} diverges")
        try:
            confirmed = not verify(part.before, part.after, data=part.inputs, seeds=1, provider=contest.provider).passed
        except NormfuseError:
            continue
        if confirmed:
            first, case = (None if part.whole else name), part
            break
    if case is None:
        notes.append("no part of the models shows it, nor this probe alone")
    written = None
    if case is not None and folder is not None:
        title = f"{case.output!r} of after.onnx is not what before.onnx computes."
        blamed = [f"Change: {change.rule} of {', '.join(change.nodes)}." for change in changes or ()]
        detail = "\n".join([f"In the whole model: {witness.reason}.", *blamed])
        written = str(cut.write(case, folder, title, detail, contest.provider))
    return Reduction(
        parity,
        witness.reason,
        witness.probe.family,
        witness.level,
        first,
        divergence.operators(first) if first is not None else ("", ""),
        tuple(divergence.table),
        changes,
        changed,
        case,
        written,
        tuple(notes),
    )


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}

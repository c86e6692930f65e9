"""`Tuner`: for each normalization the form that is fastest on this machine, of those that lose no accuracy.

The forms are what the rows of LOWERINGS write, whether or not the table finds that they suit, and the nodes as they
were. Each stands in a small model with its γ and β, at the sizes that it has in the net; all are timed in turn in ONNX
Runtime, its optimizer on, with the threads of the target. A form takes the place of the table's choice where

    third quartile over the rounds r of (t_form[r] / t_table[r]) ≤ 0.97

twice, the second time against it alone, and where the verdict of `normfuse.verify` passes it. Of what stands around a
normalization only convolutions right in front and behind are timed with it (`passes.forms`).
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from normfuse import __version__
from normfuse.errors import NormfuseError
from normfuse.passes.access import RefusedError, dims
from normfuse.passes.excerpt import sizes_of
from normfuse.passes.forms import AS_IT_WAS, Forms, fingerprint, fits, forms_of
from normfuse.passes.lowering import Choice, Lowering, NormSite, by_table
from normfuse.ports import inputs_of
from normfuse.target import Target
from normfuse.tuning_cache import Measured, Record, TuningCache, machine
from normfuse.tuning_text import describe, remark_on

if TYPE_CHECKING:
    from normfuse.bench import Timing

BUDGET = 20.0
"""Seconds that all measurements for a model may take, unless the caller says otherwise."""

GAIN = 0.97
"""A form must take at most this part of the time of the table's choice, in three rounds of four, to replace it."""

_ROUNDS = 11
_SITE_SECONDS = 1.2
_PROOF_SECONDS = 3.0

Shapes = Mapping[str, Sequence[int]]
Timer = Callable[[Mapping[str, ir.Model], Target, Shapes, float], "Sequence[Timing]"]
"""Times models against the first of them, by name: at a target, on inputs of these shapes, in about so many seconds."""

Judge = Callable[[ir.Model, ir.Model, Target, Shapes, float], bool]
"""Whether a second model computes what the first one does, with these shapes, decided in so many seconds."""


def interleaved(models: Mapping[str, ir.Model], target: Target, shapes: Shapes, seconds: float) -> "Sequence[Timing]":
    """Times models in turn, ONNX Runtime's optimizer on.

    Raises:
        TargetError: one of them does not load or run.
    """
    from normfuse.bench import bench

    table = bench(
        list(models.values()),
        names=list(models),
        threads=target.threads,
        rounds=_ROUNDS,
        seconds=seconds,
        shapes=shapes,
        provider=_provider(target),
    )
    return table.timings


def accurate(reference: ir.Model, candidate: ir.Model, target: Target, shapes: Shapes, seconds: float) -> bool:
    """Whether a candidate is as accurate as a reference, by the metric that `normfuse.verify` judges with."""
    from normfuse.verification import verify

    provider = _provider(target)
    return verify(reference, candidate, seeds=1, budget=seconds, provider=provider, shapes=shapes).passed


def _provider(target: Target) -> str:
    return "cpu" if target.provider == "portable" else target.provider


@dataclass(slots=True)
class _Counts:
    """How many distinct normalizations were measured now, known from before, or not measured."""

    measured: int = 0
    known: int = 0
    skipped: int = 0


class Tuner:
    """Chooses rows by what has been measured; `passes.lower.LowerPass` calls it for each site."""

    def __init__(
        self,
        shapes: Mapping[str, Sequence[int] | int] | None = None,
        *,
        budget: float = BUDGET,
        cache: TuningCache | None = None,
        progress: Callable[[str], None] | None = None,
        timer: Timer = interleaved,
        judge: Judge = accurate,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Begins with what the cache holds.

        Args:
            shapes: shapes by input name of the model, or sizes by the name of a dynamic dimension. What is left out is
                1 in front, 224 behind channels, and 128 elsewhere.
            budget: seconds that all measurements may take.
            cache: where records are kept.
            progress: called with what is being done.
            timer: times the forms.
            judge: says whether a form is accurate.
            clock: tells the time in seconds.
        """
        self.cache = TuningCache() if cache is None else cache
        self._shapes = dict(shapes or {})
        self._budget = budget
        self._say = progress or (lambda doing: None)
        self._timer = timer
        self._judge = judge
        self._clock = clock
        self._spent = 0.0
        self._model: ir.Model | None = None
        self._sizes: dict[str, list[int | None]] = {}
        self._settled: dict[tuple[object, str | None], Choice | None] = {}
        self._known: dict[str, Record | str] = {}
        self._counts = _Counts()
        self._machine = machine()
        self._runtime = ""

    def require(self, target: Target) -> None:
        """Makes sure that something can be measured for a target.

        Raises:
            TargetError: ONNX Runtime or the provider is missing.
        """
        from normfuse.runtime import require

        self._runtime = require(_provider(target))

    def __call__(self, model: ir.Model, site: NormSite, rows: Sequence[Lowering], target: Target) -> Choice:
        """The fastest row in front of those that the table would try."""
        if self._model is not model:
            self.require(target)
            self._model, self._settled, self._spent = model, {}, 0.0
            self._sizes = _sizes(model, self._shapes)
        table = by_table(model, site, rows, target)
        place = site.norm.node.graph, site.output.name
        if place not in self._settled:
            choice, again = self._chosen(model, site, rows, table, target)
            self._settled[place] = again
            return choice
        return self._settled[place] or table

    def _chosen(
        self, model: ir.Model, site: NormSite, rows: Sequence[Lowering], table: Choice, target: Target
    ) -> tuple[Choice, Choice | None]:
        """What to try, and what when the stages come by again; None for what the table says."""
        try:
            fitting = [row for row in rows if fits(row, site, target)]
            forms = forms_of(model, site, fitting, target)
        except RefusedError as refused:
            self._counts.skipped += 1
            return Choice(table.rows, f"not measured: {refused}"), None
        first = next((row.name for row in table.rows if row in fitting), AS_IT_WAS)
        if first not in forms.names:
            self._counts.skipped += 1
            return Choice(table.rows, f"not measured: {first} depends on what stands around it"), None
        if len(forms.models) < 2:
            return table, None
        shapes = {str(value.name): _shape(value, self._sizes) for value in inputs_of(forms.models[AS_IT_WAS])}
        record = self._record(site, forms, forms.names[first], target, shapes)
        if isinstance(record, str):
            return Choice(table.rows, record), None
        remark = remark_on(record, shapes[str(site.data.name)], site, forms.around)
        if record.chosen == forms.names[first]:
            return Choice(table.rows, remark), None
        if record.chosen == AS_IT_WAS:
            stays = Choice((None,), remark)
            return stays, stays
        chosen = tuple(row for row in fitting if row.name == record.chosen)
        return Choice((*chosen, *table.rows), remark), Choice((None,))

    def _record(
        self, site: NormSite, forms: Forms, first: str, target: Target, shapes: dict[str, tuple[int, ...]]
    ) -> Record | str:
        """What is known of a site, measured where it is not; else why it cannot be."""
        description = describe(site, shapes[str(site.data.name)], target, forms.around)
        key = {
            "normfuse": __version__,
            "onnxruntime": self._runtime,
            "machine": self._machine,
            "description": description,
            "shapes": sorted(shapes.values()),
            "table": first,
            "forms": {name: fingerprint(form) for name, form in forms.models.items()},
        }
        own = repr(key)
        if own in self._known:
            return self._known[own]
        found: Record | str | None = self.cache.get(key)
        if isinstance(found, Record) and found.chosen in forms.models:
            self._counts.known += 1
        elif self._spent >= self._budget:
            self._counts.skipped += 1
            found = f"not measured: the budget of {self._budget:g} s is spent"
        else:
            self._say(f"measuring {description}")
            begin = self._clock()
            try:
                chosen, measured = self._measure(forms, first, target, shapes)
            except NormfuseError as error:
                self._counts.skipped += 1
                found = f"not measured: {error}"
            else:
                self._counts.measured += 1
                now = datetime.now(UTC).isoformat(timespec="seconds")
                found = Record(description, chosen, measured, self._machine, self._runtime, now)
                self.cache.put(key, found)
            self._spent += self._clock() - begin
        self._known[own] = found
        return found

    def _measure(self, forms: Forms, first: str, target: Target, shapes: Shapes) -> tuple[str, tuple[Measured, ...]]:
        """The form to use, and how each did.

        Raises:
            NormfuseError: not even the first one runs.
        """
        seconds = min(_SITE_SECONDS, self._budget - self._spent)
        problems = {
            name: problem
            for name, model in forms.models.items()
            if name != first and (problem := _problem(model, name, target, shapes))
        }
        running = {name: forms.models[name] for name in (first, *forms.models) if name not in problems}
        timings = sorted(self._timer(running, target, shapes, seconds), key=lambda timing: timing.ratio)
        chosen = first
        for timing in timings:
            if not _is_faster(timing):
                continue
            pair = {name: forms.models[name] for name in (first, timing.name)}
            if not _is_faster(self._timer(pair, target, shapes, seconds / 2)[-1]):
                continue  # it was chance
            if self._is_accurate(timing.name, first, forms.models, target, shapes):
                chosen = timing.name
                break
            problems[timing.name] = "it is less accurate"
        untimed = [name for name in problems if name not in running]
        return chosen, (
            *(Measured(t.name, t.median, t.ratio, t.ratio_quartiles, problems.get(t.name, "")) for t in timings),
            *(Measured(name, problem=problems[name]) for name in untimed),
        )

    def _is_accurate(
        self, name: str, first: str, models: Mapping[str, ir.Model], target: Target, shapes: Shapes
    ) -> bool:
        """Whether a form is as accurate as the original, or the original as accurate as another form that is so."""
        original = models[AS_IT_WAS]

        def judge(reference: ir.Model, candidate: ir.Model) -> bool:
            return self._judge(reference, candidate, target, shapes, _PROOF_SECONDS)

        if name != AS_IT_WAS:
            return judge(original, models[name])
        others = [models[form] for form in (first, *models) if form != AS_IT_WAS]
        sound = [model for model in dict.fromkeys(others) if judge(original, model)]
        return not sound or any(judge(model, original) for model in sound)

    def summary(self) -> dict[str, Any]:
        """How many distinct normalizations were measured, known or skipped, and what took the time."""
        counts = self._counts
        return {
            "measured": counts.measured,
            "known": counts.known,
            "not_measured": counts.skipped,
            "seconds": round(self._spent, 3),
            "folder": str(self.cache.folder),
        }

    def __str__(self) -> str:
        counts = self._counts
        plural = "" if counts.measured == 1 else "s"
        return (
            f"tuned: {counts.measured} distinct normalization{plural} measured in {self._spent:.1f} s, "
            f"{counts.known} known from {self.cache.folder}, {counts.skipped} not measured"
        )


def _is_faster(timing: "Timing") -> bool:
    return timing.ratio_quartiles[1] <= GAIN


def _problem(model: ir.Model, name: str, target: Target, shapes: Shapes) -> str:
    """Why a form does not run, or nothing."""
    import numpy as np

    from normfuse.runtime import session

    feed: dict[str, np.ndarray[Any, Any]] = {}
    try:
        loaded = session(model, "enabled", _provider(target), target.threads, name=name)
        for value in inputs_of(model):
            assert value.dtype is not None
            feed[str(value.name)] = np.ones(shapes[str(value.name)], value.dtype.numpy())
        loaded.run(feed)
    except NormfuseError as error:
        return str(error)
    return ""


def _sizes(model: ir.Model, given: Mapping[str, Sequence[int] | int]) -> dict[str, list[int | None]]:
    """The dimensions of all values at the shapes that were given, or at the defaults of `normfuse.bench`.

    Raises:
        NormfuseError: a shape was given for an input that does not exist.
    """
    from normfuse.ports import default_shape

    known = {str(value.name) for value in inputs_of(model)}
    known |= {dim for value in inputs_of(model) for dim in dims(value) or () if isinstance(dim, str)}
    if unknown := sorted(set(given) - known):
        raise NormfuseError(f"no input named {', '.join(unknown)}; the model has {', '.join(sorted(known))}")
    if all(isinstance(dim, int) for value in inputs_of(model) for dim in dims(value) or (None,)):
        return {}
    shapes: dict[str, Sequence[int]] = {}
    for value in inputs_of(model):
        found, own = dims(value), given.get(str(value.name))
        if own is not None and not isinstance(own, int):
            shapes[str(value.name)] = own
        elif found is not None:
            shapes[str(value.name)] = default_shape([given.get(dim) if isinstance(dim, str) else dim for dim in found])
    return sizes_of(model, shapes)


def _shape(value: ir.Value, sizes: Mapping[str, list[int | None]]) -> tuple[int, ...]:
    """The shape that a value takes in the net; defaults stand where inference does not tell."""
    from normfuse.ports import default_shape

    found = dims(value) or []
    known = sizes.get(str(value.name), [])
    if len(known) != len(found):
        known = [None] * len(found)
    return default_shape([dim if isinstance(dim, int) else own for dim, own in zip(found, known, strict=True)])

"""How fast models run, with the spread: `bench` times several models against each other in ONNX Runtime.

The models are timed in turn, in a new random order each round, in one process, on the same inputs, with inputs bound
beforehand. A ratio is the median of the ratios *within* a round, so that what disturbs a whole round cancels:

    ratio = median_r ( t_model[r] / t_first[r] )

The interval around a median is that of its order statistics (`normfuse.spread`).
"""

import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from normfuse.arguments import check
from normfuse.errors import NormfuseError
from normfuse.runtime import Array, Optimizer, Session, require, session
from normfuse.schema import SCHEMA_VERSION
from normfuse.spread import CONFIDENCE, Interval, interval_ranks, median_interval

if TYPE_CHECKING:
    import onnx_ir as ir

    from normfuse.model import Source

FEWEST_ROUNDS = 5
SLICE_SECONDS = 0.02
"""What one turn of a model is to last: a model that is faster than this runs several times a turn."""


@dataclass(frozen=True, slots=True)
class Tax:
    """What the normalizations and affine maps of one model cost, by taking them out.

    Attributes:
        norms: normalizations that were taken out.
        affines: scales and shifts by constants that were.
        median: seconds per run of what is left, the median over the rounds.
        share: 1 − t_without / t_with within a round, the median over the rounds.
        interval: confidence interval of that share.
    """

    norms: int
    affines: int
    median: float
    share: float
    interval: Interval


@dataclass(frozen=True, slots=True)
class Timing:
    """How fast one model runs.

    Attributes:
        name: what the table calls it.
        median: seconds per run, the median over the rounds.
        quartiles: seconds per run, first and third quartile over the rounds.
        ratio: time divided by the first model's time in the same round, the median over the rounds; 1 for the first.
        ratio_quartiles: first and third quartile of that ratio.
        interval: confidence interval of the median.
        ratio_interval: confidence interval of the ratio.
        p90: seconds per run that nine of ten runs stay below, of all single runs.
        threads: intra-op threads of the session.
        providers: execution providers that the session uses, as ONNX Runtime calls them.
        tax: what its normalizations cost; None where it was not asked for.
    """

    name: str
    median: float
    quartiles: Interval
    ratio: float
    ratio_quartiles: Interval
    interval: Interval = (math.nan, math.nan)
    ratio_interval: Interval = (math.nan, math.nan)
    p90: float = math.nan
    threads: int = 1
    providers: tuple[str, ...] = ()
    tax: Tax | None = None


@dataclass(frozen=True, slots=True)
class BenchTable:
    """What `bench` returns.

    Attributes:
        timings: one for each model, in the order given; with several numbers of threads, all models for each of them.
        provider: `cpu` or `cuda`, as asked for.
        threads: intra-op threads of the sessions, the first of several.
        level: ONNX Runtime's graph optimization level.
        rounds: rounds that were timed, for each number of threads.
        shapes: the input shapes used, by input name.
        confidence: what the intervals reach.
        onnxruntime: the version of ONNX Runtime.
    """

    timings: tuple[Timing, ...]
    provider: str
    threads: int
    level: Optimizer
    rounds: int
    shapes: dict[str, tuple[int, ...]]
    confidence: float = CONFIDENCE
    onnxruntime: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The table as JSON-ready values; times in seconds."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self)}

    def __str__(self) -> str:
        width = max(len("model"), *(len(timing.name) for timing in self.timings))
        lines = [f"{'model':<{width}} {'ms':>9}  {'quartiles':>19}  {'ratio':>6}  quartiles"]
        for timing in self.timings:
            low, high = (1e3 * bound for bound in timing.quartiles)
            first, third = timing.ratio_quartiles
            lines.append(
                f"{timing.name:<{width}} {1e3 * timing.median:9.3f}  {low:9.3f} {high:9.3f}  {timing.ratio:6.3f}"
                f"  {first:.3f} {third:.3f}"
            )
        return "\n".join(lines)


def bench(
    models: Sequence["Source"],
    *,
    names: Sequence[str] | None = None,
    threads: int | Sequence[int] | None = None,
    rounds: int = 30,
    seconds: float = 20.0,
    shapes: Mapping[str, Sequence[int]] | None = None,
    data: Any = None,
    provider: str = "cpu",
    level: Optimizer = "all",
    seed: int = 0,
    tax: bool = False,
    progress: Callable[[str], None] | None = None,
) -> BenchTable:
    """Times models against each other, interleaved.

    Args:
        models: models with the same inputs, the first being what the others are compared with.
        names: what the table calls them; file names, or `model 1`, …, where left out.
        threads: intra-op threads of each session, or several numbers to time in turn; as many as this process may use
            where left out.
        rounds: how often each model takes its turn.
        seconds: what all rounds together may take for one number of threads, in seconds; slow models get fewer rounds,
            but at least five.
        shapes: shapes of inputs, by input name. Where left out, a dynamic dimension is 1 in front, 224 behind
            channels, and 128 elsewhere, or what else the first model accepts.
        data: inputs to time with instead of random ones, as `normfuse.verify` takes them.
        provider: the execution provider, `cpu` or `cuda`.
        level: ONNX Runtime's graph optimization level.
        seed: seeds the inputs and the order within rounds.
        tax: time each model without its normalizations and affine maps, too (`normfuse.tax`).
        progress: called with what is being done.

    Returns:
        Medians, intervals, quartiles and ratios.

    Raises:
        NormfuseError: no models, unequal inputs, or a shape for an input that does not exist.
        ModelError: a file that does not exist, or a model in memory that is not valid.
        TargetError: ONNX Runtime or the provider is missing, or a model does not load or run.
    """
    check(rounds=rounds, seconds=seconds, shapes=shapes, data=data, tax=tax, progress=progress)
    say = progress or (lambda doing: None)
    labels = list(names) if names is not None else [_name(model, index) for index, model in enumerate(models)]
    if not models or len(labels) != len(models):
        raise NormfuseError(f"bench needs models and one name for each: {len(models)} models, {len(labels)} names")
    counts = list(dict.fromkeys(threads)) if isinstance(threads, Sequence) else [threads] if threads is not None else []
    counts = counts or [_available()]
    if min(counts) < 1:
        raise NormfuseError(f"threads must be at least 1, not {min(counts)}")
    with tempfile.TemporaryDirectory(prefix="normfuse-") as folder:
        say("reading the models")
        entrants = list(_entrants(models, labels, tax, folder))
        contests = []
        feed: Mapping[str, Array] | None = None
        for count in counts:
            say(f"timing on {count} thread{'s' if count > 1 else ''}")
            loaded = [session(one.payload, level, provider, count, name=one.label, proves=False) for one in entrants]
            rng = np.random.default_rng(seed)
            feed = feed or _feed(entrants[0], loaded[0], shapes, data, seed)
            for one in loaded:
                if set(one.inputs) != set(feed):
                    raise NormfuseError(f"{one.name} has other inputs than the first model: {', '.join(feed)} expected")
            samples = _time([one.bound(feed, provider) for one in loaded], rounds, seconds, rng)
            contests.append((count, loaded, samples))
    timings = [one for contest in contests for one in _timings(entrants, *contest)]
    made = len(contests[0][2][0])
    return BenchTable(
        tuple(timings),
        provider,
        counts[0],
        level,
        made,
        {name: array.shape for name, array in (feed or {}).items()},
        interval_ranks(made)[1],
        require(provider),
    )


@dataclass(frozen=True, slots=True)
class _Entrant:
    """A model that takes its turn.

    Attributes:
        label: what the table calls it.
        model: the model.
        payload: the same as ONNX Runtime takes it.
        removed: normalizations and affine maps that were taken out of the model before it; None for one as it came.
    """

    label: str
    model: "ir.Model"
    payload: "str | bytes"
    removed: tuple[int, int] | None = None


def _name(model: "Source", index: int) -> str:
    return os.path.basename(model) if isinstance(model, str | os.PathLike) else f"model {index + 1}"


def _available() -> int:
    """The processors this process may use."""
    from normfuse.target import Target

    return Target.parse("cpu").threads


def _entrants(models: Sequence["Source"], labels: Sequence[str], tax: bool, folder: str) -> Iterator[_Entrant]:
    """The models, each followed by itself without its normalizations where the tax is asked for."""
    from normfuse.model import load

    for index, (source, label) in enumerate(zip(models, labels, strict=True)):
        model = load(source)
        # A path is handed on, so that ONNX Runtime finds external data beside it.
        path = os.fspath(source) if isinstance(source, str | os.PathLike) else None
        yield _Entrant(label, model, path or _payload(model, folder, f"{index}"))
        if tax:
            from normfuse.tax import untaxed

            bare = untaxed(model)
            name = f"{label} without its normalizations"
            yield _Entrant(name, bare.model, _payload(bare.model, folder, f"{index}-bare"), (bare.norms, bare.affines))


def _payload(model: "ir.Model", folder: str, name: str) -> str | bytes:
    """A model in memory as ONNX Runtime takes it: bytes, or a file where it is too large for those."""
    from normfuse.model import save, serialize
    from normfuse.serialization import is_large

    if not is_large(model):
        return serialize(model)
    path = os.path.join(folder, f"{name}.onnx")
    save(model, path)
    return path


def _feed(
    first: _Entrant, loaded: Session, shapes: Mapping[str, Sequence[int]] | None, data: Any, seed: int
) -> Mapping[str, Array]:
    from normfuse.probes import typical_inputs

    return typical_inputs(first.model, loaded, shapes=shapes, data=data, seed=seed)


def _time(
    runs: Sequence[Callable[[], None]], rounds: int, seconds: float, rng: np.random.Generator
) -> tuple[Array, list[Array]]:
    """Times calls in turn.

    Returns:
        (rounds, calls) float64, seconds per run, each the median within one turn; and for each call all its runs.
    """
    once = [float(np.median([_elapsed(run) for _ in range(3)])) for run in runs]
    repeats = [max(1, min(1000, round(SLICE_SECONDS / max(duration, 1e-9)))) for duration in once]
    # One more run each turn warms the caches that the others' turns have emptied; it is not counted.
    per_round = sum(duration * (repeat + 1) for duration, repeat in zip(once, repeats, strict=True))
    affordable = max(min(rounds, FEWEST_ROUNDS), min(rounds, int(seconds / per_round)))
    singles = [np.empty((affordable, repeat)) for repeat in repeats]
    for row in range(affordable):
        for index in rng.permutation(len(runs)):
            runs[index]()
            singles[index][row] = [_elapsed(runs[index]) for _ in range(repeats[index])]
    return np.stack([np.median(single, axis=1) for single in singles], axis=1), [one.ravel() for one in singles]


def _elapsed(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _timings(
    entrants: Sequence[_Entrant], threads: int, loaded: Sequence[Session], samples: tuple[Array, list[Array]]
) -> Iterator[Timing]:
    table, singles = samples
    for index, one in enumerate(entrants):
        if one.removed is not None:
            continue
        own = table[:, index]
        median, quartiles, interval = median_interval(own)
        ratio, ratio_quartiles, ratio_interval = median_interval(own / table[:, 0])
        tax = None
        if index + 1 < len(entrants) and (removed := entrants[index + 1].removed) is not None:
            share, _, share_interval = median_interval(1.0 - table[:, index + 1] / own)
            tax = Tax(*removed, float(np.median(table[:, index + 1])), share, share_interval)
        yield Timing(
            one.label,
            median,
            quartiles,
            ratio,
            ratio_quartiles,
            interval,
            ratio_interval,
            float(np.percentile(singles[index], 90)),
            threads,
            loaded[index].providers,
            tax,
        )

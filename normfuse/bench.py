"""How fast models run, with the spread: `bench` times several models against each other in ONNX Runtime.

The models are timed in turn, in a new random order each round, in one process, on the same inputs, with inputs bound
beforehand. A ratio is the median of the ratios *within* a round, so that what disturbs a whole round cancels:

    ratio = median_r ( t_model[r] / t_first[r] )
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from normfuse.errors import NormfuseError, TargetError

if TYPE_CHECKING:
    from normfuse.model import Source

SCHEMA_VERSION = 1
Level = Literal["disabled", "basic", "extended", "all"]
LEVELS: tuple[Level, ...] = get_args(Level)

FEWEST_ROUNDS = 5
SLICE_SECONDS = 0.02
"""What one turn of a model is to last: a model that is faster than this runs several times a turn."""

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_DTYPES: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(double)": np.dtype(np.float64),
    "tensor(int64)": np.dtype(np.int64),
    "tensor(int32)": np.dtype(np.int32),
    "tensor(int8)": np.dtype(np.int8),
    "tensor(uint8)": np.dtype(np.uint8),
    "tensor(bool)": np.dtype(np.bool_),
}


@dataclass(frozen=True, slots=True)
class Timing:
    """How fast one model runs.

    Attributes:
        name: what the table calls it.
        median: seconds per run, the median over the rounds.
        quartiles: seconds per run, first and third quartile over the rounds.
        ratio: time divided by the first model's time in the same round, the median over the rounds; 1 for the first.
        ratio_quartiles: first and third quartile of that ratio.
    """

    name: str
    median: float
    quartiles: tuple[float, float]
    ratio: float
    ratio_quartiles: tuple[float, float]


@dataclass(frozen=True, slots=True)
class BenchTable:
    """What `bench` returns.

    Attributes:
        timings: one for each model, in the order given.
        provider: `cpu` or `cuda`.
        threads: intra-op threads of each session.
        level: ONNX Runtime's graph optimization level.
        rounds: rounds that were timed.
        shapes: the input shapes used, by input name.
    """

    timings: tuple[Timing, ...]
    provider: str
    threads: int
    level: Level
    rounds: int
    shapes: dict[str, tuple[int, ...]]

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
    threads: int | None = None,
    rounds: int = 30,
    seconds: float = 20.0,
    shapes: Mapping[str, Sequence[int]] | None = None,
    provider: str = "cpu",
    level: Level = "all",
    seed: int = 0,
) -> BenchTable:
    """Times models against each other, interleaved.

    Args:
        models: models with the same inputs, the first being what the others are compared with.
        names: what the table calls them; file names, or `model 1`, …, where left out.
        threads: intra-op threads of each session; as many as this process may use where left out.
        rounds: how often each model takes its turn.
        seconds: what all rounds together may take, in seconds; slow models get fewer rounds, but at least five.
        shapes: shapes of inputs, by input name. Where left out, a dynamic dimension is 1 in front, 224 behind
            channels, and 128 elsewhere.
        provider: the execution provider, `cpu` or `cuda`.
        level: ONNX Runtime's graph optimization level.
        seed: seeds the inputs and the order within rounds.

    Returns:
        Medians, quartiles and ratios.

    Raises:
        NormfuseError: no models, unequal inputs, or a shape for an input that does not exist.
        ModelError: a file that does not exist, or a model in memory that is not valid.
        TargetError: ONNX Runtime or the provider is missing, or a model does not load or run.
    """
    labels = list(names) if names is not None else [_name(model, index) for index, model in enumerate(models)]
    if not models or len(labels) != len(models):
        raise NormfuseError(f"bench needs models and one name for each: {len(models)} models, {len(labels)} names")
    count = threads or _available()
    sessions = [_session(model, label, provider, count, level) for model, label in zip(models, labels, strict=True)]
    rng = np.random.default_rng(seed)
    feed = _feed(sessions[0], shapes or {}, rng)
    runs = [_bound_run(session, feed, label, provider) for session, label in zip(sessions, labels, strict=True)]
    samples = _time(runs, rounds, seconds, rng)
    return BenchTable(
        tuple(_timing(label, own, samples[:, 0]) for label, own in zip(labels, samples.T, strict=True)),
        provider,
        count,
        level,
        len(samples),
        {name: array.shape for name, array in feed.items()},
    )


def _name(model: "Source", index: int) -> str:
    return os.path.basename(model) if isinstance(model, str | os.PathLike) else f"model {index + 1}"


def _available() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _runtime() -> Any:
    try:
        import onnxruntime  # type: ignore[import-untyped]  # it ships no types
    except ImportError as error:
        raise TargetError("ONNX Runtime is not installed; run: pip install normfuse[cpu]") from error
    return onnxruntime


def _session(model: "Source", label: str, provider: str, threads: int, level: Level) -> Any:
    """An `onnxruntime.InferenceSession` with everything fixed that would add noise."""
    ort = _runtime()
    wanted = _PROVIDERS.get(provider)
    if wanted not in ort.get_available_providers():
        raise TargetError(
            f"provider {provider!r} is not in this ONNX Runtime, which has {ort.get_available_providers()}"
        )
    options = ort.SessionOptions()
    options.graph_optimization_level = {
        "disabled": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
        "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
        "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
        "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    }[level]
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    # A pool that still spins for its last run would take the cores from the next model's turn.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    content = _loadable(model)
    try:
        return ort.InferenceSession(content, options, providers=[wanted])
    except Exception as error:  # ONNX Runtime's errors share no base class of their own
        raise TargetError(f"{label} does not load in ONNX Runtime: {_first_line(error)}") from error


def _loadable(model: "Source") -> str | bytes:
    """A valid model as ONNX Runtime takes it: a path, so that external data is found, or bytes.

    Raises:
        NormfuseError: there is no such file.
        ModelError: it is no valid model.
    """
    from normfuse.model import load, serialize

    loaded = load(model)
    return os.fspath(model) if isinstance(model, str | os.PathLike) else serialize(loaded)


def _feed(session: Any, shapes: Mapping[str, Sequence[int]], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Inputs: N(0, 1) for floats, ones for the rest (token ids and masks alike)."""
    inputs = {entry.name: entry for entry in session.get_inputs()}
    if unknown := sorted(set(shapes) - set(inputs)):
        raise NormfuseError(f"no input named {', '.join(unknown)}; the model has {', '.join(inputs)}")
    feed = {}
    for name, entry in inputs.items():
        if entry.type not in _DTYPES:
            raise NormfuseError(f"input {name!r} is {entry.type}; bench can make only {', '.join(_DTYPES)}")
        dtype = _DTYPES[entry.type]
        shape = tuple(shapes[name]) if name in shapes else default_shape(entry.shape)
        feed[name] = rng.standard_normal(shape).astype(dtype) if dtype.kind == "f" else np.ones(shape, dtype)
    return feed


def default_shape(declared: Sequence[Any]) -> tuple[int, ...]:
    """A declared shape with its dynamic dimensions filled in."""
    spatial = len(declared) >= 4
    return tuple(
        size if isinstance(size, int) and size > 0 else 1 if axis == 0 else 224 if spatial and axis >= 2 else 128
        for axis, size in enumerate(declared)
    )


def _bound_run(session: Any, feed: Mapping[str, np.ndarray], label: str, provider: str) -> Callable[[], None]:
    """A call that runs a session on inputs that already lie on the device."""
    if {entry.name for entry in session.get_inputs()} != set(feed):
        raise NormfuseError(f"{label} has other inputs than the first model: {', '.join(feed)} expected")
    binding = session.io_binding()
    for name, array in feed.items():
        binding.bind_ortvalue_input(name, _runtime().OrtValue.ortvalue_from_numpy(array, provider, 0))
    for entry in session.get_outputs():
        binding.bind_output(entry.name, provider)

    def run() -> None:
        session.run_with_iobinding(binding)
        if provider != "cpu":
            binding.synchronize_outputs()

    try:
        run()
        run()  # only the second one meets outputs that are bound already
    except Exception as error:
        raise TargetError(f"{label} does not run: {_first_line(error)}; give other shapes") from error
    return run


def _time(runs: Sequence[Callable[[], None]], rounds: int, seconds: float, rng: np.random.Generator) -> np.ndarray:
    """Times calls in turn.

    Returns:
        (rounds, calls) float64: seconds per run, each the median within one turn.
    """
    once = [float(np.median([_elapsed(run) for _ in range(3)])) for run in runs]
    repeats = [max(1, min(1000, round(SLICE_SECONDS / max(duration, 1e-9)))) for duration in once]
    # One more run each turn warms the caches that the others' turns have emptied; it is not counted.
    per_round = sum(duration * (repeat + 1) for duration, repeat in zip(once, repeats, strict=True))
    affordable = max(min(rounds, FEWEST_ROUNDS), min(rounds, int(seconds / per_round)))
    samples = np.empty((affordable, len(runs)))
    for row in samples:
        for index in rng.permutation(len(runs)):
            runs[index]()
            row[index] = np.median([_elapsed(runs[index]) for _ in range(repeats[index])])
    return samples


def _elapsed(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _timing(name: str, own: np.ndarray, first: np.ndarray) -> Timing:
    low, median, high = (float(value) for value in np.percentile(own, (25, 50, 75)))
    ratio_low, ratio, ratio_high = (float(value) for value in np.percentile(own / first, (25, 50, 75)))
    return Timing(name, median, (low, high), ratio, (ratio_low, ratio_high))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]

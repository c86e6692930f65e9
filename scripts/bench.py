"""Latency before and after normfuse: `python -m scripts.bench [--threads N] [--rounds N] [--peer PEER] [NAME ...]`.

`python -m scripts.bench lowerings` measures the rows of LOWERINGS, `python -m scripts.bench scale` how the time of
optimizing grows, `python -m scripts.bench large` its time and memory on a model of several gigabytes: see
`scripts.bench_lowerings`, `scripts.bench_scale` and `scripts.bench_large`.

Real models, and, where torch is installed, our own nets as torch's exporters write them by default. The variants of a
model are timed in one process, in turn (`normfuse.bench`), at ORT_ENABLE_ALL: what is shown is the gain net of what
ONNX Runtime does by itself.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import normfuse
from normfuse.bench import BenchTable, Timing, bench
from normfuse.errors import NormfuseError
from scripts.fetch_models import fetch, shapes
from scripts.peers import PEERS, optimize
from scripts.real_models import MODELS

if TYPE_CHECKING:
    from models.export import Exporter

EXPORTS: "dict[Exporter, int]" = {"dynamo": 20, "torchscript": 17}
"""The opset each exporter is asked for."""

STUDIES = ("large", "lowerings", "scale")
"""First words that measure something else than whole models."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A model to time.

    Attributes:
        name: what the table calls it.
        path: its file.
        shapes: the shapes of inputs that the file leaves open.
    """

    name: str
    path: Path
    shapes: Mapping[str, tuple[int, ...]]


def subjects(names: Sequence[str], all: bool, offline: bool, place: Path) -> Iterator[Subject]:
    """The models of these names, or all of them; our own are exported into the folder `place`.

    Raises:
        NormfuseError: an unknown name, or a model that cannot be fetched.
    """
    known = {model.name for model in MODELS}
    real = [name for name in names if name in known]
    own = [] if names and len(real) == len(names) else _own_names()
    if unknown := sorted(set(names) - known - set(own)):
        raise NormfuseError(f"unknown model {', '.join(unknown)}; choose from {', '.join([*sorted(known), *own])}")
    if real or not names:
        for name, path in fetch(real, all, offline).items():
            yield Subject(name, path, shapes(name))
    for name in own:
        if name in names or not names:
            yield from _exports(name, place)


def _own_names() -> list[str]:
    """The names of our own nets; none where torch is not installed."""
    if find_spec("torch") is None:
        return []
    from models import LARGE

    return list(LARGE)


def _exports(name: str, place: Path) -> Iterator[Subject]:
    import onnx

    from models import LARGE
    from models.export import export

    for exporter, opset in EXPORTS.items():
        path = place / f"{name}-{exporter}.onnx"
        onnx.save(export(LARGE[name], exporter, opset, keep_bn=False), path)
        yield Subject(path.stem, path, {})


def measure(
    subject: Subject, place: Path, peers: Sequence[str], threads: int | None, rounds: int, seconds: float
) -> BenchTable:
    """Times a model as it came, as normfuse leaves it, and as peers leave it where they can.

    Raises:
        NormfuseError: normfuse or ONNX Runtime cannot take the model.
    """
    ours = place / "normfuse.onnx"
    normfuse.save(normfuse.optimize(subject.path, threads=threads, verify=False).model, ours)
    variants = {"raw": subject.path, "normfuse": ours}
    for peer in PEERS:
        if peer.name in peers and not optimize(peer, subject.path, place / f"{peer.name}.onnx").problem:
            variants[peer.name] = place / f"{peer.name}.onnx"
    return bench(
        list(variants.values()),
        names=list(variants),
        threads=threads,
        rounds=rounds,
        seconds=seconds,
        shapes=subject.shapes,
    )


def _cells(timing: Timing) -> str:
    low, high = (1e3 * bound for bound in timing.quartiles)
    first, third = timing.ratio_quartiles
    ratio = "" if timing.name == "raw" else f"   × {timing.ratio:.3f} [{first:.3f} {third:.3f}]"
    return f"{timing.name:<13} {1e3 * timing.median:8.3f} ms [{low:.3f} {high:.3f}]{ratio}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints one line for each variant of each model, or JSON; a model that cannot be timed is named on stderr."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and given[0] in STUDIES:
        return int(import_module(f"scripts.bench_{given[0]}").main(given[1:]))
    parser = argparse.ArgumentParser(prog="python -m scripts.bench", description="Latency before and after normfuse.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="models to time (default: all but the large)")
    parser.add_argument("--all", action="store_true", help="the large real models too")
    parser.add_argument("--offline", action="store_true", help="use only real models that lie in the cache")
    parser.add_argument("--threads", type=int, help="intra-op threads (default: as many as there are)")
    parser.add_argument("--rounds", type=int, default=30, help="how often each variant takes its turn (default: 30)")
    parser.add_argument("--seconds", type=float, default=20.0, help="the longest one model may take (default: 20)")
    parser.add_argument("--peer", action="append", default=[], choices=[peer.name for peer in PEERS])
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(given)
    tables: dict[str, BenchTable] = {}
    status = 0
    try:
        with tempfile.TemporaryDirectory(prefix="normfuse-") as place:
            folder = Path(place)
            for subject in subjects(options.names, options.all, options.offline, folder):
                try:
                    table = measure(subject, folder, options.peer, options.threads, options.rounds, options.seconds)
                except NormfuseError as error:
                    print(f"{subject.name}: {error}", file=sys.stderr)
                    status = error.exit_status
                    continue
                tables[subject.name] = table
                if not options.json:
                    for timing in table.timings:
                        print(f"{subject.name:<38} {_cells(timing)}", flush=True)
    except NormfuseError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    if options.json:
        content = {name: table.to_dict() for name, table in tables.items()}
        print(json.dumps({"schema_version": 1, "models": content}, indent=2))
    return status


if __name__ == "__main__":
    sys.exit(main())

"""Every row of LOWERINGS against the others: `python -m scripts.bench lowerings [--threads N] [--json] [NAME ...]`.

For each case of `scripts.cases`: the model as exported, what normfuse makes of it, what each other row that fits makes
of it, and torch eager where it is installed; at ORT_ENABLE_ALL, in turn, in one process. At the end stand the cases in
which what normfuse emits is more than 1.1 times slower than the best row, or slower than the model as exported.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

import normfuse
from normfuse.bench import _time
from normfuse.errors import NormfuseError
from normfuse.passes.lowering import Choice, Lowering, NormSite
from normfuse.passes.lowerings import LOWERINGS
from normfuse.runtime import session
from normfuse.target import Target
from normfuse.tuning import Tuner
from scripts.cases import Case, cases

RAW, OURS, EAGER = "as exported", "normfuse", "torch eager"
BEST = 1.1
"""So much slower than the best row may be what is emitted."""

NOISE = 1.03
"""So much two runs of the same model may differ."""


@dataclass(frozen=True, slots=True)
class Row:
    """One form of a case.

    Attributes:
        name: `as exported`, `normfuse`, `torch eager`, or the row of LOWERINGS.
        median: seconds.
        quartiles: seconds, first and third.
        ratio: time divided by that of what normfuse emits, the median over the rounds.
        ratio_quartiles: of that ratio, first and third.
        nodes: the operators.
    """

    name: str
    median: float
    quartiles: tuple[float, float]
    ratio: float
    ratio_quartiles: tuple[float, float]
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Table:
    """A case at a number of threads.

    Attributes:
        case: its name.
        threads: intra-op threads.
        used: the rows of LOWERINGS that normfuse took.
        rows: all forms.
    """

    case: str
    threads: int
    used: tuple[str, ...]
    rows: tuple[Row, ...]

    @property
    def faults(self) -> Iterator[str]:
        """What is wrong with what normfuse emits; a ratio counts where three rounds of four show it."""
        for row in self.rows:
            if row.name == RAW and row.ratio_quartiles[1] < 1.0 / NOISE:
                yield f"slower than as exported: {1 / row.ratio:.2f}×"
            if row.name not in (RAW, OURS, EAGER) and row.ratio_quartiles[1] < 1.0 / BEST:
                yield f"{1 / row.ratio:.2f}× the time of {row.name}"


class Forced(Tuner):
    """Takes one row wherever it fits, and leaves everything else as it was."""

    def __init__(self, row: Lowering) -> None:
        """Takes a row."""
        super().__init__()
        self._row = row

    def __call__(self, model: ir.Model, site: NormSite, rows: Sequence[Lowering], target: Target) -> Choice:
        """That row, or nothing."""
        return Choice((self._row, None))


def forms(case: Case, target: Target) -> tuple[dict[str, onnx.ModelProto], tuple[str, ...]]:
    """The models to time by name, those that are the same as another left out, and the rows that normfuse took."""
    raw = case.model()
    result = normfuse.optimize(raw, target, verify=False)
    known = {RAW: raw, OURS: result.model}
    seen = {_content(model) for model in known.values()}
    for row in LOWERINGS:
        if target.provider not in row.targets:
            continue
        forced = normfuse.optimize(raw, target, verify=False, tune=Forced(row))
        if any(change.rule == row.name for change in forced.report.changes):
            content = _content(forced.model)
            if content not in seen:
                seen.add(content)
                known[row.name] = forced.model
    rows = {row.name for row in LOWERINGS}
    return known, tuple(change.rule for change in result.report.changes if change.rule in rows)


def _content(model: onnx.ModelProto) -> bytes:
    """The operators of a model with their attributes, whatever their names."""
    nodes = []
    for node in model.graph.node:
        bare = onnx.NodeProto()
        bare.CopyFrom(node)
        bare.name = ""
        del bare.input[:], bare.output[:]
        nodes.append(bare.SerializeToString(deterministic=True))
    return b"\n".join(nodes)


def measure(case: Case, target: Target, rounds: int, seconds: float) -> Table:
    """Times all forms of a case in turn.

    Raises:
        NormfuseError: one of them does not load or run.
    """
    models, used = forms(case, target)
    provider = "cpu" if target.provider == "portable" else target.provider
    loaded = {
        name: session(model.SerializeToString(), "all", provider, target.threads, name=name, proves=False)
        for name, model in models.items()
    }
    rng = np.random.default_rng(0)
    feed = case.inputs_from(rng)
    runs = {name: one.bound(feed, provider) for name, one in loaded.items()}
    if provider == "cpu" and case.eager is not None and find_spec("torch") is not None:
        runs[EAGER] = _eager(case, feed, target.threads)
    samples, _ = _time(list(runs.values()), rounds, seconds, rng)
    ours = samples[:, list(runs).index(OURS)]
    rows = []
    for name, own in zip(runs, samples.T, strict=True):
        low, median, high = (float(one) for one in np.percentile(own, (25, 50, 75)))
        first, ratio, third = (float(one) for one in np.percentile(own / ours, (25, 50, 75)))
        nodes = tuple(node.op_type for node in models[name].graph.node) if name in models else ()
        rows.append(Row(name, median, (low, high), ratio, (first, third), nodes))
    return Table(case.name, target.threads, used, tuple(rows))


def _eager(case: Case, feed: dict[str, Any], threads: int) -> Callable[[], None]:
    """The case in torch, on the same inputs."""
    import torch

    torch.set_num_threads(threads)
    tensors = {name: torch.from_numpy(np.array(one)) for name, one in {**case.arrays(), **feed}.items()}
    eager = case.eager
    assert eager is not None

    def run() -> None:
        with torch.inference_mode():
            eager(torch, tensors)

    run()
    return run


def device(provider: str) -> str:
    """What runs the models, as its maker calls it."""
    command = (
        ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"] if provider == "cuda" else ["cat", "/proc/cpuinfo"]
    )
    try:
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return provider
    found = lines if provider == "cuda" else [line.split(":")[1].strip() for line in lines if "model name" in line]
    return found[0] if found else provider


def _lines(table: Table) -> Iterator[str]:
    yield f"{table.case}, {table.threads} thread{'s' if table.threads > 1 else ''}: {', '.join(table.used) or 'kept'}"
    for row in table.rows:
        low, high = (1e6 * one for one in row.quartiles)
        first, third = row.ratio_quartiles
        yield (
            f"    {row.name:<32}{1e6 * row.median:9.0f} µs [{low:.0f} {high:.0f}]"
            f"   × {row.ratio:.2f} [{first:.2f} {third:.2f}]   {' '.join(row.nodes)}"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a table for each case and number of threads, and what is wrong; exit status 1 where something is."""
    parser = argparse.ArgumentParser(prog="python -m scripts.bench lowerings", description="Every row of LOWERINGS.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="what the names of cases begin with (default: all)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="intra-op threads (default: 1 2)")
    parser.add_argument("--provider", choices=["portable", "cpu", "cuda"], default="cpu", help="the target")
    parser.add_argument("--rounds", type=int, default=20, help="how often each form takes its turn (default: 20)")
    parser.add_argument("--seconds", type=float, default=5.0, help="the longest one case may take (default: 5)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    chosen = [case for case in cases() if not options.names or case.name.startswith(tuple(options.names))]
    if not chosen:
        parser.error(f"no case begins so; there are {', '.join(case.name for case in cases())}")
    # A pool of torch that spins after its turn would take the cores from ONNX Runtime's.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    where = device(options.provider)
    tables, faults, status = [], [], 0
    for case in chosen:
        for threads in options.threads:
            try:
                table = measure(case, Target(options.provider, threads), options.rounds, options.seconds)
            except NormfuseError as error:
                print(f"{case.name}: {error}", file=sys.stderr)
                status = error.exit_status
                continue
            tables.append(table)
            faults += [f"{table.case}, {threads} threads: {fault}" for fault in table.faults]
            if not options.json:
                print("\n".join(_lines(table)), flush=True)
    if options.json:
        content = {"schema_version": 1, "device": where, "cases": [asdict(one) for one in tables], "faults": faults}
        print(json.dumps(content, indent=2))
    else:
        print(f"on {where}: {len(faults)} faults in {len(tables)} tables", *faults, sep="\n")
    return status or int(bool(faults))

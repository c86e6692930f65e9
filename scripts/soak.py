"""Random graphs, optimized for every target until the time is up: `python -m scripts.soak --minutes 20 [--seed S]`.

Each graph of `scripts.random_graphs` is a function of its seed; `scripts.examination` says what must be true of what
becomes of it. A graph that fails is written out with the reasons, and `--one SEED` examines it again. At the end come
the counts, by dtype, by feature and by rule, and the rules that no graph has used. The exit status is 1 where something
failed.
"""

import argparse
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import onnx

from normfuse.pipeline import quiet, rules
from normfuse.target import Target
from scripts.examination import TARGETS, Examination, examine, loads
from scripts.features import NAMES, features
from scripts.random_graphs import seeded_model

PATIENCE = 300.0
"""Seconds after which a graph counts as hanging."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a graph.

    Attributes:
        seed: what it grew from.
        dtype: of its input.
        nodes: how many it has, Constant nodes not counted.
        on_runtime: whether ONNX Runtime judged; else the reference evaluator.
        examinations: one for each target.
        features: what the graph has, by the names of `scripts.features`.
    """

    seed: int
    dtype: str
    nodes: int
    on_runtime: bool
    examinations: tuple[Examination, ...]
    features: frozenset[str] = frozenset()

    def faults(self) -> Iterator[str]:
        """What is wrong, with the target."""
        for one in self.examinations:
            yield from (f"{one.target.provider}, {one.target.threads} threads: {fault}" for fault in one.faults)


@dataclass(slots=True)
class Tally:
    """The sums over all graphs.

    Attributes:
        graphs: how many were examined.
        failed: seeds of those that failed.
        dtypes: graphs by dtype.
        nodes: of all graphs.
        judges: examinations by who judged.
        used: changes by rule.
        refused: refusals by rule.
        certificates: by verdict.
        alarms: certificates that failed for results that are right, by seed, with the reasons.
        unjudged: how often nothing could judge, by reason.
        unjudged_seeds: of the graphs where that was so, once for each target.
        features: graphs by what they have.
        excused: examinations whose proof failed by no more than roundings in the original explain.
    """

    graphs: int = 0
    failed: list[int] = field(default_factory=list)
    dtypes: Counter[str] = field(default_factory=Counter)
    nodes: int = 0
    judges: Counter[str] = field(default_factory=Counter)
    used: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    certificates: Counter[str] = field(default_factory=Counter)
    alarms: list[tuple[int, str]] = field(default_factory=list)
    unjudged: Counter[str] = field(default_factory=Counter)
    unjudged_seeds: list[int] = field(default_factory=list)
    features: Counter[str] = field(default_factory=Counter)
    excused: list[tuple[int, str]] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        """Adds a graph."""
        self.graphs += 1
        self.dtypes[outcome.dtype] += 1
        self.nodes += outcome.nodes
        self.features.update(outcome.features)
        if any(outcome.faults()):
            self.failed.append(outcome.seed)
        for one in outcome.examinations:
            judge = one.judged_by if outcome.on_runtime or not one.judged_by else f"{one.judged_by}, evaluated"
            if judge:
                self.judges[judge] += 1
            elif one.unjudged:
                self.unjudged[" ".join(one.unjudged.split()[:6])] += 1
                self.unjudged_seeds.append(outcome.seed)
            self.used += one.rules
            self.refused += one.refused
            self.certificates += one.certificates
            self.alarms += ((outcome.seed, alarm) for alarm in one.alarms)
            if one.ill_conditioned:
                self.excused.append((outcome.seed, one.target.provider))

    def lines(self) -> Iterator[str]:
        """The report."""
        names = [rule.name for rule in rules()]
        dtypes = ", ".join(f"{count} {name}" for name, count in self.dtypes.most_common())
        yield f"{self.graphs} graphs ({dtypes}) of {self.nodes / max(1, self.graphs):.0f} nodes on average"
        yield "graphs with: " + ", ".join(f"{name} {self.features[name]}" for name in NAMES)
        judges = ", ".join(f"{count} by the {name}" for name, count in self.judges.most_common())
        yield f"{self.judges.total()} results judged: {judges}"
        if self.unjudged:
            reasons = "; ".join(f"{count} × {reason} …" for reason, count in self.unjudged.most_common())
            some = ", ".join(map(str, dict.fromkeys(self.unjudged_seeds[:20])))
            yield f"{self.unjudged.total()} results not judged: {reasons} (seeds {some})"
        if self.excused:
            some = ", ".join(f"{seed} ({where})" for seed, where in self.excused[:5])
            yield f"{len(self.excused)} not proved, but within what roundings make of the original: {some}"
        verdicts = ", ".join(f"{count} {verdict}" for verdict, count in self.certificates.most_common())
        yield f"{self.certificates.total()} certificates" + (f": {verdicts}" if verdicts else "")
        for seed, alarm in self.alarms[:10]:
            yield f"  a right change rolled back: seed {seed}, {alarm}"
        yield f"{self.used.total()} changes by {len(set(self.used) & set(names))} of {len(set(names))} rules"
        yield "by rule: " + ", ".join(f"{name} {count}" for name, count in self.used.most_common())
        never = [name for name in dict.fromkeys(names) if not self.used[name]]
        yield "never used: " + (", ".join(f"{name} ({self.refused[name]} refusals)" for name in never) or "none")
        seeds = ", ".join(map(str, self.failed[:20]))
        yield f"{len(self.failed)} failures" + (f": seeds {seeds}" if seeds else "")


def look(seed: int, targets: Sequence[Target] = TARGETS) -> Outcome:
    """Grows the graph of a seed and examines what becomes of it on each target."""
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("error")
        return _look(seed, targets)


def _look(seed: int, targets: Sequence[Target]) -> Outcome:
    model = seeded_model(seed)
    kind = onnx.helper.tensor_dtype_to_np_dtype(model.graph.input[0].type.tensor_type.elem_type).name
    nodes = sum(node.op_type != "Constant" for node in model.graph.node)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        fault = f"generator: {' '.join(str(error).split())[:300]}"
        return Outcome(seed, kind, nodes, False, (Examination(targets[0], (fault,)),))
    on_runtime = loads(model)
    examinations = tuple(examine(model, one, on_runtime=on_runtime) for one in targets)
    return Outcome(seed, kind, nodes, on_runtime, examinations, frozenset(features(model)))


def soak(seeds: Iterator[int], targets: Sequence[Target], deadline: float, processes: int) -> Iterator[Outcome]:
    """Examines graph after graph, in processes of their own, so that a crash or a hang is one more failure."""
    running: dict[Future[Outcome], tuple[int, float]] = {}
    pool = _pool(processes)
    try:
        while running or time.monotonic() < deadline:
            while len(running) < processes and time.monotonic() < deadline:
                following = next(seeds, None)
                if following is None:
                    deadline = 0.0
                    break
                seed = following
                running[pool.submit(look, seed, targets)] = seed, time.monotonic()
            done, _ = wait(running, timeout=5, return_when=FIRST_COMPLETED)
            for future in done:
                seed, _ = running.pop(future)
                error = future.exception()
                if error is None:
                    yield future.result()
                    continue
                yield _died(seed, targets, f"{type(error).__name__}: {error}")
                if isinstance(error, BrokenProcessPool):
                    pool = _pool(processes)
            late = [seed for seed, start in running.values() if time.monotonic() - start > PATIENCE]
            if late:
                yield from (_died(seed, targets, f"runs for more than {PATIENCE:g} s") for seed in late)
                _end(pool)
                pool, running = _pool(processes), {}
        pool.shutdown()
    except BaseException:  # an interruption, too, leaves no process behind
        _end(pool)
        raise


def _pool(processes: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(processes, mp_context=get_context("spawn"))


def _end(pool: ProcessPoolExecutor) -> None:
    """Ends a pool without waiting for what it runs."""
    for process in list((pool._processes or {}).values()):
        process.kill()
    pool.shutdown(wait=False, cancel_futures=True)


def _died(seed: int, targets: Sequence[Target], reason: str) -> Outcome:
    return Outcome(seed, "unknown", 0, False, (Examination(targets[0], (f"process: {reason}",)),))


def main(arguments: Sequence[str] | None = None) -> int:
    """Soaks, prints and writes what failed."""
    parser = argparse.ArgumentParser(prog="python -m scripts.soak", description=__doc__.partition(":")[0])
    parser.add_argument("--minutes", type=float, default=20.0, help="how long (20)")
    parser.add_argument("--seed", type=int, default=0, help="of the first graph; the others follow (0)")
    parser.add_argument("--graphs", type=int, help="so many graphs at most")
    parser.add_argument("--targets", default="portable,cpu,cuda", help="separated by commas (portable,cpu,cuda)")
    parser.add_argument("--processes", type=int, choices=(1, 2), default=1, help="at once (1)")
    parser.add_argument("--one", type=int, metavar="SEED", help="examine this graph alone, and write it out")
    parser.add_argument("--out", type=Path, default=Path("soak-failures"), help="folder for failures (soak-failures)")
    options = parser.parse_args(arguments)
    targets = [one for one in TARGETS if one.provider in options.targets.split(",")]
    if not targets:
        parser.error(f"no such targets: {options.targets}")
    tally, start = Tally(), time.monotonic()
    if options.one is not None:
        outcomes: Iterator[Outcome] = iter([look(options.one, targets)])
    else:
        seeds = iter(range(options.seed, options.seed + options.graphs if options.graphs else sys.maxsize))
        outcomes = soak(seeds, targets, start + 60 * options.minutes, options.processes)
    for outcome in outcomes:
        tally.add(outcome)
        faults = list(outcome.faults())
        for fault in faults:
            print(f"seed {outcome.seed}, {outcome.dtype}: {fault}", flush=True)
        if faults or options.one is not None:
            print(f"seed {outcome.seed}: written to {write(outcome, faults, options.out)}", flush=True)
    print(f"{time.monotonic() - start:.0f} s")
    print("\n".join(tally.lines()))
    return int(bool(tally.failed))


def write(outcome: Outcome, faults: Sequence[str], folder: Path) -> Path:
    """Writes the graph of a seed, with what is wrong in its doc string and in a text beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    model = seeded_model(outcome.seed)
    model.doc_string = "\n".join(faults)
    path = folder / f"{outcome.seed}.onnx"
    onnx.save(model, path)
    path.with_suffix(".txt").write_text("\n".join([*faults, "", onnx.printer.to_text(model)]), encoding="utf-8")
    return path


if __name__ == "__main__":
    sys.exit(main())

"""normfuse against other optimizers on real models: `python -m scripts.compare [--all] [--json] [--times] [NAME ...]`.

For each model: the nodes that each optimizer leaves (subgraphs, functions and Constant nodes included), the
BatchNormalizations that are left, and normfuse's own proof. With `--times`, the wall time of the whole process, without
the proof, against onnxslim's. With `--nets`, on whole nets by exporter and opset instead: see `scripts.nets`.
"""

import argparse
import compileall
import json
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx

from normfuse.errors import NormfuseError
from scripts.fetch_models import fetch, shapes
from scripts.peers import PEERS, Outcome, optimize, run

REPEATS = 5
OURS = "normfuse"


@dataclass(frozen=True, slots=True)
class Size:
    """What an optimizer left of a model.

    Attributes:
        nodes: all nodes; None where it failed.
        norms: BatchNormalizations among them.
        problem: why it failed, in one line.
    """

    nodes: int | None
    norms: int | None
    problem: str = ""

    @classmethod
    def of(cls, path: Path) -> "Size":
        """Counts a model."""
        model = onnx.load(path, load_external_data=False)
        counts = Counter(_operators(model.graph.node))
        for function in model.functions:
            counts.update(_operators(function.node))
        return cls(counts.total(), counts["BatchNormalization"])


@dataclass(frozen=True, slots=True)
class Times:
    """Whole-process wall times on one model, in seconds.

    Attributes:
        ours: median of `normfuse optimize --no-verify`.
        theirs: median of `onnxslim`.
        ratio: median of the ratios of neighbouring runs.
    """

    ours: float
    theirs: float
    ratio: float


@dataclass(frozen=True, slots=True)
class Row:
    """One model.

    Attributes:
        name: what scripts call it.
        sizes: by optimizer, `raw` and `normfuse` among them.
        passed: normfuse's proof; None where it failed before it came to one.
        ratio: the error ratio of that proof.
        times: with `--times`.
    """

    name: str
    sizes: dict[str, Size]
    passed: bool | None
    ratio: float | None
    times: Times | None = None

    @property
    def fewest(self) -> bool:
        """Whether no other optimizer leaves fewer nodes."""
        ours = self.sizes[OURS].nodes
        others = [size.nodes for size in self.sizes.values() if size.nodes is not None]
        return ours is not None and ours <= min(others)


def _operators(nodes: Sequence[onnx.NodeProto]) -> Iterator[str]:
    for node in nodes:
        yield node.op_type
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _operators(graph.node)


def compare(name: str, path: Path, timed: bool = False) -> Row:
    """Optimizes one model with every optimizer.

    Raises:
        NormfuseError: the peers cannot be installed.
    """
    with tempfile.TemporaryDirectory(prefix="normfuse-") as place:
        result = Path(place) / "result.onnx"
        sizes = {"raw": Size.of(path)}
        for peer in PEERS:
            sizes[peer.name] = _size(optimize(peer, path, result), result)
        result.unlink(missing_ok=True)
        given = [f"--shape={key}={'x'.join(map(str, shape))}" for key, shape in shapes(name).items()]
        done = run(_ours(path, result, *given, "--json"))
        parity = _parity(done)
        sizes[OURS] = Size(None, None, str(parity["reason"])) if parity.get("reason") else _size(done, result)
        times = whole_processes(path, result) if timed else None
    return Row(name, sizes, parity.get("passed"), parity.get("ratio"), times)


def _ours(path: Path, result: Path, *options: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "normfuse", "optimize", str(path), "-o", str(result), *options)


def _size(done: Outcome, result: Path) -> Size:
    return Size(None, None, done.problem) if done.problem else Size.of(result)


def _parity(done: Outcome) -> dict[str, Any]:
    """The proof in what `normfuse optimize --json` printed; it prints one also where the proof fails."""
    try:
        return json.loads(done.output)["parity"] or {}
    except (json.JSONDecodeError, KeyError):
        return {}


def _compile() -> None:
    """Compiles our bytecode, as pip has compiled that of the peers: a checkout may not have been run before."""
    for folder in ("normfuse", "passes"):
        compileall.compile_dir(folder, quiet=1)


def whole_processes(path: Path, result: Path) -> Times | None:
    """Paired runs of both commands, one uncounted pair first, in turning order; None where one of them fails."""
    _compile()
    pairs = []
    for repeat in range(REPEATS + 1):
        outcomes = {}
        for ours in (True, False) if repeat % 2 else (False, True):
            outcomes[ours] = run(_ours(path, result, "--no-verify")) if ours else optimize(PEERS[0], path, result)
        if any(outcome.problem for outcome in outcomes.values()):
            return None
        pairs.append((outcomes[True].seconds, outcomes[False].seconds))
    del pairs[0]
    mine, theirs = zip(*pairs, strict=True)
    return Times(statistics.median(mine), statistics.median(theirs), statistics.median(a / b for a, b in pairs))


def _line(cells: Sequence[str]) -> str:
    return f"{cells[0]:<20}" + "".join(f"{cell:>14}" for cell in cells[1:])


def _cells(row: Row) -> list[str]:
    sizes = ["fails" if size.nodes is None else str(size.nodes) for size in row.sizes.values()]
    ours = row.sizes[OURS]
    norms = f"{row.sizes['raw'].norms} → {'?' if ours.norms is None else ours.norms}"
    proof = "none" if row.passed is None else "passed" if row.passed else "FAILED"
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
    times = row.times and [f"{row.times.ours:.2f} s", f"{row.times.theirs:.2f} s", f"{row.times.ratio:.2f}"]
    return [row.name, *sizes, "yes" if row.fewest else "no", norms, proof, ratio, *(times or [])]


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints one line, or one JSON record, for each model."""
    parser = argparse.ArgumentParser(prog="python -m scripts.compare", description="normfuse against its peers.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="models to compare on (default: all but the large)")
    parser.add_argument("--all", action="store_true", help="the large ones too; with --nets, all nets and opsets")
    parser.add_argument("--offline", action="store_true", help="use only models that lie in the cache")
    parser.add_argument("--times", action="store_true", help="time whole processes against onnxslim, too")
    parser.add_argument("--json", action="store_true", help="print JSON")
    nets = parser.add_argument_group("whole nets")
    nets.add_argument("--nets", action="store_true", help="compare on nets as torch writes them: nodes, norms, latency")
    nets.add_argument("--exporter", choices=("torchscript", "dynamo"), help="one exporter only")
    nets.add_argument("--opset", type=int, action="append", help="an opset (default: 17 traced, 20 by dynamo)")
    nets.add_argument("--threads", type=int, action="append", help="a number of threads (default: 1 and 2)")
    nets.add_argument("--seconds", type=float, default=3.0, help="for one row at one number of threads (default: 3)")
    nets.add_argument("--peer-proofs", action="store_true", help="judge what the peers make, too")
    options = parser.parse_args(arguments)
    head = ["model", "raw", *(peer.name for peer in PEERS), OURS, "fewest", "BatchNorms", "proof", "error ratio"]
    head += [OURS, PEERS[0].name, "time ratio"] if options.times else []
    rows = []
    try:
        if options.nets:
            from scripts import nets as whole_nets

            return whole_nets.main(options)
        paths = fetch(options.names, options.all, options.offline)
        if not options.json:
            print(_line(head))
        for name, path in paths.items():
            rows.append(compare(name, path, options.times))
            if not options.json:
                print(_line(_cells(rows[-1])), flush=True)
    except NormfuseError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    if options.json:
        print(json.dumps({"schema_version": 1, "models": [asdict(row) for row in rows]}, indent=2))
    else:
        for row in rows:
            for tool, size in row.sizes.items():
                if size.problem:
                    print(f"{row.name}: {tool} fails: {size.problem}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

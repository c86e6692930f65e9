"""How the time of `normfuse.optimize` grows with a model: `python -m scripts.bench scale [--json] [FAMILY ...]`.

Each family of `models.scaling` is optimized without the proof at several sizes; time per node must stay flat. Then one
model is optimized as a whole process, ours and onnxslim's in pairs.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import onnx_ir as ir

import normfuse
from models.scaling import FAMILIES
from normfuse.errors import NormfuseError
from scripts.compare import Times, whole_processes

SIZES = (500, 1000, 2000, 5000, 10000, 20000)
PAIRED = 2000
"""The size at which whole processes are timed."""

FLAT = 1.5
"""By how much the time per node may grow, from the smallest model to the largest."""


@dataclass(frozen=True, slots=True)
class Growth:
    """One family at all sizes.

    Attributes:
        family: its name.
        nodes: the nodes of each model.
        seconds: processor time that optimizing took, the least of the repeats.
        left: the nodes of each result.
    """

    family: str
    nodes: tuple[int, ...]
    seconds: tuple[float, ...]
    left: tuple[int, ...]

    @property
    def per_node(self) -> tuple[float, ...]:
        """Seconds per node."""
        return tuple(time / count for time, count in zip(self.seconds, self.nodes, strict=True))

    @property
    def growth(self) -> float:
        """Time per node of the largest model, divided by that of the smallest."""
        return self.per_node[-1] / self.per_node[0]


def grow(family: str, sizes: Sequence[int] = SIZES, repeats: int = 3) -> Growth:
    """Optimizes a family at several sizes; processor time, so that other work on the machine matters less."""
    counts, seconds, left = [], [], []
    for size in sizes:
        model = ir.to_proto(FAMILIES[family](size))
        times = []
        for _ in range(repeats):
            start = time.process_time()
            result = normfuse.optimize(model, verify=False).model
            times.append(time.process_time() - start)
        counts.append(len(model.graph.node))
        seconds.append(min(times))
        left.append(len(result.graph.node))
    return Growth(family, tuple(counts), tuple(seconds), tuple(left))


def pair(family: str, size: int = PAIRED) -> Times | None:
    """Whole processes on one model, ours and onnxslim's in pairs; None where one of them fails.

    Raises:
        NormfuseError: onnxslim cannot be installed.
    """
    with tempfile.TemporaryDirectory(prefix="normfuse-") as place:
        path = Path(place) / "model.onnx"
        ir.save(FAMILIES[family](size), path)
        return whole_processes(path, Path(place) / "result.onnx")


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints time per node by size; the exit status is 1 where it grows, or onnxslim is faster."""
    parser = argparse.ArgumentParser(prog="python -m scripts.bench scale", description="Time per node, by size.")
    parser.add_argument("families", nargs="*", metavar="FAMILY", help=f"of {', '.join(FAMILIES)} (default: all)")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="nodes of the models")
    parser.add_argument("--repeats", type=int, default=3, help="how often each is optimized (default: 3)")
    parser.add_argument("--no-pairs", action="store_true", help="leave out whole processes against onnxslim")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    if unknown := set(options.families) - set(FAMILIES):
        parser.error(f"unknown family {', '.join(sorted(unknown))}; choose from {', '.join(FAMILIES)}")
    grown = []
    for family in options.families or FAMILIES:
        growth = grow(family, options.sizes, options.repeats)
        grown.append(growth)
        if not options.json:
            cells = (
                f"{count} nodes {1e6 * each:.0f}" for count, each in zip(growth.nodes, growth.per_node, strict=True)
            )
            print(f"{family:<8} µs/node: {', '.join(cells)}; × {growth.growth:.2f}", flush=True)
    times: Times | None = None
    if not options.no_pairs:
        try:
            times = pair(grown[0].family)
        except NormfuseError as error:
            print(f"error: {error}", file=sys.stderr)
            return error.exit_status
    if options.json:
        content = {"schema_version": 1, "families": [asdict(one) for one in grown], "pairs": times and asdict(times)}
        print(json.dumps(content, indent=2))
    elif times is not None:
        print(
            f"{grown[0].family} of {PAIRED} nodes, whole process: normfuse {times.ours:.2f} s,"
            f" onnxslim {times.theirs:.2f} s, ratio {times.ratio:.2f}"
        )
    return int(any(one.growth > FLAT for one in grown) or (times is not None and times.ratio > 1.0))

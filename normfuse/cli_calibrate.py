"""The verb `calibrate` of the command line.

Only click is imported with this module, as with `normfuse.cli`.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import combinations
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from normfuse.errors import NormfuseError
from normfuse.options import THREADS, Choice
from normfuse.verb import Verb, echo, print_json

if TYPE_CHECKING:
    import onnx_ir as ir

    from normfuse.measuring import Flow
    from normfuse.population import Estimator

APPROXIMATION = (
    "--one-pass measures each layer behind layers that normalize by the statistics of the batch at hand, not by those "
    "that the model will hold: as training does, and the closer the larger the batches are"
)


def _read_shard(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """Which shard of how many, from `2/8`, as 1 and 8; anything else is a usage error."""
    if value is None:
        return None
    index, _, count = value.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 0 < int(index) <= int(count)):
        raise click.BadParameter(f"{value!r} is not a shard of several, such as 2/8")
    return int(index) - 1, int(count)


def _same_file(one: str | None, other: str | None) -> bool:
    """Whether two paths are given and lead to one file, there or to be written."""
    if one is None or other is None:
        return False
    if os.path.realpath(one) == os.path.realpath(other):
        return True
    return os.path.exists(one) and os.path.exists(other) and os.path.samefile(one, other)


@contextmanager
def _interrupts(checkpoint: str | None) -> Iterator[None]:
    """Says how to go on where the user presses Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt:
        if checkpoint is not None and os.path.exists(checkpoint):
            echo(f"{checkpoint} holds what was done: the same command goes on from there", err=True)
        raise


@click.command(cls=Verb)
@click.argument("model", type=click.Path())
@click.argument("data", nargs=-1, required=True, type=click.Path(), metavar="DATA...")
@click.option("-o", "--output", type=click.Path(), help="Where to write the model with its new statistics.")
@click.option(
    "--estimator",
    type=Choice(["mean", "pooled"]),
    default="mean",
    show_default=True,
    help="The mean over batches, or the moments of all elements together, for batches of uneven sizes.",
)
@click.option("--one-pass", is_flag=True, help="Measure all layers at once, as torch's update_bn does.")
@click.option("--dry-run", is_flag=True, help="Write nothing; print what would be written.")
@click.option(
    "--checkpoint",
    type=click.Path(),
    metavar="FILE.npz",
    help="Go on from there, and write there how far it has come; removed when all is done.",
)
@click.option(
    "--shard",
    callback=_read_shard,
    metavar="I/N",
    help="Measure the I-th of N shares of the batches in one pass, and write the part to -o.",
)
@click.option(
    "--after", type=click.Path(), metavar="STATE.npz", help="With --shard: what --merge wrote of the last pass."
)
@click.option(
    "--scheduler",
    metavar="ADDRESS",
    help="Let the workers of a dask.distributed scheduler do it; `local` starts some on this machine.",
)
@click.option("--merge", is_flag=True, help="DATA are the parts of all shards of a pass: add them up.")
@THREADS
@click.option("-v", "--verbose", is_flag=True, help="Name every layer that was not measured.")
@click.pass_context
def calibrate(
    ctx: click.Context,
    model: str,
    data: tuple[str, ...],
    output: str | None,
    estimator: str,
    one_pass: bool,
    dry_run: bool,
    checkpoint: str | None,
    shard: tuple[int, int] | None,
    after: str | None,
    scheduler: str | None,
    merge: bool,
    threads: int | None,
    verbose: bool,
    as_json: bool,
) -> None:
    """Estimate the statistics of MODEL's BatchNormalizations anew from DATA.

    DATA are .npz, .npy or .safetensors files, each of them one batch, folders of such files, or URLs of either. Layers
    are measured behind layers that are right already: one pass over the data for each depth level.

    On several machines, for each pass: --shard I/N -o PART.npz on each of them; --merge PART... -o STATE.npz on one;
    the next pass with --after STATE.npz. The last --merge writes the model, the same that one machine would write.
    Each machine needs all of DATA, in the same order and in every pass: --shard takes its share.
    """
    if output is None and not dry_run:
        raise click.UsageError("where to? Give -o OUT.onnx; or --dry-run, which writes nothing")
    if after is not None and shard is None:
        raise click.UsageError("--after is where a shard of the next pass begins; give --shard, too")
    told = {
        "--dry-run": dry_run,
        "--scheduler": scheduler,
        "--shard": shard,
        "--checkpoint": checkpoint,
        "--one-pass": one_pass,
        "--estimator": ctx.get_parameter_source("estimator") is not ParameterSource.DEFAULT,
    }
    for name in tuple(told) if merge else ("--dry-run", "--scheduler") if shard is not None else ():
        if told[name]:
            raise click.UsageError(f"{'--merge' if merge else '--shard'} does not go with {name}: leave that out")
    from normfuse.model import check_output, load, save
    from normfuse.storage import destination

    for path in (output, checkpoint):
        if path is not None:
            check_output(path, model)
    named = {"-o": output, "--checkpoint": checkpoint, "--after": after}
    named |= {f"the part {part}": part for part in data if merge}
    for first, second in combinations(named, 2):
        if not first.startswith("the part") and _same_file(named[first], named[second]):
            raise click.UsageError(f"{second} and {first} name the same file")
    if shard is None and not merge and str(output).endswith(".npz"):
        raise click.UsageError(f"{output} is no name of a model; end it with .onnx")
    if one_pass:
        echo(f"Warning: {APPROXIMATION}", err=True)
    from normfuse import console_calibrate
    from normfuse.batches import Shard, batches_of
    from normfuse.calibration import calibrated_of, concluded
    from normfuse.calibration_report import told_of
    from normfuse.calibration_state import planned, require_place

    how: Estimator = "pooled" if estimator == "pooled" else "mean"
    flow: Flow = "batch" if one_pass else "levels"
    written = None if dry_run else output
    notes: list[str] = []
    result: ir.Model | None = None
    with _interrupts(checkpoint), console_calibrate.Bar(f"reading {model}") as bar:
        original = load(model)  # as onnx_ir.Model, whose external data stays external
        if not merge:
            batches = batches_of(list(data), original)
            for path in (output, checkpoint):
                if path is not None:
                    batches.check_apart(path)
        if merge:
            from normfuse.calibration_shards import merge_parts

            state = merge_parts(original, data)
            if state.number == state.passes:
                refusals = planned(original, state.estimator, state.flow)[1]
                report, result = concluded(original, state, refusals)
        elif shard is not None:
            from normfuse.calibration_shards import measure_shard

            require_place(str(output))
            share = Shard(*shard)
            state = measure_shard(
                original, batches, share, how, flow, after=after, checkpoint=checkpoint, threads=threads, say=bar.say
            )
            notes = told_of(batches.ignored, batches.twice)
        else:
            report, result = calibrated_of(original, batches, how, flow, threads, bar.say, checkpoint, scheduler)
        if result is None and written is not None:
            require_place(written)
            state.save(written)
        elif result is not None and written is not None:
            if written.endswith(".npz"):
                raise NormfuseError(f"that was the last pass, and {written} no name of a model; end it with .onnx")
            save(result, written)
        if checkpoint is not None:
            os.unlink(destination(checkpoint))
    if result is None:
        where = {"pass": state.number + (not merge), "passes": state.passes, "batches": state.done or state.batches}
        if as_json:
            print_json("calibrate", {"model": model, "written": written, **where, "notes": notes})
            return
        echo(console_calibrate.partial_line(state, merge))
        for note in notes:
            echo(f"note: {note}")
    elif as_json:
        print_json("calibrate", {"model": model, "written": written, **report.to_dict()})
        return
    else:
        console_calibrate.print_calibration(report, verbose=verbose)
    echo(f"written: {written}" if written is not None else "dry run: nothing written")

"""The verb `calibrate` of the command line.

Only click is imported with this module, as with `normfuse.cli`.
"""

import click

from normfuse.options import THREADS
from normfuse.verb import Verb, print_json

APPROXIMATION = (
    "--one-pass measures each layer behind layers that normalize by the statistics of the batch at hand, not by those "
    "that the model will hold: as training does, and the closer the larger the batches are"
)


@click.command(cls=Verb)
@click.argument("model", type=click.Path())
@click.argument("data", nargs=-1, required=True, type=click.Path(), metavar="DATA...")
@click.option("-o", "--output", type=click.Path(), help="Where to write the model with its new statistics.")
@click.option(
    "--estimator",
    type=click.Choice(["mean", "pooled"]),
    default="mean",
    show_default=True,
    help="The mean over batches, or the moments of all elements together, for batches of uneven sizes.",
)
@click.option("--one-pass", is_flag=True, help="Measure all layers at once, as torch's update_bn does.")
@click.option("--dry-run", is_flag=True, help="Write nothing; print what would be written.")
@THREADS
@click.option("-v", "--verbose", is_flag=True, help="Name every layer that was not measured.")
def calibrate(
    model: str,
    data: tuple[str, ...],
    output: str | None,
    estimator: str,
    one_pass: bool,
    dry_run: bool,
    threads: int | None,
    verbose: bool,
    as_json: bool,
) -> None:
    """Estimate the statistics of MODEL's BatchNormalizations anew from DATA.

    DATA are .npz, .npy or .safetensors files, each of them one batch, folders of such files, or URLs of either. Layers
    are measured behind layers that are right already: one pass over the data for each depth level.
    """
    if output is None and not dry_run:
        raise click.UsageError("where to? Give -o OUT.onnx; or --dry-run, which writes nothing")
    from normfuse.model import check_output, load, save

    if output is not None:
        check_output(output, model)
    if one_pass:
        click.echo(f"Warning: {APPROXIMATION}", err=True)
    from normfuse import calibration, console_calibrate
    from normfuse.batches import batches_of

    with console_calibrate.Bar(f"reading {model}") as bar:
        original = load(model)  # as onnx_ir.Model, whose external data stays external
        report, calibrated = calibration.calibrated_of(
            original,
            batches_of(list(data), original),
            "pooled" if estimator == "pooled" else "mean",
            "batch" if one_pass else "levels",
            threads,
            bar.say,
        )
        written = None if dry_run else output
        if written is not None:
            save(calibrated, written)
    if as_json:
        print_json("calibrate", {"model": model, "written": written, **report.to_dict()})
    else:
        console_calibrate.print_calibration(report, verbose=verbose)
        click.echo(f"written: {written}" if written is not None else "dry run: nothing written")

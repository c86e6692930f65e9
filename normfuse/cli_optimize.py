"""The verb `optimize` of the command line.

Only click is imported with this module, as with `normfuse.cli`.
"""

import os

import click

from normfuse.options import (
    DATA,
    FREEZE,
    IGNORE,
    OPSET,
    SELECT,
    SHAPE,
    TARGET,
    THREADS,
    VERIFY_BUDGET,
    Shapes,
    read_arrays,
)
from normfuse.verb import Verb, echo, end, print_json


@click.command(cls=Verb)
@click.argument("model", type=click.Path())
@click.option("-o", "--output", type=click.Path(), help="Where to write the optimized model.")
@TARGET
@THREADS
@OPSET
@SELECT
@IGNORE
@click.option("--tune", is_flag=True, help="Measure the forms of each normalization here, and take the fastest.")
@click.option(
    "--tune-budget",
    type=click.FloatRange(min=0),
    default=20.0,
    show_default=True,
    metavar="SECONDS",
    help="Time for measuring what is not known yet.",
)
@click.option("--dry-run", is_flag=True, help="Write nothing; print what would be done.")
@click.option("--check", is_flag=True, help="Write nothing; exit 1 if something would be changed.")
@click.option("--verify/--no-verify", default=None, help="Prove the result. [default: yes, but not with --check]")
@VERIFY_BUDGET
@click.option("--certificates", type=click.Path(), metavar="FILE.json", help="Save the proof of each change there.")
@DATA
@SHAPE
@FREEZE
@click.option("-v", "--verbose", is_flag=True, help="Name every node that was refused.")
def optimize(
    model: str,
    output: str | None,
    target: str,
    threads: int | None,
    opset: int | None,
    select: list[str],
    ignore: list[str],
    tune: bool,
    tune_budget: float,
    dry_run: bool,
    check: bool,
    verify: bool | None,
    verify_budget: float,
    certificates: str | None,
    data: tuple[str, ...],
    shapes: Shapes,
    freeze: bool | None,
    verbose: bool,
    as_json: bool,
) -> None:
    """Make the normalizations of MODEL cheap.

    Every scale and shift by constants goes into neighbouring weights, every normalization and activation is written in
    the form that is fastest on the target; the result is proved and written.
    """
    writes = not (dry_run or check)
    if output is None and writes:
        raise click.UsageError("where to? Give -o OUT.onnx; or --dry-run or --check, which write nothing")
    if certificates is not None and (not writes or verify is False):
        raise click.UsageError("--certificates proves the file that -o writes; leave out what keeps it from that")
    from normfuse.model import check_output, load, save

    for path in (output, certificates):
        if path is not None:
            check_output(path, model)
    if certificates is not None and output is not None and os.path.realpath(certificates) == os.path.realpath(output):
        raise click.UsageError("--certificates and -o name the same file")
    inputs = read_arrays(data)

    from normfuse import console, pipeline
    from normfuse.signatures import explained

    pipeline.check_rules(select, ignore)

    tuner = None
    with console.Progress(f"reading {model}") as progress:
        if tune:
            from normfuse.tuning import Tuner

            tuner = Tuner(shapes, budget=tune_budget, progress=progress.say)
        original = load(model)  # as onnx_ir.Model, whose external data stays external
        settings: pipeline.Settings = {
            "threads": threads,
            "opset": opset,
            "select": select,
            "ignore": ignore,
            "freeze": freeze,
            "tune": tuner or False,
            "shapes": shapes,
            "observers": [lambda stage, _: progress.say(f"{stage} done")],
        }
        if verify or (verify is None and not check):
            result, report = pipeline.prove(
                original, target, verify_budget=verify_budget, data=inputs, progress=progress.say, **settings
            )
        else:
            with explained(lambda: load(model)):
                result, report = original, pipeline.rewrite(original, target, **settings)
        passed = report.parity is None or report.parity.passed
        written = output if writes and passed else None
        if written is not None:
            progress.say(f"writing {written}")
            save(result, written)
            if certificates is not None:
                from normfuse.certificates import save_certificates

                how = {"target": target, "threads": threads, "opset": opset, "select": select, "ignore": ignore}
                how |= {"freeze": freeze, "tuned": tune}
                save_certificates(certificates, model, written, report, how)
    if tuner is not None and tuner.cache.warning:
        echo(f"Warning: {tuner.cache.warning}", err=True)
    if as_json:
        head = {"model": model, "target": target, "written": written}
        tuning = {} if tuner is None else {"tuning": tuner.summary()}
        print_json("optimize", {**head, **tuning, **report.to_dict()})
    else:
        console.print_report(report, {rule.name: rule for rule in pipeline.rules()}, verbose=verbose)
        if tuner is not None:
            echo(str(tuner))
        judged = report.parity is None or report.parity.judged
        echo(_closing_line(written, passed, judged, dry_run, check, len(report.changes)))
        if not passed and judged and report.changes:
            echo(f"`normfuse reduce {model}` finds the changes that are to blame; --ignore RULE leaves them out")
    end(passed and not (check and report.changes))


def _closing_line(written: str | None, passed: bool, judged: bool, dry_run: bool, check: bool, changes: int) -> str:
    """What became of the output file, in one line."""
    if written is not None:
        return f"written: {written}"
    if not judged:
        return "nothing written: nothing could be judged"
    if not passed:
        return "nothing written: the result does not compute what the original computes"
    if check:
        return f"check: {changes} changes would be made" if changes else "check: nothing to do"
    return "dry run: nothing written" if dry_run else "nothing written"

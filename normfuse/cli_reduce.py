"""The verb `reduce` of the command line.

Only click is imported with this module, as with `normfuse.cli`.
"""

from pathlib import Path

import click
from click.core import ParameterSource

from normfuse.options import (
    BUDGET,
    DATA,
    FREEZE,
    IGNORE,
    OPSET,
    SELECT,
    SHAPE,
    TARGET,
    THREADS,
    Choice,
    Shapes,
    read_arrays,
)
from normfuse.verb import Verb, end, print_json

_OPTIMIZING = ("target", "threads", "opset", "select", "ignore", "freeze")
"""Options that say how MODEL is optimized, which it is not where a candidate is given."""
_COMPARING = ("provider", "seeds")
"""Options that say how a candidate is judged."""


@click.command(cls=Verb)
@click.argument("model", type=click.Path())
@click.argument("candidate", required=False, type=click.Path())
@click.option(
    "-o",
    "--output",
    type=click.Path(),
    metavar="FOLDER",
    help="Where to write the case: a new or an empty folder. [default: MODEL-case, in the current folder]",
)
@TARGET
@THREADS
@OPSET
@SELECT
@IGNORE
@FREEZE
@click.option("--provider", type=Choice(["cpu", "cuda"]), help="Who runs MODEL and CANDIDATE. [default: cpu]")
@click.option("--seeds", type=click.IntRange(min=1), default=2, show_default=True, help="Sets of random inputs.")
@BUDGET
@DATA
@SHAPE
@click.option("-v", "--verbose", is_flag=True, help="Show every value, not only those near the first that diverges.")
@click.pass_context
def reduce(
    ctx: click.Context,
    model: str,
    candidate: str | None,
    output: str | None,
    target: str,
    threads: int | None,
    opset: int | None,
    select: list[str],
    ignore: list[str],
    freeze: bool | None,
    provider: str | None,
    seeds: int,
    budget: float,
    data: tuple[str, ...],
    shapes: Shapes,
    verbose: bool,
    as_json: bool,
) -> None:
    """Find what makes CANDIDATE compute something else than MODEL.

    The first value that diverges, and the smallest part of both models that shows it, written as a folder that runs.
    Without CANDIDATE, MODEL is optimized, and the smallest set of changes that fails is found first.

    Exits with 1 where something diverges.
    """
    foreign = _COMPARING if candidate is None else _OPTIMIZING
    given = [f"--{name}" for name in foreign if ctx.get_parameter_source(name) is not ParameterSource.DEFAULT]
    if given and candidate is None:
        raise click.UsageError(f"{given[0]} is for comparing MODEL with CANDIDATE: give that, too")
    if given:
        raise click.UsageError(f"{given[0]} is for optimizing MODEL: leave it out, or CANDIDATE")
    folder = f"{Path(model).stem}-case" if output is None else output
    inputs = read_arrays(data)
    from normfuse import console, reduction

    with console.Progress(f"reading {model}") as progress:
        found = reduction.reduce(
            model,
            candidate,
            folder,
            target=target,
            data=inputs or None,
            seeds=seeds,
            budget=budget,
            provider=provider,
            shapes=shapes,
            progress=progress.say,
            threads=threads,
            opset=opset,
            select=select,
            ignore=ignore,
            freeze=freeze,
        )
    if as_json:
        print_json("reduce", {"model": model, "candidate": candidate, **found.to_dict()})
    else:
        from normfuse.console_reduce import print_reduction

        print_reduction(found, verbose=verbose)
    end(not found.diverges)

"""The verb `export` of the command line.

Only click is imported with this module, as with `normfuse.cli`.
"""

from typing import TYPE_CHECKING, cast

import click

from normfuse.errors import ParityError
from normfuse.options import (
    DATA,
    IGNORE,
    SELECT,
    SHAPE,
    TARGET,
    THREADS,
    VERIFY_BUDGET,
    Shapes,
    read_arrays,
)
from normfuse.verb import Verb, echo, end, print_json

if TYPE_CHECKING:
    from normfuse.factories import Example
    from normfuse.report import Report


def read_examples(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> "list[Example]":
    """Example inputs, from `NAME:DIMS[:DTYPE]`; anything else is a usage error."""
    from normfuse.factories import Example

    try:
        examples = [Example.parse(value) for value in values]
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    names = [example.name for example in examples]
    for place, name in enumerate(names):
        if name in names[:place]:
            raise click.BadParameter(f"{name!r} is given twice")
    return examples


def read_limits(
    ctx: click.Context, param: click.Parameter, values: tuple[str, ...]
) -> dict[str, tuple[int, int | None]]:
    """Limits of dimensions by name, from `NAME=MIN..MAX`, without a largest where that is left out."""
    limits: dict[str, tuple[int, int | None]] = {}
    for value in values:
        name, _, span = value.partition("=")
        least, dots, most = span.partition("..")
        right = name.isidentifier() and dots and all(size.isdecimal() for size in (least or "1", most or "1"))
        low, high = (int(least or 1), int(most) if most else None) if right else (0, None)
        if low < 1 or (high is not None and high < low):
            raise click.BadParameter(f"{value!r} is no limit; write a name and two sizes, such as length=1..512")
        if name in limits:
            raise click.BadParameter(f"{name!r} is limited twice")
        limits[name] = low, high
    return limits


@click.command(cls=Verb)
@click.argument("factory", metavar="MODULE:FACTORY")
@click.option("-o", "--output", type=click.Path(), help="Where to write the model.")
@click.option(
    "--weights",
    type=click.Path(),
    metavar="FILE",
    help="Load these weights first: .safetensors, or a state_dict that torch.save wrote.",
)
@click.option(
    "--input",
    "examples",
    multiple=True,
    callback=read_examples,
    metavar="NAME:DIMS[:DTYPE]",
    help="Example input, such as x:batch=2,3,224,224 or ids:1,16:int64; a name makes an axis dynamic. Repeatable.",
)
@click.option(
    "--limit",
    "limits",
    multiple=True,
    callback=read_limits,
    metavar="NAME=MIN..MAX",
    help="Sizes that a dynamic dimension may have, such as length=1..512 or batch=2..; kept in the file. Repeatable.",
)
@click.option("--static", is_flag=True, help="Make no axis dynamic.")
@click.option("--train", is_flag=True, help="Export parts that are in training mode so.")
@TARGET
@THREADS
@click.option(
    "--opset",
    type=click.IntRange(min=1),
    metavar="N",
    help="Write this opset, 18 or above. [default: 20; for bfloat16 the first that has it]",
)
@SELECT
@IGNORE
@click.option("--optimize/--no-optimize", default=True, help="Optimize for the target. [default: yes]")
@click.option("--verify/--no-verify", default=True, help="Prove the result against the module. [default: yes]")
@VERIFY_BUDGET
@click.option("--layers", is_flag=True, help="Compare the outputs of the module's parts one by one, too.")
@DATA
@SHAPE
@click.option("-v", "--verbose", is_flag=True, help="Name every node that was refused.")
def export(
    factory: str,
    output: str | None,
    weights: str | None,
    examples: "list[Example]",
    limits: dict[str, tuple[int, int | None]],
    static: bool,
    train: bool,
    target: str,
    threads: int | None,
    opset: int | None,
    select: list[str],
    ignore: list[str],
    optimize: bool,
    verify: bool,
    verify_budget: float,
    layers: bool,
    data: tuple[str, ...],
    shapes: Shapes,
    verbose: bool,
    as_json: bool,
) -> None:
    """Export a torch module to ONNX, optimized and proved.

    MODULE:FACTORY names what makes the module, or is one, such as models.cnn:resnet18. Example inputs are given with
    --input, or are the attribute example_inputs of the module: a tuple of tensors. Its attribute dynamic_shapes, if
    any, says which axes are dynamic.
    """
    if output is None:
        raise click.UsageError("where to? Give -o OUT.onnx")
    from normfuse.model import check_output

    if layers and not verify:
        raise click.UsageError("--layers is part of the proof: leave out --no-verify")
    check_output(output, None)
    inputs = read_arrays(data)
    from normfuse import console, pipeline
    from normfuse.exporting import export as run
    from normfuse.factories import make

    with console.Progress(f"importing {factory}") as progress:
        made = make(factory, weights, examples, static, limits)
        if made.training and not train:
            echo(f"Warning: {made.training}", err=True)
        try:
            written: str | None = output
            report = run(
                made.module,
                made.args,
                output,
                kwargs=made.kwargs,
                target=target,
                threads=threads,
                opset=opset,
                dynamic_shapes=made.dynamic_shapes,
                training=train,
                select=select,
                ignore=ignore,
                optimize=optimize,
                verify=verify,
                verify_budget=verify_budget,
                layers=layers,
                data=inputs or None,
                shapes=shapes,
                progress=progress.say,
            ).report
        except ParityError as error:
            if error.report is None:
                raise
            report = cast("Report", error.report)
            written = None
    if as_json:
        print_json("export", {"module": factory, "target": target, "written": written, **report.to_dict()})
    else:
        console.print_report(report, {rule.name: rule for rule in pipeline.rules()}, verbose=verbose)
        if report.parts is not None:
            echo("", "the parts of the module, as they were captured:")
            console.print_parity(report.parts)
        if written is None:
            echo("nothing written: the result does not compute what the module computes")
        else:
            echo(f"written: {written}")
    end(written is not None)

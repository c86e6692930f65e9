"""The command line: the verbs and their options.

Only click is imported with this module: what a verb needs is imported when it runs, so that `--help` is fast.
"""

import io
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from normfuse import __version__
from normfuse.alike import did_you_mean
from normfuse.cli_calibrate import calibrate
from normfuse.cli_cases import ANNOTATIONS, JUNIT, told
from normfuse.cli_export import export
from normfuse.cli_optimize import optimize
from normfuse.cli_reduce import reduce
from normfuse.errors import NormfuseError
from normfuse.interrupts import end_at_once
from normfuse.options import (
    BUDGET,
    DATA,
    SHAPE,
    TARGET,
    THREADS,
    Choice,
    Shapes,
    complete_rule,
    read_arrays,
    read_counts,
)
from normfuse.verb import Verb, echo, end, print_json
from normfuse.watch import watched

if TYPE_CHECKING:
    from normfuse.passes.rule import Rule


class Program(click.Group):
    """The group of all verbs, whose work is watched where it is a program and not called by one."""

    def __call__(self, *arguments: Any, **settings: Any) -> Any:
        """Runs the program."""
        end_at_once()
        watched()
        return super().__call__(*arguments, **settings)


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="normfuse")
def main() -> None:
    """Makes normalization cheap at inference in ONNX models, and proves it."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a formula must not end a run on a terminal without Greek


@main.command(cls=Verb)
@click.argument("model", type=click.Path())
@TARGET
@THREADS
@click.option("--profile", is_flag=True, help="Time the nodes in ONNX Runtime: what share is normalization?")
@click.option(
    "--layout/--no-layout",
    default=None,
    help="Ask ONNX Runtime what breaks its blocked convolution layout. [default: where it is installed]",
)
@click.option("--data", multiple=True, type=click.Path(), metavar="X.npz", help="Time with these inputs.")
@SHAPE
@click.option("-v", "--verbose", is_flag=True, help="Name every node and every reason.")
def inspect(
    model: str,
    target: str,
    threads: int | None,
    profile: bool,
    layout: bool | None,
    data: tuple[str, ...],
    shapes: Shapes,
    verbose: bool,
    as_json: bool,
) -> None:
    """List the normalizations of MODEL.

    And every affine map: its formula, what it costs, where it stands and what would become of it on each target.
    """
    from importlib.util import find_spec

    if (data or shapes) and not profile:
        raise click.UsageError("--data and --shape are what --profile times with; give that, too")
    inputs = read_arrays(data)
    from normfuse import console, inspection

    with console.Progress(f"reading {model}") as progress:
        found = inspection.inspect(
            model,
            target,
            threads=threads,
            profile=profile,
            layout=find_spec("onnxruntime") is not None if layout is None else layout,
            data=inputs or None,
            shapes=shapes,
            progress=progress.say,
        )
    if as_json:
        print_json("inspect", {"model": model, "target": target, **found.to_dict()})
    else:
        from normfuse.console_inspect import print_inspection

        print_inspection(found, verbose=verbose)


@main.command(cls=Verb)
@click.argument("reference", type=click.Path())
@click.argument("candidate", type=click.Path())
@click.option("--provider", type=Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="Who runs them.")
@click.option("--seeds", type=click.IntRange(min=1), default=2, show_default=True, help="Sets of random inputs.")
@BUDGET
@click.option(
    "--certificates",
    type=click.Path(),
    metavar="FILE.json",
    help="Make the proofs of `optimize --certificates` anew, step by step from REFERENCE to CANDIDATE.",
)
@DATA
@SHAPE
@JUNIT
@ANNOTATIONS
def verify(
    reference: str,
    candidate: str,
    provider: str,
    seeds: int,
    budget: float,
    certificates: str | None,
    data: tuple[str, ...],
    shapes: Shapes,
    junit: str | None,
    annotations: bool | None,
    as_json: bool,
) -> None:
    """Prove that two models compute the same.

    Exits with 1 where CANDIDATE does not compute what REFERENCE computes.
    """
    found = None
    read = [path for path in (certificates, *data) if path is not None]
    with told(reference, candidate, junit, annotations, read) as cases:
        from normfuse import console, testcases, verification

        inputs = read_arrays(data)
        with console.Progress("verifying") as progress:
            start = time.perf_counter()
            if certificates is not None:
                from normfuse.certificates import recheck

                found = recheck(certificates, reference, candidate, progress=progress.say)
                cases += testcases.of_certificates(found, time.perf_counter() - start)
                start = time.perf_counter()
            parity = verification.verify(
                reference,
                candidate,
                data=inputs,
                seeds=seeds,
                budget=budget,
                provider=provider,
                shapes=shapes,
                progress=progress.say,
            )
        cases += testcases.of_parity(parity, provider, time.perf_counter() - start)
    if as_json:
        again = {} if found is None else {"certificates": found.to_dict()}
        print_json("verify", {"reference": reference, "candidate": candidate, **again, **parity.to_dict()})
    else:
        if found is not None:
            echo(f"certificates: {found}")
        console.print_parity(parity)
    end(parity.passed and (found is None or found.passed))


@main.command(cls=Verb)
@click.argument("models", nargs=-1, required=True, type=click.Path(), metavar="A [B ...]")
@click.option(
    "--threads",
    "threads",
    callback=read_counts,
    metavar="N[,N...]",
    help="Threads to run on, or several numbers to time in turn. [default: all]",
)
@click.option("--rounds", type=click.IntRange(min=1), default=30, show_default=True, help="Interleaved rounds.")
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=20.0,
    show_default=True,
    help="What all rounds together may take, for each number of threads.",
)
@click.option("--provider", type=Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="Who runs them.")
@click.option("--tax", is_flag=True, help="Time each model without its normalizations, too: what do they cost?")
@click.option("--data", multiple=True, type=click.Path(), metavar="X.npz", help="Time with these inputs.")
@SHAPE
def bench(
    models: tuple[str, ...],
    threads: tuple[int, ...],
    rounds: int,
    seconds: float,
    provider: str,
    tax: bool,
    data: tuple[str, ...],
    shapes: Shapes,
    as_json: bool,
) -> None:
    """Time models side by side.

    In turn, round by round: medians with their confidence intervals, and ratios to the first model. With --tax, also
    the share of the time that goes when normalizations and affine maps are taken out: an upper bound of their cost.
    """
    inputs = read_arrays(data)
    from normfuse import bench as timing
    from normfuse import console

    with console.Progress("timing") as progress:
        table = timing.bench(
            list(models),
            threads=threads or None,
            rounds=rounds,
            seconds=seconds,
            shapes=shapes,
            data=inputs or None,
            provider=provider,
            tax=tax,
            progress=progress.say,
        )
    if as_json:
        print_json("bench", table.to_dict())
    else:
        from normfuse.console_bench import print_bench

        print_bench(table)


@main.command(cls=Verb)
@click.option("--list", "lists", is_flag=True, help="Show what has been measured.")
@click.option("--clear", is_flag=True, help="Forget it.")
def tune(lists: bool, clear: bool, as_json: bool) -> None:
    """List or forget what `optimize --tune` has measured.

    The records lie in the user's cache folder; NORMFUSE_CACHE names another one.
    """
    if lists == clear:
        raise click.UsageError("give --list to see what has been measured, or --clear to forget it")
    from normfuse.tuning_cache import TuningCache

    cache = TuningCache()
    if lists:
        records = cache.records()
        if as_json:
            content = {"folder": str(cache.folder), "records": [record.to_dict() for record in records]}
            print_json("tune", content)
        else:
            from normfuse import console

            console.print_records(records)
    else:
        count = cache.clear()
        if as_json:
            print_json("tune", {"folder": str(cache.folder), "cleared": count})
        else:
            echo(f"{count} record{'s' if count != 1 else ''} removed from {cache.folder}")
    if cache.warning:
        echo(f"Warning: {cache.warning}", err=True)


@main.command(cls=Verb)
@click.argument("rule", required=False, shell_complete=complete_rule)
def explain(rule: str | None, as_json: bool) -> None:
    """List the rules, all or those of a stage such as lower, or explain one.

    What RULE does, as a formula, and why it is right.
    """
    from normfuse import pipeline

    rules = pipeline.rules()
    chosen = [row for row in rules if rule == row.name] or [row for row in rules if rule in (None, row.kind)]
    if not chosen:
        alike = did_you_mean(str(rule), dict.fromkeys(name for row in rules for name in (row.name, row.kind)))
        raise NormfuseError(f"there is no rule {rule!r}; {alike or '`normfuse explain` lists them'}")
    if as_json:
        print_json("explain", {"rules": [_rule_fields(row) for row in chosen]})
        return
    from normfuse import console

    if len(chosen) > 1:
        console.print_rules(chosen)
    else:
        console.print_rule(chosen[0])


def _rule_fields(rule: "Rule") -> dict[str, Any]:
    import inspect as python

    return {
        "name": rule.name,
        "kind": rule.kind,
        "operators": rule.operators,
        "side": rule.side,
        "reason": rule.reason,
        "law": python.getdoc(rule.law),
    }


main.add_command(calibrate)
main.add_command(export)
main.add_command(optimize)
main.add_command(reduce)

"""Options that several verbs of the command line share, and what reads them.

Only click is imported with this module, as with `normfuse.cli`.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from normfuse.alike import did_you_mean
from normfuse.errors import NormfuseError
from normfuse.target import PROVIDERS

if TYPE_CHECKING:
    import numpy as np

Shapes = dict[str, tuple[int, ...]]


def read_shapes(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> Shapes:
    """Shapes by input name, from `NAME=1x3x48x320`; anything else is a usage error."""
    shapes = {}
    for value in values:
        name, _, dims = value.rpartition("=")
        sizes = dims.lower().split("x")
        if not name or not all(size.isdecimal() and int(size) > 0 for size in sizes):
            raise click.BadParameter(f"{value!r} is not an input's name and shape, such as images=1x3x224x224")
        shapes[name] = tuple(int(size) for size in sizes)
    return shapes


class Choice(click.Choice[str]):
    """Names to choose from, which asks for what one may have meant."""

    def get_invalid_choice_message(self, value: Any, ctx: click.Context | None) -> str:
        """The message for another name."""
        message = super().get_invalid_choice_message(value, ctx)
        return f"{message} {did_you_mean(str(value), self.choices).capitalize()}".rstrip()


def complete_rule(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """The rules whose names begin like this, for the shell."""
    from normfuse import pipeline

    return [rule.name for rule in pipeline.rules() if rule.name.startswith(incomplete)]


def read_counts(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...]:
    """Numbers of threads, separated by commas; anything else is a usage error."""
    parts = [] if value is None else value.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise click.BadParameter(f"{value!r} is no number of threads, nor several such as 1,2")
    return tuple(int(part) for part in parts)


def read_names(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> list[str]:
    """Names that are given one by one, or separated by commas."""
    return [name.strip() for value in values for name in value.split(",")]


def read_arrays(paths: Iterable[str]) -> "list[dict[str, np.ndarray[Any, Any]]]":
    """Inputs of a model from .npz files: one array for each input, under the input's name.

    Raises:
        NormfuseError: a file cannot be read, or is not such a file.
    """
    return [_archive(path) for path in paths]


def _archive(path: str) -> "dict[str, np.ndarray[Any, Any]]":
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as archive:
            return dict(archive)
    except OSError as error:
        raise NormfuseError(f"cannot read {path}: {error.strerror or error}") from error
    except MemoryError as error:
        raise NormfuseError(f"{path} does not fit into memory; give smaller inputs") from error
    except Exception as error:  # each decompressor has its own for bytes that are damaged
        hint = "write one with numpy.savez(path, **inputs)"
        raise NormfuseError(f"{path} is no .npz file of the model's inputs; {hint}") from error


DATA = click.option(
    "--data", multiple=True, type=click.Path(), metavar="X.npz", help="Judge on these inputs, too. Repeatable."
)
SHAPE = click.option(
    "--shape",
    "shapes",
    multiple=True,
    callback=read_shapes,
    metavar="NAME=DIMS",
    help="Shape of an input with dynamic dimensions, such as x=1x3x48x320. Repeatable.",
)
THREADS = click.option("--threads", type=click.IntRange(min=1), help="Threads the model will run on. [default: all]")
TARGET = click.option("--target", type=Choice(PROVIDERS), default="cpu", show_default=True, help="Where it will run.")
_SECONDS: dict[str, Any] = {
    "type": click.FloatRange(min=0),
    "default": 60.0,
    "show_default": True,
    "metavar": "SECONDS",
    "help": "Computing time for the proof.",
}
BUDGET = click.option("--budget", **_SECONDS)
VERIFY_BUDGET = click.option("--verify-budget", **_SECONDS)
OPSET = click.option("--opset", type=click.IntRange(min=1), metavar="N", help="Raise the model's opset to N first.")
SELECT = click.option(
    "--select",
    multiple=True,
    callback=read_names,
    metavar="RULE",
    shell_complete=complete_rule,
    help="Use only this rule. Repeatable.",
)
IGNORE = click.option(
    "--ignore",
    multiple=True,
    callback=read_names,
    metavar="RULE",
    shell_complete=complete_rule,
    help="Do not use this rule. Repeatable.",
)
FREEZE = click.option(
    "--freeze/--no-freeze",
    default=None,
    help="Take initializers that are also graph inputs for constants. [default: where all of them are listed]",
)

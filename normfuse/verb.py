"""What all verbs of the command line share: `--json`, `--debug`, and what they exit with.

====== ======================================================================
status meaning
====== ======================================================================
0      done
1      a gate failed: parity, or `--check` found work to do
2      usage: an option, an argument or an output path that cannot be used
3      a model that cannot be read, is not valid or is not supported
4      the execution provider is missing or failed
70     a bug in normfuse
130    interrupted
====== ======================================================================

Results go to stdout, everything else to stderr.
"""

import errno
import gc
import json
import traceback
import warnings
from collections.abc import Mapping
from typing import Any, NoReturn, TextIO

import click

from normfuse import __version__
from normfuse.errors import NormfuseError
from normfuse.interrupts import INTERRUPTED as INTERRUPTED
from normfuse.interrupts import LINE, Interrupts
from normfuse.printable import printable, printable_json, printable_lines
from normfuse.schema import SCHEMA_VERSION

GATE_FAILED, INTERNAL_ERROR = 1, 70

GARBAGE = 100_000
"""Objects between two collections: a graph is many small objects, few of them garbage."""


class Verb(click.Command):
    """A command with `--json` and `--debug`, whose errors are one line on stderr."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.params.append(click.Option(["--json", "as_json"], is_flag=True, help="Print the result as JSON."))
        self.params.append(click.Option(["--debug"], is_flag=True, help="Show warnings, and tracebacks of errors."))

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the verb, and ends the process with the exit status of its error."""
        debug = ctx.params.pop("debug")
        gc.set_threshold(GARBAGE)
        interrupts = Interrupts()
        try:
            with interrupts, warnings.catch_warnings():
                if debug:
                    warnings.showwarning = _show_warning
                else:
                    warnings.simplefilter("ignore")
                return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except KeyboardInterrupt:
            fail(LINE, INTERRUPTED)
        except Exception as error:
            if interrupts.came:
                fail(LINE, INTERRUPTED)
            if isinstance(error, OSError) and error.errno == errno.EPIPE:
                raise  # the reader of our output has gone; click ends quietly
            if debug:
                click.echo(printable_lines(traceback.format_exc()), err=True, nl=False)
            fail(*_explained(error))


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Shows a warning as Python does, but for what a name in it could order."""
    text = warnings.formatwarning(printable(str(message)), category, filename, lineno, line)
    click.echo(printable_lines(text), err=True, nl=False)


def _explained(error: Exception) -> tuple[str, int]:
    """The line and the exit status that an error ends the process with."""
    match error:
        case NormfuseError():
            return f"Error: {error}", error.exit_status
        case OSError(strerror=str(problem), filename=str(path)):
            return f"Error: {path}: {problem}", NormfuseError.exit_status
        case _:
            what = " ".join(f"{type(error).__name__}: {error}".split())
            return f"internal error: {what}; run again with --debug and report it", INTERNAL_ERROR


def echo(*lines: str, err: bool = False) -> None:
    """Writes to stdout or stderr, each on one line whatever names it holds."""
    for line in lines:
        click.echo(printable(line), err=err)


def fail(line: str, status: int) -> NoReturn:
    """Ends the process with a line on stderr and an exit status."""
    echo(line, err=True)
    raise click.exceptions.Exit(status)


def print_json(verb: str, content: Mapping[str, Any]) -> None:
    """Prints what a verb found, under the version of its schema."""
    head = {"schema_version": SCHEMA_VERSION, "normfuse": __version__, "verb": verb}
    click.echo(printable_json(json.dumps({**head, **content}, indent=2, ensure_ascii=False)))


def end(passed: bool) -> None:
    """Ends the process with the status of a gate."""
    if not passed:
        raise click.exceptions.Exit(GATE_FAILED)

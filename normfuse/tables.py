"""Tables on stdout as all verbs print them, and how they write names, shapes and shares."""

import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from normfuse.printable import printable

LONGEST_DIM = 16
"""Characters of a dimension that is still a name."""

LONGEST_NAME = 28
"""Characters of a name in a table on a terminal."""

PIPE_WIDTH = 4096
"""Columns of an output that is no terminal: nothing is wrapped or cut there, so that it can be searched."""


class _OneLineCells(Table):
    """A table whose cells hold names of a model, which may hold anything."""

    def add_row(self, *cells: Any, **settings: Any) -> None:
        super().add_row(*(printable(cell) if isinstance(cell, str) else cell for cell in cells), **settings)


def table(*columns: str) -> Table:
    """An empty table; a column whose title starts with `>` is aligned to the right."""
    made = _OneLineCells(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        made.add_column(column.removeprefix(">"), justify="right" if column.startswith(">") else "left")
    return made


def print_table(made: Table) -> None:
    """Prints a table on stdout, and an empty line."""
    console = Console(file=sys.stdout, width=width(), markup=False, highlight=False, emoji=False)
    with console.capture() as captured:
        console.print(made)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()) + "\n")


def print_lines(*lines: str) -> None:
    """Prints on stdout, each on one line whatever names it holds."""
    for line in lines:
        print(printable(line))


def width() -> int | None:
    """Columns of the output; None where the terminal tells."""
    return None if sys.stdout.isatty() else PIPE_WIDTH


def shape(sizes: Sequence[int | str | None] | None, dtype: str | None = None) -> str:
    """A shape and a dtype: `1×64×?×? float`."""
    dims = "?" if sizes is None else "×".join(map(_dim, sizes))
    return f"{dims} {(dtype or '').lower()}".rstrip()


def _dim(dim: int | str | None) -> str:
    """A dimension; a formula instead of a name is as good as unknown."""
    return "?" if dim is None or len(str(dim)) > LONGEST_DIM else str(dim)


def short(name: str) -> str:
    """The end of a long name on a terminal, which tells more than its beginning; elsewhere all of it."""
    return name if len(name) <= LONGEST_NAME or not sys.stdout.isatty() else f"…{name[-LONGEST_NAME + 1 :]}"


def few(names: Iterable[str]) -> str:
    """The first two names, and how many there are besides."""
    every = [short(name) for name in names]
    more = f" +{len(every) - 2}" if len(every) > 2 else ""
    return ", ".join(every[:2]) + more if every else "—"


def percent(share: float) -> str:
    """A share of the time: `23.1 %`."""
    return f"{100 * share:.1f} %"


def nameless(reason: str) -> str:
    """A reason without the names that it quotes, so that like reasons are one group."""
    return re.sub(r"'[^']*'", "the value", re.sub(r"(?<=\w) '[^']*'", "", reason))

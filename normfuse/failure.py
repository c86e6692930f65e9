"""Why a parity failed, for people who read it in the output of their tests: under 25 lines, the worst first."""

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from normfuse.printable import printable

if TYPE_CHECKING:
    from normfuse.metric import OutputParity
    from normfuse.verification import Parity
    from normfuse.worst import Worst

ROWS = 4
"""Rows of outputs that are shown; what failed stands first."""
NOTES = 3
"""Notes that are shown."""


def told(parity: "Parity", reference: Any, candidate: Any) -> str:
    """The verdict, both sides, each output, the worst elements, what was judged and what to do next.

    Args:
        parity: the verdict.
        reference: the model as it was.
        candidate: the model as it became.
    """
    judge = {"oracle": "the reference in float64", "noise": "the reference's own noise"}[parity.judged_by]
    lines = [f"parity FAILED: {parity.reason}", *sides(reference, candidate)]
    if parity.outputs:
        rows = sorted(parity.outputs, key=lambda output: output.passed)
        lines += ["", *_table([_HEAD, *map(_row, rows[:ROWS])]), *_rest(len(rows) - ROWS, "rows")]
    if parity.worst:
        lines += ["", *_table([_ELEMENTS, *map(_element, parity.worst)])]
    if parity.outputs:
        lines += ["", f"  judged by {judge} on {parity.probes} probes; E is relative, a ratio of 2 is one bit"]
    lines += [f"  note: {note}" for note in parity.notes[:NOTES]]
    lines += _rest(len(parity.notes) - NOTES, "notes")
    if is_file(reference) and is_file(candidate):
        lines.append(f"  next: normfuse reduce {os.fspath(reference)} {os.fspath(candidate)}")
        lines.append("        finds the first value that differs, and the smallest part of the model that shows it")
    else:
        lines.append(
            "  next: save both as ONNX files; normfuse reduce REFERENCE CANDIDATE finds the first value that differs"
        )
    return "\n".join(map(printable, lines))


def sides(reference: Any, candidate: Any) -> tuple[str, str]:
    """What both sides are, in two lines."""
    return printable(f"  reference: {_side(reference)}"), printable(f"  candidate: {_side(candidate)}")


def is_file(source: Any) -> bool:
    """Whether a side was given by its path."""
    return isinstance(source, str | os.PathLike)


def _side(source: Any) -> str:
    """What a side is, in a few words."""
    if is_file(source):
        return str(os.fspath(source))
    kind = type(source)
    if kind is bytes:
        return f"{len(source):,} bytes"
    return f"{kind.__module__.partition('.')[0]} {kind.__name__}"


_HEAD = ("output", "optimizer", "E reference", "E candidate", "ratio ≤ 2", "channel ≤ 4", "bits lost", "probes", "")


def _row(output: "OutputParity") -> tuple[str, ...]:
    return (
        output.name,
        output.level,
        f"{output.reference:.1e}",
        f"{output.candidate:.1e}",
        f"{output.ratio:.3g}",
        f"{output.channel_ratio:.3g}",
        f"{math.log2(output.ratio) if output.ratio > 1 else 0.0:.1f}",
        output.family or "any",
        "passed" if output.passed else "FAILED",
    )


_ELEMENTS = ("worst of", "optimizer", "index", "reference", "candidate", "float64", "probes", "seed")


def _element(worst: "Worst") -> tuple[str, ...]:
    return (
        worst.output,
        worst.level,
        f"[{', '.join(map(str, worst.index))}]",
        f"{worst.reference:.9g}",
        f"{worst.candidate:.9g}",
        "not known" if worst.oracle is None else f"{worst.oracle:.12g}",
        worst.family,
        str(worst.seed),
    )


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    shown = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    return ["  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in shown]


def _rest(count: int, what: str) -> list[str]:
    return [f"  … and {count} more {what}"] if count > 0 else []

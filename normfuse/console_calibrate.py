"""What `calibrate` found as text for people: a table on stdout, a bar with the time left on stderr."""

import sys
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from normfuse.calibration_report import Calibration, spread
from normfuse.calibration_state import State
from normfuse.printable import printable
from normfuse.tables import print_lines, print_table, short, table


class Bar:
    """A bar on stderr with the time that is left; shown on a terminal."""

    def __init__(self, doing: str) -> None:
        self._bar = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True, markup=False, highlight=False),
            transient=True,
        )
        self._task = self._bar.add_task(printable(doing), total=None)

    def say(self, doing: str, done: float, total: float | None) -> None:
        """Moves the bar."""
        self._bar.update(self._task, description=printable(doing), completed=done, total=total)

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar.live.is_started:
            self._bar.stop()


def partial_line(state: State, merged: bool) -> str:
    """What has been done of a calibration on several machines, and what comes next, in one line.

    Args:
        state: that of a shard, or of all of them.
        merged: whether it is that of all of them.
    """
    if merged:
        after = f"pass {state.number + 1} of {state.passes} is next: --shard I/N --after this file"
        return f"{state.batches} batches of pass {state.number} of {state.passes} merged; {after}"
    shard = f"shard {state.shard.index + 1}/{state.shard.count}"
    return f"{shard}, pass {state.number + 1} of {state.passes}: {state.done} batches; --merge it with the other parts"


def print_calibration(report: Calibration, *, verbose: bool = False) -> None:
    """Prints old and new statistics by their distance, and how far the outputs moved.

    Args:
        report: what `normfuse.calibrate` reports.
        verbose: list every layer that was not measured.
    """
    rows = table("layer", ">level", ">channels", ">|Δμ|/σ median", ">max", ">σ² ratio min", ">median", ">max")
    for layer in report.layers:
        drift, growth = spread(layer.drift), spread(layer.growth)
        rows.add_row(
            short(layer.name),
            str(layer.level),
            str(len(layer.new.mean)),
            *(f"{number:.3g}" for number in (drift[1], drift[2], *growth)),
        )
    print_table(rows)
    if report.outputs:
        moves = table("output", ">moved by", ">at most")
        for output in report.outputs:
            moves.add_row(short(output.name), f"{100 * output.relative:.3g} %", f"{output.largest:.3g}")
        print_table(moves)
    passes = f"{report.passes} pass" + ("es" if report.passes > 1 else "")
    layers = f"{len(report.layers)} layer" + ("s" if len(report.layers) > 1 else "")
    batches = f"{report.batches} batch" + ("es" if report.batches > 1 else "")
    print_lines(f"{layers}, {batches}, {passes}, estimator {report.estimator}")
    for refusal in report.refusals if verbose else report.refusals[:3]:
        print_lines(f"not measured: {refusal.node}: {refusal.reason}")
    if len(report.refusals) > 3 and not verbose:
        print_lines(f"not measured: {len(report.refusals) - 3} more; -v names them")
    for note in report.notes:
        print_lines(f"note: {note}")

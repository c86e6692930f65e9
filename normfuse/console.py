"""Results as text for people: tables on stdout, progress on stderr."""

import inspect
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from threading import Timer
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from normfuse.printable import printable
from normfuse.report import Certificate, Change, Counts, Refusal, Report
from normfuse.tables import nameless as _nameless
from normfuse.tables import print_lines
from normfuse.tables import print_table as _print
from normfuse.tables import table as _table

if TYPE_CHECKING:
    from rich.status import Status

    from normfuse.passes.rule import Rule
    from normfuse.tuning_cache import Measured, Record
    from normfuse.verification import Parity

PATIENCE = 1.0
"""Seconds after which work counts as long, and its progress is shown."""

MOST_ROWS = 12
"""Rows of the table of refusals, unless all are asked for."""


class Progress:
    """One line on stderr that says what is being done; shown on a terminal, once the work takes long."""

    def __init__(self, doing: str) -> None:
        self._doing = doing
        self._status: Status | None = None
        self._timer = Timer(PATIENCE, self._show)
        self._timer.daemon = True

    def say(self, doing: str) -> None:
        """Replaces the line."""
        self._doing = doing
        if self._status is not None:
            self._status.update(escape(printable(doing)))

    def _show(self) -> None:
        self._status = Console(stderr=True, markup=False, highlight=False).status(escape(printable(self._doing)))
        self._status.start()

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        if self._timer.is_alive():
            self._timer.join()
        if self._status is not None:
            self._status.stop()


def print_report(report: Report, rules: "Mapping[str, Rule]", *, verbose: bool = False) -> None:
    """Prints what was done to a model, what was not and why, and the proof.

    Args:
        report: what `normfuse.optimize` reports.
        rules: the rules by their names.
        verbose: list every refusal with its node, and every output.
    """
    _print(_sizes(report.before, report.after))
    if report.changes:
        _print(_changes(report, rules))
    else:
        print_lines("nothing to change")
    if report.refusals:
        _print_refusals(report.refusals, verbose)
    if report.certificates:
        print_lines(_certified(report.certificates))
    if report.parity is not None:
        print_parity(report.parity, table=verbose or not report.parity.passed)
    if report.unproved:
        print_lines(f"NOT PROVED: {report.unproved}")
    for note in report.notes:
        print_lines(f"note: {note}")


def _certified(certificates: Sequence[Certificate]) -> str:
    """What became of the certificates, in one line."""
    counts = Counter(certificate.verdict for certificate in certificates)
    worst = max(certificates, key=lambda certificate: certificate.ratio)
    line = f"certificates: {counts['passed']} of {len(certificates)} changes proved by themselves"
    if worst.ratio:
        line += f", error ratio at most {worst.ratio:.2f} ({worst.rule})"
    reasons = Counter(one.reason for one in certificates if one.verdict == "not judged")
    if reasons:
        line += f"; {reasons.total()} not judged, such as: {reasons.most_common(1)[0][0]}"
    return line


def _sizes(before: Counts, after: Counts) -> Table:
    table = _table("", ">before", ">after", ">change")
    rows = {"nodes": (before.nodes, after.nodes)}
    for norm in sorted({*before.norms, *after.norms}):
        rows[norm] = (before.norms.get(norm, 0), after.norms.get(norm, 0))
    rows["parameters"] = (before.parameters, after.parameters)
    rows["bytes"] = (before.bytes, after.bytes)
    for name, (old, new) in rows.items():
        table.add_row(name, f"{old:,}", f"{new:,}", f"{new - old:+,}" if new != old else "")
    return table


def _changes(report: Report, rules: "Mapping[str, Rule]") -> Table:
    """One row for each rule with its reason; rules that write something say for each kind of it what they wrote."""
    counts = Counter((change.rule, _done(change, rules.get(change.rule))) for change in report.changes)
    table = _table(">changed", "by rule", "what was done, or why it is right")
    for (rule, done), count in counts.most_common():
        table.add_row(str(count), rule, done)
    return table


def _done(change: Change, rule: "Rule | None") -> str:
    return _nameless(change.detail) if rule is None or rule.kind in ("block", "lower") else rule.reason


def _print_refusals(refusals: Sequence[Refusal], verbose: bool) -> None:
    """Prints refusals: each with its node where `verbose` is set, else grouped by reason without names."""
    if verbose:
        table = _table("node that stays", "because", "by rule")
        for refusal in refusals:
            table.add_row(refusal.node, refusal.reason, refusal.rule)
        _print(table)
        return
    groups = Counter((_nameless(refusal.reason), refusal.rule) for refusal in refusals)
    table = _table(">refused", "because", "by rule")
    for (reason, rule), count in groups.most_common(MOST_ROWS):
        table.add_row(str(count), reason, rule)
    _print(table)
    more = len(groups) - MOST_ROWS
    print_lines(f"(the nodes{f' and {more} more reasons' if more > 0 else ''}: --verbose)", "")


def print_parity(parity: "Parity", *, table: bool = True) -> None:
    """Prints a verdict, what it rests on, and how each output fared where `table` is set."""
    if table and parity.outputs:
        _print(_outputs(parity))
    judge = {"oracle": "the float64 oracle", "noise": "the original's own noise"}[parity.judged_by]
    verdict = "passed" if parity.passed else f"FAILED: {parity.reason}"
    print_lines(f"parity {verdict}")
    print_lines(
        f"  error ratio {parity.ratio:.2f} (at most 2 passes; {parity.bits_lost:.1f} bits lost), "
        f"judged by {judge} on {parity.probes} probes"
    )
    for worst in parity.worst:
        print_lines(f"  worst element, optimizer {worst.level}: {worst}")
    for note in parity.notes:
        print_lines(f"  note: {note}")


def _outputs(parity: "Parity") -> Table:
    table = _table("output", "type", "optimizer", ">E original", ">E candidate", ">ratio", ">worst channel", "verdict")
    for output in parity.outputs:
        table.add_row(
            output.name,
            output.dtype,
            output.level,
            f"{output.reference:.1e}",
            f"{output.candidate:.1e}",
            f"{output.ratio:.2f}",
            f"{output.channel_ratio:.2f}",
            "passed" if output.passed else f"FAILED: {output.reason}",
        )
    return table


def print_records(records: Sequence["Record"]) -> None:
    """Prints what has been measured, the chosen form of each normalization and the times of all."""
    if not records:
        print_lines("nothing has been measured; `normfuse optimize --tune` does")
        return
    table = _table("normalization", "chosen", "µs of each form", "date", "machine", "onnxruntime")
    for record in records:
        forms = ", ".join(map(_form, record.forms))
        table.add_row(record.description, record.chosen, forms, record.date, record.machine, record.onnxruntime)
    _print(table)
    print_lines(f"{len(records)} normalization{'s' if len(records) != 1 else ''} measured")


def _form(form: "Measured") -> str:
    time = "" if form.seconds is None else f" {1e6 * form.seconds:.1f}"
    return f"{form.form}{time}" + (f" ({form.problem})" if form.problem else "")


def print_rules(rules: Iterable["Rule"]) -> None:
    """Prints the table of rules."""
    table = _table("rule", "kind", "operators", "side", "why it is right")
    for rule in rules:
        table.add_row(rule.name, rule.kind, ", ".join(rule.operators) or "any", rule.side or "", rule.reason)
    _print(table)


def print_rule(rule: "Rule") -> None:
    """Prints what one rule does and why it is right."""
    side = f", {rule.side} it" if rule.side else ""
    print_lines(f"{rule.name}: {rule.kind} ({', '.join(rule.operators) or 'any operator'}{side})", "")
    print(inspect.getdoc(rule.law) or "")
    print_lines("", f"Why: {rule.reason}")

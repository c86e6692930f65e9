"""What `normfuse reduce` found, as text for people."""

from collections.abc import Sequence

from normfuse.divergence import Compared
from normfuse.reduction import Reduction
from normfuse.tables import print_lines, print_table, table

_NEAR = 6
"""Rows on each side of the first value that diverges."""


def print_reduction(found: Reduction, *, verbose: bool = False) -> None:
    """Prints where two models part, and by what.

    Args:
        found: what `normfuse.reduction.reduce` returned.
        verbose: show every value that bears the same name in both models.
    """
    if not found.diverges:
        changes = (
            f" after {found.changed} change{'s' if found.changed != 1 else ''}" if found.changes is not None else ""
        )
        print_lines(f"nothing diverges{changes}: parity passed on {found.parity.probes} probes")
        _print_notes(found)
        return
    rows = found.values if verbose else _near(found.values, found.first)
    if rows:
        shown = table(">depth", "value", "operator", ">E reference", ">E candidate", ">ratio", "")
        for row in rows:
            mark = "first that diverges" if row.name == found.first else "" if row.agrees else "differs"
            errors = (f"{row.reference:.1e}", f"{row.candidate:.1e}", f"{row.ratio:.2f}")
            shown.add_row(str(row.depth), row.name, row.operator, *errors, mark)
        print_table(shown)
        if len(rows) < len(found.values):
            print_lines(f"(all {len(found.values)} values: --verbose)", "")
    print_lines(f"diverges: {found.reason}")
    if found.first is not None:
        before, after = found.operators
        same = before if before == after else f"{before}, in the candidate {after}"
        print_lines(f"first value that diverges: {found.first!r} ({same or 'an input'})")
    if found.changes:
        count = len(found.changes)
        print_lines(f"made by {count} of {found.changed} changes:")
        for change in found.changes:
            print_lines(
                f"  {change.rule}: {', '.join(change.nodes)}" + (f" ({change.detail})" if change.detail else "")
            )
    if found.case is not None:
        before_nodes, after_nodes = found.case.sizes
        what = "the whole models" if found.case.whole else "the smallest part that shows it"
        print_lines(f"case: {what}, {before_nodes} and {after_nodes} nodes, {_inputs(found)}")
    if found.folder is not None:
        print_lines(f"written: {found.folder} (python {found.folder}/run.py)")
    _print_notes(found)


def _print_notes(found: Reduction) -> None:
    for note in dict.fromkeys((*found.notes, *found.parity.notes)):
        print_lines(f"  note: {note}")


def _inputs(found: Reduction) -> str:
    assert found.case is not None
    shapes = [f"{name} {'×'.join(map(str, array.shape)) or 'scalar'}" for name, array in found.case.inputs.items()]
    return f"input{'s' if len(shapes) != 1 else ''} {', '.join(shapes)}"


def _near(values: Sequence[Compared], first: str | None) -> Sequence[Compared]:
    """The rows around the first value that diverges, and the last row."""
    if first is None:
        start = next((place for place, row in enumerate(values) if not row.agrees), 0)
    else:
        start = next((place for place, row in enumerate(values) if row.name == first), 0)
    kept = list(values[max(0, start - _NEAR) : start + _NEAR + 1])
    return kept if not values or values[-1] in kept else [*kept, values[-1]]

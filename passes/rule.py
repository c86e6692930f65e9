"""`Rule`: a row of a table, what `normfuse explain` prints and `--select` and `--ignore` name."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

Side = Literal["after", "before"]
"""Where an affine map stands as seen from an operator: after it, or before it."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A row of a rule table.

    Attributes:
        name: unique, lower case with hyphens; what reports, `--select` and `--ignore` call it.
        kind: the table it stands in: a stage of the pipeline, or for FOLD `source`, `absorb` or `carry`.
        operators: ONNX operator types it looks at, in the default domain; empty where it looks at all.
        side: where the affine map stands as seen from the operator; None where the rule serves both sides.
        law: the function that applies it; its docstring holds the formula.
        reason: why it is right, in one line.
    """

    name: str
    kind: Literal["opset", "prepare", "lift", "source", "absorb", "carry", "lower", "block", "clean"]
    operators: tuple[str, ...]
    side: Side | None
    law: Callable[..., Any]
    reason: str


Rows = Mapping[tuple[str, Side], tuple[Rule, ...]]
"""The rules that serve an operator on a side, in the order of their table."""


def by_operator(rules: Iterable[Rule]) -> Rows:
    """The rows of a table, to be looked up."""
    rows: dict[tuple[str, Side], tuple[Rule, ...]] = {}
    for rule in rules:
        for side in get_args(Side) if rule.side is None else (rule.side,):
            for operator in rule.operators:
                rows[operator, side] = (*rows.get((operator, side), ()), rule)
    return rows

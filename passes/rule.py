"""`Rule`: a row of a table, what `normfuse explain` prints and `--select` and `--ignore` name."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

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

    def looks_at(self, operator: str, side: Side) -> bool:
        """Whether the rule serves an operator on a side."""
        return operator in self.operators and self.side in (None, side)

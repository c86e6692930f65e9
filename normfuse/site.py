"""`Site`: one normalization or affine map of a model, as `normfuse.inspect` lists them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from normfuse.fates import Fate, Outcome

Statistics = Literal["constant", "stored", "batch", "input"]


@dataclass(frozen=True, slots=True)
class Site:
    """One normalization or affine map of a model.

    Attributes:
        node: the node's name; one that was made up from its output where the file has none, or has it twice. Of a
            normalization that is spelled out, the name of its last node.
        operator: its operator type; of a normalization that is spelled out, what the field calls it.
        statistics: where μ and σ come from: `constant` (a plain affine map), `stored` (BatchNormalization at
            inference, which is one, too), `batch` or `input`.
        formula: what it computes, with the set S that shares one mean.
        shape: of the output; an int for each static dimension, else its name or None. None where it is not known.
        dtype: of the output, as ONNX calls it, or None where it is not known.
        epsilon: ε, or None where the formula has none.
        behind: operator and name of the nearest linear nodes that it reads from, through any others.
        before: operator and name of the nearest linear nodes that read it, through any others.
        elements: tensor elements read and written in one run, its cost where memory bounds the time: 2 for each element
            with constant statistics, 3 with statistics of the input; dynamic dimensions count as 1. None where the
            shape is not known.
        outcome: what `normfuse.optimize` does with the node: `folded` into others, `removed`, `rewritten` as other
            operators, or it `stays`.
        into: names of the nodes that take over what it did.
        reasons: why it stays, one line each.
        name: what the field calls it: `LayerNorm`, `GroupNorm`, ...; None for an affine map.
        nodes: names of the nodes that it is made of.
        details: what a reader should know besides the formula: ddof, where ε stands, the dtype of the statistics.
        scale: whether γ is `constant` or `computed`; None where there is none, or it is not known.
        bias: the same of β.
        groups: how many groups its channels are cut into; None where they are not.
        ddof: what n is reduced by in its variance; None for affine maps.
        targets: what becomes of it for each target.
        seconds: what it takes in one run; None where it was not timed, or cannot be told from others.
        share: the same as a part of all nodes.
        runs_as: operators that ONNX Runtime runs it as; empty where it was not timed, or is not there any more.
        note: what is to be said about its time.
    """

    node: str
    operator: str
    statistics: Statistics
    formula: str
    shape: tuple[int | str | None, ...] | None
    dtype: str | None
    epsilon: float | None
    behind: tuple[str, ...]
    before: tuple[str, ...]
    elements: int | None
    outcome: Outcome
    into: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    name: str | None = None
    nodes: tuple[str, ...] = ()
    details: tuple[str, ...] = ()
    scale: str | None = None
    bias: str | None = None
    groups: int | None = None
    ddof: int | None = None
    targets: Mapping[str, Fate] = field(default_factory=dict)
    seconds: float | None = None
    share: float | None = None
    runs_as: tuple[str, ...] = ()
    note: str = ""

    @property
    def is_norm(self) -> bool:
        """Whether it has statistics of its input, or of the batch."""
        return self.statistics in ("batch", "input")

    def to_dict(self) -> dict[str, Any]:
        """The site as JSON-ready values."""
        return asdict(self)

"""What was done to a model and what was not: `Change`, `Refusal`, `Counts` and the `Report` that holds them.

Refusals are values: wherever a rule could have applied and did not, it says so with its reason.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import onnx_ir as ir

from normfuse.schema import SCHEMA_VERSION

if TYPE_CHECKING:
    from normfuse.verification import Parity

NORMALIZATIONS = frozenset(
    {
        "BatchNormalization",
        "GroupNorm",
        "GroupNormalization",
        "InstanceNormalization",
        "LRN",
        "LayerNormalization",
        "LpNormalization",
        "MeanVarianceNormalization",
        "RMSNormalization",
        "SimplifiedLayerNormalization",
        "SkipGroupNorm",
        "SkipLayerNormalization",
        "SkipSimplifiedLayerNormalization",
        "Standardize",
    }
)
"""Operators that are a normalization by themselves."""


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that was changed.

    Attributes:
        rule: the name of the rule, as in `normfuse explain`.
        nodes: names of the nodes it removed or rewrote.
        into: names of the nodes whose weights took over what the removed nodes did.
        detail: one line for the user: what happened, and what it cost where it cost something.
    """

    rule: str
    nodes: tuple[str, ...]
    into: tuple[str, ...] = ()
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Refusal:
    """One thing that could have been changed and was not.

    Attributes:
        rule: the name of the rule that refused.
        node: the name of the node that stays as it is.
        reason: why, in one line.
    """

    rule: str
    node: str
    reason: str


@dataclass(frozen=True, slots=True)
class Certificate:
    """What became of one change when the part of the graph around it was run as it was and as it became.

    Attributes:
        rule: the rule that made the change.
        nodes: names of the nodes that it removed or rewrote.
        before: names of the nodes in the part as it was.
        after: names of the nodes in the part as it became.
        verdict: `passed`, `failed`, or `not judged`.
        judged_by: `oracle` (the float64 oracle), `noise` (the part's own noise), or nothing.
        families: the probe families that were drawn.
        seeds: how often each of them was.
        ratio: the error of what it became in units of what it was, worst output; at most 2 passes.
        bits_lost: log2 of the ratio, at least 0.
        reason: why it failed or was not judged, in one line.
        family: the probe family with the largest ratio; empty where no ratio was measured.
    """

    rule: str
    nodes: tuple[str, ...]
    before: tuple[str, ...]
    after: tuple[str, ...]
    verdict: Literal["passed", "failed", "not judged"]
    judged_by: str = ""
    families: tuple[str, ...] = ()
    seeds: int = 0
    ratio: float = 0.0
    bits_lost: float = 0.0
    reason: str = ""
    family: str = ""

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "Certificate":
        """A certificate from its JSON-ready values."""
        known: dict[str, Any] = {key: tuple(one) if isinstance(one, list) else one for key, one in fields.items()}
        return cls(**known)


@dataclass(frozen=True, slots=True)
class Counts:
    """The size of a model.

    Attributes:
        nodes: nodes in the graph, its subgraphs and the model-local functions, Constant nodes included.
        operators: how many there are of each operator type.
        parameters: elements in all initializers and Constant nodes.
        bytes: bytes of all initializers and Constant nodes.
    """

    nodes: int
    operators: dict[str, int]
    parameters: int
    bytes: int

    @classmethod
    def of(cls, model: ir.Model) -> "Counts":
        """Counts a model."""
        operators: Counter[str] = Counter()
        parameters = size = 0
        for graph in model.graphs():
            operators.update(node.op_type for node in graph)
            for tensor in _constants(graph):
                parameters += tensor.size
                size += tensor.nbytes
            for value in graph.initializers.values():
                if value.const_value is not None:
                    parameters += value.const_value.size
                    size += value.const_value.nbytes
        for function in model.functions.values():
            operators.update(node.op_type for node in function.all_nodes())
        return cls(operators.total(), dict(sorted(operators.items())), parameters, size)

    @property
    def norms(self) -> dict[str, int]:
        """How many there are of each normalization operator."""
        return {name: count for name, count in self.operators.items() if name in NORMALIZATIONS}


@dataclass(slots=True)
class Report:
    """What `normfuse.optimize` did, what it did not do and why, and the proof.

    Attributes:
        before: the size of the model as it came.
        after: the size of the model as it left.
        changes: what was changed, in order.
        refusals: what was not changed, with the reasons.
        certificates: what became of each change by itself, in the order in which they were made; empty where that
            was switched off.
        left_out: rule, nodes and reason of each change that was rolled back because its certificate failed.
        parity: the result of the numerical check, or None where it was switched off.
        unproved: why nothing was proved though it should have been, in one line.
        notes: what else the user should know, each in one line.
        parts: where a torch module was exported and its parts were compared, how each of them fared.
    """

    before: Counts
    after: Counts
    changes: list[Change] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    certificates: list[Certificate] = field(default_factory=list)
    left_out: list[tuple[str, tuple[str, ...], str]] = field(default_factory=list)
    parity: "Parity | None" = None
    parts: "Parity | None" = None
    unproved: str = ""
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready values."""
        return {
            "schema_version": SCHEMA_VERSION,
            "before": _counts(self.before),
            "after": _counts(self.after),
            "changes": [asdict(change) for change in self.changes],
            "refusals": [asdict(refusal) for refusal in self.refusals],
            "certificates": [asdict(certificate) for certificate in self.certificates],
            "parity": None if self.parity is None else self.parity.to_dict(),
            **({} if self.parts is None else {"parts": self.parts.to_dict()}),
            **({} if not self.unproved else {"unproved": self.unproved}),
            **({} if not self.notes else {"notes": list(self.notes)}),
        }


def _constants(graph: ir.Graph) -> Iterator[ir.TensorProtocol]:
    for node in graph:
        value = node.attributes.get("value") if node.op_type == "Constant" and node.domain in ("", "ai.onnx") else None
        if value is not None and value.type == ir.AttributeType.TENSOR and not value.is_ref():
            yield value.as_tensor()


def _counts(counts: Counts) -> dict[str, Any]:
    return {**asdict(counts), "norms": counts.norms}


def unique(refusals: Iterable[Refusal]) -> list[Refusal]:
    """Refusals without repetitions, in order of their first appearance."""
    return list(dict.fromkeys(refusals))

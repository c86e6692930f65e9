"""What LIFT sees in a model, as plain data: `Atlas`, and `Anatomy`, one normalization."""

from dataclasses import dataclass

import onnx_ir as ir

from normfuse.activation import Activation
from normfuse.formulas import details, formula
from normfuse.norm import Standardize
from normfuse.passes.access import Dim, RefusedError, dims
from normfuse.passes.lifted import lifted
from normfuse.passes.norms import Norm, Parameter, read_norm
from normfuse.passes.weights import Weights


@dataclass(frozen=True, slots=True)
class Anatomy:
    """One normalization with statistics of its input.

    Attributes:
        name: what the field calls it.
        nodes: names of the nodes it is made of, the last one at the end.
        formula: what it computes.
        details: what a reader should know besides.
        shape: of the data; None where not even the rank is known.
        dtype: of the data; None where it is not known.
        epsilon: ε; None for an LRN, whose k is none.
        scale: whether γ is `constant` or `computed`; None where there is none.
        bias: the same of β.
        groups: how many groups its channels are cut into; None where they are not.
        ddof: what n is reduced by in its variance.
    """

    name: str
    nodes: tuple[str, ...]
    formula: str
    details: tuple[str, ...]
    shape: tuple[Dim, ...] | None
    dtype: str | None
    epsilon: float | None
    scale: str | None
    bias: str | None
    groups: int | None
    ddof: int


class Atlas:
    """What LIFT found in a model.

    Attributes:
        norms: the normalizations, operators and spelled ones, by the name of their last node.
        members: by the name of each node of something that was spelled out, what that is called.
        wholes: by the name of each such node, the names of all.
    """

    def __init__(self) -> None:
        self.norms: dict[str, Anatomy] = {}
        self.members: dict[str, str] = {}
        self.wholes: dict[str, tuple[str, ...]] = {}
        self._seen = False

    def observe(self, stage: str, model: ir.Model) -> None:
        """Looks at a model as it comes from LIFT for the first time."""
        if stage != "lift" or self._seen:
            return
        self._seen = True
        weights = Weights(model)
        for node in model.graph.all_nodes():
            record = lifted(node)
            try:
                norm = read_norm(node, weights)
            except RefusedError:
                norm = None
            if norm is not None:
                anatomy = _anatomy(norm, weights)
                self.norms[str(node.name)] = anatomy
                title = anatomy.name
            elif record is not None and isinstance(record.meaning, Activation):
                title = record.meaning.kind
            else:
                continue
            if record is not None:
                self.members.update(dict.fromkeys(record.names, title))
                self.wholes.update(dict.fromkeys(record.names, record.names))


def _anatomy(norm: Norm, weights: Weights) -> Anatomy:
    found: Standardize = norm.standardize
    sizes = dims(norm.data)
    if sizes is not None and found.groups is not None:
        found = found.simplified(sizes[found.channel])
    record = lifted(norm.node)
    return Anatomy(
        "normalization" if sizes is None else norm.name(found),
        (str(norm.node.name),) if record is None else record.names,
        formula(found, sizes, scaled=norm.scale is not None, shifted=norm.bias is not None),
        details(found),
        None if sizes is None else tuple(sizes),
        None if norm.data.dtype is None else norm.data.dtype.name,
        None if found.window is not None else found.epsilon,
        _kind(norm.scale, weights),
        _kind(norm.bias, weights),
        found.groups,
        found.ddof,
    )


def _kind(parameter: Parameter | None, weights: Weights) -> str | None:
    if parameter is None:
        return None
    return "computed" if weights.array(parameter.value) is None else "constant"

"""What LOWER works with: `NormSite`, a normalization with affines behind it, and `Lowering`, a row of its table."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from normfuse.affine import Float64
from normfuse.norm import Standardize
from normfuse.passes.access import Dim, RefusedError, dims, operator
from normfuse.passes.emitter import Emitter
from normfuse.passes.lifted import lifted
from normfuse.passes.norms import Norm, Parameter
from normfuse.passes.rule import Rule
from normfuse.passes.sources import Source, read
from normfuse.passes.weights import Weights, is_float
from normfuse.target import Provider, Target


class OtherFormError(RefusedError):
    """A row writes another kind of normalization: nothing that a user would want to hear of."""


@dataclass(frozen=True, slots=True)
class Operand:
    """A scale or bias that broadcasts against x: a constant, or a value that is computed.

    Attributes:
        array: the constant in float64, of the rank of x; None where it is computed.
        parameter: the computed value; None where it is constant.
    """

    array: Float64 | None = None
    parameter: Parameter | None = None

    @property
    def is_constant(self) -> bool:
        """Whether it is constant."""
        return self.array is not None


@dataclass(frozen=True, slots=True)
class NormSite:
    """y = scale · Standardize(x) + bias.

    Attributes:
        norm: the normalization.
        scale: γ and the scales behind it as one; None where there is none.
        bias: β and the shifts behind it as one; None where there is none.
        tail: the affine nodes behind the normalization that `scale` and `bias` hold.
        weights: the constants of the model.
    """

    norm: Norm
    scale: Operand | None
    bias: Operand | None
    tail: tuple[ir.Node, ...]
    weights: Weights

    @property
    def standardize(self) -> Standardize:
        """What is computed before scale and bias; one group, or as many as channels, counts as none."""
        found = self.norm.standardize
        return found if found.groups is None else found.simplified(self.dims[found.channel])

    @property
    def data(self) -> ir.Value:
        """x."""
        return self.norm.data

    @property
    def output(self) -> ir.Value:
        """y."""
        return self.tail[-1].outputs[0] if self.tail else self.norm.output

    @property
    def dims(self) -> tuple[Dim, ...]:
        """The dimensions of x."""
        return self.norm.dims

    @property
    def rank(self) -> int:
        """The number of dimensions of x."""
        return len(self.dims)

    @property
    def dtype(self) -> ir.DataType:
        """The dtype of x.

        Raises:
            RefusedError: it is not known, or no floating-point dtype that is supported.
        """
        dtype = self.data.dtype
        if dtype is None or not is_float(dtype):
            raise RefusedError(f"the dtype of its input is {'not known' if dtype is None else dtype.name}")
        return dtype

    @property
    def nodes(self) -> tuple[ir.Node, ...]:
        """The normalization and the affine nodes."""
        return (self.norm.node, *self.tail)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all nodes that a lowering replaces, those in the body of a lifted call among them."""
        record = lifted(self.norm.node)
        own = record.names if record is not None else (self.norm.node.name or self.norm.node.op_type,)
        return (*own, *(node.name or node.op_type for node in self.tail))

    @property
    def operators(self) -> frozenset[str]:
        """The operators that compute the normalization in the model, those in the body of a lifted call."""
        record = lifted(self.norm.node)
        return frozenset({self.norm.node.op_type}) if record is None else record.operators


@dataclass(frozen=True, slots=True)
class Lowering(Rule):
    """A row of LOWERINGS. Its law writes a `NormSite` with an `Emitter` for a `Target` and returns y.

    A law raises `RefusedError` where the row does not fit, with the reason.

    Attributes:
        targets: the providers it serves.
        suits: whether it is the best of the rows that fit, by what has been measured; `--tune` does not ask.
    """

    law: Callable[[NormSite, Emitter, Target], ir.Value]
    targets: tuple[Provider, ...] = ()
    suits: Callable[[NormSite, Target], bool] = lambda site, target: True


@dataclass(frozen=True, slots=True)
class Choice:
    """What is to be tried for a site.

    Attributes:
        rows: rows of LOWERINGS, best first; None stands for leaving it as it was.
        remark: what the report says besides.
    """

    rows: tuple[Lowering | None, ...]
    remark: str = ""


def grows(site: NormSite, emitter: Emitter, target: Target) -> bool:
    """Whether a portable model would get more nodes than it has: they may cost more in a runtime that is not known."""
    return target.provider == "portable" and len(emitter.nodes) > len(site.names)


Chooser = Callable[[ir.Model, NormSite, Sequence[Lowering], Target], Choice]
"""Chooses among the rows for a target; it must not change the model."""


def by_table(model: ir.Model, site: NormSite, rows: Sequence[Lowering], target: Target) -> Choice:
    """The rows that suit, in the order of the table."""
    return Choice(tuple(row for row in rows if row.suits(site, target)))


def site_of(norm: Norm, weights: Weights) -> NormSite:
    """A normalization with all affine nodes behind it that its scale and bias can hold."""
    scale, bias = _operand(norm.scale, norm, weights), _operand(norm.bias, norm, weights)
    tail: list[ir.Node] = []
    value, rank = norm.output, norm.rank
    while True:
        uses = tuple(value.uses())
        if len(uses) != 1 or value.is_graph_output():
            break
        node = uses[0].node
        if node.graph is not norm.node.graph or not _keeps_dims(node, value):
            break
        joined = _joined(scale, bias, node, uses[0].idx, rank, weights)
        if joined is None:
            break
        scale, bias = joined
        tail.append(node)
        value = node.outputs[0]
    return NormSite(norm, scale, bias, tuple(tail), weights)


def _operand(parameter: Parameter | None, norm: Norm, weights: Weights) -> Operand | None:
    if parameter is None:
        return None
    array = parameter.array(weights, norm.rank)
    if array is not None:
        return Operand(array)
    if parameter.value.dtype not in (None, norm.data.dtype):
        raise RefusedError("its γ or β is computed in another dtype than the data")
    return Operand(parameter=parameter)


def _keeps_dims(node: ir.Node, value: ir.Value) -> bool:
    """Whether the result of a node has the dimensions of one of its inputs, stated or by how the others broadcast."""
    if node.outputs[0].dtype != value.dtype:
        return False
    wanted = dims(value)
    if wanted is None or dims(node.outputs[0]) == wanted:
        return wanted is not None
    others = [dims(one) for one in node.inputs if one is not value]
    return all(
        own is not None
        and len(own) <= len(wanted)
        and all(size in (1, full) and size is not None for size, full in zip(own[::-1], wanted[::-1], strict=False))
        for own in others
    )


def _joined(
    scale: Operand | None, bias: Operand | None, node: ir.Node, index: int, rank: int, weights: Weights
) -> tuple[Operand | None, Operand | None] | None:
    """Scale and bias with one more node behind them; None where it does not join."""
    source = read(node, weights)
    if isinstance(source, Source) and source.index == index:
        if any(one is not None and not one.is_constant for one in (scale, bias)):
            return None
        factor, shift = source.affine.aligned(rank)
        old_scale = 1.0 if scale is None else scale.array
        old_bias = 0.0 if bias is None else bias.array
        assert old_scale is not None
        assert old_bias is not None
        if np.all(factor == 1.0):  # or a scale for all would become one for each channel, and be written anew
            factor = np.asarray(1.0)
        if not np.any(shift):
            shift = np.asarray(0.0)
        new_scale, new_bias = np.asarray(old_scale * factor), np.asarray(old_bias * factor + shift)
        return (
            Operand(new_scale) if np.any(new_scale != 1.0) else None,
            Operand(new_bias) if np.any(new_bias != 0.0) else None,
        )
    if len(node.inputs) != 2:
        return None
    other = node.inputs[1 - index]
    if other is None or other is node.inputs[index]:
        return None
    size = dims(other)
    if size is None or len(size) > rank:
        return None
    array = weights.array(other)
    operand = (
        Operand(parameter=Parameter(other, tuple(range(rank - len(size), rank))))
        if array is None
        else Operand(array.reshape((1,) * (rank - array.ndim) + array.shape))
    )
    match operator(node):
        case "Mul" if scale is None and bias is None:
            return operand, None
        case "Add" if bias is None:
            return scale, operand
        case _:
            return None

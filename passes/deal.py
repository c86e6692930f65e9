"""What FOLD negotiates with: an `Offer` arrives at a node, a law answers with a `Deal`, and a deal may have `Need`s."""

from collections.abc import Callable
from dataclasses import dataclass, field

import onnx_ir as ir

from normfuse.affine import Affine, Float64
from normfuse.passes.access import RefusedError
from normfuse.passes.rule import Side
from normfuse.passes.weights import Weights, constant_tensor, is_float


@dataclass(frozen=True, slots=True)
class Offer:
    """An affine map that arrives at a node.

    Attributes:
        node: the node.
        index: the output that the map stands after, or the input that it stands before.
        affine: the map, along an axis of that output or input.
        side: whether the map stands after or before the node.
        weights: the constants of the model.
    """

    node: ir.Node
    index: int
    affine: Affine
    side: Side
    weights: Weights

    @property
    def ends(self) -> tuple[ir.Value | None, ir.Value | None]:
        """The value where the map is, and the value where it would go: from behind, the output and the first input."""
        first, last = self.node.inputs[0], self.node.outputs[0]
        return (last, first) if self.side == "after" else (first, last)

    def only_data(self) -> None:
        """Makes sure that the map does not stand before a parameter of the operator.

        Raises:
            RefusedError: it does.
        """
        if self.side == "before" and self.index != 0:
            raise RefusedError("it is not the data of the operator")

    def input(self, index: int) -> ir.Value | None:
        """An input of the node, None where it is absent."""
        return self.node.inputs[index] if index < len(self.node.inputs) else None

    def constant(self, index: int) -> Float64:
        """The constant at an input, in float64.

        Raises:
            RefusedError: it is absent, computed at run time, or may be set by the caller of the model.
        """
        value = self.input(index)
        array = self.weights.array(value)
        if array is not None:
            return array
        if value is not None and value.is_graph_input() and value.is_initializer():
            raise RefusedError(f"weight {value.name!r} is an input of the graph that a caller may set")
        if value is not None and value.is_graph_input():
            raise RefusedError(f"operand {value.name!r} is an input of the graph")
        producer = None if value is None else value.producer()
        if producer is not None and producer.op_type == "DequantizeLinear":
            raise RefusedError("its weight is quantized")
        raise RefusedError("its weight is computed at run time" if value is not None else "it has no weight")

    def optional(self, index: int) -> Float64 | None:
        """The constant at an optional input, None where it is absent.

        Raises:
            RefusedError: it is computed at run time, or may be set by the caller of the model.
        """
        return None if self.input(index) is None else self.constant(index)

    def dtype(self, index: int) -> ir.DataType:
        """The dtype of an input.

        Raises:
            RefusedError: it is not known, or no floating-point dtype that can be folded.
        """
        value = self.input(index)
        tensor = constant_tensor(value)
        dtype = None if value is None else (tensor.dtype if tensor is not None else value.dtype)
        if dtype is None or not is_float(dtype):
            raise RefusedError(f"the dtype of its input {index} is {'not known' if dtype is None else dtype.name}")
        return dtype


@dataclass(frozen=True, slots=True)
class Need:
    """An affine map that has to be taken further along for a deal to hold.

    Attributes:
        node: the node it is negotiated from.
        index: side `after`: the input of `node` whose value must arrive with the map applied;
            side `before`: the output of `node` whose readers must all apply the map themselves.
        affine: the map, along an axis of that value.
        side: `after` (it goes on to whoever computes the value) or `before` (it goes on to the readers of the value).
    """

    node: ir.Node
    index: int
    affine: Affine
    side: Side


@dataclass(frozen=True, slots=True)
class NewWeight:
    """A constant input of a node that changes.

    Attributes:
        node: the node.
        index: its input.
        array: the new constant, float64.
        dtype: what it is stored as.
        axis: the axis that holds the channels which were scaled; None to judge the array as one.
    """

    node: ir.Node
    index: int
    array: Float64
    dtype: ir.DataType
    axis: int | None = None


@dataclass(frozen=True, slots=True)
class Deal:
    """How a node takes an affine map over, or what it asks of its neighbours to let it pass.

    Attributes:
        weights: constants that change.
        rewrites: what else changes in the graph, run when the whole plan has been agreed.
        needs: maps that must be taken further along.
        added: how many nodes it adds.
    """

    weights: tuple[NewWeight, ...] = ()
    rewrites: tuple[Callable[[], None], ...] = field(default=())
    needs: tuple[Need, ...] = ()
    added: int = 0


def passes_on(offer: Offer, affine: Affine, index: int = 0) -> Deal:
    """The deal of a node that lets a map pass: `after` it, to its input `index`; `before` it, to its output `index`."""
    return Deal(needs=(Need(offer.node, index, affine, offer.side),))

"""`Emitter`: nodes that a lowering writes, kept outside of the graph until the lowering is taken."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from normfuse.affine import Float64
from normfuse.passes.access import Dim
from normfuse.passes.weights import EXACT, Weights, round_to


class Emitter:
    """Collects nodes and constants.

    Attributes:
        nodes: the nodes, in order.
        weights: the constants of the model.
        takes: values around the normalization that what was written computes too, each with the new one.
        consumed: nodes around the normalization that are not needed any more.
        before: the node to write in front of; None for the last one that is replaced.
    """

    def __init__(self, weights: Weights, stem: str) -> None:
        """Names what is written after `stem`, as far as the names are free."""
        self.nodes: list[ir.Node] = []
        self.weights = weights
        self._stem = stem
        self._constants: list[ir.Value] = []
        self.takes: dict[ir.Value, ir.Value] = {}
        self.consumed: list[ir.Node] = []
        self.before: ir.Node | None = None

    def op(
        self,
        operator: str,
        *inputs: ir.Value | None,
        dims: Sequence[Dim] | None = None,
        dtype: ir.DataType | None = None,
        domain: str = "",
        **attributes: Any,
    ) -> ir.Value:
        """Writes a node with one output.

        Args:
            operator: its type.
            inputs: what it reads; dims and dtype of the first are those of the output where none are given.
            dims: the dimensions of the output.
            dtype: the dtype of the output.
            domain: its domain.
            attributes: its attributes.
        """
        node = ir.node(operator, list(inputs), attributes, domain=domain)
        output, like = node.outputs[0], inputs[0] if inputs else None
        if dims is not None:
            output.shape = ir.Shape(list(dims))
        elif like is not None and like.shape is not None:
            output.shape = ir.Shape(list(like.shape))
        kind = dtype if dtype is not None or like is None else like.dtype
        if kind is not None:
            output.dtype = kind
        self.nodes.append(node)
        return output

    def several(
        self, operator: str, *inputs: ir.Value | None, wanted: Sequence[bool], domain: str = "", **attributes: Any
    ) -> list[ir.Value]:
        """Writes a node with several outputs, all like its first input; those that are not wanted get no name."""
        node = ir.Node(
            domain, operator, inputs, [*ir.convenience.convert_attributes(attributes)], num_outputs=len(wanted)
        )
        for output, is_wanted in zip(node.outputs, wanted, strict=True):
            if is_wanted and inputs[0] is not None:
                output.shape, output.type = inputs[0].shape, inputs[0].type
            elif not is_wanted:
                output.name = ""
        self.nodes.append(node)
        return list(node.outputs)

    def constant(self, array: Float64, dtype: ir.DataType, stem: str = "constant") -> ir.Value:
        """A constant of a floating-point dtype, rounded once."""
        value = self._hold(round_to(np.asarray(array, np.float64), dtype), dtype, stem)
        value.meta[EXACT] = np.asarray(array, np.float64)
        return value

    def integers(self, integers: Sequence[int], stem: str = "shape") -> ir.Value:
        """A constant int64 vector."""
        return self._hold(np.asarray(integers, np.int64), ir.DataType.INT64, stem)

    def _hold(self, array: np.ndarray[tuple[int, ...], np.dtype[Any]], dtype: ir.DataType, stem: str) -> ir.Value:
        value = ir.Value(name=f"{self._stem}_{stem}", const_value=ir.Tensor(array, dtype=dtype))
        value.shape, value.dtype = ir.Shape(array.shape), dtype
        self._constants.append(value)
        return value

    def commit(self, anchor: ir.Node) -> None:
        """Puts the nodes in front of a node of a graph, under names that are free, and the constants into the graph."""
        graph = anchor.graph
        assert graph is not None
        read = {value for node in self.nodes for value in node.inputs}
        for value in self._constants:
            if value in read:
                value.name = self.weights.fresh(str(value.name))
                assert value.const_value is not None
                value.const_value.name = value.name
                _owner(graph).register_initializer(value)
        for node in self.nodes:
            node.name = self.weights.fresh(f"{self._stem}_{node.op_type}")
            for output in (one for one in node.outputs if one.name != ""):
                output.name = self.weights.fresh(f"{node.name}_output")
        graph.insert_before(anchor, self.nodes)

    def discard(self) -> None:
        """Takes back what was written: it reads values of the graph, and would count as their reader."""
        for node in self.nodes:
            node.resize_inputs(0)
        self.nodes.clear()


def _owner(graph: ir.Graph | ir.Function) -> ir.Graph:
    if isinstance(graph, ir.Function):
        raise TypeError("a function cannot hold initializers")
    return graph

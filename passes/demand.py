"""Demand: how many nodes would have to agree at least before a map is taken, by the shape of the graph alone.

`Plan` asks each node with numbers at hand, which takes time. Where a map would have to pass more carriers than a plan
may ask, or would arrive at an input of the graph, nobody needs to be asked: that is known from the operators between.
What is counted is never more than what a plan would have to ask, so that nothing is given up which it would find.
"""

from math import inf
from typing import Literal

import numpy as np
import onnx_ir as ir

from normfuse.affine import Affine
from normfuse.passes.access import operator
from normfuse.passes.deal import Need
from normfuse.passes.rule import Rows, Side
from normfuse.passes.weights import Weights, constant_tensor

Kind = Literal["scale", "shift", "any"]
"""What is known of a map: that it is x ↦ s · x, no s near zero; that it is x ↦ x + t; nothing."""

PASSES = frozenset(
    {
        "AveragePool",
        "Cast",
        "DepthToSpace",
        "Dropout",
        "Expand",
        "Flatten",
        "GlobalAveragePool",
        "GlobalMaxPool",
        "Identity",
        "LeakyRelu",
        "MaxPool",
        "PRelu",
        "Pad",
        "ReduceMax",
        "ReduceMean",
        "ReduceMin",
        "ReduceSum",
        "Relu",
        "Reshape",
        "Resize",
        "SpaceToDepth",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
        "Upsample",
    }
)
"""Operators that take nothing in: all that their rules do is to let a map pass as a whole, or to refuse it."""

_SUMS = ("Add", "Sub", "Sum")

_TINY = 2.0**-300
"""The product of two numbers that are larger is not zero in float64."""

_SMALL = 4096
"""A constant of more elements is not looked at."""

_VISITS = 256
"""Nodes that are looked at for one map."""


class Demand:
    """Counts for one map after another whom a plan would have to ask.

    Attributes:
        rows: the rules of ABSORB and CARRY that may be used.
        weights: the constants of the model.
        limit: so many nodes are asked for one plan at most.
    """

    def __init__(self, rows: Rows, weights: Weights, limit: int) -> None:
        self.rows = rows
        self.weights = weights
        self.limit = limit
        self._visits = 0
        self._answers: dict[tuple[ir.Node, int, Side, Kind], bool] = {}
        self._shifts: dict[ir.Value, tuple[ir.TensorProtocol, bool]] = {}

    def forget(self) -> None:
        """Makes ready for a graph that may have changed."""
        self._answers.clear()

    def is_hopeless(self, need: Need) -> bool:
        """Whether it is sure that nobody takes a map; False says nothing."""
        if need.affine.is_identity:
            return False
        kind = _kind(need.affine)
        key = need.node, need.index, need.side, kind
        if key not in self._answers:
            self._visits = _VISITS
            count = self._behind if need.side == "after" else self._ahead
            self._answers[key] = count(need.node, need.index, kind, self.limit) > self.limit
        return self._answers[key]

    def _behind(self, node: ir.Node, index: int, kind: Kind, left: float) -> float:
        """How many are asked at least for the value at an input to arrive mapped; more than `left` where it is more."""
        value = node.inputs[index]
        if value is None:
            return inf
        if constant_tensor(value) is not None:
            return 0
        producer = value.producer()
        if producer is None or value.is_graph_input() or value.is_graph_output():
            return inf
        for use in value.uses():
            if (use.node is not node or use.idx != index) and operator(use.node) not in ("Shape", "Size"):
                return inf
        return self._asked(producer, 0, kind, "after", left)

    def _ahead(self, node: ir.Node, index: int, kind: Kind, left: float) -> float:
        """How many are asked at least for all readers of an output to apply a map; more than `left` where it is."""
        value = node.outputs[index]
        if value.is_graph_output():
            return inf
        count = 0.0
        for use in value.uses():
            if operator(use.node) not in ("Shape", "Size"):
                count += self._asked(use.node, use.idx, kind, "before", left - count)
                if count > left:
                    return inf
        return count

    def _asked(self, node: ir.Node, index: int, kind: Kind, side: Side, left: float) -> float:
        """How many are asked at least, this node included, until a map that arrives at it is taken."""
        self._visits -= 1
        name = operator(node)
        if not self.rows.get((name, side)) or left < 1:
            return inf
        if self._visits < 0:
            return 0
        onward = self._behind if side == "after" else self._ahead
        if name in PASSES:
            return 1 + onward(node, 0, kind, left - 1)
        if name in _SUMS and kind == "scale":
            return 1 + self._scaled_sum(node, side, left - 1)
        return 1

    def _scaled_sum(self, node: ir.Node, side: Side, left: float) -> float:
        """S · (a + b) = s · a + s · b: every branch is scaled, and a sum with a constant does not take in a scale."""
        computed = [index for index, value in enumerate(node.inputs) if constant_tensor(value) is None]
        if len(computed) < len(node.inputs) and not self._is_shift(node, computed):
            return 0
        if side == "before":
            return inf if len(computed) > 1 else self._ahead(node, 0, "scale", left)
        count = 0.0
        for index in computed:
            count += self._behind(node, index, "scale", left - count)
            if count > left:
                return inf
        return count

    def _is_shift(self, node: ir.Node, computed: list[int]) -> bool:
        """Whether a node with constants is x + b with some b other than zero, which no scale makes one Mul of."""
        if len(node.inputs) != 2 or len(computed) != 1 or (operator(node) == "Sub" and computed != [0]):
            return False
        constant = node.inputs[1 - computed[0]]
        tensor = constant_tensor(constant)
        if constant is None or tensor is None:
            return False
        known = self._shifts.get(constant)
        if known is None or known[0] is not tensor:
            array = self.weights.array(constant) if tensor.size <= _SMALL else None
            known = tensor, array is not None and bool((np.abs(array) > _TINY).any())
            self._shifts[constant] = known
        return known[1]


def _kind(affine: Affine) -> Kind:
    if affine.keeps_scale:
        return "shift"
    if affine.keeps_origin and bool((np.abs(affine.scale) > _TINY).all()):
        return "scale"
    return "any"

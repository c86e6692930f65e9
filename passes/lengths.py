"""How long the vectors of a model are where sizes are computed of constants: found without writing them out.

onnx propagates data by writing out every element of a vector, known or not: where two constants of a thousand are
multiplied into a length, it takes hundreds of megabytes. Here only the sizes are computed, on small vectors of
integers, by the operators whose data onnx propagates.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper

from normfuse.outline import proto_graphs

SMALL = 64
"""Vectors of integers with more elements than this are no shapes."""

_INTEGERS = (onnx.TensorProto.INT32, onnx.TensorProto.INT64)

_BROADCAST = frozenset(
    {"Add", "And", "Div", "Equal", "Greater", "Less", "Max", "Min", "Mul", "Or", "Sub", "Sum", "Where"}
)

_ALIKE = frozenset({"Abs", "Cast", "Identity", "Neg", "Not", "Relu", "Sqrt"})

_FOLLOWED = (
    _BROADCAST
    | _ALIKE
    | frozenset(
        {
            "Concat",
            "Constant",
            "ConstantOfShape",
            "Expand",
            "Gather",
            "Reshape",
            "Shape",
            "Size",
            "Slice",
            "Squeeze",
            "Unsqueeze",
        }
    )
)

_UNKNOWN = (IndexError, KeyError, OverflowError, StopIteration, TypeError, ValueError, ZeroDivisionError)
"""What a node raises whose inputs are not known, or which could not run."""

Numbers = tuple[Any, ...]
"""Integers, None where one is not known."""


class Lengths:
    """Follows the sizes through the nodes of a model.

    Attributes:
        numbers: the elements of small vectors and scalars of integers, by name; of the function that was seen last.
        shapes: the dimensions of values whose rank is known; likewise.
        longest: the largest number of elements of a vector.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        """Takes a model whose shapes are inferred as far as they can be without its data."""
        self.numbers: dict[str, Numbers] = {}
        self.shapes: dict[str, Numbers] = {}
        self.longest = 0
        graphs = list(proto_graphs(model))
        for graph in graphs:
            for value in (*graph.input, *graph.value_info, *graph.output):
                dims = value.type.tensor_type.shape.dim
                if value.type.tensor_type.HasField("shape"):
                    self._note(value.name, [dim.dim_value if dim.HasField("dim_value") else None for dim in dims])
            for tensor in graph.initializer:
                self._constant(tensor.name, tensor)
        for graph in graphs:
            for node in graph.node:
                self._follow(node)
        for function in model.functions:
            self.numbers, self.shapes = {}, {}  # names of its own
            for node in function.node:
                self._follow(node)

    def _note(self, name: str, dims: Iterable[int | None]) -> None:
        self.shapes[name] = tuple(dims)
        if len(self.shapes[name]) == 1:
            self.longest = max(self.longest, self.shapes[name][0] or 0)

    def _constant(self, name: str, tensor: onnx.TensorProto) -> None:
        self._note(name, tensor.dims)
        if tensor.data_type in _INTEGERS and 0 < math.prod(tensor.dims) <= SMALL:
            self.numbers[name] = tuple(int(one) for one in onnx.numpy_helper.to_array(tensor).ravel())

    def _follow(self, node: onnx.NodeProto) -> None:
        if node.op_type not in _FOLLOWED or node.domain not in ("", "ai.onnx") or not node.output:
            return
        name = node.output[0]
        attributes: dict[str, Any] = {
            one.name: onnx.helper.get_attribute_value(one) for one in node.attribute if not one.ref_attr_name
        }
        with suppress(*_UNKNOWN):
            numbers = self._computed(node, attributes)
            if numbers is not None and len(numbers) <= SMALL:
                self.numbers[name] = tuple(None if one is None else _wrapped(one) for one in numbers)
        with suppress(*_UNKNOWN):
            stated = self.shapes.get(name, (None,))
            if None in stated and (dims := self._shaped(node, attributes)) is not None:
                self._note(name, dims)

    def _computed(self, node: onnx.NodeProto, attributes: dict[str, Any]) -> Numbers | None:
        """The integers that a node makes of others.

        Raises:
            KeyError: an input is not known.
        """

        def read(index: int) -> Numbers:
            return self.numbers[node.input[index]]

        match node.op_type:
            case "Constant":
                value = next(iter(attributes.values()))
                if isinstance(value, onnx.TensorProto):
                    self._constant(node.output[0], value)
                    return None
                self._note(node.output[0], [len(value)] if isinstance(value, list) else [])
                listed = value if isinstance(value, list) else [value]
                return tuple(listed) if all(isinstance(one, int) for one in listed) else None
            case "Add" | "Sub" | "Mul":
                law: Callable[[int, int], int] = {
                    "Add": int.__add__,
                    "Sub": int.__sub__,
                    "Mul": int.__mul__,
                }[node.op_type]
                one, other = read(0), read(1)
                count = max(len(one), len(other))
                spread = (part * count if len(part) == 1 else part for part in (one, other))
                return tuple(None if a is None or b is None else law(a, b) for a, b in zip(*spread, strict=True))
            case "Cast" | "Identity" | "Reshape" | "Squeeze" | "Unsqueeze":
                return read(0)
            case "Concat":
                return tuple(one for index in range(len(node.input)) for one in read(index))
            case "Gather":
                return tuple(read(0)[place] for place in read(1))
            case "Slice":
                (start,), (end,) = read(1), read(2)
                return read(0)[start : end : read(4)[0] if len(node.input) > 4 else 1]
            case "Shape":
                dims = self.shapes[node.input[0]]
                return dims[attributes.get("start", 0) : attributes.get("end")]
            case "Size":
                return (math.prod(self.shapes[node.input[0]]),)
        return None

    def _shaped(self, node: onnx.NodeProto, attributes: dict[str, Any]) -> Sequence[int] | None:
        """The dimensions of what a node computes.

        Raises:
            KeyError: those of an input are not known.
        """
        match node.op_type:
            case "ConstantOfShape":
                return self.numbers[node.input[0]]
            case "Expand":
                return np.broadcast_shapes(self.shapes[node.input[0]], self.numbers[node.input[1]])
            case "Reshape":
                dims, count = list(self.numbers[node.input[1]]), math.prod(self.shapes[node.input[0]])
                dims = [self.shapes[node.input[0]][place] if size == 0 else size for place, size in enumerate(dims)]
                known = math.prod(size for size in dims if size != -1)
                return [count // known if size == -1 else size for size in dims]
            case "Squeeze":
                return [size for size in self.shapes[node.input[0]] if size != 1]
            case "Concat":
                rows = [self.shapes[name] for name in node.input]
                if len(rows[0]) == 1:
                    return [sum(size for row in rows for size in row)]
            case name if name in _BROADCAST:
                return np.broadcast_shapes(*(self.shapes[one] for one in node.input))
            case name if name in _ALIKE:
                return self.shapes[node.input[0]]
        return None


def _wrapped(number: int) -> int:
    """An integer as 64 bits hold it: what overflows comes back from below."""
    return (number + 2**63) % 2**64 - 2**63

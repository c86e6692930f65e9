"""Constants of a graph, read in float64 and written with one rounding.

A constant that was computed here keeps its float64 value for as long as the model is worked on, so that several folds
into one weight still round only once. A large weight that lies in a file is not held for that: see `normfuse.scaled`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from normfuse.affine import Float64
from normfuse.scaled import LARGE, Folded, Scaled, is_mapped, spilled

EXACT = "normfuse.float64"
"""Key in `ir.Value.meta` of the float64 value that a constant was rounded from."""

CLONE_BYTES = 16 << 20
"""A weight that somebody else reads too is copied for a fold only up to this size."""


@dataclass(frozen=True, slots=True)
class Storage:
    """The limits of a dtype that weights are stored in.

    Attributes:
        round_off: the unit round-off u.
        largest: the largest finite number.
        smallest: the smallest number greater than zero.
        negligible: channels whose weights had a smaller norm than this have nothing to lose: pruned ones are often
            subnormal numbers.
    """

    round_off: float
    largest: float
    smallest: float
    negligible: float


STORAGE = {
    ir.DataType.DOUBLE: Storage(2.0**-53, 2.0**1023 * (2 - 2.0**-52), 2.0**-1074, 2.0**-1000),
    ir.DataType.FLOAT: Storage(2.0**-24, 2.0**127 * (2 - 2.0**-23), 2.0**-149, 2.0**-100),
    ir.DataType.FLOAT16: Storage(2.0**-11, 65504.0, 2.0**-24, 2.0**-14),
    ir.DataType.BFLOAT16: Storage(2.0**-8, 2.0**127 * (2 - 2.0**-7), 2.0**-133, 2.0**-100),
}
"""The dtypes that can be folded."""


def constant_tensor(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor a value always holds, or None; an initializer that a caller may override is not constant."""
    if value is None or value.is_graph_input():
        return None
    producer = value.producer()
    if producer is None:
        return value.const_value
    if producer.op_type == "Constant" and any(attribute.is_ref() for attribute in producer.attributes.values()):
        return None
    if producer.op_type == "Constant" and not {"sparse_value"} & producer.attributes.keys():
        return ir.convenience.get_const_tensor(value)
    return None


def is_float(dtype: ir.DataType | None) -> bool:
    """Whether weights of a dtype can be folded: float64, float32, float16, bfloat16."""
    return dtype in STORAGE


def round_to(array: Float64, dtype: ir.DataType) -> npt.NDArray[np.generic]:
    """Rounds float64 to a storage dtype; what overflows becomes infinite."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return array.astype(dtype.numpy())


def fits(array: Float64, dtype: ir.DataType, axis: int | None = None, old: Float64 | None = None) -> bool:
    """Whether a storage dtype can hold an array: no overflow, and no channel along `axis` lost to underflow.

    A channel w counts as lost where ‖round(w) − w‖₂ > 8 · u · ‖w‖₂, u the unit round-off, unless it was next to nothing
    in the array `old` of the same shape that it comes from.
    """
    storage = STORAGE[dtype]
    if isinstance(array, Scaled):
        if _fits_by_bounds(array, storage, axis):
            return True
        array = np.asarray(array)
    if not np.all(np.abs(array) <= storage.largest):
        return False
    norm = _norms(array, axis)
    count = array.size / max(norm.size, 1)
    small = (norm > 0) & (norm < np.sqrt(count) * storage.smallest / storage.round_off)
    if not np.any(small):
        return True
    error = _norms(round_to(array, dtype).astype(np.float64) - array, axis)
    lost = small & (error > 8 * storage.round_off * norm)
    if old is not None and old.shape == array.shape:
        lost &= _norms(old, axis) >= storage.negligible
    return not np.any(lost)


def _fits_by_bounds(array: Scaled, storage: Storage, axis: int | None) -> bool:
    """Whether the largest number of each channel proves that an array fits: its norm is not less than that."""
    if not array.size:
        return False
    high, low = array.peaks(axis)
    large = low >= np.sqrt(array.size / high.size) * storage.smallest / storage.round_off
    return bool(np.all(high <= storage.largest) and np.all(large))


def _norms(array: Float64, axis: int | None) -> Float64:
    """The Euclidean norm of each channel along an axis, or of the whole array."""
    if array.size == 0:
        return np.zeros(1)
    rows = array.reshape(1, -1) if axis is None else np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)
    return np.asarray(np.sqrt(np.einsum("ij,ij->i", rows, rows)))


class Weights:
    """The constants of a model while its graphs are rewritten.

    Attributes:
        opset: the opset of the default domain that the graph being worked on uses.
    """

    def __init__(self, model: ir.Model) -> None:
        self.opset = model.opset_imports.get("", 1)
        self._names = {name for graph in model.graphs() for name in _names(graph)}
        for function in model.functions.values():
            self._names.update(_names(function.graph))

    def array(self, value: ir.Value | None) -> Float64 | None:
        """A constant of a floating-point dtype in float64, or None."""
        tensor = constant_tensor(value)
        if value is None or tensor is None or not is_float(tensor.dtype):
            return None
        exact = value.meta.get(EXACT)
        if exact is not None:
            return cast(Float64, exact) if isinstance(exact, Scaled) else np.asarray(exact, np.float64)
        if is_mapped(tensor):
            return cast(Float64, tensor.array if isinstance(tensor, Folded) else Scaled(tensor))
        return np.asarray(tensor.numpy()).astype(np.float64)

    def integers(self, value: ir.Value | None) -> list[int] | None:
        """A constant of an integer dtype as a flat list, or None."""
        tensor = constant_tensor(value)
        if tensor is None or tensor.dtype not in (ir.DataType.INT64, ir.DataType.INT32):
            return None
        return [int(x) for x in np.asarray(tensor.numpy()).ravel()]

    def fresh(self, stem: str) -> str:
        """A name that nothing in the model has yet."""
        name, count = stem, 0
        while name in self._names or not name:
            count += 1
            name = f"{stem}_{count}"
        self._names.add(name)
        return name

    def shared_with(self, node: ir.Node, index: int) -> str | None:
        """Who else reads the constant at an input of a node, or None."""
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is None:
            return None
        for use in value.uses():
            if use.node is not node or use.idx != index:
                return f"{use.node.op_type} {use.node.name!r}"
        return "the caller of the model" if value.is_graph_output() else None

    def new(self, array: Float64, dtype: ir.DataType, stem: str, reader: ir.Node) -> ir.Value:
        """A new constant for a node: an initializer of its graph, or a Constant node where it stands in a function."""
        graph = reader.graph
        if graph is None:
            raise ValueError(f"node {reader.name!r} stands in no graph")
        name = self.fresh(stem)
        tensor = stored(array, dtype, name)
        if is_function_body(graph):
            constant = ir.node("Constant", [], {"value": tensor}, name=self.fresh(f"{name}_constant"))
            value = constant.outputs[0]
            value.name = name
            graph.insert_before(reader, constant)
        else:
            value = ir.Value(name=name, const_value=tensor)
            graph.register_initializer(value)
        value.shape, value.dtype = ir.Shape(array.shape), dtype
        value.meta[EXACT] = array
        return value

    def new_shape(self, shape: list[int], reader: ir.Node) -> ir.Value:
        """A new int64 initializer for a Reshape outside of functions."""
        assert reader.graph is not None
        name = self.fresh(f"{reader.outputs[0].name}_shape")
        value = ir.Value(name=name, const_value=ir.tensor(np.asarray(shape, np.int64), name=name))
        value.shape, value.dtype = ir.Shape([len(shape)]), ir.DataType.INT64
        reader.graph.register_initializer(value)
        return value

    def put(self, node: ir.Node, index: int, array: Float64, dtype: ir.DataType) -> None:
        """Sets the constant at an input of a node, in place where nobody else reads it, as a copy otherwise."""
        old = node.inputs[index] if index < len(node.inputs) else None
        in_place = old is not None and old.is_initializer() and self.shared_with(node, index) is None
        if old is not None and in_place:
            text = None if old.const_value is None else old.const_value.doc_string
            if is_mapped(old.const_value) and array.size * array.dtype.itemsize >= LARGE:
                array = array if isinstance(array, Scaled) else cast(Float64, spilled(array))
            old.const_value = stored(array, dtype, old.name, text)
            old.shape, old.dtype = ir.Shape(array.shape), dtype
            old.meta[EXACT] = array
            return
        stem = f"{node.outputs[0].name}_bias" if old is None or not old.name else f"{old.name}_folded"
        if index >= len(node.inputs):
            node.resize_inputs(index + 1)
        node.replace_input_with(index, self.new(array, dtype, stem, node))


def stored(array: Float64, dtype: ir.DataType, name: str | None, doc_string: str | None = None) -> ir.TensorProtocol:
    """The tensor of an array: rounded now, or whenever it is read where the array is `Scaled`."""
    if isinstance(array, Scaled):
        return Folded(array, dtype, name, doc_string)
    return ir.Tensor(round_to(array, dtype), dtype=dtype, name=name, doc_string=doc_string)


def forget_exact(model: ir.Model) -> None:
    """Frees the float64 values: from now on the constants are what they are stored as."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            value.meta.pop(EXACT, None)


def _names(graph: ir.Graph) -> Iterable[str]:
    for value in (*graph.inputs, *graph.initializers.values()):
        yield value.name or ""
    for node in graph:
        yield node.name or ""
        for value in node.outputs:
            yield value.name or ""


def is_function_body(graph: ir.Graph | None) -> bool:
    """Whether a graph stands in a model-local function, which `mark_functions` has marked."""
    return graph is not None and bool(graph.meta.get("normfuse.function"))


def mark_functions(model: ir.Model) -> None:
    """Marks the graphs of model-local functions and the subgraphs in them: they cannot hold initializers."""
    for function in model.functions.values():
        for graph in (function.graph, *function.subgraphs()):
            graph.meta["normfuse.function"] = True

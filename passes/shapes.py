"""Integers that are computed of shapes.

`shape_constants` finds those whose dimensions are all known, `reshape_constants` the shapes of a Reshape that need not
be computed: 0 copies a dimension of the input, and −1 stands for the one that is left.
"""

from collections.abc import Iterator

import onnx_ir as ir

from normfuse.passes.access import Dim, RefusedError, attribute, dims, operator
from normfuse.passes.reshaping import Extent
from normfuse.passes.weights import constant_tensor

_SMALL = 64

Known = list[Dim]
"""Integers, symbols of dimensions, and None where nothing is known."""


def shape_constants(graph: ir.Graph) -> Iterator[tuple[ir.Value, int | list[int]]]:
    """Values that are computed of shapes and always the same, each with its integers; a scalar has one."""
    for value, (integers, scalar) in _known(graph).items():
        if value.is_graph_output() or not value.uses():
            continue
        complete = [integer for integer in integers if isinstance(integer, int)]
        if len(complete) == len(integers):
            yield value, (complete[0] if scalar else complete)


def reshape_constants(graph: ir.Graph) -> Iterator[tuple[ir.Node, list[int]]]:
    """Reshapes whose shape is computed, or says −1 for a dimension of the input, each with the constant to use."""
    known = _known(graph)
    for node in graph:
        if operator(node) != "Reshape" or _allows_zero(node):
            continue
        shape, data = node.inputs[1], dims(node.inputs[0])
        if shape is None or data is None:
            continue
        if shape in known:
            wanted = [copied(dim, place, data) for place, dim in enumerate(known[shape][0])]
            constant = [dim if isinstance(dim, int) else -1 for dim in wanted]
            if constant.count(-1) <= 1:
                yield node, constant
            continue
        tensor = constant_tensor(shape)
        stated = [] if tensor is None else [int(number) for number in tensor.numpy()]
        if stated.count(-1) == 1:
            place = stated.index(-1)
            filled = [data[i] if n == 0 and i < len(data) else n for i, n in enumerate(stated)]
            if left_over(filled, place, data) is not None:
                yield node, [0 if i == place else n for i, n in enumerate(stated)]


def _allows_zero(node: ir.Node) -> bool:
    """Whether 0 does not copy a dimension, or whether it does is for the caller of a function to say."""
    found = node.attributes.get("allowzero")
    return found is not None and (found.is_ref() or bool(found.as_int()))


def left_over(dims: list[Dim], place: int, data: list[Dim]) -> str | None:
    """The symbol of the data's dimension that must stand at a place because all others have the same product."""
    symbol = data[place] if place < len(data) else None
    if not isinstance(symbol, str):
        return None
    others = Extent.of(dims[:place] + dims[place + 1 :])
    return symbol if others is not None and others == Extent.of(data[:place] + data[place + 1 :]) else None


def copied(dim: Dim, place: int, data: list[Dim]) -> Dim:
    """A dimension of a new shape: 0 where it is the one that the data has in its place."""
    return 0 if isinstance(dim, str) and place < len(data) and data[place] == dim else dim


def _known(graph: ir.Graph) -> dict[ir.Value, tuple[Known, bool]]:
    """What is known of the small integer vectors that nodes compute."""
    known: dict[ir.Value, tuple[Known, bool]] = {}
    for node in graph:
        if not operator(node) or len(node.outputs) != 1:
            continue
        try:
            found = _integers(node, known)
        except RefusedError:
            continue
        if found is not None and len(found[0]) <= _SMALL:
            known[node.outputs[0]] = found
    return known


def _integers(node: ir.Node, known: dict[ir.Value, tuple[Known, bool]]) -> tuple[Known, bool] | None:
    """What a node computes, as integers that may be unknown, and whether it is a scalar."""

    def read(index: int) -> tuple[Known, bool] | None:
        if index >= len(node.inputs):
            return None
        value = node.inputs[index]
        if value is None:
            return None
        if value in known:
            return known[value]
        tensor = constant_tensor(value)
        if tensor is None or tensor.dtype not in (ir.DataType.INT32, ir.DataType.INT64) or tensor.size > _SMALL:
            return None
        array = tensor.numpy()
        return ([int(x) for x in array.ravel()], array.ndim == 0) if array.ndim < 2 else None

    match node.op_type:
        case "Shape":
            sizes = dims(node.inputs[0])
            if sizes is None:
                return None
            return sizes[slice(attribute(node, "start", 0), attribute(node, "end"))], False
        case "Gather":
            data, indices = read(0), read(1)
            if data is None or indices is None or attribute(node, "axis", 0) != 0:
                return None
            places = [place for place in indices[0] if isinstance(place, int) and -len(data[0]) <= place < len(data[0])]
            return ([data[0][place] for place in places], indices[1]) if len(places) == len(indices[0]) else None
        case "Slice":
            data = read(0)
            bounds = [attribute(node, "starts"), attribute(node, "ends"), [1]]
            for place, index in ((0, 1), (1, 2), (2, 4)):
                found = read(index)
                bounds[place] = bounds[place] if found is None else found[0]
            if data is None or data[1] or any(not b or len(b) != 1 or not isinstance(b[0], int) for b in bounds):
                return None
            start, end, step = (bound[0] for bound in bounds)
            return data[0][start:end:step], False
        case "Concat":
            parts = [read(index) for index in range(len(node.inputs))]
            if any(part is None or part[1] for part in parts):
                return None
            return [integer for part in parts if part is not None for integer in part[0]], False
        case "Cast":
            data = read(0)
            integral = attribute(node, "to") in (ir.DataType.INT32, ir.DataType.INT64)
            return data if integral else None
        case "Identity":
            return read(0)
        case "Squeeze" | "Unsqueeze":
            data = read(0)
            scalar = node.op_type == "Squeeze"
            if data is None or data[1] == scalar or (scalar and len(data[0]) != 1):
                return None
            return data[0], scalar
        case _:
            return None

"""Integers that are computed of shapes: `shape_constants` finds those whose dimensions are all known."""

from collections.abc import Iterator

import onnx_ir as ir

from normfuse.passes.access import RefusedError, attribute, dims
from normfuse.passes.weights import constant_tensor

_SMALL = 64

Known = list[int | None]


def shape_constants(graph: ir.Graph) -> Iterator[tuple[ir.Value, int | list[int]]]:
    """Values that are computed of shapes and always the same, each with its integers; a scalar has one."""
    known: dict[ir.Value, tuple[Known, bool]] = {}
    for node in graph:
        if node.domain not in ("", "ai.onnx") or len(node.outputs) != 1:
            continue
        try:
            found = _integers(node, known)
        except RefusedError:
            continue
        if found is not None and len(found[0]) <= _SMALL:
            known[node.outputs[0]] = found
    for value, (integers, scalar) in known.items():
        producer = value.producer()
        if producer is None or value.is_graph_output() or not value.uses():
            continue
        complete = [integer for integer in integers if integer is not None]
        if len(complete) == len(integers):
            yield value, (complete[0] if scalar else complete)


def _integers(node: ir.Node, known: dict[ir.Value, tuple[Known, bool]]) -> tuple[Known, bool] | None:
    """What a node computes, as integers that may be unknown, and whether it is a scalar."""

    def read(index: int) -> tuple[Known, bool] | None:
        value = node.inputs[index] if index < len(node.inputs) else None
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
            found = dims(node.inputs[0])
            if found is None:
                return None
            sizes = [dim if isinstance(dim, int) else None for dim in found]
            return sizes[slice(attribute(node, "start", 0), attribute(node, "end"))], False
        case "Gather":
            data, indices = read(0), read(1)
            if data is None or indices is None or attribute(node, "axis", 0) != 0:
                return None
            chosen = [
                None if i is None else data[0][i] for i in indices[0] if i is None or -len(data[0]) <= i < len(data[0])
            ]
            return (chosen, indices[1]) if len(chosen) == len(indices[0]) else None
        case "Slice":
            data = read(0)
            starts, ends = attribute(node, "starts"), attribute(node, "ends")
            bounds = [
                starts if starts is not None else (read(1) or ([None], False))[0],
                ends if ends is not None else (read(2) or ([None], False))[0],
                (read(4) or ([1], False))[0],
            ]
            if data is None or data[1] or any(len(bound) != 1 or bound[0] is None for bound in bounds):
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

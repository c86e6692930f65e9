"""The tensors of an `onnx_ir.Model`: walking over them, and giving a model its own ones over shared numbers."""

import copy
import math
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir

from normfuse.errors import ModelError
from normfuse.outline import ir_graphs
from normfuse.validation import validate_external, validate_ranges

_FIELDS = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")
"""Fields of a `TensorProto` that hold numbers, beside `raw_data`."""


def constants(model: ir.Model) -> Iterator[tuple[ir.Value, ir.TensorProtocol]]:
    """The initializers of all graphs of a model."""
    for graph in ir_graphs(model):
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value, value.const_value


def external(model: ir.Model) -> Iterator[tuple[ir.Value, ir.ExternalTensor]]:
    """Those initializers that lie in data files."""
    for value, tensor in constants(model):
        if isinstance(tensor, ir.ExternalTensor):
            yield value, tensor


def place(tensor: ir.TensorProtocol, location: str, offset: int) -> ir.ExternalTensor:
    """A tensor as one that lies in a data file."""
    return ir.ExternalTensor(
        location,
        offset,
        tensor.nbytes,
        tensor.dtype,
        shape=ir.Shape(list(tensor.shape.numpy())),
        name=tensor.name or "",
        doc_string=tensor.doc_string,
        metadata_props=dict(tensor.metadata_props),
    )


def in_memory(tensor: ir.ExternalTensor) -> "ir.Tensor[Any]":
    """An external tensor as one that is written into the model."""
    return ir.Tensor(
        tensor.numpy(),
        dtype=tensor.dtype,
        name=tensor.name,
        doc_string=tensor.doc_string,
        metadata_props=dict(tensor.metadata_props),
    )


def detach(model: ir.Model, folder: str | None = None) -> None:
    """Gives a model its own tensor and type objects, over shared numbers, and checks each tensor.

    Names are set through tensors and element types through types, so shared ones would change the source.

    Args:
        model: what is changed, in place.
        folder: where the model lies, if it was just read from a proto: its external data is sought there, and numbers
            in the proto are read once and for all. None for a clone, whose tensors know where their numbers are.

    Raises:
        ModelError: a tensor does not hold what its shape says, or its external data is missing.
    """
    ranges: dict[str, set[tuple[int, int]]] = {}
    for graph in ir_graphs(model):
        for value in {*graph.inputs, *graph.initializers.values()}:
            _detach_value(value, folder)
        for node in graph:
            for value in node.outputs:
                _detach_value(value, folder)
            for name, attribute in node.attributes.items():
                if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
                    tensor = _own(attribute.value, folder)  # not as_tensor(), whose check of the protocol is slow
                    if type(tensor) is ir.ExternalTensor:
                        _note(tensor, ranges)
                        tensor = in_memory(tensor)
                    node.attributes[name] = ir.AttrTensor(name, tensor, doc_string=attribute.doc_string)

    for _, tensor in external(model):
        _note(tensor, ranges)
    for path, parts in ranges.items():
        validate_ranges(path, parts)


def _note(tensor: ir.ExternalTensor, ranges: dict[str, set[tuple[int, int]]]) -> None:
    start = tensor.offset or 0
    ranges.setdefault(os.path.realpath(tensor.path), set()).add((start, start + tensor.nbytes))


def _detach_value(value: ir.Value, folder: str | None) -> None:
    if value.type is not None and folder is None:
        value.type = copy.copy(value.type) if type(value.type) is ir.TensorType else copy.deepcopy(value.type)
    if value.const_value is not None:
        value.const_value = _own(value.const_value, folder)


def _own(tensor: ir.TensorProtocol, folder: str | None) -> ir.TensorProtocol:
    # By `type`: isinstance is slow here, as the classes are protocols too.
    if type(tensor) is not ir.TensorProtoTensor:
        own = copy.copy(tensor)
        if type(own) is ir.ExternalTensor:
            if folder is not None:
                own.base_dir = folder
            validate_external(own)
        elif type(own) is ir.StringTensor and len(own.string_data()) != own.size:
            raise ModelError(
                f"tensor {own.name!r} has {len(own.string_data())} strings, {own.size} expected; export again"
            )
        return own
    return ir.Tensor(
        tensor if folder is None else _array(tensor),
        dtype=tensor.dtype,
        name=tensor.name,
        doc_string=tensor.doc_string or None,
        metadata_props=dict(tensor.metadata_props),
    )


def _array(tensor: ir.TensorProtoTensor) -> np.ndarray:
    """The array of a `TensorProto`.

    Raises:
        ModelError: it holds fewer or more numbers than its shape says.
    """
    proto = tensor.raw
    shape = tuple(proto.dims)
    try:
        if min(shape, default=0) < 0:
            raise ValueError("a negative dimension")
        if tensor.dtype.bitwidth < 8 and proto.HasField("raw_data") and len(proto.raw_data) != tensor.nbytes:
            raise ValueError(f"{len(proto.raw_data)} bytes, {tensor.nbytes} expected")
        if math.prod(shape) and not proto.HasField("raw_data") and not any(getattr(proto, name) for name in _FIELDS):
            raise ValueError("no data")
        return tensor.numpy()
    except Exception as error:
        raise ModelError(
            f"tensor {tensor.name!r} of shape {shape} cannot be read: {first_cause(error)}; export the model again"
        ) from error


def first_cause(error: BaseException) -> str:
    """The message of the error that others were raised from, or while it was handled, as one line."""
    while (earlier := error.__cause__ or (None if error.__suppress_context__ else error.__context__)) is not None:
        error = earlier
    return (str(error) or type(error).__name__).strip().splitlines()[0]

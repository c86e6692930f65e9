"""Models out: as protobuf, as bytes, as a file, and as a file with its large tensors in a data file beside it."""

import mmap
import os
import re
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import BinaryIO

import onnx
import onnx_ir as ir

from normfuse import storage
from normfuse.errors import ModelError, NormfuseError
from normfuse.leftovers import reserve, sweep
from normfuse.outline import external_files
from normfuse.scaled import Folded
from normfuse.sparse import SparseTensor, put_sparse
from normfuse.storage import parse, read, to_bytes, write
from normfuse.tensors import constants, external, in_memory, place

SMALLEST_EXTERNAL = 1024
"""Bytes of the smallest tensor that is written to a data file."""

ALIGNMENT = 4096
"""Tensors begin at multiples of this in a data file, as ONNX asks for memory mapping."""


def serialize(model: ir.Model) -> bytes:
    """A model as bytes with all data in them, as ONNX Runtime takes it.

    Raises:
        ModelError: it is larger than protobuf allows, or onnx_ir cannot write it.
    """
    data = None if is_large(model) else to_bytes(embedded(model))
    if data is None:
        raise ModelError("the model is larger than 2 GiB, the most that protobuf can hold; save it and give the path")
    return data


def embedded(model: ir.Model) -> onnx.ModelProto:
    """A model as an `onnx.ModelProto` with all data in it."""
    return to_proto(model, {value: in_memory(tensor) for value, tensor in external(model)})


def is_large(model: ir.Model) -> bool:
    """Whether the constants of a model alone exceed what protobuf can hold."""
    return sum(tensor.nbytes for _, tensor in constants(model)) > storage.LARGEST


def has_external(model: ir.Model) -> bool:
    """Whether a constant of a model lies in a data file, or is computed from one that does."""
    return any(isinstance(tensor, ir.ExternalTensor | Folded) for _, tensor in constants(model))


def to_proto(model: ir.Model, stand_ins: Mapping[ir.Value, ir.TensorProtocol]) -> onnx.ModelProto:
    """A model as an `onnx.ModelProto`, with other tensors for some of its constants.

    Raises:
        ModelError: onnx_ir cannot write it.
    """
    sparse = {v: t for v in model.graph.initializers.values() if isinstance(t := v.const_value, SparseTensor)}
    tensors = {**stand_ins, **{value: place(tensor, "", 0) for value, tensor in sparse.items()}}
    originals = {value: value.const_value for value in tensors}
    try:
        for value, tensor in tensors.items():
            value.const_value = tensor
        proto = ir.to_proto(model)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ModelError(f"the model cannot be written: {error.__cause__ or error}") from error
    finally:
        for value, original in originals.items():
            value.const_value = original
    put_sparse(proto.graph, {value.name or "": tensor.proto for value, tensor in sparse.items()})
    _drop_redundant(proto.graph)
    return proto


def _drop_redundant(graph: onnx.GraphProto) -> None:
    """Drops what `value_info` says about initializers, unless it says more than they do themselves."""
    constants = {tensor.name for tensor in graph.initializer} | {t.values.name for t in graph.sparse_initializer}
    kept = [
        value
        for value in graph.value_info
        if value.name not in constants or value.doc_string or value.metadata_props or value.type.denotation
    ]
    if len(kept) < len(graph.value_info):
        copies = onnx.GraphProto(value_info=kept)
        del graph.value_info[:]
        graph.value_info.extend(copies.value_info)


def write_external(
    model: ir.Model, path: str, replaced: Callable[[], Iterable[str]] = tuple
) -> dict[ir.Value, ir.TensorProtocol]:
    """Writes a model to `path` and its large tensors to a data file beside it, under a name that is free.

    Args:
        model: the model.
        path: where to write it.
        replaced: as for `normfuse.storage.write`.

    Returns:
        what was written in place of tensors: by value, where in the data file it lies.
    """
    folder, base = os.path.split(path)
    sweep(folder, _own_data(base), empty=True)
    name = f"{base}.data"
    while (release := reserve(os.path.join(folder, name))) is None:
        name = f"{base}.{secrets.token_hex(4)}.data"
    try:
        return _write_at(model, path, name, replaced)
    finally:
        release()


def _write_at(
    model: ir.Model, path: str, name: str, replaced: Callable[[], Iterable[str]]
) -> dict[ir.Value, ir.TensorProtocol]:
    stand_ins: dict[ir.Value, ir.TensorProtocol] = {
        value: in_memory(tensor) for value, tensor in external(model) if tensor.nbytes < SMALLEST_EXTERNAL
    }
    places: list[tuple[ir.TensorProtocol, ir.ExternalTensor]] = []
    end = 0
    for value, tensor in constants(model):
        if tensor.nbytes >= SMALLEST_EXTERNAL and not isinstance(tensor, SparseTensor | ir.StringTensor):
            start = -(-end // ALIGNMENT) * ALIGNMENT
            end = start + tensor.nbytes
            places.append((tensor, place(tensor, name, start)))
            stand_ins[value] = places[-1][1]
    data = to_bytes(to_proto(model, stand_ins))
    if data is None:
        raise ModelError("the model is larger than 2 GiB without its weights, more than protobuf can hold; split it")
    files: list[tuple[str, Callable[[BinaryIO], object]]] = [(path, lambda file: file.write(data))]
    if places:
        files.insert(0, (os.path.join(os.path.dirname(path), name), lambda file: _fill(file, places)))
    write(files, replaced)
    return stand_ins


def _fill(file: BinaryIO, places: Sequence[tuple[ir.TensorProtocol, ir.ExternalTensor]]) -> None:
    """Writes tensors to their places in a data file, one at a time."""
    for tensor, at in places:
        start, size = at.offset or 0, at.nbytes
        file.write(bytes(start - file.tell()))
        if isinstance(tensor, ir.ExternalTensor | Folded):
            tensor.tofile(file)  # from file to file, inside the kernel where it can do that; or piece by piece
        else:
            file.write(tensor.tobytes())
        if file.tell() != start + size:
            raise ModelError(f"tensor {tensor.name!r} has {file.tell() - start:,} bytes where {size:,} are expected")


def _own_data(name: str) -> re.Pattern[str]:
    """Names of data files that a model of a name gets."""
    return re.compile(re.escape(name) + r"(\.[0-9a-f]{8})?\.data")


def data_files(path: str) -> set[str]:
    """Data files that belong to the model at `path` alone: named after it, in its folder, used by no other there."""
    folder, name = os.path.split(path)
    mine = _own_data(name)
    try:
        candidates = {file for file in os.listdir(folder or os.curdir) if mine.fullmatch(file)}
        used = external_files(parse(read(path)), folder) if candidates and os.path.exists(path) else set()
    except (NormfuseError, OSError):
        return set()
    own = {file for file in used if os.path.dirname(file) == folder and os.path.basename(file) in candidates}
    return own - _read_elsewhere(path, own) if own else own


def _read_elsewhere(path: str, files: Iterable[str]) -> set[str]:
    """Those of the data files of the model at `path` that another model in its folder may read, such as a copy of it.

    A file that cannot be read may be such a model.
    """
    folder = os.path.dirname(path)
    names = {file: os.fsencode(os.path.basename(file)) for file in files}
    kept: set[str] = set()
    try:
        for other in os.listdir(folder or os.curdir):
            model = os.path.join(folder, other)
            is_data = other.lower().endswith(".data")
            if ".onnx" not in other.lower() or is_data or os.path.realpath(model) == os.path.realpath(path):
                continue
            if os.path.isfile(model) and os.path.getsize(model):
                with open(model, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                    kept |= {data for data, name in names.items() if content.find(name) >= 0}
    except OSError:
        return set(names)
    return kept

"""Models in and out: `load` reads and validates, `save` writes all or nothing, `restore_kind` gives back what came.

Whatever `load` is given stays as it is: its model shares the numbers of the source, and nothing else.

| given | folder of external data | given back by `restore_kind` |
|---|---|---|
| a path | the folder of the file | `onnx.ModelProto` |
| bytes | the current folder | bytes |
| `onnx.ModelProto` | the current folder | `onnx.ModelProto` |
| `onnx_ir.Model` | as its tensors say | `onnx_ir.Model` |
| `torch.onnx.ONNXProgram` | as its tensors say | `torch.onnx.ONNXProgram` |
"""

import os
from typing import Any, Protocol, cast

import onnx
import onnx_ir as ir

from normfuse.arguments import check
from normfuse.errors import ModelError, NormfuseError
from normfuse.outline import Outline, external_files, ir_graphs
from normfuse.serialization import (
    data_files,
    embedded,
    has_external,
    is_large,
    serialize,
    to_proto,
    write_external,
)
from normfuse.signatures import validate_signatures
from normfuse.sparse import SparseTensor, take_sparse
from normfuse.storage import destination, parse, read, to_bytes, validate_place, write
from normfuse.tensors import detach, external, first_cause
from normfuse.validation import validate

__all__ = ["Program", "Source", "check_output", "load", "restore_kind", "save", "serialize"]


class Program(Protocol):
    """What `torch.onnx.ONNXProgram` offers, so that torch need not be imported."""

    model: ir.Model
    exported_program: Any

    def apply_weights(self, state_dict: dict[str, Any]) -> None:
        """Replaces weights."""


Source = str | os.PathLike[str] | bytes | onnx.ModelProto | ir.Model | Program
"""What a model can be given as: a path, its bytes, or an object of one of three kinds."""


def load(source: Source) -> ir.Model:
    """Reads a model and validates it; the source is never changed.

    Raises:
        NormfuseError: there is no such file.
        ModelError: it is no valid model, or uses what is not supported.
    """
    label = "the model"
    try:
        match source:
            case str() | os.PathLike():
                label = os.fspath(source)
                return _from_proto(parse(read(label)), _folder(label))
            case bytes():
                return _from_proto(parse(source), os.getcwd())
            case onnx.ModelProto():
                return _from_proto(source, os.getcwd())
            case ir.Model():
                return _from_ir(source)
            case _:
                return _from_ir(_program_model(source))
    except ModelError as error:
        raise ModelError(f"{label}: {error}") from error.__cause__


def _folder(path: str) -> str:
    return os.path.dirname(os.path.abspath(path))


def _program_model(source: Program) -> ir.Model:
    if hasattr(type(source), "model_proto") and isinstance(source.model, ir.Model):
        return source.model
    raise NormfuseError(
        f"a {type(source).__name__} is no model; give a path, bytes, an onnx.ModelProto, an onnx_ir.Model "
        "or a torch.onnx.ONNXProgram"
    )


def _from_proto(proto: onnx.ModelProto, folder: str) -> ir.Model:
    if not proto.HasField("graph"):
        raise ModelError("the model has no graph; export it again")
    if proto.training_info:
        raise ModelError("it holds training_info, which would not match what is folded; export it for inference")
    outline = Outline.of_proto(proto)
    ordered = validate(outline)
    sparse: list[SparseTensor] = []
    if outline.sparse:
        own = onnx.ModelProto()
        own.CopyFrom(proto)
        sparse, proto = take_sparse(own), own
    try:
        model = ir.from_proto(proto)
    except Exception as error:
        raise ModelError(f"it cannot be read: {first_cause(error)}; export the model again") from error
    for tensor in sparse:
        model.graph.initializers[tensor.proto.values.name].const_value = tensor
    for imports in (model.opset_imports, *(function.opset_imports for function in model.functions.values())):
        if "ai.onnx" in imports:
            imports[""] = imports.pop("ai.onnx")
    validate_signatures(model)
    detach(model, folder)
    if not ordered:
        _sort(model)
    return model


def _from_ir(source: ir.Model) -> ir.Model:
    ordered = validate(Outline.of_ir(source))
    try:
        model = source.clone() if ordered else _rebuilt(source)
    except Exception as error:
        raise ModelError(f"it cannot be copied: {first_cause(error)}; its graph is inconsistent") from error
    validate_signatures(model)
    detach(model)
    return model


def _rebuilt(source: ir.Model) -> ir.Model:
    """A copy with the nodes in order; `onnx_ir` clones only what is in order already."""
    model = ir.from_proto(ir.to_proto(source))
    for old, new in zip(ir_graphs(source), ir_graphs(model), strict=True):
        for name, value in new.initializers.items():
            value.const_value = old.initializers[name].const_value
    _sort(model)
    return model


def _sort(model: ir.Model) -> None:
    model.graph.sort()
    for function in model.functions.values():
        function.sort()


def check_output(path: str | os.PathLike[str], source: Source | None) -> None:
    """Checks, before work starts, that a result can be written to `path` without harm to its source.

    Raises:
        NormfuseError: the folder is missing or read-only, `path` is no regular file, or it is the source or its data;
            or it is a link to a folder where the data file of the result would not be found.
    """
    path = os.fspath(path)
    validate_place(path)
    if source is None:
        return
    if _leads_elsewhere(path) and _needs_data_file(source):
        raise _out_of_sight(path)
    if not os.path.exists(path):
        return
    if isinstance(source, str | os.PathLike) and os.path.exists(source) and os.path.samefile(path, source):
        raise NormfuseError(f"the output {path} is the input; choose another output")
    if any(os.path.exists(file) and os.path.samefile(path, file) for file in _data_files(source, path)):
        raise NormfuseError(f"the output {path} holds external data of the input; choose another output")


def _leads_elsewhere(path: str) -> bool:
    """Whether a file that is written beside the end of a link would not be beside the link."""
    end = destination(path)
    return end != path and not os.path.samefile(os.path.dirname(path) or os.curdir, os.path.dirname(end))


def _out_of_sight(path: str) -> NormfuseError:
    reason = "it is a link to another folder, and the model needs a data file, which is looked for beside the link"
    return NormfuseError(f"cannot write {path}: {reason}; give {destination(path)} itself")


def _needs_data_file(source: Source) -> bool:
    """Whether the result of a source would be written with a data file beside it."""
    if isinstance(source, ir.Model):
        return is_large(source) or has_external(source)
    return bool(_data_files(source, None))


def _data_files(source: Source, path: str | None) -> set[str]:
    """Files that hold external data of a source, as far as they can be `path`, if given; none where it is no model."""
    match source:
        case str() | os.PathLike() | bytes():
            try:
                data = source if isinstance(source, bytes) else read(os.fspath(source))
                folder = os.getcwd() if isinstance(source, bytes) else _folder(os.fspath(source))
                mentioned = path is None or os.path.basename(path).encode() in data
                return external_files(parse(data), folder) if mentioned else set()
            except NormfuseError:
                return set()
        case onnx.ModelProto():
            return external_files(source, os.getcwd())
        case ir.Model():
            return {tensor.path for _, tensor in external(source)}
        case _:
            return _data_files(_program_model(source), path)


def save(model: Source, path: str | os.PathLike[str]) -> None:
    """Writes a model; whatever goes wrong, nothing half-written is left and what was at `path` stays as it was.

    Where `path` is a link, the file that it leads to is written, and the link stays. What is replaced hands on its
    permissions.

    Large tensors go to a data file beside it where the model would be too large for protobuf (2 GiB), or where one of
    its tensors was external already. The data file gets a name that is free, so that an old model at `path` keeps its
    own data until the new one is in place; then the data file of the old one is removed.

    Raises:
        NormfuseError: the file cannot be written, or a data file would not be found through the link.
        ModelError: the model cannot be written as ONNX.
    """
    check(place=path)
    given = os.fspath(path)
    validate_place(given)
    path = destination(given)
    if not isinstance(model, onnx.ModelProto | ir.Model):
        model = load(model)
    if isinstance(model, onnx.ModelProto):
        data = None if external_files(model, "") else to_bytes(model)
        model = load(model) if data is None else model
    else:
        data = None if is_large(model) or has_external(model) else to_bytes(to_proto(model, {}))
    if data is not None:
        write([(path, lambda file: file.write(data))], lambda: data_files(path))
    elif isinstance(model, ir.Model):
        if _leads_elsewhere(given):
            raise _out_of_sight(given)
        used = {os.path.realpath(tensor.path) for _, tensor in external(model)}
        write_external(model, path, lambda: [one for one in data_files(path) if os.path.realpath(one) not in used])


def restore_kind(model: ir.Model, source: Source) -> Any:
    """Gives a model the kind its source had: a path gives an `onnx.ModelProto`, with all data in it.

    Raises:
        ModelError: the source was bytes, and the model is larger than protobuf allows.
    """
    match source:
        case str() | os.PathLike() | onnx.ModelProto():
            return embedded(model)
        case bytes():
            return serialize(model)
        case ir.Model():
            return model
        case _:
            return cast(Any, type(source))(model, source.exported_program)

"""Our models as ONNX, by both exporters of torch, with their BatchNormalizations folded by torch or kept."""

import tempfile
from pathlib import Path
from typing import Literal

import onnx
import torch

from models.entry import Entry
from normfuse.capture import quiet
from normfuse.errors import ExportError

Exporter = Literal["dynamo", "torchscript"]
OPSETS: dict[Exporter, range] = {"dynamo": range(18, 24), "torchscript": range(13, 21)}
"""The opsets that each exporter writes by itself, without a conversion afterwards."""


def export(
    entry: Entry,
    exporter: Exporter = "dynamo",
    opset: int = 18,
    dynamic_batch: bool = False,
    keep_bn: bool = True,
) -> onnx.ModelProto:
    """Exports a model.

    Args:
        entry: the model.
        exporter: `dynamo` (torch.export) or `torchscript` (tracing).
        opset: the opset to write.
        dynamic_batch: export the axes that the entry names as dynamic, the batch among them.
        keep_bn: switch off torch's own optimizer and constant folding, which fold Conv → BatchNormalization.

    Returns:
        The model, with inputs named `x0`, `x1`, … and one output named `y`.

    Raises:
        ExportError: the exporter does not write this opset, or cannot export this model in this way.
    """
    if opset not in OPSETS[exporter]:
        known = OPSETS[exporter]
        raise ExportError(f"{exporter} does not write opset {opset}; choose {known[0]} to {known[-1]}")
    names = [f"x{index}" for index in range(len(entry.shapes))]
    write = {"dynamo": _dynamo, "torchscript": _torchscript}[exporter]
    try:
        with quiet():
            return write(entry, names, opset, dynamic_batch, keep_bn)
    except (AssertionError, RuntimeError, torch.onnx.errors.OnnxExporterError) as error:  # torch asserts, too
        raise ExportError(f"{exporter} cannot export {entry.name}: {str(error).splitlines()[0]}") from error


def _dynamo(entry: Entry, names: list[str], opset: int, dynamic: bool, keep_bn: bool) -> onnx.ModelProto:
    axes = tuple({axis: torch.export.Dim(name) for axis, name in dims.items()} for dims in entry.dynamic)
    program = torch.onnx.export(
        entry.module(),
        entry.examples(),
        input_names=names,
        output_names=["y"],
        opset_version=opset,
        dynamic_shapes=axes if dynamic else None,
        dynamo=True,
        optimize=not keep_bn,
        verbose=False,
    )
    if program is None:
        raise ExportError(f"{entry.name}: torch.onnx.export returned no program")
    proto: onnx.ModelProto = program.model_proto
    return proto


def _torchscript(entry: Entry, names: list[str], opset: int, dynamic: bool, keep_bn: bool) -> onnx.ModelProto:
    axes = {name: dict(dims) for name, dims in zip(names, entry.dynamic, strict=True)}
    with tempfile.TemporaryDirectory(prefix="normfuse-") as place:
        path = Path(place) / "model.onnx"
        torch.onnx.export(
            entry.module(),
            entry.examples(),
            path,
            input_names=names,
            output_names=["y"],
            opset_version=opset,
            dynamic_axes=axes if dynamic else None,
            dynamo=False,
            training=torch.onnx.TrainingMode.PRESERVE if keep_bn else torch.onnx.TrainingMode.EVAL,
            do_constant_folding=not keep_bn,
        )
        return onnx.load(path)

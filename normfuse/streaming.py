"""Large models and the runtime: ONNX Runtime maps their weights from a file, and one model is open at a time.

A serialized copy of such a model would not fit protobuf, and not into memory beside another one. So the runtime gets
the outline of the model as bytes and the folder of its data.
"""

import os
import shutil
import tempfile
import weakref

import onnx_ir as ir

from normfuse.errors import ModelError
from normfuse.outline import ir_graphs
from normfuse.scaled import Folded
from normfuse.serialization import to_proto, write_external
from normfuse.storage import to_bytes
from normfuse.tensors import constants, external

STREAMED = 2 << 30
"""Bytes of the weights of two models from which on they are not open at the same time."""

MAPPED = 1 << 30
"""Bytes of the weights of one model from which on the runtime maps them from a file."""

ORACLE = 4 << 30
"""Bytes that the weights of a model may take in float64: a larger one has no oracle."""


def weight_bytes(model: ir.Model) -> int:
    """The bytes of the initializers as they are stored."""
    return sum(tensor.nbytes for _, tensor in constants(model))


def oracle_bytes(model: ir.Model) -> int:
    """The bytes of the initializers when each floating-point number is a float64."""
    return sum(8 * t.size if t.dtype.is_floating_point() else t.nbytes for _, t in constants(model))


def settled(model: ir.Model) -> ir.Model:
    """A model whose weights lie in files of one folder: itself, or a copy in a temporary folder of its own.

    The folder is removed when the copy is no longer used. TMPDIR says where it is made; it must hold the weights.

    Raises:
        NormfuseError: it cannot be written.
    """
    folders = {os.path.abspath(tensor.base_dir) for _, tensor in external(model)}
    held = sum(t.nbytes for _, t in constants(model) if not isinstance(t, ir.ExternalTensor))
    computed = any(isinstance(tensor, Folded) for _, tensor in constants(model))
    if len(folders) == 1 and not computed and held < MAPPED:
        return model
    folder = tempfile.mkdtemp(prefix="normfuse-")
    copy = model.clone()
    weakref.finalize(copy, shutil.rmtree, folder, True)
    written = write_external(model, os.path.join(folder, "model.onnx"))
    for old, new in zip(ir_graphs(model), ir_graphs(copy), strict=True):
        for name, value in new.initializers.items():
            tensor = written.get(old.initializers[name])
            if isinstance(tensor, ir.ExternalTensor):
                tensor.base_dir = folder
            value.const_value = value.const_value if tensor is None else tensor
    return copy


def mapped_payload(model: ir.Model) -> tuple[bytes, str]:
    """The bytes of a settled model without what lies in its data files, and the folder of these.

    Raises:
        ModelError: it is larger than protobuf allows even so.
    """
    data = to_bytes(to_proto(model, {}))
    if data is None:
        raise ModelError("the model is larger than 2 GiB without its weights, more than protobuf can hold; split it")
    return data, os.path.abspath(next(os.fspath(tensor.base_dir) for _, tensor in external(model)))

"""A model of any size, written block by block: its weights are never in memory together.

Half of the blocks are convolutional (Conv, BatchNormalization, Relu), the others those of a transformer without
attention (LayerNormalization or a spelled-out RMSNorm, MatMul, bias, Relu, MatMul, LayerScale, residual): most of the
weights take a fold, the others stay as they are.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

ALIGNMENT = 4096
"""Tensors begin at multiples of this in the data file."""

_CHUNK = 1 << 22
_SIDE = 4
"""Height and width of the image: small, as the time of running is not what is measured."""


@dataclass(slots=True)
class _Writer:
    """Nodes and initializers as they are added, the numbers of the latter to a file."""

    file: BinaryIO
    location: str
    rng: np.random.Generator
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    tensors: list[onnx.TensorProto] = field(default_factory=list)

    def node(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        """Adds a node, and returns its output."""
        output = f"{op_type.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, list(inputs), [output], name=f"{output}_node", **attributes))
        return output

    def small(self, array: npt.NDArray[Any]) -> str:
        """Adds an initializer that stands in the model."""
        name = f"constant_{len(self.tensors)}"
        self.tensors.append(onnx.numpy_helper.from_array(array, name))
        return name

    def vector(self, size: int, mean: float, spread: float) -> str:
        """Adds a random vector."""
        return self.small(np.abs(self.rng.normal(mean, spread, size)).astype(np.float32))

    def weight(self, *shape: int, fan_in: int) -> str:
        """Adds a random weight to the data file."""
        name, size = f"weight_{len(self.tensors)}", int(np.prod(shape))
        self.file.write(bytes(-self.file.tell() % ALIGNMENT))
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape, data_location=TensorProto.EXTERNAL)
        for key, value in (("location", self.location), ("offset", self.file.tell()), ("length", 4 * size)):
            tensor.external_data.add(key=key, value=str(value))
        for start in range(0, size, _CHUNK):
            numbers = self.rng.standard_normal(min(_CHUNK, size - start), np.float32)
            self.file.write((numbers * np.float32(0.7 * fan_in**-0.5)).tobytes())
        self.tensors.append(tensor)
        return name


def write_large(path: Path, size: int, width: int = 0, seed: int = 0) -> None:
    """Writes a model, and its weights to `PATH.data`.

    Args:
        path: where.
        size: about how many bytes of weights there are to be; there are at least two blocks.
        width: channels; chosen by the size where 0.
        seed: of the numbers.
    """
    width = width or (64 if size < 2**24 else 512 if size < 2**30 else 1536)
    with _data(path) as file:
        writer = _Writer(file, f"{path.name}.data", np.random.default_rng(seed))
        value = "x"
        while file.tell() < size / 2 or len(writer.nodes) < 3:
            value = _conv_block(writer, value, width)
        value = writer.node("Reshape", value, writer.small(np.array([0, width, -1], np.int64)))
        value = writer.node("Transpose", value, perm=[0, 2, 1])
        block = 0
        while file.tell() < size or block < 2:
            value = _token_block(writer, value, width, centred=block % 2 == 0)
            block += 1
        writer.nodes[-1].output[0] = "y"
        inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, width, _SIDE, _SIDE])]
        outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, _SIDE**2, width])]
        graph = helper.make_graph(writer.nodes, "large", inputs, outputs, writer.tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)


@contextmanager
def _data(path: Path) -> Iterator[BinaryIO]:
    with open(f"{path}.data", "wb") as file:
        yield file


def _conv_block(writer: _Writer, value: str, width: int) -> str:
    weight = writer.weight(width, width, 3, 3, fan_in=9 * width)
    value = writer.node("Conv", value, weight, writer.vector(width, 0.0, 0.1), pads=[1, 1, 1, 1])
    statistics = [writer.vector(width, mean, 0.1) for mean in (1.2, 0.0, 0.1, 0.6)]
    return writer.node("Relu", writer.node("BatchNormalization", value, *statistics))


def _token_block(writer: _Writer, residual: str, width: int, centred: bool) -> str:
    scale = writer.vector(width, 1.0, 0.3)
    if centred:
        value = writer.node("LayerNormalization", residual, scale, writer.vector(width, 0.0, 0.3), epsilon=1e-5)
    else:
        square = writer.node("Mul", residual, residual)
        mean = writer.node("ReduceMean", square, writer.small(np.array([-1], np.int64)), keepdims=1)
        root = writer.node("Sqrt", writer.node("Add", mean, writer.small(np.array(1e-6, np.float32))))
        value = writer.node("Mul", writer.node("Div", residual, root), scale)
    value = writer.node("MatMul", value, writer.weight(width, 4 * width, fan_in=width))
    value = writer.node("Relu", writer.node("Add", value, writer.vector(4 * width, 0.0, 0.1)))
    value = writer.node("MatMul", value, writer.weight(4 * width, width, fan_in=4 * width))
    return writer.node("Add", residual, writer.node("Mul", value, writer.vector(width, 0.3, 0.1)))

"""Models of any number of nodes, to see how the time of an optimizer grows: `FAMILIES`.

All hold what rules look at: convolutions with norms behind, norms and activations spelled out, affine maps.
"""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from models.spellings import Writer

CHANNELS = 8
SIDE = 4


class Growing(Writer):
    """Writes blocks one behind the other, on values (1, 8, 4, 4) float32 with random weights."""

    def __init__(self) -> None:
        super().__init__([1, CHANNELS, SIDE, SIDE])
        self._rng = np.random.default_rng(0)

    def weight(self, *shape: int) -> ir.Value:
        """A constant with numbers from 0.5 to 1.5."""
        return self.constant(self._rng.uniform(0.5, 1.5, shape))

    def conv(self, x: ir.Value) -> ir.Value:
        """Conv of one position, then BatchNormalization."""
        x = self.op("Conv", x, self.weight(CHANNELS, CHANNELS, 1, 1))
        return self.op("BatchNormalization", x, *(self.weight(CHANNELS) for _ in range(4)))

    def hard_swish(self, x: ir.Value) -> ir.Value:
        """x · clip(x + 3, 0, 6) / 6 in four nodes."""
        gate = self.op("Clip", self.op("Add", x, self.constant(3.0)), self.constant(0.0), self.constant(6.0))
        return self.op("Div", self.op("Mul", x, gate), self.constant(6.0))

    def group_norm(self, x: ir.Value) -> ir.Value:
        """GroupNorm as torch's exporters write it, in five nodes."""
        rows = self.op("Reshape", x, self.constant([0, 2, -1], np.int64))
        rows = self.op("InstanceNormalization", rows, self.constant(np.ones(2)), self.constant(np.zeros(2)))
        x = self.op("Reshape", rows, self.constant([1, CHANNELS, SIDE, SIDE], np.int64))
        return self.affine(x, CHANNELS, 1, 1)

    def layer_norm(self, x: ir.Value) -> ir.Value:
        """LayerNorm over the last axis in nine nodes."""
        centred = self.op("Sub", x, self.reduce("ReduceMean", x, [-1]))
        variance = self.reduce("ReduceMean", self.op("Pow", centred, self.constant(2.0)), [-1])
        root = self.op("Sqrt", self.op("Add", variance, self.constant(1e-5)))
        return self.affine(self.op("Div", centred, root), SIDE)

    def affine(self, x: ir.Value, *shape: int) -> ir.Value:
        """Mul and Add by constants."""
        return self.op("Add", self.op("Mul", x, self.weight(*shape)), self.weight(*shape))


def mixed(nodes: int) -> ir.Model:
    """Residual blocks of 27 nodes: convolutions, activations, GroupNorm, LayerNorm, a linear layer."""
    writer = Growing()
    x = writer.x
    for _ in range(max(1, nodes // 27)):
        inner = writer.op("Relu", writer.conv(x))
        inner = writer.hard_swish(writer.conv(inner))
        x = writer.op("Add", writer.group_norm(inner), x)
        inner = writer.op("MatMul", writer.layer_norm(x), writer.weight(SIDE, SIDE))
        x = writer.op("Add", writer.op("Add", inner, writer.weight(SIDE)), x)
    return writer.model(x)


def chain(nodes: int) -> ir.Model:
    """One chain of scales that pass Relu after Relu, with nothing that takes them but a Conv at its end."""
    writer = Growing()
    x = writer.x
    for _ in range(max(1, nodes // 2)):
        x = writer.op("Relu", writer.op("Mul", x, writer.weight(CHANNELS, 1, 1)))
    return writer.model(writer.conv(x))


def shifts(nodes: int) -> ir.Model:
    """One chain of Relu, Mul and Add: each scale could pass back through all sums, and none takes it."""
    writer = Growing()
    x = writer.x
    for _ in range(max(1, nodes // 3)):
        x = writer.affine(writer.op("Relu", x), CHANNELS, 1, 1)
    return writer.model(x)


def transformer(nodes: int) -> ir.Model:
    """Blocks of 31 nodes: two LayerNorms, three linear layers with GELU behind one, two residual sums."""
    writer = Growing()

    def linear(x: ir.Value) -> ir.Value:
        return writer.op("Add", writer.op("MatMul", x, writer.weight(SIDE, SIDE)), writer.weight(SIDE))

    x = writer.x
    for _ in range(max(1, nodes // 31)):
        x = writer.op("Add", linear(writer.layer_norm(x)), x)
        inner = linear(writer.layer_norm(x))
        error = writer.op("Erf", writer.op("Div", inner, writer.constant(2**0.5)))
        gate = writer.op("Add", error, writer.constant(1.0))
        inner = writer.op("Mul", writer.op("Mul", inner, gate), writer.constant(0.5))
        x = writer.op("Add", linear(inner), x)
    return writer.model(x)


def fan_out(nodes: int) -> ir.Model:
    """One normalized value that all branches of four nodes read, added up at the end."""
    writer = Growing()
    x = writer.affine(writer.conv(writer.x), CHANNELS, 1, 1)
    branches = [writer.affine(writer.conv(x), CHANNELS, 1, 1) for _ in range(max(2, nodes // 4))]
    return writer.model(writer.op("Sum", *branches))


FAMILIES: dict[str, Callable[[int], ir.Model]] = {
    "mixed": mixed,
    "chain": chain,
    "shifts": shifts,
    "transformer": transformer,
    "fan-out": fan_out,
}
"""Each makes a model of about as many nodes as it is asked for."""

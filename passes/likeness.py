"""Whether what a lowering wrote already stands there: a second run must find nothing to do."""

import numpy as np
import onnx
import onnx_ir as ir

from normfuse.passes.access import dims
from normfuse.passes.lifted import lifted
from normfuse.passes.views import plain
from normfuse.passes.weights import constant_tensor

_DEPTH = 64


class Likeness:
    """Compares values by what computes them, from some data on; lifted calls are looked into."""

    def __init__(self, model: ir.Model) -> None:
        self._model = model
        self._opset = model.opset_imports.get("", 1)
        self._arguments: dict[ir.Value, ir.Value] = {}
        self._known: dict[tuple[ir.Value, ir.Value], bool] = {}

    def alike(self, new: ir.Value | None, old: ir.Value | None, depth: int = _DEPTH) -> bool:
        """Whether two values are computed by the same nodes of the same values."""
        if new is None or old is None:
            return new is old
        if (new, old) not in self._known:
            self._known[new, old] = self._compare(new, old, depth)
        return self._known[new, old]

    def _compare(self, new: ir.Value, old: ir.Value, depth: int) -> bool:
        new, old = self._resolved(new), self._resolved(old)
        if new is old:
            return True
        if constant_tensor(new) is not None or constant_tensor(old) is not None:
            return _equal(constant_tensor(new), constant_tensor(old))
        one, two = new.producer(), old.producer()
        if one is None or two is None or depth == 0 or one.op_identifier() != two.op_identifier():
            return False
        if new.index() != old.index() or attributes(one, self._opset) != attributes(two, self._opset):
            return False
        ours, theirs = _inputs(one), _inputs(two)
        return len(ours) == len(theirs) and all(self.alike(a, b, depth - 1) for a, b in zip(ours, theirs, strict=True))

    def _resolved(self, value: ir.Value) -> ir.Value:
        """A value outside of lifted calls: their outputs as their bodies compute them, their parameters as given."""
        while True:
            value = plain(value)
            node = value.producer()
            if value in self._arguments:
                value = self._arguments[value]
            elif node is not None and lifted(node) is not None:
                function = self._model.functions[node.op_identifier()]
                for parameter, argument in zip(function.inputs, node.inputs, strict=True):
                    assert argument is not None
                    self._arguments[parameter] = argument
                value = function.outputs[0]
            else:
                return value


def attributes(node: ir.Node, opset: int) -> dict[str, object]:
    """The attributes of a node with the defaults of its operator; a single axis counted from the front."""
    found: dict[str, object] = {}
    if node.domain in ("", "ai.onnx") and onnx.defs.has(node.op_type, opset):
        schema = onnx.defs.get_schema(node.op_type, opset, "")
        for name, attribute in schema.attributes.items():
            if attribute.default_value.type:
                found[name] = onnx.helper.get_attribute_value(attribute.default_value)
    found.update((name, attribute.value) for name, attribute in node.attributes.items())
    sizes = dims(node.inputs[0]) if node.inputs else None
    if sizes and isinstance(axis := found.get("axis"), int) and axis < 0:
        found["axis"] = axis + len(sizes)
    return {name: _plain(value) for name, value in found.items()}


def _plain(value: object) -> object:
    """An attribute as it is stored: numbers in float32, strings decoded."""
    match value:
        case bytes():
            return value.decode(errors="replace")
        case float():
            return float(np.float32(value))
        case list() | tuple():
            return tuple(_plain(one) for one in value)
        case _:
            return value


def _inputs(node: ir.Node) -> list[ir.Value | None]:
    """The inputs without those left out at the end."""
    inputs = list(node.inputs)
    while inputs and inputs[-1] is None:
        inputs.pop()
    return inputs


def _equal(one: ir.TensorProtocol | None, other: ir.TensorProtocol | None) -> bool:
    if one is None or other is None or one.dtype != other.dtype or tuple(one.shape) != tuple(other.shape):
        return False
    return np.array_equal(one.numpy(), other.numpy(), equal_nan=True)

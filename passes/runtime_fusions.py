"""Affine nodes that ONNX Runtime fuses with their neighbours: taking one out costs more than it saves.

GELU                x · ½ · (1 + erf(x / √2)), and with tanh; Runtime: Gelu, FastGelu
LayerNormalization  γ · d / √(mean(d²) + ε) + β spelled in nodes; Runtime: LayerNormalization
"""

from collections.abc import Iterator

import onnx_ir as ir

from normfuse.norm import Standardize
from normfuse.passes.access import dims, only_reader, operator
from normfuse.passes.lifted import lifted
from normfuse.passes.weights import constant_tensor

_GELU_REACH = 4


def kept_for_runtime(graph: ir.Graph) -> dict[ir.Node, str]:
    """The nodes of a graph that stay as they are, each with the reason."""
    kept: dict[ir.Node, str] = {}
    for node in graph:
        match operator(node):
            case "Erf" | "Tanh":
                for member in _gelu(node):
                    kept[member] = "it is part of a GELU that ONNX Runtime fuses"
            case _ if _is_lifted(node):
                for member in _tail(node):
                    kept[member] = "it is γ or β of a normalization that holds them at no cost"
            case "Div" | "Mul" if _is_standardized(node):
                for member in _tail(node):
                    kept[member] = "it is γ or β of a normalization that ONNX Runtime fuses"
    return kept


def _gelu(core: ir.Node) -> Iterator[ir.Node]:
    """What stands around an Erf or Tanh whose result is added to a constant and multiplied."""
    following = only_reader(core.outputs[0])
    if following is None or following.op_type != "Add" or not any(_is_one(value) for value in following.inputs):
        return
    yield following
    product = only_reader(following.outputs[0])
    for _ in range(2):
        if product is None or product.op_type != "Mul":
            break
        yield product
        for value in product.inputs:
            factor = None if value is None else value.producer()
            if factor is not None and factor.op_type in ("Div", "Mul"):
                yield factor
        product = only_reader(product.outputs[0])
    yield from _arithmetic_before(core, _GELU_REACH)


def _is_one(value: ir.Value | None) -> bool:
    tensor = constant_tensor(value)
    return tensor is not None and tensor.size == 1 and float(tensor.numpy().ravel()[0]) == 1.0


def _arithmetic_before(node: ir.Node, reach: int) -> Iterator[ir.Node]:
    for value in node.inputs:
        producer = None if value is None else value.producer()
        if reach and producer is not None and producer.op_type in ("Add", "Div", "Mul", "Pow"):
            yield producer
            yield from _arithmetic_before(producer, reach - 1)


def _is_lifted(node: ir.Node) -> bool:
    """Whether a node is a lifted normalization over the last axis, which an operator with γ and β will take over."""
    record, sizes = lifted(node), dims(node.outputs[0])
    if record is None or not isinstance(record.meaning, Standardize) or sizes is None:
        return False
    meaning = record.meaning
    return meaning.groups is None and meaning.axes[-1] == len(sizes) - 1 and meaning.window is None


def _is_standardized(node: ir.Node) -> bool:
    """Whether a node is d / √(mean(…) + ε), or d times its reciprocal."""
    for value in node.inputs:
        root = None if value is None else value.producer()
        for _ in range(2):
            if root is not None and root.op_type in ("Reciprocal", "Div") and root is not node:
                root = next((v.producer() for v in reversed(root.inputs) if v is not None and v.producer()), None)
        if root is None or root.op_type not in ("Sqrt", "Pow"):
            continue
        inside = root.inputs[0].producer() if root.inputs[0] is not None else None
        means = [v.producer() for v in inside.inputs if v is not None] if inside is not None else []
        if any(mean is not None and mean.op_type == "ReduceMean" for mean in (inside, *means)):
            return True
    return False


def _tail(node: ir.Node) -> Iterator[ir.Node]:
    """The Mul and the Add behind a standardized value, with a Cast between them."""
    reader = only_reader(node.outputs[0])
    for _ in range(3):
        if reader is None or reader.op_type not in ("Add", "Cast", "Mul"):
            return
        yield reader
        if reader.op_type == "Add":
            return
        reader = only_reader(reader.outputs[0])

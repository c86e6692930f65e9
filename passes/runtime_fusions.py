"""Affine nodes that ONNX Runtime fuses with their neighbours: taking one out costs more than it saves.

LayerNormalization  γ · d / √(mean(d²) + ε) + β spelled in nodes; Runtime: LayerNormalization

Activations need no word: what was lifted is one node, and nothing folds into it.
"""

from collections.abc import Iterator

import onnx_ir as ir

from normfuse.norm import Standardize
from normfuse.passes.access import dims, only_reader, operator
from normfuse.passes.lifted import lifted


def kept_for_runtime(graph: ir.Graph) -> dict[ir.Node, str]:
    """The nodes of a graph that stay as they are, each with the reason."""
    kept: dict[ir.Node, str] = {}
    for node in graph:
        match operator(node):
            case _ if _is_lifted(node):
                for member in _tail(node):
                    kept[member] = "it is γ or β of a normalization that holds them at no cost"
            case "Div" | "Mul" if _is_standardized(node):
                for member in _tail(node):
                    kept[member] = "it is γ or β of a normalization that ONNX Runtime fuses"
    return kept


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

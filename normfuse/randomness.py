"""Which outputs of a model are drawn at random: no two runs share them, so no run proves anything about them.

What a random operator gives runs into every value that is computed from it, but for its shape. A Dropout draws where
it is in training mode, or may be, and drops a part of its values.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from normfuse.kernels import RANDOM
from normfuse.passes.access import graphs_of
from normfuse.passes.weights import constant_tensor

Array = np.ndarray[Any, Any]
Known = Mapping[ir.Value, Array | None]

_OF_SHAPES = frozenset({"Shape", "Size"})
"""Operators that see nothing of their input but its shape."""


def random_outputs(model: ir.Model) -> dict[str, str]:
    """The outputs that depend on a random operator, each with the first one that it depends on.

    Args:
        model: a model whose nodes stand in order.

    Returns:
        the operator and its node by the name of the output, such as `{"y": "RandomNormal 'r'"}`.
    """
    functions = list(model.functions.values())
    nodes = [*model.graph.all_nodes(), *(node for function in functions for node in function.all_nodes())]
    if not any(node.op_type in RANDOM or node.op_type == "Dropout" for node in nodes):
        return {}
    drawn: dict[ir.Value, str] = {}
    for node in model.graph:
        source = _drawn(node, model, drawn)
        if source:
            drawn.update(dict.fromkeys(node.outputs, source))
    return {str(value.name): drawn[value] for value in model.graph.outputs if value in drawn}


def unprovable(model: ir.Model) -> str:
    """Why nothing can prove what a model computes, in one line, or nothing."""
    for name, source in random_outputs(model).items():
        return f"output {name!r} depends on {source}, whose result no two runs share: no run can prove it"
    return ""


def _drawn(node: ir.Node, model: ir.Model, drawn: Mapping[ir.Value, str]) -> str:
    """What a node's outputs depend on that is drawn at random, or nothing."""
    inner = [each for graph in graphs_of(node) for each in graph.all_nodes()]
    for one in (node, *inner):
        if source := _own(one, model, model.opset_imports, {}):
            return source
    if node.op_type in _OF_SHAPES and node.domain in ("", "ai.onnx"):
        return ""
    read = (value for one in (node, *inner) for value in one.inputs if value is not None)
    given = (value for graph in graphs_of(node) for value in graph.outputs)
    return next((drawn[value] for value in (*read, *given) if value in drawn), "")


def _own(node: ir.Node, model: ir.Model, opsets: Mapping[str, int], known: Known) -> str:
    """The random operator that a node is, or that the function it calls holds, or nothing."""
    function = model.functions.get(node.op_identifier())
    if function is not None:
        given: dict[ir.Value, Array | None] = dict.fromkeys(function.inputs)
        given |= {inner: _content(outer, known) for inner, outer in zip(function.inputs, node.inputs, strict=False)}
        held = (_own(each, model, function.opset_imports, given) for each in function.all_nodes())
        return next((source for source in held if source), "")
    label = f"{node.op_type} {node.name!r}" if node.name else node.op_type
    if node.op_type in RANDOM:
        return label
    return label if node.op_type == "Dropout" and _drops(node, opsets.get("", 12), known) else ""


def _drops(node: ir.Node, opset: int, known: Known) -> bool:
    """Whether a Dropout sets values to zero at random, or may."""
    if opset < 7:
        return not node.attributes.get_int("is_test", 0)
    if opset < 12 or len(node.inputs) < 3 or node.inputs[2] is None:
        return False
    training = _content(node.inputs[2], known)
    if training is not None and not np.any(training):
        return False
    ratio = _content(node.inputs[1], known)
    return node.inputs[1] is None or ratio is None or bool(np.any(ratio))


def _content(value: ir.Value | None, known: Known) -> Array | None:
    """What a value always holds, or None."""
    if value is None:
        return None
    if value in known:
        return known[value]
    tensor = constant_tensor(value)
    return None if tensor is None else np.asarray(tensor.numpy())

"""clean: unused nodes, duplicates and common subexpressions go, by the passes of `onnx_ir`."""

from typing import cast

import onnx_ir as ir
from onnx_ir.passes import common

from normfuse.passes.layout import LayoutPass
from normfuse.passes.removal import RemoveUnusedPass
from normfuse.passes.rule import Rule
from normfuse.scaled import head

_RANDOM = frozenset({"Bernoulli", "Dropout"})
"""Operators that may be random and that `CommonSubexpressionEliminationPass` would merge."""


_SAME_SIZE = 1 << 22
"""Initializers of up to this many elements are compared."""


class CleanPass(ir.passes.InPlacePass):
    """Removes what nothing reads and merges what is the same."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Cleans a model."""
        passes: list[ir.passes.PassBase] = [
            RemoveUnusedPass(),
            DeduplicatePass(),
        ]
        if all(_is_repeatable(node) for node in model.graph):
            passes.append(common.CommonSubexpressionEliminationPass())
        passes += [
            RemoveUnusedPass(),
            common.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]  # its __init__ has no annotations
            common.TopologicalSortPass(),
        ]
        modified = [item(model).modified for item in passes]
        return ir.passes.PassResult(model, any(modified))


class DeduplicatePass(ir.passes.InPlacePass):
    """Keeps one of the initializers that hold the same: only what begins alike is read as a whole."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Merges the initializers of each graph."""
        modified = False
        for graph in model.graphs():
            alike: dict[tuple[object, ...], list[ir.Value]] = {}
            for value in tuple(graph.initializers.values()):
                tensor = value.const_value
                if tensor is None or value.is_graph_input() or value.is_graph_output() or tensor.size > _SAME_SIZE:
                    continue
                kept = alike.setdefault((tensor.dtype, tuple(tensor.shape.numpy()), _head(tensor)), [])
                same = next((other for other in kept if _hold_same(tensor, other.const_value)), None)
                if same is None:
                    kept.append(value)
                    continue
                value.replace_all_uses_with(same)
                del graph.initializers[str(value.name)]
                modified = True
        return ir.passes.PassResult(model, modified)


def _head(tensor: ir.TensorProtocol) -> bytes:
    return b"" if tensor.dtype == ir.DataType.STRING else head(tensor)


def _hold_same(one: ir.TensorProtocol, other: ir.TensorProtocol | None) -> bool:
    """Whether two tensors of one dtype and shape hold the same bits."""
    assert other is not None
    if isinstance(one, ir.ExternalTensor) and isinstance(other, ir.ExternalTensor):
        if (one.path, one.offset) == (other.path, other.offset):
            return True
    elif one.dtype == ir.DataType.STRING:
        return list(cast(ir.StringTensor, one).string_data()) == list(cast(ir.StringTensor, other).string_data())
    return one.tobytes() == other.tobytes()


def _is_repeatable(node: ir.Node) -> bool:
    """Whether two equal nodes compute the same: not known of operators outside of the standard domains."""
    return node.op_type not in _RANDOM and node.domain in ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")


RULES: tuple[Rule, ...] = (
    Rule(
        "layout",
        "clean",
        ("Flatten", "Reshape", "Squeeze", "Transpose", "Unsqueeze"),
        None,
        LayoutPass.join_reshapes,
        "only the last layout of the same elements counts",
    ),
    Rule("clean", "clean", (), None, CleanPass.call, "what nothing reads, or what is there twice, is not needed"),
)

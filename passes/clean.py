"""clean: unused nodes, duplicates and common subexpressions go, by the passes of `onnx_ir`."""

import onnx_ir as ir
from onnx_ir.passes import common

from normfuse.passes.layout import LayoutPass
from normfuse.passes.rule import Rule

_RANDOM = frozenset({"Bernoulli", "Dropout"})
"""Operators that may be random and that `CommonSubexpressionEliminationPass` would merge."""


_SAME_SIZE = 1 << 22
"""Initializers of up to this many elements are compared."""


class CleanPass(ir.passes.InPlacePass):
    """Removes what nothing reads and merges what is the same."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Cleans a model."""
        passes: list[ir.passes.PassBase] = [
            common.RemoveUnusedNodesPass(),
            common.DeduplicateInitializersPass(size_limit=_SAME_SIZE),
        ]
        if all(_is_repeatable(node) for node in model.graph):
            passes.append(common.CommonSubexpressionEliminationPass())
        passes += [
            common.RemoveUnusedNodesPass(),
            common.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]  # its __init__ has no annotations
            common.TopologicalSortPass(),
        ]
        modified = [item(model).modified for item in passes]
        return ir.passes.PassResult(model, any(modified))


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

"""What the CPU provider runs where it stands in for another one: no kernel of its own that computes otherwise.

Its LRN adds and subtracts squares as the window moves, and what a large value leaves behind stays: where α / k is large
that is far from the definition, which another provider's kernel may well keep to. What is judged is the model, so each
LRN is summed anew at each channel, as LOWER writes it for the CPU.
"""

from collections.abc import Sequence

import onnx_ir as ir

from normfuse.foreign import Foreign


def as_defined(model: ir.Model) -> ir.Model:
    """The model, or a copy that computes LRN in float32 by its definition, if it has one."""
    if isinstance(model, Foreign) or not any(node.op_type == "LRN" for graph in model.graphs() for node in graph):
        return model
    from normfuse.passes.lower import LowerPass
    from normfuse.passes.lowering import Choice, Lowering, NormSite
    from normfuse.passes.lowerings import LOWERINGS
    from normfuse.target import Target

    by_conv = next(row for row in LOWERINGS if row.name == "lrn-by-conv")

    def choose(model: ir.Model, site: NormSite, rows: Sequence[Lowering], target: Target) -> Choice:
        return Choice((by_conv,) if site.operators == {"LRN"} else (None,))

    copy = model.clone()
    LowerPass(Target.parse("cpu", 1), choose=choose)(copy)
    return copy

"""What overflows in float16 where ONNX Runtime's CPU provider does not let it.

That provider has few kernels for float16: between the others it computes in float32, so that x² of x = 300, which is no
float16, comes out right. CUDA rounds each result. So what is float16 is run by the reference evaluator, too, which
rounds each as well: a result far off, where that of the original is not, fails.
Parts with sums of products are left out: numpy adds them up in float16, which no provider does.
"""

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from normfuse.errors import TargetError
from normfuse.evaluated import Evaluated
from normfuse.probes import Array, Probe

FAMILIES = ("scale 1e2", "heavy tails", "mean 1e3")
"""The families with large numbers."""

_SUMS = frozenset({"Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul", "ReduceL1", "ReduceSum", "ReduceSumSquare"})
"""Operators that numpy adds up in the dtype of their operands."""

_FAR, _NEAR = 0.1, 0.05
"""Relative errors: what overflowed is off by about 1, and rounding each result costs less than a hundredth."""


def overflow(before: ir.Model, after: ir.Model, probes: Iterable[tuple[Probe, dict[str, Array]]]) -> str:
    """Where a model overflows in float16 and another one does not, as a reason; nothing where it is not so.

    Args:
        before: the model as it was.
        after: the model as it became.
        probes: inputs, each with what the original makes of them in ONNX Runtime, by output name.
    """
    if not _is_half(after) or any(node.op_type in _SUMS for one in (before, after) for node in one.graph.all_nodes()):
        return ""
    try:
        was, now = Evaluated(before, "the original"), Evaluated(after, "the candidate")
        for probe, base in probes:
            if probe.family not in FAMILIES:
                continue
            made = now.run(probe.inputs)
            if all(_distance(made[name], base[name]) <= _FAR for name in made if name in base):
                continue
            kept = was.run(probe.inputs)
            for name in (name for name in made if name in base):
                far = _distance(made[name], base[name])
                if far > _FAR and _distance(kept[name], base[name]) < _NEAR:
                    return f"it overflows where each result is rounded to float16 (probes {probe.family!r})"
    except TargetError:
        return ""  # nothing can compute it like that here
    return ""


def _is_half(model: ir.Model) -> bool:
    """Whether something in a model is float16."""
    values = [*model.graph.inputs, *(value for node in model.graph.all_nodes() for value in node.outputs)]
    return any(value.dtype == ir.DataType.FLOAT16 for value in values)


def _distance(values: Array, base: Array) -> float:
    """‖values − base‖ / ‖base‖ over what is finite in base; infinite where values are not."""
    if values.dtype.kind != "f" or values.shape != base.shape:
        return 0.0
    finite = np.isfinite(base)
    wide, wanted = values.astype(np.float64)[finite], base.astype(np.float64)[finite]
    if not np.all(np.isfinite(wide)):
        return float("inf")
    return float(np.linalg.norm(wide - wanted) / (np.linalg.norm(wanted) or 1.0))

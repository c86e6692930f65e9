"""`Shaken`: the float64 oracle with the result of each node off by a rounding, as another order of operations makes it.

Of a float64 model the oracle is no finer than what it judges: run by the same evaluator, the original's error is zero
to the last bit, and a result that is nearer to the truth would fail for being different. What rounding makes of the
original is measured instead, by rounding at random (Monte Carlo arithmetic: Parker, 1997):

    fl(a ∘ b) = (a ∘ b)(1 + δ), δ from U(−u, u), for each element

A wrong formula is not excused by it: no rounding makes one.
"""

from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir

from normfuse.oracle import Oracle

_EXACT = frozenset(
    [
        "Concat",
        "Constant",
        "Dropout",
        "Expand",
        "Flatten",
        "Gather",
        "Identity",
        "Pad",
        "Relu",
        "Reshape",
        "Shape",
        "Slice",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    ]
)
"""Operators that round nothing."""


class Shaken(Oracle):
    """An oracle that rounds each result at random; what is within a subgraph or a function counts as one node."""

    def __init__(self, model: ir.Model, unit: float, seed: int = 0) -> None:
        """Upcasts a copy of the model.

        Args:
            model: the model, which is not changed.
            unit: the unit round-off u.
            seed: of the roundings, which are others in each run.

        Raises:
            OracleError: the model holds an operator that nothing here can run.
        """
        super().__init__(model)
        rng = np.random.default_rng(seed)

        def rounded(run: Any, *inputs: Any, **options: Any) -> tuple[Any, ...]:
            return tuple(
                result * (1.0 + unit * rng.uniform(-1.0, 1.0, result.shape))
                if isinstance(result, np.ndarray) and result.dtype.kind == "f"
                else result
                for result in run(*inputs, **options)
            )

        for node in self._evaluator.rt_nodes_:
            if node.op_type not in _EXACT:
                node.run = partial(rounded, node.run)

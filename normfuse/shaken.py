"""`Shaken`: the float64 oracle with the result of each node off by a rounding, as another order of operations makes it.

Of a float64 model the oracle is no finer than what it judges: run by the same evaluator, the original's error is zero
to the last bit, and a result that is nearer to the truth would fail for being different. What rounding makes of the
original is measured instead, by rounding at random (Monte Carlo arithmetic: Parker, 1997):

    fl(a ∘ b) = (a ∘ b)(1 + δ), δ from U(−u, u), for each element

A wrong formula is not excused by it: no rounding makes one.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from normfuse.oracle import Oracle

STANDARD = frozenset({"", "ai.onnx", "ai.onnx.ml"})
"""Domains whose functions count as one operator each."""

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
    """An oracle that rounds each result at random, in subgraphs and model-local functions too."""

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

        pending: list[ReferenceEvaluator] = [self._evaluator]
        seen = set[int]()
        while pending:
            evaluator = pending.pop()
            if id(evaluator) in seen:
                continue  # a function that is called twice
            seen.add(id(evaluator))
            for node in evaluator.rt_nodes_:
                bodies = list(_bodies(node))
                pending += bodies
                if not bodies and node.op_type not in _EXACT:
                    node.run = partial(rounded, node.run)


def _bodies(node: Any) -> Iterator[ReferenceEvaluator]:
    """What runs the subgraphs of a node, or the function that it calls; functions of onnx itself are operators."""
    for name, value in vars(node).items():
        if isinstance(value, ReferenceEvaluator) and (name != "impl_" or node.onnx_node.domain not in STANDARD):
            yield value

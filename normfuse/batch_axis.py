"""Whether the channels of a BatchNormalization hold the batch: `folded_batch`.

Exporters write an InstanceNorm with running statistics for N examples as

    (N, C, *spatial) → Reshape → (1, N · C, *spatial) → BatchNormalization of N · C channels → Reshape

with N copies of the statistics one behind the other. Measured, each place of the batch would get statistics of its own.
With D the shape in front of the Reshape and E that behind it, the batch goes into the channels where E₀ < D₀. Where
that is not known, copies of the statistics tell it.
"""

import math

import numpy as np
import onnx_ir as ir

from normfuse.passes.access import Dim, attribute, dims, operator
from normfuse.passes.inference import infer_shapes
from normfuse.population import Statistics

_KEEP = frozenset({"Cast", "Clip", "Elu", "HardSwish", "Identity", "LeakyRelu", "Relu", "Sigmoid", "Softplus", "Tanh"})
"""Operators that keep the meaning of each axis."""


def folded_batch(model: ir.Model, node: ir.Node, statistics: Statistics) -> str:
    """Why the channels of a BatchNormalization in the main graph are none, or nothing."""
    reshape = _reshape_before(node)
    if reshape is None:
        return ""
    copy = model.clone()
    infer_shapes(copy)
    same = copy.graph[list(model.graph).index(reshape)]
    given, taken = dims(same.inputs[0]), dims(same.outputs[0])
    if taken and len(taken) > 1:
        taken[1] = len(statistics.mean)
    folds = _folds(given, taken)
    producer = reshape.inputs[0].producer() if reshape.inputs[0] is not None else None
    if folds is None or (folds and producer is not None and operator(producer) == "Transpose"):
        folds = has_copies(statistics)  # behind a Transpose the first axis may be another than the batch
    name = reshape.name or str(reshape.outputs[0].name)
    return (
        f"{reshape.op_type} {name!r} before it makes channels of the examples of a batch, as an InstanceNorm with "
        "running statistics is exported, and that estimates its own by example"
        if folds
        else ""
    )


def has_copies(statistics: Statistics) -> bool:
    """Whether statistics are one vector, not all of one number, several times over."""
    both = np.stack([statistics.mean, statistics.variance])
    channels = both.shape[1]
    return any(
        channels % period == 0 and np.array_equal(both[:, period:], both[:, :-period])
        for period in range(2, channels // 2 + 1)
    ) and bool(np.any(both != both[:, :1]))


def _reshape_before(node: ir.Node) -> ir.Node | None:
    value = node.inputs[0]
    while value is not None and (producer := value.producer()) is not None:
        kind = operator(producer)
        if kind == "Reshape" or (kind == "Flatten" and attribute(producer, "axis", 1) == 0):
            return producer
        if kind not in _KEEP:
            return None
        value = producer.inputs[0]
    return None


def _folds(given: list[Dim] | None, taken: list[Dim] | None) -> bool | None:
    """Whether a Reshape takes the batch out of the first axis; None where that is not known."""
    if not given or not taken:
        return None
    first, other = given[0], taken[0]
    if first == 1 or (first is not None and first == other) or taken == [1, *given]:
        return False
    if isinstance(first, int) and isinstance(other, int):
        return other < first
    before, behind = _elements(given[1:]), _elements(taken[1:])
    return None if before is None or behind is None else behind > before


def _elements(sizes: list[Dim]) -> int | None:
    """How many elements dimensions hold; None where one of them is not known."""
    known = [size for size in sizes if isinstance(size, int)]
    return math.prod(known) if len(known) == len(sizes) else None

"""A model that gives the moments of what its BatchNormalizations read, as ONNX Runtime runs it: `Measurer`.

For each BatchNormalization that is measured, its input x of (N, C, *spatial) gets three readers, in float64:

    m = N · spatial        μ_B = ReduceMean(x)        M2_B = ReduceSumSquare(x − μ_B)

in two passes over x, so nothing cancels where the mean is large against the deviation. Only vectors leave the runtime,
and what no moment depends on is cut off: a run holds what an inference up to there holds, and x twice in float64.

With the flow `batch` each of them then normalizes by these moments, as in training: E[x] = μ_B, Var[x] = M2_B / m.
ONNX Runtime's own kernel for training mode is not used, as it is wrong where scale, bias and mean are one value.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from normfuse.errors import NormfuseError
from normfuse.passes.weights import Weights
from normfuse.population import Estimator, Moments, Statistics
from normfuse.runtime import Array, Session, session
from normfuse.stored import Stored, constant_of, write

Flow = Literal["levels", "batch"]
FLOWS: tuple[Flow, ...] = ("levels", "batch")

LARGEST = 1e100
"""What a float64 may be so that squares of it can still be summed up; no float32 comes near."""

_SLICE_HAS_INPUTS = 10
"""The opset from which on Slice reads its bounds from inputs."""

_END = 2**31 - 1

_AXES_ARE_INPUTS = 18
"""The opset from which on reductions read their axes from an input."""


class Measurer:
    """Measures some BatchNormalizations of a model, a batch at a time."""

    def __init__(
        self,
        model: ir.Model,
        measured: Sequence[Stored],
        known: Mapping[Stored, Statistics],
        flow: Flow = "levels",
        least: int = 2,
        threads: int | None = None,
    ) -> None:
        """Prepares a copy of a model, and loads it.

        Args:
            model: as `normfuse.model.load` returned it.
            measured: those to measure.
            known: statistics of others, which they are measured behind.
            flow: whether those measured normalize by the moments of the batch (`batch`), or as they are.
            least: elements per channel that each batch must have.
            threads: intra-op threads; all processors where None.

        Raises:
            TargetError: ONNX Runtime cannot load it.
        """
        self._least = least
        copy = model.clone()
        nodes = [copy.graph[stored.index] for stored in measured]
        dtypes = [[constant_of(node, index).dtype for index in (3, 4)] for node in nodes]
        write(copy, known)
        writer = _Writer(copy)
        self._measured = tuple(measured)
        outputs: list[ir.Value] = []
        self._names: list[tuple[str, str, str]] = []
        for stored, node, kinds in zip(measured, nodes, dtypes, strict=True):
            data = node.inputs[0]
            assert data is not None
            count, mean, m2 = writer.moments(data, stored.channels)
            outputs += (count, mean, m2)
            self._names.append((str(count.name), str(mean.name), str(m2.name)))
            if flow == "batch":
                size = writer.op("Cast", writer.op("Div", count, writer.whole([stored.channels])), to=_DOUBLE)
                for index, value, kind in zip((3, 4), (mean, writer.op("Div", m2, size)), kinds, strict=True):
                    node.replace_input_with(index, writer.op("Cast", value, to=kind))
            writer.commit(node)
        copy.graph.outputs.clear()
        copy.graph.outputs.extend(outputs)
        RemoveUnusedNodesPass()(copy)
        self.nodes = len(copy.graph)
        self._session = session(copy, "disabled", threads=threads, name=model.graph.name or "the model")

    def measure(self, batch: Mapping[str, Array]) -> dict[Stored, Moments]:
        """The moments of a batch, given by input name.

        Raises:
            TargetError: the model does not run on it.
            NormfuseError: a moment is not finite, or a channel has too few elements.
        """
        values = self._session.run(feeds(self._session, batch))
        found: dict[Stored, Moments] = {}
        for stored, (count, mean, m2) in zip(self._measured, self._names, strict=True):
            moments = Moments(int(values[count]) // stored.channels, values[mean], values[m2])
            found[stored] = checked(stored.name, moments, self._least)
        return found


def feeds(loaded: Session, batch: Mapping[str, Array]) -> dict[str, Array]:
    """What a session takes of a batch, with what overrides an initializer."""
    return {name: batch[name] for name in (*loaded.inputs, *loaded.optional) if name in batch}


def least_elements(estimator: Estimator, flow: Flow) -> int:
    """Elements per channel that each batch must have: one has no variance of its own."""
    return 0 if estimator == "pooled" and flow == "levels" else 2


def checked(name: str, moments: Moments, least: int) -> Moments:
    """The moments of a batch, if they can be used; those of no elements are 0.

    Raises:
        NormfuseError: one is not finite, or a channel has less than the least number of elements.
    """
    if moments.count < least:
        raise lone(name, moments.count)
    if not moments.count:
        return Moments(0, np.zeros_like(moments.mean), np.zeros_like(moments.m2))
    if not (np.all(np.abs(moments.mean) < LARGEST) and np.all(moments.m2 < LARGEST**2)):
        raise NormfuseError(
            f"BatchNormalization {name!r} reads NaN or infinities; look for them in the data, or in the statistics of "
            "the layers before it"
        )
    return moments


def lone(name: str, count: int = 1) -> NormfuseError:
    """What is said of a batch, or of all of them, with one element per channel or none."""
    what = "one element per channel, which has no variance" if count else "no elements"
    return NormfuseError(
        f"BatchNormalization {name!r} reads {what}; give larger batches, or several to the estimator `pooled` on levels"
    )


_DOUBLE = ir.DataType.DOUBLE


class _Writer:
    """Writes what measures a value in front of a node."""

    def __init__(self, model: ir.Model) -> None:
        self._model = model
        self._weights = Weights(model)
        self._nodes: list[ir.Node] = []

    def moments(self, data: ir.Value, channels: int) -> tuple[ir.Value, ir.Value, ir.Value]:
        """The elements of (N, C, *spatial), the mean and M2 of each channel."""
        flat = self.op("Reshape", self.op("Cast", data, to=_DOUBLE), self.flattened(data, channels))
        mean = self.reduce("ReduceMean", flat, keepdims=1)
        m2 = self.reduce("ReduceSumSquare", self.op("Sub", flat, mean), keepdims=0)
        count, mean = self.op("Size", data), self.op("Reshape", mean, self.whole([channels]))
        count.dtype, mean.dtype, m2.dtype = ir.DataType.INT64, _DOUBLE, _DOUBLE
        return count, mean, m2

    def flattened(self, data: ir.Value, channels: int) -> ir.Value:
        """The shape (N, C, P) of (N, C, *spatial) of any rank; −1 would not tell P where N is 0."""
        shape = self.op("Shape", data)
        if self._weights.opset >= _SLICE_HAS_INPUTS:
            spatial = self.op("Slice", shape, self.whole([2]), self.whole([_END]))
        else:
            spatial = self.op("Slice", shape, starts=[2], ends=[_END])
        # (N, C) has none, and its P is 1
        size = self.op("ReduceProd", self.op("Concat", spatial, self.whole([1]), axis=0), keepdims=1)
        return self.op("Concat", self.whole([0, channels]), size, axis=0)

    def reduce(self, operator: str, flat: ir.Value, keepdims: int) -> ir.Value:
        """Reduces (N, C, P) over N and P."""
        if self._weights.opset >= _AXES_ARE_INPUTS:
            return self.op(operator, flat, self.whole([0, 2]), keepdims=keepdims)
        return self.op(operator, flat, keepdims=keepdims, axes=[0, 2])

    def op(self, operator: str, *inputs: ir.Value, **attributes: int | Sequence[int]) -> ir.Value:
        """A node with one output."""
        node = ir.node(operator, list(inputs), dict(attributes), name=self._weights.fresh(f"measured_{operator}"))
        node.outputs[0].name = self._weights.fresh(f"{node.name}_output")
        self._nodes.append(node)
        return node.outputs[0]

    def whole(self, numbers: Sequence[int]) -> ir.Value:
        """A constant vector of int64."""
        name = self._weights.fresh("measured_constant")
        value = ir.Value(name=name, const_value=ir.tensor(np.array(numbers, np.int64), name=name))
        value.shape, value.dtype = ir.Shape([len(numbers)]), ir.DataType.INT64
        self._model.graph.register_initializer(value)
        return value

    def commit(self, before: ir.Node) -> None:
        """Puts what was written in front of a node."""
        self._model.graph.insert_before(before, self._nodes)
        self._nodes = []

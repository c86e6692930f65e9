"""Any normalization as one thing, `Norm`: an operator of ONNX or of ONNX Runtime, or a lifted call.

LayerNormalization, RMSNormalization, InstanceNormalization, GroupNormalization, LRN, LpNormalization,
MeanVarianceNormalization, BatchNormalization in training mode, and normfuse::Standardize.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from normfuse.affine import Float64
from normfuse.norm import Standardize
from normfuse.passes.access import Dim, RefusedError, attribute, known_dims, operator
from normfuse.passes.lifted import lifted
from normfuse.passes.weights import Weights


@dataclass(frozen=True, slots=True)
class Parameter:
    """γ or β of a normalization, constant or computed.

    Attributes:
        value: the value that holds it.
        axes: the axis of x that each of its dimensions stands along; a dimension of 1 broadcasts.
        repeats: how often each element stands for the next channel, too: 1, or the channels of a group.
    """

    value: ir.Value
    axes: tuple[int, ...]
    repeats: int = 1

    def array(self, weights: Weights, rank: int) -> Float64 | None:
        """The constant in float64, shaped to broadcast against x of that rank; None where it is computed."""
        array = weights.array(self.value)
        if array is None:
            return None
        shape = [1] * rank
        array = np.repeat(array, self.repeats) if self.repeats > 1 else array
        for axis, size in zip(self.axes, array.shape, strict=True):
            shape[axis] = size
        return array.reshape(shape)


@dataclass(frozen=True, slots=True)
class Norm:
    """A normalization.

    Attributes:
        node: the operator or lifted call; its first output is the result.
        standardize: what it computes before γ and β.
        data: x.
        scale: γ, or None.
        bias: β, or None.
    """

    node: ir.Node
    standardize: Standardize
    data: ir.Value
    scale: Parameter | None = None
    bias: Parameter | None = None

    @property
    def output(self) -> ir.Value:
        """y."""
        return self.node.outputs[0]

    @property
    def dims(self) -> tuple[Dim, ...]:
        """The dimensions of x."""
        return tuple(known_dims(self.data))

    @property
    def rank(self) -> int:
        """The number of dimensions of x."""
        return len(self.dims)

    def name(self, found: Standardize) -> str:
        """What the field calls it. (N, L, C) and (N, C, L) look alike: the operator tells, or where γ and β stand."""
        name = found.name(self.rank)
        open_to_both = name == "InstanceNorm" and self.rank == 3 and self.node.op_type != "InstanceNormalization"
        per_channel = any(one.axes == (1,) for one in (self.scale, self.bias) if one is not None)
        return "LayerNorm" if open_to_both and not per_channel else name

    @property
    def is_bare(self) -> bool:
        """Whether it has neither γ nor β."""
        return self.scale is None and self.bias is None


ONLY_ROUNDING = "each of its means is of a single element: its result is β and rounding, which is left as it is"
"""Why what `is_only_rounding` is not rewritten: what x − E[x] rounds to, γ / √ε amplifies."""


def is_only_rounding(norm: Norm) -> bool:
    """Whether x − E[x] is zero whatever x is."""
    return norm.standardize.centred and norm.standardize.count(norm.dims) == 1


def need_more_than_rounding(node: ir.Node, weights: Weights) -> None:
    """Makes sure that a normalization has more than one element to each mean, as far as that is known.

    Raises:
        RefusedError: it has one.
    """
    try:
        norm = read_norm(node, weights)
        alone = norm is not None and is_only_rounding(norm)
    except RefusedError:
        return
    if alone:
        raise RefusedError(ONLY_ROUNDING)


def read_norm(node: ir.Node | None, weights: Weights) -> Norm | None:
    """Reads a node as a normalization; None where it is none.

    γ and β that are constant and change nothing (all ones, all zeros) count as absent.

    Raises:
        RefusedError: it is one that has statistics of the input, but not one that can be read: with the reason.
    """
    if node is None:
        return None
    found = lifted(node)
    if found is not None:
        return _read_lifted(node, weights)
    reader = _CONTRIB.get(node.op_type) if node.domain == "com.microsoft" else _STANDARD.get(operator(node))
    norm = None if reader is None else reader(node, weights)
    return None if norm is None else _without_identities(norm, weights)


def _without_identities(norm: Norm, weights: Weights) -> Norm:
    scale, bias = norm.scale, norm.bias
    if scale is not None and _is_all(weights.array(scale.value), 1.0):
        scale = None
    if bias is not None and _is_all(weights.array(bias.value), 0.0):
        bias = None
    return Norm(norm.node, norm.standardize, norm.data, scale, bias)


def _is_all(array: Float64 | None, number: float) -> bool:
    return array is not None and bool(np.all(array == number))


def _read_lifted(node: ir.Node, weights: Weights) -> Norm | None:
    found = lifted(node)
    if found is None or not isinstance(found.meaning, Standardize):
        return None
    data = node.inputs[found.data]
    assert data is not None
    rank = len(known_dims(data))

    def parameter(index: int | None) -> Parameter | None:
        if index is None:
            return None
        value = node.inputs[index]
        assert value is not None
        size = len(known_dims(value))
        if size > rank:
            raise RefusedError("its γ or β has more dimensions than the data")
        return Parameter(value, tuple(range(rank - size, rank)) if found.axes is None else found.axes)

    norm = Norm(node, found.meaning, data, parameter(found.scale), parameter(found.bias))
    return _without_identities(norm, weights)


def _data(node: ir.Node) -> tuple[ir.Value, int]:
    """x and its rank."""
    data = node.inputs[0]
    assert data is not None
    return data, len(known_dims(data))


def _parameter(node: ir.Node, index: int, axes: tuple[int, ...], repeats: int = 1) -> Parameter | None:
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        return None
    own = known_dims(value)
    if len(own) > len(axes):
        raise RefusedError("its γ or β has more dimensions than the axes it normalizes")
    return Parameter(value, axes[len(axes) - len(own) :], repeats)


def layer_norm(node: ir.Node, weights: Weights) -> Norm:
    """LayerNormalization, RMSNormalization, SimplifiedLayerNormalization: over the axes from `axis` on."""
    data, rank = _data(node)
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        raise RefusedError("its mean or deviation is read")
    axis = attribute(node, "axis", -1)
    if not -rank <= axis < rank:
        raise RefusedError(f"its input of {rank} dimensions has no axis {axis}")
    axes = tuple(range(axis % rank, rank))
    stash = attribute(node, "stash_type", 1)
    dtype = ir.DataType(stash) if data.dtype is not None and stash != data.dtype else None
    if data.dtype == ir.DataType.DOUBLE:
        dtype = None  # the runtime keeps float64
    centred = node.op_type == "LayerNormalization"
    standardize = Standardize(axes, attribute(node, "epsilon", 1e-5), centred=centred, dtype=dtype)
    return Norm(node, standardize, data, _parameter(node, 1, axes), _parameter(node, 2, axes) if centred else None)


def instance_norm(node: ir.Node, weights: Weights) -> Norm:
    """InstanceNormalization: over the spatial axes of (N, C, *spatial)."""
    data, rank = _data(node)
    if rank < 3:
        raise RefusedError("it has no spatial axes")
    standardize = Standardize.instance_norm(rank, attribute(node, "epsilon", 1e-5))
    return Norm(node, standardize, data, _parameter(node, 1, (1,)), _parameter(node, 2, (1,)))


def group_norm(node: ir.Node, weights: Weights) -> Norm:
    """GroupNormalization: γ and β per group in opset 18 to 20, per channel from 21 on."""
    data, rank = _data(node)
    groups, channels = attribute(node, "num_groups"), known_dims(data)[1]
    repeats = 1
    if weights.opset < 21:
        if not isinstance(channels, int):
            raise RefusedError("the number of its channels is not known")
        if groups < 1:
            raise RefusedError("it has no groups")
        repeats = channels // groups
    standardize = Standardize.group_norm(rank, groups, attribute(node, "epsilon", 1e-5)).simplified(channels)
    scale, bias = _parameter(node, 1, (1,), repeats), _parameter(node, 2, (1,), repeats)
    return Norm(node, standardize, data, scale, bias)


def local_response(node: ir.Node, weights: Weights) -> Norm:
    """LRN: a window of channels, α divided by its size."""
    data, _ = _data(node)
    standardize = Standardize.local_response(
        attribute(node, "size"),
        attribute(node, "alpha", 1e-4),
        attribute(node, "beta", 0.75),
        attribute(node, "bias", 1.0),
    )
    return Norm(node, standardize, data)


def lp_norm(node: ir.Node, weights: Weights) -> Norm:
    """LpNormalization: x / ‖x‖_p along one axis; zeros stay zeros."""
    data, rank = _data(node)
    axis = attribute(node, "axis", -1)
    return Norm(node, Standardize.lp_norm((axis % rank,), attribute(node, "p", 2)), data)


def mean_variance(node: ir.Node, weights: Weights) -> Norm:
    """MeanVarianceNormalization: (x − E[x]) / (√(E[x²] − E[x]²) + 1e-9), as its definition has it."""
    data, rank = _data(node)
    axes = tuple(sorted(axis % rank for axis in attribute(node, "axes", [0, 2, 3])))
    return Norm(node, Standardize(axes, 1e-9, "outside", cancels=True), data)


def batch_norm(node: ir.Node, weights: Weights) -> Norm | None:
    """BatchNormalization with training_mode=1, whose other outputs nobody reads; None at inference."""
    if not attribute(node, "training_mode", 0):
        return None
    data, rank = _data(node)
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        raise RefusedError("its running statistics are read")
    standardize = Standardize.batch_norm(rank, attribute(node, "epsilon", 1e-5))
    return Norm(node, standardize, data, _parameter(node, 1, (1,)), _parameter(node, 2, (1,)))


_STANDARD: dict[str, Callable[[ir.Node, Weights], Norm | None]] = {
    "BatchNormalization": batch_norm,
    "GroupNormalization": group_norm,
    "InstanceNormalization": instance_norm,
    "LRN": local_response,
    "LayerNormalization": layer_norm,
    "LpNormalization": lp_norm,
    "MeanVarianceNormalization": mean_variance,
    "RMSNormalization": layer_norm,
    "SimplifiedLayerNormalization": layer_norm,
}

_CONTRIB: dict[str, Callable[[ir.Node, Weights], Norm | None]] = {"SimplifiedLayerNormalization": layer_norm}

"""The BatchNormalizations whose population statistics stand in a model as constants: `Stored`, and who cannot be one.

    y = γ · (x − E[x]) / √(Var[x] + ε) + β

Those that were folded into other weights are gone, and those written as a scale and a shift do not tell E[x] and Var[x]
apart any more: neither can be estimated anew. The other way round, `optimize` writes a scale and a shift between
convolutions as a BatchNormalization with E[x] = 0, Var[x] = 1 and ε = 0: that is none, and must stay as it is.

The depth level of one is 1 + the highest level of those that its input depends on. None depends on another of its own
level, so a whole level can be measured at once.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from normfuse.batch_axis import folded_batch
from normfuse.errors import NormfuseError
from normfuse.passes.access import attribute, graphs_of, operator
from normfuse.passes.prepare import INITIAL_IR_VERSION
from normfuse.passes.weights import STORAGE, Weights, is_float, round_to
from normfuse.population import Statistics
from normfuse.report import Refusal
from normfuse.superaccumulator import Float64

RULE = "calibrate"
"""What changes and refusals are called."""

_WIDE = (ir.DataType.FLOAT, ir.DataType.DOUBLE)

_MEAN, _VARIANCE = 3, 4
"""Which inputs of a BatchNormalization the statistics are."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A BatchNormalization whose statistics are constants of the main graph.

    Attributes:
        index: of the node in the main graph; the same in every copy of the model.
        name: of the node, or of its output where it has none.
        channels: C.
        level: 1 for those that no other one stands in front of.
        epsilon: ε.
    """

    index: int
    name: str
    channels: int
    level: int
    epsilon: float


def find(model: ir.Model) -> tuple[list[Stored], list[Refusal]]:
    """The BatchNormalizations of a model that can be estimated anew, and the others with the reason why not."""
    found: list[Stored] = []
    refusals = [
        Refusal(RULE, _name(node), reason) for node, reason in _inner(model) if operator(node) == "BatchNormalization"
    ]
    levels: dict[ir.Value, int] = {
        value: 0 for value in model.graph.inputs if value.name not in model.graph.initializers
    }
    alive = _alive(model)
    for index, node in enumerate(model.graph):
        level = max((levels[value] for value in _read(node) if value in levels), default=None)
        if operator(node) == "BatchNormalization":
            reason = _unfit(node, model)
            if not reason and node not in alive:
                reason = "no output of the model depends on it"
            if not reason and level is None:
                reason = "its input does not depend on those of the model"
            if not reason:
                reason = folded_batch(model, node, _held(node))
            if reason:
                refusals.append(Refusal(RULE, _name(node), reason))
            else:
                assert level is not None
                level += 1
                channels = constant_of(node, _MEAN).size
                found.append(Stored(index, _name(node), channels, level, float(attribute(node, "epsilon", 1e-5))))
        if level is not None:
            levels.update(dict.fromkeys(node.outputs, level))
    return found, refusals


def _alive(model: ir.Model) -> set[ir.Node]:
    """The nodes of the main graph on which an output of the model depends."""
    found: set[ir.Node] = set()
    open_values = list(model.graph.outputs)
    while open_values:
        node = open_values.pop().producer()
        if node is not None and node not in found:
            found.add(node)
            open_values += _read(node)
    return found


def statistics_of(model: ir.Model, stored: Stored) -> Statistics:
    """The statistics that a model holds."""
    return _held(model.graph[stored.index])


def _held(node: ir.Node) -> Statistics:
    return Statistics(*(_float64(constant_of(node, index)) for index in (_MEAN, _VARIANCE)))


def is_trivial(statistics: Statistics) -> bool:
    """Whether they are those of a BatchNormalization that was never trained, or that is a scale and a shift."""
    return not np.any(statistics.mean) and bool(np.all(statistics.variance == 1))


def write(model: ir.Model, new: Mapping[Stored, Statistics]) -> None:
    """Writes statistics into a model, in place, each rounded once to the dtype that it is stored in.

    A constant that others read stays as it is for them, one that nobody reads any more is removed; a node that is
    removed moves the indices of those behind it.

    Raises:
        NormfuseError: one overflows or underflows that dtype, or it is a variance of 0 where ε is 0.
    """
    weights = Weights(model)
    nodes = list(model.graph)
    for stored, statistics in new.items():
        node = nodes[stored.index]
        for index, what, array in ((_MEAN, "mean", statistics.mean), (_VARIANCE, "variance", statistics.variance)):
            dtype = constant_of(node, index).dtype
            wider = ", or store its statistics as float32" if dtype not in _WIDE else ""
            if np.abs(array).max(initial=0) > STORAGE[dtype].largest:
                raise NormfuseError(
                    f"BatchNormalization {stored.name!r}: a {what} of {np.abs(array).max():.1e} overflows {dtype}; "
                    f"scale the data{wider}"
                )
            rounded = round_to(array, dtype)
            lost = lost_by_rounding(
                what, rounded.astype(np.float64), statistics, stored.epsilon, STORAGE[dtype].round_off
            )
            if lost:
                raise NormfuseError(
                    f"BatchNormalization {stored.name!r}: a {what} of {lost:.1e} underflows {dtype}; "
                    f"scale the data{wider}"
                )
            if index == _VARIANCE and not stored.epsilon and not np.all(rounded):
                raise unscalable(stored.name, int(np.sum(rounded == 0)))
            _put(model, node, index, rounded, weights)


def lost_by_rounding(what: str, rounded: Float64, statistics: Statistics, epsilon: float, round_off: float) -> float:
    """The largest statistic next to 0 that a dtype cannot hold; 0 where there is none.

    A variance is off by more than 8 · u of Var[x] + ε, u the unit round-off, or a mean by 8 · u of √(Var[x] + ε), which
    the output is divided by.

    Args:
        what: `mean` or `variance`.
        rounded: the statistic as it is stored.
        statistics: as they are.
        epsilon: ε.
        round_off: u of the dtype.
    """
    power = np.asarray(statistics.variance + epsilon)
    array, size = (statistics.variance, power) if what == "variance" else (statistics.mean, np.sqrt(power))
    lost = np.abs(rounded - array) > 8 * round_off * np.maximum(np.abs(array), size)
    return float(np.max(np.abs(array), where=lost, initial=0))


def unscalable(name: str, channels: int) -> NormfuseError:
    """What is said where a variance and ε are 0."""
    which = "channel is" if channels == 1 else "channels are"
    return NormfuseError(
        f"BatchNormalization {name!r}: {channels} {which} constant in the data and ε is 0, which divides by 0; give "
        "data that vary there, or the layer an epsilon"
    )


def constant_of(node: ir.Node, index: int) -> ir.TensorProtocol:
    """The constant at an input of a BatchNormalization that `find` has found."""
    tensor = _constant(node.inputs[index])
    assert tensor is not None
    return tensor


def _put(
    model: ir.Model,
    node: ir.Node,
    index: int,
    array: "np.ndarray[tuple[int, ...], np.dtype[np.generic]]",
    weights: Weights,
) -> None:
    value = node.inputs[index]
    assert value is not None
    tensor = ir.Tensor(array, dtype=constant_of(node, index).dtype, name=value.name)
    if value.producer() is None and len(tuple(value.uses())) == 1:
        value.const_value = tensor
        return
    own = ir.Value(name=weights.fresh(f"{value.name}_calibrated"), const_value=tensor, type=ir.TensorType(tensor.dtype))
    own.shape, tensor.name = ir.Shape(tensor.shape), own.name
    model.graph.register_initializer(own)
    if model.ir_version < INITIAL_IR_VERSION:
        model.graph.inputs.append(own)
    node.replace_input_with(index, own)
    left: ir.Value | None = value
    while left is not None and not left.uses() and not left.is_graph_output():
        producer = left.producer()
        if producer is None:
            if not left.is_graph_input():
                del model.graph.initializers[str(left.name)]
            return
        left = producer.inputs[0] if producer.inputs else None
        model.graph.remove(producer, safe=True)


def _name(node: ir.Node) -> str:
    return node.name or str(node.outputs[0].name)


def _float64(tensor: ir.TensorProtocol) -> Float64:
    return np.asarray(tensor.numpy()).astype(np.float64)


def _constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor of an initializer, one that a caller may override too, or of a Constant node; also by Identities.

    TorchScript's exporter writes equal parameters once, and Identities for the others.
    """
    while value is not None and (producer := value.producer()) is not None and operator(producer) == "Identity":
        value = producer.inputs[0]
    if value is None:
        return None
    return value.const_value if value.producer() is None else ir.convenience.get_const_tensor(value)


def _read(node: ir.Node) -> Iterator[ir.Value]:
    """What a node reads, and the nodes in its graphs."""
    yield from (value for value in node.inputs if value is not None)
    for graph in graphs_of(node):
        for inner in graph.all_nodes():
            yield from (value for value in inner.inputs if value is not None)


def _inner(model: ir.Model) -> Iterator[tuple[ir.Node, str]]:
    """The nodes that do not stand in the main graph, with where they stand."""
    for node in model.graph:
        for graph in graphs_of(node):
            for inner in graph.all_nodes():
                yield inner, f"it stands in a branch or body of {node.op_type} {node.name!r}"
    for function in model.functions.values():
        for inner in function.all_nodes():
            yield inner, f"it stands in the model-local function {function.name!r}; inline that first"


def _unfit(node: ir.Node, model: ir.Model) -> str:
    """Why a BatchNormalization cannot be estimated anew, or nothing."""
    opset = model.opset_imports.get("", 0)
    if opset < 7:
        return f"the model has opset {opset}; raise it first, as `normfuse optimize --opset 15 --ignore fold` does"
    if attribute(node, "training_mode", 0) or any(output.name for output in node.outputs[1:]):
        return "it is in training mode: its statistics are those of the batch"
    if not attribute(node, "spatial", 1):
        return "spatial=0: its statistics differ per position"
    tensors = [_constant(value) for value in node.inputs[_MEAN : _VARIANCE + 1]]
    for value, tensor in zip(node.inputs[_MEAN : _VARIANCE + 1], tensors, strict=True):
        if value is None or tensor is None:
            return f"its statistics {value.name!r} are computed at run time" if value else "it has no statistics"
        if not is_float(tensor.dtype) or len(tensor.shape) != 1:
            return f"its statistics {value.name!r} are no vector of floats"
        if value.is_graph_output():
            return f"its statistics {value.name!r} are an output of the model"
    mean, variance = tensors
    assert mean is not None
    assert variance is not None
    if mean.size != variance.size:
        return "its mean and variance are of different lengths"
    if not attribute(node, "epsilon", 1e-5) and is_trivial(Statistics(_float64(mean), _float64(variance))):
        return "it is a scale and a shift: mean 0, variance 1 and ε = 0, as `optimize` writes them"
    return _shared(node)


def _shared(node: ir.Node) -> str:
    """Who else uses the statistics, or nothing; equal constants of layers that differ otherwise are no such use."""
    for index in (_MEAN, _VARIANCE):
        value = node.inputs[index]
        assert value is not None
        for other, place in _uses(value):
            if other is node:
                continue
            if operator(other) != "BatchNormalization" or place not in (_MEAN, _VARIANCE):
                return f"its statistics {value.name!r} are read by {other.op_type} {_name(other)!r} too"
            if list(other.inputs[1:]) == list(node.inputs[1:]):
                return (
                    f"it is one layer with {_name(other)!r}, which has other inputs; export each use as its own layer"
                )
    return ""


def _uses(value: ir.Value) -> Iterator[tuple[ir.Node, int]]:
    """Who reads a value, as which input; also by Identities whose results are no outputs."""
    for use in value.uses():
        if operator(use.node) == "Identity" and not use.node.outputs[0].is_graph_output():
            yield from _uses(use.node.outputs[0])
        else:
            yield use.node, use.idx

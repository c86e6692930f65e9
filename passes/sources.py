"""SOURCES: nodes that are an affine map of one input, in every spelling.

BatchNormalization    y = γ · (x − E[x]) / √(Var[x] + ε) + β
Mul, Div, Add, Sub    by a constant on either side, of any shape that broadcasts
Neg                   y = −x
Identity, Dropout     y = x
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from normfuse.affine import Affine, Float64
from normfuse.passes.access import RefusedError, attribute, known_dims, operator
from normfuse.passes.rule import Rule
from normfuse.passes.weights import Weights, constant_tensor

_SCAN_SIZE = 1 << 22
"""A constant of several dimensions is searched for the one axis it varies along up to this many elements."""


@dataclass(frozen=True, slots=True)
class Source:
    """A node read as an affine map.

    Attributes:
        node: the node.
        index: the input that carries the data.
        affine: what the node computes of it.
        rule: the name of the row that read it.
    """

    node: ir.Node
    index: int
    affine: Affine
    rule: str

    @property
    def data(self) -> ir.Value:
        """The value that the node is a map of."""
        value = self.node.inputs[self.index]
        assert value is not None
        return value


def batch_norm(node: ir.Node, weights: Weights) -> tuple[int, Affine] | None:
    """y = γ/√(Var[x] + ε) · x + (β − γ · E[x]/√(Var[x] + ε)), for all signatures of opset 6 to 15."""
    if attribute(node, "training_mode", 0):
        raise RefusedError("training_mode=1: its statistics are those of the batch")
    if any(output.name for output in node.outputs[1:]):
        raise RefusedError("it has the outputs of training: its statistics are those of the batch")
    _at_inference(node, weights)
    if not attribute(node, "spatial", 1):
        raise RefusedError("spatial=0: its parameters differ per position")
    parameters = [weights.array(value) for value in node.inputs[1:5]]
    gamma, beta, mean, variance = (*parameters, None, None, None, None)[:4]
    if gamma is None or beta is None or mean is None or variance is None:
        raise RefusedError(_why_not_constant(node.inputs[1:5]))
    if not gamma.shape == beta.shape == mean.shape == variance.shape == (gamma.size,):
        raise RefusedError("its parameters are not vectors of one length")
    with np.errstate(invalid="ignore", divide="ignore"):
        return 0, Affine.batch_norm(gamma, beta, mean, variance, float(attribute(node, "epsilon", 1e-5)))


def arithmetic(node: ir.Node, weights: Weights) -> tuple[int, Affine] | None:
    """x · c, x / c, x + c, x − c, c − x, c · x, c + x, for a constant c that broadcasts along at most one axis of x."""
    if len(node.inputs) != 2:
        return None
    constants = [weights.array(value) for value in node.inputs]
    if (constants[0] is None) == (constants[1] is None):
        return None
    index = 0 if constants[0] is None else 1
    constant = constants[1 - index]
    assert constant is not None
    if node.op_type == "Div" and index == 1:
        return None
    if weights.opset < 7:
        raise RefusedError("the operator broadcasts by the rules of opset 6")
    axis, vector = _single_axis(constant, node.inputs[index])
    match node.op_type, index:
        case "Mul", _:
            return index, Affine.of(axis, vector, 0.0)
        case "Div", _:
            if np.any(vector == 0):
                raise RefusedError("it divides by zero")
            with np.errstate(over="ignore"):
                return index, Affine.of(axis, 1.0 / vector, 0.0)
        case "Sub", 0:
            return index, Affine.of(axis, 1.0, -vector)
        case "Sub", _:
            return index, Affine.of(axis, -1.0, vector)
        case _:
            return index, Affine.of(axis, 1.0, vector)


def negation(node: ir.Node, weights: Weights) -> tuple[int, Affine] | None:
    """y = −x."""
    return 0, Affine.of(None, -1.0, 0.0)


def drops_nothing(node: ir.Node, weights: Weights) -> None:
    """Makes sure that a Dropout is at inference, where it is the identity.

    Raises:
        RefusedError: it is in training mode, or may be.
    """
    _at_inference(node, weights)
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        training = constant_tensor(node.inputs[2])
        if training is None or bool(np.any(training.numpy())):
            raise RefusedError("training_mode is set: it drops values")


def identity(node: ir.Node, weights: Weights) -> tuple[int, Affine] | None:
    """y = x; a Dropout at inference is one."""
    if node.op_type == "Dropout":
        drops_nothing(node, weights)
        if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
            raise RefusedError("its mask is read")
    return 0, Affine.identity()


SOURCES: tuple[Rule, ...] = (
    Rule(
        "batch-norm",
        "source",
        ("BatchNormalization",),
        None,
        batch_norm,
        "with population statistics a BatchNormalization is one scale and one shift per channel",
    ),
    Rule(
        "arithmetic",
        "source",
        ("Add", "Div", "Mul", "Sub", "Sum"),
        None,
        arithmetic,
        "a constant that broadcasts along one axis scales or shifts per channel",
    ),
    Rule("negation", "source", ("Neg",), None, negation, "a sign is a scale of minus one"),
    Rule("identity", "source", ("Dropout", "Identity"), None, identity, "at inference it changes nothing"),
)


def bias(node: ir.Node, weights: Weights) -> tuple[int, Affine] | None:
    """y + b behind a linear operator: a shift per channel of its own, which a centred normalization behind it drops."""
    array = weights.array(node.inputs[2]) if len(node.inputs) > 2 else None
    if array is None or array.ndim > 2 or (array.ndim == 2 and array.shape[0] != 1):
        return None
    if node.op_type == "Gemm" and weights.opset < 11:
        return None
    return 2, Affine.of(1, 1.0, float(attribute(node, "beta", 1.0)) * array.ravel())


BIAS = Rule(
    "bias",
    "source",
    ("Conv", "ConvTranspose", "Gemm"),
    "after",
    bias,
    "a bias that goes straight into a centred normalization changes nothing",
)


def read(node: ir.Node, weights: Weights, rules: tuple[Rule, ...] = SOURCES) -> Source | str | None:
    """Reads a node as an affine map; a str says why a node that could be one is not, None that it is none."""
    for rule in rules:
        if operator(node) not in rule.operators:
            continue
        try:
            found = rule.law(node, weights)
        except RefusedError as reason:
            return str(reason)
        if found is None:
            return None
        index, affine = found
        if not affine.is_finite:
            return "its scale or shift is infinite or not a number"
        return Source(node, index, affine, rule.name)
    return None


def _at_inference(node: ir.Node, weights: Weights) -> None:
    """Before opset 7 an operator is in training mode unless it says otherwise.

    Raises:
        RefusedError: it is in training mode.
    """
    if weights.opset < 7 and not attribute(node, "is_test", 0):
        raise RefusedError("is_test=0: before opset 7 that is training mode")


def _single_axis(constant: Float64, data: ir.Value | None) -> tuple[int | None, Float64]:
    """The axis of the data that a constant varies along, and its values there.

    Raises:
        RefusedError: it enlarges the data, or varies along several axes, or the dimensions are not known.
    """
    if constant.size == 0:
        raise RefusedError("its constant is empty")
    if constant.ndim == 0:
        return None, constant.reshape(1)
    data_dims = known_dims(data)
    offset = len(data_dims) - constant.ndim
    if offset < 0:
        raise RefusedError("its constant has more dimensions than the data")
    for axis, size in enumerate(constant.shape):
        if size != 1 and data_dims[axis + offset] != size:
            known = isinstance(data_dims[axis + offset], int)
            raise RefusedError(
                "its constant broadcasts the data to more elements"
                if known
                else f"whether its constant of shape {list(constant.shape)} enlarges the data is not known"
            )
    wide = [axis for axis, size in enumerate(constant.shape) if size > 1]
    if len(wide) > 1 and constant.size <= _SCAN_SIZE:
        wide = [axis for axis in wide if np.any(constant != constant.take([0], axis))]
    if len(wide) > 1:
        raise RefusedError("its constant varies along more than one axis")
    vector = np.moveaxis(constant, wide[0], 0).reshape(constant.shape[wide[0]], -1)[:, 0] if wide else constant.ravel()
    return (wide[0] + offset if wide else None), (vector if wide else vector[:1])


def _why_not_constant(values: Sequence[ir.Value | None]) -> str:
    for value in values:
        if value is not None and value.is_graph_input():
            return f"its parameter {value.name!r} is an input of the graph that a caller may set"
        if value is not None and constant_tensor(value) is None:
            return f"its parameter {value.name!r} is computed at run time"
    return "its parameters are not constant"

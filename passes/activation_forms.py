"""How an activation is written: `Term`, an expression of x, and for each activation the expressions that run fastest.

Measured with ONNX Runtime 1.32 on x86-64, between two convolutions and alone: see each row of `forms`. What stands
there in a form that is as fast stays as it is.
"""

from dataclasses import dataclass, field
from math import pi, sqrt
from typing import Any

import numpy as np
import onnx_ir as ir

from normfuse.activation import Activation
from normfuse.passes.access import attribute, dims, operator
from normfuse.passes.emitter import Emitter
from normfuse.passes.lifted import Lifted
from normfuse.passes.views import plain, scalar
from normfuse.passes.weights import Weights
from normfuse.target import Target

_COMMUTATIVE = frozenset({"Add", "Max", "Min", "Mul"})

_DEFAULTS = {("HardSigmoid", "beta"): 0.5, ("LeakyRelu", "alpha"): 0.01}
"""What attributes are where a node does not state them, of those that an activation may have."""


@dataclass(frozen=True, slots=True)
class Term:
    """x, a number, or an operator of terms.

    Attributes:
        operator: its type; empty for x and for a number.
        operands: what it reads.
        attributes: names and values.
        number: of a constant; None for x.
    """

    operator: str = ""
    operands: tuple["Term", ...] = ()
    attributes: tuple[tuple[str, Any], ...] = field(default=())
    number: float | None = None

    @property
    def has_numbers(self) -> bool:
        """Whether a number stands in it."""
        return self.number is not None or any(one.has_numbers for one in self.operands)


X = Term()


def op(operator: str, *operands: Term | float, **attributes: Any) -> Term:
    """An operator of terms and numbers."""
    terms = tuple(one if isinstance(one, Term) else Term(number=one) for one in operands)
    return Term(operator, terms, tuple(attributes.items()))


def _erf_gelu() -> tuple[Term, ...]:
    """The two spellings of GELU that ONNX Runtime fuses into Gelu, in any order of operands."""
    gate = op("Add", op("Erf", op("Div", X, sqrt(2.0))), 1.0)
    return op("Mul", op("Mul", X, gate), 0.5), op("Mul", op("Mul", X, 0.5), gate)


def _tanh_gelu() -> tuple[Term, ...]:
    """The two spellings with tanh that it fuses into FastGelu."""
    half, root = op("Mul", X, 0.5), sqrt(2.0 / pi)
    cubic = op("Mul", op("Add", X, op("Mul", op("Pow", X, 3.0), 0.044715)), root)
    factored = op("Mul", op("Mul", X, root), op("Add", op("Mul", op("Mul", X, 0.044715), X), 1.0))
    return tuple(op("Mul", half, op("Add", op("Tanh", argument), 1.0)) for argument in (cubic, factored))


def _mish() -> Term:
    """x · n / (n + 2) with n = e · (e + 2), e = exp(min(x, 20)): Softplus and Tanh take thirty times as long."""
    exponential = op("Exp", op("Min", X, 20.0))
    ratio = op("Mul", exponential, op("Add", exponential, 2.0))
    return op("Mul", X, op("Div", ratio, op("Add", ratio, 2.0)))


def forms(meaning: Activation, target: Target, opset: int) -> tuple[Term, ...]:
    """The best form of an activation, then others that are as fast; empty where there is none."""
    alpha, beta, cpu = meaning.alpha, meaning.beta, target.provider == "cpu"
    gate = op("HardSigmoid", X, alpha=alpha, beta=beta)
    match meaning.kind:
        case "Relu" | "Sigmoid":
            return (op(meaning.kind, X),)
        case "Clip":
            return (op("Clip", X, alpha, beta),) if opset >= 11 else (op("Clip", X, min=alpha, max=beta),)
        case "LeakyRelu":
            return (op("LeakyRelu", X, alpha=alpha),)
        case "HardSigmoid":
            return (gate,)
        case "HardSwish":
            return (op("HardSwish", X),) if not cpu and opset >= 14 else (op("Mul", X, gate),)
        case "Swish":
            return (op("Mul", X, op("Sigmoid", X if alpha == 1.0 else op("Mul", X, alpha))),)
        case "Gelu" if opset >= 20:
            return (op("Gelu", X),)
        case "TanhGelu" if opset >= 20:
            return (op("Gelu", X, approximate="tanh"),)
        case "Gelu" if cpu:
            return _erf_gelu()
        case "TanhGelu" if cpu:
            return _tanh_gelu()
        case "Mish" if cpu:
            return (_mish(),)
        case "Mish" if opset >= 18:
            return (op("Mish", X),)
        case _:
            return ()


def write(term: Term, data: ir.Value, emitter: Emitter) -> ir.Value:
    """Writes a term of x; what stands in it twice is computed once."""
    known: dict[Term, ir.Value] = {X: data}
    assert data.dtype is not None
    dtype, sizes = data.dtype, dims(data)

    def value(one: Term) -> ir.Value:
        if one not in known:
            known[one] = (
                emitter.constant(np.asarray(one.number), dtype)
                if one.number is not None
                else emitter.op(one.operator, *map(value, one.operands), dims=sizes, **dict(one.attributes))
            )
        return known[one]

    return value(term)


def is_written(term: Term, record: Lifted, call: ir.Node, weights: Weights) -> bool:
    """Whether a lifted call holds just that term, in any order of the operands of sums and products."""
    assert record.output is not None
    last = record.output.producer()
    assert last is not None
    assert last.graph is not None
    outside = dict(zip(last.graph.inputs, call.inputs, strict=True))
    data = call.inputs[record.data]

    def same(one: Term, value: ir.Value | None) -> bool:
        if value is None:
            return False
        value = plain(value)
        found = outside.get(value, value)
        if one is X:
            return found is data
        if one.number is not None:
            number = scalar(found, weights)
            return number is not None and np.float32(number) == np.float32(one.number)
        node = value.producer()
        if node is None or operator(node) != one.operator or len(node.inputs) != len(one.operands):
            return False
        if one.attributes and not all(_has(node, *attribute) for attribute in one.attributes):
            return False
        orders = [node.inputs, node.inputs[::-1]] if one.operator in _COMMUTATIVE else [node.inputs]
        return any(all(map(same, one.operands, inputs)) for inputs in orders)

    return same(term, record.output)


def _has(node: ir.Node, name: str, wanted: Any) -> bool:
    value = attribute(node, name, _DEFAULTS.get((node.op_type, name)))
    return bool(
        value == wanted if value is None or isinstance(wanted, str) else np.float32(value) == np.float32(wanted)
    )

"""Recognisers of activations that exporters spell out: y is read as a product of x and a gate of x, or as a bound.

c · clip(a·x + b, 0, h)             HardSigmoid, where c·h = 1
x · c · clip(a·x + b, 0, h)         HardSwish, where it is x · HardSigmoid(x; ⅙, ½)
x · σ(α·x), x / (1 + exp(−α·x))     Swish
x · ½ · (1 + erf(x / √2))           Gelu; with tanh: TanhGelu
½·x + ½·x · erf(x / √2)             the same
x · tanh(log(1 + exp(x)))           Mish
1 / (1 + exp(−x))                   Sigmoid
min(max(x, a), b)                   Clip
max(x, 0), max(x, α·x)              Relu, LeakyRelu

What is found ends at a node that computes the whole: nodes are looked at from the last to the first, so that what is a
part of something larger is found as that.
"""

from fractions import Fraction

import onnx_ir as ir

from normfuse.activation import TANH_GELU, Activation
from normfuse.passes.access import RefusedError, dims, operator
from normfuse.passes.gates import TIGHT, Gate, bounded, close, gate, one_sided, polynomial, softplus
from normfuse.passes.lifted import Found, members
from normfuse.passes.views import plain, product, scalar, terms
from normfuse.passes.weights import Weights, is_float

_ONE = Fraction(1)
_REACH = 12
"""So many values in front of a product may be x."""

_BOUNDS = frozenset({"Clip", "Max", "Min", "Relu"})
_FUNCTIONS = frozenset({"Erf", "Exp", "HardSigmoid", "Log", "Sigmoid", "Softplus", "Tanh"})
_ARITHMETIC = frozenset({"Add", "Cast", "Div", "Identity", "Mul", "Neg", "Pow", "Reciprocal", "Sub", "Sum"})
_ELEMENTWISE = _BOUNDS | _FUNCTIONS | _ARITHMETIC


def gated(node: ir.Node, weights: Weights) -> Found | None:
    """y = x · g(x) or y = g(x), for a gate g, in any order of their factors."""
    output = node.outputs[0]
    view = product(output, weights)
    for value, exponent in view.factors.items():
        found = gate(value, exponent, weights) if abs(exponent) == 1 else None
        if found is None:
            continue
        refused: RefusedError | None = None
        for data in _candidates(node, found, weights):
            whole = product(output, weights, {data, value})
            factors, factor = dict(whole.factors), whole.coefficient * found.factor
            if factors.pop(value, None) != exponent:
                continue
            meaning = _meaning(found, data, factors, factor, weights)
            try:
                if meaning is not None and (whole_find := _found(meaning, data, output)) is not None:
                    return whole_find
            except RefusedError as reason:
                refused = refused or reason
        if refused is not None:
            raise refused
    return None


def summed(node: ir.Node, weights: Weights) -> Found | None:
    """y = ½·x + ½·x · erf(x / √2), and with tanh."""
    parts = terms(node.outputs[0])
    if len(parts) != 2:
        return None
    for (sign, first), (other, second) in (parts, parts[::-1]):
        for value in product(second, weights).factors:
            inner = value.producer()
            if inner is None or operator(inner) not in ("Erf", "Tanh") or inner.inputs[0] is None:
                continue
            for data in _values(first, weights):
                alone, together = product(first, weights, {data}), product(second, weights, {data, value})
                if alone.factors != {data: _ONE} or together.factors != {data: _ONE, value: _ONE}:
                    continue
                odd = 1.0 if other * together.coefficient > 0 else -1.0
                half = sign * alone.coefficient
                if not close(half, 0.5, TIGHT) or not close(abs(together.coefficient), half, TIGHT):
                    continue
                found = Gate("erf" if operator(inner) == "Erf" else "tanh", inner.inputs[0], 1.0, odd)
                meaning = _meaning(found, data, {data: _ONE}, 1.0, weights)
                if meaning is not None:
                    return _found(meaning, data, node.outputs[0])
    return None


def limited(node: ir.Node, weights: Weights) -> Found | None:
    """min(max(x, α), β) in two nodes, max(x, 0), max(x, α·x)."""
    output = node.outputs[0]
    if operator(node) in ("Max", "Min", "Relu"):
        both = bounded(output, weights)
        if both is not None and both[1] < both[2]:
            return _found(Activation("Clip", both[1], both[2]), both[0], output)
    if operator(node) != "Max" or len(node.inputs) != 2:
        return None
    one = one_sided(node, weights)
    if one is not None:
        return _found(Activation("Relu"), one[1], output) if one[2] == 0.0 else None
    for data, other in (node.inputs, node.inputs[::-1]):
        if data is None or other is None:
            continue
        view = product(other, weights, {data})
        if view.factors == {data: _ONE} and 0.0 < view.coefficient < 1.0:
            return _found(Activation("LeakyRelu", view.coefficient), data, output)
    return None


def _meaning(
    found: Gate, data: ir.Value, factors: dict[ir.Value, Fraction], factor: float, weights: Weights
) -> Activation | None:
    """What c · x^n · g(x) is, for n = 0 or 1."""
    alone = not factors
    if not alone and factors != {data: _ONE}:
        return None
    if found.kind == "hard":
        inner = polynomial(found.argument, data, weights)
        if inner is None or not inner.keys() <= {0, 1} or not close(factor * found.high, 1.0, TIGHT):
            return None
        alpha = factor * found.slope * inner.get(1, 0.0)
        beta = factor * (found.slope * inner.get(0, 0.0) + found.offset)
        if alone:
            return Activation("HardSigmoid", alpha, beta) if alpha > 0 and beta > 0 and not found.is_operator else None
        whole = close(alpha, 1.0 / 6.0, TIGHT) and close(beta, 0.5, TIGHT)
        return Activation("HardSwish") if whole else None
    if found.kind == "softplus tanh":
        whole = not alone and factor == 1.0 and softplus(found.argument, data, weights)
        return Activation("Mish", 1.0, 0.0) if whole else None
    inner = polynomial(found.argument, data, weights)
    if inner is None:
        return None
    inner = {degree: found.sign * number for degree, number in inner.items() if number}
    if alone:
        spelled = found.kind == "sigmoid" and not found.is_operator and factor == 1.0 and inner == {1: 1.0}
        return Activation("Sigmoid", 1.0, 0.0) if spelled else None
    loose = 2.0**-10 if data.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16) else 2.0**-15
    if not close(factor, 1.0, loose):
        return None
    rounded = not close(factor, 1.0, TIGHT)
    slope = inner.get(1, 0.0)
    if inner.keys() == {1} and found.kind in ("sigmoid", "tanh") and slope > 0:
        slope *= 2.0 if found.kind == "tanh" else 1.0  # ½ · (1 + tanh(x)) = σ(2·x)
        return None if rounded else Activation("Swish", 1.0 if close(slope, 1.0, TIGHT) else slope, 0.0)
    wanted = {1: 0.5**0.5} if found.kind == "erf" else {1: TANH_GELU[0], 3: TANH_GELU[1]}
    if found.kind == "sigmoid":  # ½ · (1 + tanh(x)) = σ(2·x)
        wanted = {degree: 2.0 * number for degree, number in wanted.items()}
    if inner.keys() != wanted.keys() or not all(close(inner[degree], wanted[degree], loose) for degree in wanted):
        return None
    rounded = rounded or not all(close(inner[degree], wanted[degree], TIGHT) for degree in wanted)
    return Activation("Gelu" if found.kind == "erf" else "TanhGelu", 1.0, 0.0, rounded)


def _candidates(node: ir.Node, found: Gate, weights: Weights) -> list[ir.Value]:
    """The values that may be x: what the gate is made of, deepest first, and what the product is made of."""
    chain = [plain(found.argument)]
    for _ in range(2):
        inner = chain[0].producer()
        if inner is None or operator(inner) not in ("Add", "Div", "Mul", "Neg", "Sub"):
            break
        operands = [one for one in inner.inputs if one is not None and scalar(one, weights) is None]
        if len(operands) != 1:
            break
        chain.insert(0, plain(operands[0]))
    return list(dict.fromkeys([*chain, *_values(node.outputs[0], weights)]))


def _values(value: ir.Value, weights: Weights) -> list[ir.Value]:
    """The values that a product is made of, and those that these are made of."""
    values: dict[ir.Value, None] = {}
    pending = [plain(value)]
    while pending and len(values) < _REACH:
        one = pending.pop(0)
        if one in values or scalar(one, weights) is not None:
            continue
        values[one] = None
        node = one.producer()
        if node is not None and operator(node) in ("Div", "Mul", "Neg", "Reciprocal"):
            pending.extend(plain(operand) for operand in node.inputs if operand is not None)
    return [one for one in values if one is not plain(value)] or list(values)


def _found(meaning: Activation, data: ir.Value, output: ir.Value) -> Found | None:
    """What was found, where it has the dimensions and dtype of x and consists of element-wise nodes alone."""
    if data.dtype is None or not is_float(data.dtype) or output.dtype != data.dtype:
        return None
    sizes = dims(data)
    if sizes is None or dims(output) != sizes:
        return None
    nodes = members(output, [data])
    if not nodes or any(operator(node) not in _ELEMENTWISE for node in nodes):
        return None
    if any(value.dtype != data.dtype for node in nodes for value in node.outputs):
        return None
    return Found(meaning, data, output, nodes)

"""Every spelling of the activations, and what looks like one of them and is none."""

from collections.abc import Iterator
from functools import partial
from itertools import product
from math import pi, sqrt

import onnx
import onnx_ir as ir

from models.spelling import Spelling
from normfuse.activation import Activation

_ROOT = sqrt(2.0 / pi)
_NUMBERS = {
    "zero": 0.0,
    "tenth": 0.1,
    "sixth": 1.0 / 6.0,
    "half": 0.5,
    "one": 1.0,
    "minus1": -1.0,
    "quick": 1.702,
    "two": 2.0,
    "three": 3.0,
    "minus3": -3.0,
    "five": 5.0,
    "six": 6.0,
    "ten": 10.0,
    "root2": sqrt(2.0),
    "minusroot2": -sqrt(2.0),
    "root12": sqrt(0.5),
    "root": _ROOT,
    "cubic": 0.044715,
    "rooted": 0.044715 * _ROOT,
}

_HALVED = {
    "(x · g) · ½": "g = Add(f, one) p = Mul(x, g) y = Mul(p, half)",
    "(x · g) / 2": "g = Add(f, one) p = Mul(x, g) y = Div(p, two)",
    "(½ · x) · g": "g = Add(f, one) p = Mul(x, half) y = Mul(p, g)",
    "(x / 2) · g": "g = Add(f, one) p = Div(x, two) y = Mul(p, g)",
    "x · (½ · g)": "g = Add(f, one) p = Mul(g, half) y = Mul(x, p)",
    "½ · x + (½ · x) · f": "h = Mul(x, half) p = Mul(h, f) y = Add(h, p)",
    "½ · x + (x · f) / 2": "h = Mul(x, half) p = Mul(x, f) k = Div(p, two) y = Add(k, h)",
}
"""What is done with f, the erf or tanh, and g = 1 + f."""

_ERFS = {
    "x / √2": "a = Div(x, root2) f = Erf(a)",
    "x · √½": "a = Mul(x, root12) f = Erf(a)",
    "−x / −√2": "m = Neg(x) a = Div(m, minusroot2) f = Erf(a)",
}
_TANHS = {
    "√(2/π) · (x + c·x³)": "q = Pow(x, three) c = Mul(q, cubic) s = Add(x, c) a = Mul(s, root)",
    "√(2/π) · (x + c·x·x·x)": "q2 = Mul(x, x) q = Mul(q2, x) c = Mul(q, cubic) s = Add(x, c) a = Mul(s, root)",
    "√(2/π) · x · (1 + c·x²)": "q = Pow(x, two) c = Mul(q, cubic) s = Add(c, one) r = Mul(x, root) a = Mul(r, s)",
    "(√(2/π)·x) · (1 + (c·x)·x)": "q = Mul(x, cubic) c = Mul(q, x) s = Add(c, one) r = Mul(x, root) a = Mul(r, s)",
    "x · (√(2/π) + c'·x²)": "q = Mul(x, x) c = Mul(q, rooted) s = Add(c, root) a = Mul(x, s)",
}
_SIGMOIDS = {
    "Sigmoid": "g = Sigmoid({u}) y = Mul(x, g)",
    "x / (1 + exp(−u))": "m = Neg({u}) e = Exp(m) d = Add(e, one) y = Div(x, d)",
    "x · (1 / (1 + exp(−u)))": "m = Neg({u}) e = Exp(m) d = Add(e, one) g = Div(one, d) y = Mul(x, g)",
    "x · Reciprocal(1 + exp(−1 · u))": (
        "m = Mul({u}, minus1) e = Exp(m) d = Add(e, one) g = Reciprocal(d) y = Mul(x, g)"
    ),
    "x · ½ · (1 + tanh(u / 2))": "m = Mul({u}, half) t = Tanh(m) d = Add(t, one) h = Mul(x, half) y = Mul(h, d)",
}
_SOFTPLUS = {
    "Softplus": "s = Softplus(x)",
    "log(1 + exp(x))": "e = Exp(x) d = Add(e, one) s = Log(d)",
}
_OTHERS: tuple[tuple[str, str, Activation, str], ...] = (
    (
        "Sigmoid",
        "1 / (1 + exp(−x))",
        Activation("Sigmoid", 1.0, 0.0),
        "m = Neg(x) e = Exp(m) d = Add(e, one) y = Div(one, d)",
    ),
    (
        "Sigmoid",
        "Reciprocal",
        Activation("Sigmoid", 1.0, 0.0),
        "m = Neg(x) e = Exp(m) d = Add(e, one) y = Reciprocal(d)",
    ),
    ("Relu", "Max", Activation("Relu"), "y = Max(x, zero)"),
    ("LeakyRelu", "max(x, x · 0.1)", Activation("LeakyRelu", 0.1), "m = Mul(x, tenth) y = Max(x, m)"),
    ("LeakyRelu", "max(x / 10, x)", Activation("LeakyRelu", 0.1), "m = Div(x, ten) y = Max(m, x)"),
    ("Clip", "min(relu(x), 6)", Activation("Clip", 0.0, 6.0), "m = Relu(x) y = Min(m, six)"),
    ("Clip", "min(max(x, 0), 6)", Activation("Clip", 0.0, 6.0), "m = Max(x, zero) y = Min(m, six)"),
    ("Clip", "max(min(x, 6), −3)", Activation("Clip", -3.0, 6.0), "m = Min(x, six) y = Max(m, minus3)"),
    ("Clip", "relu(min(x, 6))", Activation("Clip", 0.0, 6.0), "m = Min(x, six) y = Relu(m)"),
    (
        "HardSwish",
        "x · HardSigmoid(x)",
        Activation("HardSwish"),
        "g = HardSigmoid<alpha=0.16666667, beta=0.5>(x) y = Mul(x, g)",
    ),
    (
        "HardSigmoid",
        "(clip(x + 3, 0, 6) / 6)",
        Activation("HardSigmoid"),
        "a = Add(x, three) c = Clip(a, zero, six) y = Div(c, six)",
    ),
    (
        "HardSigmoid",
        "clip(x / 6 + ½, 0, 1)",
        Activation("HardSigmoid"),
        "m = Div(x, six) a = Add(m, half) y = Clip(a, zero, one)",
    ),
    (
        "HardSigmoid",
        "min(relu(0.1 · x + ½), 1)",
        Activation("HardSigmoid", 0.1),
        "m = Mul(x, tenth) a = Add(m, half) r = Relu(a) y = Min(r, one)",
    ),
)

_PARTS = {
    "erf": "a = Div(x, root2) f = Erf(a)",
    "tanh": "t = Tanh(a) g = Add(t, one) h = Mul(x, half) y = Mul(h, g)",
}
_LOOK_ALIKES: tuple[tuple[str, str, str], ...] = (
    ("Swish", "a gate of another value", "r = Tanh(x) g = Sigmoid(r) y = Mul(x, g)"),
    ("Swish", "of −x", "r = Neg(x) g = Sigmoid(r) y = Mul(x, g)"),
    ("Swish", "of x + 1", "r = Add(x, one) g = Sigmoid(r) y = Mul(x, g)"),
    ("Swish", "of x²", "r = Mul(x, x) g = Sigmoid(r) y = Mul(x, g)"),
    ("Swish", "x²", "r = Mul(x, x) g = Sigmoid(x) y = Mul(r, g)"),
    ("Swish", "divided", "g = Sigmoid(x) y = Div(x, g)"),
    ("Swish", "2 + exp(−x)", "m = Neg(x) e = Exp(m) d = Add(e, two) y = Div(x, d)"),
    ("Swish", "1 − exp(−x)", "m = Neg(x) e = Exp(m) d = Sub(one, e) y = Div(x, d)"),
    ("Swish", "the gate is read again", "g = Sigmoid(x) p = Mul(x, g) y = Add(p, g)"),
    ("Sigmoid", "exp(x)", "e = Exp(x) d = Add(e, two) y = Div(one, d)"),
    ("Gelu", "another scale", "a = Mul(x, quick) f = Erf(a) g = Add(f, one) p = Mul(x, g) y = Mul(p, half)"),
    ("Gelu", "not halved", "{erf} g = Add(f, one) y = Mul(x, g)"),
    ("Gelu", "2 + erf", "{erf} g = Add(f, two) p = Mul(x, g) y = Mul(p, half)"),
    ("Gelu", "1 − erf", "{erf} g = Sub(one, f) p = Mul(x, g) y = Mul(p, half)"),
    (
        "Gelu",
        "of another value",
        "r = Tanh(x) a = Div(r, root2) f = Erf(a) g = Add(f, one) p = Mul(x, g) y = Mul(p, half)",
    ),
    ("Gelu", "in thirds", "{erf} h = Mul(x, half) p = Mul(x, f) q = Mul(p, sixth) y = Add(h, q)"),
    (
        "Gelu",
        "another value in the sum",
        "{erf} r = Tanh(x) h = Mul(r, half) q = Mul(x, half) p = Mul(q, f) y = Add(h, p)",
    ),
    ("Gelu", "the erf is read again", "{erf} g = Add(f, one) h = Mul(x, half) p = Mul(h, g) y = Add(p, f)"),
    (
        "TanhGelu",
        "no cubic term",
        "a = Mul(x, root) s = Add(a, one) t = Tanh(s) g = Add(t, one) h = Mul(x, half) y = Mul(h, g)",
    ),
    ("TanhGelu", "another cubic term", "q = Pow(x, three) c = Mul(q, tenth) s = Add(x, c) a = Mul(s, root) {tanh}"),
    ("TanhGelu", "a square", "q = Pow(x, two) c = Mul(q, cubic) s = Add(x, c) a = Mul(s, root) {tanh}"),
    ("TanhGelu", "another root", "q = Pow(x, three) c = Mul(q, cubic) s = Add(x, c) a = Mul(s, root12) {tanh}"),
    ("Mish", "of another value", "r = Tanh(x) s = Softplus(r) t = Tanh(s) y = Mul(x, t)"),
    ("Mish", "log(2 + exp(x))", "e = Exp(x) d = Add(e, two) s = Log(d) t = Tanh(s) y = Mul(x, t)"),
    ("Mish", "divided", "s = Softplus(x) t = Tanh(s) y = Div(x, t)"),
    ("Relu", "Min", "y = Min(x, zero)"),
    ("Relu", "of one", "y = Max(x, one)"),
    ("LeakyRelu", "Min", "m = Mul(x, tenth) y = Min(x, m)"),
    ("LeakyRelu", "a slope of two", "m = Mul(x, two) y = Max(x, m)"),
    ("LeakyRelu", "of another value", "r = Tanh(x) m = Mul(r, tenth) y = Max(x, m)"),
    ("Clip", "bounds that cross", "m = Max(x, six) y = Min(m, zero)"),
    ("Clip", "two upper bounds", "m = Min(x, six) y = Min(m, three)"),
    ("HardSigmoid", "divided by five", "a = Add(x, three) c = Clip(a, zero, six) y = Div(c, five)"),
    ("HardSwish", "HardSigmoid of another slope", "g = HardSigmoid<alpha=0.2, beta=0.5>(x) y = Mul(x, g)"),
    ("HardSwish", "HardSigmoid of another value", "r = Tanh(x) g = HardSigmoid<alpha=0.16666667>(r) y = Mul(x, g)"),
    ("HardSigmoid", "the operator itself", "y = HardSigmoid<alpha=0.2>(x)"),
    ("HardSwish", "divided by five", "a = Add(x, three) c = Clip(a, zero, six) m = Mul(x, c) y = Div(m, five)"),
    ("HardSwish", "another offset", "a = Add(x, one) c = Clip(a, zero, six) m = Mul(x, c) y = Div(m, six)"),
    ("HardSwish", "mirrored", "a = Sub(three, x) c = Clip(a, zero, six) m = Mul(x, c) y = Div(m, six)"),
    ("HardSwish", "bounded at three", "a = Add(x, three) c = Clip(a, zero, three) m = Mul(x, c) y = Div(m, six)"),
)


def spellings() -> Iterator[Spelling]:
    """Gate × factor × order of operands."""
    yield from _hard_swishes()
    for (scaled, first), (halved, then) in product(_ERFS.items(), _HALVED.items()):
        yield from _both("Gelu", f"{scaled}, {halved}", Activation("Gelu", 1.0, 0.0), f"{first} {then}")
    for (argument, first), (halved, then) in product(_TANHS.items(), _HALVED.items()):
        body = f"{first} f = Tanh(a) {then}"
        yield from _both("TanhGelu", f"{argument}, {halved}", Activation("TanhGelu", 1.0, 0.0), body)
    for (name, body), (alpha, scaled) in product(_SIGMOIDS.items(), ((1.0, ""), (1.702, "u = Mul(x, quick)"))):
        within = body.format(u="u" if scaled else "x")
        yield from _both("Swish", f"{name}, α = {alpha}", Activation("Swish", alpha, 0.0), f"{scaled} {within}")
    for name, first in _SOFTPLUS.items():
        body = f"{first} t = Tanh(s) y = Mul(x, t)"
        yield from _both("Mish", name, Activation("Mish", 1.0, 0.0), body)
    for form, name, meaning, body in _OTHERS:
        yield from _both(form, name, meaning, body)


def lookalikes() -> Iterator[Spelling]:
    """Every look-alike, in both orders of operands."""
    for form, name, body in _LOOK_ALIKES:
        for title, text in _orders(name, body.format(**_PARTS)):
            yield Spelling(form, title, partial(_model, text), None)


def _hard_swishes() -> Iterator[Spelling]:
    added = {"x + 3": "a = Add(x, three)", "3 + x": "a = Add(three, x)", "x − (−3)": "a = Sub(x, minus3)"}
    clipped = {
        "Clip": "c = Clip(a, zero, six)",
        "Min of Relu": "l = Relu(a) c = Min(l, six)",
        "Min of Max": "l = Max(a, zero) c = Min(six, l)",
        "Max of Min": "l = Min(a, six) c = Max(l, zero)",
    }
    scaled = {
        "x · c / 6": "p = Mul(x, c) y = Div(p, six)",
        "c · x · ⅙": "p = Mul(c, x) y = Mul(p, sixth)",
        "x · (c / 6)": "p = Div(c, six) y = Mul(x, p)",
        "(⅙ · c) · x": "p = Mul(sixth, c) y = Mul(p, x)",
        "(x / 6) · c": "p = Div(x, six) y = Mul(p, c)",
    }
    for (first, one), (second, two), (third, three) in product(added.items(), clipped.items(), scaled.items()):
        body = f"{one} {two} {three}"
        yield Spelling(
            "HardSwish", f"{first}, {second}, {third}", partial(_model, body), Close(Activation("HardSwish"))
        )


def _both(form: str, name: str, meaning: Activation, body: str) -> Iterator[Spelling]:
    for title, text in _orders(name, body):
        yield Spelling(form, title, partial(_model, text), Close(meaning))


def _orders(name: str, body: str) -> Iterator[tuple[str, str]]:
    """A spelling, and the same with the operands of sums and products in the other order."""
    yield name, body
    swapped = []
    for line in body.replace(") ", ")\n").splitlines():
        head, _, operands = line.rstrip(")").partition("(")
        parts = operands.split(", ")
        swaps = len(parts) == 2 and head.rpartition(" ")[2] in ("Add", "Max", "Min", "Mul")
        swapped.append(f"{head}({', '.join(parts[::-1] if swaps else parts)})")
    if (other := " ".join(swapped)) != " ".join(body.split()):
        yield f"{name}, swapped", other


class Close:
    """Equal to an activation of the same kind whose numbers differ by float32 rounding."""

    def __init__(self, meaning: Activation) -> None:
        self.meaning = meaning

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Activation)
            and other.kind == self.meaning.kind
            and not other.rounded
            and abs(other.alpha - self.meaning.alpha) < 1e-6
            and abs(other.beta - self.meaning.beta) < 1e-6
        )

    def __hash__(self) -> int:
        return hash(self.meaning.kind)


def _model(body: str) -> ir.Model:
    numbers = " ".join(f"{name} = Constant<value_float={number:.9f}>()" for name, number in _NUMBERS.items())
    text = f'<ir_version: 8, opset_import: ["" : 17]> g (float[2,3,8] x) => (float[2,3,8] y) {{ {numbers} {body} }}'
    model = ir.from_proto(onnx.parser.parse_model(text))
    for index, node in enumerate(model.graph):
        node.name = f"n{index}"
    return model

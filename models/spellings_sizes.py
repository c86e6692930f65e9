"""Normalizations whose statistics are scaled by sizes computed at run time, taken in steps, or by a product."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import product

import onnx
import onnx_ir as ir

from models.spelling import Spelling
from normfuse.norm import Standardize

_EPSILON = 9.999999747378752e-06
"""1e-5 as float32 has it."""

_COUNTS = {
    "ReduceProd": "z = Shape(x) i = Gather(z, space) p = ReduceProd<axes=[0], keepdims=0>(i) n = Cast<to=1>(p)",
    "Mul": "z = Shape(x) i = Gather(z, two) j = Gather(z, three) p = Mul(j, i) n = Cast<to=1>(p)",
    "Cast, Mul": (
        "z = Shape(x) i = Gather(z, two) j = Gather(z, three) k = Cast<to=1>(i) l = Cast<to=1>(j) n = Mul(k, l)"
    ),
}
_MEANS = {
    "ReduceMean": "m = ReduceMean<axes=[2,3]>(x)",
    "Div": "t = ReduceSum(x, space) m = Div(t, n)",
    "Mul": "t = ReduceSum(x, space) o = Reciprocal(n) m = Mul(o, t)",
    "in steps": "b = ReduceMean<axes=[3]>(x) m = ReduceMean<axes=[2]>(b)",
}
_VARIANCES = {
    "mean": (0, "v = ReduceMean<axes=[2,3]>(q)"),
    "mean in steps": (0, "c = ReduceMean<axes=[2]>(q) v = ReduceMean<axes=[3]>(c)"),
    "sum / n": (0, "f = ReduceSum(q, space) v = Div(f, n)"),
    "mean · n / (n − 1)": (1, "c = ReduceMean<axes=[2,3]>(q) f = Mul(c, n) g = Sub(n, one) v = Div(f, g)"),
    "mean · (n / (n − 1))": (1, "c = ReduceMean<axes=[2,3]>(q) g = Add(minus, n) f = Div(n, g) v = Mul(f, c)"),
    "sum / (n − 1)": (1, "f = ReduceSum(q, space) g = Sub(n, one) v = Div(f, g)"),
}
_ROOTS = {"Div": "s = Sqrt(a) y = Div(d, s)", "Reciprocal": "s = Sqrt(a) r = Reciprocal(s) y = Mul(r, d)"}
_ROWS: dict[str, tuple[tuple[int | str, ...], tuple[int, ...], str, str]] = {
    "row": ((2, 4, "L"), (1,), "m = MatMul(row, x)", "v = MatMul(row, q)"),
    "column": ((2, "L", 4), (2,), "m = MatMul(x, column)", "v = MatMul(q, column)"),
}


def spellings() -> Iterator[Spelling]:
    """Every way to compute n, with every mean and variance that may use it; means as products."""
    for (counting, count), (first, mean), (second, (ddof, variance)), (root, tail) in product(
        _COUNTS.items(), _MEANS.items(), _VARIANCES.items(), _ROOTS.items()
    ):
        body = f"{count} {mean} d = Sub(x, m) q = Mul(d, d) {variance} a = Add(v, e) {tail}"
        meaning = replace(Standardize.instance_norm(4, _EPSILON), ddof=ddof)
        name = f"n by {counting}, mean by {first}, variance by {second}, {root}"
        yield Spelling("computed sizes", name, partial(parsed, (2, 3, "H", "W"), body), meaning)
    for (side, (shape, axes, mean, variance)), (root, tail) in product(_ROWS.items(), _ROOTS.items()):
        body = f"{mean} d = Sub(x, m) q = Mul(d, d) {variance} a = Add(v, e) {tail}"
        yield Spelling(
            "products", f"{side}, {root}", partial(parsed, shape, body), Standardize.layer_norm(axes, _EPSILON)
        )


def lookalikes() -> Iterator[Spelling]:
    """Sizes of other axes, other corrections, other weights of a mean."""
    plain = "m = ReduceMean<axes=[2,3]>(x) d = Sub(x, m) q = Mul(d, d)"
    tail = "a = Add(v, e) s = Sqrt(a) y = Div(d, s)"
    other = "z = Shape(x) i = Gather(z, {}) p = ReduceProd<axes=[0], keepdims=0>(i) n = Cast<to=1>(p)"
    bodies = {
        "n of other axes": f"{other.format('zero')} {plain} f = ReduceSum(q, space) v = Div(f, n) {tail}",
        "n of one axis": f"{other.format('last')} {plain} f = ReduceSum(q, space) v = Div(f, n) {tail}",
        "n + 1": f"{other.format('space')} {plain} f = ReduceSum(q, space) g = Add(n, one) v = Div(f, g) {tail}",
        "n / (m − 1)": (
            f"{other.format('space')} {plain} j = Gather(z, two) k = Cast<to=1>(j) g = Sub(k, one)"
            f" c = ReduceMean<axes=[2,3]>(q) f = Mul(c, n) v = Div(f, g) {tail}"
        ),
    }
    for name, body in bodies.items():
        yield Spelling("computed sizes", name, partial(parsed, (2, 3, "H", "W"), body), None)
    rows = "m = MatMul({0}, x) d = Sub(x, m) q = Mul(d, d) v = MatMul({0}, q) a = Add(v, e) s = Sqrt(a) y = Div(d, s)"
    for name, row in {"a weighted mean": "weighted", "twice the mean": "twice", "of all rows": "square"}.items():
        yield Spelling("products", name, partial(parsed, (2, 4, "L"), rows.format(row)), None)


def parsed(shape: tuple[int | str, ...], body: str) -> ir.Model:
    """A model of nodes as ONNX text; constants are at hand."""
    dims = ",".join(map(str, shape))
    constants = {
        "space": "ints=[2,3]",
        "zero": "ints=[0]",
        "last": "ints=[3]",
        "two": "int=2",
        "three": "int=3",
        "e": "float=0.00001",
        "one": "float=1.0",
        "minus": "float=-1.0",
    }
    text = " ".join(f"{name} = Constant<value_{content}>()" for name, content in constants.items())
    rows = {
        "row": "[1,4] {0.25,0.25,0.25,0.25}",
        "column": "[4,1] {0.25,0.25,0.25,0.25}",
        "weighted": "[1,4] {0.2,0.3,0.25,0.25}",
        "twice": "[1,4] {0.5,0.5,0.5,0.5}",
        "square": "[4,4] {" + ",".join(["0.25"] * 16) + "}",
    }
    text += " " + " ".join(f"{name} = Constant<value = float{content}>()" for name, content in rows.items())
    graph = f'<ir_version: 8, opset_import: ["" : 17]> g (float[{dims}] x) => (float[{dims}] y) {{ {text} {body} }}'
    model = ir.from_proto(onnx.parser.parse_model(graph))
    for index, node in enumerate(model.graph):
        node.name = f"n{index}"
    return model

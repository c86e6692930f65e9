"""What looks like a normalization and is none: none may be found in it."""

from collections.abc import Iterator
from functools import partial

import onnx
import onnx_ir as ir

from models.spelling import Spelling

_MEAN = "m = ReduceMean<axes=[2]>(x)"
_MOMENT = "v = ReduceMean<axes=[2]>(q) a = Add(v, e) s = Sqrt(a)"
_CENTRED = f"{_MEAN} d = Sub(x, m) q = Mul(d, d) {_MOMENT}"
_ROWS, _SQUARE, _IMAGE, _OPEN = "[2,3,8]", "[8,8]", "[2,6,4,4]", "[2,3,N]"
_FLAT = "m = ReduceMean<axes=[1], keepdims=0>(x)"
_FLAT_MOMENT = "v = ReduceMean<axes=[1], keepdims=0>(q) a = Add(v, e) s = Sqrt(a)"
_SPATIAL = "v = ReduceMean<axes=[2,3]>(q) a = Add(v, e) s = Sqrt(a)"
_WINDOW = (
    "q = Mul(x, x) t = Constant<value_ints=[2,1,6,4,4]>() u = Reshape(q, t) z = Constant<value_ints={pads}>()"
    " p = Pad(u, z{fill}) l = AveragePool<kernel_shape=[3,1,1], strides=[{stride},1,1]>(p)"
    " w = Constant<value_ints=[2,{left},4,4]>() b = Reshape(l, w) k = Add(b, one) r = Sqrt(k) y = Div(x, r)"
)
_FILTER = (
    "q = Mul(x, x) f = Constant<value_floats={weights}>() t = Constant<value_ints=[1,1,3,1,1]>() w = Reshape(f, t)"
    " c = Constant<value_ints=[1]>() u = Unsqueeze(q, c) k = Constant<value_floats=[1.0]>()"
    " l = Conv<pads=[1,0,0,1,0,0], kernel_shape=[3,1,1]>(u, w, k) b = Squeeze(l, c) r = Sqrt(b) y = Div(x, r)"
)
_RESHAPED = (
    "t = Constant<value_ints={there}>() r = Reshape(x, t) n = InstanceNormalization(r, unit, null)"
    " b = Constant<value_ints={back}>() y = Reshape(n, b)"
)

_TEXTS: tuple[tuple[str, str, str, str], ...] = (
    ("LayerNorm", "σ over d", _ROWS, f"{_CENTRED} y = Div(s, d)"),
    ("LayerNorm", "mean minus x", _ROWS, f"{_MEAN} d = Sub(m, x) q = Mul(d, d) {_MOMENT} y = Div(d, s)"),
    ("LayerNorm", "fourth power", _ROWS, f"{_MEAN} d = Sub(x, m) f = Mul(d, d) q = Mul(f, f) {_MOMENT} y = Div(d, s)"),
    ("LayerNorm", "square, keepdims=0", _SQUARE, f"{_FLAT} d = Sub(x, m) q = Mul(d, d) {_FLAT_MOMENT} y = Div(d, s)"),
    (
        "LayerNorm",
        "mean over other axes",
        _ROWS,
        f"m = ReduceMean<axes=[1]>(x) d = Sub(x, m) q = Mul(d, d) {_MOMENT} y = Div(d, s)",
    ),
    (
        "LayerNorm",
        "negative ε",
        _ROWS,
        f"{_MEAN} d = Sub(x, m) q = Mul(d, d) v = ReduceMean<axes=[2]>(q) a = Sub(v, e) s = Sqrt(a) y = Div(d, s)",
    ),
    (
        "LayerNorm",
        "mean of another value",
        _ROWS,
        f"r = Relu(x) m = ReduceMean<axes=[2]>(r) d = Sub(x, m) q = Mul(d, d) {_MOMENT} y = Div(d, s)",
    ),
    ("LayerNorm", "x over σ", _ROWS, f"{_CENTRED} y = Div(x, s)"),
    ("LayerNorm", "d over the RMS of x", _ROWS, f"{_MEAN} d = Sub(x, m) q = Mul(x, x) {_MOMENT} y = Div(d, s)"),
    (
        "LayerNorm",
        "expanded along the wrong side",
        _SQUARE,
        (
            f"k = Constant<value_ints=[8,8]>() {_FLAT} o = Expand(m, k) d = Sub(x, o) q = Mul(d, d) {_FLAT_MOMENT}"
            " w = Expand(s, k) y = Div(d, w)"
        ),
    ),
    ("RMSNorm", "filter response", _IMAGE, f"q = Mul(x, x) {_SPATIAL} y = Div(x, s)"),
    (
        "RMSNorm",
        "exponent of a third",
        _ROWS,
        (
            "q = Mul(x, x) v = ReduceMean<axes=[2]>(q) a = Add(v, e) t = Constant<value_float=0.3333333>()"
            " s = Pow(a, t) y = Div(x, s)"
        ),
    ),
    (
        "RMSNorm",
        "ε a tensor",
        _ROWS,
        (
            "k = Constant<value_floats=[1.0,2.0,3.0,4.0,5.0,6.0,7.0,8.0]>() q = Mul(x, x) v = ReduceMean<axes=[2]>(q)"
            " a = Add(v, k) s = Sqrt(a) y = Div(x, s)"
        ),
    ),
    (
        "RMSNorm",
        "1/M of another M",
        _ROWS,
        (
            "i = Constant<value_ints=[2]>() k = Constant<value_float=0.2>() q = Mul(x, x) t = ReduceSum(q, i)"
            " v = Mul(t, k) a = Add(v, e) s = Sqrt(a) y = Div(x, s)"
        ),
    ),
    (
        "RMSNorm",
        "1/N of an N that is not known",
        _OPEN,
        (
            "i = Constant<value_ints=[2]>() k = Constant<value_float=0.125>() q = Mul(x, x) t = ReduceSum(q, i)"
            " v = Mul(t, k) a = Add(v, e) s = Sqrt(a) y = Div(x, s)"
        ),
    ),
    (
        "InstanceNorm",
        "EvoNorm S0",
        _IMAGE,
        (
            "g = Sigmoid(x) n = Mul(x, g) m = ReduceMean<axes=[2,3]>(x) d = Sub(x, m) q = Mul(d, d)"
            f" {_SPATIAL} y = Div(n, s)"
        ),
    ),
    (
        "InstanceNorm",
        "GRN",
        _IMAGE,
        ("g = ReduceL2<axes=[2,3]>(x) m = ReduceMean<axes=[1]>(g) a = Add(m, e) n = Div(g, a) y = Mul(x, n)"),
    ),
    ("L1 norm", "softmax", _ROWS, "i = Constant<value_ints=[2]>() q = Exp(x) v = ReduceSum(q, i) y = Div(q, v)"),
    ("GroupNorm", "back to other dimensions", _IMAGE, _RESHAPED.format(there="[2,2,48]", back="[2,4,6,4]")),
    (
        "LRN",
        "stride 2",
        _IMAGE,
        _WINDOW.format(pads="[0,0,1,0,0,0,0,1,0,0]", fill="", stride=2, left=3).replace(
            "y = Div(x, r)", "j = Concat<axis=1>(r, r) y = Div(x, j)"
        ),
    ),
    (
        "LRN",
        "unequal weights",
        _IMAGE,
        _FILTER.format(weights="[0.1,0.2,0.1]"),
    ),
    ("LRN", "padded with ones", _IMAGE, _WINDOW.format(pads="[0,0,1,0,0,0,0,1,0,0]", fill=", one", stride=1, left=6)),
)


def lookalikes() -> Iterator[Spelling]:
    """Every look-alike, divided as it stands and multiplied by the reciprocal."""
    for form, name, dims, body in _TEXTS:
        yield Spelling(form, name, partial(_model, dims, body), None)
        head, divided, tail = body.rpartition("y = Div(")
        if divided and head:
            above, below = (one.strip() for one in tail.rstrip(")").split(","))
            inverted = f"{head}h = Reciprocal({below}) y = Mul({above}, h)"
            yield Spelling(form, f"{name}, by the reciprocal", partial(_model, dims, inverted), None)


def _model(dims: str, body: str) -> ir.Model:
    constants = (
        "e = Constant<value_float=0.00001>() one = Constant<value_float=1.0>()"
        " unit = Constant<value_floats=[1.0,1.0]>() null = Constant<value_floats=[0.0,0.0]>()"
    )
    rank = dims.count(",") + 1
    output = ",".join("ABCDE"[:rank])
    text = f'<ir_version: 8, opset_import: ["" : 13]> g (float{dims} x) => (float[{output}] y) {{ {constants} {body} }}'
    model = ir.from_proto(onnx.parser.parse_model(text))
    for index, node in enumerate(model.graph):
        node.name = f"n{index}"
    return model

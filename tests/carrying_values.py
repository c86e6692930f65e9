"""Cases of CARRY: operators that compute with the values they carry."""

import numpy as np

from tests.carrying import Case, Weights, down, floats, ints, positive, positive_norm, up

HALF = np.float16
ROWS = (6, 1, 1)

IDENTITIES = [
    up("identity", "its source ignored", "t = Identity(c)", without=("identity",)),
    down("identity", "its source ignored", "t = Identity(a)", without=("identity",)),
    up(
        "identity",
        "its data is an output",
        "t = Identity(c)",
        reason="'c' is an output of the graph",
        outputs=", float[] c",
        without=("identity",),
    ),
    up("dropout", "its mask is read", "t, mask = Dropout(c)", outputs=", bool[] mask", opset=12),
    down("dropout", "its mask is read", "t, mask = Dropout(a)", outputs="float[] y, bool[] mask", opset=12),
    up("dropout", "opset 7", "t = Dropout(c)", opset=7, without=("identity",)),
    up(
        "dropout",
        "training at ratio 0",
        "t = Dropout(c, ratio, on)",
        reason="training_mode is set: it drops values",
        ratio=np.array(0, np.float32),
        on=np.array(True),
    ),
]

RELUS = [
    up("relu", "Relu", "t = Relu(c)", "Mul(t, k)", k=positive(*ROWS)),
    up("relu", "LeakyRelu", "t = LeakyRelu(c)", "Div(t, k)", k=positive(*ROWS)),
    up("relu", "PRelu", "t = PRelu(c, r)", "Mul(k, t)", k=positive(*ROWS), r=ROWS),
    down("relu", "Relu", "t = Relu(a)", "Mul(x, k)", k=positive(*ROWS)),
    down("relu", "PRelu", "t = PRelu(a, r)", "Mul(x, k)", k=positive(*ROWS), r=(1,)),
    down("relu", "negative slope", "t = LeakyRelu<alpha = -0.5>(a)", "Mul(x, k)", k=positive(1)),
    up("relu", "negative scale", "t = LeakyRelu(c)", "Mul(t, k)", "a scale that is not positive", k=-positive(*ROWS)),
    up(
        "relu",
        "a scale of zero",
        "t = Relu(c)",
        "Mul(t, k)",
        "a scale that is not",
        k=floats(0).repeat(6).reshape(ROWS),
    ),
    up("relu", "shift", "t = PRelu(c, r)", "Add(t, k)", "shift does not pass a PRelu", k=(1,), r=(1,)),
    down("relu", "negative scale", "t = Relu(a)", "Neg(x)", "a scale that is not positive does not pass a Relu"),
    down("relu", "shift", "t = Relu(a)", "Add(x, k)", "shift does not pass a Relu", k=ROWS),
    down(
        "relu",
        "the slope of a PRelu",
        "t = PRelu(x, a)",
        "Mul(r, k)",
        "it is not the data of the operator",
        inputs=", float[6,1,1] r",
        k=positive(1),
    ),
]

_WIDENED = "(float16[N,3] x) => (float[] a) { c = MatMul(x, w) t = Cast<to = 1>(c) a = Mul(t, k) }"
_NARROWED = "(float[N,3] x) => (float16[] y) { a = Mul(x, k) t = Cast<to = 10>(a) y = MatMul(t, w) }"
_UNSAFE = "the map could overflow or underflow FLOAT16"
_HALF_WEIGHT: Weights = {"w": positive(3, 6, dtype=HALF)}

CASTS = [
    Case(
        "cast-carries",
        "up, out of float16",
        "(float[N,3,8,9] x) => (float16[] a) { c = Conv(x, w) t = Cast<to = 10>(c) a = Mul(t, k) }",
        weights={"w": (6, 3, 3, 3), "k": positive(*ROWS, dtype=HALF)},
    ),
    Case(
        "cast-carries",
        "down, out of float16",
        "(float16[N,6,6,7] x) => (float[] y) { a = Mul(x, k) t = Cast<to = 1>(a) y = Conv(t, w) }",
        weights={"w": (4, 6, 3, 3), "k": 40 * positive(*ROWS, dtype=HALF)},
    ),
    Case("cast-carries", "up, into float16, below one", _WIDENED, weights=_HALF_WEIGHT | {"k": positive(6) / 2}),
    Case("cast-carries", "down, into float16, above one", _NARROWED, weights=_HALF_WEIGHT | {"k": 2 * positive(3)}),
    Case("cast-carries", "up, would overflow", _WIDENED, _UNSAFE, weights=_HALF_WEIGHT | {"k": 100 * positive(6)}),
    Case("cast-carries", "up, would underflow", _WIDENED, _UNSAFE, weights=_HALF_WEIGHT | {"k": positive(6) / 1000}),
    Case("cast-carries", "down, would overflow", _NARROWED, _UNSAFE, weights=_HALF_WEIGHT | {"k": positive(3) / 4}),
    down(
        "cast",
        "to integers",
        "t = Cast<to = 7>(a)",
        "Mul(x, k)",
        "it casts to or from a dtype that is not floating-point",
        linear="y = Neg(t)",
        outputs="int64[] y",
        k=positive(1),
    ),
]

_COUNTED = "AveragePool<kernel_shape = [3, 3], pads = [1, 1, 1, 1], count_include_pad = 1>"
_MEETS_PADDING = "shift meets padding that is counted in the average"

POOLS = [
    up("max", "MaxPool", "t = MaxPool<kernel_shape = [2, 2]>(c)", **positive_norm(6)),
    up("max", "padded", "t = MaxPool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(c)", **positive_norm(6)),
    up("max", "GlobalMaxPool", "t = GlobalMaxPool(c)", **positive_norm(6)),
    down("max", "padded", "t = MaxPool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(a)", **positive_norm(6)),
    up("max", "negative scale", "t = MaxPool<kernel_shape = [2, 2]>(c)", reason="a scale that is not positive"),
    down("max", "negative scale", "t = GlobalMaxPool(a)", reason="a scale that is not positive", w=(4, 6, 1, 1)),
    up(
        "max",
        "positions are read",
        "t, i = MaxPool<kernel_shape = [2, 2]>(c)",
        reason="the positions of its maxima are read",
        outputs=", int64[] i",
        **positive_norm(6),
    ),
    down(
        "max",
        "a map along rows",
        "t = MaxPool<kernel_shape = [2, 2]>(a)",
        "Mul(x, k)",
        "the map varies along an axis that is pooled",
        k=positive(6, 1),
    ),
    up("average", "AveragePool", "t = AveragePool<kernel_shape = [2, 3], strides = [2, 1]>(c)"),
    up("average", "padding not counted", "t = AveragePool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(c)"),
    up("average", "ceil_mode", "t = AveragePool<kernel_shape = [3, 3], strides = [2, 2], ceil_mode = 1>(c)"),
    up("average", "no padding to count", "t = AveragePool<kernel_shape = [2, 2], count_include_pad = 1>(c)"),
    up("average", "GlobalAveragePool", "t = GlobalAveragePool(c)"),
    up("average", "scale, padding counted", f"t = {_COUNTED}(c)", "Mul(t, k)", k=ROWS),
    down("average", "auto_pad", 't = AveragePool<kernel_shape = [2, 2], auto_pad = "SAME_UPPER">(a)'),
    down("average", "GlobalAveragePool", "t = GlobalAveragePool(a)", w=(4, 6, 1, 1)),
    up("average", "shift, padding counted", f"t = {_COUNTED}(c)", "Add(t, k)", _MEETS_PADDING, k=ROWS),
    down(
        "average",
        "shift, padding of auto_pad counted",
        't = AveragePool<kernel_shape = [3, 3], auto_pad = "SAME_LOWER", count_include_pad = 1>(a)',
        "Sub(x, k)",
        _MEETS_PADDING,
        k=(1,),
    ),
    up(
        "average",
        "shift, counted and ceil_mode",
        "t = AveragePool<kernel_shape = [3, 3], strides = [2, 2], ceil_mode = 1, count_include_pad = 1>(c)",
        "Add(t, k)",
        _MEETS_PADDING,
        k=(1,),
    ),
]

REDUCTIONS = [
    up("reduce", "axes an attribute", "t = ReduceMean<axes = [2, 3]>(c)", opset=13),
    up("reduce", "no keepdims, negative axes", "t = ReduceMean<axes = [-1, 2], keepdims = 0>(c)", opset=13),
    up("reduce", "axes an input", "t = ReduceMean<keepdims = 0>(c, axes)", axes=ints(-1, -2)),
    up("reduce", "over the batch", "t = ReduceMean<keepdims = 0>(c, axes)", "Mul(t, k)", axes=ints(0), k=ROWS),
    up("reduce", "no axes, noop", "t = ReduceMean<noop_with_empty_axes = 1>(c)"),
    up("reduce", "all axes, one scale", "t = ReduceMean<keepdims = 0>(c)", "Mul(t, k)", k=np.float32(3)),
    up("reduce", "max", "t = ReduceMax<keepdims = 0>(c, axes)", axes=ints(2, 3), **positive_norm(6)),
    up("reduce", "min", "t = ReduceMin<axes = [2]>(c)", opset=13, **positive_norm(6)),
    up("reduce", "sum, scale", "t = ReduceSum(c, axes)", "Mul(t, k)", axes=ints(2), k=ROWS),
    down("reduce", "mean", "t = ReduceMean(a, axes)", axes=ints(2, 3), w=(4, 6, 1, 1)),
    down(
        "reduce",
        "no keepdims",
        "t = ReduceMean<keepdims = 0>(a, axes)",
        linear="y = Gemm(t, w)",
        axes=ints(2, 3),
        w=(6, 4),
    ),
    down("reduce", "max", "t = ReduceMax<axes = [-1]>(a)", opset=13, w=(4, 6, 1, 1), **positive_norm(6)),
    up(
        "reduce", "sum, shift", "t = ReduceSum(c, axes)", "Add(t, k)", "shift does not pass a sum", axes=ints(2), k=ROWS
    ),
    up(
        "reduce", "max, negative scale", "t = ReduceMax<axes = [2]>(c)", reason="a scale that is not positive", opset=13
    ),
    down(
        "reduce",
        "a map along what is reduced",
        "t = ReduceMean<axes = [1]>(a)",
        reason="the map varies along an axis that is reduced",
        opset=13,
        w=(4, 1, 1, 1),
    ),
    down(
        "reduce",
        "axes at run time",
        "t = ReduceMean(a, axes)",
        reason="its axes are computed at run time",
        inputs=", int64[1] axes",
        linear="y = Relu(t)",
    ),
]

_TWO: Weights = {"v": (6, 3, 3, 3)}

BRANCHES = [
    up("sum", "Add", "d = Conv(x, v) t = Add(c, d)", **_TWO),
    up("sum", "Sub", "d = Conv(x, v) t = Sub(c, d)", **_TWO),
    up("sum", "Sum of three", "d = Conv(x, v) e = Conv(x, u) t = Sum(c, d, e)", u=(6, 3, 3, 3), **_TWO),
    up("sum", "shift past a branch", "t = Sub(z, c)", "Add(t, k)", inputs=", float[N,6,6,7] z", k=ROWS),
    up(
        "sum",
        "scale, a branch that broadcasts",
        "d = Conv(x, v) m = GlobalMaxPool(d) t = Add(c, m)",
        **_TWO,
        **positive_norm(6),
    ),
    up("sum", "scale, a constant along other axes", "t = Add(c, b)", "Mul(t, k)", k=ROWS, b=(6, 6, 7)),
    down(
        "sum",
        "shift into the other branch",
        "c = Conv(z, w) t = Add(a, c)",
        "Add(x, k)",
        linear="y = Relu(t)",
        inputs=", float[N,6,8,9] z",
        w=(6, 6, 3, 3),
        k=ROWS,
    ),
    down(
        "sum",
        "shift into a branch that is subtracted",
        "c = Conv(z, w) t = Sub(a, c)",
        "Add(x, k)",
        linear="y = Relu(t)",
        inputs=", float[N,6,8,9] z",
        w=(6, 6, 3, 3),
        k=ROWS,
    ),
    down("sum", "shift on to a Conv", "t = Sub(z, a)", "Add(x, k)", inputs=", float[N,6,6,7] z", k=ROWS),
    up(
        "sum",
        "a branch is an input",
        "t = Add(c, z)",
        "Mul(t, k)",
        "'z' is an input of the graph",
        inputs=", float[N,6,6,7] z",
        k=ROWS,
    ),
    up(
        "sum",
        "a branch has one channel",
        "d = Conv(x, v) t = Add(c, d)",
        "Mul(t, k)",
        "its input 1 does not have the channels",
        v=(1, 3, 3, 3),
        k=ROWS,
    ),
    down(
        "sum",
        "scale of one branch",
        "t = Add(a, z)",
        "Mul(x, k)",
        "only one of the branches that are added is scaled",
        inputs=", float[N,6,6,7] z",
        k=ROWS,
    ),
    up(
        "product",
        "a gate",
        "d = Conv(x, v) g = Sigmoid(d) t = Mul(g, c)",
        "Mul(t, k)",
        k=ROWS,
        **_TWO,
    ),
    up(
        "product",
        "Div",
        "g = Exp(x) m = GlobalMaxPool(g) e = Conv(m, v) t = Div(c, e)",
        "Mul(t, k)",
        k=ROWS,
        v=(6, 3, 1, 1),
    ),
    down("product", "a gate", "t = Mul(z, a)", "Mul(x, k)", inputs=", float[N,6,6,7] z", k=ROWS),
    up(
        "product",
        "shift",
        "t = Mul(c, z)",
        "Add(t, k)",
        "shift does not pass a Mul",
        inputs=", float[N,6,6,7] z",
        k=ROWS,
    ),
    down(
        "product",
        "a divisor",
        "e = Exp(z) t = Div(e, a)",
        "Mul(x, k)",
        "it is a divisor",
        inputs=", float[N,6,6,7] z",
        k=ROWS,
    ),
    up(
        "product",
        "a square",
        "t = Mul(c, c)",
        "Mul(t, k)",
        "'c' is also read by Mul 't'",
        k=ROWS,
    ),
]

_HEADS = "(float[N,5,8] x) => (float[] a) { q = MatMul(x, wq) k = MatMul(x, wk) r = Transpose<perm = [0, 2, 1]>(k) "
_HEAD_WEIGHTS = {"wq": (8, 4), "wk": (8, 4)}

PRODUCTS = [
    Case(
        "matmul-carries",
        "up, attention scale",
        _HEADS + "t = MatMul(q, r) a = Div(t, root) }",
        weights=_HEAD_WEIGHTS | {"root": np.float32(2.7)},
    ),
    down("matmul", "one scale", "t = MatMul(a, z)", "Mul(x, k)", inputs=", float[N,6,7,7] z", k=np.float32(3)),
    Case(
        "matmul-carries",
        "up, a scale per column",
        _HEADS + "t = MatMul(q, r) a = Mul(t, s) }",
        "only one scale for all passes a product of two computed operands",
        without=("matmul-after",),
        weights=_HEAD_WEIGHTS | {"s": (5,)},
    ),
    down(
        "matmul",
        "a vector as weight",
        "t = MatMul(a, w)",
        "Mul(x, k)",
        "one of its operands is a weight",
        x="N,7",
        linear="y = Relu(t)",
        k=np.float32(3),
        w=(7,),
        without=("matmul-before",),
    ),
]

_PADS = ints(0, 0, 1, 2, 0, 0, 2, 1)
_BORDER = "shift crosses a padded border"

PADS = [
    up("pad", "zeros, scale", "t = Pad(c, p)", "Mul(t, k)", p=_PADS, k=ROWS),
    up("pad", "zeros of opset 2", "t = Pad<pads = [0, 0, 1, 2, 0, 0, 2, 1]>(c)", "Mul(t, k)", opset=10, k=ROWS),
    up("pad", "zeros of opset 11", "t = Pad(c, p, zero)", "Mul(t, k)", opset=11, p=_PADS, k=ROWS, zero=np.float32(0)),
    up("pad", "zeros, axes", "t = Pad(c, p, , axes)", "Mul(t, k)", p=ints(1, 2, 2, 1), axes=ints(-1, 2), k=ROWS),
    up("pad", "reflect", 't = Pad<mode = "reflect">(c, p)', p=_PADS),
    up("pad", "edge of opset 2", 't = Pad<mode = "edge", pads = [0, 0, 1, 2, 0, 0, 2, 1]>(c)', opset=7),
    up("pad", "wrap", 't = Pad<mode = "wrap">(c, p)', p=_PADS, opset=19),
    up("pad", "the batch", 't = Pad<mode = "edge">(c, p)', p=ints(1, 0, 0, 0, 0, 0, 0, 0)),
    down("pad", "zeros, scale", "t = Pad(a, p)", "Mul(x, k)", p=_PADS, k=ROWS),
    down("pad", "reflect", 't = Pad<mode = "reflect">(a, p)', p=_PADS),
    up("pad", "zeros, shift", "t = Pad(c, p)", "Add(t, k)", _BORDER, p=_PADS, k=ROWS),
    down("pad", "zeros, shift", "t = Pad(a, p)", "Add(x, k)", _BORDER, p=_PADS, k=ROWS),
    up(
        "pad",
        "another constant",
        "t = Pad(c, p, v)",
        "Mul(t, k)",
        "another constant than zero",
        p=_PADS,
        k=ROWS,
        v=(1,),
    ),
    up(
        "pad",
        "another constant of opset 2",
        "t = Pad<pads = [0, 0, 1, 2, 0, 0, 2, 1], value = 0.5>(c)",
        "Mul(t, k)",
        "another constant than zero",
        opset=8,
        k=ROWS,
    ),
    up(
        "pad",
        "a constant of run time",
        "t = Pad(c, p, v)",
        "Mul(t, k)",
        "what it pads with is computed at run time",
        inputs=", float v",
        p=_PADS,
        k=ROWS,
    ),
    up(
        "pad",
        "channels",
        "t = Pad(c, p)",
        "Mul(t, k)",
        "it pads the channels",
        p=ints(0, 1, 0, 0, 0, 1, 0, 0),
        k=(8, 1, 1),
    ),
    down(
        "pad",
        "pads of run time",
        't = Pad<mode = "edge">(a, p)',
        reason="what it pads is computed at run time",
        inputs=", int64[8] p",
        linear="y = Relu(t)",
    ),
]

_TWICE: Weights = {"scales": floats(1, 1, 2, 2)}
_LARGER: Weights = {"sizes": ints(1, 6, 9, 11)}

RESIZES = [
    up("resize", "nearest", "t = Resize(c, , scales)", **_TWICE),
    up("resize", "nearest of opset 10", "t = Resize(c, scales)", opset=10, **_TWICE),
    up("resize", "linear to a size", 't = Resize<mode = "linear">(c, , , sizes)', opset=13, x="1,3,8,9", **_LARGER),
    up("resize", "cubic", 't = Resize<mode = "cubic">(c, , scales)', **_TWICE),
    up(
        "resize",
        "corners",
        't = Resize<mode = "linear", coordinate_transformation_mode = "align_corners">(c, , scales)',
        **_TWICE,
    ),
    up("resize", "axes", 't = Resize<mode = "linear", axes = [3, 2]>(c, , scales)', scales=floats(1.5, 2)),
    up("resize", "Upsample 7", "t = Upsample<scales = [1.0, 1.0, 2.0, 3.0]>(c)", opset=7),
    up("resize", "Upsample 9", 't = Upsample<mode = "linear">(c, scales)', opset=9, **_TWICE),
    down("resize", "nearest", "t = Resize(a, , scales)", **_TWICE),
    down("resize", "cubic", 't = Resize<mode = "cubic">(a, , scales)', **_TWICE),
    up(
        "resize",
        "cubic, exclude_outside",
        't = Resize<mode = "cubic", exclude_outside = 1>(c, , scales)',
        reason="cubic interpolation excludes what lies outside",
        **_TWICE,
    ),
    down(
        "resize",
        "crop",
        't = Resize<mode = "linear", coordinate_transformation_mode = "tf_crop_and_resize", extrapolation_value = 9.0>'
        "(a, roi, scales)",
        reason="it extrapolates with a constant",
        roi=floats(0, 0, 0, 0, 1, 1, 1.5, 1.5),
        **_TWICE,
    ),
    up(
        "resize",
        "channels",
        "t = Resize(c, , scales)",
        reason="it resizes the channels",
        norm=12,
        scales=floats(1, 2, 1, 1),
    ),
    up(
        "resize",
        "channels blended, as many as before",
        't = Resize<mode = "linear">(c, , scales)',
        reason="it resizes the channels",
        scales=floats(1, 1.1, 2, 2),
    ),
]

VALUES = IDENTITIES + RELUS + CASTS + POOLS + REDUCTIONS + BRANCHES + PRODUCTS + PADS + RESIZES

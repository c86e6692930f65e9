"""Cases of the rows of LOWER for portable models and for CUDA, where a normalization stands among other nodes."""

from typing import Any

import numpy as np

from tests.lowered import RMS, E, Lowered, centred, rows

TURN, TURN_BACK = "Transpose<perm=[0,3,1,2]>", "Transpose<perm=[0,2,3,1]>"
NORM = "n = GroupNormalization<num_groups=2>(h, w, w)"
SILU = "s = Sigmoid(n) u = Mul(n, s)"
PER_GROUP: dict[str, Any] = {"w": (2,)}
ADDED_RMS = "q = Mul(g, g) m = ReduceMean<axes=[-1]>(q) a = Add(m, e) r = Sqrt(a) n = Div(g, r) y = Mul(n, w)"
CANCELS = (
    "m = ReduceMean<axes=[-1]>(g) q = Mul(g, g) p = ReduceMean<axes=[-1]>(q) k = Mul(m, m) v = Sub(p, k)"
    " a = Add(v, e) r = Sqrt(a) d = Sub(g, m) t = Div(d, r) f = Mul(t, w) y = Add(f, c)"
)
ROW_WEIGHTS = E | {"w": (16,), "c": (16,)}
WINDOW = (
    "q = Mul(x, x) u = Reshape(q, s) p = Pad(u, z) a = AveragePool<kernel_shape=[5,1,1], strides=[1,1,1]>(p)"
    " b = Reshape(a, t) k = Mul(b, alpha) j = Add(k, one) f = Pow(j, beta) y = Div(x, f)"
)
WINDOW_WEIGHTS: dict[str, Any] = {
    "s": np.array([2, 1, 6, 4, 4]),
    "z": np.array([0, 0, 2, 0, 0, 0, 0, 2, 0, 0]),
    "t": np.array([2, 6, 4, 4]),
    "alpha": np.array(1e-4, np.float32),
    "one": np.array(1.0, np.float32),
    "beta": np.array(0.75, np.float32),
}
ROWS_BELOW_17 = f"{centred('[-1]', 'i = Reciprocal(r) n = Mul(d, i) g = Mul(w, n) y = Add(g, c)')}"
TRAINING = "y, o, p = BatchNormalization<training_mode=1>(x, w, c, m, v)"


IMAGE = "(float[2,6,4,4] x) => (float[2,6,4,4] y) {{ {} }}"


def last(body: str, inputs: str = "x", outputs: str = "y", size: int = 8) -> str:
    """A model of images with the channels last."""
    given, made = (", ".join(f"float[2,4,4,{size}] {name}" for name in names.split()) for names in (inputs, outputs))
    return f"({given}) => ({made}) {{ {body} }}"


def added(body: str, outputs: str = "y") -> str:
    """A model of rows that are sums."""
    made = ", ".join(f"float[N,5,16] {name}" for name in outputs.split())
    return f"(float[N,5,16] x, float[N,5,16] z) => ({made}) {{ g = Add(x, z) {body} }}"


def on_cuda(rule: str, text: str, expected: str, opset: int = 20, **weights: Any) -> Lowered:
    """A case for CUDA."""
    return Lowered(rule, text, expected, "cuda", opset=opset, weights=weights)


CHANNELS_LAST = "group-norm-channels-last"

APPLIES = (
    on_cuda(CHANNELS_LAST, last(f"h = {TURN}(x) {NORM} y = {TURN_BACK}(n)"), "GroupNorm", **PER_GROUP),
    on_cuda(CHANNELS_LAST, last(f"h = {TURN}(x) {NORM} {SILU} y = {TURN_BACK}(u)"), "GroupNorm", **PER_GROUP),
    on_cuda(
        CHANNELS_LAST,
        f"(float[2,8,4,4] h) => (float[2,4,4,8] y) {{ {NORM} {SILU} y = {TURN_BACK}(u) }}",
        "GroupNorm Transpose",
        **PER_GROUP,
    ),
    on_cuda(
        CHANNELS_LAST,
        f"(float[2,4,4,8] x) => (float[2,8,4,4] u) {{ h = {TURN}(x) {NORM} {SILU} }}",
        "GroupNorm Transpose",
        **PER_GROUP,
    ),
    on_cuda(
        CHANNELS_LAST,
        last(f"g = Add(x, z) h = {TURN}(g) {NORM} {SILU} y = {TURN_BACK}(u)", "x z"),
        "SkipGroupNorm",
        **PER_GROUP,
    ),
    on_cuda(
        CHANNELS_LAST,
        last(f"g = Add(x, z) k = Relu(g) h = {TURN}(g) {NORM} y = {TURN_BACK}(n)", "x z", "y k"),
        "Relu SkipGroupNorm",
        **PER_GROUP,
    ),
    on_cuda(
        CHANNELS_LAST,
        f"(float[2,9,8] x) => (float[2,9,8] y) {{ h = Transpose<perm=[0,2,1]>(x) {NORM} "
        "y = Transpose<perm=[0,2,1]>(n) }",
        "GroupNorm Reshape Reshape",
        **PER_GROUP,
    ),
    on_cuda(
        "layer-norm",
        added(CANCELS).replace("g = Add(x, z)", "g = Relu(x)"),
        "LayerNormalization Relu",
        13,
        **ROW_WEIGHTS,
    ),
    Lowered("layer-norm", rows(ROWS_BELOW_17), "LayerNormalization", opset=13, weights=ROW_WEIGHTS),
    on_cuda("skip-layer-norm", added(CANCELS), "SkipLayerNormalization", 17, **ROW_WEIGHTS),
    on_cuda("skip-rms-norm", added(ADDED_RMS), "SkipSimplifiedLayerNormalization", 17, **ROW_WEIGHTS),
    on_cuda(
        "skip-rms-norm",
        added(f"{ADDED_RMS} k = Relu(g)", "y k"),
        "Relu SkipSimplifiedLayerNormalization",
        17,
        **ROW_WEIGHTS,
    ),
    on_cuda(
        "norm-in-nodes",
        f"(float[4,8,3,3] x) => (float[4,8,3,3] y) {{ {TRAINING} }}",
        "Add Add Div Mul Pow ReduceMean ReduceMean Sqrt Sub",
        15,
        w=(8,),
        c=(8,),
        m=(8,),
        v=np.ones(8, np.float32),
    ),
    Lowered(
        "norm-in-nodes",
        rows(ROWS_BELOW_17),
        "Add Add Div Mul Pow ReduceMean ReduceMean Sqrt Sub",
        "portable",
        opset=13,
        weights=ROW_WEIGHTS,
    ),
    Lowered(
        "norm-in-nodes",
        rows(centred("[-1]", "n = Div(d, r) g = Mul(n, w) y = Add(g, c)")),
        "Add Add Div Mul Pow ReduceMean ReduceMean Sqrt Sub",
        "portable",
        opset=13,
        weights=ROW_WEIGHTS,
    ),
    Lowered(
        "norm-in-nodes",
        rows(f"{RMS} y = Mul(n, w)"),
        "Add Div Mul Pow ReduceMean Sqrt",
        "portable",
        weights=ROW_WEIGHTS,
    ),
    Lowered(
        "norm-by-transposes",
        IMAGE.format(centred("[1]", "n = Div(d, r) g = Mul(n, w) y = Add(g, c)")),
        "LayerNormalization Transpose Transpose",
        "portable",
        weights=E | {"w": (6, 1, 1), "c": (6, 1, 1)},
    ),
    Lowered(
        "lrn",
        IMAGE.format(WINDOW),
        "LRN",
        "portable",
        weights=WINDOW_WEIGHTS,
    ),
    on_cuda(
        "norm-by-layer-norm",
        "(float[2,8,4,4] x) => (float[2,8,4,4] y) { y = GroupNormalization<num_groups=2>(x, w, w) }",
        "Add LayerNormalization Mul Reshape Reshape",
        22,
        w=(8,),
    ),
)

REFUSES = (
    Lowered("two-pass", IMAGE.format("y = MeanVarianceNormalization(x)"), "it would take 7 nodes, not 1", "portable"),
    on_cuda(
        CHANNELS_LAST,
        "(float[2,8,4,4] h) => (float[2,8,4,4] u) { " + f"{NORM} {SILU}" + " }",
        "GroupNorm wants channels last, which would take more Transposes",
        **PER_GROUP,
    ),
    on_cuda(
        CHANNELS_LAST,
        last(f"h = {TURN}(x) {NORM} y = {TURN_BACK}(n)", size=6),
        "GroupNorm takes no groups of 3 channels",
        **PER_GROUP,
    ),
    on_cuda(
        CHANNELS_LAST,
        last(
            f"h = {TURN}(x) r = Reshape(h, s) i = InstanceNormalization(r, one, zero) b = Reshape(i, t) "
            f"n = Mul(b, w) y = {TURN_BACK}(n)"
        ),
        "its kernel computes E[x²] − E[x]², which loses accuracy at large means",
        s=np.array([0, 2, -1]),
        t=np.array([2, 8, 4, 4]),
        one=np.ones(2, np.float32),
        zero=np.zeros(2, np.float32),
        w=(8, 1, 1),
    ),
    on_cuda(
        "skip-layer-norm",
        added("y = LayerNormalization(g, w, c)"),
        "its kernel computes E[x²] − E[x]², which loses accuracy at large means",
        17,
        w=(16,),
        c=(16,),
    ),
    on_cuda("skip-rms-norm", rows(RMS.replace("n = ", "y = ")), "there is no Add of equals in front of it", 17, **E),
    Lowered(
        "norm-in-nodes",
        rows(f"{RMS} y = Mul(n, w)").replace("float[", "float16["),
        "its dtype",
        "portable",
        weights={"e": np.array(1e-3, np.float16), "w": np.ones(16, np.float16)},
    ),
    Lowered(
        "lrn",
        IMAGE.format(WINDOW),
        "ONNX Runtime adds and subtracts squares as the window moves",
        "portable",
        weights=WINDOW_WEIGHTS | {"alpha": np.array(0.3, np.float32)},
    ),
    on_cuda(
        "instance-norm",
        "(float[2,8,4,4] x) => (float[2,8,4,4] y) { y = InstanceNormalization(x, w, w) }",
        "ONNX Runtime has no InstanceNormalization on CUDA above opset 21",
        22,
        w=(8,),
    ),
)

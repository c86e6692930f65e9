"""Each trap of folding as a row: what broke released optimizers, and where a rule must refuse or be exact."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import pytest

from normfuse.pipeline import optimize
from tests.parity import batch_norm, build, fold, ops, reasons_of, refuse, rng

NORM = "n_scale, n_bias, n_mean, n_var"


@dataclass(frozen=True, slots=True)
class Trap:
    """A model that invites a mistake.

    Attributes:
        name: what the trap is.
        text: the model as `build` takes it.
        expected: the operators that are left, separated by spaces; or, after "no: ", the reason of a refusal.
        weights: the weights and options of `build`.
    """

    name: str
    text: str
    expected: str
    weights: Mapping[str, Any] = field(default_factory=dict)

    def spring(self) -> None:
        """Folds the model, compares with the float64 oracle, and looks at what is left."""
        model = build(self.text, **self.weights)
        refused = self.expected.removeprefix("no: ")
        if refused != self.expected:
            refuse(model, refused)
            return
        result = fold(model)
        assert ops(result.model) == Counter(self.expected.split()), reasons_of(result)


def half(**weights: Any) -> dict[str, Any]:
    return {name: np.asarray(array, np.float16) for name, array in weights.items()}


def images(nodes: str, channels: int = 4, y: str = "N,4,6,6", kind: str = "float") -> str:
    return f"({kind}[N,{channels},6,6] x) => ({kind}[{y}] y) {{ {nodes} }}"


CONV = {"w": (4, 4, 1, 1)}
WIDE = {"w": (4, 4, 3, 3)}
FOUR = batch_norm("n", 4)
CONV_NORM = f"c = Conv(x, w) y = BatchNormalization(c, {NORM})"
TRAINED = f"y, m, v = BatchNormalization<training_mode=1>(c, {NORM})"
OLD_TRAINED = f"y, m, v, p, q = BatchNormalization(c, {NORM})"
POSITIONS = {f"n_{name}": array for name, array in zip(
    ("scale", "bias", "mean", "var"), rng("positions").uniform(0.5, 2, (4, 4, 6, 6)).astype(np.float32), strict=True
)}  # fmt: skip
TINY = {**FOUR, "n_var": np.array([1e-9, 2e-8, 0, 3e-7], np.float32)}
HALF = {**half(w=rng("w").normal(size=(4, 4, 1, 1))), **batch_norm("n", 4, np.float16)}
GEMM = "m = Gemm<{attributes}>({x}, w{c}) y = BatchNormalization(m, {norm})"


def gemm(name: str, attributes: str, c: tuple[int, ...] | None, shape: str = "5,3", **weights: Any) -> Trap:
    body = GEMM.format(attributes=attributes, x="x", c="" if c is None else ", c", norm=NORM)
    text = f"(float[{shape}] x) => (float[5,4] y) {{ {body} }}"
    given = {"w": (3, 4), **({} if c is None else {"c": c}), **FOUR, **weights}
    return Trap(f"Gemm with {name}", text, "Gemm", given)


NOT_FINITE = "no: its scale or shift is infinite or not a number"
BATCH_NORM = (
    Trap("training_mode=1 is no inference", images(f"c = Conv(x, w) {TRAINED}"), "no: training_mode=1", CONV | FOUR),
    Trap("five outputs of opset 9 mean training", images(f"c = Conv(x, w) {OLD_TRAINED}"),
         "no: it has the outputs of training", CONV | FOUR | {"opset": 9}),
    Trap("spatial=0 has parameters per position", images(
        f"c = Conv(x, w) y = BatchNormalization<spatial=0>(c, {NORM})"),
         "no: spatial=0: its parameters differ per position", CONV | POSITIONS | {"opset": 7}),
    Trap("the default epsilon is 1e-5", images(CONV_NORM), "Conv", CONV | TINY),
    Trap("float16 with float32 statistics", images(CONV_NORM, kind="float16"), "Conv",
         {"w": HALF["w"], **batch_norm("n", 4), "n_scale": HALF["n_scale"], "n_bias": HALF["n_bias"]}),
    Trap("float16 with float32 parameters", images(CONV_NORM, kind="float16"), "Conv", {"w": HALF["w"], **FOUR}),
    Trap("a variance of nothing in float16 overflows the weight", images(
        f"c = Conv(x, w) y = BatchNormalization<epsilon=1e-12>(c, {NORM})", kind="float16"),
         "no: overflows or underflows float16", {**HALF, "n_var": np.array([0, 1, 1, 1], np.float16)}),
    Trap("a tiny γ in float16 underflows the weight", images(CONV_NORM, kind="float16"),
         "no: overflows or underflows float16", {**HALF, "n_scale": np.array([1e-7, 1, 1, 1], np.float16)}),
    Trap("a mean much larger than the deviation in float16", images(CONV_NORM, kind="float16"), "Conv",
         {**HALF, "n_mean": np.array([300, -500, 20, 1], np.float16), "n_var": np.full(4, 0.1, np.float16)}),
    Trap("γ = 0 makes a channel constant", images(CONV_NORM), "Conv",
         CONV | FOUR | {"n_scale": np.array([0, 1, -1, 0], np.float32)}),
    Trap("γ = 0 has no inverse", images("a = BatchNormalization(x, n_scale, n_bias, n_mean, n_var) b = Add(a, z)"
         " y = Relu(b)").replace(" x)", " x, float[N,4,6,6] z)"), "BatchNormalization Add Relu",
         FOUR | {"n_scale": np.array([0, 1, 2, 3], np.float32)}),
    Trap("NaN in γ", images(CONV_NORM), NOT_FINITE,
         CONV | FOUR | {"n_scale": np.array([np.nan, 1, 1, 1], np.float32)}),
    Trap("an infinite mean", images(CONV_NORM), NOT_FINITE,
         CONV | FOUR | {"n_mean": np.array([np.inf, 1, 1, 1], np.float32)}),
    Trap("a negative variance is a NaN that stays", images(CONV_NORM), NOT_FINITE,
         CONV | FOUR | {"n_var": np.array([-1, 1, 1, 1], np.float32)}),
)  # fmt: skip
WEIGHTS = (
    Trap("ConvTranspose weights are (in, out / groups, k)", images(
        f"c = ConvTranspose<group=2>(x, w) y = BatchNormalization(c, {NORM})", y="N,6,8,8"), "ConvTranspose",
         {"w": (4, 3, 3, 3), **batch_norm("n", 6)}),
    Trap("ConvTranspose in front: groups of inputs", images(
        f"a = BatchNormalization(x, {NORM}) y = ConvTranspose<group=2>(a, w, b)", y="N,6,6,6"), "ConvTranspose",
         {"w": (4, 3, 1, 1), "b": (6,), **FOUR}),
    gemm("alpha and beta", "alpha=1.5, beta=0.5", (4,)),
    gemm("beta = 0", "beta=0.0", (4,)),
    gemm("transposed B", "transB=1", (4,), w=(4, 3)),
    gemm("transposed A", "transA=1", (4,), "3,5"),
    gemm("no C", "alpha=0.5", None),
    gemm("a scalar C", "beta=2.0", ()),
    gemm("a row C", "beta=2.0", (1, 4)),
    gemm("a C of one number", "beta=2.0", (1, 1)),
    gemm("a full C", "beta=2.0", (5, 4)),
    Trap("Gemm with a column C", "(float[5,3] x) => (float[5,4] y) { "
         + GEMM.format(attributes="beta=2.0", x="x", c=", c", norm=NORM) + " }",
         "no: its addend would grow from a vector to a matrix", {"w": (3, 4), "c": (5, 1), **FOUR}),
    Trap("an empty bias input", images(CONV_NORM.replace("w)", 'w, "")')), "Conv", CONV | FOUR),
    Trap("a weight behind DequantizeLinear stays quantised", images(f"d = DequantizeLinear(q, s) c = Conv(x, d)"
         f" y = BatchNormalization(c, {NORM})"), "DequantizeLinear Conv BatchNormalization",
         {"q": rng("q").integers(-9, 9, (4, 4, 1, 1)).astype(np.int8), "s": np.float32(0.1), **FOUR}),
)  # fmt: skip
CONSTANTS = (
    Trap("(W,) with as many columns as channels", "(float[N,4,4,4] x) => (float[N,4,4,4] y) { c = Conv(x, w)"
         " y = Mul(c, k) }", "no: varies along axis 3", CONV | {"k": (4,)}),
    Trap("(N,1,1,1) with as many samples as channels", "(float[4,4,4,4] x) => (float[4,4,4,4] y) { c = Conv(x, w)"
         " y = Mul(c, k) }", "no: varies along axis 0", CONV | {"k": (4, 1, 1, 1)}),
    Trap("(H,1) with as many rows as channels", "(float[N,4,4,4] x) => (float[N,4,4,4] y) { c = Conv(x, w)"
         " y = Add(c, k) }", "no: varies along axis 2", CONV | {"k": (4, 1)}),
    Trap("MatMul: (S,1) with as many tokens as features", "(float[N,4,4] x) => (float[N,4,4] y) { c = MatMul(x, w)"
         " y = Mul(c, k) }", "no: the map varies along axis 1, the channels are axis 2", {"w": (4, 4), "k": (4, 1)}),
    Trap("a constant of a higher rank", images("c = Conv(x, w) y = Mul(c, k)", y="1,N,4,6,6"), "Conv Mul",
         CONV | {"k": (1, 1, 4, 1, 1)}),
    Trap("one channel becomes four", images("c = Conv(x, w) y = Mul(c, k)"), "Conv Mul",
         {"w": (1, 4, 1, 1), "k": (4, 1, 1)}),
    Trap("zeros that broadcast", images("c = Conv(x, w) y = Add(c, k)"), "Conv Add",
         {"w": (1, 4, 1, 1), "k": np.zeros((4, 1, 1), np.float32)}),
    Trap("ones that broadcast", images("c = Relu(x) y = Mul(c, k)", channels=1), "Relu Mul",
         {"k": np.ones((4, 1, 1), np.float32)}),
    Trap("ones of a higher rank", images("c = Relu(x) y = Mul(c, k)", y="1,N,4,6,6"), "Relu Mul",
         {"k": np.ones((1, 1, 1, 1, 1), np.float32)}),
    Trap("value_float", images("k = Constant<value_float=2.5>() c = Conv(x, w) y = Mul(c, k)"), "Conv", CONV),
    Trap("value_floats", images("k = Constant<value_floats=[2.5]>() c = Conv(x, w) y = Mul(k, c)"), "Conv", CONV),
    Trap("value_int is an int64", "(float[N,4] x) => (float[N,4] y) { k = Constant<value_int=2>()"
         " f = Cast<to=1>(k) c = MatMul(x, w) y = Mul(c, f) }", "MatMul", {"w": (4, 4)}),
    Trap("a Dropout whose mask is read", images("c = Conv(x, w) d, m = Dropout(c) y = Mul(d, k)").replace(
        " y)", " y, bool[N,4,6,6] m)"), "Conv Dropout", CONV | {"k": (4, 1, 1)}),
    Trap("a Dropout and an Identity", images("c = Conv(x, w) d = Dropout(c) i = Identity(d) y = Mul(i, k)"), "Conv",
         CONV | {"k": (4, 1, 1)}),
)  # fmt: skip
BORDER = "no: shift crosses a padded border"
BEFORE = f"a = BatchNormalization(x, {NORM})"
PADDING = (
    Trap("a shift in front of a padded Conv", images(f"{BEFORE} y = Conv<pads=[1,1,1,1]>(a, w)"),
         "no: zero-padded", WIDE | FOUR),
    Trap("a shift in front of SAME_UPPER", images(f"{BEFORE} y = Conv<auto_pad=\"SAME_UPPER\">(a, w)"),
         "no: zero-padded", WIDE | FOUR),
    Trap("a shift in front of SAME_LOWER", images(f"{BEFORE} y = Conv<auto_pad=\"SAME_LOWER\">(a, w)"),
         "no: zero-padded", WIDE | FOUR),
    Trap("VALID pads nothing", images(f"{BEFORE} y = Conv<auto_pad=\"VALID\">(a, w)", y="N,4,4,4"), "Conv",
         WIDE | FOUR),
    Trap("SAME of one place pads nothing", images(f"{BEFORE} y = Conv<auto_pad=\"SAME_UPPER\">(a, w)"), "Conv",
         CONV | FOUR),
    Trap("a scale crosses padding", images("a = Mul(x, k) y = Conv<pads=[1,1,1,1]>(a, w)"), "Conv",
         WIDE | {"k": (4, 1, 1)}),
    Trap("a shift in front of a Pad of zeros", images(f"{BEFORE} p = Pad(a, pads) y = Conv(p, w)"), BORDER,
         WIDE | FOUR | {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1])}),
    Trap("a Pad with axes as an input", images(f"{BEFORE} p = Pad(a, pads, , axes) y = Conv(p, w)"), BORDER,
         WIDE | FOUR | {"pads": np.array([1, 1, 1, 1]), "axes": np.array([-2, 3])}),
    Trap("a Pad with pads as an attribute", images(f"{BEFORE} p = Pad<pads=[0,0,1,1,0,0,1,1]>(a) y = Conv(p, w)"),
         BORDER, WIDE | FOUR | {"opset": 10}),
    Trap("negative pads only crop", images(f"{BEFORE} p = Pad(a, pads) y = Conv(p, w)", y="N,4,4,4"), BORDER,
         CONV | FOUR | {"pads": np.array([0, 0, -1, -1, 0, 0, -1, -1])}),
    Trap("a Pad of the channels", images(f"{BEFORE} p = Pad(a, pads) y = Conv(p, w)"), BORDER,
         {"w": (4, 5, 1, 1), **FOUR, "pads": np.array([0, 1, 0, 0, 0, 0, 0, 0])}),
    Trap("an edge Pad repeats what is there", images(f"{BEFORE} p = Pad<mode=\"edge\">(a, pads) y = Conv(p, w)"),
         "Pad Conv", WIDE | FOUR | {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1])}),
    Trap("a padded AveragePool that counts the padding", images(
        "c = Conv(x, w) p = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1>(c) y = Add(p, k)"),
         "no: shift meets padding that is counted in the average", CONV | {"k": (4, 1, 1)}),
    Trap("a padded AveragePool that does not", images(
        "c = Conv(x, w) p = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>(c) y = Add(p, k)"), "Conv AveragePool",
         CONV | {"k": (4, 1, 1)}),
    Trap("MaxPool pads with −∞, not with zeros", images(
        "c = Conv(x, w) p = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(c) y = Add(p, k)"), "Conv MaxPool",
         CONV | {"k": (4, 1, 1)}),
    Trap("a negative scale in front of a Clip", images("a = Mul(x, k) r = Clip(a, lo, hi) y = Conv(r, w)"),
         "no: no rule moves it from in front of Clip 'r'",
         CONV | {"k": np.array([-1, 1, 1, 1], np.float32).reshape(4, 1, 1), "lo": np.float32(0), "hi": np.float32(6)}),
)  # fmt: skip


@pytest.mark.parametrize("trap", [*BATCH_NORM, *WEIGHTS, *CONSTANTS, *PADDING], ids=lambda trap: trap.name)
def test_a_trap_is_not_walked_into(trap: Trap) -> None:
    trap.spring()


@pytest.mark.parametrize("name", ["c_weight", "w_bias", "c_bias", "y_weight", "w_1"])
def test_new_initializers_do_not_take_a_name_that_is_there(name: str) -> None:
    """The weight is shared, so that a new one is written; the name stands for another value already."""
    model = build(
        f"(float[N,4,6,6] x, float[N,4,6,6] {name}) => (float[N,4,6,6] y, float[N,4,6,6] z) {{ {CONV_NORM} "
        f"d = Conv({name}, w) z = Relu(d) }}",
        w=(4, 4, 1, 1),
        **FOUR,
    )
    assert ops(fold(model).model) == {"Conv": 2, "Relu": 1}


def test_a_sparse_weight_is_left_or_folded_whole() -> None:
    model = build(images(CONV_NORM), **FOUR)
    values = onnx.numpy_helper.from_array(np.array([1.5, -2.0, 0.5], np.float32), "w")
    indices = onnx.numpy_helper.from_array(np.array([1, 6, 11]), "indices")
    model.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(values, indices, [4, 4, 1, 1]))
    result = optimize(model, verify=False)
    kept = {tensor.values.name for tensor in result.model.graph.sparse_initializer}
    assert ops(result.model)["BatchNormalization"] == int("w" in kept)

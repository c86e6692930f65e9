"""Each trap of recognising and of writing as a row: what only looks like a normalization, and what nearly is another.

A row names the operators that must and must not be written for the CPU; the result must pass the proof against the
float64 oracle, and the oracle itself is asked once more on inputs that the proof does not have.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime  # type: ignore[import-untyped]  # it ships no types
import pytest

import normfuse
from normfuse.oracle import Oracle
from normfuse.report import NORMALIZATIONS
from normfuse.runtime import session
from tests.parity import build, ops, reasons_of

ROWS = "(float[2,3,8] x) => (float[2,3,8] y)"
SQUARE = "(float[8,8] x) => (float[8,8] y)"
IMAGES = "(float[2,4,5,6] x) => (float[2,4,5,6] y)"
CENTRED = "m = ReduceMean<axes=[-1]>(x) d = Sub(x, m) q = Mul(d, d) v = ReduceMean<axes=[-1]>(q)"
ROOT = "a = Add(v, e) r = Sqrt(a)"
LAYER = f"{CENTRED} {ROOT} n = Div(d, r)"
E5 = {"e": np.float32(1e-5)}


@dataclass(frozen=True, slots=True)
class Trap:
    """A model that invites a mistake.

    Attributes:
        name: what the trap is.
        text: the model as `build` takes it, in opset 17 where `weights` says no other.
        writes: the normalizations that must be there afterwards; empty where there may be none.
        weights: the weights and options of `build`.
        target: what it is optimized for.
        reason: a part of the reasons that are told.
    """

    name: str
    text: str
    writes: str = ""
    weights: Mapping[str, Any] = field(default_factory=lambda: E5)
    target: str = "cpu"
    reason: str = ""

    def spring(self) -> onnx.ModelProto:
        """Optimizes the model with its proof, looks at what is left, and asks the oracle."""
        model = build(self.text, **{"opset": 17} | dict(self.weights))
        result = normfuse.optimize(model, self.target, threads=1)
        optimized: onnx.ModelProto = result.model
        assert result.report.parity is not None
        assert result.report.parity.passed
        written = set(ops(optimized)) & NORMALIZATIONS
        assert written == set(self.writes.split()), reasons_of(result)
        assert self.reason in reasons_of(result)
        assert_near(model, optimized)
        return optimized


def assert_near(model: onnx.ModelProto, optimized: onnx.ModelProto) -> None:
    """Both compute what the oracle does, to float32 or float16 accuracy; NaN where it has NaN."""
    feeds = {}
    initial = {tensor.name for tensor in model.graph.initializer}
    for port in model.graph.input:
        if port.name in initial:
            continue
        kind = onnx.helper.tensor_dtype_to_np_dtype(port.type.tensor_type.elem_type)
        shape = [dim.dim_value or 8 for dim in port.type.tensor_type.shape.dim]
        feeds[port.name] = np.random.default_rng(7).normal(0.4, 1.5, shape).astype(kind)
    tolerance = 2e-2 if any(array.dtype == np.float16 for array in feeds.values()) else 2e-5
    truth = Oracle(ir.from_proto(model)).run(feeds)
    found = session(optimized.SerializeToString(), "disabled", threads=1).run(feeds)
    for name, wanted in truth.items():
        assert found[name].shape == wanted.shape
        scale = np.nanmax(np.abs(wanted), initial=1e-6)
        np.testing.assert_allclose(found[name], wanted, rtol=tolerance, atol=tolerance * scale, err_msg=name)


def powered(base: str = "d") -> str:
    mean = "m = ReduceMean<axes=[-1]>(x) d = Sub(x, m) w = Abs(d)"
    return f"{mean} q = Pow({base}, p) v = ReduceMean<axes=[-1]>(q) {ROOT} y = Div(d, r)"


def opset18(axes: str = "", **attributes: int) -> str:
    stated = "<" + ", ".join(f"{name}={value}" for name, value in attributes.items()) + ">" if attributes else ""
    more = f", {axes}" if axes else ""
    mean = f"ReduceMean{stated}"
    return f"m = {mean}(x{more}) d = Sub(x, m) q = Mul(d, d) v = {mean}(q{more}) {ROOT} y = Div(d, r)"


LOOK_ALIKES = (
    Trap("the fourth power is no variance", f"{ROWS} {{ {powered()} }}", "", E5 | {"p": np.float32(4)}),
    Trap("the third power is no variance", f"{ROWS} {{ {powered()} }}", "",
         {"e": np.float32(30), "p": np.float32(3)}),
    Trap("the power two and a half is no variance", f"{ROWS} {{ {powered('w')} }}", "",
         {"e": np.float32(9), "p": np.float32(2.5)}),
    Trap("keepdims=0 on a square broadcasts along the other axis", SQUARE + " { m = ReduceMean<axes=[1], keepdims=0>(x)"
         f" d = Sub(x, m) q = Mul(d, d) v = ReduceMean<axes=[1], keepdims=0>(q) {ROOT} y = Div(d, r) }}"),
    Trap("mean and variance over different axes", ROWS + " { m = ReduceMean<axes=[1]>(x) d = Sub(x, m) q = Mul(d, d)"
         f" v = ReduceMean<axes=[2]>(q) {ROOT} y = Div(d, r) }}"),
    Trap("noop_with_empty_axes reduces nothing", f"{ROWS} {{ {opset18(noop_with_empty_axes=1)} }}", "",
         E5 | {"opset": 18}),
    Trap("the mean minus x has the other sign", f"{ROWS} {{ m = ReduceMean<axes=[-1]>(x) d = Sub(m, x) q = Mul(d, d)"
         f" v = ReduceMean<axes=[-1]>(q) {ROOT} y = Div(d, r) }}"),
    Trap("the deviation over the difference", f"{ROWS} {{ {CENTRED} {ROOT} y = Div(r, d) }}"),
    Trap("a gate of another value is no SiLU", f"{ROWS} {{ u = Tanh(x) s = Sigmoid(u) y = Mul(x, s) }}", "", {}),
    Trap("a Sigmoid that somebody else reads", f"{ROWS} {{ s = Sigmoid(x) p = Mul(x, s) y = Add(p, s) }}", "", {}),
    Trap("the mean is also read", f"{ROWS} {{ {LAYER} y = Add(n, m) }}", "", E5, reason="'m' is also read by Add 'y'"),
    Trap("the variance is an output", f"(float[2,3,8] x) => (float[2,3,8] y, float[2,3,1] v) {{ {CENTRED} {ROOT}"
         " y = Div(d, r) }", "", E5, reason="'v' is an output of the graph"),
    Trap("ε along an axis", f"{ROWS} {{ {LAYER.replace('n =', 'y =')} }}", "",
         {"e": np.array([[1e-5], [1e-3], [1e-1]], np.float32)}),
    Trap("ε computed at run time", f"(float[2,3,8] x, float[1] e) => (float[2,3,8] y) {{ s = Abs(e)"
         f" {LAYER.replace('n =', 'y =').replace('(v, e)', '(v, s)')} }}", "", {}),
    Trap("1/n of an n that is not known", "(float[2,3,N] x) => (float[2,3,N] y) { t = ReduceSum(x, i) m = Mul(t, c)"
         f" d = Sub(x, m) q = Mul(d, d) w = ReduceSum(q, i) v = Mul(w, c) {ROOT} y = Div(d, r) }}", "",
         {"e": np.float32(0.1), "c": np.float32(1 / 8), "i": np.array([2])}),
)  # fmt: skip
FOUND = (
    Trap("axes that are absent are all axes", f"{ROWS} {{ {opset18()} }}", "", E5 | {"opset": 18}),
    Trap("axes as an input", f"{ROWS} {{ {opset18('i')} }}", "LayerNormalization",
         E5 | {"opset": 18, "i": np.array([-1])}),
    Trap("empty axes are all axes", f"{ROWS} {{ {opset18('i')} }}", "",
         E5 | {"opset": 18, "i": np.array([], np.int64)}),
    Trap("γ along an axis that is not normalized", f"{ROWS} {{ {LAYER} y = Mul(n, k) }}", "LayerNormalization",
         E5 | {"k": (3, 1)}),
    Trap("γ that enlarges the shape", "(float[2,1,8] x) => (float[2,3,8] y) { " + LAYER + " y = Mul(n, k) }",
         "LayerNormalization", E5 | {"k": (3, 1)}),
    Trap("γ of a higher rank", "(float[2,3,8] x) => (float[1,2,3,8] y) { " + LAYER + " y = Mul(n, k) }",
         "LayerNormalization", E5 | {"k": (1, 1, 1, 8)}),
    Trap("γ that fits as many rows", f"{SQUARE} {{ {LAYER} y = Mul(n, k) }}", "LayerNormalization", E5 | {"k": (8, 1)}),
    Trap("ε of one number", f"{ROWS} {{ {LAYER.replace('n =', 'y =')} }}", "LayerNormalization",
         {"e": np.array([1e-3], np.float32)}),
    Trap("ε of 1e-12", f"{ROWS} {{ {LAYER.replace('n =', 'y =')} }}", "LayerNormalization", {"e": np.float32(1e-12)}),
    Trap("ε of 0", f"{ROWS} {{ {LAYER.replace('n =', 'y =')} }}", "LayerNormalization", {"e": np.float32(0)}),
    Trap("ε outside of the root", f"{ROWS} {{ {CENTRED} s = Sqrt(v) r = Add(s, e) y = Div(d, r) }}", "",
         {"e": np.float32(0.01)}),
    Trap("the unbiased variance", f"{ROWS} {{ m = ReduceMean<axes=[-1]>(x) d = Sub(x, m) q = Mul(d, d)"
         f" s = ReduceSum(q, i) v = Div(s, c) {ROOT} y = Div(d, r) }}", "LayerNormalization",
         {"e": np.float32(0.05), "i": np.array([-1]), "c": np.float32(7)}),
    Trap("ε of float16 that rounds to 0", "(float16[2,3,8] x) => (float16[2,3,8] y) { " + LAYER.replace("n =", "y =")
         + " }", "LayerNormalization", {"e": np.float16(1e-8)}),
    Trap("the cast back stands before γ", "(float16[2,3,8] x) => (float16[2,3,8] y) { f = Cast<to=1>(x) "
         + LAYER.replace("(x", "(f") + " h = Cast<to=10>(n) y = Mul(h, k) }", "LayerNormalization",
         E5 | {"k": np.linspace(0.5, 2, 8).astype(np.float16)}),
    Trap("the cast back stands behind γ", "(float16[2,3,8] x) => (float16[2,3,8] y) { f = Cast<to=1>(x) "
         + LAYER.replace("(x", "(f") + " g = Mul(n, k) y = Cast<to=10>(g) }", "LayerNormalization",
         E5 | {"k": np.linspace(0.5, 2, 8).astype(np.float32)}),
    Trap("InstanceNormalization's γ is no γ of each sample", "(float[2,4,5,6] x, float[2,4,1,1] g, float[2,4,1,1] b) =>"
         " (float[2,4,5,6] y) { n = InstanceNormalization(x, one, null) p = Mul(n, g) y = Add(p, b) }",
         "InstanceNormalization", {"one": np.ones(4, np.float32), "null": np.zeros(4, np.float32)}),
    Trap("AdaIN with more than one sample, spelled out", "(float[2,4,5,6] x, float[2,4,1,1] g, float[2,4,1,1] b) =>"
         f" (float[2,4,5,6] y) {{ {CENTRED.replace('[-1]', '[2,3]')} {ROOT} n = Div(d, r) p = Mul(n, g)"
         " y = Add(p, b) }", "InstanceNormalization"),
)  # fmt: skip
OPERATORS = (
    *(
        Trap(f"LRN of size {size}, α = {alpha}, β = {beta}", f"{IMAGES} {{ y = LRN<size={size}, alpha={alpha}, "
             f"beta={beta}, bias=1.5>(x) }}", "", {})
        for size, alpha, beta in ((3, 0.2, 0.75), (5, 0.2, 0.5), (1, 0.3, 0.75))
    ),
    Trap("GroupNormalization-18 has γ and β per group", f"{IMAGES} {{ y = GroupNormalization<num_groups=2>(x, g, b) }}",
         "BatchNormalization InstanceNormalization", {"opset": 18, "g": (2,), "b": (2,)}),
    Trap("GroupNormalization-21 has γ and β per channel", f"{IMAGES} {{ y = GroupNormalization<num_groups=2>(x, g, b)"
         " }", "BatchNormalization InstanceNormalization", {"opset": 21, "g": (4,), "b": (4,)}),
    Trap("as many groups as channels", f"{IMAGES} {{ y = GroupNormalization<num_groups=4>(x, g, b) }}",
         "InstanceNormalization", {"opset": 18, "g": (4,), "b": (4,)}),
    Trap("no operator of a later opset is written", f"{ROWS} {{ {LAYER} y = Mul(n, k) }}", "",
         E5 | {"opset": 13, "k": (8,)}, "portable"),
    Trap("LayerNormalization came with opset 17", f"{ROWS} {{ {LAYER} y = Mul(n, k) }}", "LayerNormalization",
         E5 | {"k": (8,)}, "portable"),
    Trap("RMSNormalization came with opset 23", f"{ROWS} {{ q = Mul(x, x) v = ReduceMean(q, i) {ROOT} n = Div(x, r)"
         " y = Mul(n, k) }", "", E5 | {"opset": 22, "k": (8,), "i": np.array([-1])}, "portable"),
)  # fmt: skip


@pytest.mark.parametrize("trap", LOOK_ALIKES, ids=lambda trap: trap.name)
def test_what_only_looks_like_it_stays(trap: Trap) -> None:
    trap.spring()


@pytest.mark.parametrize("trap", FOUND, ids=lambda trap: trap.name)
def test_what_it_is_is_written_as_it_is(trap: Trap) -> None:
    trap.spring()


@pytest.mark.parametrize("trap", OPERATORS, ids=lambda trap: trap.name)
def test_operators_mean_what_their_opset_says(trap: Trap) -> None:
    optimized = trap.spring()
    onnxruntime.InferenceSession(optimized.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("stash", [1, 10])
def test_statistics_of_float16_are_those_of_float32_where_the_model_asks_for_it(stash: int) -> None:
    """Those that the model wants in float16 may be more accurate."""
    model = build(
        f"(float16[2,3,8] x) => (float16[2,3,8] y) {{ y = LayerNormalization<stash_type={stash}>(x, g) }}",
        opset=17,
        g=np.linspace(0.5, 2, 8).astype(np.float16),
    )
    optimized: onnx.ModelProto = normfuse.optimize(model, "cpu", verify=False).model
    (node,) = optimized.graph.node
    assert not [attribute for attribute in node.attribute if attribute.name == "stash_type" and attribute.i != 1]
    model.graph.node[0].attribute[0].i = 1
    assert_near(model, optimized)

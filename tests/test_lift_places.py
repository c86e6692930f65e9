"""Normalizations where they are not expected: in branches and loops, in front of quantise nodes; what others read."""

from typing import Any

import numpy as np
import pytest

import normfuse
from tests.parity import build, ops, reasons_of

NODES = (
    "m = ReduceMean<axes=[-1]>({x}) d = Sub({x}, m) q = Mul(d, d) v = ReduceMean<axes=[-1]>(q) a = Add(v, e)"
    " r = Sqrt(a) n = Div(d, r) g = Mul(w, n) {y} = Add(g, c)"
)
ROWS: dict[str, Any] = {"w": (16,), "c": (16,), "e": np.float32(1e-5)}
X, Y = "float[2,5,16] x", "float[2,5,16] y"

FOUND = {
    "a branch": (
        f"({X}, bool k) => ({Y}) {{ y = If (k) <then_branch = one () => (float[2,5,16] t) {{ "
        + NODES.format(x="x", y="t")
        + " }, else_branch = two () => (float[2,5,16] u) { u = Relu(x) }> }",
        {"If", "LayerNormalization", "Relu"},
    ),
    "a loop": (
        f"({X}) => ({Y}) {{ y = Loop (count, go, x) <body = b (int64 i, bool on, float[2,5,16] s)"
        " => (bool keep, float[2,5,16] t) { keep = Identity(on) " + NODES.format(x="s", y="t") + " }> }",
        {"Loop", "Identity", "LayerNormalization"},
    ),
    "in front of QuantizeLinear": (
        f"({X}) => (uint8[2,5,16] y) {{ {NODES.format(x='x', y='f')} y = QuantizeLinear(f, step, zero) }}",
        {"LayerNormalization", "QuantizeLinear"},
    ),
    "in front of DynamicQuantizeLinear": (
        f"({X}) => (uint8[2,5,16] y, float s, uint8 z) {{ {NODES.format(x='x', y='f')} "
        "y, s, z = DynamicQuantizeLinear(f) }",
        {"LayerNormalization", "DynamicQuantizeLinear"},
    ),
}


@pytest.mark.parametrize(("text", "expected"), FOUND.values(), ids=FOUND)
def test_it_is_found_and_written_where_it_stands(text: str, expected: set[str]) -> None:
    others = {"step": np.float32(0.05), "zero": np.uint8(128), "count": np.array(3), "go": np.array(True)}
    read = {name: content for name, content in others.items() if f"{name}," in text or f"{name})" in text}
    weights: dict[str, Any] = ROWS | read
    result = normfuse.optimize(build(text, opset=17, **weights), "cpu")
    assert ops(result.model).keys() == expected, reasons_of(result)


@pytest.mark.parametrize("name", ["v", "m", "d"])
def test_what_somebody_else_reads_stays(name: str) -> None:
    text = f"({X}) => ({Y}, float[2,5,D] z) {{ {NODES.format(x='x', y='y')} z = Relu({name}) }}"
    result = normfuse.optimize(build(text, opset=17, **ROWS), "cpu")
    assert "LayerNormalization" not in ops(result.model)
    assert f"'{name}' is also read by Relu 'z'" in reasons_of(result)


def test_sizes_that_somebody_else_reads_do_not_keep_it_from_being_found() -> None:
    """Shape(x) is read by the Expand of the statistics, and by a Reshape that is none of theirs."""
    text = (
        "(float[N,6,H,W] x, float[M,K] u) => (float[N,6,H,W] y) { s = Shape(x) m = ReduceMean<axes=[2,3]>(x)"
        " l = Expand(m, s) d = Sub(x, l) q = Mul(d, d) v = ReduceMean<axes=[2,3]>(q) a = Add(v, e) r = Sqrt(a)"
        " k = Expand(r, s) n = Div(d, k) z = Reshape(u, s) y = Mul(n, z) }"
    )
    result = normfuse.optimize(build(text, opset=17, e=np.float32(1e-5)), "cpu", verify=False)
    assert ops(result.model) == {"InstanceNormalization": 1, "Shape": 1, "Reshape": 1, "Mul": 1}, reasons_of(result)


@pytest.mark.parametrize(("threads", "norm"), [(1, "InstanceNormalization"), (4, "LayerNormalization")])
def test_scale_and_bias_move_into_the_convolution_behind(threads: int, norm: str) -> None:
    text = "(float[2,6,4,4] x) => (float[2,3,4,4] y) { n = GroupNormalization<num_groups=2>(x, g, b) y = Conv(n, k) }"
    model = build(text, opset=21, g=(6,), b=(6,), k=(3, 6, 1, 1))
    result = normfuse.optimize(model, "cpu", threads=threads)
    assert ops(result.model) == {"Reshape": 2, norm: 1, "Conv": 1}, reasons_of(result)


def test_a_scale_alone_crosses_zero_padding() -> None:
    text = (
        "(float[2,6,4,4] x) => (float[2,3,4,4] y) { n = GroupNormalization<num_groups=2>(x, g, b)"
        " y = Conv<pads=[1,1,1,1]>(n, k) }"
    )
    model = build(text, opset=21, g=(6,), b=np.zeros(6, np.float32), k=(3, 6, 3, 3))
    result = normfuse.optimize(model, "cpu", threads=1)
    assert ops(result.model) == {"Reshape": 2, "InstanceNormalization": 1, "Conv": 1}, reasons_of(result)


def test_a_silu_between_keeps_scale_and_bias_where_they_are() -> None:
    text = (
        "(float[2,6,4,4] x) => (float[2,3,4,4] y) { n = GroupNormalization<num_groups=2>(x, g, b) s = Sigmoid(n)"
        " z = Mul(n, s) y = Conv(z, k) }"
    )
    result = normfuse.optimize(build(text, opset=21, g=(6,), b=(6,), k=(3, 6, 1, 1)), "cpu", threads=1)
    assert ops(result.model) == {
        "Reshape": 2,
        "InstanceNormalization": 1,
        "BatchNormalization": 1,
        "Sigmoid": 1,
        "Mul": 1,
        "Conv": 1,
    }

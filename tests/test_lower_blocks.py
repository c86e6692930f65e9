"""BLOCKS: spelled activations and leftover affine maps, in the form that stays in the blocked convolution layout."""

from collections import Counter
from typing import Any

import numpy as np
import pytest

import normfuse
from tests.parity import build, ops, reasons_of, rules_of

THREE, SIX, SIXTH = np.float32(3), np.float32(6), np.float32(1 / 6)
NUMBERS: dict[str, Any] = {"three": THREE, "six": SIX, "sixth": SIXTH, "zero": np.float32(0), "half": np.float32(0.5)}
NUMBERS |= {"one": np.float32(1), "five": np.float32(5)}


def net(body: str, shape: str = "2,8,6,6") -> str:
    convolutions = "x = Conv(i, k)", "o = Conv(y, k)"
    return f"(float[{shape}] i) => (o) {{ {convolutions[0]} {body} {convolutions[1]} }}".replace(
        "(o)", "(float[A,B,C,D] o)"
    )


SPELLINGS = (
    "a = Add(x, three) c = Clip(a, zero, six) m = Mul(x, c) y = Div(m, six)",
    "a = Add(three, x) c = Clip(a, zero, six) m = Mul(c, x) y = Mul(m, sixth)",
    "a = Add(x, three) c = Clip(a, zero, six) h = Div(c, six) y = Mul(x, h)",
    "a = Add(x, three) l = Relu(a) c = Min(l, six) h = Mul(c, sixth) y = Mul(h, x)",
    "a = Add(x, three) l = Min(a, six) c = Max(zero, l) m = Mul(x, c) y = Div(m, six)",
    "s = Mul(x, sixth) a = Add(s, half) c = Clip(a, zero, one) y = Mul(x, c)",
)
LOOK_ALIKES = (
    "a = Add(x, three) c = Clip(a, zero, six) m = Mul(x, c) y = Div(m, five)",
    "a = Add(x, three) c = Clip(a, zero, five) m = Mul(x, c) y = Div(m, six)",
    "a = Add(x, one) c = Clip(a, zero, six) m = Mul(x, c) y = Div(m, six)",
    "a = Add(x, three) c = Clip(a, one, six) m = Mul(x, c) y = Div(m, six)",
    "a = Sub(three, x) c = Clip(a, zero, six) m = Mul(x, c) y = Div(m, six)",
)


@pytest.mark.parametrize("body", SPELLINGS)
def test_hard_swish_is_found_in_any_order(body: str) -> None:
    result = normfuse.optimize(build(net(body), opset=17, k=(8, 8, 1, 1), **NUMBERS), "cpu")
    assert ops(result.model) == Counter(["Conv", "HardSigmoid", "Mul", "Conv"]), reasons_of(result)
    assert result.report.parity is not None
    assert result.report.parity.passed


def test_portable_has_the_operator() -> None:
    for opset, expected in ((17, ["HardSwish"]), (13, ["HardSigmoid", "Mul"])):
        model = build(net(SPELLINGS[0]), opset=opset, k=(8, 8, 1, 1), **NUMBERS)
        assert ops(normfuse.optimize(model, "portable").model) == Counter([*expected, "Conv", "Conv"])


@pytest.mark.parametrize("body", LOOK_ALIKES)
def test_look_alikes_stay(body: str) -> None:
    result = normfuse.optimize(build(net(body), opset=17, k=(8, 8, 1, 1), **NUMBERS), "cpu")
    assert "activation" not in rules_of(result)
    assert "HardSigmoid" not in ops(result.model)


def test_a_gate_is_a_hard_sigmoid_of_another_value() -> None:
    body = "j = Relu(x) a = Add(x, three) c = Clip(a, zero, six) h = Div(c, six) y = Mul(j, h)"
    result = normfuse.optimize(build(net(body), opset=17, k=(8, 8, 1, 1), **NUMBERS), "cpu")
    assert ops(result.model) == Counter(["Conv", "Relu", "HardSigmoid", "Mul", "Conv"])


def test_what_somebody_else_reads_stays() -> None:
    text = net(SPELLINGS[0]).replace("(float[A,B,C,D] o)", "(float[A,B,C,D] o, float[A,B,C,D] c)")
    result = normfuse.optimize(build(text, opset=17, k=(8, 8, 1, 1), **NUMBERS), "cpu")
    assert "activation" not in rules_of(result)
    assert "'c' is an output of the graph" in reasons_of(result)


def test_half_precision_stays() -> None:
    text = net(SPELLINGS[0]).replace("float[", "float16[")
    numbers = {name: number.astype(np.float16) for name, number in NUMBERS.items()}
    model = build(text, opset=17, k=np.ones((8, 8, 1, 1), np.float16), **numbers)
    result = normfuse.optimize(model, "cpu", verify=False)
    assert ops(result.model) == ops(model)


AFFINE = "h = HardSwish(x) m = Mul(h, s) y = Add(m, t)"


def test_a_shift_in_front_of_a_padded_convolution_becomes_a_batch_norm() -> None:
    text = net(AFFINE).replace("o = Conv(y, k)", "o = Conv<pads=[1,1,1,1]>(y, v)")
    model = build(text, opset=17, k=(8, 8, 1, 1), v=(8, 8, 3, 3), s=(1,), t=(8, 1, 1))
    result = normfuse.optimize(model, "cpu")
    assert ops(result.model) == Counter(["Conv", "HardSwish", "BatchNormalization", "Conv"]), reasons_of(result)
    again = normfuse.optimize(result.model, "cpu")
    assert not again.report.changes
    portable = normfuse.optimize(model, "portable")
    assert "BatchNormalization" not in ops(portable.model)


def test_an_affine_outside_of_a_chain_stays() -> None:
    body = "p = Softmax<axis=1>(x) y = Add(p, t) o = Conv<pads=[1,1,1,1]>(y, v)"
    text = f"(float[2,8,6,6] x) => (float[A,B,C,D] o) {{ {body} }}"
    result = normfuse.optimize(build(text, opset=17, v=(8, 8, 3, 3), t=(8, 1, 1)), "cpu")
    assert "affine-as-batch-norm" not in rules_of(result)


@pytest.mark.parametrize(("opset", "mean"), [(17, "ReduceMean<axes=[2,3]>(x)"), (18, "ReduceMean(x, axes)")])
def test_a_spatial_mean_behind_a_convolution_becomes_a_pool(opset: int, mean: str) -> None:
    model = build(net(f"y = {mean}"), opset=opset, k=(8, 8, 1, 1), axes=np.array([-2, -1]))
    assert ops(normfuse.optimize(model, "cpu").model) == Counter(["Conv", "GlobalAveragePool", "Conv"])
    assert "GlobalAveragePool" not in ops(normfuse.optimize(model, "portable").model)


def test_a_spatial_mean_that_drops_its_axes_becomes_a_pool() -> None:
    text = "(float[2,8,6,6] i) => (float[A,B] y) { x = Conv(i, k) y = ReduceMean<axes=[2,3], keepdims=0>(x) }"
    result = normfuse.optimize(build(text, opset=17, k=(8, 8, 1, 1)), "cpu")
    assert ops(result.model) == Counter(["Conv", "GlobalAveragePool", "Flatten"])


@pytest.mark.parametrize(
    "body",
    [
        "c = Conv(i, k) r = Relu(c) s = Add(c, r) y = ReduceMean<axes=[2,3]>(s)",
        "c = Conv(i, k) s = Sigmoid(c) r = Mul(c, s) z = Concat<axis=1>(c, r) y = ReduceMean<axes=[2,3]>(z)",
    ],
)
def test_branches_of_convolutions_stay_blocked(body: str) -> None:
    model = build(f"(float[2,8,6,6] i) => (float[A,B,C,D] y) {{ {body} }}", opset=17, k=(8, 8, 1, 1))
    assert "GlobalAveragePool" in ops(normfuse.optimize(model, "cpu").model)


@pytest.mark.parametrize(
    "body",
    [
        "c = Conv(i, k) y = ReduceMean<axes=[1,2]>(c)",
        "c = Conv(i, k) s = Add(c, i) y = ReduceMean<axes=[2,3]>(s)",
        "c = Conv(i, k) s = Softplus(c) y = ReduceMean<axes=[2,3]>(s)",
        "c = Conv(i, k) m = MaxPool<kernel_shape=[6,6]>(c) s = Add(c, m) y = ReduceMean<axes=[2,3]>(s)",
    ],
)
def test_another_mean_stays(body: str) -> None:
    text = f"(float[2,8,6,6] i) => (float[A,B,C,D] y) {{ {body} }}"
    result = normfuse.optimize(build(text, opset=17, k=(8, 8, 1, 1)), "cpu")
    assert "GlobalAveragePool" not in ops(result.model)

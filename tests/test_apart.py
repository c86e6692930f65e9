"""Where two libraries run the two models: what a library rounds is told apart from what is wrong with a candidate."""

from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import pytest

from normfuse.apart import FORMULA
from normfuse.contest import Contest, Values
from normfuse.probes import Inputs
from normfuse.pytest_plugin import _assert_onnx_parity as assert_parity
from normfuse.runtime import Level

torch = pytest.importorskip("torch")
nn = torch.nn


pytestmark = pytest.mark.usefixtures("one_thread")


class Law(nn.Module):  # type: ignore[misc, name-defined]  # torch may be missing
    def __init__(self, law: Any) -> None:
        super().__init__()
        self.law = law

    def forward(self, x: Any) -> Any:
        return self.law(x)


def model(body: str, shape: str = "1,30000", out: str = "1", **tensors: Any) -> onnx.ModelProto:
    text = f'<ir_version: 9, opset_import: ["" : 18]> g (float[{shape}] x) => (float[{out}] y) {{ {body} }}'
    proto = onnx.parser.parse_model(text)
    for name, value in tensors.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
    return proto


AXES: dict[str, Any] = {"axes": np.array([1], np.int64)}
TOTAL = model("s = ReduceSum <keepdims = 0> (x, axes)  y = Mul (s, k)", **AXES, k=np.float32(1))


def test_a_long_sum_passes_and_a_note_tells_what_the_library_loses() -> None:
    parity = assert_parity(Law(lambda x: x.sum(1)), TOTAL, seeds=1)
    assert [output.level for output in parity.outputs] == [FORMULA, "disabled", "enabled"]
    assert parity.outputs[0].candidate < 1e-7
    (note,) = [note for note in parity.notes if "rounds to" in note]
    assert "the formula is the same" in note
    assert "'constant rows'" in note


def test_a_wrong_factor_does_not_hide_in_the_rounding_of_a_long_sum() -> None:
    """ONNX Runtime is off by more than a part in 10⁵ there, the factor by two in 10⁶."""
    wrong = model("s = ReduceSum <keepdims = 0> (x, axes)  y = Mul (s, k)", **AXES, k=np.float32(1 + 2e-6))
    with pytest.raises(AssertionError, match="output 'y', in float64: its error is") as caught:
        assert_parity(Law(lambda x: x.sum(1)), wrong, seeds=1)
    assert "the formulas differ" in str(caught.value)


LAYER_NORM: dict[str, Any] = {"epsilon": np.float32(1e-5), **AXES}
ONE_PASS = """
    m = ReduceMean (x, axes)  q = Mul (x, x)  p = ReduceMean (q, axes)  n = Mul (m, m)  v = Sub (p, n)
    w = Abs (v)  e = Add (w, epsilon)  s = Sqrt (e)  d = Sub (x, m)  y = Div (d, s)
"""
TWO_PASSES = """
    m = ReduceMean (x, axes)  d = Sub (x, m)  q = Mul (d, d)  v = ReduceMean (q, axes)
    e = Add (v, epsilon)  s = Sqrt (e)  y = Div (d, s)
"""


def test_a_variance_in_one_pass_fails_although_the_formula_is_the_same() -> None:
    module = nn.LayerNorm(64)
    assert assert_parity(module, model(TWO_PASSES, "8,64", "8,64", **LAYER_NORM), seeds=1).passed
    with pytest.raises(AssertionError, match="as it is written it loses too much"):
        assert_parity(module, model(ONE_PASS, "8,64", "8,64", **LAYER_NORM), seeds=1)


def test_narrow_types_inside_fail() -> None:
    narrow = model("h = Cast <to = 10> (x)  f = Cast <to = 1> (h)  y = Add (f, f)", "4,8", "4,8")
    plain = model("y = Add (x, x)", "4,8", "4,8")
    double, halved = Law(lambda x: x + x), Law(lambda x: 2 * x.half().float())
    assert assert_parity(double, plain, seeds=1).passed
    for pair in ((double, narrow), (plain, halved)):
        with pytest.raises(AssertionError, match="parity FAILED: output 'y'"):
            assert_parity(*pair, seeds=1)


def test_a_narrow_part_that_hardly_matters_fails_too() -> None:
    """What it loses is below the ceiling, which is there for rounding."""
    small = model("h = Cast <to = 10> (x)  f = Cast <to = 1> (h)  s = Mul (f, k)  y = Add (x, s)", "4,8", "4,8", k=K)
    plain = model("s = Mul (x, k)  y = Add (x, s)", "4,8", "4,8", k=K)
    whole, halved = Law(lambda x: x + x * float(K)), Law(lambda x: x + x.half().float() * float(K))
    assert assert_parity(whole, plain, seeds=1).passed
    for pair in ((whole, small), (plain, halved)):
        with pytest.raises(AssertionError, match="parity FAILED: output 'y'"):
            assert_parity(*pair, seeds=1, data={"x": np.linspace(-1, 1, 32, dtype=np.float32).reshape(4, 8)})


K = np.float32(0.0625)


def test_a_module_that_adds_one_by_one_passes_as_the_candidate() -> None:
    def one_by_one(x: Any) -> Any:
        total = torch.zeros(1)
        for column in x.unbind(1):
            total = total + column
        return total

    body = model("y = ReduceSum <keepdims = 0> (x, axes)", "1,8000", **AXES)
    parity = assert_parity(body, Law(one_by_one), seeds=1)
    assert parity.outputs[0].level == FORMULA
    wrong = Law(lambda x: one_by_one(x) * (1 + 2e-6))
    with pytest.raises(AssertionError, match="output 'y', in float64"):
        assert_parity(body, wrong, seeds=1)


@pytest.mark.parametrize(("level", "factor"), [("enabled", 1 + 4e-5), ("disabled", 1.01)])
def test_what_the_runtime_gets_wrong_is_no_rounding(monkeypatch: pytest.MonkeyPatch, level: str, factor: float) -> None:
    run = Contest.run

    def wrong(self: Contest, who: int, at: Level, inputs: Inputs) -> Values:
        values = run(self, who, at, inputs)
        off = np.float32(factor if who == 1 and at in (level, "enabled") else 1)
        return {name: np.asarray(value * off) for name, value in values.items()}

    body = model("s = Mul (x, k)  y = Add (s, x)", "4,8", "4,8", k=K)
    module = Law(lambda x: x * float(K) + x)
    assert assert_parity(module, body, seeds=1).passed
    monkeypatch.setattr(Contest, "run", wrong)
    with pytest.raises(AssertionError, match=f"output 'y', optimizer {level}: its error is"):
        assert_parity(module, body, seeds=1)

"""`verify` passes what computes the same, and fails each near miss."""

import json
import math
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import normfuse.contest
from normfuse.errors import NormfuseError, ParityError, TargetError
from normfuse.foreign import Foreign
from normfuse.judging import Judgement
from normfuse.oracle import Oracle, OracleError
from normfuse.runtime import has_provider
from normfuse.verification import Parity, require, verify
from tests.parity import build

Array = np.ndarray[Any, Any]


def model(
    body: str,
    weights: dict[str, Array] | None = None,
    inputs: str = "float[N,4,6,6] x",
    outputs: str = "float y",
    opset: int = 17,
) -> ir.Model:
    """A model in ONNX text, its weights as initializers."""
    weights = weights or {}
    declared = ", ".join([inputs, *(f"{ir.DataType.from_numpy(w.dtype).name.lower()} {n}" for n, w in weights.items())])
    built = ir.from_onnx_text(
        f'<ir_version: 8, opset_import: ["" : {opset}]> g ({declared}) => ({outputs}) {{ {body} }}'
    )
    for value in list(built.graph.inputs):
        if value.name in weights:
            built.graph.inputs.remove(value)
            value.const_value = ir.tensor(weights[value.name], name=value.name)
            value.shape = ir.Shape(weights[value.name].shape)
            built.graph.initializers.add(value)
    return built


def conv_bn(dtype: type[np.floating[Any]] = np.float32) -> dict[str, Array]:
    rng = np.random.default_rng(3)
    return {
        "w": rng.standard_normal((5, 4, 3, 3)).astype(dtype),
        "s": rng.uniform(0.5, 2, 5).astype(dtype),
        "b": rng.standard_normal(5).astype(dtype),
        "m": rng.standard_normal(5).astype(dtype),
        "v": rng.uniform(0.1, 3, 5).astype(dtype),
    }


def fold(p: dict[str, Array], epsilon: float = 1e-5) -> dict[str, Array]:
    wide = {name: array.astype(np.float64) for name, array in p.items()}
    scale = wide["s"] / np.sqrt(wide["v"] + epsilon)
    dtype = p["w"].dtype
    return {
        "w": (wide["w"] * scale[:, None, None, None]).astype(dtype),
        "b": (wide["b"] - wide["m"] * scale).astype(dtype),
    }


SPELLED = "c = Conv (x, w) y = BatchNormalization (c, s, b, m, v)"


def layer_norm(epsilon: str = "1e-5", *, inside: bool = True, one_pass: bool = False) -> ir.Model:
    """LayerNorm over the last axis, spelled out."""
    weights = {"two": np.array(2, np.float32), "e": np.array(float(epsilon), np.float32)}
    if one_pass:
        variance = "p = Pow (x, two) q = ReduceMean <axes = [-1]> (p) r = Pow (m, two) v = Sub (q, r)"
    else:
        variance = "p = Pow (d, two) v = ReduceMean <axes = [-1]> (p)"
    root = "t = Add (v, e) o = Sqrt (t)" if inside else "t = Sqrt (v) o = Add (t, e)"
    body = f"m = ReduceMean <axes = [-1]> (x) d = Sub (x, m) {variance} {root} y = Div (d, o)"
    return model(body, weights, "float[N,5,64] x", "float[N,5,64] y")


def fused_layer_norm(epsilon: str = "1e-5") -> ir.Model:
    ones = {"s": np.ones(64, np.float32)}
    return model(f"y = LayerNormalization <epsilon = {epsilon}> (x, s)", ones, "float[N,5,64] x", "float[N,5,64] y")


def levels(parity: Parity) -> set[str]:
    return {output.level for output in parity.outputs}


def test_a_model_equals_itself() -> None:
    spelled = model(SPELLED, conv_bn())
    parity = verify(spelled, spelled, seeds=1)
    assert parity.passed
    assert parity.judged_by == "oracle"
    assert parity.ratio <= 1
    assert parity.bits_lost == 0
    assert levels(parity) == {"disabled", "enabled"}
    assert parity.probes >= 9


def test_a_true_fold_passes() -> None:
    weights = conv_bn()
    parity = verify(model(SPELLED, weights), model("y = Conv (x, w, b)", fold(weights)))
    assert parity.passed, parity.reason
    assert parity.judged_by == "oracle"
    assert all(output.reference < 1e-5 and output.candidate < 1e-5 for output in parity.outputs)


def test_a_float16_fold_passes_and_a_wrong_one_fails() -> None:
    weights = conv_bn(np.float16)
    inputs, outputs = "float16[N,4,6,6] x", "float16 y"
    spelled = model(SPELLED, weights, inputs, outputs)
    assert verify(spelled, model("y = Conv (x, w, b)", fold(weights), inputs, outputs)).passed
    wrong = fold(weights)
    wrong["b"] = wrong["b"] + np.float16(0.05)
    parity = verify(spelled, model("y = Conv (x, w, b)", wrong, inputs, outputs))
    assert not parity.passed
    assert "times the original's" in parity.reason


def test_an_epsilon_a_hundred_times_too_large_fails() -> None:
    parity = verify(layer_norm("1e-5"), layer_norm("1e-3"), seeds=1)
    assert not parity.passed
    assert parity.ratio > 100
    assert parity.outputs[0].family == "scale 1e-3"


def test_an_epsilon_of_a_fold_a_hundred_times_too_large_fails() -> None:
    weights = conv_bn()
    parity = verify(model(SPELLED, weights), model("y = Conv (x, w, b)", fold(weights, 1e-3)), seeds=1)
    assert not parity.passed
    assert parity.ratio > 100


def test_an_epsilon_outside_the_root_fails() -> None:
    assert not verify(layer_norm(), layer_norm(inside=False), seeds=1).passed


def test_a_better_candidate_passes_and_a_worse_one_fails() -> None:
    """E[x²] − E[x]² loses what the centred variance keeps; two models judged against each other would both fail."""
    assert verify(layer_norm(one_pass=True), fused_layer_norm(), seeds=1).passed
    parity = verify(fused_layer_norm(), layer_norm(one_pass=True), seeds=1)
    assert not parity.passed


def test_a_shift_across_zero_padding_fails() -> None:
    rng = np.random.default_rng(5)
    w, t = rng.standard_normal((3, 4, 3, 3)), rng.standard_normal(4)
    weights = {"w": w.astype(np.float32), "t": t.reshape(1, 4, 1, 1).astype(np.float32)}
    folded = {"w": weights["w"], "b": np.einsum("ochw,c->o", w, t).astype(np.float32)}
    for pads, right in (("[0, 0, 0, 0]", True), ("[1, 1, 1, 1]", False)):
        shifted = model(f"a = Add (x, t) y = Conv <pads = {pads}> (a, w)", weights)
        parity = verify(shifted, model(f"y = Conv <pads = {pads}> (x, w, b)", folded), seeds=1)
        assert parity.passed is right, parity.reason


def test_a_changed_rank_fails() -> None:
    same, higher = "y = Neg (x)", "i = Constant <value_ints = [0]> () n = Neg (x) y = Unsqueeze (n, i)"
    parity = verify(model(same), model(higher), seeds=1)
    assert not parity.passed
    assert "it is float32[1, 1, 4, 6, 6], not float32[1, 4, 6, 6]" in parity.reason
    json.dumps(parity.to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("inputs", "outputs", "reason"),
    [
        ("float[N,4,6,6] z", "float[N,4,6,6] y", "the inputs are z, not x"),
        ("float[1,4,6,6] x", "float[N,4,6,6] y", "input 'x' has shape"),
        ("float[N,4,6,6] x", "float[N,4,36] y", "output 'y' has shape"),
        ("float16[N,4,6,6] x", "float16[N,4,6,6] y", "input 'x' is FLOAT16, not FLOAT"),
        ("float[N,4,6,6] x", "float[N,4,6,6] q", "the outputs are q, not y"),
    ],
)
def test_a_changed_signature_fails(inputs: str, outputs: str, reason: str) -> None:
    body = f"{outputs[-1]} = Neg ({inputs[-1]})"
    parity = verify(model("y = Neg (x)", outputs="float[N,4,6,6] y"), model(body, None, inputs, outputs))
    assert not parity.passed
    assert reason in parity.reason
    assert parity.to_dict()["ratio"] is None


def test_swapped_outputs_fail() -> None:
    outputs = "float[N,4,6,6] y, float[N,4,6,6] z"
    parity = verify(
        model("y = Neg (x) z = Abs (x)", outputs=outputs), model("z = Neg (x) y = Abs (x)", outputs=outputs), seeds=1
    )
    assert not parity.passed
    assert {output.name for output in parity.outputs if not output.passed} == {"y", "z"}


def test_a_nan_that_appears_fails() -> None:
    """|x| against x²/|x|: 0/0 on zeros, of which a Relu makes many."""
    reference = model("r = Relu (x) y = Abs (r)")
    parity = verify(reference, model("r = Relu (x) s = Mul (r, r) a = Abs (r) y = Div (s, a)"), seeds=1)
    assert not parity.passed
    assert "NaN or infinite" in parity.reason


def test_a_nan_that_the_original_has_passes() -> None:
    reference = model("r = Relu (x) y = Div (r, r)")
    assert verify(reference, reference, seeds=1).passed


@pytest.mark.parametrize("told", ["u = Identity (l)", "u = Mul (l, two)"])
def test_where_all_is_nan_nothing_is_proved(told: str) -> None:
    """Log(x − 1e5) is NaN wherever probes reach: what stands behind it may be right or wrong."""
    weights = {"far": np.full(1, -1e5, np.float32), "two": np.full(1, 2.0, np.float32)}
    text = "s = Add (x, far) l = Log (s) {} y = Identity (u)"
    reference, candidate = model(text.format("u = Identity (l)"), weights), model(text.format(told), weights)
    parity = verify(reference, candidate, seeds=1)
    assert not parity.passed
    assert parity.reason == "nothing could be judged: output 'y' is NaN or infinite on every probe (give --data)"
    assert parity.to_dict()["ratio"] is None
    seen = verify(reference, candidate, seeds=1, data={"x": np.full((2, 4, 6, 6), 2e5, np.float32)})
    assert seen.passed is ("Mul" not in told)
    assert not seen.reason.startswith("nothing")


def test_a_nan_without_inputs_is_all_there_is() -> None:
    constant = build("() => (float[2] y) { y = Log(c) }", c=np.array([-1.0, -2.0], np.float32))
    assert verify(constant, constant, seeds=1).passed


def test_one_of_two_outputs_that_is_all_nan_fails() -> None:
    weights = {"far": np.full(1, -1e5, np.float32)}
    text = "s = Add (x, far) z = Log (s) y = Relu (x)"
    reference = model(text, weights, outputs="float y, float z")
    parity = verify(reference, reference, seeds=1)
    assert [(row.name, row.passed) for row in parity.outputs] == [("y", True), ("z", False)] * 2
    assert "'z' is NaN" in parity.reason


def test_one_wrong_channel_of_many_fails() -> None:
    weights = {"g": np.linspace(1, 2, 512, dtype=np.float32).reshape(1, 512, 1)}
    wrong = {"g": weights["g"].copy()}
    wrong["g"][0, 100, 0] *= np.float32(1 + 5e-6)
    inputs, outputs = "float[N,512,8] x", "float[N,512,8] y"
    reference = model("y = Mul (x, g)", weights, inputs, outputs)
    parity = verify(reference, model("y = Mul (x, g)", wrong, inputs, outputs), seeds=1)
    assert not parity.passed
    assert "channel" in parity.reason


def test_integer_outputs_must_be_equal_but_for_ties() -> None:
    body = "y = ArgMax <axis = 1, keepdims = 0> ({})"
    reference = model(body.format("x"), outputs="int64 y")
    assert verify(reference, reference, seeds=1).passed
    parity = verify(reference, model("n = Neg (x)" + body.format("n"), outputs="int64 y"), seeds=1)
    assert not parity.passed
    assert "elements differ" in parity.reason


def test_what_a_sigmoid_hides_is_judged_in_front_of_it() -> None:
    weights = {"k": np.array(-60, np.float32), "h": np.array(1.0001, np.float32)}
    body = "a = Tanh (x){} c = Add (b, k) y = Sigmoid (c)"
    reference, wrong = (model(body.format(middle), weights) for middle in (" b = Identity (a)", " b = Mul (a, h)"))
    passed, failed = verify(reference, reference, seeds=1), verify(reference, wrong, seeds=1)
    assert passed.passed, passed.reason
    assert not failed.passed
    assert "before Sigmoid" in failed.reason


def test_a_softmax_ignores_a_shift_but_not_a_scale() -> None:
    weights = {"k": np.array(3, np.float32), "h": np.array(1.0001, np.float32)}
    reference = model("a = Mul (x, x) y = Softmax <axis = 1> (a)")
    shifted = model("a = Mul (x, x) b = Add (a, k) y = Softmax <axis = 1> (b)", weights)
    scaled = model("a = Mul (x, x) b = Mul (a, h) y = Softmax <axis = 1> (b)", weights)
    parity = verify(reference, shifted, seeds=1)
    assert parity.passed, parity.reason
    assert any("before Softmax" in output.name for output in parity.outputs)
    assert not verify(reference, scaled, seeds=1).passed


def test_an_output_that_does_not_move_is_noted() -> None:
    still = model("a = Tanh (x) z = Sub (a, a) y = Exp (z)")
    parity = verify(still, still, seeds=1)
    assert parity.passed
    assert any("do not move output 'y'" in note for note in parity.notes)


QUANTISED = """
    q, s, z = DynamicQuantizeLinear (x)
    p = MatMulInteger (q, w, z)
    f = Cast <to = 1> (p)
    g = Mul (f, s)
    y = Mul (g, k)
"""


def test_dynamically_quantised_models_are_judged_by_their_noise() -> None:
    rng = np.random.default_rng(1)
    weights: dict[str, Array] = {"w": rng.integers(0, 9, (16, 8), dtype=np.uint8), "k": np.array(0.01, np.float32)}
    reference = model(QUANTISED, weights, "float[N,16] x")
    parity = verify(reference, reference, seeds=1)
    assert parity.passed
    assert parity.judged_by == "noise"
    assert any("DynamicQuantizeLinear" in note for note in parity.notes)
    wrong = model(QUANTISED, weights | {"k": np.array(0.02, np.float32)}, "float[N,16] x")
    assert not verify(reference, wrong, seeds=1).passed


def test_without_time_for_the_oracle_the_noise_judges_and_it_is_said() -> None:
    weights = conv_bn()
    spelled = model(SPELLED, weights)
    parity = verify(spelled, model("y = Conv (x, w, b)", fold(weights)), seeds=1, budget=0.0)
    assert parity.judged_by == "noise"
    assert any("budget" in note for note in parity.notes)
    assert not verify(spelled, model("y = Conv (x, w, b)", fold(weights, 0.1)), seeds=1, budget=0.0).passed


def test_an_oracle_that_disagrees_with_the_runtime_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(Oracle):
        def run(self, *arguments: Any, **settings: Any) -> dict[str, Array]:
            values = super().run(*arguments, **settings)
            return {name: value + 1 if name in ("c", "y") else value for name, value in values.items()}

    monkeypatch.setattr(normfuse.contest, "Oracle", Wrong)
    weights = conv_bn()
    parity = verify(model(SPELLED, weights), model("y = Conv (x, w, b)", fold(weights)), seeds=1)
    assert parity.judged_by == "noise"
    assert any("first at 'c' (Conv)" in note for note in parity.notes)


class Jumping(Foreign):
    """y = x + 1, but on large inputs their last bits decide whether it is −y: in one case of four, or in the others."""

    def __init__(self, cases: Collection[int], known: bool = True) -> None:
        x = "x", ir.DataType.FLOAT, ir.Shape([2, 3])
        super().__init__([x], [("y", *x[1:])], title="jumping", kinds=(ir.DataType.FLOAT,))
        self.cases, self.known = cases, known

    def run(self, inputs: Mapping[str, Array], names: Any = None, *, deadline: float | None = None) -> dict[str, Array]:
        x = inputs["x"]
        case = zlib.crc32(x.tobytes()) % 4 if np.abs(x).max() > 50 else -1
        return {"y": -(x + 1) if case in self.cases else x + 1}

    def runner(self, name: str) -> "Jumping":
        return self

    def truth(self, *, widens: bool = True) -> "Jumping":
        if not self.known:
            raise OracleError("no float64 form")
        return Jumping(())

    def moved(self) -> "Jumping":
        return self


@pytest.mark.parametrize("known", [True, False], ids=["oracle", "noise"])
@pytest.mark.parametrize("seeds", [1, 2])
def test_where_the_last_bit_decides_the_inputs_are_moved_until_it_shows(seeds: int, known: bool) -> None:
    parity = verify(Jumping((0,), known), Jumping((1, 2, 3)), seeds=seeds)
    assert parity.passed, parity
    assert parity.judged_by == ("oracle" if known else "noise")
    assert not verify(Jumping((), known), Jumping((1, 2, 3)), seeds=seeds).passed


def test_the_noise_judges_the_families_that_the_oracle_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    class Tired(Oracle):
        runs = 0

        def run(self, *arguments: Any, **settings: Any) -> dict[str, Array]:
            self.runs += 1
            if self.runs > 3:
                raise OracleError("out of time")
            return super().run(*arguments, **settings)

    monkeypatch.setattr(normfuse.contest, "Oracle", Tired)
    weights = conv_bn()
    reference = model(SPELLED, weights)
    parity = verify(reference, model("y = Conv (x, w, b)", fold(weights)), seeds=1)
    assert parity.passed, parity
    assert parity.judged_by == "noise"
    assert any("judged 3 families, its own noise the others: out of time" in note for note in parity.notes)
    assert parity.probes > 8
    assert not verify(reference, model("y = Conv (x, w, b)", fold(weights, 0.1)), seeds=1).passed


def test_a_family_that_the_oracle_left_in_the_middle_is_judged_by_noise_alone() -> None:
    reference = model("y = Neg (x)", None, "float[N,4] x")
    judgement = Judgement(normfuse.contest.Contest(reference, reference, "cpu"), "oracle")
    x = np.ones((2, 4), np.float32)
    for family, count in (("scale 1", 1), ("data", 2)):
        for _ in range(count):
            judgement.add("disabled", family, {"y": -x}, {"y": -x}, {"y": -x}, [])
            judgement.judged[family] += 1
    assert judgement.keep_whole(["scale 1", "data", "data", "data"]) == {"scale 1"}
    assert judgement.probes == 1
    assert list(judgement.tallies["y", "disabled"].families) == ["scale 1"]


def test_weights_in_constants_are_moved_too() -> None:
    weights = conv_bn()
    reference = model("c = Constant <value = float[1,1] {3.1}> () y = MatMul (x, c)", None, "float[N,1] x")
    contest = normfuse.contest.Contest(reference, model("y = Conv (x, w, b)", fold(weights)), "cpu")
    x = {"x": np.ones((2, 1), np.float32)}
    assert 0 < abs(contest.run(2, "disabled", x)["y"] - contest.run(0, "disabled", x)["y"]).max() < 1e-6


def test_a_candidate_that_fails_where_the_original_runs_fails() -> None:
    reference = model("y = Neg (x)", None, "float[N,4] x")
    fixed = model("i = Constant <value_ints = [1, 4]> () n = Reshape (x, i) y = Neg (n)", None, "float[N,4] x")
    parity = verify(reference, fixed, seeds=1)
    assert not parity.passed
    assert "'batch 3'" in parity.reason


def test_own_data_is_judged_too(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.full((2, 4, 6, 6), 5, np.float32))
    weights = {"t": np.array(4.5, np.float32)}
    reference = model("y = Relu (x)")
    parity = verify(reference, reference, seeds=1, data=tmp_path / "x.npz")
    assert (2, 4, 6, 6) in parity.outputs[0].shapes
    assert verify(
        model("y = Min (x, t)", weights), model("y = Min (t, x)", weights), data={"x": np.ones((1, 4, 6, 6))}
    ).passed


@pytest.mark.parametrize("quantised", [False, True], ids=["oracle", "noise"])
def test_own_data_that_the_reference_does_not_take_is_an_error(quantised: bool) -> None:
    body = "q, s, z = DynamicQuantizeLinear (x) y = DequantizeLinear (q, s, z)" if quantised else "y = Relu (x)"
    reference = model(body)
    good, bad = ({"x": np.ones(shape, np.float32)} for shape in ((2, 4, 6, 6), (1, 2, 3)))
    with pytest.raises(NormfuseError, match=r"^the data \(x 1×2×3 float32\) cannot be judged, .*rank") as caught:
        verify(reference, reference, seeds=1, data=bad)
    assert (caught.value.exit_status, "\n" in str(caught.value)) == (2, False)
    with pytest.raises(NormfuseError, match=r"^set 2 of 2 of the data \(x 1×2×3 float32\) cannot be judged"):
        verify(reference, reference, seeds=1, data=[good, bad])
    assert verify(reference, reference, seeds=1, data=[good]).passed


def test_a_model_that_the_runtime_cannot_load_raises() -> None:
    broken = ir.from_onnx_text(
        '<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>'
        "g (float[N,4,6,6] x) => (float y) { y = com.microsoft.GroupNorms (x) }"
    )
    with pytest.raises(TargetError, match=r"the candidate: ONNX Runtime cannot load it: .*GroupNorm"):
        verify(model("y = Neg (x)"), broken)


def test_require_raises_the_reason() -> None:
    parity = Parity(False, math.inf, (), reason="the outputs are swapped")
    with pytest.raises(ParityError, match="the outputs are swapped"):
        require(parity)
    require(Parity(True, 1.0, ()))


CHANNELS_LAST = "y = com.microsoft.GroupNorm <groups = 2, activation = 0> (x, w, w)"
PLAIN = (
    "m = Transpose <perm = [0, 3, 1, 2]> (x) n = GroupNormalization <num_groups = 2> (m, w, w)"
    " y = Transpose <perm = [0, 2, 3, 1]> (n)"
)


def group_norm(body: str) -> onnx.ModelProto:
    return build(
        f"(float[2,3,3,8] x) => (float[2,3,3,8] y) {{ {body} }}", opset=21, imports={"com.microsoft": 1}, w=(8,)
    )


@pytest.mark.skipif(has_provider("cuda"), reason="for machines without CUDA")
class TestStandIn:
    def test_the_cpu_stands_in_for_cuda(self) -> None:
        parity = verify(layer_norm(), fused_layer_norm(), seeds=1, provider="cuda", stand_in=True)
        assert parity.passed
        assert "not run on CUDA: ONNX Runtime does not have it here; run on the CPU" in parity.notes
        assert {output.level for output in parity.outputs} == {"disabled", "enabled"}

    def test_the_evaluator_stands_in_for_operators_that_the_cpu_has_not(self) -> None:
        parity = verify(group_norm(PLAIN), group_norm(CHANNELS_LAST), seeds=1, provider="cuda", stand_in=True)
        assert parity.passed, parity.reason
        assert "judged by the reference evaluator in the types of the model" in parity.notes[0]
        assert {output.level for output in parity.outputs} == {"disabled"}
        assert all(output.dtype == "float32" and output.candidate > 1e-9 for output in parity.outputs)

    def test_the_evaluator_finds_what_is_wrong(self) -> None:
        wrong = group_norm(CHANNELS_LAST.replace("groups = 2", "groups = 4"))
        assert not verify(group_norm(PLAIN), wrong, seeds=1, provider="cuda", stand_in=True).passed

    @pytest.mark.parametrize(("kind", "ceiling"), [("float", 1e-5), ("float16", 1e-2)])
    def test_a_net_is_evaluated_in_its_own_types(self, kind: str, ceiling: float) -> None:
        dtype = np.float32 if kind == "float" else np.float16
        text = f"({kind}[N,8,6,6] x) => ({kind}[N,3] y) {{ c = Conv(x, k) t = Transpose<perm=[0,2,3,1]>(c) "
        tail = " r = Reshape(n, to) f = MatMul(r, m) g = ReduceMean<keepdims=0>(f, axes) y = Softmax(g) }"
        weights: dict[str, Any] = {"k": (8, 8, 3, 3), "w": (8,), "m": (8, 3), "dtype": dtype}
        weights |= {"to": np.array([0, -1, 8]), "axes": np.array([1])}
        plain = (
            "h = Transpose<perm=[0,3,1,2]>(t) i = GroupNormalization<num_groups=2>(h, w, w)"
            " n = Transpose<perm=[0,2,3,1]>(i)"
        )
        fused = "v = Cast<to=1>(w) n = com.microsoft.GroupNorm<groups=2, activation=0>(t, v, v)"
        models = [
            build(text + norm + tail, opset=21, imports={"com.microsoft": 1}, **weights) for norm in (plain, fused)
        ]
        parity = verify(*models, seeds=1, provider="cuda", stand_in=True)
        assert parity.passed, parity.reason
        assert all(output.candidate < ceiling for output in parity.outputs)

    def test_nothing_stands_in_where_nobody_asks(self) -> None:
        with pytest.raises(TargetError, match="no CUDAExecutionProvider here"):
            verify(layer_norm(), fused_layer_norm(), seeds=1, provider="cuda")
        with pytest.raises(TargetError, match="cannot load it"):
            verify(group_norm(PLAIN), group_norm(CHANNELS_LAST), seeds=1)

    def test_what_nothing_can_run_is_said(self) -> None:
        unheard = group_norm("y = com.microsoft.Unheard (x, w)")
        with pytest.raises(TargetError, match="prove it where its provider is, or leave the proof out"):
            verify(group_norm(PLAIN), unheard, seeds=1, provider="cuda", stand_in=True)


def test_shapes_that_the_model_refuses_are_an_error_though_there_is_data() -> None:
    text = "(float[N,T] x) => (float[M,2] y) { s = Constant<value_ints=[-1,2]>() y = Reshape(x, s) }"
    data = {"x": np.ones((3, 4), np.float32)}
    assert verify(build(text), build(text), data=data).passed
    with pytest.raises(NormfuseError, match="does not run on inputs of these shapes: x 3×7"):
        verify(build(text), build(text), data=data, shapes={"N": 3, "T": 7})

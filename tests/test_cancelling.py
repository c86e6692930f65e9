"""Maps that cancel stay whole: masks, measurements far from zero, rounding by a magic number."""

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import normfuse
from normfuse.affine import Affine
from normfuse.passes.cancelling import check_parting, is_exact
from normfuse.pipeline import rewrite
from normfuse.runtime import session
from normfuse.verification import verify
from tests.test_verification import model

pytest.importorskip("onnxruntime")

Array = np.ndarray[Any, Any]
RNG = np.random.default_rng(4)


def constants(**values: Any) -> dict[str, Array]:
    return {name: np.asarray(value, np.float32) for name, value in values.items()}


def operators(built: ir.Model) -> list[str]:
    copy = built.clone()
    rewrite(copy, "cpu")
    return [node.op_type for node in copy.graph]


def run(built: ir.Model, inputs: dict[str, Array]) -> Array:
    return next(iter(session(built, "disabled").run(inputs).values()))


def mask(weight: float, body: str = "y = Softmax (c)", inputs: str = "float[N,8] m, float[N,8] s") -> ir.Model:
    text = f"a = Sub (one, m) b = Mul (a, k) c = Add (s, b) {body}"
    return model(text, constants(one=1, k=weight, g=RNG.uniform(0.5, 2, 8)), inputs)


@pytest.mark.parametrize("weight", [-1e4, -1e9, -3e38])
@pytest.mark.parametrize("body", ["y = Softmax (c)", "y = LayerNormalization (c, g)"], ids=["softmax", "layer norm"])
def test_a_mask_is_added_whole(weight: float, body: str) -> None:
    built = mask(weight, body)
    assert operators(built) == ["Sub", "Mul", "Add", body.split()[2]]
    seen = {"m": (RNG.random((6, 8)) < 0.7).astype(np.float32), "s": RNG.standard_normal((6, 8)).astype(np.float32)}
    seen["m"][:, 0] = 1.0
    optimized = normfuse.optimize(built, verify=False).model
    np.testing.assert_array_equal(run(optimized, seen), run(built, seen))


def test_a_mask_of_integers_is_added_whole() -> None:
    built = mask(-1e9, inputs="int64[N,8] i, float[N,8] s")
    built.graph.insert_before(next(iter(built.graph)), cast := ir.node("Cast", [built.graph.inputs[0]], {"to": 1}))
    for node in built.graph:
        for index, value in enumerate(node.inputs):
            if value is not None and value.name == "m":
                node.replace_input_with(index, cast.outputs[0])
    assert operators(built) == ["Cast", "Sub", "Mul", "Add", "Softmax"]


def test_a_mask_times_large_weights_is_multiplied_whole() -> None:
    weights = constants(one=1, k=1e6, z=RNG.standard_normal(8), w=RNG.standard_normal((8, 4)))
    built = model("a = Sub (one, x) b = Mul (a, k) c = Add (b, z) y = MatMul (c, w)", weights, "float[N,8] x")
    assert operators(built)[0] == "Sub"
    ones = {"x": np.ones((3, 8), np.float32)}
    np.testing.assert_allclose(
        run(normfuse.optimize(built, verify=False).model, ones), run(built, ones), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    ("mean", "deviation", "folds"),
    [(123.7, 58.4, True), (127.5, 127.5, True), (128, 1, True), (287, 8, False), (1013, 8, False), (2010, 6, False)],
)
def test_measurements_far_from_zero_are_centred_first(mean: float, deviation: float, folds: bool) -> None:
    weights = constants(t=mean, s=deviation, w=RNG.standard_normal((8, 5)), b=RNG.standard_normal(5))
    built = model("a = Sub (x, t) b0 = Div (a, s) y = Gemm (b0, w, b)", weights, "float[N,8] x")
    assert operators(built) == (["Gemm"] if folds else ["Sub", "Gemm"])


def test_what_a_convolution_has_rounded_may_have_a_large_shift() -> None:
    weights = constants(
        w=RNG.standard_normal((4, 4, 1, 1)), k=RNG.standard_normal((4, 1, 1)), t=300 * np.ones((4, 1, 1))
    )
    body = "c = Conv (x, w) r = Relu (c) a = Mul (r, k) b = Add (a, t) y = Conv (b, w)"
    assert operators(model(body, weights, "float[N,4,6,6] x")) == ["Conv", "Relu", "Conv"]


@pytest.mark.parametrize("magic", [2.0**23, 1.5 * 2**23])
def test_rounding_by_a_magic_number_stays(magic: float) -> None:
    weights = constants(w=RNG.standard_normal((4, 4, 1, 1)), k=magic)
    built = model("c = Conv (x, w) a = Add (c, k) b = Sub (a, k) y = Relu (b)", weights, "float[N,4,6,6] x")
    assert operators(built) == ["Conv", "Add", "Sub", "Relu"]


def test_the_reason_is_told() -> None:
    refusals = normfuse.optimize(mask(-1e9), verify=False).report.refusals
    assert any("may cancel what it is added to" in refusal.reason for refusal in refusals)


@pytest.mark.parametrize("weight", [-1e4, -1e9])
def test_the_proof_sees_a_mask_that_lost_what_it_is_added_to(weight: float) -> None:
    lost = model("a = Mul (m, k) c = Add (s, a) y = Softmax (c)", constants(k=-weight), "float[N,8] m, float[N,8] s")
    parity = verify(mask(weight), lost, seeds=1)
    assert not parity.passed
    real = {"m": np.ones((3, 8), np.float32), "s": RNG.standard_normal((3, 8)).astype(np.float32)}
    assert not verify(mask(weight), lost, data=real, seeds=1).passed


def test_a_map_of_small_shift_is_parted_without_a_look_at_the_graph() -> None:
    unread = ir.Value(name="x")
    check_parting(unread, Affine.of(None, 3.0, 30.0))
    check_parting(unread, Affine.of(None, -1.0, 200.0))
    for scale, shift in ((3.0, 40.0), (1.0, 300.0)):
        with pytest.raises(Exception, match="may cancel"):
            check_parting(unread, Affine.of(None, scale, shift))


def test_a_long_chain_is_exact_until_something_in_it_is_rounded() -> None:
    for first, exact in (("Abs", True), ("Sigmoid", False)):
        value = ir.node(first, [ir.Value(name="x")]).outputs[0]
        for _ in range(100):
            value = ir.node("Relu", [value]).outputs[0]
        assert is_exact(value) is exact
    for _ in range(300):
        value = ir.node("Relu", [value]).outputs[0]
    assert is_exact(value), "what lies too far away is not known"

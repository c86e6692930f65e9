"""`calibrate` estimates the statistics anew that BatchNormalizations hold, on ONNX models alone."""

import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import normfuse
from normfuse import streaming
from normfuse.calibration import Calibrated, calibrate
from normfuse.calibration_state import digest_of
from normfuse.console_calibrate import Bar
from normfuse.errors import NormfuseError
from normfuse.model import load
from normfuse.oracle import Oracle
from tests.parity import Array, batch_norm, build, ops, rng

NET = (
    "(float[N,3,H,W] x) => (float[N,5,H,W] y) { a = Conv<pads = [1, 1, 1, 1]>(x, w)"
    "  b = BatchNormalization(a, p_scale, p_bias, p_mean, p_var)  c = Relu(b)  d = Conv(c, v)"
    "  e = BatchNormalization<epsilon: float = 1e-3>(d, q_scale, q_bias, q_mean, q_var)"
    "  f = Conv(x, u)  g = BatchNormalization(f, r_scale, r_bias, r_mean, r_var)  h = Add(e, g)"
    "  i = Tanh(h)  y = BatchNormalization(i, s_scale, s_bias, s_mean, s_var) }"
)
"""Levels: b and g 1, e 2, y 3."""

LEVELS = {"b": 1, "e": 2, "g": 1, "y": 3}


def net(**settings: Any) -> onnx.ModelProto:
    weights = {"w": (4, 3, 3, 3), "v": (5, 4, 1, 1), "u": (5, 3, 1, 1)}
    norms = {**batch_norm("p", 4), **batch_norm("q", 5), **batch_norm("r", 5), **batch_norm("s", 5)}
    return build(NET, **{**weights, **norms, **settings})


def data(sizes: tuple[int, ...] = (4, 2, 3)) -> list[dict[str, Array]]:
    """Uneven batches with a mean."""
    draw = rng("data")
    return [{"x": draw.normal(2.0, 1.5, (size, 3, 6, 5)).astype(np.float32)} for size in sizes]


def values(model: onnx.ModelProto, batch: dict[str, Array], names: list[str]) -> list[Array]:
    """Values of a model by onnx's evaluator, in float64."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    del watched.graph.output[:]
    watched.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    return [np.asarray(found) for found in Oracle(ir.from_proto(watched)).run(batch).values()]


def stored(model: onnx.ModelProto, prefix: str) -> tuple[Array, Array]:
    arrays = {one.name: onnx.numpy_helper.to_array(one).astype(np.float64) for one in model.graph.initializer}
    return arrays[f"{prefix}_mean"], arrays[f"{prefix}_var"]


def read_by(node: str, model: onnx.ModelProto) -> str:
    return str(next(one.input[0] for one in model.graph.node if one.name == node))


def flat(x: Array) -> Array:
    """(N, C, *spatial) as (N · spatial, C)."""
    return np.moveaxis(x, 1, -1).reshape(-1, x.shape[1])


@pytest.fixture(scope="module")
def result() -> Calibrated:
    return calibrate(net(), data())


@pytest.fixture(scope="module")
def expected(result: Calibrated) -> onnx.ModelProto:
    model: onnx.ModelProto = result.model
    return model


class TestLevels:
    @pytest.mark.parametrize("opset", [9, 13, 18, 21])
    @pytest.mark.parametrize("estimator", ["mean", "pooled"])
    def test_each_layer_has_the_statistics_of_what_it_reads_afterwards(self, opset: int, estimator: Any) -> None:
        """The model that comes out is the fixed point: measuring it anew finds what it holds."""
        before = net(opset=opset)
        result = calibrate(before, data(), estimator=estimator)
        after: onnx.ModelProto = result.model
        assert {layer.name: layer.level for layer in result.report.layers} == LEVELS
        for node, prefix in zip("begy", "pqrs", strict=True):
            seen = [flat(values(after, batch, [read_by(node, after)])[0]) for batch in data()]
            mean, variance = stored(after, prefix)
            if estimator == "pooled":
                expected = np.concatenate(seen).mean(0), np.concatenate(seen).var(0, ddof=1)
            else:
                expected = np.mean([x.mean(0) for x in seen], 0), np.mean([x.var(0, ddof=1) for x in seen], 0)
            np.testing.assert_allclose(mean, expected[0], rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(variance, expected[1], rtol=1e-5)

    def test_only_the_statistics_have_changed(self) -> None:
        before = net()
        after: onnx.ModelProto = calibrate(before, data()).model
        old, new = ({one.name: one for one in model.graph.initializer} for model in (before, after))
        assert old.keys() == new.keys()
        changed = {name for name in old if old[name] != new[name]}
        assert changed == {f"{prefix}_{kind}" for prefix in "pqrs" for kind in ("mean", "var")}
        told = [
            [
                (node.name, node.op_type, list(node.input), list(node.output), list(node.attribute))
                for node in m.graph.node
            ]
            for m in (before, after)
        ]
        assert told[0] == told[1]

    def test_the_source_stays_as_it_was(self) -> None:
        before, same = net(), net()
        calibrate(before, data())
        assert before == same

    def test_what_was_scrambled_is_repaired(self) -> None:
        """Statistics of the data, scrambled, come back; and so do the outputs."""
        right: onnx.ModelProto = calibrate(net(), data()).model
        scrambled = onnx.ModelProto()
        scrambled.CopyFrom(right)
        draw = rng("scrambled")
        for tensor in scrambled.graph.initializer:
            if tensor.name.endswith(("_mean", "_var")):
                array = onnx.numpy_helper.to_array(tensor)
                tensor.CopyFrom(onnx.numpy_helper.from_array(draw.permutation(array) * np.float32(2.5), tensor.name))
        repaired: onnx.ModelProto = calibrate(scrambled, data()).model
        for prefix in "pqrs":
            for found, expected in zip(stored(repaired, prefix), stored(right, prefix), strict=True):
                np.testing.assert_array_equal(found, expected)
        before, after, truth = (values(model, data()[0], ["y"])[0] for model in (scrambled, repaired, right))
        assert np.linalg.norm(before - truth) > 0.1 * np.linalg.norm(truth)
        np.testing.assert_array_equal(after, truth)

    def test_the_result_is_what_optimize_folds(self) -> None:
        """Conv → BN twice: none is left, and the proof passes."""
        result = normfuse.optimize(calibrate(net(), data()).model, "portable")
        assert result.report.parity is not None
        assert result.report.parity.passed
        assert ops(result.model)["BatchNormalization"] == 1  # behind a Tanh

    def test_it_is_the_same_each_time(self) -> None:
        assert calibrate(net(), data()).model == calibrate(net(), list(reversed(data()))).model


class TestBatch:
    def test_each_layer_normalizes_by_the_batch(self) -> None:
        """One pass; in it e reads Relu(γ·(a − μ_B)/√(σ²_B + ε) + β), whatever p_mean and p_var were."""
        model = net()
        result = calibrate(model, data(), flow="batch")
        assert result.report.passes == 1
        weights = {one.name: onnx.numpy_helper.to_array(one).astype(np.float64) for one in model.graph.initializer}
        seen = []
        for batch in data():
            a = values(model, batch, ["a"])[0]
            mean, variance = a.mean((0, 2, 3), keepdims=True), a.var((0, 2, 3), keepdims=True)
            scale, bias = (weights[f"p_{kind}"].reshape(1, -1, 1, 1) for kind in ("scale", "bias"))
            c = np.maximum(scale * (a - mean) / np.sqrt(variance + 1e-5) + bias, 0)
            seen.append(flat(np.einsum("nchw,kc->nkhw", c, weights["v"][:, :, 0, 0])))
        mean, variance = stored(result.model, "q")
        np.testing.assert_allclose(mean, np.mean([x.mean(0) for x in seen], 0), rtol=2e-6, atol=2e-6)
        np.testing.assert_allclose(variance, np.mean([x.var(0, ddof=1) for x in seen], 0), rtol=2e-6)

    def test_it_is_not_what_levels_find(self) -> None:
        first, second = (stored(calibrate(net(), data(), flow=flow).model, "q")[1] for flow in ("batch", "levels"))
        assert np.abs(first / second - 1).max() > 1e-3

    @pytest.mark.parametrize("opset", [9, 13, 18])
    def test_it_runs_at_every_opset(self, opset: int) -> None:
        found = stored(calibrate(net(opset=opset), data(), flow="batch").model, "q")
        np.testing.assert_allclose(found, stored(calibrate(net(), data(), flow="batch").model, "q"), rtol=1e-5)


class TestSites:
    """What is measured, and what is refused with a reason."""

    @staticmethod
    def refused(text: str, **weights: Any) -> str:
        with pytest.raises(NormfuseError) as caught:
            calibrate(build(text, **weights), [{"x": np.ones((3, 4), np.float32)}])
        return str(caught.value)

    def test_a_model_without_any(self) -> None:
        reason = self.refused("(float[N,4] x) => (float[N,4] y) { y = Relu(x) }")
        assert "export it with its BatchNormalizations kept" in reason

    def test_one_in_training_mode(self) -> None:
        reason = self.refused(
            "(float[N,4] x) => (float[N,4] y) { y, m, v = "
            "BatchNormalization<training_mode: int = 1>(x, p_scale, p_bias, p_mean, p_var) }",
            **batch_norm("p", 4),
        )
        assert "'y': it is in training mode" in reason

    def test_computed_statistics(self) -> None:
        reason = self.refused(
            "(float[N,4] x) => (float[N,4] y) { m = ReduceMean<keepdims: int = 0>(x, axes)"
            " y = BatchNormalization(x, p_scale, p_bias, m, p_var) }",
            axes=np.array([0]),
            **batch_norm("p", 4),
        )
        assert "'m' are computed at run time" in reason

    @pytest.mark.parametrize(
        ("text", "opset", "reason"),
        [
            ("y = BatchNormalization<spatial: int = 0>(x, p_scale, p_bias, p_mean, p_var)", 7, "differ per position"),
            ("y = BatchNormalization<is_test: int = 1>(x, p_scale, p_bias, p_mean, p_var)", 6, "has opset 6; raise it"),
            ("y = BatchNormalization(x, p_scale, p_bias, p_mean, one)", 18, "'one' are no vector of floats"),
            ("y = BatchNormalization(x, p_scale, p_bias, p_mean, few)", 18, "are of different lengths"),
            ("y = LayerNormalization(x, p_scale, p_bias)", 18, "the model has no BatchNormalization"),
        ],
    )
    def test_other_forms(self, text: str, opset: int, reason: str) -> None:
        weights: dict[str, Any] = {**batch_norm("p", 4), "one": np.float32(1), "few": np.ones(3, np.float32)}
        assert reason in self.refused(f"(float[N,4] x) => (float[N,4] y) {{ {text} }}", opset=opset, **weights)

    def test_statistics_that_are_an_output(self) -> None:
        reason = self.refused(
            "(float[N,4] x) => (float[N,4] y, float[4] p_mean) "
            "{ y = BatchNormalization(x, p_scale, p_bias, p_mean, p_var) }",
            **batch_norm("p", 4),
        )
        assert "'p_mean' are an output of the model" in reason

    def test_several_that_cannot_be_measured(self) -> None:
        reason = self.refused(
            "(float[N,4] x) => (float[N,4] y) { a = BatchNormalization(k, p_scale, p_bias, p_mean, p_var)"
            " b = BatchNormalization(k, q_scale, q_bias, q_mean, q_var) c = Add(a, b) y = Add(c, x) }",
            k=(2, 4),
            **batch_norm("p", 4),
            **batch_norm("q", 4),
        )
        assert reason.endswith("(and 1 more)")

    def test_one_in_a_function(self) -> None:
        body = (
            '<domain: "l", opset_import: ["": 18]> F (u, s, b, m, v) => (w) { w = BatchNormalization(u, s, b, m, v) }'
        )
        reason = self.refused(
            "(float[N,4] x) => (float[N,4] y) { y = l.F(x, p_scale, p_bias, p_mean, p_var) }",
            imports={"l": 1},
            functions=body,
            **batch_norm("p", 4),
        )
        assert "it stands in the model-local function 'F'; inline that first" in reason

    def test_one_layer_in_two_places(self) -> None:
        reason = self.refused(
            "(float[N,4] x) => (float[N,4] y) { a = BatchNormalization(x, p_scale, p_bias, p_mean, p_var)"
            " b = Relu(a)  y = BatchNormalization(b, p_scale, p_bias, p_mean, p_var) }",
            **batch_norm("p", 4),
        )
        assert "one layer with 'y'" in reason

    def test_statistics_that_others_read(self) -> None:
        reason = self.refused(
            "(float[N,4] x) => (float[N,4] y) { a = BatchNormalization(x, p_scale, p_bias, p_mean, p_var)"
            " y = Add(a, p_mean) }",
            **batch_norm("p", 4),
        )
        assert "'p_mean' are read by Add 'y' too" in reason

    def test_an_input_that_is_constant(self) -> None:
        reason = self.refused(
            "(float[N,4] x) => (float[N,4] y) { a = BatchNormalization(k, p_scale, p_bias, p_mean, p_var)"
            " y = Add(a, x) }",
            k=(2, 4),
            **batch_norm("p", 4),
        )
        assert "does not depend on those of the model" in reason

    def test_one_in_a_branch_is_named_beside_those_that_are_measured(self) -> None:
        model = build(
            "(float[N,4] x, bool c) => (float[N,4] y) { a = BatchNormalization(x, p_scale, p_bias, p_mean, p_var)"
            " y = If(c) <then_branch = t () => (float[N,4] r) { r = BatchNormalization(a, q_scale, q_bias, q_mean,"
            " q_var) }, else_branch = e () => (float[N,4] s) { s = Relu(a) }> }",
            **batch_norm("p", 4),
            **batch_norm("q", 4),
        )
        batch = {"x": rng("x").normal(1, 2, (9, 4)).astype(np.float32), "c": np.array(True)}
        report = calibrate(model, [batch]).report
        assert [layer.name for layer in report.layers] == ["a"]
        assert ["r" in one.node and "branch" in one.reason for one in report.refusals] == [True]

    def test_a_scale_and_a_shift_that_optimize_wrote_as_one(self) -> None:
        """Conv → Mul → Add → Relu → … with padding: a BatchNormalization for the blocked layout, not for statistics."""
        one = np.ones(4, np.float32)
        reason = self.refused(
            "(float[N,4] x) => (float[N,4] y) { y = BatchNormalization<epsilon: float = 0.0>(x, s, t, m, v) }",
            s=3 * one,
            t=one,
            m=0 * one,
            v=one,
        )
        assert "'y': it is a scale and a shift: mean 0, variance 1 and ε = 0" in reason
        model = build(
            "(float[N,4] x) => (float[N,4] y) { y = BatchNormalization(x, s, t, m, v) }",
            s=3 * one,
            t=one,
            m=0 * one,
            v=one,
        )
        report = calibrate(model, [{"x": rng("x").normal(1, 2, (9, 4)).astype(np.float32)}]).report
        assert "'y' had mean 0 and variance 1" in report.notes[0]

    def test_what_optimize_leaves_is_refused_or_right(self) -> None:
        """An affine between convolutions with paddings, which nothing can take, becomes a BatchNormalization."""
        pads = "<pads = [1, 1, 1, 1]>"
        model = build(
            f"(float[N,4,6,6] x) => (float[N,4,6,6] y) {{ a = Conv{pads}(x, w) b = Relu(a) c = Mul(b, s) d = Add(c, t)"
            f" y = Conv{pads}(d, v) }}",
            w=(4, 4, 3, 3),
            v=(4, 4, 3, 3),
            s=-np.abs(rng("s").normal(1, 1, (4, 1, 1))).astype(np.float32),
            t=(4, 1, 1),
        )
        optimized = normfuse.optimize(model, "cpu").model
        assert ops(optimized)["BatchNormalization"] == 1
        with pytest.raises(NormfuseError, match="it is a scale and a shift"):
            calibrate(optimized, [{"x": np.ones((2, 4, 6, 6), np.float32)}])

    def test_constants_that_layers_share_become_their_own(self) -> None:
        """Exporters write equal constants once: fresh statistics of zeros and ones."""
        norms = {name: array for prefix in "pq" for name, array in batch_norm(prefix, 4).items()}
        own: dict[str, Any] = {name: array for name, array in norms.items() if name.endswith(("scale", "bias"))}
        model = build(
            "(float[N,4] x) => (float[N,4] y) { a = BatchNormalization(x, p_scale, p_bias, m, v)"
            " b = Relu(a)  y = BatchNormalization(b, q_scale, q_bias, m, v) }",
            m=np.zeros(4, np.float32),
            v=np.ones(4, np.float32),
            **own,
        )
        batch = rng("x").normal(1, 2, (9, 4)).astype(np.float32)
        result = calibrate(model, [{"x": batch}])
        assert len({name for node in result.model.graph.node[::2] for name in node.input[3:]}) == 4
        assert {one.name for one in result.model.graph.initializer} == {
            name for node in result.model.graph.node for name in node.input[1:]
        }
        assert len(result.report.notes) == 2  # both were untrained
        first = result.report.layers[0].new
        np.testing.assert_allclose(first.mean, batch.astype(np.float64).mean(0), rtol=1e-12)
        np.testing.assert_allclose(first.variance, batch.astype(np.float64).var(0, ddof=1), rtol=1e-12)

    def test_statistics_in_constant_nodes(self) -> None:
        model = build(
            "(float[N,2] x) => (float[N,2] y) { m = Constant<value_floats: floats = [1.0, 2.0]>()"
            " y = BatchNormalization(x, p_scale, p_bias, m, p_var) }",
            **batch_norm("p", 2),
        )
        batch = rng("x").normal(1, 2, (9, 2)).astype(np.float32)
        result = calibrate(model, [{"x": batch}])
        assert [node.op_type for node in result.model.graph.node] == ["BatchNormalization"]
        np.testing.assert_allclose(result.report.layers[0].new.mean, batch.astype(np.float64).mean(0), rtol=1e-12)

    def test_statistics_behind_identities(self) -> None:
        """As TorchScript's exporter writes equal parameters: those of nets that were not trained."""
        model = build(
            "(float[N,2] x) => (float[N,2] y) { m = Identity(zero) v = Identity(one)  n = Identity(m)"
            " w = Identity(one) a = BatchNormalization(x, one, zero, m, v)  b = Relu(a)"
            " y = BatchNormalization(b, one, zero, n, w) }",
            zero=np.zeros(2, np.float32),
            one=np.ones(2, np.float32),
        )
        batch = rng("x").normal(1, 2, (9, 2)).astype(np.float32)
        wide = batch.astype(np.float64)
        result = calibrate(model, [{"x": batch}])
        onnx.checker.check_model(result.model)
        assert ops(result.model) == {"BatchNormalization": 2, "Relu": 1}
        first, second = (layer.new for layer in result.report.layers)
        np.testing.assert_allclose(first.mean, wide.mean(0), rtol=1e-12)
        read = np.maximum((wide - wide.mean(0)) / np.sqrt(wide.var(0, ddof=1) + 1e-5), 0)
        np.testing.assert_allclose(second.mean, read.mean(0), rtol=1e-6)
        np.testing.assert_allclose(second.variance, read.var(0, ddof=1), rtol=1e-6)

    def test_statistics_that_others_read_behind_identities(self) -> None:
        reason = self.refused(
            "(float[N,4] x) => (float[N,4] y) { m = Identity(p_mean)  n = Identity(m)"
            " a = BatchNormalization(x, p_scale, p_bias, m, p_var)  y = Add(a, n) }",
            **batch_norm("p", 4),
        )
        assert "'m' are read by Add 'y' too" in reason

    def test_they_may_be_listed_as_inputs(self) -> None:
        model = build(
            "(float[N,2] x) => (float[N,2] y) { y = BatchNormalization(x, p_scale, p_bias, p_mean, p_var) }",
            listed=True,
            **batch_norm("p", 2),
        )
        batch = rng("x").normal(1, 2, (9, 2)).astype(np.float32)
        result = calibrate(model, [{"x": batch}])
        np.testing.assert_array_equal(stored(result.model, "p")[0], batch.astype(np.float64).mean(0).astype(np.float32))

    @pytest.mark.parametrize("statistics", ["shared", "in a node"])
    def test_before_ir_version_4_new_initializers_are_listed_as_inputs(self, statistics: str) -> None:
        norms = {name: array for prefix in "pq" for name, array in batch_norm(prefix, 2).items()}
        second, m = "p_mean", ""
        if statistics == "in a node":
            second, m = "m", "m = Constant<value: tensor = float[2] {1.0, 2.0}>() "
        norms.pop("q_mean")
        model = build(
            f"(float[N,2] x) => (float[N,2] y) {{ {m}a = BatchNormalization(x, p_scale, p_bias, p_mean, p_var)"
            f" b = Relu(a)  y = BatchNormalization(b, q_scale, q_bias, {second}, q_var) }}",
            opset=8,
            ir_version=3,
            listed=True,
            **norms,
        )
        onnx.checker.check_model(model)
        batch = rng("x").normal(1, 2, (9, 2)).astype(np.float32)
        result = calibrate(model, [{"x": batch}])
        onnx.checker.check_model(result.model)
        assert len(result.report.layers) == 2
        read = values(result.model, {"x": batch}, ["b"])[0].astype(np.float64)
        np.testing.assert_allclose(result.report.layers[1].new.mean, read.mean(0), rtol=1e-5)

    def test_an_old_opset_is_raised_as_the_refusal_says(self) -> None:
        model = build(
            "(float[N,3,6,6] x) => (float[N,4,4,4] y) { a = Conv<kernel_shape = [3, 3]>(x, w)"
            " b = BatchNormalization<is_test: int = 1>(a, p_scale, p_bias, p_mean, p_var) y = Relu(b) }",
            opset=6,
            w=(4, 3, 3, 3),
            **batch_norm("p", 4),
        )
        batch = rng("x").normal(1, 2, (9, 3, 6, 6)).astype(np.float32)
        with pytest.raises(NormfuseError, match="raise it first, as `normfuse optimize --opset 15 --ignore fold` does"):
            calibrate(model, [batch])
        raised = normfuse.optimize(model, opset=15, ignore=["fold"]).model
        (layer,) = calibrate(raised, [batch]).report.layers
        seen = flat(values(raised, {"x": batch}, [read_by(raised.graph.node[1].name, raised)])[0])
        np.testing.assert_allclose(layer.new.mean, seen.mean(0), rtol=1e-5, atol=1e-6)

    def test_one_that_no_output_depends_on(self) -> None:
        """What it reads does not matter: here it is NaN."""
        model = build(
            "(float[N,4] x) => (float[N,4] y) { a = Log(x) dead = BatchNormalization(a, q_scale, q_bias, q_mean, q_var)"
            " y = BatchNormalization(x, p_scale, p_bias, p_mean, p_var) }",
            **batch_norm("p", 4),
            **batch_norm("q", 4),
        )
        report = calibrate(model, [rng("x").normal(-9, 1, (9, 4)).astype(np.float32)]).report
        assert [layer.name for layer in report.layers] == ["y"]
        assert [(one.node, one.reason) for one in report.refusals] == [("dead", "no output of the model depends on it")]

    def test_one_that_only_a_branch_reads_is_measured(self) -> None:
        model = build(
            "(float[N,4] x, bool c) => (float[N,4] y) { a = BatchNormalization(x, p_scale, p_bias, p_mean, p_var)"
            " y = If(c) <then_branch = t () => (float[N,4] r) { r = Relu(a) }, else_branch = e () => (float[N,4] s)"
            " { s = Identity(x) }> }",
            **batch_norm("p", 4),
        )
        batch = {"x": rng("x").normal(1, 2, (9, 4)).astype(np.float32), "c": np.array(False)}
        assert [layer.name for layer in calibrate(model, [batch]).report.layers] == ["a"]


class TestDefaults:
    """Inputs that have an initializer, which the data may override."""

    @staticmethod
    def scaled(ir_version: int = 10) -> onnx.ModelProto:
        return build(
            "(float[N,4] x) => (float[N,4] y) { a = Mul(x, k) b = BatchNormalization(a, p_scale, p_bias, p_mean, p_var)"
            " c = Relu(b) y = BatchNormalization(c, q_scale, q_bias, q_mean, q_var) }",
            ir_version=ir_version,
            listed=True,
            k=np.ones(1, np.float32),
            **batch_norm("p", 4),
            **batch_norm("q", 4),
        )

    @pytest.mark.parametrize("flow", ["levels", "batch"])
    def test_what_is_given_is_measured(self, flow: Any) -> None:
        """The third batch takes the default."""
        batches = [{"x": rng(str(index)).normal(1, 2, (9, 4)).astype(np.float32)} for index in range(3)]
        factors = (100.0, -10.0, 1.0)
        given = [{**batch, "k": np.array([k], np.float32)} for batch, k in zip(batches[:2], factors[:2], strict=True)]
        report = calibrate(self.scaled(), [*given, batches[2]], flow=flow).report
        seen = [batch["x"].astype(np.float64) * k for batch, k in zip(batches, factors, strict=True)]
        np.testing.assert_allclose(report.layers[0].new.mean, np.mean([x.mean(0) for x in seen], 0), rtol=1e-6)
        expected = np.mean([x.var(0, ddof=1) for x in seen], 0)
        np.testing.assert_allclose(report.layers[0].new.variance, expected, rtol=1e-6)
        scaled = [{"x": batch["x"] * np.float32(k)} for batch, k in zip(batches, factors, strict=True)]
        other = calibrate(self.scaled(), scaled, flow=flow).report
        np.testing.assert_allclose(report.layers[1].new.mean, other.layers[1].new.mean, rtol=1e-5)
        assert report.outputs[0].relative == pytest.approx(other.outputs[0].relative, rel=1e-5)

    def test_what_is_left_out_is_told(self) -> None:
        batch = {"x": rng("x").normal(1, 2, (9, 4)).astype(np.float32), "K": np.array([100], np.float32)}
        (note,) = calibrate(self.scaled(), [batch]).report.notes
        assert note == "left out of the data, as no input of that name can be fed: 'K'"
        old = {"x": batch["x"], "k": batch["K"]}
        (note,) = calibrate(self.scaled(ir_version=3), [old]).report.notes
        assert note.endswith("can be fed: 'k'")


class TestOutputs:
    def test_those_that_the_runtime_does_not_give(self) -> None:
        model = build(
            "(float[N,4] x) => (bfloat16[N,4] y, float[N,4] z) { z = BatchNormalization(x, p_scale, p_bias, p_mean,"
            " p_var) y = Cast<to: int = 16>(z) }",
            **batch_norm("p", 4),
        )
        batch = rng("x").normal(1, 2, (9, 4)).astype(np.float32)
        report = calibrate(model, [batch]).report
        assert [output.name for output in report.outputs] == ["z"]
        assert report.notes == [
            "ONNX Runtime does not give these outputs in Python, so how far they move is not known: 'y'"
        ]
        del model.graph.output[1]
        assert not calibrate(model, [batch]).report.outputs

    def test_those_that_are_no_numbers(self) -> None:
        model = build(
            "(float[N,4] x) => (float[N,4] y) { a = BatchNormalization(x, p_scale, p_bias, p_mean, p_var)"
            " b = Sub(a, a) y = Log(b) }",
            **batch_norm("p", 4),
        )
        report = calibrate(model, [rng("x").normal(1, 2, (9, 4)).astype(np.float32)]).report
        assert report.notes == ["output 'y' holds NaN or infinities, before or after, on the first batches"]

    def test_a_reader_may_reuse_its_arrays(self) -> None:
        class Reused:
            def __iter__(self) -> Iterator[dict[str, Array]]:
                own = np.empty_like(data((4,))[0]["x"])
                for batch in data((4, 4, 4)):
                    own[:] = batch["x"]
                    yield {"x": own}

        found, expected = calibrate(net(), Reused()).report, calibrate(net(), data((4, 4, 4))).report
        assert found.to_dict() == expected.to_dict()


class TestLarge:
    """Weights in data files, which the runtime maps."""

    @staticmethod
    def net() -> onnx.ModelProto:
        """A new one each time, as saving moves the weights out of it."""
        return build(
            "(float[N,3,H,W] x) => (float[N,32,H,W] y) { a = Conv(x, w) b = BatchNormalization(a, p_scale, p_bias,"
            " p_mean, p_var) c = Relu(b) d = Conv(c, v) y = BatchNormalization(d, q_scale, q_bias, q_mean, q_var) }",
            w=(32, 3, 3, 3),
            v=(32, 32, 1, 1),
            **batch_norm("p", 32),
            **batch_norm("q", 32),
        )

    @pytest.fixture
    def path(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        onnx.save(
            self.net(), tmp_path / "large.onnx", save_as_external_data=True, location="large.data", size_threshold=0
        )
        monkeypatch.setattr(streaming, "MAPPED", 0)
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        return tmp_path / "large.onnx"

    @pytest.mark.parametrize("flow", ["levels", "batch"])
    def test_it_is_what_a_small_one_gives(self, path: Path, flow: Any) -> None:
        found = calibrate(path, data(), flow=flow)
        expected = calibrate(self.net(), data(), flow=flow)
        for one, other in zip(found.report.layers, expected.report.layers, strict=True):
            np.testing.assert_array_equal(one.old.mean, other.old.mean)
            np.testing.assert_array_equal(one.new.variance, other.new.variance)

    def test_its_digest_is_that_of_its_content(self, path: Path, tmp_path: Path) -> None:
        before = digest_of(load(path))
        (tmp_path / "other").mkdir()
        onnx.save(self.net(), tmp_path / "other" / "a.onnx", save_as_external_data=True, location="b", size_threshold=9)
        assert digest_of(load(tmp_path / "other" / "a.onnx")) == before
        content = bytearray((tmp_path / "large.data").read_bytes())
        content[-1] ^= 1
        (tmp_path / "large.data").write_bytes(content)
        assert digest_of(load(path)) != before


class TestNumbers:
    def test_a_mean_that_is_large_against_the_deviation(self) -> None:
        model = build(
            "(float[N,2] x) => (float[N,2] y) { y = BatchNormalization(x, p_scale, p_bias, p_mean, p_var) }",
            **batch_norm("p", 2),
        )
        batch = rng("x").normal(1e5, 0.1, (900, 2)).astype(np.float32)
        new = calibrate(model, [{"x": batch}]).report.layers[0].new
        np.testing.assert_allclose(new.variance, batch.astype(np.float64).var(0, ddof=1), rtol=1e-12)

    def test_float16_statistics_that_overflow_are_an_error(self) -> None:
        model = build(
            "(float[N,2] x) => (float[N,2] y) { y = BatchNormalization(x, p_scale, p_bias, p_mean, p_var) }",
            **batch_norm("p", 2) | {f"p_{kind}": np.ones(2, np.float16) for kind in ("mean", "var")},
        )
        batch = rng("x").normal(0, 1e3, (9, 2)).astype(np.float32)
        with pytest.raises(NormfuseError, match=r"'y': a variance of .* overflows FLOAT16"):
            calibrate(model, [{"x": batch}])

    @pytest.mark.parametrize(("scale", "what"), [(1e-5, "a variance of .*"), (3.0, "")])
    @pytest.mark.parametrize("epsilon", [1e-12, 1e-5])
    def test_float16_statistics_that_underflow_are_an_error(self, scale: float, what: str, epsilon: float) -> None:
        """σ² = 1e-10 is 0 in float16, which matters next to ε = 1e-12, not next to ε = 1e-5."""
        model = build(
            f"(float[N,2] x) => (float[N,2] y) {{ y = BatchNormalization<epsilon: float = {epsilon}>"
            "(x, p_scale, p_bias, p_mean, p_var) }",
            **batch_norm("p", 2) | {f"p_{kind}": np.ones(2, np.float16) for kind in ("mean", "var")},
        )
        batch = [{"x": rng("x").normal(0, scale, (9, 2)).astype(np.float32)}]
        if what and epsilon < 1e-9:
            with pytest.raises(NormfuseError, match=rf"'y': {what} underflows FLOAT16; scale the data, or store"):
                calibrate(model, batch)
        else:
            assert calibrate(model, batch).report.layers

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_what_is_not_finite_is_an_error(self, bad: float) -> None:
        batches = data()
        batches[1]["x"][0, 0, 0, 0] = bad
        with pytest.raises(NormfuseError, match="'b' reads NaN or infinities"):
            calibrate(net(), batches)

    def test_numbers_whose_squares_overflow_are_an_error(self) -> None:
        model = build(
            "(double[N,2] x) => (double[N,2] y) { y = BatchNormalization(x, p_scale, p_bias, p_mean, p_var) }",
            **batch_norm("p", 2, np.float64),
        )
        calibrate(model, [np.array([[1.0, 2.0], [3.0, 1e90]])])
        with pytest.raises(NormfuseError, match="'y' reads NaN or infinities"):
            calibrate(model, [np.array([[1.0, 2.0], [3.0, 1e200]])])

    def test_one_element_per_channel_is_an_error_of_the_mean(self) -> None:
        model = build(
            "(float[N,2] x) => (float[N,2] y) { y = BatchNormalization(x, p_scale, p_bias, p_mean, p_var) }",
            **batch_norm("p", 2),
        )
        single = [{"x": rng(str(index)).normal(1, 2, (1, 2)).astype(np.float32)} for index in range(3)]
        with pytest.raises(NormfuseError, match="one element per channel"):
            calibrate(model, single)
        with pytest.raises(NormfuseError, match="one element per channel"):
            calibrate(model, single, estimator="pooled", flow="batch")
        with pytest.raises(NormfuseError, match="one element per channel"):
            calibrate(model, single[:1], estimator="pooled")
        new = calibrate(model, single, estimator="pooled").report.layers[0].new
        every = np.concatenate([one["x"] for one in single]).astype(np.float64)
        np.testing.assert_allclose(new.variance, every.var(0, ddof=1), rtol=1e-12)

    @pytest.mark.parametrize("opset", [9, 13, 18])
    @pytest.mark.parametrize("rank", [2, 4])
    def test_a_batch_of_which_a_layer_reads_nothing(self, opset: int, rank: int) -> None:
        """Compress finds no rows: with `pooled` such a batch weighs nothing, of the mean over batches it is none."""
        shape = "N,4" + ",2,3" * (rank == 4)
        model = build(
            f"(float[{shape}] x, bool[N] c) => (float[M{shape[1:]}] y) {{ a = Compress<axis: int = 0>(x, c)"
            " b = BatchNormalization(a, p_scale, p_bias, p_mean, p_var) y = Relu(b) }",
            opset=opset,
            **batch_norm("p", 4),
        )
        x = [rng(str(i)).normal(1, 2, (6, 4, 2, 3)[:rank]).astype(np.float32) for i in range(3)]
        kept = (np.arange(6) < 3, np.zeros(6, bool), np.arange(6) > 1)
        batches = [{"x": one, "c": mask} for one, mask in zip(x, kept, strict=True)]
        report = calibrate(model, batches, estimator="pooled").report
        every = np.concatenate([flat(one[mask].astype(np.float64)) for one, mask in zip(x, kept, strict=True)])
        np.testing.assert_allclose(report.layers[0].new.mean, every.mean(0), rtol=1e-12)
        np.testing.assert_allclose(report.layers[0].new.variance, every.var(0, ddof=1), rtol=1e-12)
        with pytest.raises(NormfuseError, match="batch 1: BatchNormalization 'b' reads no elements; give larger"):
            calibrate(model, batches)
        with pytest.raises(NormfuseError, match="batch 1: BatchNormalization 'b' reads no elements"):
            calibrate(model, batches, estimator="pooled", flow="batch")

    def test_a_batch_that_is_to_blame_is_named(self, tmp_path: Path) -> None:
        for index, batch in enumerate(data()):
            batch["x"][0] *= np.float32(np.nan) if index == 2 else np.float32(1)
            np.savez(tmp_path / f"{index}.npz", allow_pickle=False, **batch)
        with pytest.raises(NormfuseError, match=r"2\.npz: BatchNormalization '[bg]' reads NaN"):
            calibrate(net(), tmp_path)

    @pytest.mark.parametrize("flow", ["levels", "batch"])
    def test_a_variance_and_an_epsilon_of_zero(self, flow: Any) -> None:
        """The model would divide by 0; so would what stands behind it while it is measured."""
        model = build(
            "(float[N,2] x) => (float[N,2] y) { a = BatchNormalization<epsilon: float = 0.0>(x, p_scale, p_bias,"
            " p_mean, p_var) y = BatchNormalization(a, q_scale, q_bias, q_mean, q_var) }",
            **batch_norm("p", 2),
            **batch_norm("q", 2),
        )
        batch = rng("x").normal(1, 2, (9, 2)).astype(np.float32)
        calibrate(model, [batch], flow="levels")
        batch[:, 1] = 3
        with pytest.raises(
            NormfuseError, match="'a': 1 channel is constant in the data and ε is 0, which divides by 0"
        ):
            calibrate(model, [batch], flow="levels")
        del model.graph.node[1]
        model.graph.node[0].output[0] = "y"
        with pytest.raises(NormfuseError, match="'a': 1 channel is constant in the data and ε is 0"):
            calibrate(model, [batch], flow=flow)

    def test_an_overflow_says_what_helps(self) -> None:
        model = build(
            "(float[N,2] x) => (float[N,2] y) { y = BatchNormalization(x, p_scale, p_bias, p_mean, p_var) }",
            **batch_norm("p", 2),
        )
        with pytest.raises(NormfuseError, match=r"a variance of .*e\+50 overflows FLOAT; scale the data$"):
            calibrate(model, [np.array([[1e24, 2e25], [3, 4]], np.float32)])

    def test_channels_that_are_constant_are_told(self) -> None:
        model = build(
            "(float[N,2] x) => (float[N,2] y) { y = BatchNormalization(x, p_scale, p_bias, p_mean, p_var) }",
            **batch_norm("p", 2),
        )
        batch = rng("x").normal(1, 2, (9, 2)).astype(np.float32)
        batch[:, 1] = 3
        report = calibrate(model, [{"x": batch}]).report
        assert report.layers[0].constant_channels == 1
        assert "1 channel of 'y' is constant in the data" in report.notes[0]

    def test_batches_whose_samples_are_alike_are_told(self) -> None:
        """One image in each batch: the variance between images is left out of the mean over batches."""
        model = build(
            "(float[1,2,8,8] x) => (float[1,2,8,8] y) { y = BatchNormalization(x, p_scale, p_bias, p_mean, p_var) }",
            **batch_norm("p", 2),
        )
        draw = rng("images")
        images = [
            (draw.normal(0, 1, (1, 2, 8, 8)) + draw.normal(0, 2, (1, 2, 1, 1))).astype(np.float32) for _ in range(9)
        ]
        report = calibrate(model, images).report
        assert "1 layer: the means of batches differ by more than chance" in report.notes[0]
        pooled = calibrate(model, images, estimator="pooled").report
        assert not pooled.notes
        assert report.layers[0].missing > 1
        assert report.layers[0].new.missing is not None
        np.testing.assert_allclose(
            report.layers[0].new.variance + report.layers[0].new.missing, pooled.layers[0].new.variance, rtol=0.2
        )


class TestReport:
    def test_old_and_new_statistics(self, result: Calibrated) -> None:
        prefixes = {"b": "p", "e": "q", "g": "r", "y": "s"}
        for layer in result.report.layers:
            prefix = prefixes[layer.name]
            old, new = stored(net(), prefix), stored(result.model, prefix)
            np.testing.assert_array_equal(layer.old.mean, old[0])
            np.testing.assert_array_equal(layer.new.variance.astype(np.float32), new[1])
            np.testing.assert_allclose(
                layer.drift, np.abs(new[0] - old[0]) / np.sqrt(new[1] + layer.epsilon), rtol=1e-5
            )
            np.testing.assert_allclose(layer.growth, (new[1] + layer.epsilon) / (old[1] + layer.epsilon), rtol=1e-5)

    def test_how_far_the_outputs_moved(self, result: Calibrated) -> None:
        old, new = (np.concatenate([values(m, b, ["y"])[0] for b in data()]) for m in (net(), result.model))
        (output,) = result.report.outputs
        assert output.name == "y"
        assert output.relative == pytest.approx(np.linalg.norm(new - old) / np.linalg.norm(old), rel=1e-5)
        assert output.largest == pytest.approx(np.abs(new - old).max(), rel=1e-4)

    def test_progress_is_told(self) -> None:
        told: list[tuple[str, float, float | None]] = []
        calibrate(net(), data(), progress=lambda *what: told.append(what))
        doing, done, total = told[-2]
        assert doing == "pass 3 of 3, batch 3 of 3"
        assert done == total
        assert sorted(told[:-1], key=lambda one: one[1]) == told[:-1]

    @pytest.mark.parametrize(
        ("setting", "reason"), [({"estimator": "median"}, "no estimator 'median'"), ({"flow": "x"}, "no flow 'x'")]
    )
    def test_an_unknown_setting(self, setting: Any, reason: str) -> None:
        with pytest.raises(NormfuseError, match=reason):
            calibrate(net(), data(), **setting)

    def test_no_batches(self) -> None:
        with pytest.raises(NormfuseError, match="there are no batches"):
            calibrate(net(), [])


class TestBatches:
    """What batches may be given as; `tests/test_batches.py` has files."""

    def test_a_generator_is_read_once(self, expected: onnx.ModelProto) -> None:
        drawn = 0

        def once() -> Iterator[dict[str, Array]]:
            nonlocal drawn
            for batch in data():
                drawn += 1
                yield batch

        assert calibrate(net(), once()).model == expected
        assert drawn == 3

    def test_a_calibration_data_reader(self, expected: onnx.ModelProto) -> None:
        class Reader:
            def __init__(self, rewinds: bool) -> None:
                self.left = iter(data())
                if rewinds:
                    self.rewind = self._rewind

            def get_next(self) -> dict[str, Array] | None:
                return next(self.left, None)

            def _rewind(self) -> None:
                self.left = iter(data())

        reader = Reader(True)
        assert calibrate(net(), reader).model == expected
        assert calibrate(net(), reader).model == expected  # it was left behind the third batch
        while reader.get_next() is not None:
            pass
        assert calibrate(net(), reader).model == expected
        assert calibrate(net(), Reader(False)).model == expected

    def test_arrays_alone_or_with_labels(self, expected: onnx.ModelProto) -> None:
        assert calibrate(net(), [batch["x"] for batch in data()]).model == expected
        assert calibrate(net(), [[batch["x"], np.arange(3)] for batch in data()]).model == expected

    def test_float64_is_rounded_and_extra_arrays_are_left_out(self, expected: onnx.ModelProto) -> None:
        given = [{"x": batch["x"].astype(np.float64), "labels": np.arange(2)} for batch in data()]
        assert calibrate(net(), given).model == expected

    @pytest.mark.parametrize(
        ("batch", "reason"),
        [
            ({"z": np.ones((2, 3, 6, 5), np.float32)}, "batch 1 has no array for input 'x', only z"),
            ({"x": np.ones((2, 3, 6, 5), np.int64)}, "input 'x' is float, the array int64"),
            ({"x": np.ones((2, 3, 6), np.float32)}, "4 dimensions, the array 3"),
            ({"x": np.ones((2, 4, 6, 5), np.float32)}, "axis 1 of input 'x' has size 3, that of the array 4"),
            ({"x": np.ones((0, 3, 6, 5), np.float32)}, "is empty"),
            ("a string", "batch 1 is a str; give a mapping"),
        ],
    )
    def test_what_does_not_fit_is_an_error(self, batch: Any, reason: str) -> None:
        with pytest.raises(NormfuseError, match=reason):
            calibrate(net(), [data()[0], batch])

    def test_lists_of_different_lengths(self) -> None:
        with pytest.raises(NormfuseError, match="batch 0: what is given for input 'x' is no array"):
            calibrate(net(), [{"x": [[1.0, 2.0], [3.0]]}])

    def test_tensors(self, expected: onnx.ModelProto) -> None:
        torch = pytest.importorskip("torch")
        tensors = [torch.from_numpy(batch["x"]).requires_grad_() for batch in data()]
        assert calibrate(net(), tensors).model == expected
        with pytest.raises(NormfuseError, match="'x' is float, the array bfloat16; convert it first"):
            calibrate(net(), [one.bfloat16() for one in tensors])

    def test_passes_of_fewer_batches(self) -> None:
        class Draining:
            left = 5

            def __iter__(self) -> Iterator[dict[str, Array]]:
                self.left -= 1
                yield from data()[: self.left - 1]

        with pytest.raises(NormfuseError, match="one pass had 3 batches, the next 2"):
            calibrate(net(), Draining())

    def test_what_can_be_read_only_once(self) -> None:
        class Once:
            left = iter(data())

            def __iter__(self) -> Iterator[dict[str, Array]]:
                yield from self.left

        with pytest.raises(NormfuseError, match="the batches can be read only once; give a list"):
            calibrate(net(), Once())

    def test_what_is_no_iterable(self) -> None:
        with pytest.raises(NormfuseError, match="a int holds no batches"):
            calibrate(net(), 3)


def test_a_cluster_without_dask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(NormfuseError, match=r"is not installed; run: pip install normfuse\[cluster\]"):
        calibrate(net(), data(), scheduler="local")


def test_the_bar_is_shown_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for stream, is_shown in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, "stderr", stream)
        with Bar("reading") as bar:
            bar.say("pass 1 of 2, batch 3 of 9", 3, 18)
        assert ("batch 3 of 9" in stream.getvalue()) == is_shown
        assert bool(stream.getvalue()) == is_shown

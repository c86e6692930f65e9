"""FOLD: the order of its strategies, what it leaves alone, and the places where it works."""

from typing import Any

import numpy as np
import onnx
import pytest

from normfuse.pipeline import optimize
from tests.parity import Array, batch_norm, build, fold, ops, reasons_of, refuse, rules_of

NORM = "BatchNormalization({}, n_scale, n_bias, n_mean, n_var)"
PADDED = "Conv<pads = [1, 1, 1, 1]>"


def positive(channels: int) -> dict[str, Any]:
    parameters = batch_norm("n", channels)
    return parameters | {"n_scale": np.abs(parameters["n_scale"])}


def scalar(number: float) -> Array:
    return np.array(number, np.float32)


class TestStrategies:
    """In the order in which they are tried."""

    def test_the_identity_goes(self) -> None:
        result = fold(build("(float[N,3] x) => (float[N,3] y) { h = Mul(x, one) y = Relu(h) }", one=scalar(1)))
        assert ops(result.model) == {"Relu": 1}
        assert result.report.changes[0].detail == "changes nothing"

    def test_maps_that_cancel_go(self) -> None:
        text = (
            "(float[N,3] x) => (float[N,3] y) { a = Mul(x, k) b = Add(a, t) c = Sub(b, t) d = Div(c, k) y = Relu(d) }"
        )
        assert ops(fold(build(text, k=scalar(4), t=scalar(8))).model) == {"Relu": 1}

    def test_an_identity_between_an_input_and_an_output_stays(self) -> None:
        model = build("(float[N,3] x) => (float[N,3] y) { y = Identity(x) }")
        assert ops(fold(model).model) == {"Identity": 1}

    def test_what_computes_the_data_is_asked_first(self) -> None:
        text = f"(float[N,3,8,8] x) => (float[N,5,4,4] y) {{ c = Conv(x, w) a = {NORM.format('c')} y = Conv(a, v) }}"
        result = fold(build(text, w=(4, 3, 3, 3), v=(5, 4, 3, 3), **batch_norm("n", 4)))
        assert ops(result.model) == {"Conv": 2}
        assert [change.into for change in result.report.changes] == [("c",)]

    def test_then_all_readers(self) -> None:
        text = (
            f"(float[N,3,8,8] x) => (float[N,5,6,6] y, float[N,2,8,8] z) {{ r = Relu(x) a = {NORM.format('r')} "
            "y = Conv(a, v) z = Conv(a, u) }"
        )
        result = fold(build(text, v=(5, 3, 3, 3), u=(2, 3, 1, 1), **batch_norm("n", 3)))
        assert ops(result.model) == {"Relu": 1, "Conv": 2}
        assert set(result.report.changes[0].into) == {"y", "z"}

    def test_of_two_readers_both_have_to_take_it(self) -> None:
        text = (
            f"(float[N,3,8,8] x) => (float[N,5,6,6] y, float[N,3,8,8] z) {{ r = Relu(x) a = {NORM.format('r')} "
            "y = Conv(a, v) z = Sigmoid(a) }"
        )
        refuse(build(text, v=(5, 3, 3, 3), **batch_norm("n", 3)), "no rule moves it from in front of Sigmoid 'z'")

    def test_then_the_scale_back_and_the_shift_ahead(self) -> None:
        text = (
            f"(float[N,3,8,8] x) => (float[N,4,6,6] y) {{ c = Conv(x, w) r = Relu(c) a = {NORM.format('r')} "
            "y = InstanceNormalization(a, g, b) }"
        )
        result = fold(build(text, w=(4, 3, 3, 3), g=(4,), b=(4,), **positive(4)))
        assert ops(result.model) == {"Conv": 1, "Relu": 1, "InstanceNormalization": 1}

    def test_then_the_shift_back_and_the_scale_ahead(self) -> None:
        text = (
            f"(float[N,3,8,8] x, float[N,4,6,6] z) => (float[N,5,6,6] y) {{ c = Conv(x, w) s = Add(c, z) "
            f"a = {NORM.format('s')} y = {PADDED}(a, v) }}"
        )
        result = fold(build(text, w=(4, 3, 3, 3), v=(5, 4, 3, 3), **batch_norm("n", 4)))
        assert ops(result.model) == {"Conv": 2, "Add": 1}

    def test_then_half_of_it_goes_where_that_removes_a_node(self) -> None:
        text = (
            f"(float[N,3,8,8] x) => (float[N,5,8,8] y) {{ r = Relu(x) m = Mul(r, k) a = Add(m, b) y = {PADDED}(a, v) }}"
        )
        result = fold(build(text, k=(3, 1, 1), b=(3, 1, 1), v=(5, 3, 3, 3)))
        assert ops(result.model) == {"Relu": 1, "Add": 1, "Conv": 1}

    def test_half_of_one_node_stays_with_it(self) -> None:
        text = f"(float[N,3,8,8] x) => (float[N,5,8,8] y) {{ r = Relu(x) a = {NORM.format('r')} y = {PADDED}(a, v) }}"
        refuse(build(text, v=(5, 3, 3, 3), **batch_norm("n", 3)), "shift crosses a zero-padded border")

    def test_a_norm_may_become_the_bias_of_a_product(self) -> None:
        text = (
            "(float[N,5,3] x) => (float[N,4,5] y) { c = MatMul(x, w) t = Transpose<perm = [0, 2, 1]>(c) "
            f"y = {NORM.format('t')} }}"
        )
        result = fold(build(text, w=(3, 4), **batch_norm("n", 4)))
        assert ops(result.model) == {"MatMul": 1, "Add": 1, "Transpose": 1}

    @pytest.mark.parametrize("tail", ["m = Mul(a, k) b = Add(m, t)", "m = Sub(t, a) b = Div(m, k)"])
    def test_then_the_chain_becomes_one_node(self, tail: str) -> None:
        text = f"(float[N,3,8,8] x) => (float[N,3,8,8] y) {{ a = {NORM.format('x')} {tail} y = Sigmoid(b) }}"
        result = fold(build(text, k=(3, 1, 1), t=(3, 1, 1), **batch_norm("n", 3)))
        assert ops(result.model) == {"BatchNormalization": 1, "Sigmoid": 1}
        assert "3 nodes became one" in result.report.changes[0].detail

    def test_a_scale_and_a_shift_that_no_one_takes_stay_two_nodes(self) -> None:
        text = "(float[N,3] x) => (float[N,3] y) { m = Mul(x, k) a = Add(m, t) y = Sigmoid(a) }"
        refuse(build(text, k=(3,), t=(3,)), "'x' is an input of the graph")


class TestLeftForTheRuntime:
    def test_gelu(self) -> None:
        text = (
            "(float[N,3] x) => (float[N,4] y) { c = MatMul(x, w) d = Div(c, root) e = Erf(d) f = Add(e, one) "
            "g = Mul(c, f) h = Mul(g, half) y = MatMul(h, v) }"
        )
        weights: dict[str, Any] = {"root": scalar(2**0.5), "one": scalar(1), "half": scalar(0.5)}
        model = build(text, w=(3, 5), v=(5, 4), **weights)
        result = fold(model)
        assert ops(result.model) == ops(model), rules_of(result)
        assert not result.report.changes

    def test_what_stands_around_a_gelu_folds(self) -> None:
        text = (
            "(float[N,3] x) => (float[N,4] y) { l = MatMul(x, w) c = Mul(l, s) d = Div(c, root) e = Erf(d) "
            "f = Add(e, one) g = Mul(c, f) h = Mul(g, half) i = Mul(h, t) y = MatMul(i, v) }"
        )
        weights: dict[str, Any] = {"root": scalar(2**0.5), "one": scalar(1), "half": scalar(0.5)}
        result = fold(build(text, w=(3, 5), v=(5, 4), s=(5,), t=(5,), **weights))
        assert ops(result.model) == {"MatMul": 2, "Div": 1, "Erf": 1, "Add": 1, "Mul": 2}, rules_of(result)

    def test_a_gelu_of_rounded_constants(self) -> None:
        text = (
            "(float[N,3] x) => (float[N,4] y) { c = MatMul(x, w) d = Div(c, root) e = Erf(d) f = Add(e, one) "
            "g = Mul(c, f) h = Mul(g, half) y = MatMul(h, v) }"
        )
        weights: dict[str, Any] = {"root": scalar(1.4142), "one": scalar(1), "half": scalar(0.5)}
        assert not fold(build(text, w=(3, 5), v=(5, 4), **weights)).report.changes

    def test_decomposed_layer_norm(self) -> None:
        text = (
            "(float[N,8] x) => (float[N,4] y) { m = ReduceMean(x, axes) d = Sub(x, m) s = Pow(d, two) "
            "v = ReduceMean(s, axes) e = Add(v, eps) r = Sqrt(e) z = Div(d, r) g = Mul(z, gamma) b = Add(g, beta) "
            "y = MatMul(b, w) }"
        )
        weights: dict[str, Any] = {"axes": np.array([-1]), "two": scalar(2), "eps": scalar(1e-5)}
        reason = "it is γ or β of a normalization that holds them at no cost"
        refuse(build(text, gamma=(8,), beta=(8,), w=(8, 4), **weights), reason)

    def test_the_same_nodes_fold_where_no_norm_stands_in_front(self) -> None:
        text = "(float[N,8] x) => (float[N,4] y) { z = Sqrt(x) g = Mul(z, gamma) b = Add(g, beta) y = MatMul(b, w) }"
        assert ops(fold(build(text, gamma=(8,), beta=(8,), w=(8, 4))).model) == {"Sqrt": 1, "Gemm": 1}


MODELS = {
    "norm behind": (f"(float[N,3,8,8] x) => (float[N,4,6,6] y) {{ c = Conv(x, w) y = {NORM.format('c')} }}", 4),
    "merged": (f"(float[N,3,8,8] x) => (float[N,3,8,8] y) {{ a = {NORM.format('x')} b = Neg(a) y = Exp(b) }}", 3),
    "half": (
        f"(float[N,3,8,8] x) => (float[N,4,8,8] y) {{ r = Relu(x) m = Mul(r, k) a = Add(m, k) y = {PADDED}(a, w) }}",
        3,
    ),
    "biased product": (
        "(float[N,5,3] x) => (float[N,4,5] y) { c = MatMul(x, v) t = Transpose<perm = [0, 2, 1]>(c) "
        f"y = {NORM.format('t')} }}",
        4,
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_optimizing_twice_changes_nothing(name: str) -> None:
    text, channels = MODELS[name]
    first = fold(build(text, w=(4, 3, 3, 3), k=(3, 1, 1), v=(3, 4), **batch_norm("n", channels)))
    assert rules_of(first)
    second = optimize(first.model, verify=False)
    assert not rules_of(second)
    assert second.model.graph == first.model.graph


class TestPlaces:
    def test_branches_of_an_if(self) -> None:
        text = (
            "(float[N,3] x, bool[] b) => (float[N,4] y) { y = If(b) <"
            "then_branch = t () => (float[N,4] p) { c = MatMul(x, w) p = Mul(c, k) }, "
            "else_branch = e () => (float[N,4] q) { q = MatMul(x, v) }> }"
        )
        assert ops(fold(build(text, w=(3, 4), v=(3, 4), k=(4,))).model) == {"If": 1, "MatMul": 2}

    def test_a_weight_that_another_branch_reads_is_copied(self) -> None:
        text = (
            "(float[N,3] x, bool[] b) => (float[N,4] y) { y = If(b) <"
            "then_branch = t () => (float[N,4] p) { c = MatMul(x, w) p = Mul(c, k) }, "
            "else_branch = e () => (float[N,4] q) { q = MatMul(x, w) }> }"
        )
        result = fold(build(text, w=(3, 4), k=(4,)))
        assert ops(result.model) == {"If": 1, "MatMul": 2}
        assert "copied weight 'w'" in result.report.changes[0].detail

    def test_data_that_another_branch_reads_keeps_the_map(self) -> None:
        text = (
            "(float[N,3] x, bool[] b) => (float[N,4] y) { c = MatMul(x, w) y = If(b) <"
            "then_branch = t () => (float[N,4] p) { s = Mul(c, k) p = Abs(s) }, "
            "else_branch = e () => (float[N,4] q) { q = Relu(c) }> }"
        )
        refuse(build(text, w=(3, 4), k=(4,)), "'c' is also read by Relu")

    @pytest.mark.parametrize("node", ["Identity(h)", "Mul(h, one)"])
    def test_a_branch_keeps_a_node_that_names_its_output(self, node: str) -> None:
        text = (
            "(float[N,3] x, bool[] b) => (float[N,3] y) { h = Relu(x) y = If(b) <"
            f"then_branch = t () => (float[N,3] p) {{ p = {node} }}, "
            "else_branch = e () => (float[N,3] q) { q = Abs(h) }> }"
        )
        model = build(text, one=np.ones(1, np.float32))
        assert ops(fold(model).model).total() == ops(model).total()

    def test_the_body_of_a_loop(self) -> None:
        text = (
            "(float[N,3] x, int64 n, bool go) => (float[N,3] y) { y = Loop(n, go, x) <"
            "body = l (int64 i, bool c, float[N,3] h) => (bool d, float[N,3] z) "
            "{ d = Identity(c) m = MatMul(h, w) s = Mul(m, k) z = Tanh(s) }> }"
        )
        result = fold(build(text, w=(3, 3), k=(3,)))
        assert ops(result.model) == {"Loop": 1, "Identity": 1, "MatMul": 1, "Tanh": 1}

    def test_a_function(self) -> None:
        block = (
            '<domain: "local", opset_import: ["" : 18]> block (x) => (y) { '
            "w = Constant <value = float[2,2,1] {1.0, 2.0, -3.0, 0.5}> () c = Conv(x, w) "
            "k = Constant <value_float = 3.0> () y = Mul(c, k) }"
        )
        text = "(float[N,2,5] x) => (float[N,2,5] y) { h = local.block(x) y = local.block(h) }"
        result = fold(build(text, imports={"local": 1}, functions=block))
        assert [node.op_type for node in result.model.functions[0].node if node.op_type != "Constant"] == ["Conv"]
        onnx.checker.check_model(result.model)


class TestRules:
    TEXT = f"(float[N,3,8,8] x) => (float[N,4,6,6] y) {{ c = Conv(x, w) y = {NORM.format('c')} }}"

    def test_a_rule_that_is_ignored_folds_nothing(self) -> None:
        model = build(self.TEXT, w=(4, 3, 3, 3), **batch_norm("n", 4))
        result = refuse(model, "no rule moves it from behind Conv 'c'", ignore=["conv-after"])
        assert not rules_of(result)

    def test_only_rules_that_are_selected_fold(self) -> None:
        model = build(self.TEXT, w=(4, 3, 3, 3), **batch_norm("n", 4))
        assert ops(fold(model, select=["batch-norm", "conv-after"]).model) == {"Conv": 1}
        assert ops(fold(model, select=["batch-norm", "gemm-after"]).model) == ops(model)

    def test_a_change_names_what_went_and_what_took_it(self) -> None:
        (change,) = fold(build(self.TEXT, w=(4, 3, 3, 3), **batch_norm("n", 4))).report.changes
        assert (change.rule, change.nodes, change.into) == ("conv-after", ("y",), ("c",))
        assert change.detail == "folded into Conv 'c'"

    def test_every_way_that_failed_is_said(self) -> None:
        text = f"(float[N,3,8,8] x) => (float[N,3,8,8] y) {{ s = Sigmoid(x) a = {NORM.format('s')} y = Tanh(a) }}"
        reasons = reasons_of(fold(build(text, **batch_norm("n", 3))))
        assert "no rule moves it from behind Sigmoid 's'" in reasons
        assert "no rule moves it from in front of Tanh 'y'" in reasons

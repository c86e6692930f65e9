"""prepare: what weights and known shapes determine is evaluated once, and who may set an initializer is respected."""

from typing import Any

import numpy as np
import onnx
import pytest

from normfuse.pipeline import optimize
from tests.parity import Case, batch_norm, build, case, fold, ops, reasons_of, rng, rules_of, weights_of

CONV = "(float[N,3,8,8] x) => (float[N,4,6,6] y)"


def weight(what: str, nodes: str, **weights: Any) -> Case:
    """A Conv whose weight v is computed from w (4, 3, 3, 3)."""
    return case(
        "constant",
        what,
        f"{CONV} {{ {nodes} y = Conv(x, v, b) }}",
        "Conv",
        **({"w": (4, 3, 3, 3), "b": (4,)} | weights),
    )


ONES, ZEROS = np.ones(4, np.float32), np.zeros(4, np.float32)
EVALUATED = [
    weight(
        "weight standardization",
        "m = ReduceMean(w, axes) d = Sub(w, m) q = Mul(d, d) var = ReduceMean(q, axes) e = Add(var, eps) s = Sqrt(e) "
        "n = Div(d, s) v = Mul(n, g)",
        axes=np.array([1, 2, 3]),
        eps=np.float32(1e-5),
        g=(4, 1, 1, 1),
    ),
    weight(
        "weight standardization by a batch norm in training mode",
        "r = Reshape(w, flat) n, m, var = BatchNormalization<training_mode=1, epsilon=0.001>(r, one, zero, zero, one) "
        "v = Reshape(n, back)",
        flat=np.array([1, 4, -1]),
        back=np.array([4, 3, 3, 3]),
        one=ONES,
        zero=ZEROS,
    ),
    weight(
        "weight norm",
        "n = ReduceL2(w, axes) d = Div(w, n) v = Mul(g, d)",
        axes=np.array([1, 2, 3]),
        g=(4, 1, 1, 1),
    ),
    weight(
        "spectral norm",
        "f = Reshape(w, flat) a = MatMul(f, r) s = MatMul(l, a) v = Div(w, s)",
        flat=np.array([4, 27]),
        r=(27,),
        l=(4,),
    ),
    weight(
        "a chain of layouts",
        "t = Transpose<perm=[3,2,0,1]>(w) i = Identity(t) v = Cast<to=1>(i)",
        w=rng("layouts").normal(size=(3, 3, 3, 4)),
    ),
    weight(
        "a weight of ones",
        "o = ConstantOfShape<value = float[1] {1.5}>(shape) v = Mul(w, o)",
        shape=np.array([4, 3, 3, 3]),
    ),
]


@pytest.mark.parametrize("item", EVALUATED, ids=str)
def test_what_weights_determine_is_evaluated(item: Case) -> None:
    item.assert_applies()


def test_a_norm_with_parameters_of_one_value_is_folded() -> None:
    model = build(
        f"{CONV} {{ c = Conv(x, w) one = ConstantOfShape<value = float[1] {{1.0}}>(shape) "
        "zero = ConstantOfShape(shape) y = BatchNormalization(c, one, zero, n_mean, n_var) }",
        w=(4, 3, 3, 3),
        shape=np.array([4]),
        **batch_norm("n", 4),
    )
    assert ops(fold(model).model) == {"Conv": 1}


def test_several_folds_into_one_weight_round_once() -> None:
    model = build(
        f"{CONV} {{ v = Mul(w, g) c = Conv(x, v) y = BatchNormalization(c, n_scale, n_bias, n_mean, n_var) }}",
        w=(4, 3, 3, 3),
        g=(4, 1, 1, 1),
        **batch_norm("n", 4),
    )
    given = {name: array.astype(np.float64) for name, array in weights_of(model).items()}
    scale = given["n_scale"] / np.sqrt(given["n_var"] + float(np.float32(1e-5)))
    exact = given["w"] * given["g"] * scale.reshape(4, 1, 1, 1)
    after = fold(model).model
    (conv,) = after.graph.node
    np.testing.assert_array_equal(weights_of(after)[conv.input[1]], exact.astype(np.float32))


def test_a_dequantized_weight_stays_quantized() -> None:
    model = build(
        f"{CONV} {{ v = DequantizeLinear(q, s, z) y = Conv(x, v) }}",
        q=rng("q").integers(-127, 127, (4, 3, 3, 3)).astype(np.int8),
        s=np.float32(0.02),
        z=np.int8(3),
    )
    after = fold(model).model
    assert ops(after) == {"DequantizeLinear": 1, "Conv": 1}
    assert weights_of(after)["q"].dtype == np.int8


@pytest.mark.parametrize(
    "random",
    ["RandomNormalLike(w)", "RandomUniform<shape=[4,3,3,3]>()", "Bernoulli(w)", "Dropout(w, ratio, on)"],
)
def test_what_is_random_is_not_evaluated(random: str) -> None:
    weights = rng("p").uniform(0.1, 0.9, (4, 3, 3, 3)).astype(np.float32)
    model = build(f"{CONV} {{ v = {random} y = Conv(x, v) }}", w=weights, ratio=np.float32(0.5), on=np.array(True))
    assert ops(optimize(model, verify=False).model) == ops(model)


def test_what_cannot_be_evaluated_does_not_keep_the_rest_from_it() -> None:
    model = build(
        f"{CONV} {{ r = Dropout(w, ratio, on) v = Mul(w, g) c = Conv(x, v) d = Conv(x, r) y = Add(c, d) }}",
        w=(4, 3, 3, 3),
        g=(4, 1, 1, 1),
        ratio=np.float32(0.5),
        on=np.array(True),
    )
    assert ops(optimize(model, verify=False).model) == {"Dropout": 1, "Conv": 2, "Add": 1}


def test_what_grows_large_is_not_evaluated() -> None:
    text = "(float[3000,3000] x) => (float[3000,3000] y) { e = Expand(k, shape) v = Exp(e) y = Add(x, v) }"
    model = build(text, k=(1, 1), shape=np.array([3000, 3000]))
    assert ops(optimize(model, verify=False).model)["Expand"] == 1


class TestFreeze:
    """Initializers that are listed as inputs of the graph."""

    NODES = f"{CONV} {{ c = Conv(x, w) y = BatchNormalization(c, n_scale, n_bias, n_mean, n_var) }}"

    def model(self, listed: bool, ir_version: int = 8) -> onnx.ModelProto:
        return build(self.NODES, opset=9, ir_version=ir_version, listed=listed, w=(4, 3, 3, 3), **batch_norm("n", 4))

    def some_listed(self) -> onnx.ModelProto:
        model = self.model(listed=False)
        model.graph.input.append(onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [4, 3, 3, 3]))
        return model

    @pytest.mark.parametrize("ir_version", [3, 4, 8])
    def test_all_listed_are_frozen(self, ir_version: int) -> None:
        result = fold(self.model(listed=True, ir_version=ir_version))
        assert ops(result.model) == {"Conv": 1}
        assert [value.name for value in result.model.graph.input] == ["x"]
        assert result.model.ir_version == max(ir_version, 4)
        assert rules_of(result) == {"freeze", "conv-after"}

    def test_some_listed_are_left(self) -> None:
        result = fold(self.some_listed())
        assert ops(result.model) == {"Conv": 1, "BatchNormalization": 1}
        assert [value.name for value in result.model.graph.input] == ["x", "w"]
        assert "freeze w: it is an input of the graph that a caller may set" in reasons_of(result)

    def test_some_listed_are_frozen_where_asked(self) -> None:
        result = fold(self.some_listed(), freeze=True)
        assert ops(result.model) == {"Conv": 1}
        assert [value.name for value in result.model.graph.input] == ["x"]

    @pytest.mark.parametrize("ir_version", [3, 8])
    def test_all_listed_are_left_where_asked(self, ir_version: int) -> None:
        model = self.model(listed=True, ir_version=ir_version)
        result = fold(model, freeze=False)
        assert ops(result.model) == ops(model)
        assert list(result.model.graph.input) == list(model.graph.input)
        assert result.model.ir_version == ir_version


class TestKnownShapes:
    """Reshapes to what is computed of shapes."""

    NODES = (
        "s = Shape(c) n = Gather(s, zero) u = Unsqueeze(n, zero) t = Concat<axis=0>(u, rest) r = Reshape(c, t) "
        "y = Mul(r, k)"
    )

    def model(self, batch: str) -> onnx.ModelProto:
        text = f"(float[{batch},3,8,8] x) => (float[{batch},4,36] y) {{ c = Conv(x, w) {self.NODES} }}"
        zero = np.array(0)
        model = build(text, w=(4, 3, 3, 3), k=(4, 1), zero=zero, rest=np.array([4, -1]))
        model.graph.node[3].input[1] = "axes"
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([0]), "axes"))
        return model

    @pytest.mark.parametrize("batch", ["2", "N"])
    def test_a_reshape_becomes_constant_and_carries(self, batch: str) -> None:
        result = fold(self.model(batch))
        assert ops(result.model) == {"Conv": 1, "Reshape": 1}
        assert {"known-shape", "conv-after"} <= rules_of(result)
        (reshape,) = (node for node in result.model.graph.node if node.op_type == "Reshape")
        shape = weights_of(result.model)[reshape.input[1]]
        assert list(shape) in ([2, 4, 36], [2, 4, -1]) if batch == "2" else list(shape) in ([0, 4, -1], [-1, 4, 36])

    def test_a_reshape_to_two_unknown_dimensions_stays_computed(self) -> None:
        text = (
            "(float[N,4,T] x) => (float[A,B,4] y) { r = Relu(x) s = Shape(r) i = Gather(s, order) "
            "t = Reshape(r, i) y = Exp(t) }"
        )
        result = fold(build(text, order=np.array([2, 0, 1])))
        assert ops(result.model) == {"Relu": 1, "Shape": 1, "Gather": 1, "Reshape": 1, "Exp": 1}

    def test_the_shape_of_an_input_with_known_dimensions(self) -> None:
        text = (
            "(float[2,4,6] x) => (float[2,4,6] y) { s = Shape(x) o = ConstantOfShape<value = float[1] {2.0}>(s) "
            "r = Relu(x) y = Mul(r, o) }"
        )
        assert ops(fold(build(text)).model) == {"Relu": 1, "Mul": 1}

    def test_a_shape_that_is_an_output_is_still_computed(self) -> None:
        text = "(float[2,4] x) => (float[2,4] y, int64[2] s) { y = Relu(x) s = Shape(y) }"
        assert ops(fold(build(text)).model) == {"Relu": 1, "Shape": 1}


BRANCHES = (
    "i = If (c) <then_branch = one () => (float[N,3] a) { a = Mul(x, w) },"
    " else_branch = other () => (float[N,3] b) { b = Sub(x, w) }>"
)


@pytest.mark.parametrize(("flag", "kept"), [(True, "Mul"), (False, "Sub")])
def test_a_branch_that_is_always_taken_takes_the_place_of_its_if(flag: bool, kept: str) -> None:
    text = f"(float[N,3] x) => (float[N,3] y) {{ {BRANCHES} y = Relu(i) }}"
    result = fold(build(text, w=(3,), c=np.array(flag)))
    assert ops(result.model) == {kept: 1, "Relu": 1}
    assert "known-branch" in rules_of(result)


def test_a_branch_that_gives_out_what_is_outside_is_a_copy() -> None:
    branches = BRANCHES.replace("a = Mul(x, w)", "a = Identity(x)")
    result = fold(build(f"(float[N,3] x) => (float[N,3] i) {{ {branches} }}", w=(3,), c=np.array([True])))
    assert ops(result.model) == {"Identity": 1}


def test_an_if_whose_condition_is_computed_stays() -> None:
    text = f"(float[N,3] x, bool c) => (float[N,3] y) {{ {BRANCHES} y = Relu(i) }}"
    result = fold(build(text, w=(3,)))
    assert ops(result.model)["If"] == 1
    assert "known-branch" not in rules_of(result)


@pytest.mark.parametrize(("flags", "kept"), [([True, True, True], "Mul"), ([False, False, False], "Tanh")])
def test_a_choice_that_is_always_the_same_is_what_it_takes(flags: list[bool], kept: str) -> None:
    text = "(float[N,3] x) => (float[N,3] y) { a = Mul(x, w) b = Tanh(x) i = Where(c, a, b) y = Relu(i) }"
    result = fold(build(text, w=(3,), c=np.array(flags)))
    assert ops(result.model) == {kept: 1, "Relu": 1}
    assert "known-branch" in rules_of(result)


@pytest.mark.parametrize(
    ("flags", "choice"),
    [([True, False, True], "Where(c, x, z)"), ([True] * 3, "Where(c, thin, x)"), ([[[True]]], "Where(c, x, z)")],
    ids=["both", "one that is broadcast", "a condition of higher rank"],
)
def test_a_choice_of_both_or_of_what_is_broadcast_stays(flags: list[bool], choice: str) -> None:
    text = f"(float[N,3] x, float[N,1] thin, float z) => (y) {{ i = {choice} y = Relu(i) }}"
    result = fold(build(text, c=np.array(flags)))
    assert ops(result.model)["Where"] == 1
    assert "known-branch" not in rules_of(result)

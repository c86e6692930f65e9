"""SOURCES: every spelling of an affine map is read as one, and what is none is left alone."""

from itertools import product
from typing import Any

import numpy as np
import pytest

from normfuse.passes.fold_rules import SOURCES
from normfuse.pipeline import optimize
from tests.parity import Case, batch_norm, build, case, fold, names, ops, reasons_of, refuse, rules_of

NORM = "n_scale, n_bias, n_mean, n_var"


def behind_conv(nodes: str, y: str = "N,4,6,6") -> str:
    """A model that computes c (N, 4, 6, 6) by a Conv with weight w (4, 3, 3, 3), then y by the nodes."""
    return f"(float[N,3,8,8] x) => (float[{y}] y) {{ c = Conv(x, w) {nodes} }}"


def conv_then(what: str, nodes: str, rule: str = "arithmetic", expected: str = "Conv", **weights: Any) -> Case:
    return case(rule, what, behind_conv(nodes), expected, "conv-after", w=(4, 3, 3, 3), **weights)


APPLIES = [
    *(
        conv_then(
            f"opset {opset}, epsilon {epsilon or 'by default'}",
            f"y = BatchNormalization{f'<epsilon={epsilon}, momentum=0.9>' if epsilon else ''}(c, {NORM})",
            "batch-norm",
            opset=opset,
            **batch_norm("n", 4),
        )
        for opset, epsilon in product((7, 8, 9, 13, 14, 15, 18, 22), ("", "0.01"))
    ),
    conv_then(
        "opset 6 at inference",
        f"y = BatchNormalization<is_test=1, epsilon=0.001>(c, {NORM})",
        "batch-norm",
        opset=6,
        **batch_norm("n", 4),
    ),
    conv_then(
        "spatial=1", f"y = BatchNormalization<spatial=1>(c, {NORM})", "batch-norm", opset=7, **batch_norm("n", 4)
    ),
    conv_then(
        "training_mode=0", f"y = BatchNormalization<training_mode=0>(c, {NORM})", "batch-norm", **batch_norm("n", 4)
    ),
    case(
        "batch-norm",
        "float16 with float32 statistics",
        f"(float16[N,3,8,8] x) => (float16[N,4,6,6] y) {{ c = Conv(x, w) y = BatchNormalization(c, {NORM}) }}",
        "Conv",
        "conv-after",
        opset=15,
        dtype=np.float16,
        w=(4, 3, 3, 3),
        **batch_norm("n", 4),
    ),
    case(
        "batch-norm",
        "two in a row",
        f"(float[N,4,5] x) => (float[N,4,5] y) {{ a = BatchNormalization(x, {NORM}) y = BatchNormalization(a, m_scale, "
        "m_bias, m_mean, m_var) }",
        "BatchNormalization",
        **batch_norm("n", 4),
        **batch_norm("m", 4),
    ),
    *(
        conv_then(f"{operator} {'left' if left else 'right'} {list(shape)}", text, k=shape)
        for operator, left, shape in product(
            ("Add", "Div", "Mul", "Sub"), (False, True), ((), (1,), (4, 1, 1), (1, 4, 1, 1), (1, 1, 1), (1, 1, 1, 1))
        )
        if not (operator == "Div" and left)
        for text in [f"y = {operator}({'k, c' if left else 'c, k'})"]
    ),
    *(
        case(
            "arithmetic",
            f"{operator} {list(shape)} behind a Transpose",
            "(float[N,3,8,8] x) => (float[N,6,6,4] y) { c = Conv(x, w) t = Transpose<perm=[0,2,3,1]>(c) "
            f"y = {operator}(t, k) }}",
            "Conv Transpose",
            "conv-after",
            w=(4, 3, 3, 3),
            k=shape,
        )
        for operator, shape in product(("Add", "Div", "Mul", "Sub"), ((4,), (1, 1, 1, 4), (1, 1, 4)))
    ),
    conv_then("a Sum of two", "y = Sum(c, k)", k=(4, 1, 1)),
    conv_then("Constant value", "k = Constant<value=float[4,1,1] {1.5, -2.0, 0.5, 3.0}>() y = Mul(c, k)"),
    conv_then("Constant value_float", "k = Constant<value_float=2.5>() y = Mul(c, k)"),
    conv_then("Constant value_floats", "k = Constant<value_floats=[0.4]>() y = Sub(k, c)"),
    conv_then("behind an Unsqueeze", "u = Unsqueeze(k, axes) y = Mul(c, u)", k=(4,), axes=np.array([1, 2])),
    conv_then("behind a Reshape", "u = Reshape(k, shape) y = Add(u, c)", k=(4,), shape=np.array([1, -1, 1, 1])),
    conv_then("behind a Cast", "u = Cast<to=1>(k) y = Mul(c, u)", k=np.array([[[1.1]], [[2.3]], [[-0.7]], [[0.2]]])),
    conv_then("behind an Identity", "u = Identity(k) y = Div(c, u)", k=(4, 1, 1)),
    conv_then("behind a Transpose", "u = Transpose<perm=[2,0,1]>(k) y = Sub(u, c)", k=(1, 1, 4)),
    conv_then(
        "frozen batch norm",
        "a = Add(n_var, e) b = Sqrt(a) r = Reciprocal(b) s = Mul(n_scale, r) p = Mul(n_mean, s) t = Sub(n_bias, p) "
        "u = Reshape(s, shape) v = Reshape(t, shape) q = Mul(c, u) y = Add(q, v)",
        e=np.float32(1e-5),
        shape=np.array([1, -1, 1, 1]),
        **batch_norm("n", 4),
    ),
    conv_then(
        "x · k + (b − m · k)",
        "p = Mul(m, k) q = Sub(b, p) r = Mul(c, k) y = Add(r, q)",
        k=(4, 1, 1),
        m=(4, 1, 1),
        b=(4, 1, 1),
    ),
    conv_then("Sub, Mul, Add", "d = Sub(c, m) s = Mul(d, k) y = Add(s, b)", m=(4, 1, 1), k=(4, 1, 1), b=(4, 1, 1)),
    case(
        "arithmetic",
        "layer scale",
        "(float[N,T,6] x) => (float[N,T,6] y) { a = MatMul(x, w) b = Add(a, bias) s = Mul(scale, b) y = Add(x, s) }",
        "MatMul Add Add",
        "matmul-after",
        w=(6, 6),
        bias=(6,),
        scale=(6,),
    ),
    case(
        "arithmetic",
        "three in a row",
        "(float[N,4,5] x) => (float[N,4,5] y) { a = Mul(x, k) b = Div(a, d) y = Mul(l, b) }",
        "Mul",
        k=(4, 1),
        d=(1,),
        l=(4, 1),
    ),
    conv_then("last", "y = Neg(c)", "negation"),
    conv_then("between", "a = Neg(c) b = Mul(a, k) y = Relu(b)", "negation", "Conv Relu", k=(4, 1, 1)),
    case(
        "negation", "of integers", "(int64[N] x) => (int64[N] y) { a = Neg(x) b = Identity(a) y = Abs(b) }", "Neg Abs"
    ),
    case("negation", "three of integers", "(int64[N] x) => (int64[N] y) { a = Neg(x) b = Neg(a) y = Neg(b) }", "Neg"),
    case("negation", "two in a row", "(float[N,4] x) => (float[N,4] y) { a = Neg(x) b = Neg(a) y = Relu(b) }", "Relu"),
    case(
        "identity",
        "in the middle",
        "(float[N,4] x) => (float[N,4] y) { a = Relu(x) b = Identity(a) y = Exp(b) }",
        "Relu Exp",
    ),
    case(
        "identity",
        "at the output",
        "(float[N,4] x) => (float[N,4] y) { a = Relu(x) y = Identity(a) }",
        "Relu",
    ),
    case(
        "identity",
        "Dropout",
        "(float[N,4] x) => (float[N,4] y) { a = Relu(x) b = Dropout(a, ratio) y = Exp(b) }",
        "Relu Exp",
        ratio=np.float32(0.5),
    ),
    case(
        "identity",
        "Dropout of opset 10",
        "(float[N,4] x) => (float[N,4] y) { a = Relu(x) b = Dropout<ratio=0.3>(a) y = Exp(b) }",
        "Relu Exp",
        opset=10,
    ),
    case(
        "identity",
        "Dropout with training_mode false",
        "(float[N,4] x) => (float[N,4] y) { a = Relu(x) b = Dropout(a, ratio, off) y = Exp(b) }",
        "Relu Exp",
        ratio=np.float32(0.5),
        off=np.array(False),
    ),
]

REFUSES = [
    conv_then(
        "training mode",
        f"y = BatchNormalization<training_mode=1>(c, {NORM})",
        "batch-norm",
        "training_mode=1",
        **batch_norm("n", 4),
    ),
    case(
        "batch-norm",
        "training mode with three outputs",
        "(float[N,3,8,8] x) => (float[N,4,6,6] y, float[4] m) { c = Conv(x, w) "
        f"y, m, v = BatchNormalization<training_mode=1>(c, {NORM}) }}",
        "training_mode=1",
        opset=15,
        w=(4, 3, 3, 3),
        **batch_norm("n", 4),
    ),
    conv_then(
        "five outputs at opset 9",
        f"y, m, v, sm, sv = BatchNormalization(c, {NORM})",
        "batch-norm",
        "outputs of training",
        opset=9,
        **batch_norm("n", 4),
    ),
    conv_then(
        "spatial=0",
        f"y = BatchNormalization<spatial=0>(c, {NORM})",
        "batch-norm",
        "spatial=0",
        opset=7,
        **{name: np.abs(np.resize(array, (4, 6, 6))) for name, array in batch_norm("n", 7).items()},
    ),
    conv_then(
        "mean computed at run time",
        "m = ReduceMean<keepdims=0>(c, axes) y = BatchNormalization(c, n_scale, n_bias, m, n_var)",
        "batch-norm",
        "computed at run time",
        axes=np.array([0, 2, 3]),
        **batch_norm("n", 4),
    ),
    conv_then(
        "negative variance",
        f"y = BatchNormalization(c, {NORM})",
        "batch-norm",
        "infinite or not a number",
        **{**batch_norm("n", 4), "n_var": np.array([1, -2, 1, 1], np.float32)},
    ),
    conv_then("along two axes", "y = Mul(c, k)", expected="varies along more than one axis", k=(4, 6, 6)),
    conv_then("along the width", "y = Mul(c, k)", expected="the map varies along axis 3", k=(6,)),
    case(
        "arithmetic",
        "as many columns as channels",
        "(float[N,3,6,6] x) => (float[N,4,4,4] y) { c = Conv(x, w) y = Mul(c, k) }",
        "the map varies along axis 3, the channels are axis 1",
        w=(4, 3, 3, 3),
        k=(4,),
    ),
    case(
        "arithmetic",
        "as many samples as channels",
        "(float[4,3,6,6] x) => (float[4,4,4,4] y) { c = Conv(x, w) y = Mul(c, k) }",
        "the map varies along axis 0, the channels are axis 1",
        w=(4, 3, 3, 3),
        k=(4, 1, 1, 1),
    ),
    case(
        "arithmetic",
        "higher rank",
        "(float[N,3,8,8] x) => (float[1,N,4,6,6] y) { c = Conv(x, w) y = Mul(c, k) }",
        "more dimensions than the data",
        w=(4, 3, 3, 3),
        k=(1, 1, 1, 1, 1),
    ),
    case(
        "arithmetic",
        "one channel to four",
        "(float[N,3,8,8] x) => (float[N,4,6,6] y) { c = Conv(x, w) y = Mul(k, c) }",
        "broadcasts the data to more elements",
        w=(1, 3, 3, 3),
        k=(4, 1, 1),
    ),
    case(
        "arithmetic",
        "zeros that enlarge",
        "(float[N,3,8,8] x) => (float[3,4,6,6] y) { c = Conv(x, w) y = Add(c, k) }",
        "enlarges the data is not known",
        w=(4, 3, 3, 3),
        k=np.zeros((3, 1, 1, 1), np.float32),
    ),
    conv_then(
        "division by zero",
        "y = Div(c, k)",
        expected="divides by zero",
        k=np.array([[[1.0]], [[0.0]]], np.float32).repeat(2, 0),
    ),
    conv_then(
        "NaN",
        "y = Mul(c, k)",
        expected="infinite or not a number",
        k=np.array([[[2.0]], [[np.nan]]], np.float32).repeat(2, 0),
    ),
    conv_then("infinity", "y = Add(c, k)", expected="infinite or not a number", k=np.float32(np.inf)),
    case(
        "arithmetic",
        "an empty constant",
        "(float[N,0] x) => (float[N,0] y) { y = Add(x, k) }",
        "its constant is empty",
        k=(0,),
    ),
    case(
        "arithmetic",
        "division by next to nothing",
        "(double[N,3] x) => (double[N,3] y) { y = Div(x, k) }",
        "infinite or not a number",
        k=np.array([1, 1e-320, 2], np.float64),
    ),
    case(
        "negation",
        "between two Relu",
        "(float[N,4] x) => (float[N,4] y) { a = Relu(x) b = Neg(a) y = Relu(b) }",
        "a scale that is not positive does not pass a Relu",
    ),
    case(
        "identity",
        "Dropout that drops",
        "(float[N,4] x) => (float[N,4] y) { a = Relu(x) b = Dropout<seed=1>(a, ratio, on) y = Exp(b) }",
        "it drops values",
        ratio=np.float32(0.0),
        on=np.array(True),
    ),
    case(
        "identity",
        "Dropout whose mask is read",
        "(float[N,4] x) => (float[N,4] y, bool[N,4] m) { a = Relu(x) b, m = Dropout(a, ratio) y = Exp(b) }",
        "its mask is read",
        ratio=np.float32(0.5),
    ),
]


@pytest.mark.parametrize("item", APPLIES, ids=str)
def test_it_applies(item: Case) -> None:
    item.assert_applies()


@pytest.mark.parametrize("item", REFUSES, ids=str)
def test_it_refuses(item: Case) -> None:
    item.assert_refuses()


def test_every_row_is_tested() -> None:
    rows = {rule.name for rule in SOURCES}
    assert names(APPLIES) == rows
    assert names(REFUSES) == rows


def test_a_constant_divided_by_data_is_no_affine_map() -> None:
    result = fold(build(behind_conv("e = Exp(c) y = Div(k, e)"), w=(4, 3, 3, 3), k=(4, 1, 1)))
    assert ops(result.model) == {"Conv": 1, "Exp": 1, "Div": 1}
    assert not reasons_of(result)


def test_a_product_of_two_computed_values_is_no_affine_map() -> None:
    result = fold(build(behind_conv("e = Exp(c) y = Mul(c, e)"), w=(4, 3, 3, 3)))
    assert ops(result.model) == {"Conv": 1, "Exp": 1, "Mul": 1}
    assert not reasons_of(result)


@pytest.mark.parametrize("name", ["n_scale", "n_bias", "n_mean", "n_var"])
def test_a_parameter_that_a_caller_may_set_is_no_constant(name: str) -> None:
    model = build(behind_conv(f"y = BatchNormalization(c, {NORM})"), w=(4, 3, 3, 3), **batch_norm("n", 4))
    model.graph.input.add().CopyFrom(build(f"(float[4] {name}) => () {{}}").graph.input[0])
    refuse(model, f"its parameter {name!r} is an input of the graph that a caller may set")


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        (f"y = BatchNormalization(c, {NORM})", "is_test=0"),
        ("d = Dropout(c) y = Relu(d)", "is_test=0"),
        ("y = Mul<broadcast=1, axis=1>(c, k)", "rules of opset 6"),
    ],
)
def test_what_meant_something_else_at_opset_6_is_left_alone(nodes: str, reason: str) -> None:
    # neither ONNX Runtime nor the oracle runs these: no parity
    model = build(behind_conv(nodes), opset=6, w=(4, 3, 3, 3), k=(4,), **batch_norm("n", 4))
    result = optimize(model, verify=False)
    assert ops(result.model) == ops(model)
    assert reason in reasons_of(result)


def test_maps_of_opset_6_are_not_written_with_broadcasting() -> None:
    norm = {**batch_norm("n", 4), "n_bias": np.zeros(4, np.float32), "n_mean": np.zeros(4, np.float32)}
    text = f"(float[N,4,5] x) => (float[N,4,5] y) {{ a = Neg(x) y = BatchNormalization<is_test=1>(a, {NORM}) }}"
    result = fold(build(text, opset=6, **norm))
    assert ops(result.model) == {"BatchNormalization": 1}


@pytest.mark.parametrize("rank", [2, 3, 5])
def test_a_batch_norm_of_any_rank_maps_axis_1(rank: int) -> None:
    dims = ",".join(["N", "4", "3", "2", "5"][:rank])
    text = f"(float[{dims}] x) => (float[{dims}] y) {{ a = Mul(x, k) y = BatchNormalization(a, {NORM}) }}"
    result = fold(build(text, k=(4, *[1] * (rank - 2)), **batch_norm("n", 4)))
    assert ops(result.model) == {"BatchNormalization": 1}


def test_an_instance_norm_with_running_statistics_folds_through_its_reshapes() -> None:
    tiled: dict[str, Any] = {name: np.tile(array, 2) for name, array in batch_norm("n", 4).items()}
    model = build(
        "(float[2,3,8,8] x) => (float[2,4,6,6] y) { c = Conv(x, w) a = Reshape(c, flat) "
        f"b = BatchNormalization(a, {NORM}) y = Reshape(b, back) }}",
        w=(4, 3, 3, 3),
        flat=np.array([1, 8, 6, 6]),
        back=np.array([2, 4, 6, 6]),
        **tiled,
    )
    result = fold(model)
    assert "BatchNormalization" not in ops(result.model)
    assert "conv-after" in rules_of(result)

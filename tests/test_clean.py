"""clean: what nothing reads and what is there twice goes; what may differ from run to run stays."""

import numpy as np
import onnx_ir as ir

from normfuse.passes.clean import CleanPass
from tests.parity import build, fold, ops, weights_of


def test_nodes_that_nothing_reads_go() -> None:
    model = build("(float[N,3] x) => (float[N,3] y) { y = Relu(x) d = MatMul(x, w) e = Neg(d) }", w=(3, 3))
    result = fold(model)
    assert ops(result.model) == {"Relu": 1}
    assert not weights_of(result.model)


def test_equal_nodes_become_one() -> None:
    model = build("(float[N,3] x) => (float[N,3] y) { a = Sigmoid(x) b = Sigmoid(x) y = Sub(a, b) }")
    assert ops(fold(model).model) == {"Sigmoid": 1, "Sub": 1}


def test_equal_initializers_become_one() -> None:
    array = np.arange(9, dtype=np.float32).reshape(3, 3)
    model = build(
        "(float[N,3] x) => (float[N,3] y) { a = MatMul(x, v) b = Relu(a) y = MatMul(b, w) }", v=array, w=array
    )
    assert len(weights_of(fold(model).model)) == 1


def test_initializers_that_differ_in_shape_stay() -> None:
    model = build(
        "(float[N,3] x) => (float[N,3] y) { a = Pow(x, v) y = Max(a, w) }",
        v=np.full((1,), 2, np.float32),
        w=np.full((1, 1), 2, np.float32),
    )
    assert len(weights_of(fold(model).model)) == 2


def test_nodes_that_may_be_random_are_not_merged() -> None:
    text = "(float[N,3] x) => (float[N,3] y) { a = Bernoulli(x) b = Bernoulli(x) y = Sub(a, b) }"
    assert _cleaned(text)["Bernoulli"] == 2


def test_nodes_of_an_unknown_domain_are_not_merged() -> None:
    text = "(float[N,3] x) => (float[N,3] y) { a = custom.Sample(x) b = custom.Sample(x) y = Sub(a, b) }"
    assert _cleaned(text)["Sample"] == 2


def _cleaned(text: str) -> dict[str, int]:
    model = ir.from_proto(build(text, imports={"custom": 1}))
    CleanPass()(model)
    return ops(ir.to_proto(model))


def test_functions_that_nothing_calls_go() -> None:
    functions = '<domain: "local", opset_import: ["" : 18]> unused (x) => (y) { y = Relu(x) }'
    model = build("(float[N,3] x) => (float[N,3] y) { y = Neg(x) }", imports={"local": 1}, functions=functions)
    assert not fold(model).model.functions


def test_outputs_keep_their_names_and_order() -> None:
    text = "(float[N,3] x) => (float[N,3] b, float[N,3] a) { a = Sigmoid(x) b = Sigmoid(x) }"
    result = fold(build(text))
    assert [value.name for value in result.model.graph.output] == ["b", "a"]


def test_a_clean_model_is_not_modified() -> None:
    model = ir.from_proto(build("(float[N,3] x) => (float[N,3] y) { a = Relu(x) y = MatMul(a, w) }", w=(3, 3)))
    CleanPass()(model)
    assert not CleanPass()(model).modified

"""Models that once came out wrong: found by trying to break normfuse, kept so that they stay right."""

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime  # type: ignore[import-untyped]  # it has no annotations
import pytest
from onnx import TensorProto, helper, numpy_helper

import normfuse
from normfuse.errors import NormfuseError
from tests.parity import ops, reasons_of

FLOAT = TensorProto.FLOAT


def floats(values: Any) -> np.ndarray[Any, Any]:
    return np.asarray(values, np.float32)


def model(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, list[Any]],
    outputs: dict[str, list[Any] | None],
    functions: tuple[str, ...] = (),
    dtype: int = FLOAT,
    **weights: Any,
) -> onnx.ModelProto:
    """A model; each of `functions` is a model-local function exp(x) of that name, in the domain `local`."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, dtype, dims) for name, dims in inputs.items()],
        [helper.make_tensor_value_info(name, dtype, dims) for name, dims in outputs.items()],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    bodies = [
        helper.make_function("local", name, ["a"], ["b"], [helper.make_node("Exp", ["a"], ["b"])], opsets[:1], ["perm"])
        for name in functions
    ]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=bodies)


def run(proto: onnx.ModelProto, seed: int = 0) -> list[np.ndarray[Any, Any]]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(seed)
    feed = {entry.name: rng.standard_normal(entry.shape).astype(np.float32) for entry in session.get_inputs()}
    return [np.asarray(output) for output in session.run(None, feed)]


def assert_same(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Optimizes a model and asserts that it computes the same, shapes and infinities included."""
    result: onnx.ModelProto = normfuse.optimize(proto, verify=False).model
    onnx.checker.check_model(result, full_check=True)
    for before, after in zip(run(proto), run(result), strict=True):
        assert before.shape == after.shape
        np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-6)
    return result


N = helper.make_node
SEVEN = [N("Mul", ["ten", "seventh"], ["seven"])]
"""10 · 0.7 is 7 in float32 and less than 7 in float64."""


@pytest.mark.parametrize(
    ("name", "nodes"),
    [
        ("floor", [*SEVEN, N("Floor", ["seven"], ["k"]), N("Mul", ["x", "k"], ["y"])]),
        (
            "comparison",
            [*SEVEN, N("Equal", ["seven", "exact"], ["k"]), N("Where", ["k", "x", "zero"], ["y"])],
        ),
        ("overflow", [N("Exp", ["large"], ["e"]), N("Mul", ["e", "tiny"], ["k"]), N("Add", ["x", "k"], ["y"])]),
        (
            "narrow",
            [
                N("Cast", ["odd"], ["half"], to=TensorProto.FLOAT16),
                N("Cast", ["half"], ["k"], to=FLOAT),
                N("Add", ["x", "k"], ["y"]),
            ],
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_constants_are_evaluated_as_the_model_says(name: str, nodes: list[onnx.NodeProto]) -> None:
    weights = {"ten": 10.0, "seventh": 0.7, "exact": 7.0, "zero": 0.0, "large": 100.0, "tiny": 1e-30, "odd": 2049.0}
    used = {value for node in nodes for value in node.input}
    arrays: dict[str, Any] = {key: np.array([number], np.float32) for key, number in weights.items() if key in used}
    result = assert_same(model(nodes, {"x": [3]}, {"y": [3]}, **arrays))
    assert len(result.graph.node) <= len(nodes)


def test_a_size_that_is_rounded_down_stays() -> None:
    nodes = [
        N("Shape", ["x"], ["s"], start=2),
        N("Cast", ["s"], ["sf"], to=FLOAT),
        N("Mul", ["sf", "k"], ["m"]),
        N("Floor", ["m"], ["fl"]),
        N("Cast", ["fl"], ["si"], to=TensorProto.INT64),
        N("Shape", ["x"], ["s0"], end=2),
        N("Concat", ["s0", "si"], ["sz"], axis=0),
        N("Resize", ["x", "", "", "sz"], ["y"], mode="nearest"),
    ]
    result = assert_same(model(nodes, {"x": [1, 2, 10, 10]}, {"y": [1, 2, None, None]}, k=floats([0.7, 0.7])))
    assert ops(result) == {"Resize": 1}


@pytest.mark.parametrize(
    ("names", "nodes", "outputs", "weights"),
    [
        (
            ("Transpose",),
            [
                N("Transpose", ["x"], ["t"], domain="local", perm=[1, 0]),
                N("Transpose", ["t"], ["u"], perm=[1, 0]),
                N("Relu", ["u"], ["y"]),
            ],
            {"y": None},
            {},
        ),
        (
            ("Reshape",),
            [N("Reshape", ["x"], ["t"], domain="local"), N("Reshape", ["t", "s"], ["u"]), N("Relu", ["u"], ["y"])],
            {"y": None},
            {"s": np.array([9], np.int64)},
        ),
        (
            ("Size",),
            [
                N("MatMul", ["x", "w"], ["c"]),
                N("Mul", ["c", "k"], ["d"]),
                N("Size", ["c"], ["s"], domain="local"),
                N("Relu", ["d"], ["y"]),
            ],
            {"y": None, "s": None},
            {"w": floats([[1, 2], [3, 4], [5, 7]]), "k": floats([2, 3])},
        ),
    ],
    ids=["transpose", "reshape", "size"],
)
def test_an_operator_of_another_domain_is_not_the_one_of_that_name(
    names: tuple[str, ...], nodes: list[onnx.NodeProto], outputs: dict[str, None], weights: dict[str, Any]
) -> None:
    original = model(nodes, {"x": [3, 3]}, dict(outputs), names, **weights)
    result: onnx.ModelProto = normfuse.optimize(original, verify=False).model
    for before, after in zip(run(original), run(result), strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-5)


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT16, FLOAT])
@pytest.mark.parametrize("product", ["Mul", "MatMul"])
def test_a_scale_that_keeps_a_product_in_range_stays_in_front_of_it(dtype: int, product: str) -> None:
    kind = np.float16 if dtype == TensorProto.FLOAT16 else np.float32
    small = kind(1e-3 if dtype == TensorProto.FLOAT16 else 1e-20)
    nodes = [N("Mul", ["x", "k"], ["a"]), N(product, ["a", "b"], ["c"]), N("MatMul", ["c", "w"], ["y"])]
    sizes: dict[str, list[Any]] = {"x": [4, 4], "b": [4, 4]}
    original = model(nodes, sizes, {"y": [4, 3]}, dtype=dtype, k=small, w=np.full((4, 3), 0.5, kind))
    result = normfuse.optimize(original, verify=False)
    assert ops(result.model) == ops(original)
    assert "could overflow" in str(reasons_of(result))


def test_weights_without_elements_are_left_alone() -> None:
    empty = model(
        [N("Conv", ["x", "w"], ["c"]), N("Mul", ["c", "k"], ["y"])],
        {"x": [1, 2, 4, 4]},
        {"y": [1, 0, 4, 4]},
        w=np.zeros((0, 2, 1, 1), np.float32),
        k=floats(2),
    )
    part = model(
        [N("Sin", ["x"], ["s"]), N("Concat", ["s", "w"], ["c"], axis=1), N("Mul", ["c", "k"], ["y"])],
        {"x": [2, 3]},
        {"y": [2, 3]},
        w=np.zeros((2, 0), np.float32),
        k=floats([1, 2, 3]),
    )
    for original in (empty, part):
        result: onnx.ModelProto = normfuse.optimize(original, verify=False).model
        assert len(result.graph.node) <= len(original.graph.node)
    assert_same(part)


def test_the_doc_string_of_an_output_stays() -> None:
    original = model(
        [N("MatMul", ["x", "w"], ["c"]), N("Mul", ["c", "k"], ["y"])],
        {"x": [2, 3]},
        {"y": [2, 2]},
        w=floats([[1, 2], [3, 4], [5, 7]]),
        k=floats([2, 3]),
    )
    original.graph.output[0].doc_string = "what it means"
    original.graph.initializer[0].doc_string = "a weight"
    result: onnx.ModelProto = normfuse.optimize(original, verify=False).model
    assert ops(result) == {"MatMul": 1}
    assert result.graph.output[0].doc_string == "what it means"
    assert [tensor.doc_string for tensor in result.graph.initializer] == ["a weight"]


@pytest.mark.parametrize("shape", [[], [3]])
def test_both_branches_of_a_condition_are_probed(shape: list[int]) -> None:
    def choice(operator: str) -> onnx.ModelProto:
        nodes = [N("Relu", ["x"], ["a"]), N(operator, ["x"], ["b"]), N("Where", ["c", "a", "b"], ["y"])]
        proto = model(nodes, {"x": [2, 3]}, {"y": [2, 3]})
        proto.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, shape))
        return proto

    assert normfuse.verify(choice("Exp"), choice("Exp"), seeds=1).passed
    assert not normfuse.verify(choice("Exp"), choice("Sin"), seeds=1).passed


def test_a_result_of_bytes_can_be_saved(tmp_path: Any) -> None:
    original = model([N("Neg", ["x"], ["y"])], {"x": [2]}, {"y": [2]})
    result = normfuse.optimize(original.SerializeToString(), verify=False)
    assert isinstance(result.model, bytes)
    normfuse.save(result.model, tmp_path / "y.onnx")
    assert ops(onnx.load(tmp_path / "y.onnx")) == {"Neg": 1}


def test_a_shape_for_an_input_that_is_not_there_is_an_error() -> None:
    original = model([N("Neg", ["x"], ["y"])], {"x": ["n"]}, {"y": ["n"]})
    with pytest.raises(NormfuseError, match="no input 'z'"):
        normfuse.verify(original, original, shapes={"z": (2,)})


def test_rules_of_all_stages_can_be_ignored() -> None:
    nodes = [N("Cast", ["q"], ["w"], to=FLOAT), N("MatMul", ["x", "w"], ["y"])]
    original = model(nodes, {"x": [2, 3]}, {"y": [2, 2]}, q=np.ones((3, 2), np.int8))
    assert ops(normfuse.optimize(original, verify=False).model) == {"MatMul": 1}
    kept = normfuse.optimize(original, verify=False, ignore=["constant"]).model
    assert ops(kept) == {"Cast": 1, "MatMul": 1}


def test_a_rule_is_not_a_string_of_letters() -> None:
    original = model([N("Neg", ["x"], ["y"])], {"x": [2]}, {"y": [2]})
    with pytest.raises(NormfuseError, match="a list of names"):
        normfuse.optimize(original, verify=False, select="conv-after")


def test_negative_dimensions_are_unknown() -> None:
    original = model(
        [N("Mul", ["x", "k"], ["c"]), N("Relu", ["c"], ["y"])], {"x": [-1, 3]}, {"y": [-1, 3]}, k=floats([1, 2, 3])
    )
    (site,) = normfuse.inspect(original)
    assert "-1" not in str(site.to_dict())


def test_an_ir_model_is_not_changed() -> None:
    nodes = [N("MatMul", ["x", "w"], ["c"]), N("Mul", ["c", "k"], ["y"])]
    source = ir.from_proto(model(nodes, {"x": [2, 3]}, {"y": [2, 2]}, w=np.ones((3, 2), np.float32), k=floats([2, 3])))
    before = ir.to_proto(source).SerializeToString(deterministic=True)
    normfuse.optimize(source, verify=False)
    assert ir.to_proto(source).SerializeToString(deterministic=True) == before


@pytest.mark.parametrize(("allowzero", "left"), [(0, {"Reshape": 1}), (1, {"Concat": 1, "Reshape": 1, "Shape": 1})])
def test_a_shape_that_copies_the_batch_is_a_constant(allowzero: int, left: dict[str, int]) -> None:
    nodes = [
        N("Shape", ["x"], ["n"], start=0, end=1),
        N("Concat", ["n", "rest"], ["s"], axis=0),
        N("Reshape", ["x", "s"], ["y"], allowzero=allowzero),
    ]
    original = model(nodes, {"x": ["n", 2, 3]}, {"y": ["n", 6]}, rest=np.array([6], np.int64))
    result = normfuse.optimize(original)
    assert result.report.parity is not None
    assert result.report.parity.passed
    assert ops(result.model) == left


@pytest.mark.parametrize(("content", "status"), [(None, 2), (b"", 3), (b"not a model", 3)])
def test_bench_says_what_is_wrong_as_other_verbs_do(tmp_path: Any, content: bytes | None, status: int) -> None:
    from normfuse.bench import bench

    path = tmp_path / "a.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(NormfuseError) as caught:
        bench([path])
    assert caught.value.exit_status == status


def test_a_second_run_finds_nothing_to_do() -> None:
    nodes = [
        N("Reshape", ["x", "flat"], ["r"]),
        N("MatMul", ["r", "w"], ["m"]),
        N("Mul", ["m", "k"], ["s"]),
        N("Reshape", ["s", "back"], ["y"]),
    ]
    original = model(
        nodes,
        {"x": ["n", 2, 3]},
        {"y": ["n", 2, 2]},
        flat=np.array([-1, 3], np.int64),
        back=np.array([-1, 2, 2], np.int64),
        w=floats([[1, 2], [3, 4], [5, 7]]),
        k=floats([2, 3]),
    )
    first = normfuse.optimize(original, verify=False)
    assert first.report.changes
    assert normfuse.optimize(first.model, verify=False).report.changes == []

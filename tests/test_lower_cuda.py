"""What LOWER writes for CUDA: within the limits of its kernels, by the schemas of its operators, run where CUDA is."""

from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]  # it ships no types
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import (  # type: ignore[import-untyped]  # it ships no types
    get_all_operator_schema,
)

import normfuse
from normfuse.bench import bench
from normfuse.target import CUDA_OPSET, Target
from tests.lowered import Lowered, refusal_of
from tests.lowered_elsewhere import APPLIES, CHANNELS_LAST, NORM, PER_GROUP, SILU, TURN, TURN_BACK, added, last
from tests.parity import build, ops

ON_CUDA = [item for item in APPLIES if item.provider == "cuda"]
HAS_CUDA = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
TURNED = last(f"h = {TURN}(x) {NORM} {SILU} y = {TURN_BACK}(u)")
_WITHOUT_KERNEL = {"GroupNormalization", "MeanVarianceNormalization"}


def optimized(text: str, opset: int = 20, **weights: Any) -> normfuse.Result:
    return normfuse.optimize(build(text, opset=opset, **weights), "cuda", verify=False)


@pytest.mark.parametrize("item", ON_CUDA, ids=str)
def test_each_node_is_one_that_onnx_runtime_defines(item: Lowered) -> None:
    """Names of attributes, numbers of inputs and outputs, types; and shapes that onnx can follow."""
    model = optimized(item.text, item.opset, **item.weights).model
    if item.opset >= 17:  # below, LayerNormalization is one of ONNX Runtime's own operators
        onnx.checker.check_model(model)
    schemas = {(schema.domain, schema.name): schema for schema in get_all_operator_schema()}
    for node in model.graph.node:
        assert node.op_type not in _WITHOUT_KERNEL
        assert not any(one.name == "training_mode" and one.i for one in node.attribute)
        if node.domain != "com.microsoft":
            continue
        schema = schemas[node.domain, node.op_type]
        given = {attribute.name for attribute in node.attribute}
        assert given <= {one.name for one in schema.attributes.values()}
        assert {one.name for one in schema.attributes.values() if one.required} <= given
        assert "epsilon" in given, "the default of SkipLayerNormalization is 1e-12"
        assert schema.min_input <= len(node.input) <= schema.max_input
        assert len(node.output) <= schema.max_output


@pytest.mark.parametrize("item", ON_CUDA, ids=str)
def test_no_value_loses_its_name_or_gets_another_shape(item: Lowered) -> None:
    before = build(item.text, opset=item.opset, **item.weights)
    after = normfuse.optimize(before, "cuda", verify=False).model
    inferred = {info.name: info for info in onnx.shape_inference.infer_shapes(before).graph.value_info}
    assert list(after.graph.output) == list(before.graph.output)
    assert all(value for node in after.graph.node for value in node.output[:1])
    for info in after.graph.value_info:
        if info.name in inferred:
            assert info.type == inferred[info.name].type, info.name


def test_statistics_of_float16_have_a_scale_of_float32() -> None:
    model = optimized(TURNED.replace("float[", "float16["), w=np.array([0.5, 2.0], np.float16)).model
    assert ops(model) == Counter(["GroupNorm"])
    assert {tensor.data_type for tensor in model.graph.initializer} == {onnx.TensorProto.FLOAT}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (TURNED.replace("float[", "double["), "GroupNorm runs on float32 and float16"),
        (last(f"h = {TURN}(x) {NORM} y = {TURN_BACK}(n)", size=1028), "GroupNorm takes no groups of 514 channels"),
        (
            "(float[2,4,4,4,8] x) => (float[2,4,4,4,8] y) { h = Transpose<perm=[0,4,1,2,3]>(x) "
            f"{NORM} y = Transpose<perm=[0,2,3,4,1]>(n) }}",
            "GroupNorm runs on (N, H, W, C)",
        ),
        (TURNED.replace("Mul(n, s)", "Mul(h, s)"), "GroupNorm wants channels last, which would take more Transposes"),
    ],
    ids=["float64", "large groups", "three spatial axes", "a gate of another value"],
)
def test_limits_of_the_kernel(text: str, reason: str) -> None:
    model = build(text, opset=20, w=np.array([0.5, 2.0], np.float64 if "double" in text else np.float32))
    assert not {"GroupNorm", "SkipGroupNorm"} & ops(normfuse.optimize(model, "cuda", verify=False).model).keys()
    assert refusal_of(CHANNELS_LAST, model, Target("cuda", 1)) == reason


def test_silu_of_an_output_stays_outside() -> None:
    model = optimized(TURNED.replace("y)", "y, float[2,8,4,4] n)", 1), **PER_GROUP).model
    assert ops(model) == Counter(["GroupNorm", "Mul", "Sigmoid", "Transpose", "Transpose"])


def test_a_computed_scale_stays_outside_of_group_norm() -> None:
    text = f"(float[2,4,4,8] x, float[2] w) => (float[2,4,4,8] y) {{ h = {TURN}(x) {NORM} y = {TURN_BACK}(n) }}"
    assert "GroupNorm" not in ops(optimized(text).model)


@pytest.mark.parametrize(
    ("body", "outputs"),
    [
        ("a = Add(g, z) q = Mul(g, g) m = ReduceMean<axes=[-1]>(q) r = Sqrt(m) y = Div(g, r)", "y a"),
        ("q = Mul(g, g) m = ReduceMean<axes=[-1]>(q) r = Sqrt(m) y = Div(g, r)", "y g"),
    ],
    ids=["by another node", "as an output"],
)
def test_the_sum_is_given_to_who_reads_it(body: str, outputs: str) -> None:
    model = optimized(added(body, outputs), 17).model
    node = next(node for node in model.graph.node if node.op_type == "SkipSimplifiedLayerNormalization")
    assert list(node.output) == ["y", "", "", "g"]
    onnx.checker.check_model(model)


@pytest.mark.parametrize(
    "inputs",
    ["float[N,5,16] x, float[5,16] z", "float[1,5,16] x, float[N,5,16] z", "float16[N,5,16] x, float16[N,5,16] z"],
    ids=["lower rank", "another batch", "float16"],
)
def test_only_a_sum_of_equals_in_float32_is_joined(inputs: str) -> None:
    body = "g = Add(x, z) q = Mul(g, g) m = ReduceMean<axes=[-1]>(q) r = Sqrt(m) y = Div(g, r)"
    kind = inputs.split("[", 1)[0]
    result = optimized(f"({inputs}) => ({kind}[N,5,16] y) {{ {body} }}", 17)
    assert "SkipSimplifiedLayerNormalization" not in ops(result.model)


def test_the_command_proves_it_without_cuda_and_says_so(tmp_path: Any) -> None:
    from click.testing import CliRunner

    from normfuse.cli import main

    onnx.save(build(TURNED, opset=20, **PER_GROUP), tmp_path / "a.onnx")
    arguments = ["optimize", str(tmp_path / "a.onnx"), "-o", str(tmp_path / "b.onnx"), "--target", "cuda"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert ops(onnx.load(tmp_path / "b.onnx")) == Counter(["GroupNorm"])
    assert HAS_CUDA or "not run on CUDA" in done.output


@pytest.mark.cuda
@pytest.mark.skipif(not HAS_CUDA, reason="no CUDA here")
class TestOnCuda:
    """Sessions run with CUDA first, without TF32 and with nothing left to the CPU: see `normfuse.runtime.session`."""

    @pytest.mark.parametrize("item", [item for item in ON_CUDA if item.opset <= CUDA_OPSET], ids=str)
    def test_it_computes_the_same(self, item: Lowered) -> None:
        before = build(item.text, opset=item.opset, **item.weights)
        result = normfuse.optimize(before, "cuda")
        assert result.report.parity is not None
        assert result.report.parity.passed
        assert not any("candidate does not run on CUDA alone" in note for note in result.report.parity.notes)

    def test_its_speed_is_told(self) -> None:
        text = TURNED.replace("[2,4,4,8]", "[2,64,64,320]").replace("num_groups=2", "num_groups=32")
        before = build(text, opset=20, w=(32,))
        after = normfuse.optimize(before, "cuda", verify=False).model
        table = bench([before, after], provider="cuda", rounds=30)
        print(table)  # shown by pytest -s
        assert ops(after) == Counter(["GroupNorm"])
        assert [timing.ratio > 0 for timing in table.timings] == [True, True]

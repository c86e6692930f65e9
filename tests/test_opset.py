"""`--opset`: a model raised to another opset computes what it did, and keeps everything else that it holds."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from click.testing import CliRunner

import normfuse
from normfuse.cli import main
from normfuse.errors import ModelError, NormfuseError
from normfuse.model import load
from normfuse.passes.opset import OpsetPass
from tests.lowered import RMS, E, centred, rows
from tests.parity import build, ops, reasons_of, rules_of

SAME = "(float[2,6,4,4] x) => (float[2,6,4,4] y)"
DOUBLE = "(float[2,6,4,4] x) => (float[2,6,8,8] y)"
HALF = "(float[2,6,4,4] x) => (float[2,3,4,4] y)"
TWICE: dict[str, Any] = {"s": np.array([1, 1, 2, 2], np.float32)}
CONDITION = """{ q = com.microsoft.Gelu(x) r = f.centre(q) s = Softmax<axis=1>(r) c = ReduceMax<keepdims=0>(s)
    b = Greater(c, zero) y = If(b) <then_branch = one () => (float[2,6,4,4] t) { t = Softmax<axis=1>(s) },
    else_branch = other () => (float[2,6,4,4] e) { e = Identity(s) }> }"""
CENTRE = '<domain:"f", opset_import:["":11]> centre (a) => (b) { c = ReduceSum<axes=[-1]>(a) b = Sub(a, c) }'


@pytest.mark.parametrize(
    ("text", "before", "after", "expected", "weights"),
    [
        (f"{SAME} {{ y = Softmax<axis=1>(x) }}", 11, 21, "Flatten Reshape Softmax", {}),
        (f"{SAME} {{ y = Softmax<axis=3>(x) }}", 11, 21, "Softmax", {}),
        (f'{DOUBLE} {{ y = Upsample<mode="linear">(x, s) }}', 9, 18, "Resize", TWICE),
        (f'{DOUBLE} {{ y = Upsample<mode="linear">(x, s) }}', 9, 10, "Resize", TWICE),
        (f'{DOUBLE} {{ y = Resize<mode="linear">(x, s) }}', 10, 21, "Resize", TWICE),
        (f"{SAME} {{ y = GroupNormalization<num_groups=2>(x, w, w) }}", 18, 21, "GroupNormalization", {"w": (2,)}),
        (f"{SAME} {{ y = Hardmax<axis=3>(x) }}", 11, 13, "Hardmax", {}),
        (f"{SAME} {{ y = Dropout(x) }}", 7, 21, "Dropout", {}),
        (f"{SAME} {{ c = Clip<max=1.0>(x) y = Pad<pads=[0,0,0,0,0,0,0,0]>(c) }}", 7, 18, "Clip Pad", {}),
        (f"{HALF} {{ y, z = Split<axis=1>(x) }}", 11, 18, "Split", {}),
        (f"{HALF} {{ y = Slice<axes=[1], starts=[1], ends=[4]>(x) }}", 9, 21, "Slice", {}),
        (f"{SAME} {{ m = ReduceMean<axes=[1]>(x) y = Sub(x, m) }}", 13, 23, "ReduceMean Sub", {}),
        (f"{SAME} {{ y = Scatter(x, i, x) }}", 9, 21, "ScatterElements", {"i": np.zeros((2, 6, 4, 4), np.int64)}),
    ],
    ids=lambda value: None if isinstance(value, dict) else str(value),
)
def test_it_computes_the_same(text: str, before: int, after: int, expected: str, weights: dict[str, Any]) -> None:
    result = normfuse.optimize(build(text, opset=before, **weights), "portable", opset=after)
    assert result.report.parity is not None
    assert result.report.parity.passed
    assert ops(result.model) == Counter(expected.split())
    assert result.model.opset_import[0].version == after
    assert "opset" in rules_of(result)
    onnx.checker.check_model(result.model, full_check=True)


@pytest.mark.parametrize(
    ("text", "opset", "expected"),
    [
        (rows(f"{RMS} y = Mul(n, w)"), 23, "RMSNormalization"),
        (rows(centred("[-1]", "n = Div(d, r) g = Mul(n, w) y = Add(g, w)")), 17, "LayerNormalization"),
    ],
    ids=["RMSNorm", "LayerNorm"],
)
def test_a_norm_gets_the_operator_of_the_new_opset(text: str, opset: int, expected: str) -> None:
    result = normfuse.optimize(build(text, opset=13, w=(16,), **E), "portable", opset=opset)
    assert result.report.parity is not None
    assert result.report.parity.passed
    assert ops(result.model) == Counter([expected])
    onnx.checker.check_model(result.model, full_check=True)


def test_names_functions_subgraphs_metadata_and_other_domains_stay() -> None:
    imports = {"com.microsoft": 1, "f": 1}
    model = build(f"{SAME} {CONDITION}", opset=11, imports=imports, functions=CENTRE, zero=np.float32(0), ir_version=7)
    model.doc_string, model.producer_name, model.model_version = "text", "producer", 3
    model.metadata_props.add(key="author", value="somebody")
    model.graph.node[2].metadata_props.add(key="layer", value="softmax")
    model.graph.node[2].doc_string = "of all that follows"
    result = normfuse.optimize(model, "portable", opset=21)
    assert result.report.parity is not None
    assert result.report.parity.passed
    raised = result.model
    assert {entry.domain: entry.version for entry in raised.opset_import} == {"": 21, **imports}
    assert raised.ir_version == 10
    assert (raised.doc_string, raised.producer_name, raised.model_version) == ("text", "producer", 3)
    assert raised.metadata_props == model.metadata_props
    assert [function.name for function in raised.functions] == ["centre"]
    assert raised.functions[0].opset_import[0].version == 21
    by_name = {node.name: node for node in raised.graph.node}
    assert {"q", "r", "s", "c", "b", "y"} <= by_name.keys()
    assert by_name["s"].metadata_props == model.graph.node[2].metadata_props
    assert by_name["s"].doc_string == "of all that follows"
    assert by_name["c"].input[0] == "s"


def test_weights_in_other_files_stay_there(tmp_path: Path) -> None:
    model = build("(float[N,8] x) => (float[N,8] y) { a = MatMul(x, w) y = Softmax(a) }", opset=9, w=(8, 8))
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0, location="m.data")
    loaded = load(tmp_path / "m.onnx")
    assert OpsetPass(21)(loaded).modified
    assert isinstance(loaded.graph.initializers["w"].const_value, ir.ExternalTensor)


def test_the_models_own_opset_changes_nothing() -> None:
    loaded = load(build(f"{SAME} {{ y = Softmax(x) }}", opset=13))
    before = ir.to_proto(loaded).SerializeToString(deterministic=True)
    assert not OpsetPass(13)(loaded).modified
    assert ir.to_proto(loaded).SerializeToString(deterministic=True) == before


@pytest.mark.parametrize(
    ("text", "before", "after", "reason", "weights"),
    [
        ("(float[2] x, float[2] z) => (bool[2] y) { y = Less(x, z) }", 6, 13, "Less 'y' cannot be raised", {}),
        (f"{SAME} {{ y = Hardmax(x) }}", 11, 13, "Hardmax 'y' cannot be raised from opset 11", {}),
        (
            "(float[2,6,4,4] x, float[2] w) => (float[2,6,4,4] y) { y = GroupNormalization<num_groups=2>(x, w, w) }",
            18,
            21,
            "GroupNormalization 'y' cannot be raised from opset 18 to one above 20",
            {},
        ),
    ],
    ids=["no adapter", "another meaning", "a computed scale"],
)
def test_a_node_that_cannot_be_converted_is_named(
    text: str, before: int, after: int, reason: str, weights: dict[str, Any]
) -> None:
    with pytest.raises(ModelError, match=reason):
        normfuse.optimize(build(text, opset=before, **weights), "portable", opset=after)


def test_an_attribute_of_the_caller_is_not_converted() -> None:
    functions = '<domain:"f", opset_import:["":11]> sum <axes> (a) => (b) { b = ReduceSum<axes: ints = @axes>(a) }'
    text = "(float[2,6] x) => (float[2,1] y) { y = f.sum<axes=[1]>(x) }"
    with pytest.raises(ModelError, match="set by the caller of its function"):
        normfuse.optimize(build(text, opset=11, imports={"f": 1}, functions=functions), "portable", opset=13)


@pytest.mark.parametrize(
    ("opset", "target", "reason"),
    [
        (12, "cpu", "the model has opset 13, which can be raised but not lowered to 12"),
        (9999, "cpu", "upgrade onnx"),
        (22, "cuda", "above opset 21 ONNX Runtime runs InstanceNormalization and MaxPool on the CPU"),
    ],
)
def test_an_opset_that_makes_no_sense_is_a_usage_error(opset: int, target: str, reason: str) -> None:
    with pytest.raises(NormfuseError, match=reason) as caught:
        normfuse.optimize(build(f"{SAME} {{ y = Relu(x) }}", opset=13), target, opset=opset)
    assert caught.value.exit_status == 2


def test_what_cuda_lost_with_its_opset_is_named() -> None:
    pool = f"{SAME} {{ y = MaxPool<kernel_shape=[1,1]>(x) }}"
    for opset, target, said in ((22, "cuda", True), (21, "cuda", False), (22, "cpu", False)):
        reasons = reasons_of(normfuse.optimize(build(pool, opset=opset), target, verify=False))
        assert ("opset y: ONNX Runtime runs it on the CPU at opset 22" in reasons) is said


def test_the_command_raises_it_and_says_why_not(tmp_path: Path) -> None:
    onnx.save(build(f"{SAME} {{ y = Softmax(x) }}", opset=11), tmp_path / "a.onnx")
    onnx.save(build("(float[2] x) => (bool[2] y) { y = Less(x, x) }", opset=6, ir_version=3), tmp_path / "b.onnx")

    def run(name: str, opset: str) -> Any:
        arguments = ["optimize", str(tmp_path / name), "-o", str(tmp_path / "out.onnx"), "--opset", opset]
        return CliRunner().invoke(main, arguments)

    done = run("a.onnx", "21")
    assert (done.exit_code, "opset" in done.output) == (0, True), done.output
    assert onnx.load(tmp_path / "out.onnx").opset_import[0].version == 21
    assert run("a.onnx", "10").exit_code == 2
    assert run("b.onnx", "13").exit_code == 3

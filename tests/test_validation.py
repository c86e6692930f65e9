import os
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from normfuse.errors import ModelError
from normfuse.model import load, serialize
from normfuse.outline import Outline
from normfuse.validation import find_cycle, validate, validate_external

HEAD = '<ir_version: 8, opset_import: ["" : 17, "custom" : 1]>'


def model(body: str, head: str = HEAD) -> onnx.ModelProto:
    return onnx.parser.parse_model(f"{head} g {body}")


def fails(proto: onnx.ModelProto, *words: str) -> None:
    with pytest.raises(ModelError) as caught:
        validate(Outline.of_proto(proto))
    message = str(caught.value)
    assert "\n" not in message
    assert [word for word in words if word not in message] == []


def test_valid_model_is_in_order() -> None:
    assert validate(Outline.of_proto(model("(float[2] x) => (float[2] y) { t = Relu(x) y = Neg(t) }")))


def test_unordered_model_is_valid() -> None:
    assert not validate(Outline.of_proto(model("(float[2] x) => (float[2] y) { y = Neg(t) t = Relu(x) }")))


def test_undefined_value() -> None:
    fails(model("(float[2] x) => (float[2] y) { [n1] y = Add(x, ghost) }"), "'n1' (Add)", "'ghost'")


def test_undefined_output() -> None:
    fails(model("(float[2] x) => (float[2] z) { y = Relu(x) }"), "graph output 'z'")


@pytest.mark.parametrize(
    "body",
    [
        "(float[2] x) => (float[2] y) { y = Relu(x) y = Neg(x) }",
        "(float[2] x) => (float[2] x) { x = Relu(x) }",
        "(float[1] x) => (float[1] y) <float[1] y = {1.0}> { y = Relu(x) }",
        "(float[2] x, float[2] x) => (float[2] y) { y = Relu(x) }",
    ],
)
def test_defined_twice(body: str) -> None:
    fails(model(body), "defined twice")


def test_cycle_names_its_nodes() -> None:
    body = "(float[2] x) => (float[2] y) { [in] a = Add(x, c) [mid] b = Relu(a) [back] c = Neg(b) [out] y = Relu(b) }"
    fails(model(body), "cycle", "'in' (Add)", "'mid' (Relu)", "'back' (Neg)")


def test_cycle_through_a_subgraph() -> None:
    body = """(bool c, float[2] x) => (float[2] y) {
        [if] t = If(c) <then_branch = g1 () => (float[2] a) { a = Relu(u) },
                        else_branch = g2 () => (float[2] b) { b = Neg(x) }>
        [user] u = Relu(t)
        y = Identity(t)
    }"""
    fails(model(body), "cycle", "'if' (If)", "'user' (Relu)")


def test_subgraphs_see_outer_values_and_are_checked() -> None:
    body = """(bool c, float[2] x) => (float[2] y) {{
        t = Neg(x)
        y = If(c) <then_branch = g1 () => (float[2] a) {{ a = Relu({read}) }},
                   else_branch = g2 () => (float[2] b) {{ b = Neg(x) }}>
    }}"""
    assert validate(Outline.of_proto(model(body.format(read="t"))))
    fails(model(body.format(read="b")), "'b'", "Relu")


def test_subgraph_returns_outer_value() -> None:
    body = """(bool c, float[2] x) => (float[2] y) {
        y = If(c) <then_branch = g1 () => (float[2] x) { a = Relu(x) },
                   else_branch = g2 () => (float[2] b) { b = Neg(x) }>
    }"""
    fails(model(body), "'x'", "Identity")


def test_functions_are_checked_and_capture_nothing() -> None:
    function = '<domain: "custom", opset_import: ["" : 17]> f (a) => (b) {{ b = Add(a, {read}) }}'
    body = "(float[2] x) => (float[2] y) { y = custom.f(x) }"
    good = model(body + function.format(read="a"))
    assert validate(Outline.of_proto(good))
    fails(model(body + function.format(read="x")), "function 'f'", "'x'")


def test_recursive_functions() -> None:
    functions = (
        '<domain: "custom", opset_import: ["" : 17, "custom" : 1]> f (a) => (b) { b = custom.h(a) }'
        '<domain: "custom", opset_import: ["" : 17, "custom" : 1]> h (a) => (b) { b = custom.f(a) }'
    )
    fails(model("(float[2] x) => (float[2] y) { y = custom.f(x) }" + functions), "circle", "f", "h")


def test_unknown_operator_says_the_opset() -> None:
    fails(model("(float[2] x) => (float[2] y) { [n] y = Frobnicate(x) }"), "'n' (Frobnicate)", "opset 17")
    late = '<ir_version: 8, opset_import: ["" : 9]>'
    fails(model("(float[2] x) => (float[2] y) { y = HardSwish(x) }", late), "opset 14", "opset 9")


def test_custom_and_onnx_runtime_operators_pass() -> None:
    body = "(float[2] x, float[2] s) => (float[2] y) { t = custom.Any(x) y = SimplifiedLayerNormalization(t, s) }"
    assert validate(Outline.of_proto(model(body)))


@pytest.mark.parametrize(("opset", "word"), [(0, "does not exist"), (-3, "does not exist"), (9999, "upgrade onnx")])
def test_opsets_that_do_not_exist(opset: int, word: str) -> None:
    proto = model("(float[2] x) => (float[2] y) { y = Relu(x) }")
    proto.opset_import[0].version = opset
    fails(proto, f"opset {opset}", word)


def test_opset_missing_or_contradictory() -> None:
    proto = model("(float[2] x) => (float[2] y) { y = Relu(x) }", '<ir_version: 8, opset_import: ["custom" : 1]>')
    fails(proto, "Relu", "no opset")
    proto = model("(float[2] x) => (float[2] y) { y = Relu(x) }")
    proto.opset_import.add(domain="ai.onnx", version=13)
    fails(proto, "17", "13")


def test_ir_versions_that_do_not_exist() -> None:
    proto = model("(float[2] x) => (float[2] y) { y = Relu(x) }")
    proto.ir_version = 9999
    fails(proto, "IR version 9999", "upgrade")
    proto.ClearField("ir_version")
    fails(proto, "no IR version")


def test_attribute_without_type() -> None:
    proto = model("(float[2] x) => (float[2] y) { y = LeakyRelu <alpha = 0.5> (x) }")
    proto.graph.node[0].attribute[0].ClearField("type")
    fails(proto, "'alpha'", "LeakyRelu")


def test_ir_models_have_the_same_outline() -> None:
    proto = model("""(bool c, float[2] x) => (float[2] y) <float[2] w = {1.0, 2.0}> {
        t = Mul(x, w)
        y = If(c) <then_branch = g1 () => (float[2] a) { a = Relu(t) },
                   else_branch = g2 () => (float[2] b) { b = Neg(x) }>
    }<domain: "custom", opset_import: ["" : 17]> f (a) => (b) { b = Relu(a) }""")
    assert Outline.of_ir(ir.from_proto(proto)) == Outline.of_proto(proto)


def test_find_cycle() -> None:
    assert find_cycle([[], [0], [0, 1]]) == []
    assert find_cycle([[0]]) == [0, 0]


def external(folder: Path, location: str, *, length: int | None = None, offset: int = 0) -> ir.ExternalTensor:
    return ir.ExternalTensor(
        location, offset, length, ir.DataType.FLOAT, shape=ir.Shape([4]), name="w", base_dir=str(folder)
    )


def test_external_data(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "w.bin").write_bytes(bytes(20))
    validate_external(external(tmp_path, "sub/w.bin", offset=4))
    cases = {
        "absent.bin": ("absent.bin", "16 bytes expected"),
        "sub": ("no file",),
        "../w.bin": ("outside the folder",),
        "sub/../../w.bin": ("outside the folder",),
        "/etc/hostname": ("outside the folder",),
    }
    for location, words in cases.items():
        with pytest.raises(ModelError) as caught:
            validate_external(external(tmp_path, location))
        assert [word for word in ("'w'", location, *words) if word not in str(caught.value)] == []
    with pytest.raises(ModelError, match="20 bytes where 24 are expected"):
        validate_external(external(tmp_path, "sub/w.bin", offset=8))
    with pytest.raises(ModelError, match="its shape needs 16"):
        validate_external(external(tmp_path, "sub/w.bin", length=12))


def test_external_data_behind_links(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(bytes(16))
    (folder / "symbolic").symlink_to(tmp_path / "secret")
    os.link(tmp_path / "secret", folder / "hard")
    with pytest.raises(ModelError, match="a link to"):
        validate_external(external(folder, "symbolic"))
    with pytest.raises(ModelError, match="hard links"):
        validate_external(external(folder, "hard"))


@pytest.mark.parametrize(
    ("dims", "raw"), [((4,), bytes(8)), ((-2,), bytes(8)), ((2**40,), bytes(8)), ((2, 2), b"")], ids=str
)
def test_tensor_that_contradicts_its_shape(dims: tuple[int, ...], raw: bytes) -> None:
    tensor = TensorProto(name="w", dims=dims, data_type=TensorProto.FLOAT, raw_data=raw)
    graph = helper.make_graph([], "g", [], [helper.make_tensor_value_info("w", 1, None)], [tensor])
    with pytest.raises(ModelError, match="tensor 'w'"):
        load(helper.make_model(graph, ir_version=8))


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT, TensorProto.INT4, TensorProto.STRING])
def test_tensor_without_data(dtype: int) -> None:
    tensor = TensorProto(name="w", dims=[3], data_type=dtype)
    graph = helper.make_graph([], "g", [], [helper.make_tensor_value_info("w", dtype, None)], [tensor])
    with pytest.raises(ModelError, match="tensor 'w'"):
        load(helper.make_model(graph, ir_version=10))


def refusal(data: bytes) -> str:
    try:
        serialize(load(data))
    except ModelError as error:
        return str(error)
    return ""


def test_damaged_bytes_raise_model_errors_only() -> None:
    weights = helper.make_tensor("w", TensorProto.FLOAT, [2], np.array([1.0, 2.0], np.float32))
    proto = model("(float[2] x) => (float[2] y) { t = Mul(x, w) y = If(c) <then_branch = g1 () => (float[2] a) { a = "
                  "Relu(t) }, else_branch = g2 () => (float[2] b) { b = Neg(t) }> }")  # fmt: skip
    proto.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    proto.graph.initializer.append(weights)
    data = proto.SerializeToString()
    rng = np.random.default_rng(7)
    refused = 0
    for _ in range(1000):
        damaged = bytearray(data)
        for at in rng.integers(len(data), size=rng.integers(1, 4)):
            damaged[at] = rng.integers(256)
        message = refusal(bytes(damaged[: rng.integers(1, len(data) + 1)] if rng.random() < 0.2 else damaged))
        assert "\n" not in message
        refused += bool(message)
    assert refused > 100

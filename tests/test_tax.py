"""normfuse.tax: what is taken out of a model, what stays, and that the rest still runs in the same shapes."""

from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import onnx_ir as ir
import pytest

from normfuse.bench import bench
from normfuse.model import load
from normfuse.tax import Untaxed, untaxed

HEAD = '<ir_version: 10, opset_import: ["" : 21]>'
CONSTANTS = {
    "w": (4, 4, 1, 1),
    "u": (4, 4),
    "k": (4, 1, 1),
    "v": (4,),
    "full": (4, 6, 6),
}


def model(body: str, kind: str = "float[N, 4, 6, 6]") -> onnx.ModelProto:
    """A model of x and y, both of one type, with the constants above where it reads them."""
    proto = onnx.parser.parse_model(f"{HEAD} g ({kind} x) => ({kind} y) {{ {body} }}")
    rng = np.random.default_rng(0)
    read = {name for node in proto.graph.node for name in node.input}
    for name, shape in CONSTANTS.items():
        if name in read:
            array = rng.uniform(0.5, 2, shape).astype(np.float32)
            proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return proto


def operators(result: Untaxed) -> list[str]:
    return [node.op_type for node in result.model.graph]


@pytest.mark.parametrize(
    ("body", "left", "norms", "affines"),
    [
        ("a = Conv (x, w) n = BatchNormalization (a, v, v, v, v) y = Relu (n)", ["Conv", "Relu"], 1, 0),
        ("n = InstanceNormalization (x, v, v) y = Relu (n)", ["Relu"], 1, 0),
        ("n = GroupNormalization <num_groups = 2> (x, v, v) y = Relu (n)", ["Relu"], 1, 0),
        ("n = LRN <size = 3> (x) y = Relu (n)", ["Relu"], 1, 0),
        ("a = Conv (x, w) m = Mul (a, k) b = Add (m, k) y = Relu (b)", ["Conv", "Relu"], 0, 2),
        ("a = Conv (x, w) b = Add (a, k) y = Relu (b)", ["Conv", "Add", "Relu"], 0, 0),
        ("y = InstanceNormalization (x, v, v)", ["Identity"], 1, 0),
        ("a = Relu (x) y = InstanceNormalization (a, v, v)", ["Relu", "Identity"], 1, 0),
        ("a = Mul (x, full) y = Relu (a)", ["Mul", "Relu"], 0, 0),
        (
            """ax = Constant <value_ints = [2, 3]> () e = Constant <value_float = 0.001> ()
            two = Constant <value_float = 2.0> ()
            mu = ReduceMean (x, ax) d = Sub (x, mu) p = Pow (d, two) q = ReduceMean (p, ax) r = Add (q, e) s = Sqrt (r)
            n = Div (d, s) g = Mul (n, k) b = Add (g, k) y = Relu (b)""",
            ["Relu"],
            1,
            2,
        ),
    ],
)
def test_what_is_taken_out(body: str, left: list[str], norms: int, affines: int) -> None:
    proto = model(body)
    result = untaxed(load(proto))
    assert operators(result) == left
    assert (result.norms, result.affines) == (norms, affines)
    onnx.checker.check_model(ir.to_proto(result.model), full_check=True)
    assert [node.op_type for node in load(proto).graph] == [node.op_type for node in proto.graph.node]


def test_what_only_computes_γ_goes_with_it() -> None:
    body = "p = GlobalAveragePool (x) s = Conv (p, w) n = LRN <size = 3> (x) y = Relu (n)"
    assert operators(untaxed(load(model(body)))) == ["Relu"]


def test_an_activation_stays_whole() -> None:
    body = """three = Constant <value_float = 3.0> () zero = Constant <value_float = 0.0> ()
        six = Constant <value_float = 6.0> () c = Conv (x, w) a = Add (c, three) l = Clip (a, zero, six)
        m = Mul (c, l) d = Div (m, six) y = Conv (d, w)"""
    result = untaxed(load(model(body)))
    assert operators(result) == ["Conv", "Add", "Clip", "Mul", "Div", "Conv"]
    assert result.affines == 0


def test_the_bias_of_a_product_is_no_affine_map_of_its_own() -> None:
    body = "a = MatMul (x, u) b = Add (a, v) n = LayerNormalization (b, v, v) y = Add (n, v)"
    result = untaxed(load(model(body, "float[N, 3, 4]")))
    assert operators(result) == ["MatMul", "Add", "Identity"]
    assert (result.norms, result.affines) == (1, 1)


def test_a_normalization_that_fused_an_add_stays() -> None:
    proto = model("a = com.microsoft.SkipLayerNormalization (x, x, v, v) y = Relu (a)", "float[N, 3, 4]")
    proto.opset_import.add(domain="com.microsoft", version=1)
    assert operators(untaxed(load(proto))) == ["SkipLayerNormalization", "Relu"]


def test_bench_tells_the_tax_of_a_model_with_external_data_and_dynamic_dimensions(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    path = tmp_path / "net.onnx"
    onnx.save(
        model("a = Conv (x, w) n = InstanceNormalization (a, v, v) m = Mul (n, k) y = Conv (m, w)"),
        path,
        save_as_external_data=True,
        size_threshold=0,
        location="net.data",
    )
    (timing,) = bench([path], threads=1, rounds=6, seconds=0.2, tax=True).timings
    assert timing.name == "net.onnx"
    assert timing.tax is not None
    assert (timing.tax.norms, timing.tax.affines) == (1, 1)
    assert timing.tax.interval[0] <= timing.tax.share <= timing.tax.interval[1] < 1


def test_a_normalization_of_unknown_rank_is_taken_out_too() -> None:
    proto = model("n = LayerNormalization (x, v, v) m = Mul (n, k) y = Relu (m)")
    for value in (proto.graph.input[0], proto.graph.output[0]):
        value.type.tensor_type.ClearField("shape")
    result = untaxed(load(proto))
    assert operators(result) == ["Mul", "Relu"]
    assert (result.norms, result.affines) == (1, 0)

"""The oracle against ONNX Runtime on the operators it computes by itself, and against laws elsewhere."""

import math
import time
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime  # type: ignore[import-untyped]  # it ships no types
import pytest

from normfuse.kernels import KERNELS
from normfuse.oracle import Oracle, OracleError
from normfuse.runtime import session

RNG_SEED = 7


def parse(body: str, opset: int = 18, extra: str = "") -> ir.Model:
    return ir.from_onnx_text(f'<ir_version: 8, opset_import: ["" : {opset}, "com.microsoft" : 1]>\n{body}\n{extra}')


def draw(shape: tuple[int, ...], seed: int = RNG_SEED) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def agree(model: ir.Model, tolerance: float = 2e-6, **inputs: Any) -> dict[str, Any]:
    """Asserts that oracle and runtime agree on shapes and, in float32, on values; returns the oracle's."""
    truth = Oracle(model).run(inputs)
    native = session(ir.to_proto(model).SerializeToString(), "disabled").run(inputs)
    for name, y in native.items():
        assert truth[name].shape == y.shape
        if y.dtype.kind == "f":
            assert truth[name].dtype == np.float64
            assert np.linalg.norm(truth[name] - y) <= tolerance * (1e-3 + np.linalg.norm(truth[name]))
        else:
            assert truth[name].dtype == y.dtype
            np.testing.assert_array_equal(truth[name], y)
    return truth


@pytest.mark.parametrize("opset", [7, 9, 13, 14, 15])
def test_batch_normalization_uses_stored_statistics_whatever_momentum_says(opset: int) -> None:
    model = parse(
        "g (float[2,3,4] x, float[3] s, float[3] b, float[3] m, float[3] v) => (float[2,3,4] y)"
        " { y = BatchNormalization <momentum: float = 0.9, epsilon: float = 0.001> (x, s, b, m, v) }",
        opset,
    )
    s, b, m, v = draw((3,), 1), draw((3,), 2), draw((3,), 3), np.abs(draw((3,), 4)) + 0.1
    agree(model, x=draw((2, 3, 4)), s=s, b=b, m=m, v=v)


def test_batch_normalization_in_training_mode_uses_those_of_the_batch() -> None:
    model = parse(
        "g (float[4,3,5] x, float[3] s, float[3] b, float[3] m, float[3] v) => (float y, float rm, float rv)"
        " { y, rm, rv = BatchNormalization <training_mode: int = 1, momentum: float = 0.5> (x, s, b, m, v) }",
        15,
    )
    x, ones = draw((4, 3, 5)), np.ones(3, np.float32)
    out = Oracle(model).run({"x": x, "s": ones, "b": 0 * ones, "m": 0 * ones, "v": ones})
    np.testing.assert_allclose(out["y"].mean(axis=(0, 2)), 0, atol=1e-12)
    np.testing.assert_allclose(out["y"].std(axis=(0, 2)), 1, atol=1e-4)
    np.testing.assert_allclose(out["rm"], 0.5 * x.astype(np.float64).mean(axis=(0, 2)))


CONVOLUTIONS = {
    "plain": ((2, 3, 9, 8), (4, 3, 3, 3), "group = 1"),
    "strided, padded": ((1, 3, 9, 8), (4, 3, 3, 2), "strides = [2, 3], pads = [1, 0, 2, 1]"),
    "grouped, dilated": ((2, 4, 11, 9), (6, 2, 3, 3), "group = 2, dilations = [2, 1]"),
    "depthwise": ((1, 5, 7, 7), (5, 1, 3, 3), "group = 5, pads = [1, 1, 1, 1]"),
    "same upper": ((1, 2, 8, 7), (3, 2, 3, 2), 'auto_pad = "SAME_UPPER", strides = [2, 2]'),
    "same lower": ((1, 2, 8, 7), (3, 2, 2, 3), 'auto_pad = "SAME_LOWER", strides = [2, 2]'),
    "valid": ((1, 2, 8, 7), (3, 2, 2, 3), 'auto_pad = "VALID"'),
    "1-D": ((2, 3, 17), (4, 3, 5), "pads = [4, 0]"),
    "3-D": ((1, 2, 5, 6, 4), (3, 2, 2, 3, 2), "strides = [1, 2, 1]"),
}


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_conv(case: str) -> None:
    x, w, attributes = CONVOLUTIONS[case]
    model = parse(
        f"g (float{list(x)} x, float{list(w)} w, float[{w[0]}] b) => (float y) {{ y = Conv <{attributes}> (x, w, b) }}"
    )
    agree(model, x=draw(x), w=draw(w, 1), b=draw((w[0],), 2))


TRANSPOSED = {
    "plain": ((1, 3, 4, 5), (3, 2, 3, 3), "strides = [2, 2], pads = [1, 1, 1, 1]"),
    "output padding": ((2, 3, 4, 5), (3, 2, 3, 3), "strides = [2, 2], pads = [1, 1, 1, 1], output_padding = [1, 1]"),
    "grouped, dilated": ((1, 4, 4, 5), (4, 3, 2, 3), "group = 2, dilations = [2, 1], pads = [0, 1, 1, 0]"),
    "depthwise": ((2, 4, 4, 5), (4, 1, 2, 2), "group = 4, strides = [2, 2]"),
    "same upper": ((1, 2, 4, 5), (2, 3, 3, 3), 'auto_pad = "SAME_UPPER", strides = [2, 2]'),
    "same lower": ((1, 2, 4, 5), (2, 3, 3, 3), 'auto_pad = "SAME_LOWER", strides = [2, 2]'),
    "output shape": ((1, 2, 4, 5), (2, 3, 3, 3), "output_shape = [8, 10], strides = [2, 2]"),
    "1-D": ((2, 2, 6), (2, 3, 4), "strides = [3]"),
}


@pytest.mark.parametrize("case", TRANSPOSED)
def test_conv_transpose(case: str) -> None:
    x, w, attributes = TRANSPOSED[case]
    channels = w[1] * (int(attributes.split("group = ")[1][0]) if "group" in attributes else 1)
    model = parse(
        f"g (float{list(x)} x, float{list(w)} w, float[{channels}] b) => (float y)"
        f" {{ y = ConvTranspose <{attributes}> (x, w, b) }}"
    )
    agree(model, x=draw(x), w=draw(w, 1), b=draw((channels,), 2))


POOLS = [
    "kernel_shape = [3, 2]",
    "kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]",
    "kernel_shape = [3, 3], strides = [2, 2], ceil_mode = 1",
    "kernel_shape = [3, 3], strides = [2, 2], pads = [1, 0, 1, 1], ceil_mode = 1",
    "kernel_shape = [2, 2], strides = [3, 3], pads = [0, 0, 1, 1], ceil_mode = 1",
    'kernel_shape = [3, 2], strides = [2, 2], auto_pad = "SAME_UPPER"',
    'kernel_shape = [3, 2], strides = [2, 2], auto_pad = "SAME_LOWER"',
    "kernel_shape = [2, 2], dilations = [2, 3], strides = [1, 2]",
]


@pytest.mark.parametrize("attributes", POOLS)
@pytest.mark.parametrize("op", ["MaxPool", "AveragePool", "AveragePool with padding"])
def test_pools(op: str, attributes: str) -> None:
    name, _, padded = op.partition(" with ")
    extra = ", count_include_pad = 1" if padded else ""
    model = parse(f"g (float[2,3,10,9] x) => (float y) {{ y = {name} <{attributes}{extra}> (x) }}", 19)
    agree(model, x=draw((2, 3, 10, 9)))


def test_a_window_larger_than_the_input_stands_once() -> None:
    agree(
        parse("g (float[1,2,2,8] x) => (float y) { y = AveragePool <kernel_shape = [3, 2], strides = [3, 2]> (x) }"),
        x=draw((1, 2, 2, 8)),
    )


@pytest.mark.parametrize("spatial", [(9,), (6, 7), (3, 4, 5)])
def test_global_max_pool(spatial: tuple[int, ...]) -> None:
    dims = ",".join(map(str, (2, 3, *spatial)))
    agree(parse(f"g (float[{dims}] x) => (float y) {{ y = GlobalMaxPool (x) }}"), x=draw((2, 3, *spatial)))


@pytest.mark.parametrize(("rows", "axis"), [(1, 1), (3, 1), (2, 0), (1, -1)])
def test_gather_elements(rows: int, axis: int) -> None:
    index = np.random.default_rng(0).integers(-rows if axis == 0 else -5, rows if axis == 0 else 5, (rows, 4))
    model = parse(
        f"g (float[{rows},5] x, int64[{rows},4] i) => (float y) {{ y = GatherElements <axis = {axis}> (x, i) }}"
    )
    agree(model, x=draw((rows, 5)), i=index)


@pytest.mark.parametrize("depth", ["", "1"])
@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_one_hot(depth: str, axis: int) -> None:
    model = parse(
        f"g (int64[4] i, int64[{depth}] depth, float[2] values) => (float y)"
        f" {{ y = OneHot <axis = {axis}> (i, depth, values) }}"
    )
    places = np.full((1,) if depth else (), 5)
    agree(model, i=np.array([3, -1, 7, 0]), depth=places, values=np.array([-1.5, 2], np.float32))


def test_max_pool_indices() -> None:
    model = parse(
        "g (float[2,3,6,7] x) => (float y, int64 i) { y, i = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x) }"
    )
    agree(model, x=draw((2, 3, 6, 7)))


RESIZES = [
    'mode = "nearest", coordinate_transformation_mode = "asymmetric", nearest_mode = "floor"',
    'mode = "nearest"',
    'mode = "nearest", nearest_mode = "ceil", coordinate_transformation_mode = "align_corners"',
    'mode = "linear"',
    'mode = "linear", coordinate_transformation_mode = "align_corners"',
    'mode = "linear", coordinate_transformation_mode = "pytorch_half_pixel"',
    'mode = "cubic", cubic_coeff_a = -0.5',
    'mode = "cubic", exclude_outside = 1, coordinate_transformation_mode = "asymmetric"',
]


@pytest.mark.parametrize("attributes", RESIZES)
@pytest.mark.parametrize("scale", [2.0, 0.6, 1.7])
def test_resize(attributes: str, scale: float) -> None:
    model = parse(f"g (float[1,2,10,7] x, float[4] s) => (float y) {{ y = Resize <{attributes}> (x, , s) }}")
    agree(model, 1e-5, x=draw((1, 2, 10, 7)), s=np.array([1, 1, scale, scale], np.float32))


NORMALIZATIONS = {
    "LayerNormalization <axis = 1, epsilon = 0.01> (x, s, b)": (17, (3, 4, 5), (4, 5)),
    "InstanceNormalization <epsilon = 0.01> (x, s, b)": (17, (2, 3, 6), (3,)),
    "GroupNormalization <num_groups = 2, epsilon = 0.01> (x, s, b)": (21, (2, 4, 6), (4,)),
}


@pytest.mark.parametrize("node", NORMALIZATIONS)
def test_normalizations(node: str) -> None:
    opset, x, s = NORMALIZATIONS[node]
    model = parse(f"g (float{list(x)} x, float{list(s)} s, float{list(s)} b) => (float y) {{ y = {node} }}", opset)
    agree(model, 5e-6, x=draw(x), s=draw(s, 1), b=draw(s, 2))


SIMPLE = {
    "LRN <size = 3, alpha = 0.5, beta = 0.7, bias = 2.0> (x)": (13, (5, 4, 3, 3)),
    "LRN <size = 5> (x)": (13, (1, 7, 3, 3)),
    "MeanVarianceNormalization <axes = [0, 2, 3]> (x)": (13, (2, 3, 4, 5)),
    "LpNormalization <axis = 1, p = 2> (x)": (13, (2, 3, 4)),
    "Softmax (x)": (9, (2, 3, 4)),
    "Softmax <axis = 1> (x)": (13, (2, 3, 4)),
    "LogSoftmax (x)": (11, (2, 3, 4)),
    "HardSwish (x)": (14, (4, 40)),
    "HardSigmoid <alpha = 0.3> (x)": (14, (4, 40)),
    "Gelu (x)": (20, (4, 40)),
    'Gelu <approximate = "tanh"> (x)': (20, (4, 40)),
    "Mish (x)": (18, (4, 40)),
    "Erf (x)": (13, (4, 40)),
    "com.microsoft.QuickGelu <alpha = 1.5> (x)": (13, (4, 40)),
    "com.microsoft.Gelu (x)": (13, (4, 40)),
}


@pytest.mark.parametrize("node", SIMPLE)
def test_operators_of_one_input(node: str) -> None:
    opset, shape = SIMPLE[node]
    agree(parse(f"g (float{list(shape)} x) => (float y) {{ y = {node} }}", opset), 1e-5, x=draw(shape))


def test_rms_and_skip_normalizations() -> None:
    model = parse(
        "g (float[2,3,8] x, float[2,3,8] k, float[8] s, float[8] b) => (float y, float z, float w)"
        " { y = SimplifiedLayerNormalization <axis = -1, epsilon = 0.01, stash_type = 1> (x, s)\n"
        "   z = com.microsoft.SkipLayerNormalization <epsilon = 0.01> (x, k, s, b)\n"
        "   w = com.microsoft.SkipSimplifiedLayerNormalization <epsilon = 0.01> (x, k, s) }",
        17,
    )
    agree(model, 5e-6, x=draw((2, 3, 8)), k=draw((2, 3, 8), 1), s=draw((8,), 2), b=draw((8,), 3))


def test_fused_group_norms() -> None:
    """Against GroupNormalization with the channels moved, and the SiLU and the sum written out."""
    model = parse(
        "g (float[2,3,4,8] x, float[2,8] k, float[8] s, float[8] b) => (float y, float z, float w, float t)"
        " { y = com.microsoft.GroupNorm <groups = 2, activation = 1, epsilon = 0.01> (x, s, b)\n"
        "   z = com.microsoft.GroupNorm <groups = 4, activation = 0, channels_last = 0> (m, s, b)\n"
        "   m = Transpose <perm = [0, 3, 1, 2]> (x)\n"
        "   w, t = com.microsoft.SkipGroupNorm <groups = 2, activation = 0> (x, s, b, k) }",
        21,
    )
    plain = parse(
        "g (float[2,3,4,8] x, float[2,8] k, float[8] s, float[8] b, int64[4] to) =>"
        " (float y, float z, float w, float t)"
        " { m = Transpose <perm = [0, 3, 1, 2]> (x)\n"
        "   n = GroupNormalization <num_groups = 2, epsilon = 0.01> (m, s, b)\n"
        "   g = Sigmoid (n) a = Mul (n, g) y = Transpose <perm = [0, 2, 3, 1]> (a)\n"
        "   z = GroupNormalization <num_groups = 4> (m, s, b)\n"
        "   r = Reshape (k, to) t = Add (x, r) u = Transpose <perm = [0, 3, 1, 2]> (t)\n"
        "   v = GroupNormalization <num_groups = 2> (u, s, b) w = Transpose <perm = [0, 2, 3, 1]> (v) }",
        21,
    )
    inputs = {"x": draw((2, 3, 4, 8)), "k": draw((2, 8), 1), "s": draw((8,), 2), "b": draw((8,), 3)}
    model.graph.sort()
    ours, theirs = Oracle(model).run(inputs), Oracle(plain).run(inputs | {"to": np.array([2, 1, 1, 8])})
    for name, wanted in theirs.items():
        np.testing.assert_allclose(ours[name], wanted, rtol=1e-12, atol=1e-12, err_msg=name)


def test_fused_operators() -> None:
    model = parse(
        "g (float[1,2,5,5] x, float[3,2,3,3] w, float[3] b, float[4,6] a, float[5,6] c, float[6] d) =>"
        " (float y, float z, float v)"
        ' { y = com.microsoft.FusedConv <activation = "Relu", kernel_shape = [3, 3]> (x, w, b)\n'
        "   z = com.microsoft.FusedMatMul <transB = 1, alpha = 0.5> (a, c)\n"
        "   v = com.microsoft.BiasGelu (a, d) }",
        13,
    )
    agree(
        model,
        5e-6,
        x=draw((1, 2, 5, 5)),
        w=draw((3, 2, 3, 3), 1),
        b=draw((3,), 2),
        a=draw((4, 6)),
        c=draw((5, 6)),
        d=draw((6,)),
    )


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("op", ["LSTM", "GRU"])
def test_recurrent_layers(op: str, direction: str) -> None:
    d, h, gates = (2 if direction == "bidirectional" else 1), 4, {"LSTM": 4, "GRU": 3}[op]
    model = parse(
        f"g (float[5,2,3] x, float[{d},{gates * h},3] w, float[{d},{gates * h},{h}] r, float[{d},{2 * gates * h}] b,"
        " int32[2] n) => (float y, float last)"
        f' {{ y, last = {op} <hidden_size = {h}, direction = "{direction}"> (x, w, r, b, n) }}',
        14,
    )
    agree(
        model,
        x=draw((5, 2, 3)),
        w=draw((d, gates * h, 3), 1),
        r=draw((d, gates * h, h), 2),
        b=draw((d, 2 * gates * h), 3),
        n=np.array([5, 3], np.int32),
    )


def test_quantised_operators_keep_their_integers() -> None:
    model = parse(
        "g (float[3,8] x, uint8[8,4] w, float s, uint8 z) => (uint8 q, int32 p, float y)"
        " { q, qs, qz = DynamicQuantizeLinear (x)\n p = MatMulInteger (q, w, qz, z)\n y = DequantizeLinear (w, s, z) }",
        13,
    )
    w = np.random.default_rng(1).integers(0, 255, (8, 4), dtype=np.uint8)
    agree(model, x=draw((3, 8)), w=w, s=np.array(0.1, np.float32), z=np.array(128, np.uint8))


EVERYTHING = """
g (float16[2] x, bool c) => (float16[2] y) {
    a = Constant <value_float = 1.0> ()
    h = Cast <to = 10> (a)
    t = Add (x, h)
    u = If (c) <
        then_branch = one () => (float16[2] o)
            { e = Constant <value_float = 1.0> () f = Cast <to = 10> (e) o = Add (t, f) },
        else_branch = two () => (float16[2] p) { p = Identity (t) }
    >
    v = local.f (u)
    b = Constant <value_floats = [1.0, 1.0]> ()
    k = Cast <to = 10> (b)
    w = Add (v, k)
    s = Shape (x)
    n = ConstantOfShape (s)
    m = Cast <to = 10> (n)
    y = Add (w, m)
}
<domain: "local", opset_import: ["" : 18]>
f (x) => (y) { e = Constant <value_float = 1.0> () d = CastLike (e, x) y = Add (x, d) }
"""


def test_everything_is_upcast() -> None:
    """What float16 would lose survives constants in every form, casts, subgraphs and functions."""
    model = parse(EVERYTHING)
    model.opset_imports["local"] = 1
    oracle = Oracle(model)
    out = oracle.run({"x": np.array([1e-12, 2e-12]), "c": np.array(True)})
    np.testing.assert_allclose(out["y"] - 4, [1e-12, 2e-12], atol=1e-15)
    assert model.graph.inputs[0].dtype == ir.DataType.FLOAT16


def test_initializers_in_a_branch_of_a_function_are_upcast() -> None:
    model = parse("""g (float[2] x, bool c) => (float[2] y) { y = local.f (x, c) }
        <domain: "local", opset_import: ["" : 18]> f (x, c) => (y) {
            y = If (c) <then_branch = one () => (float[2] o) <float k = {1.0}> { o = Max (x, k) },
                        else_branch = two () => (float[2] p) { p = Neg (x) }>
        }""")
    model.opset_imports["local"] = 1
    out = Oracle(model).run({"x": np.array([1 + 1e-12, 0.0]), "c": np.array(True)})
    np.testing.assert_array_equal(out["y"], [1 + 1e-12, 1.0])


def test_intermediate_values_by_name() -> None:
    model = parse("g (float[2] x) => (float[2] y) { a = Neg (x)\n b = Exp (a)\n y = Neg (b) }")
    values = Oracle(model).run({"x": np.array([0, 1], np.float32)}, ["a", "b"])
    np.testing.assert_array_equal(values["a"], [0, -1])
    assert values["b"][1] == math.exp(-1)
    assert set(values) == {"a", "b"}


def test_errors_name_the_node() -> None:
    with pytest.raises(OracleError, match="RandomNormalLike"):
        Oracle(parse("g (float[2] x) => (float[2] y) { y = RandomNormalLike (x) }"))
    with pytest.raises(OracleError, match="Unheard"):
        Oracle(parse("g (float[2] x) => (float[2] y) { y = com.microsoft.Unheard (x) }"))
    with pytest.raises(OracleError, match="MatMul"):
        Oracle(parse("g (float[2] x, float[3] w) => (float y) { y = MatMul (x, w) }")).run(
            {"x": draw((2,)), "w": draw((3,))}
        )


def test_the_deadline_is_kept() -> None:
    model = parse("g (float[2] x) => (float[2] y) { y = Neg (x) }")
    with pytest.raises(OracleError, match="out of time"):
        Oracle(model).run({"x": draw((2,))}, deadline=time.perf_counter() - 1)


def test_every_kernel_replaces_an_operator_that_someone_defines() -> None:
    defined = {
        (kernel.domain, kernel.op_name) for kernel in onnxruntime.capi.onnxruntime_pybind11_state.get_all_opkernel_def()
    }
    without_kernel = {("", "GroupNormalization"), ("", "HardSwish"), ("", "Mish"), ("", "SkipLayerNormalization")}
    without_kernel |= {("com.microsoft", "GroupNorm"), ("com.microsoft", "SkipGroupNorm")}  # they are for CUDA
    assert set(KERNELS) - {("" if domain == "ai.onnx" else domain, name) for domain, name in defined} <= without_kernel


def test_bodies_of_functions_are_computed_by_the_same_kernels() -> None:
    """onnx's evaluator forgets them there, and a BatchNormalization with a momentum is in training mode to it."""
    model = parse(
        "g (float[2,3] x) => (float[2,3] y) <float[3] s = {1, 2, 3}, float[3] b = {0, 1, 0}, float[3] m = {5, 1, 2}, "
        "float[3] v = {2, 3, 4}> { y = local.outer(x, s, b, m, v) }"
        '<domain: "local", opset_import: ["": 13]> inner (i, s, b, m, v) => (o) '
        "{ o = BatchNormalization<momentum: float = 0.8>(i, s, b, m, v) }"
        '<domain: "local", opset_import: ["": 13, "local": 1]> outer (i, s, b, m, v) => (o) '
        "{ o = local.inner(i, s, b, m, v) }",
        opset=13,
    )
    model.opset_imports["local"] = 1
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    expected = (x - [5.0, 1, 2]) / np.sqrt(np.array([2.0, 3, 4]) + np.float64(np.float32(1e-5))) * [1, 2, 3] + [0, 1, 0]
    np.testing.assert_allclose(Oracle(model).run({"x": x})["y"], expected, rtol=1e-12)


@pytest.mark.parametrize("given", ["window", "length", "both"])
@pytest.mark.parametrize(
    ("shape", "onesided"), [((2, 60), 0), ((2, 60), 1), ((2, 60, 1), 0), ((2, 60, 1), 1), ((2, 60, 2), 0)]
)
def test_stft_of_real_and_complex_signals(shape: tuple[int, ...], given: str, onesided: int) -> None:
    names = {"window": "x, step, w", "length": "x, step, , n", "both": "x, step, w, n"}[given]
    model = parse(
        f"g (float[{','.join(map(str, shape))}] x, float[16] w) => (float y)"
        " { step = Constant <value_int = 5> () n = Constant <value_int = 16> ()"
        f" y = STFT <onesided: int = {onesided}> ({names}) }}"
    )
    agree(model, x=draw(shape), w=draw((16,), 3))

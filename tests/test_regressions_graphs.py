"""Models that once came out wrong: found by `scripts.soak` and made small, kept so that they stay right."""

from typing import Any

import numpy as np
import onnx
import pytest

import normfuse
from normfuse.model import load
from normfuse.oracle import Oracle
from normfuse.shaken import Shaken
from scripts.examination import _is_noise
from tests.parity import build, reasons_of

EPSILON: dict[str, Any] = {"e": np.float32(1e-3), "two": np.float32(2)}


def again(model: onnx.ModelProto, target: Any = "portable", **options: Any) -> normfuse.Result:
    """Optimizes a model with its proof, and asserts that a second run finds nothing."""
    result = normfuse.optimize(model, target, **options)
    assert result.report.parity is not None
    assert result.report.parity.passed
    changes = normfuse.optimize(result.model, target, verify=False).report.changes
    assert not changes, changes
    return result


def test_a_norm_that_shows_when_a_map_has_moved_is_found_at_once() -> None:
    """x · k + (β − m · k) of an x that is divided by a number: the division goes into the Conv first."""
    model = build(
        "(float[N,3,6,6] x) => (float[N,4,6,6] y) { c = Conv(x, w) d = Div(c, three) "
        "m = ReduceMean<axes=[2,3]>(d) s = Sub(d, m) q = Mul(s, s) v = ReduceMean<axes=[2,3]>(q) a = Add(v, e) "
        "r = Sqrt(a) i = Reciprocal(r) k = Mul(i, g) h = Mul(m, k) t = Sub(b, h) l = Mul(d, k) y = Add(l, t) }",
        opset=13,
        w=(4, 3, 1, 1),
        three=np.float32(3),
        g=(4, 1, 1),
        b=(4, 1, 1),
        **EPSILON,
    )
    result = again(model)
    assert [node.op_type for node in result.model.graph.node] == ["Conv", "InstanceNormalization"], reasons_of(result)


def test_an_output_of_a_subgraph_keeps_the_shape_that_it_states() -> None:
    """What a Loop gives has no shape that could be inferred; ONNX Runtime wants one for the output of a Scan's body."""
    model = build(
        "(float[N,4,5] x) => (float[N,4,5] y) { y = Scan<num_scan_inputs=1, "
        "body = step (float[4,5] s) => (float[4,5] o)"
        " { n = Constant<value_int=2>() l = Loop(n, , s) <body = turn (int64 i, bool p, float[4,5] a) => "
        "(bool q, float[4,5] r) { q = Identity(p) r = Sin(a) }> t = Add(l, s) o = Identity(t) }>(x) }"
    )
    result = again(model)
    (scan,) = result.model.graph.node
    (body,) = (attribute.g for attribute in scan.attribute if attribute.name == "body")
    assert [dim.dim_value for dim in body.output[0].type.tensor_type.shape.dim] == [4, 5]
    assert [node.op_type for node in body.node] == ["Loop", "Add"]


@pytest.mark.parametrize("target", ["cpu", "cuda", "portable"])
def test_the_map_behind_a_norm_stands_along_another_axis_than_its_channels(target: str) -> None:
    model = build(
        "(float[N,3,6,7] x) => (float[N,3,6,7] y) { i = InstanceNormalization(x, g, b) y = Add(i, k) }",
        g=(3,),
        b=(3,),
        k=(6, 1),
    )
    again(model, target)


def test_a_reader_that_nobody_reads_does_not_keep_a_map() -> None:
    model = build(
        "(float[N,4,5] x) => (float[N,4,6] y) { a = Mul(x, k) unread = Exp(a) y = MatMul(a, w) }", k=(4, 1), w=(5, 6)
    )
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.array(1.5, np.float32), "k"))
    result = again(model)
    assert [node.op_type for node in result.model.graph.node] == ["MatMul"]


def test_what_a_branch_states_of_its_output_is_known_when_it_has_taken_the_place_of_its_if() -> None:
    """Nothing tells the dimensions of what a Loop gives; without them a second run would not find the GELU."""
    turns = "n = Constant<value_int=2>() l = Loop(n, , x) <body = turn (int64 i, bool p, float[2,3] s) => "
    model = build(
        "(float[2,3] x) => (float[2,3] y) { t = If(yes) <then_branch = one () => (float[2,3] o) { "
        f"{turns} (bool q, float[2,3] r) {{ q = Identity(p) r = Sin(s) }}> o = Neg(l) }}, "
        "else_branch = two () => (float[2,3] u) { u = Relu(x) }> d = Div(t, root) e = Erf(d) a = Add(e, one) "
        "h = Mul(t, half) g = Mul(h, a) y = Mul(g, k) }",
        opset=13,
        yes=np.array(True),
        root=np.float32(2**0.5),
        one=np.float32(1),
        half=np.float32(0.5),
        k=(3,),
    )
    result = again(model)
    assert "If" not in [node.op_type for node in result.model.graph.node]


@pytest.mark.parametrize("threads", [1, 4])
def test_one_scale_for_all_stays_one_when_a_shift_for_each_channel_follows(threads: int) -> None:
    model = build(
        "(float[1,4,5,5] x) => (float[1,4,5,5] y) { m = ReduceMean<axes=[1,2,3]>(x) d = Sub(x, m) q = Mul(d, d) "
        "v = ReduceMean<axes=[1,2,3]>(q) a = Add(v, e) r = Sqrt(a) n = Div(d, r) s = Add(n, k) t = Neg(s) y = Sin(t) }",
        opset=17,
        k=(4, 1, 1),
        e=np.float32(1e-3),
    )
    again(model, "cpu", threads=threads)


def test_shapes_behind_an_operator_that_onnx_infers_nothing_of_are_known_in_a_branch() -> None:
    model = build(
        "(float[2,4,5,5] x, bool p) => (float[2,4,5,5] y) { y = If(p) <then_branch = one () => (float[2,4,5,5] t) { "
        "n = GroupNormalization<num_groups=2>(x, g, b) a = Abs(n) t = LRN<size=3, alpha=0.1, beta=0.5>(a) }, "
        "else_branch = two () => (float[2,4,5,5] u) { u = Relu(x) }> }",
        g=(2,),
        b=(2,),
    )
    result = again(model, "cpu", threads=1)
    assert "dtype of its input is not known" not in reasons_of(result)


SHIFTED = (
    "(double[2,3,4,4] x) => (double[2,3,4,4] y) {{ a = Add(x, b) "
    "y = InstanceNormalization<epsilon={epsilon}>({data}, g, h) }}"
)


def shifted(data: str, epsilon: float = 1e-5) -> onnx.ModelProto:
    return build(SHIFTED.format(data=data, epsilon=epsilon), dtype=np.float64, b=(3, 1, 1), g=(3,), h=(3,))


def test_a_float64_result_that_is_nearer_to_the_truth_than_the_oracle_is_not_rolled_back() -> None:
    """Of float64 the oracle rounds as the original does: without its shift an InstanceNormalization cancels less."""
    result = normfuse.optimize(shifted("a"), "cuda")
    assert [node.op_type for node in result.model.graph.node] == ["InstanceNormalization"], reasons_of(result)
    assert {one.verdict for one in result.report.certificates} == {"passed"}
    assert not result.report.left_out


def test_roundings_of_float64_excuse_no_wrong_formula() -> None:
    for wrong in (shifted("a", 1.001e-5), shifted("x", 1.001e-5)):
        parity = normfuse.verify(shifted("a"), wrong, provider="cuda", stand_in=True)
        assert not parity.passed
        assert parity.judged_by == "oracle"
        assert parity.ratio > 100


def test_a_gelu_in_a_function_has_a_reference() -> None:
    model = build(
        "(double[2,3] x) => (double[2,3] y) { y = local.f(x) }",
        opset=20,
        imports={"local": 1},
        functions='<domain: "local", opset_import: ["": 20]> f (a) => (c) { b = Gelu(a) c = Neg(b) }',
    )
    parity = normfuse.verify(model, model, provider="cuda", stand_in=True)
    assert parity.passed
    assert parity.judged_by == "oracle"


def test_what_overflows_in_the_original_as_it_is_written_is_told_apart_from_a_wrong_formula() -> None:
    """ONNX Runtime keeps x · k in float32 up to the Sqrt; a Transpose rounds it to float16, where it is infinite."""
    text = "(float16[2,4] x) => (float16[2,4] y) {{ a = Mul(x, k) {turn} s = Sqrt(b) y = {last}(s) }}"
    texts = {
        "original": text.format(turn="b = Abs(a)", last="Neg"),
        "turned": text.format(turn="t = Transpose(a) u = Transpose(t) b = Abs(u)", last="Neg"),
        "wrong": text.format(turn="t = Transpose(a) u = Transpose(t) b = Abs(u)", last="Sin"),
    }
    original, turned, wrong = (build(one, opset=13, k=np.full(4, 500, np.float16)) for one in texts.values())
    assert not normfuse.verify(original, turned).passed  # the gate is as it was
    assert _is_noise(original, turned, "cpu")
    assert not _is_noise(original, wrong, "cpu")


@pytest.mark.parametrize(("alpha", "applies"), [(0.3, False), (0.375, True)])
def test_constants_of_float64_become_attributes_of_float32_only_where_they_fit(alpha: float, applies: bool) -> None:
    """An attribute holds float32: 0.3 would be off by 1e-8, which float64 shows; 0.375 is exact in both."""
    model = build(
        "(double[2,5,4,4] x) => (double[2,5,4,4] y) { q = Mul(x, x) u = Unsqueeze(q, one) p = Pad(u, pads) "
        "m = AveragePool<kernel_shape=[3,1,1], strides=[1,1,1]>(p) s = Squeeze(m, one) t = Mul(s, a) d = Add(t, two) "
        "w = Pow(d, half) y = Div(x, w) }",
        one=np.array([1]),
        pads=np.array([0, 0, 1, 0, 0, 0, 0, 1, 0, 0]),
        a=np.float64(alpha),
        two=np.float64(2),
        half=np.float64(0.5),
    )
    result = normfuse.optimize(model, "cuda")
    assert result.report.parity is not None
    assert result.report.parity.passed
    assert not result.report.left_out
    assert ("LRN" in [node.op_type for node in result.model.graph.node]) == applies
    assert ("no float32 attributes" in str(reasons_of(result))) != applies


def test_what_only_a_branch_has_read_that_is_never_taken_is_gone_at_once() -> None:
    """In memory, nodes in the subgraphs of a removed If read what they read still."""
    model = build(
        "(float16[1,3,4] x) => (float16[1,3,4] y) { n = InstanceNormalization(x, g, b) a = Abs(n) s = ReduceSum(a) "
        "p = Greater(s, one) unread = If(p) <then_branch = yes () => (float16[1,3,4] o) { o = Neg(a) }, "
        "else_branch = no () => (float16[1,3,4] u) { u = If(p) <then_branch = deep () => (float16[1,3,4] v) "
        "{ v = Sin(a) }, else_branch = low () => (float16[1,3,4] w) { w = Cos(a) }> }> y = Mul(n, k) }",
        dtype=np.float16,
        g=(3,),
        b=(3,),
        one=np.float16(1),
        k=(3, 1),
    )
    result = again(model)
    assert [node.op_type for node in result.model.graph.node] == ["InstanceNormalization"], reasons_of(result)


def test_nodes_that_become_one_at_last_are_looked_at_once_more() -> None:
    """Two LayerNormalizations share their Reshape when duplicates are merged: what stands behind one folds into it."""
    normalized = (
        "m{0} = ReduceMean<axes=[1,2,3]>(x) d{0} = Sub(x, m{0}) q{0} = Mul(d{0}, d{0}) "
        "v{0} = ReduceMean<axes=[1,2,3]>(q{0}) a{0} = Add(v{0}, e{0}) r{0} = Sqrt(a{0}) n{0} = Div(d{0}, r{0}) "
    )
    model = build(
        f"(float[2,6,1,5] x) => (float[2,6,1,5] y, float[2,6,1,5] z) {{ {normalized.format(1)} {normalized.format(2)} "
        "s = Add(n2, shift) y = Sin(s) z = Sin(n1) }",
        opset=14,
        e1=np.float32(1e-3),
        e2=np.float32(1e-6),
        shift=np.float32(0.7),
    )
    result = again(model, "cpu", threads=4)
    kinds = [node.op_type for node in result.model.graph.node]
    assert kinds.count("Reshape") == 3, kinds
    assert "Add" not in kinds


def test_types_behind_a_layer_norm_are_known_below_the_opset_that_onnx_has_it_from() -> None:
    """ONNX Runtime has it in every opset; onnx infers nothing of it, and a second run must know as much as the first.

    That the model is one of float64 keeps BLOCKS from a HardSwish; without it, its Div could go further.
    """
    model = build(
        "(double[2,5,8] x) => (double[2,5,3] y) { n = LayerNormalization(x, g, b) i = InstanceNormalization(n, s, t) "
        "a = Abs(i) p = Add(a, three) c = Clip(p, zero, six) d = Div(c, six) h = Mul(d, a) y = MatMul(h, w) }",
        opset=11,
        dtype=np.float64,
        g=(8,),
        b=(8,),
        s=(5,),
        t=(5,),
        w=(8, 3),
        three=np.float64(3),
        zero=np.float64(0),
        six=np.float64(6),
    )
    result = again(model, "cpu", threads=1)
    assert "Clip" in [node.op_type for node in result.model.graph.node]
    second = normfuse.optimize(result.model, "cpu", threads=1, verify=False)
    assert "dtype of its input is not known" not in reasons_of(second)


@pytest.mark.parametrize("channels", [1, 3])
def test_scale_and_bias_of_each_image_keep_their_form(channels: int) -> None:
    """With one channel, N images of γ and β laid in a row are a vector along the batch: the same form all the same."""
    shape = f"float[2,{channels},4,4]"
    model = build(
        f"({shape} x) => ({shape} y) {{ c = ReduceMean<axes=[2,3]>(x) k = Conv(c, w) h = Conv(c, v) "
        "m = ReduceMean<axes=[2,3]>(x) d = Sub(x, m) q = Mul(d, d) u = ReduceMean<axes=[2,3]>(q) a = Add(u, e) "
        "r = Sqrt(a) i = Reciprocal(r) n = Mul(d, i) l = Mul(k, n) y = Add(l, h) }",
        opset=11,
        w=(channels, channels, 1, 1),
        v=(channels, channels, 1, 1),
        e=np.float32(1e-3),
    )
    result = again(model, "cpu", threads=1)
    written = [one for one in result.report.changes if one.rule == "instance-norm"]
    assert len(written) == 1, written


@pytest.mark.parametrize("target", ["portable", "cuda"])
@pytest.mark.parametrize("spelled", [False, True])
def test_a_norm_of_single_elements_is_left_as_it_is(target: str, spelled: bool) -> None:
    """x − E[x] is what rounding leaves, and γ / √ε amplifies it: any other form has another noise, often a larger."""
    norm = "n = InstanceNormalization(b, g, h)"
    if spelled:
        norm = (
            "m = ReduceMean<axes=[2,3]>(b) d = Sub(b, m) q = Mul(d, d) v = ReduceMean<axes=[2,3]>(q) a = Add(v, e) "
            "r = Sqrt(a) n = Div(d, r)"
        )
    model = build(
        f"(float[3,5,1,1] x) => (float[3,5,1,1] y) {{ b = Add(x, t) {norm} l = Mul(n, k) y = Add(l, s) }}",
        opset=17,
        g=(5,),
        h=(5,),
        k=(5, 1, 1),
        s=(5, 1, 1),
        t=(5, 1, 1),
        e=np.float32(1e-5),
    )
    result = again(model, target)
    assert not result.report.changes
    assert "single element" in reasons_of(result)


def local_response(size: int = 3, k: float = 0.5) -> onnx.ModelProto:
    """LRN by parts with an α that is as large as k."""
    half = size // 2
    return build(
        f"(float[2,20,3,3] x) => (float[2,20,3,3] y) {{ q = Mul(x, x) u = Unsqueeze(q, one) p = Pad(u, pads) "
        f"m = AveragePool<kernel_shape=[{size},1,1], strides=[1,1,1]>(p) s = Squeeze(m, one) t = Mul(s, a) "
        "d = Add(t, k) w = Pow(d, b) y = Div(x, w) }",
        opset=13,
        one=np.array([1]),
        pads=np.array([0, 0, half, 0, 0, 0, 0, half, 0, 0]),
        a=np.float32(1),
        k=np.float32(k),
        b=np.float32(0.75),
    )


def test_an_lrn_for_cuda_is_not_judged_by_the_sliding_sums_of_the_cpu() -> None:
    result = again(local_response(), "cuda")
    assert [node.op_type for node in result.model.graph.node] == ["LRN"], reasons_of(result)
    assert {one.verdict for one in result.report.certificates} == {"passed"}


@pytest.mark.parametrize("wrong", [{"size": 5}, {"alpha": 1.001}, {"beta": 0.751}, {"bias": 0.501}])
def test_what_is_wrong_of_an_lrn_shows_without_cuda(wrong: dict[str, float]) -> None:
    given = {"size": 3, "alpha": 1.0, "beta": 0.75, "bias": 0.5} | wrong
    attributes = ", ".join(f"{name}={value}" for name, value in given.items())
    text = f"(float[2,20,3,3] x) => (float[2,20,3,3] y) {{ y = LRN<{attributes}>(x) }}"
    parity = normfuse.verify(local_response(), build(text, opset=13), provider="cuda", stand_in=True, seeds=1)
    assert not parity.passed
    assert parity.judged_by == "oracle"


@pytest.mark.parametrize(("size", "k", "reason"), [(17, 0.5, "16 channels"), (3, 1e-6, "k from 1e-5")])
def test_what_cudnn_does_not_take_does_not_become_an_lrn_for_cuda(size: int, k: float, reason: str) -> None:
    result = normfuse.optimize(local_response(size, k), "cuda", verify=False)
    assert "LRN" not in [node.op_type for node in result.model.graph.node]
    assert reason in reasons_of(result)


@pytest.mark.parametrize("target", ["portable", "cpu", "cuda"])
def test_a_norm_within_a_norm_leaves_no_domain_behind(target: str) -> None:
    """LayerNorm over the channels is lifted twice: within the Transposes, and with them."""
    model = build(
        "(float[2,5,4,3] x) => (float[2,5,4,3] y) { t = Transpose<perm=[0,2,3,1]>(x) m = ReduceMean<axes=[3]>(t) "
        "d = Sub(t, m) q = Mul(d, d) v = ReduceMean<axes=[3]>(q) a = Add(v, e) r = Sqrt(a) n = Div(d, r) "
        "y = Transpose<perm=[0,3,1,2]>(n) }",
        opset=17,
        e=np.float32(1e-3),
    )
    result = again(model, target)
    assert "LayerNormalization" in [node.op_type for node in result.model.graph.node]
    assert [one.domain for one in result.model.opset_import] == [""]


NORMALIZED = (
    "m = ReduceMean<axes=[1]>(x) d = Sub(x, m) q = Mul(d, d) v = ReduceMean<axes=[1]>(q) a = Add(v, e) r = Sqrt(a)"
)
WITHIN: dict[str, dict[str, Any]] = {
    "graph": {"text": f"{NORMALIZED} y = Div(d, r)"},
    "branch": {
        "text": f"y = If(p) <then_branch = one () => (double[2,4] o) {{ {NORMALIZED} o = Div(d, r) }}, "
        "else_branch = two () => (double[2,4] u) { u = Neg(x) }>"
    },
    "function": {
        "text": "y = local.f(x, e)",
        "imports": {"local": 1},
        "functions": f'<domain: "local", opset_import: ["": 17]> f (x, e) => (y) {{ {NORMALIZED} y = Div(d, r) }}',
    },
}


@pytest.mark.parametrize("place", WITHIN)
def test_roundings_within_subgraphs_and_functions_are_seen(place: str) -> None:
    """A constant row is amplified by 1/√ε wherever it stands: more than the rounding of the whole node says."""
    given = dict(WITHIN[place])
    text = f"(double[2,4] x, bool p) => (double[2,4] y) {{ {given.pop('text')} }}"
    model = build(text, opset=17, e=np.float64(1e-6), **given)
    inputs = {"x": np.full((2, 4), 3.0), "p": np.array(True)}
    assert not Oracle(load(model)).run(inputs)["y"].any()
    assert np.abs(Shaken(load(model), 2.0**-24).run(inputs)["y"]).max() > 100 * 2.0**-24


@pytest.mark.parametrize("freeze", [None, True])
def test_a_quantized_weight_that_is_listed_as_an_input_stays_one(freeze: bool | None) -> None:
    """As a constant, ONNX Runtime's optimizer would round the other operand of its MatMul to int8, too."""
    model = build(
        "(float[2,8] x) => (float[2,3] y) { d = DequantizeLinear(q, scale, zero) m = MatMul(x, d) c = Mul(m, k) "
        "y = Add(c, b) }",
        listed=True,
        q=np.arange(-12, 12, dtype=np.int8).reshape(8, 3),
        scale=np.float32(0.02),
        zero=np.int8(1),
        k=(3,),
        b=(3,),
    )
    result = normfuse.optimize(model, "cpu", freeze=freeze, verify=freeze is None)
    listed = {port.name for port in result.model.graph.input}
    assert listed == ({"x", "q", "scale", "zero"} if freeze is None else {"x"})
    assert ("it is quantized" in reasons_of(result)) == (freeze is None)
    second = normfuse.optimize(result.model, "cpu", verify=False)
    assert not second.report.changes


@pytest.mark.parametrize("target", ["portable", "cpu", "cuda"])
def test_a_norm_of_no_elements_is_left_as_it_is(target: str) -> None:
    """Beside a dimension of 0 no other one can be −1: a Reshape by sizes that are not stated would not load."""
    model = build(
        "(float[0,6,4,5] x) => (float[0,6,4,5] y) { m = ReduceMean<axes=[1,2,3]>(x) d = Sub(x, m) q = Mul(d, d) "
        "v = ReduceMean<axes=[1,2,3]>(q) a = Add(v, e) r = Sqrt(a) n = Div(d, r) y = Mul(n, k) }",
        opset=17,
        k=(6, 1, 1),
        e=np.float32(1e-3),
    )
    result = normfuse.optimize(model, target, verify=False)
    onnx.checker.check_model(result.model, full_check=True)
    assert not result.report.changes
    assert "it normalizes no elements" in reasons_of(result)


def test_dimensions_behind_a_reshape_that_goes_are_known_at_once() -> None:
    """(N, 1, H·W) needs no Reshape to be a row for each sample; without it the way back is none either."""
    model = build(
        "(float[N,1,H,W] x) => (float[N,1,L] y) { r = Reshape(x, shape) a = Abs(r) "
        "n = GroupNormalization<num_groups=1>(a, g, b) y = Mul(n, a) }",
        shape=np.array([0, 1, -1]),
        g=(1,),
        b=(1,),
    )
    result = again(model, "cpu", threads=1)
    kinds = [node.op_type for node in result.model.graph.node]
    assert kinds == ["Reshape", "Abs", "InstanceNormalization", "Mul"], kinds

"""What has broken released optimizers: shared weights, captured values, names, padding, signs, metadata."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from normfuse.pipeline import optimize
from tests.parity import Array, batch_norm, build, fold, ops, reasons_of, refuse, rng, rules_of, weights_of

NORM = "n_scale, n_bias, n_mean, n_var"
CONV_NORM = f"c = Conv(x, w) y = BatchNormalization(c, {NORM})"
IMAGES = "(float[N,3,8,8] x) => (float[N,4,6,6] y)"


def conv_norm(nodes: str = CONV_NORM, head: str = IMAGES) -> onnx.ModelProto:
    return build(f"{head} {{ {nodes} }}", w=(4, 3, 3, 3), **batch_norm("n", 4))


def details(model: onnx.ModelProto) -> str:
    return "\n".join(change.detail for change in optimize(model, verify=False).report.changes)


class TestSharedWeights:
    def test_two_convolutions_with_one_weight_get_one_each_and_it_is_said(self) -> None:
        model = build(
            "(float[N,3,8,8] x, float[N,3,8,8] z) => (float[N,4,6,6] y, float[N,4,6,6] v) { c = Conv(x, w) "
            f"y = BatchNormalization(c, {NORM}) v = Conv(z, w) }}",
            w=(4, 3, 3, 3),
            **batch_norm("n", 4),
        )
        result = fold(model)
        assert ops(result.model) == {"Conv": 2}
        np.testing.assert_array_equal(weights_of(result.model)["w"], weights_of(model)["w"])
        assert "copied weight 'w', which Conv 'v' reads too" in details(model)

    def test_two_convolutions_with_one_weight_and_two_norms(self) -> None:
        model = build(
            f"{IMAGES} {{ c = Conv(x, w, b) d = BatchNormalization(c, {NORM}) z = Exp(x) "
            "e = Conv(z, w, b) f = BatchNormalization(e, m_scale, m_bias, m_mean, m_var) y = Mul(d, f) }",
            w=(4, 3, 3, 3),
            b=(4,),
            **batch_norm("n", 4),
            **batch_norm("m", 4),
        )
        assert ops(fold(model).model) == {"Conv": 2, "Exp": 1, "Mul": 1}

    def test_a_large_weight_is_not_copied(self) -> None:
        model = build(
            "(float[N,4] x) => (float[N,1100000] y, float[N,1100000] z) "
            "{ z = MatMul(x, w) v = Exp(x) m = MatMul(v, w) y = Mul(m, k) }",
            w=np.ones((4, 1_100_000), np.float32),
            k=rng("k").normal(size=1_100_000).astype(np.float32),
        )
        result = optimize(model, verify=False)
        assert ops(result.model) == ops(model)
        assert "its weight of 16 MiB is shared with MatMul 'z'" in reasons_of(result)

    def test_one_vector_is_two_parameters_of_a_norm(self) -> None:
        model = conv_norm("c = Conv(x, w) y = BatchNormalization(c, n_var, n_bias, n_bias, n_var)")
        assert ops(fold(model).model) == {"Conv": 1}

    def test_two_norms_have_one_set_of_parameters(self) -> None:
        nodes = f"a = BatchNormalization(x, {NORM}) r = Relu(a) y = BatchNormalization(r, {NORM})"
        text = f"(float[N,4,5] x) => (float[N,4,5] y) {{ {nodes} }}"
        model = build(text, **batch_norm("n", 4))
        assert ops(fold(model).model) == ops(model)

    def test_a_convolution_squares_its_weight(self) -> None:
        model = build(
            "(float[N,4,1,1] x) => (float[N,4,1,1] y) { c = Conv(x, w) d = Conv(c, w) y = Mul(d, k) }",
            w=(4, 4, 1, 1),
            k=(4, 1, 1),
        )
        assert ops(fold(model).model) == {"Conv": 2}

    def test_a_weight_is_also_an_output(self) -> None:
        model = conv_norm(CONV_NORM, "(float[N,3,8,8] x) => (float[N,4,6,6] y, float[4,3,3,3] w)")
        result = fold(model)
        assert ops(result.model) == {"Conv": 1}
        np.testing.assert_array_equal(weights_of(result.model)["w"], weights_of(model)["w"])
        assert "copied weight 'w', which the caller of the model reads too" in details(model)

    def test_a_weight_may_be_set_by_the_caller(self) -> None:
        model = conv_norm()
        model.graph.input.append(onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [4, 3, 3, 3]))
        result = refuse(model, "weight 'w' is an input of the graph that a caller may set")
        assert [value.name for value in result.model.graph.input] == ["x", "w"]

    def test_a_weight_is_read_in_a_branch(self) -> None:
        model = build(
            f"(float[N,3,8,8] x, bool p) => (float[N,4,6,6] y, float[4,3,3,3] v) {{ {CONV_NORM} "
            "v = If (p) <then_branch = yes () => (float[4,3,3,3] t) { t = Neg(w) }, "
            "else_branch = no () => (float[4,3,3,3] e) { e = Exp(w) }> }",
            w=(4, 3, 3, 3),
            **batch_norm("n", 4),
        )
        result = fold(model)
        assert ops(result.model)["BatchNormalization"] == 0
        np.testing.assert_array_equal(weights_of(result.model)["w"], weights_of(model)["w"])


class TestReaders:
    def test_the_convolution_is_an_output(self) -> None:
        model = conv_norm(CONV_NORM, "(float[N,3,8,8] x) => (float[N,4,6,6] y, float[N,4,6,6] c)")
        refuse(model, "'c' is an output of the graph")

    def test_another_reader_sees_the_convolution(self) -> None:
        model = conv_norm(f"c = Conv(x, w) b = BatchNormalization(c, {NORM}) s = Sigmoid(c) y = Mul(b, s)")
        refuse(model, "'c' is also read by Sigmoid 's'")

    def test_one_of_two_readers_cannot_take_it(self) -> None:
        model = build(
            "(float[N,3,8,8] x) => (float[N,4,8,8] y, float[N,3,8,8] z) { m = Mul(x, k) y = Conv(m, w) z = Exp(m) }",
            w=(4, 3, 1, 1),
            k=(3, 1, 1),
        )
        result = refuse(model, "no rule moves it from in front of Exp 'z'")
        np.testing.assert_array_equal(weights_of(result.model)["w"], weights_of(model)["w"])

    def test_both_readers_take_it(self) -> None:
        model = build(
            "(float[N,3,8,8] x) => (float[N,4,8,8] y, float[N,2,8,8] z) "
            "{ m = Mul(x, k) y = Conv(m, w) z = Conv(m, v) }",
            w=(4, 3, 1, 1),
            v=(2, 3, 1, 1),
            k=(3, 1, 1),
        )
        assert ops(fold(model).model) == {"Conv": 2}

    def test_a_reader_of_the_shape_does_not_hinder(self) -> None:
        model = conv_norm(
            f"c = Conv(x, w) s = Shape(c) y = BatchNormalization(c, {NORM})",
            "(float[N,3,8,8] x) => (float[N,4,6,6] y, int64[4] s)",
        )
        assert ops(fold(model).model) == {"Conv": 1, "Shape": 1}

    @pytest.mark.parametrize("captured", ["c", "y"])
    def test_a_branch_captures_a_value(self, captured: str) -> None:
        model = conv_norm(
            f"{CONV_NORM} z = If (p) <then_branch = yes () => (float[N,4,6,6] t) {{ t = Neg({captured}) }}, "
            f"else_branch = no () => (float[N,4,6,6] e) {{ e = Exp({captured}) }}>",
            "(float[N,3,8,8] x, bool p) => (float[N,4,6,6] y, float[N,4,6,6] z)",
        )
        result = fold(model)
        assert ops(result.model)["BatchNormalization"] == (captured == "c")
        assert ("is also read by" in reasons_of(result)) == (captured == "c")

    def test_a_loop_reads_the_convolution(self) -> None:
        model = conv_norm(
            f"{CONV_NORM} n = Constant<value_int=2>() "
            "z = Loop (n, , x) <body = step (int64 i, bool p, float[N,3,8,8] s) => "
            "(bool q, float[N,3,8,8] t) { q = Identity(p) r = ReduceMax<keepdims=0>(c) t = Add(s, r) }>",
            "(float[N,3,8,8] x) => (float[N,4,6,6] y, float[N,3,8,8] z)",
        )
        result = fold(model)
        assert ops(result.model)["BatchNormalization"] == 1
        assert "'c' is also read by" in reasons_of(result)

    def test_branches_are_folded_inside(self) -> None:
        model = conv_norm(
            "y = If (p) <then_branch = yes () => (float[N,4,6,6] t) "
            f"{{ a = Conv(x, w) t = BatchNormalization(a, {NORM}) }}, "
            "else_branch = no () => (float[N,4,6,6] e) { b = Conv(x, w) e = Relu(b) }>",
            "(float[N,3,8,8] x, bool p) => (float[N,4,6,6] y)",
        )
        result = fold(model)
        assert ops(result.model) == {"If": 1, "Conv": 2, "Relu": 1}
        assert "copied weight 'w', which Conv" in details(model)


class TestNames:
    def test_new_weights_take_free_names(self) -> None:
        model = build(
            "(float[N,3,8,8] c_bias) => (float[N,4,6,6] y, float[4] y_bias, float[4] c_bias_1) { c = Conv(c_bias, w) "
            f"y = BatchNormalization(c, {NORM}) y_bias = Exp(n_bias) c_bias_1 = Identity(y_bias) }}",
            w=(4, 3, 3, 3),
            **batch_norm("n", 4),
        )
        result = fold(model)
        taken = [value.name for value in result.model.graph.input] + [
            name for node in result.model.graph.node for name in node.output
        ]
        assert ops(result.model)["Conv"] == 1
        assert not set(taken) & (set(weights_of(result.model)) - {"y_bias", "c_bias_1"})

    def test_nodes_without_names_can_be_folded(self) -> None:
        model = conv_norm()
        for node in model.graph.node:
            node.name = ""
        result = fold(model)
        assert ops(result.model) == {"Conv": 1}
        assert result.report.changes[0].nodes == ("BatchNormalization",)

    def test_inputs_and_outputs_keep_names_and_order(self) -> None:
        model = conv_norm(
            f"c = Conv(x, w) z = BatchNormalization(c, {NORM}) a = Neg(u)",
            "(float[N,2] u, float[N,3,8,8] x) => (float[N,4,6,6] z, float[N,2] a)",
        )
        result = fold(model)
        assert [value.name for value in result.model.graph.output] == ["z", "a"]
        assert [value.name for value in result.model.graph.input] == ["u", "x"]

    def test_one_value_under_two_output_names(self) -> None:
        model = conv_norm(f"{CONV_NORM} z = Identity(y)", "(float[N,3,8,8] x) => (float[N,4,6,6] y, float[N,4,6,6] z)")
        assert ops(fold(model).model)["BatchNormalization"] == 0

    def test_an_output_that_is_the_input_mapped_by_nothing(self) -> None:
        model = build("(float[N,3] x) => (float[N,3] y) { y = Mul(x, k) }", k=np.ones(3, np.float32))
        assert [value.name for value in fold(model).model.graph.output] == ["y"]


class TestConstants:
    def test_as_many_samples_as_channels_behind_a_reshape(self) -> None:
        model = build(
            "(float[4,3,6,6] x) => (float[4,4,16] y) { c = Conv(x, w) r = Reshape(c, shape) y = Mul(r, k) }",
            w=(4, 3, 3, 3),
            shape=np.array([4, 4, 16]),
            k=(4, 1, 1),
        )
        refuse(model, "the map varies along axis 0")

    def test_a_reshape_mixes_samples_and_channels(self) -> None:
        model = build(
            "(float[2,3,6,6] x) => (float[4,2,16] y) { c = Conv(x, w) r = Reshape(c, shape) y = Mul(r, k) }",
            w=(4, 3, 3, 3),
            shape=np.array([4, 2, 16]),
            k=(4, 1, 1),
        )
        refuse(model, "the Reshape does not keep the channels")

    def test_an_integer_constant_is_no_map(self) -> None:
        model = build("(int64[N] x) => (int64[N] y) { k = Constant<value_int=3>() m = Mul(x, k) y = Add(m, k) }")
        assert ops(fold(model).model) - ops(model) == {}

    def test_a_mean_much_larger_than_the_deviation(self) -> None:
        norm = {
            **batch_norm("n", 4),
            "n_mean": np.array([3e3, -5e3, 1e4, 2e3], np.float32),
            "n_var": np.full(4, 1e-2, np.float32),
        }
        model = build(f"{IMAGES} {{ {CONV_NORM} }}", w=(4, 3, 3, 3), **norm)
        assert ops(fold(model).model) == {"Conv": 1}

    def test_a_variance_of_nothing(self) -> None:
        norm = {**batch_norm("n", 4), "n_var": np.zeros(4, np.float32)}
        assert ops(fold(build(f"{IMAGES} {{ {CONV_NORM} }}", w=(4, 3, 3, 3), **norm)).model) == {"Conv": 1}

    def test_a_weight_that_is_not_a_number_is_left(self) -> None:
        weight = rng("w").normal(size=(4, 3, 3, 3)).astype(np.float32)
        weight[1, 0, 0, 0] = np.nan
        model = build(f"{IMAGES} {{ {CONV_NORM} }}", w=weight, **batch_norm("n", 4))
        refuse(model, "scale overflows or underflows float in Conv 'c'")

    def test_an_empty_bias_input(self) -> None:
        model = conv_norm()
        model.graph.node[0].input.append("")
        assert ops(fold(model).model) == {"Conv": 1}

    def test_trailing_outputs_without_names(self) -> None:
        model = build(f"{IMAGES} {{ {CONV_NORM} }}", opset=9, w=(4, 3, 3, 3), **batch_norm("n", 4))
        model.graph.node[1].output.extend(["", ""])
        assert ops(fold(model).model) == {"Conv": 1}

    def test_a_sparse_initializer_survives(self) -> None:
        model = build("(float[N,3] x) => (float[N,3] y) { a = Mul(x, k) y = Add(a, s) }", k=(3,))
        values = onnx.numpy_helper.from_array(np.array([2.5], np.float32), "s")
        model.graph.sparse_initializer.append(
            onnx.helper.make_sparse_tensor(values, onnx.numpy_helper.from_array(np.array([1]), "i"), [3])
        )
        result = optimize(model, verify=False)
        assert ops(result.model).total() <= 2
        assert len(result.model.graph.sparse_initializer) + ("s" in weights_of(result.model)) == 1


class TestSigns:
    @pytest.mark.parametrize("scale", [-2.0, 0.0])
    @pytest.mark.parametrize(
        ("between", "y"),
        [
            ("Relu", "4,6,6"),
            ("LeakyRelu<alpha=0.2>", "4,6,6"),
            ("MaxPool<kernel_shape=[2,2]>", "4,5,5"),
            ("GlobalMaxPool", "4,1,1"),
        ],
    )
    def test_a_scale_that_is_not_positive_does_not_pass(self, between: str, y: str, scale: float) -> None:
        model = build(
            f"(float[N,3,8,8] x) => (float[N,{y}] y) {{ c = Conv(x, w) r = {between}(c) y = Mul(r, k) }}",
            w=(4, 3, 3, 3),
            k=np.array([1, 2, scale, 3], np.float32).reshape(4, 1, 1),
        )
        refuse(model, "a scale that is not positive does not pass")

    def test_a_clip_keeps_its_bounds(self) -> None:
        model = build(
            f"{IMAGES} {{ c = Conv(x, w) r = Clip(c, lo, hi) y = Mul(r, k) }}",
            w=(4, 3, 3, 3),
            lo=np.float32(0),
            hi=np.float32(6),
            k=(4, 1, 1),
        )
        refuse(model, "no rule moves it from behind Clip 'r'")


class TestSurvivors:
    def test_metadata_and_doc_strings(self) -> None:
        model = conv_norm(f"c = Conv(x, w) b = BatchNormalization(c, {NORM}) y = Relu(b)")
        model.producer_name, model.producer_version, model.domain, model.model_version = "maker", "7", "some.where", 42
        model.doc_string, model.graph.doc_string, model.graph.node[0].doc_string = "model", "graph", "node"
        onnx.helper.set_model_props(model, {"author": "me"})
        model.graph.metadata_props.add(key="k", value="graph")
        model.graph.node[0].metadata_props.add(key="k", value="node")
        after = fold(model).model
        for field in (
            "producer_name",
            "producer_version",
            "domain",
            "model_version",
            "doc_string",
            "metadata_props",
            "ir_version",
        ):
            assert getattr(after, field) == getattr(model, field), field
        assert after.graph.doc_string == "graph"
        assert after.graph.name == model.graph.name
        assert after.graph.metadata_props == model.graph.metadata_props
        assert after.graph.node[0].name == "c"
        assert after.graph.node[0].doc_string == "node"
        assert after.graph.node[0].metadata_props == model.graph.node[0].metadata_props

    def test_the_opset_does_not_change(self) -> None:
        for opset in (7, 9, 13, 21):
            model = build(f"{IMAGES} {{ {CONV_NORM} }}", opset=opset, w=(4, 3, 3, 3), **batch_norm("n", 4))
            assert fold(model).model.opset_import == model.opset_import

    def test_what_the_model_says_of_values_is_right_after_a_rewrite(self) -> None:
        model = conv_norm(
            f"c = Conv(x, w) b = BatchNormalization(c, {NORM}) t = Transpose<perm=[0,2,3,1]>(b) y = Exp(t)",
            "(float[N,3,8,8] x) => (float[N,6,6,4] y)",
        )
        model = onnx.shape_inference.infer_shapes(model)
        after = fold(model).model
        written = {name for node in after.graph.node for name in node.output}
        stated = {info.name: info for info in after.graph.value_info}
        assert set(stated) <= written
        inferred = onnx.shape_inference.infer_shapes(build_without_types(after))
        assert {info.name: info for info in inferred.graph.value_info} == stated

    def test_wrong_shapes_that_the_model_states_do_not_mislead(self) -> None:
        model = conv_norm("c = Conv(x, w) y = Mul(c, k)", "(float[N,3,8,8] x) => (float[N,4,6,6] y) <float[N,6,6,4] c>")
        model.graph.initializer.append(
            onnx.numpy_helper.from_array(rng("k").normal(size=(4, 1, 1)).astype(np.float32), "k")
        )
        result = optimize(model, verify=False)
        assert ops(result.model) == {"Conv": 1}

    def test_an_operator_of_another_domain(self) -> None:
        model = build(
            f"{IMAGES} {{ c = Conv(x, w) b = BatchNormalization(c, {NORM}) "
            "g = com.microsoft.QuickGelu<alpha=1.0>(b) y = Mul(g, k) }",
            imports={"com.microsoft": 1},
            w=(4, 3, 3, 3),
            k=(4, 1, 1),
            **batch_norm("n", 4),
        )
        result = fold(model)
        assert ops(result.model) == {"Conv": 1, "QuickGelu": 1, "Mul": 1}
        assert result.model.opset_import == model.opset_import
        assert [node.domain for node in result.model.graph.node] == ["", "com.microsoft", ""]

    def test_an_operator_of_another_domain_with_a_known_name(self) -> None:
        model = build(
            f"{IMAGES} {{ c = my.domain.Conv(x, w) y = BatchNormalization(c, {NORM}) }}",
            imports={"my.domain": 1},
            w=(4, 3, 3, 3),
            **batch_norm("n", 4),
        )
        result = optimize(model, verify=False)
        assert ops(result.model) == ops(model)
        assert "no rule moves it from behind Conv 'c'" in reasons_of(result)

    def test_a_function_is_folded_inside_and_survives(self) -> None:
        model = build(
            "(float[N,2] x) => (float[N,2] y) { a = local.block(x) b = local.block(a) y = Exp(b) }",
            imports={"local": 1},
            functions='<domain: "local", opset_import: ["" : 18]> block (x) => (y) { '
            "w = Constant<value = float[2,2] {1.0, 2.0, 3.0, -4.0}>() k = Constant<value = float {0.5}>() "
            "m = MatMul(x, w) y = Mul(m, k) }",
        )
        result = fold(model)
        assert [(f.domain, f.name) for f in result.model.functions] == [("local", "block")]
        assert ops(result.model) == {"block": 2, "Exp": 1, "Constant": 1, "MatMul": 1}
        assert list(result.model.functions[0].output) == ["y"]

    def test_an_attribute_that_the_caller_of_a_function_sets_is_not_read(self) -> None:
        model = build(
            "(float[N,2] x) => (float[N,2] y) { a = local.block<beta=2.0>(x) y = local.block<beta=3.0>(a) }",
            imports={"local": 1},
            functions='<domain: "local", opset_import: ["" : 18]> block <beta> (x) => (y) { '
            "w = Constant<value = float[2,2] {1.0, 2.0, 3.0, -4.0}>() c = Constant<value = float[2] {1.0, 2.0}>() "
            "k = Constant<value = float {0.5}>() m = Gemm<beta: float = @beta>(x, w, c) y = Mul(m, k) }",
        )
        result = refuse(model, "attribute beta is set by the caller of the function")
        assert rules_of(result) == set()

    def test_external_data_is_read_and_the_file_is_not_written(self, tmp_path: Path) -> None:
        model = conv_norm()
        before: Array = weights_of(model)["w"]
        onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
        content = (tmp_path / "m.data").read_bytes()
        result = optimize(tmp_path / "m.onnx", verify=False)
        assert ops(result.model) == {"Conv": 1}
        assert (tmp_path / "m.data").read_bytes() == content
        assert not np.array_equal(weights_of(result.model)["w"], before)


def build_without_types(model: onnx.ModelProto) -> onnx.ModelProto:
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.graph.value_info[:]
    return bare


def test_an_ir_model_goes_in_and_comes_out() -> None:
    model = ir.from_proto(conv_norm())
    result = optimize(model, verify=False)
    assert isinstance(result.model, ir.Model)
    assert [node.op_type for node in model.graph] == ["Conv", "BatchNormalization"]
    assert [node.op_type for node in result.model.graph] == ["Conv"]

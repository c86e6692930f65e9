"""What a certificate covers: the part that was cut out, and that nothing outside of it has changed."""

from typing import Any
from unittest.mock import patch

import ml_dtypes
import numpy as np
import onnx
import pytest

from normfuse import pipeline
from normfuse.certification import Certifier, certify
from normfuse.contest import Contest
from normfuse.model import load
from normfuse.passes.region import DisturbedError, Region
from normfuse.passes.weights import Weights
from normfuse.probes import Inputs
from tests.lowered import Lowered
from tests.lowered_elsewhere import APPLIES, CHANNELS_LAST
from tests.parity import build, rng

SHARED = (
    "(float[N,4,8,8] x) => (float[N,4,6,6] y, float[N,4,6,6] z) "
    "{ c = Conv(x, w) y = Mul(c, s) d = Relu(x) z = Conv(d, w) }"
)


def shared() -> onnx.ModelProto:
    scale = rng("scale").uniform(0.5, 2.0, (4, 1, 1)).astype(np.float32)
    return build(SHARED, w=(4, 4, 3, 3), s=scale)


def judged(model: onnx.ModelProto, target: Any = "cpu") -> Certifier:
    certifier = Certifier({}, provider=target)
    pipeline.rewrite(load(model), target, journal=certifier)
    return certifier


def test_the_family_with_the_largest_ratio_is_named() -> None:
    found = judged(shared()).certificates
    assert found
    assert all(one.family in one.families for one in found)


def test_a_weight_that_others_read_must_not_change_in_place() -> None:
    assert {one.verdict for one in judged(shared()).certificates} == {"passed"}
    with patch.object(Weights, "shared_with", lambda self, node, index: None):
        (found,) = judged(shared()).certificates
    assert found.verdict == "failed"
    assert found.reason == "it changed 'w', which z reads, too"


def test_what_read_one_value_must_go_on_reading_one() -> None:
    model = load(build("(float[N,3] x) => (float[N,3] y, float[N,3] z) { a = Neg(x) y = Exp(a) z = Tanh(a) }"))
    nodes = {str(node.name): node for node in model.graph}
    region = Region(model, [nodes["a"]])
    nodes["z"].replace_input_with(0, model.graph.inputs[0])
    with pytest.raises(DisturbedError, match="what read one value reads 'a' and 'x' now"):
        region.after(model)


@pytest.mark.parametrize("item", [item for item in APPLIES if item.rule == CHANNELS_LAST], ids=str)
def test_a_transpose_that_is_left_out_belongs_to_the_part(item: Lowered) -> None:
    found = judged(build(item.text, opset=item.opset, **item.weights), "cuda").certificates
    assert [(one.rule, one.verdict) for one in found] == [(CHANNELS_LAST, "passed")]


def test_a_part_is_cut_out_as_the_nodes_it_was_written_in() -> None:
    """ONNX Runtime ends the process when it loads a function that holds a SimplifiedLayerNormalization."""
    text = (
        "(float[2,16,20,20] x) => (float[2,16,20,20] y) { t = Transpose<perm=[0,2,3,1]>(x)"
        " n = SimplifiedLayerNormalization<axis=-1, epsilon=0.001>(t, w) k = Transpose<perm=[0,3,1,2]>(n)"
        " j = Mul(k, c) y = Conv(j, v) }"
    )
    (found,) = judged(build(text, opset=17, w=(16,), c=(16, 1, 1), v=(16, 16, 1, 1))).certificates
    assert (found.rule, found.verdict) == ("conv-before", "passed")


def test_a_vocabulary_is_not_tried_as_the_length_of_a_sequence() -> None:
    """Its logits would be the vocabulary squared: gigabytes."""
    tried: list[tuple[int, ...]] = []
    accepts = Contest.accepts

    def seen(self: Contest, inputs: Inputs) -> bool:
        tried.extend(array.shape for array in inputs.values())
        return accepts(self, inputs)

    text = "(float[N,T,24] x) => (float[N,T,3000] y) { m = MatMul(x, w) y = Mul(m, s) }"
    with patch.object(Contest, "accepts", seen):
        (found,) = judged(build(text, w=(24, 3000), s=(3000,))).certificates
    assert (found.rule, found.verdict) == ("matmul-after", "passed")
    assert tried
    assert max(shape[1] for shape in tried) < 3000


def test_what_onnx_runtime_has_no_kernels_for_is_judged_by_the_evaluator() -> None:
    text = "(bfloat16[N,4,7,7] x) => (bfloat16[N,4,5,5] y) { c = Conv(x, w) y = Mul(c, s) }"
    given = build(text, opset=22, dtype=ml_dtypes.bfloat16, w=(4, 4, 3, 3), s=(4, 1, 1))
    (found,) = judged(given).certificates
    assert (found.rule, found.verdict, found.judged_by) == ("conv-after", "passed", "oracle")


def test_float16_that_overflows_on_other_providers_is_told() -> None:
    head, body = "(float16[2,8] x) => (float16[2,8] y)", "q = Mul({0}, {0}) m = ReduceMean<axes=[-1]>(q) r = Sqrt(m)"
    wide = build(f"{head} {{ h = Cast<to=1>(x) {body.format('h')} n = Div(h, r) y = Cast<to=10>(n) }}", opset=17)
    narrow = build(f"{head} {{ {body.format('x')} y = Div(x, r) }}", opset=17)
    found = certify(load(wide), load(narrow))
    assert found.verdict == "failed"
    assert "overflows where each result is rounded to float16" in found.reason
    assert certify(load(narrow), load(narrow)).verdict == "passed"  # what overflowed before may go on to
    assert certify(load(wide), load(wide)).verdict == "passed"


@pytest.mark.parametrize("target", ["portable", "cpu", "cuda"])
def test_bfloat16_that_onnx_runtime_loads_but_cannot_be_fed_is_judged(target: str) -> None:
    text = (
        "(bfloat16[2,3,4] x) => (bfloat16[2,4,3] y) { a = Transpose<perm=[2,1,0]>(x) b = Transpose<perm=[2,0,1]>(a)"
        " y = Relu(b) }"
    )
    (found,) = judged(build(text, opset=22), target).certificates
    assert (found.rule, found.verdict) == ("layout", "passed")


def test_sums_of_products_are_not_taken_to_overflow() -> None:
    text = "(float16[2,512] x) => (float16[2,64] y) { m = MatMul(x, w) y = Mul(m, s) }"
    scale = np.linspace(0.02, 3.0, 64).astype(np.float16)
    (found,) = judged(build(text, dtype=np.float16, w=(512, 64), s=scale)).certificates
    assert (found.rule, found.verdict) == ("matmul-after", "passed")

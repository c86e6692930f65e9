"""Lengths that are computed of constants are known before a vector is written out."""

import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from normfuse.passes.inference import infer_shapes
from normfuse.passes.lengths import Lengths

HEAD = '<ir_version: 9, opset_import: ["" : 18, "custom" : 1]> g (float[N,3,20,10] x) => (float y) '
CONSTANTS = "<int64[1] a = {100}, int64[1] b = {20}, int64[2] pair = {30, 40}, int64[1] open = {-1}, int64 place = {1}>"

LONGEST = {
    "c = Mul(a, b) v = ConstantOfShape(c)": 2000,
    "c = Add(a, b) v = ConstantOfShape(c)": 120,
    "c = Sub(a, b) v = ConstantOfShape(c)": 80,
    "c = Mul(pair, b) v = ConstantOfShape(c)": 2,
    "c = Mul(pair, b) m = ConstantOfShape(c) v = Reshape(m, open)": 480_000,
    "c = Mul(a, b) m = ConstantOfShape(c) v = Concat <axis = 0> (m, m, m)": 6000,
    "c = Concat <axis = 0> (a, b) d = Gather(c, place) u = Unsqueeze(d, place) v = ConstantOfShape(u)": 20,
    "c = Concat <axis = 0> (a, b, pair) s = Slice(c, place, end) v = ConstantOfShape(s)": 20,
    "c = Mul(a, b) e = Cast <to = 1> (a) m = ConstantOfShape(c) v = Add(m, e)": 2000,
    "c = Mul(a, b) one = Constant <value_floats = [1.0]> () v = Expand(one, c)": 2000,
    "p = Constant <value_ints = [50]> () c = Mul(a, p) v = ConstantOfShape(c)": 5000,
    "s = Shape <start = 2> (x) c = Mul(s, s) m = ConstantOfShape(c) v = Reshape(m, open)": 40_000,
    "c = Mul(a, b) m = ConstantOfShape(c) s = Shape(m) t = Mul(s, s) v = ConstantOfShape(t)": 4_000_000,
    "c = Mul(a, b) m = ConstantOfShape(c) n = Size(m) u = Reshape(n, open) v = ConstantOfShape(u)": 2000,
    "t = Shape(x) v = ConstantOfShape(t)": 4,
    "t = Shape(x) d = Gather(t, end) c = Mul(d, a) v = ConstantOfShape(c)": 2000,
    "c0 = Mul(a, a) c1 = Mul(c0, c0) c2 = Mul(c1, c1) c3 = Mul(c2, c2) v = ConstantOfShape(c3)": 0,  # 10³² wraps
    "c = custom.Mul(a, b) v = ConstantOfShape(c)": 4,
}


def lengths(steps: str) -> Lengths:
    constants = CONSTANTS.replace(">", ", int64[1] end = {2}>").replace("int64 place = {1}", "int64[1] place = {1}")
    model = onnx.parser.parse_model(f"{HEAD} {constants} {{ {steps} y = custom.last(v) }}")
    return Lengths(onnx.shape_inference.infer_shapes(model))


@pytest.mark.parametrize(("steps", "longest"), LONGEST.items())
def test_the_longest_vector(steps: str, longest: int) -> None:
    assert max(4, lengths(steps).longest) == max(4, longest)


def test_functions_have_names_of_their_own() -> None:
    function = (
        '<domain: "custom", opset_import: ["" : 18]> f (p) => (q) {'
        " a = Constant <value_ints = [300]> () c = Mul(a, a) q = ConstantOfShape(c) }"
    )
    model = onnx.parser.parse_model(f"{HEAD} {CONSTANTS} {{ y = custom.f(x) }} {function}")
    assert Lengths(model).longest == 90_000


def test_a_node_that_cannot_run_tells_nothing() -> None:
    for steps in (
        "c = Mul(pair, pair) d = Gather(c, a) v = ConstantOfShape(d)",
        "z = Sub(a, a) m = ConstantOfShape(z) c = Concat <axis = 0> (z, open) v = Reshape(m, c)",
        "c = Concat <axis = 0> (pair, pair, a) d = Mul(c, pair) v = ConstantOfShape(d)",
    ):
        assert lengths(steps).longest < 1000


@pytest.mark.parametrize(("factor", "known"), [(5, True), (50_000, False)])
def test_data_are_not_propagated_along_long_vectors(factor: int, known: bool) -> None:
    steps = "c = Mul(a, b) v = ConstantOfShape(c) y = Cast <to = 1> (v)"
    text = f"<int64[1] a = {{100}}, int64[1] b = {{{factor}}}> {{ {steps} }}"
    model = ir.from_proto(onnx.parser.parse_model(HEAD + text))
    infer_shapes(model)
    shape = model.graph[1].outputs[0].shape
    assert shape is not None
    assert (shape == (500,)) == known

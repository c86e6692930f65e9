"""Loop and Scan in the oracle against ONNX Runtime, where onnx.reference stacks wrongly or gives up."""

from typing import Any

import numpy as np
import pytest

from normfuse.oracle import Oracle, OracleError
from tests.test_oracle import agree, draw, parse

BODY = """<body = body (int64 i, bool going, float[1,4] h)
    => (bool next, float[1,4] sum, float[1,4] copy, float[2] part)
    <int64[1] start = {1}, int64[1] end = {3}, int64[1] axis = {1}, int64[1] first = {0}>
    {
        step = Cast <to: int = 1> (i)
        near = Mul (x, step)
        copied = Add (h, near)
        copy = Identity (copied)
        sum = Tanh (copied)
        wide = Slice (sum, start, end, axis)
        part = Squeeze (wide, first)
        two = Constant <value_int: int = 2> ()
        next = LESS (i, two)
    }>"""


def loop(inputs: str = "n, on, x", less: str = "Less") -> Any:
    return parse(
        "g (float[1,4] x, int64 n, bool on) => (float[1,4] last, float[N,1,4] all, float[N,2] some)"
        f" {{ last, all, some = Loop ({inputs}) {BODY.replace('LESS', less)} }}"
    )


@pytest.mark.parametrize("inputs", ["n, on, x", "n, , x", ", on, x"])
@pytest.mark.parametrize("rounds", [1, 2, 7])
def test_a_loop_stacks_what_its_rounds_return(inputs: str, rounds: int) -> None:
    """Its condition ends it after three rounds; a row of 1×4 a round is not a row of 4."""
    truth = agree(loop(inputs), x=draw((1, 4)), n=np.int64(rounds), on=np.bool_(True))
    expected = 3 if inputs.startswith(",") else min(rounds, 3)
    assert truth["all"].shape == (expected, 1, 4)
    assert truth["some"].shape == (expected, 2)


def test_a_loop_that_never_runs_is_not_judged() -> None:
    with pytest.raises(OracleError, match="never runs"):
        Oracle(loop()).run({"x": draw((1, 4)), "n": np.asarray(0), "on": np.asarray(True)})


def test_a_loop_that_collects_nothing_may_never_run() -> None:
    model = parse(
        "g (float[2] x, int64 n) => (float[2] y)"
        " { y = Loop (n, , x) <body = b (int64 i, bool on, float[2] h) => (bool go, float[2] s)"
        " { go = Identity (on) s = Add (h, x) }> }"
    )
    x = draw((2,))
    np.testing.assert_array_equal(agree(model, x=x, n=np.int64(0))["y"], x.astype(np.float64))
    np.testing.assert_array_equal(agree(model, x=x, n=np.int64(3))["y"], 4 * x.astype(np.float64))


@pytest.mark.parametrize(
    "attributes",
    [
        "num_scan_inputs = 2",
        "num_scan_inputs = 2, scan_input_directions = [1, 0], scan_output_directions = [0, 1]",
        "num_scan_inputs = 2, scan_input_axes = [0, -2], scan_output_axes = [1, -1]",
        "num_scan_inputs = 2, scan_input_axes = [0, 0], scan_input_directions = [0, 1], scan_output_axes = [0, 1]",
    ],
)
def test_a_scan_goes_along_any_axis_both_ways(attributes: str) -> None:
    model = parse(
        "g (float[3] s, float[5,3] x, float[5,3] z) => (float[3] last, float a, float b)"
        f" {{ last, a, b = Scan <{attributes},"
        " body = body (float[3] h, float[3] p, float[3] q) => (float[3] n, float[3] c, float[3] d)"
        " { r = Tanh (h) m = Mul (r, p) n = Add (m, q) c = Identity (n) d = Sub (p, q) }> (s, x, z) }"
    )
    for value in model.graph.outputs[1:]:
        value.shape = None
    agree(model, s=draw((3,), 1), x=draw((5, 3), 2), z=draw((5, 3), 3))


def test_a_loop_in_a_function_reads_the_attributes_of_the_call() -> None:
    model = parse(
        "g (float[2] x, int64 n) => (float[N,2] y) { y = own.turn <slope = 0.25> (n, x) }",
        extra="""
        <domain: "own", opset_import: ["" : 18]>
        turn <slope> (n, x) => (all) {
            last, all = Loop (n, , x) <body = b (int64 i, bool on, float[2] h) => (bool go, float[2] s, float[2] t)
                { go = Identity (on) s = HardSigmoid <alpha: float = @slope> (h) t = Identity (s) }>
        }""",
    )
    model.opset_imports["own"] = 1
    agree(model, x=-np.abs(draw((2,))), n=np.int64(3))

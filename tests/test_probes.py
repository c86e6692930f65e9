"""Probes: what is drawn, at which sizes, and from which data."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from normfuse.errors import NormfuseError
from normfuse.probes import Inputs, Probe, data_probes, move, moved, plan, probes

TABLES = """
<ir_version: 8, opset_import: ["" : 17]>
g (int64[batch,sequence] ids, int64[batch,sequence] mask, int64[batch,sequence] types,
   float[50,4] words, float[3,4] kinds) => (float y)
{
    a = Gather (words, ids)
    wide = Cast <to = 7> (types)
    b = Gather (kinds, wide)
    m = Cast <to = 1> (mask)
    i = Constant <value_ints = [-1]> ()
    n = Unsqueeze (m, i)
    c = Add (a, b)
    y = Mul (c, n)
}
"""


def parse(inputs: str, opset: int = 17) -> ir.Model:
    names = [part.split()[-1] for part in inputs.split(", ")]
    body = " ".join(f"y{i} = Identity ({name})" for i, name in enumerate(names))
    outputs = ", ".join(f"{part.split('[')[0].split()[0]} y{i}" for i, part in enumerate(inputs.split(", ")))
    return ir.from_onnx_text(f'<ir_version: 8, opset_import: ["" : {opset}]> g ({inputs}) => ({outputs}) {{ {body} }}')


def shape_is(**wanted: Any) -> Any:
    """Accepts inputs whose sizes satisfy a condition each."""

    def accepts(inputs: Inputs) -> bool:
        return all(condition(inputs[name].shape) for name, condition in wanted.items())

    return accepts


def by_family(model: ir.Model, accepts: Any = lambda inputs: True, **settings: Any) -> dict[str, Probe]:
    return {probe.family: probe for probe in plan(model, accepts, **settings).probes(0)}


def test_families_have_the_statistics_they_are_named_for() -> None:
    drawn = by_family(parse("float[2,8,40,40] x"))
    x = {family: probe.inputs["x"] for family, probe in drawn.items()}
    assert all(array.shape == (2, 8, 40, 40) and array.dtype == np.float32 for array in x.values())
    assert x["scale 1"].std() == pytest.approx(1, rel=0.05)
    assert x["scale 1e-3"].std() == pytest.approx(1e-3, rel=0.05)
    assert x["scale 1e2"].std() == pytest.approx(1e2, rel=0.05)
    assert x["mean 30"].mean() == pytest.approx(30, rel=0.01)
    assert x["mean 1e3"].mean() == pytest.approx(1e3, rel=0.01)
    assert x["mean 1e3"].std() == pytest.approx(1, rel=0.05)
    assert not np.ptp(x["constant rows"], axis=-1).any()
    assert np.ptp(x["constant rows"][..., 0]) > 1
    assert np.abs(x["heavy tails"]).max() > 20
    channels = np.sort(x["large channel"].std(axis=(0, 2, 3)))
    assert channels[-1] > 50 * channels[-2]
    assert 0 <= x["unit interval"].min() < x["unit interval"].max() <= 1


def test_every_second_float_input_is_a_mask_and_then_the_others_are() -> None:
    drawn = by_family(parse("float[20,30] x, int64[4] i, float[20,30] z, float[20,30] w"))
    for family, masks in (("zeros and ones", "xw"), ("other zeros and ones", "z")):
        inputs = drawn[family].inputs
        assert {name for name in "xzw" if set(np.unique(inputs[name])) == {0.0, 1.0}} == set(masks)
    assert not {"zeros and ones", "other zeros and ones"} & set(by_family(parse("float[20,30] x, int64[4] i")))


def test_seeds_differ_and_repeat() -> None:
    found = plan(parse("float[2,3] x"), lambda inputs: True)
    first, again, other = (next(found.probes(seed)).inputs["x"] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).all()


def test_dynamic_dimensions_take_two_sizes_and_namesakes_the_same() -> None:
    model = parse("float[N,3,H,W] x, float[N,T] z")
    drawn = by_family(model, shape_is(x=lambda s: s[2] % 32 == 0 and s[3] % 32 == 0))
    base, batch, second = (drawn[family].inputs for family in ("scale 1", "batch 3", "second size"))
    assert base["x"].shape[0] == base["z"].shape[0] == 1
    assert batch["x"].shape[0] == batch["z"].shape[0] == 3
    assert all(a != b for a, b in zip(base["x"].shape[2:], second["x"].shape[2:], strict=True))
    assert base["z"].shape[1] != second["z"].shape[1]


def test_sizes_are_searched_until_the_model_accepts_them() -> None:
    drawn = by_family(parse("float[N,3,H,W] x"), shape_is(x=lambda s: s[2] == 48 and s[3] >= 96))
    assert drawn["scale 1"].inputs["x"].shape[2] == 48
    assert "second size" in drawn


def test_a_size_that_the_exporter_baked_in_is_found() -> None:
    model = ir.from_onnx_text(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[b,t,6] x) => (float y)'
        " { i = Constant <value_ints = [-1,11,6]> () y = Reshape (x, i) }"
    )
    drawn = by_family(model, shape_is(x=lambda s: s[1] == 11))
    assert drawn["scale 1"].inputs["x"].shape == (1, 11, 6)


@pytest.mark.parametrize(
    ("body", "window"),
    [
        ("float[8,1,256] w) => (float y) { y = Conv (x, w) }", 256),
        ("float[8,1,9] w) => (float y) { y = Conv (x, w) }", 0),
        ("int64 step, float[400] w) => (float y) { y = STFT (x, step, w) }", 400),
        (
            "int64 step) => (float y) { n = Constant <value_int = 320> () z = STFT (x, step, , n) y = Identity (z) }",
            320,
        ),
        ("float w) => (float y) { n = Constant <value_int = 512> () y = DFT (x, n) }", 512),
        (
            "float w) => (float y) { p = Constant <value_ints = [0, 0, 200, 0, 0, 100]> ()"
            ' y = Pad <mode = "reflect"> (x, p) }',
            200,
        ),
        (
            "bool w) => (float y) { y = If (w) <then_branch = a () => (float t) {"
            " n = Constant <value_int = 512> () t = DFT (x, n) }, else_branch = b () => (float t) { t = Neg (x) }> }",
            512,
        ),
    ],
)
def test_a_signal_is_as_long_as_the_windows_that_go_along_it(body: str, window: int) -> None:
    model = ir.from_onnx_text(f'<ir_version: 8, opset_import: ["" : 17]> g (float[N,1,T] x, {body}')
    drawn = by_family(model, shape_is(x=lambda s: s[2] >= window))
    assert drawn["scale 1"].inputs["x"].shape[2] == (2 * window or 7)


def test_the_batch_of_a_state_is_not_its_first_axis() -> None:
    """A state is (layers, batch, width); what is (1, time, width) keeps its time."""
    model = parse("float[b,c] x, float[2,n,128] state")
    drawn = by_family(model, lambda inputs: inputs["state"].shape[1] == inputs["x"].shape[0])
    assert drawn["scale 1"].inputs["state"].shape == (2, 1, 128)
    assert drawn["batch 3"].inputs["state"].shape == (2, 3, 128)
    assert by_family(parse("float[1,t,16] x"))["scale 1"].inputs["x"].shape == (1, 7, 16)


def test_numbers_that_a_model_asks_for_are_drawn_too() -> None:
    model = ir.from_onnx_text(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[2] x, int64 rate, int64[4] ids) => (float y, bool pads) {
            wanted = Constant <value_int = 16000> () fast = Equal (rate, wanted) pads = Equal (ids, wanted)
            y = If (fast) <then_branch = a () => (float t) { t = Neg (x) }, else_branch = b () => (float t)
                { t = Abs (x) }>
        }"""
    )
    drawn = [probe.inputs for probe in plan(model, lambda inputs: True).probes(0)]
    rates = {int(inputs["rate"]) for inputs in drawn}
    assert 16000 in rates
    assert len(rates) > 1
    assert all((inputs["ids"] < 2).all() for inputs in drawn)


def test_question_marks_are_not_one_dimension() -> None:
    drawn = by_family(parse("float[N,3,?,?] x"), shape_is(x=lambda s: s[2] == 32 and s[3] == 96))
    assert drawn["scale 1"].inputs["x"].shape == (1, 3, 32, 96)


def test_a_model_that_accepts_nothing_is_an_error() -> None:
    with pytest.raises(NormfuseError, match=r"took no sizes of its dynamic dimensions \(N, H, W\)"):
        plan(parse("float[N,3,H,W] x"), lambda inputs: False)


def test_the_caller_may_know_shapes_and_sizes() -> None:
    drawn = by_family(parse("float[N,3,H,W] x, float[N,K] z"), shapes={"x": (2, 3, 48, 320), "K": 11})
    assert drawn["scale 1"].inputs["x"].shape == (2, 3, 48, 320)
    assert drawn["scale 1"].inputs["z"].shape == (1, 11)


def test_integers_stay_below_the_table_they_index() -> None:
    model = ir.from_onnx_text(TABLES)
    for value in list(model.graph.inputs)[3:]:
        model.graph.inputs.remove(value)
        shape = (50, 4) if value.name == "words" else (3, 4)
        value.const_value = ir.tensor(np.ones(shape, np.float32), name=value.name)
        model.graph.initializers.add(value)
    drawn = list(probes(model, seed=0))
    names = ("ids", "mask", "types")
    ids, mask, types = (np.concatenate([probe.inputs[name].ravel() for probe in drawn]) for name in names)
    assert 20 < ids.max() < 50
    assert set(types) == {0, 1, 2}
    assert set(mask) == {0, 1}
    assert {"scale 1", "constant rows", "batch 3", "second size"} == {probe.family for probe in drawn}
    assert all(probe.inputs["mask"].any(axis=-1).all() for probe in drawn)


def test_booleans_and_scalars() -> None:
    drawn = by_family(parse("bool[5] c, float s, int64 n"))
    inputs = drawn["scale 1"].inputs
    assert inputs["c"].dtype == np.bool_
    assert inputs["c"].any()
    assert inputs["s"].shape == inputs["n"].shape == ()
    assert 0 <= inputs["n"] < 2


def test_strings_need_data() -> None:
    with pytest.raises(NormfuseError, match="input 's' is STRING: give data"):
        plan(parse("string[2] s"), lambda inputs: True)


def test_data_from_files_and_mappings(tmp_path: Path) -> None:
    model = parse("float[N,2] x")
    path = tmp_path / "a.npz"
    np.savez(path, x=np.ones((3, 2)))
    found = data_probes(model, [path, {"x": np.zeros((1, 2), np.float32)}])
    assert [probe.inputs["x"].shape for probe in found] == [(3, 2), (1, 2)]
    assert all(probe.family == "data" and probe.inputs["x"].dtype == np.float32 for probe in found)
    assert data_probes(model, None) == []


def test_given_shapes_that_a_model_refuses_are_named() -> None:
    model = parse("float[N,2] x")
    with pytest.raises(NormfuseError, match="does not run on inputs of these shapes: x 3×4; give others"):
        plan(model, lambda _: False, {"x": (3, 4)})


def test_data_that_does_not_fit_is_an_error(tmp_path: Path) -> None:
    model = parse("float[N,2] x")
    with pytest.raises(NormfuseError, match="no array for input 'x', only z"):
        data_probes(model, {"z": np.ones(2)})
    path = tmp_path / "text.npz"
    path.write_text("no archive")
    with pytest.raises(NormfuseError, match=r"text\.npz: not an \.npz file"):
        data_probes(model, path)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_integers_are_exact_and_do_not_move_unless_they_have_no_bits_for_a_fraction(dtype: Any) -> None:
    exact = np.array([0, 1, -1, 2, 100], dtype)
    large = np.array([1 / np.finfo(dtype).eps], dtype)
    assert np.array_equal(move(exact, np.random.default_rng(0)), exact)
    assert (move(large, np.random.default_rng(0)) != large).all()


def test_moved_inputs_differ_by_one_unit_in_the_last_place() -> None:
    inputs: Inputs = {"x": np.linspace(-3.1, 3.1, 50, dtype=np.float32), "n": np.arange(3)}
    there = moved(inputs, 1)
    steps = np.abs(there["x"] - inputs["x"]) / np.spacing(np.abs(inputs["x"]))
    assert ((steps >= 0.5) & (steps <= 1)).all()
    assert {-1, 1} == set(np.sign(there["x"] - inputs["x"]))
    np.testing.assert_array_equal(there["n"], inputs["n"])

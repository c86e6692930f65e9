"""`reduce` names the value and the change that make a model wrong, and writes a case that shows it."""

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from normfuse import cut, pipeline
from normfuse.certification import Certifier
from normfuse.cli import main
from normfuse.contest import Contest
from normfuse.culprits import minimal
from normfuse.errors import NormfuseError
from normfuse.model import load
from normfuse.passes import fold, fold_rules
from normfuse.passes.deal import Offer
from normfuse.probes import Probe
from normfuse.reduction import Reduction, reduce
from normfuse.verification import verify
from normfuse.witness import Gauge, judge_probe
from tests.parity import Array, batch_norm, build, rng

NET = (
    "(float[N,4,8,8] x) => (float[N,3,4,4] y) { a = Conv(x, w)"
    "  b = BatchNormalization(a, n_scale, n_bias, n_mean, n_var)  c = Relu(b)"
    "  d = LayerNormalization <axis: int = -1, epsilon: float = 1e-3> (c, g)  e = Softmax <axis: int = AXIS> (d)"
    "  f = Add(e, c)  h = Conv(f, v, k)  y = Tanh(h) }"
)


def net(axis: int = 2, **weights: Any) -> onnx.ModelProto:
    """Conv → BatchNorm → Relu → LayerNorm → Softmax, and past it → Conv → Tanh; square: axes can be confused."""
    own = {
        "w": (5, 4, 3, 3),
        "g": rng("g").uniform(0.5, 2.0, 6).astype(np.float32),
        "v": (3, 5, 3, 3),
        "k": (3,),
        **batch_norm("n", 5),
    }
    return build(NET.replace("AXIS", str(axis)), opset=17, **{**own, **weights})


def floats(*values: float) -> Array:
    return np.array(values, np.float32)


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


def with_epsilon(epsilon: float) -> onnx.ModelProto:
    model = net()
    node = next(one for one in model.graph.node if one.name == "d")
    next(one for one in node.attribute if one.name == "epsilon").f = epsilon
    return model


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def fails(found: Reduction) -> bool:
    assert found.case is not None
    return not verify(found.case.before, found.case.after, data=found.case.inputs, seeds=1).passed


@pytest.mark.parametrize(
    ("wrong", "first", "nodes", "inputs"),
    [
        (lambda: with_epsilon(0.0), "d", (1, 1), {"c"}),
        (lambda: net(k=floats(0.1, 0.2, 0.3)), "h", (1, 1), {"f"}),
        (lambda: net(axis=3), "e", (1, 1), {"d"}),
        (lambda: net(n_var=batch_norm("other", 5)["other_var"]), "b", (1, 1), {"a"}),
        (lambda: net(w=rng("u").normal(size=(5, 4, 3, 3)).astype(np.float32)), "a", (1, 1), {"x"}),
    ],
    ids=["epsilon", "bias", "axis", "variance", "weight"],
)
def test_the_first_value_that_diverges_is_cut_out(wrong: Any, first: str, nodes: Any, inputs: set[str]) -> None:
    found = reduce(net(), wrong(), seeds=1)
    assert found.diverges
    assert found.level == "disabled"
    assert found.first == first, [(row.name, row.ratio) for row in found.values]
    assert found.case is not None
    assert found.case.sizes == nodes
    assert set(found.case.inputs) == inputs
    assert all(array.shape[0] == 1 for array in found.case.inputs.values())
    assert fails(found)
    rows = {row.name: row for row in found.values}
    order = list(rows)
    assert all(rows[name].agrees for name in order[: order.index(first)])
    assert not rows[first].agrees
    assert [row.depth for row in found.values] == sorted(row.depth for row in found.values)


def test_what_computes_the_same_has_nothing_to_reduce(tmp_path: Path) -> None:
    found = reduce(net(), net(), tmp_path / "case", seeds=1)
    assert not found.diverges
    assert found.case is None
    assert not (tmp_path / "case").exists()


def folded() -> ir.Model:
    """The net as normfuse makes it: `a` holds what `b` held."""
    model = load(net())
    pipeline.rewrite(model, "cpu")
    assert [node.op_type for node in model.graph][:2] == ["Conv", "Relu"]
    return model


def scale_constant(value: ir.Value | None) -> None:
    """Makes a constant one per cent larger."""
    assert value is not None
    assert value.const_value is not None
    value.const_value = ir.tensor(value.const_value.numpy() * np.float32(1.01), name=value.name)


def test_a_value_that_a_fold_gave_another_meaning_is_not_blamed() -> None:
    model = folded()
    scale_constant(model.graph.initializers["k"])
    found = reduce(net(), model, seeds=1)
    assert found.first == "h"
    assert fails(found)


def test_a_wrong_fold_is_blamed_where_its_result_is_complete() -> None:
    model = folded()
    scale_constant(next(iter(model.graph)).inputs[1])
    found = reduce(net(), model, seeds=1)
    assert found.first in ("b", "c"), found.first
    assert found.case is not None
    assert set(found.case.inputs) == {"x"}
    assert found.case.sizes[0] > found.case.sizes[1]
    assert fails(found)


def test_two_faults_are_told_apart() -> None:
    model = with_epsilon(0.1)
    bias = next(one for one in model.graph.initializer if one.name == "k")
    bias.CopyFrom(onnx.numpy_helper.from_array(floats(3, 2, 1), "k"))
    found = reduce(net(), model, seeds=1)
    assert found.first == "d"
    assert found.case is not None
    assert found.case.sizes == (1, 1)


def test_what_a_softmax_at_the_output_hides_is_found() -> None:
    text = "(float[N,16] x) => (float[N,5] y) { a = MatMul(x, w)  b = Add(a, k)  y = Softmax(b) }"
    same: dict[str, Any] = {"w": (16, 5)}
    found = reduce(build(text, **same, k=(5,)), build(text, **same, k=floats(0, 0, 0, 0, 1)), seeds=1)
    assert found.diverges
    assert found.first in ("b", "y")
    assert fails(found)


def test_captured_values_and_computed_shapes_are_cut_with_their_node() -> None:
    text = """(float[N,3,4] x, bool p) => (float[N,12] y) {
        a = Exp(x)  s = Shape(x)  t = Gather(s, zero)  u = Unsqueeze(t, axes)  r = Concat <axis: int = 0> (u, rest)
        f = Reshape(a, r)  m = Mul(f, c)
        y = If (p) <
            then_branch = yes () => (float[N,12] one) { one = Mul(m, SCALE) },
            else_branch = no () => (float[N,12] two) { two = Neg(m) }
        > }"""
    whole: dict[str, Any] = {
        "zero": np.int64(0),
        "axes": ints(0),
        "rest": ints(12),
        "c": (12,),
        "k": np.float32(2),
        "l": np.float32(2.1),
    }
    right, wrong = (build(text.replace("SCALE", scale), **whole) for scale in "kl")
    found = reduce(right, wrong, seeds=1)
    assert found.first == "y"
    assert found.case is not None
    assert "m" in found.case.inputs
    assert fails(found)
    moved = reduce(right, build(text.replace("SCALE", "k"), **{**whole, "c": np.full(12, 0.3, np.float32)}), seeds=1)
    assert moved.first == "m"
    assert moved.case is not None
    assert set(moved.case.inputs) == {"f"}


def test_an_optimizer_of_the_runtime_that_is_wrong_is_named() -> None:
    """ONNX Runtime takes a fourth power for a variance; written as products it does not."""
    text = (
        "(float[N,5,16] x) => (float[N,5,16] y) {{ i = Relu(x)  m = ReduceMean <axes: ints = [-1]> (i)  d = Sub(i, m)"
        "  {power}  v = ReduceMean <axes: ints = [-1]> (p)  t = Add(v, e)  o = Sqrt(t)  z = Div(d, o)"
        "  s = Mul(z, g)  h = Add(s, b)  y = Tanh(h) }}"
    )
    weights: dict[str, Any] = {"e": np.float32(1e-5), "g": (16,), "b": (16,)}
    plain = build(text.format(power="q = Mul(d, d)  p = Mul(q, q)"), opset=17, **weights)
    power = build(text.format(power="p = Pow(d, four)"), opset=17, four=np.float32(4), **weights)
    found = reduce(plain, power, seeds=1)
    assert found.level == "enabled"
    assert any("ONNX Runtime's own optimizer" in note for note in found.notes)
    assert found.case is not None
    assert not found.case.whole
    assert fails(found)


def test_a_candidate_that_does_not_run_is_cut_down() -> None:
    text = "(float[N,6] x) => (float[N,6] y) {{ a = Exp(x)  b = Reshape(a, s)  c = Abs(b)  y = Reshape(c, o) }}"
    weights: dict[str, Any] = {"o": ints(-1, 6)}
    found = reduce(
        build(text.format(), s=ints(-1, 3), **weights),
        build(text.format(), s=ints(-1, 5), **weights),
        seeds=1,
    )
    assert found.diverges
    assert found.case is not None
    assert fails(found)
    assert max(found.case.sizes) <= 2


def test_models_of_another_signature_are_not_reduced() -> None:
    found = reduce(net(), build("(float[N,4,8,8] z) => (float[N,4,8,8] y) { y = Neg(z) }"))
    assert found.diverges
    assert found.case is None
    assert "the inputs are z, not x" in found.reason
    assert "cannot be reduced" in found.notes[0]


@pytest.mark.parametrize(
    ("signature", "what", "hint"),
    [
        ("(float[N,4] z, float[N,4] u) => (float[N,4] y)", "the inputs are z, u, not x, u", "the same names"),
        ("(float[N,4] u, float[N,4] x) => (float[N,4] y)", "the inputs are u, x, not x, u", "in one order"),
        ("(float[N,4] x) => (float[N,4] y)", "the inputs are x, not x, u", "what the other has not"),
        ("(float[N,4] x, float[N,4] u) => (float[N,4] w)", "the outputs are w, not y", "output_names of torch"),
        ("(float[2,4] x, float[N,4] u) => (float[N,4] y)", "has shape [2,4]", "the same dimensions dynamic"),
        ("(float[4] x, float[N,4] u) => (float[N,4] y)", "has shape [4]", "the same number of dimensions"),
        ("(float[N,4] x, float[N,4] u) => (float[N,5] y)", "has shape [N,5]", "for the same sizes"),
        ("(double[N,4] x, float[N,4] u) => (float[N,4] y)", "is DOUBLE, not FLOAT", "a Cast beside it"),
    ],
)
def test_what_to_do_about_another_signature_is_said(signature: str, what: str, hint: str) -> None:
    first, *_, output = re.findall(r"(?<=\] )\w+", signature)
    candidate = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> g {signature} {{ {output} = Identity({first}) }}'
    )
    reference = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[N,4] x, float[N,4] u) => (float[N,4] y) { y = Add(x, u) }
    """)
    parity = verify(reference, candidate)
    assert not parity.passed
    assert what in parity.reason
    assert any(hint in note for note in parity.notes)


@given(st.integers(0, 30), st.data())
def test_delta_debugging_finds_what_was_planted(count: int, data: st.DataObject) -> None:
    wrong = data.draw(st.sets(st.integers(0, count), max_size=4))
    asked: list[tuple[int, ...]] = []

    def failing(some: Sequence[int]) -> bool:
        asked.append(tuple(some))
        return wrong <= set(some)

    assert minimal(range(count + 1), failing) == sorted(wrong)
    assert len(asked) == len(set(asked))


@given(st.data())
def test_delta_debugging_copes_with_changes_that_depend_on_one_another(data: st.DataObject) -> None:
    """An item counts only where the one it needs is there: what is found fails, and without any of its items passes."""
    needs = [data.draw(st.integers(-1, item - 1)) for item in range(12)]
    wrong = data.draw(st.sets(st.integers(0, 11), min_size=1, max_size=3))

    def failing(some: Sequence[int]) -> bool:
        made: set[int] = set()
        for item in some:
            if needs[item] < 0 or needs[item] in made:
                made.add(item)
        return wrong <= made

    found = minimal(range(12), failing)
    assert failing(found)
    assert not any(failing([other for other in found if other != item]) for item in found)


def plant(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Lets the fold of one node forget the shift, and lets no certificate see it."""

    def planted(law: Any) -> Any:
        def wrong(offer: Offer) -> Any:
            right = offer.node.name != name
            return law(offer if right else replace(offer, affine=offer.affine.scaling))

        return wrong

    rows = [replace(row, law=planted(row.law)) if row.name.endswith("-after") else row for row in fold_rules.ABSORB]
    monkeypatch.setattr(fold, "ABSORB", tuple(rows))
    monkeypatch.setattr(Certifier, "before", lambda self, nodes: "not judged")


CHAIN = "(float[N,3,9,9] x) => (float[N,4,a,b] y) {{ {body} y = {end} }}"


def chain(end: str = "GlobalAveragePool(r3)") -> onnx.ModelProto:
    """Conv → BatchNorm → Relu, four times."""
    body, weights, channels, data = "", dict[str, Any](), 3, "x"
    for i in range(4):
        body += (
            f"c{i} = Conv({data}, w{i})  n{i} = BatchNormalization(c{i}, {', '.join(f'p{i}_{part}' for part in PARTS)})"
        )
        body += f"  r{i} = Relu(n{i})  "
        weights |= {f"w{i}": (4, channels, 3, 3), **batch_norm(f"p{i}", 4)}
        channels, data = 4, f"r{i}"
    return build(CHAIN.format(body=body, end=end), **weights)


PARTS = ("scale", "bias", "mean", "var")


def test_the_change_that_is_wrong_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plant(monkeypatch, "c2")
    found = reduce(chain(), folder=tmp_path / "case")
    assert found.diverges
    assert found.changed >= 4
    assert found.changes is not None
    assert [change.nodes for change in found.changes] == [("n2",)]
    assert found.changes[0].rule.endswith("-after")
    assert found.first in ("n2", "r2")
    assert found.case is not None
    assert set(found.case.inputs) == {"r1"}
    assert found.folder == str(tmp_path / "case")
    assert "n2" in (tmp_path / "case" / "run.py").read_text()
    assert fails(found)


def test_what_stands_before_a_sigmoid_may_bear_another_name_in_each_candidate(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, "c1")
    found = reduce(chain("Sigmoid(n3)"))
    assert "(before Sigmoid)" in found.reason
    assert found.changes is not None
    assert [change.nodes for change in found.changes] == [("n1",)]
    assert found.first in ("n1", "r1")
    assert fails(found)


def test_another_failure_than_the_one_looked_for_does_not_count() -> None:
    text = "(float[N,6] x) => (float[N,6] y, float[N,6] z) { y = Mul(x, a)  z = Mul(x, b) }"

    def scaled(a: float, b: float) -> ir.Model:
        return load(build(text, a=np.float32(a), b=np.float32(b)))

    contest = Contest(scaled(2, 3), scaled(2.5, 3), "cpu")
    witness = judge_probe(contest, Probe("scale 1", {"x": rng("x").normal(size=(1, 6)).astype(np.float32)}))
    assert witness is not None
    gauge = Gauge(contest, witness)
    assert gauge.fails(scaled(2.4, 3))
    assert not gauge.fails(scaled(2, 3.5)), "another output"
    assert not gauge.fails(scaled(2 * (1 + 2e-6), 3)), "a hair"
    assert judge_probe(Contest(scaled(2, 3), scaled(2 * (1 + 2e-6), 3), "cpu"), witness.probe) is not None


def test_without_a_fault_optimizing_diverges_nowhere() -> None:
    found = reduce(chain())
    assert not found.diverges
    assert found.changed >= 4


def test_the_command_line_writes_a_case_that_fails(tmp_path: Path) -> None:
    onnx.save(net(), tmp_path / "a.onnx")
    onnx.save(with_epsilon(0.0), tmp_path / "b.onnx")
    folder = tmp_path / "case"
    result = run("reduce", tmp_path / "a.onnx", tmp_path / "b.onnx", "-o", folder, "--seeds", "1")
    assert result.exit_code == 1, result.output
    assert "first value that diverges: 'd' (LayerNormalization)" in result.output
    assert "first that diverges" in result.output
    assert f"written: {folder}" in result.output
    assert {path.name for path in folder.iterdir()} == {"before.onnx", "after.onnx", "inputs.npz", "run.py"}
    assert {path.name for path in tmp_path.iterdir()} == {"a.onnx", "b.onnx", "case"}
    models = [folder / "before.onnx", folder / "after.onnx"]
    assert run("verify", *models, "--data", folder / "inputs.npz").exit_code == 1
    ran = subprocess.run([sys.executable, folder / "run.py"], capture_output=True, text=True, check=False)
    assert ran.returncode == 1, ran.stderr
    assert "parity FAILED" in ran.stdout
    again = run("reduce", tmp_path / "a.onnx", tmp_path / "b.onnx", "-o", folder)
    assert again.exit_code == 2
    assert "is not empty" in again.output


def test_as_json(tmp_path: Path) -> None:
    onnx.save(net(), tmp_path / "a.onnx")
    onnx.save(net(axis=3), tmp_path / "b.onnx")
    result = run("reduce", tmp_path / "a.onnx", tmp_path / "b.onnx", "-o", tmp_path / "c", "--json", "--seeds", "1")
    assert result.exit_code == 1
    found = json.loads(result.output)
    assert (found["schema_version"], found["verb"], found["first"], found["level"]) == (1, "reduce", "e", "disabled")
    assert found["case"] == {
        "folder": str(tmp_path / "c"),
        "nodes": [1, 1],
        "inputs": {"d": [1, 5, 6, 6]},
        "output": "e",
        "whole": False,
    }
    assert {"name", "depth", "operator", "reference", "candidate", "ratio", "agrees", "shape"} == set(
        found["values"][0]
    )
    assert found["changes"] is None


def test_the_command_line_says_where_nothing_diverges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(net(), "a.onnx")
    result = run("reduce", "a.onnx")
    assert result.exit_code == 0, result.output
    assert "nothing diverges after" in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("a.onnx", "a.onnx", "--opset", "18"), 2, "--opset is for optimizing MODEL"),
        (("a.onnx", "--seeds", "1"), 2, "--seeds is for comparing MODEL"),
        (("a.onnx", "no.onnx"), 2, "there is no file no.onnx"),
        (("a.onnx", "text"), 3, "text"),
        (("a.onnx", "-o", "text"), 2, "text is a file"),
        (("a.onnx", "-o", "no/case"), 2, "there is no folder"),
        (("a.onnx", "--ignore", "nothing"), 2, "unknown rule"),
    ],
)
def test_what_cannot_be_reduced_is_said(
    arguments: tuple[str, ...], status: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(net(), "a.onnx")
    Path("text").write_text("no model")
    result = run("reduce", *arguments)
    assert result.exit_code == status, result.output
    assert message in result.output
    assert {path.name for path in tmp_path.iterdir()} == {"a.onnx", "text"}


def test_a_case_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(net())
    case = cut.Case(model, model, {"x": np.zeros((1, 4, 8, 8), np.float32)}, "y")

    def full(inputs: Any, path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cut, "_write_inputs", full)
    with pytest.raises(NormfuseError, match="No space left"):
        cut.write(case, tmp_path / "case", "it fails")
    assert list(tmp_path.iterdir()) == []


def test_inputs_of_any_name_and_type_come_back(tmp_path: Path) -> None:
    import ml_dtypes

    inputs: dict[str, Array] = {
        "file": floats(1, 2),
        "a/b:0": ints(3),
        "half": np.array([1.5, -2], ml_dtypes.bfloat16),
        "flag": np.array(True),
    }
    model = load(net())
    cut.write(cut.Case(model, model, inputs, "y"), tmp_path / "case", 'says "so"', "a\\b")
    with np.load(tmp_path / "case" / "inputs.npz", allow_pickle=False) as archive:
        back = dict(archive)
    assert set(back) == set(inputs)
    assert all(np.array_equal(back[name], inputs[name].astype(back[name].dtype)) for name in inputs)
    compile((tmp_path / "case" / "run.py").read_text(encoding="utf-8"), "run.py", "exec")

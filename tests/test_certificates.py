"""A certificate for each change: what is right passes, what is wrong is rolled back alone, and files are checked."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from click.testing import CliRunner

from normfuse import cli, pipeline
from normfuse.certificates import fingerprint, recheck
from normfuse.certification import Certifier, certify
from normfuse.errors import ParityError
from normfuse.model import load
from normfuse.passes import deal, fold, fold_rules, lower, lowering, lowerings
from normfuse.passes.access import RefusedError
from normfuse.passes.region import Region
from normfuse.report import Certificate
from tests.parity import batch_norm, build, ops, rng

NET = (
    "(float[N,3,12,12] x) => (float[N,5] y) { c = Conv(x, w)  n = BatchNormalization(c, a_scale, a_bias, a_mean, a_var)"
    "  r = Relu(n)  s = Mul(r, g)  d = Conv(s, v)  p = GlobalAveragePool(d)  f = Flatten(p)"
    "  m = ReduceMean <axes: ints = [1], keepdims: int = 1> (f)  z = Sub(f, m)  q = Mul(z, z)"
    "  t = ReduceMean <axes: ints = [1], keepdims: int = 1> (q)  e = Add(t, eps)  o = Sqrt(e)  l = Div(z, o)"
    "  h = Mul(l, gamma)  i = Add(h, beta)  y = MatMul(i, u) }"
)


def net() -> onnx.ModelProto:
    """Conv → BatchNorm → Relu → scale → Conv → pool → LayerNorm, spelled → MatMul."""
    return build(
        NET,
        opset=17,
        w=(4, 3, 3, 3),
        v=(6, 4, 1, 1),
        u=(6, 5),
        g=rng("g").uniform(0.5, 2.0, (4, 1, 1)).astype(np.float32),
        gamma=rng("gamma").normal(1.0, 0.5, 6).astype(np.float32),
        beta=rng("beta").normal(0.3, 1.0, 6).astype(np.float32),
        eps=np.float32(1e-5),
        **batch_norm("a", 4),
    )


def certificates(model: onnx.ModelProto, target: str = "cpu", **settings: Any) -> list[Certificate]:
    return pipeline.prove(load(model), target, **settings)[1].certificates


@pytest.mark.parametrize("target", ["portable", "cpu", "cuda"])
def test_each_change_of_a_net_has_a_certificate(target: str) -> None:
    _, report = pipeline.prove(load(net()), target)
    assert [(one.rule, one.nodes) for one in report.certificates] == [(one.rule, one.nodes) for one in report.changes]
    assert {one.verdict for one in report.certificates} == {"passed"}, report.certificates
    assert all(one.ratio <= 2 and one.before and one.seeds for one in report.certificates)
    assert {"scale 1e-3", "mean 1e3", "batch 3"} <= set(report.certificates[0].families)
    assert report.parity is not None
    assert report.parity.passed
    assert not report.left_out


def test_the_parts_are_the_smallest() -> None:
    found = {one.nodes[0]: one for one in certificates(net())}
    assert set(found["n"].before) == {"n", "c"}
    assert found["n"].after == ("c",)
    norm = next(one for one in found.values() if one.rule == "layer-norm")
    assert len(norm.after) == 1
    assert "f" not in norm.before


def test_certifying_changes_no_model() -> None:
    plain = load(net())
    pipeline.rewrite(plain, "cpu")
    original = load(net())
    before = fingerprint(original)
    certified, _ = pipeline.prove(original, "cpu")
    assert fingerprint(certified) == fingerprint(plain)
    assert fingerprint(original) == before
    assert all(value.dtype != ir.DataType.DOUBLE for node in original.graph for value in node.outputs)


CASES: dict[str, tuple[str, Any]] = {
    "float16": ("(float16[N,3,8,8] x) => (float16[N,4,6,6] y) { c = Conv(x, w)  y = Mul(c, s) }", np.float16),
    "float64": ("(double[N,3] x) => (double[N,4] y) { c = MatMul(x, w)  y = Mul(c, s) }", np.float64),
}


@pytest.mark.parametrize("name", ["float16", "float64"])
def test_of_other_precisions(name: str) -> None:
    text, dtype = CASES[name]
    shape = (4, 3, 3, 3) if "Conv" in text else (3, 4)
    scale = np.asarray(rng(name).uniform(0.5, 2.0, (4, 1, 1) if "Conv" in text else (4,)), dtype)
    found = certificates(build(text, dtype=dtype, w=shape, s=scale))
    assert [one.verdict for one in found] == ["passed"], found


def test_in_a_branch_that_reads_from_outside() -> None:
    text = (
        "(bool b, float[N,3,8,8] x) => (float[N,4,6,6] y) { o = Relu(x)  y = If (b) <"
        "then_branch = t () => (float[N,4,6,6] p) { c = Conv(o, w)  p = Mul(c, s) },"
        "else_branch = e () => (float[N,4,6,6] q) { q = Conv(o, w) }> }"
    )
    model = build(text, w=(4, 3, 3, 3), s=rng("s").uniform(0.5, 2.0, (4, 1, 1)).astype(np.float32))
    found = certificates(model)
    assert [(one.rule, one.verdict) for one in found] == [("conv-after", "passed")], found


def test_of_an_if_that_always_takes_one_branch() -> None:
    text = (
        "(float[N,4] x) => (float[N,4] y) { o = Relu(x)  i = If (yes) <"
        "then_branch = t () => (float[N,4] p) { p = Mul(o, o) }, else_branch = e () => (float[N,4] q) { q = Neg(o) }>"
        "  y = Exp(i) }"
    )
    found = certificates(build(text, yes=np.bool_(True)))
    assert [(one.rule, one.verdict, one.after) for one in found] == [("known-branch", "passed", ("Mul",))], found


def test_of_constants_and_shapes() -> None:
    text = (
        "(float[2,3,4] x) => (float[2,12] y) { s = Shape(x)  b = Gather(s, zero)  k = Unsqueeze(b, first)"
        "  r = Concat <axis: int = 0> (k, rest)  f = Reshape(x, r)  w = Exp(v)  y = Mul(f, w) }"
    )
    model = build(text, v=(12,), zero=np.int64(0), first=np.array([0], np.int64), rest=np.array([-1], np.int64))
    found = certificates(model)
    assert {one.rule for one in found} >= {"constant", "known-shape"}
    assert {one.verdict for one in found} == {"passed"}, found


def test_what_cannot_be_cut_out_is_not_judged() -> None:
    model = load(build("(float[N,3] x) => (float[N,3] y) { u = Mul(x, c)  y = Exp(u) }", c=(3,)))
    first, _ = list(model.graph)
    first.outputs[0].replace_all_uses_with(first.inputs[0])  # type: ignore[arg-type]  # it has two inputs
    with pytest.raises(RefusedError, match="nothing reads"):
        Region(model, [first])


def test_without_time_nothing_is_judged() -> None:
    found = certificates(net(), verify_budget=0)
    assert {one.verdict for one in found} == {"not judged"}
    assert "budget" in found[0].reason


def test_what_is_nan_throughout_is_not_judged() -> None:
    text = "(float[N,3] x) => (float[N,3] y) {{ s = Add(x, far) y = {}(s) }}"
    before, after = (load(build(text.format(name), far=np.float32(-1e5))) for name in ("Log", "Sqrt"))
    found = certify(before, after)
    assert (found.verdict, found.reason) == ("not judged", "its value 'y' is NaN or infinite on every probe")


def test_what_is_nan_throughout_is_refused() -> None:
    """Its changes cannot be judged, alone or together: the result is not given out."""
    text = "(float[N,3] x) => (float[N,3] y) { s = Add(x, far) l = Log(s) u = Mul(l, c) v = Mul(u, c) y = Relu(v) }"
    model = build(text, far=np.float32(-1e5), c=np.float32(3.0))
    with pytest.raises(ParityError, match=r"^nothing could be judged: output .y. is NaN"):
        pipeline.optimize(model, verify=True)
    assert pipeline.optimize(model, verify=True, data={"x": np.full((2, 3), 2e5, np.float32)}).report.changes


def wrong_bias(law: Callable[[deal.Offer], Any]) -> Callable[[deal.Offer], Any]:
    """A law that forgets the shift."""

    def planted(offer: deal.Offer) -> Any:
        return law(replace(offer, affine=offer.affine.scaling))

    return planted


def plant(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the rule that folds a BatchNorm into the convolution in front of it forget the shift."""
    rows = [replace(row, law=wrong_bias(row.law)) if row.name == "conv-after" else row for row in fold_rules.ABSORB]
    monkeypatch.setattr(fold, "ABSORB", tuple(rows))


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = tuple(
        replace(row, law=wrong_bias(row.law)) if row.name == "conv-after" else row for row in fold_rules.ABSORB
    )
    monkeypatch.setattr(fold, "ABSORB", rows)


@pytest.mark.usefixtures("planted")
def test_a_wrong_change_is_rolled_back_alone() -> None:
    _, report = pipeline.prove(load(net()), "cpu")
    assert report.parity is not None
    assert report.parity.passed
    assert [(rule, nodes) for rule, nodes, _ in report.left_out] == [("conv-after", ("n",))]
    refusal = next(one for one in report.refusals if one.node == "n" and "certificate" in one.reason)
    assert "times the original's" in refusal.reason
    assert {one.verdict for one in report.certificates} == {"passed"}
    assert any(change.rule == "layer-norm" for change in report.changes)


@pytest.mark.usefixtures("planted")
def test_without_a_proof_nothing_is_rolled_back() -> None:
    report = pipeline.optimize(net(), "cpu", verify=False).report
    assert not report.certificates
    assert any(change.nodes == ("n",) for change in report.changes)


def test_a_wrong_lowering_gives_way_to_the_next_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def coarse(law: Any) -> Any:
        def written(site: lowering.NormSite, emitter: Any, target: Any) -> ir.Value:
            result: ir.Value = law(site, emitter, target)
            emitter.nodes[-1].attributes["epsilon"] = ir.AttrFloat32("epsilon", 1e-2)
            return result

        return written

    rows = tuple(replace(row, law=coarse(row.law)) if row.name == "layer-norm" else row for row in lowerings.LOWERINGS)
    monkeypatch.setattr(lower, "LOWERINGS", rows)
    _, report = pipeline.prove(load(net()), "cpu")
    assert [rule for rule, _, _ in report.left_out] == ["layer-norm"]
    assert report.parity is not None
    assert report.parity.passed


def test_changes_that_never_end_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Certifier, "forbids", lambda self, rule, nodes: "")
    rows = tuple(
        replace(row, law=wrong_bias(row.law)) if row.name == "conv-after" else row for row in fold_rules.ABSORB
    )
    monkeypatch.setattr(fold, "ABSORB", rows)
    with pytest.raises(ParityError, match="--ignore conv-after leaves it out"):
        pipeline.prove(load(net()), "cpu")


def test_what_the_runtime_does_not_take_fails() -> None:
    before = load(build("(float[N,3] x) => (float[N,3] y) { y = Exp(x) }"))
    after = load(build("(float[N,3] x) => (float[N,3] y) { y = Exp(x) }"))
    next(iter(after.graph)).op_type = "GroupNorm"
    next(iter(after.graph)).domain = "com.microsoft"
    after.opset_imports["com.microsoft"] = 1
    found = certify(before, after)
    assert found.verdict == "failed"
    assert "does not take what was written" in found.reason


def test_a_large_part_that_only_holds_at_its_own_size_is_judged_there() -> None:
    mean = "(float[1,4,64,64] x) => (float[1,4,1,1] y) { y = ReduceMean <axes: ints = [2, 3]> (x) }"
    total = "(float[1,4,64,64] x) => (float[1,4,1,1] y) { s = ReduceSum(x, axes)  y = Mul(s, c) }"
    before = load(build(mean, opset=13))
    right, wrong = (
        load(build(total, opset=13, axes=np.array([2, 3], np.int64), c=np.float32(1 / size))) for size in (4096, 4000)
    )
    assert certify(before, right).verdict == "passed"
    assert certify(before, wrong).verdict == "failed"


# -- files


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A folder with a.onnx, b.onnx and c.json."""
    onnx.save(net(), tmp_path / "a.onnx")
    result = run("optimize", tmp_path / "a.onnx", "-o", tmp_path / "b.onnx", "--certificates", tmp_path / "c.json")
    assert result.exit_code == 0, result.output
    return tmp_path


def test_certificates_on_file_are_made_anew(written: Path) -> None:
    content = json.loads((written / "c.json").read_text())
    assert content["input"]["name"] == "a.onnx"
    assert {one["verdict"] for one in content["certificates"]} == {"passed"}
    result = run("verify", "--certificates", written / "c.json", written / "a.onnx", written / "b.onnx")
    assert result.exit_code == 0, result.output
    assert f"{len(content['certificates'])} made anew, all hold" in result.output
    as_json = run("verify", "--json", "--certificates", written / "c.json", written / "a.onnx", written / "b.onnx")
    assert json.loads(as_json.stdout)["certificates"]["passed"] is True


def edited(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        content = json.loads((folder / "c.json").read_text())
        change(content)
        (folder / "c.json").write_text(json.dumps(content))

    return edit


def touch_result(folder: Path) -> None:
    model = onnx.load(folder / "b.onnx")
    model.doc_string = "another file"
    onnx.save(model, folder / "b.onnx")


def nudge_weight(folder: Path) -> None:
    """The file is changed, and so is its hash in the certificates."""
    model = load(folder / "b.onnx")
    value = next(one for one in model.graph.initializers.values() if one.name == "v")
    assert value.const_value is not None
    array = value.const_value.numpy().copy()
    array.flat[0] = np.nextafter(array.flat[0], np.inf)
    value.const_value = ir.tensor(array, name=value.name)
    ir.save(model, folder / "b.onnx")
    import hashlib

    digest = hashlib.sha256((folder / "b.onnx").read_bytes()).hexdigest()
    edited(lambda content: content["output"]["files"].update({"": digest}))(folder)


WRONG = {
    "result touched": (touch_result, 1, "not the model that they are of"),
    "weight nudged": (nudge_weight, 1, "the steps do not lead to"),
    "certificate dropped": (edited(lambda content: content["certificates"].pop()), 1, "the steps make"),
    "other steps": (edited(lambda content: content["certificates"][0].update(nodes=["zz"])), 1, "the steps lead to"),
    "other settings": (edited(lambda content: content["settings"].update(ignore=["layer-norm"])), 1, "the steps"),
    "no certificates": (edited(lambda content: content.pop("certificates")), 2, "no file of certificates"),
    "schema": (edited(lambda content: content.update(schema_version=99)), 2, "its schema_version is 99, not 1"),
    "no JSON": (lambda folder: (folder / "c.json").write_text("{"), 2, "no file of certificates"),
    "missing": (lambda folder: (folder / "c.json").unlink(), 2, "c.json"),
}


@pytest.mark.parametrize("name", WRONG)
def test_certificates_that_do_not_hold(written: Path, name: str) -> None:
    spoil, status, message = WRONG[name]
    spoil(written)
    result = run("verify", "--certificates", written / "c.json", written / "a.onnx", written / "b.onnx")
    assert result.exit_code == status, result.output
    assert message in result.output


def test_the_models_must_be_those(written: Path) -> None:
    found = recheck(written / "c.json", written / "b.onnx", written / "b.onnx")
    assert not found.passed
    assert "not the model that they are made for" in found.reason


@pytest.mark.usefixtures("planted")
def test_what_was_left_out_is_left_out_again(tmp_path: Path) -> None:
    onnx.save(net(), tmp_path / "a.onnx")
    arguments: list[str | Path] = [
        "optimize",
        tmp_path / "a.onnx",
        "-o",
        tmp_path / "b.onnx",
        "--certificates",
        tmp_path / "c.json",
    ]
    assert run(*arguments).exit_code == 0
    assert json.loads((tmp_path / "c.json").read_text())["left_out"][0]["rule"] == "conv-after"
    assert recheck(tmp_path / "c.json", tmp_path / "a.onnx", tmp_path / "b.onnx").passed


@pytest.mark.parametrize("option", ["--no-verify", "--dry-run", "--check"])
def test_certificates_need_a_proof_and_a_file(written: Path, option: str) -> None:
    arguments: list[str | Path] = [
        "optimize",
        written / "a.onnx",
        "-o",
        written / "d.onnx",
        "--certificates",
        written / "d.json",
        option,
    ]
    result = run(*arguments)
    assert result.exit_code == 2
    assert not (written / "d.onnx").exists()
    assert not (written / "d.json").exists()


def test_a_fingerprint_outlives_saving() -> None:
    model = load(build("(float[N,3] x) => (float[N,3] y) { y = HardSigmoid(x) }"))
    next(iter(model.graph)).attributes["alpha"] = ir.AttrFloat32("alpha", 1 / 6)  # more digits than float32 has
    assert fingerprint(load(ir.to_proto(model))) == fingerprint(model)


def test_certificates_with_external_data(tmp_path: Path) -> None:
    onnx.save(net(), tmp_path / "a.onnx", save_as_external_data=True, size_threshold=64, location="a.data")
    result = run("optimize", tmp_path / "a.onnx", "-o", tmp_path / "b.onnx", "--certificates", tmp_path / "c.json")
    assert result.exit_code == 0, result.output
    assert set(json.loads((tmp_path / "c.json").read_text())["input"]["files"]) == {"", "a.data"}
    assert recheck(tmp_path / "c.json", tmp_path / "a.onnx", tmp_path / "b.onnx").passed
    data = bytearray((tmp_path / "a.data").read_bytes())
    data[0] ^= 1
    (tmp_path / "a.data").write_bytes(data)
    assert not recheck(tmp_path / "c.json", tmp_path / "a.onnx", tmp_path / "b.onnx").passed


def test_ops_of_the_net_are_as_without_certificates() -> None:
    assert ops(pipeline.optimize(net(), "cpu").model) == ops(pipeline.optimize(net(), "cpu", verify=False).model)


def test_what_lies_between_belongs_to_the_part() -> None:
    text = (
        "(float[2,4,4,8] x, float[2,4,4,8] z) => (float[2,4,4,8] y, float[2,8,4,4] v) { a = Add(x, z)"
        "  t = Transpose <perm = [0,3,1,2]> (a)  n = Exp(t)  y = Transpose <perm = [0,2,3,1]> (n)  v = Neg(t) }"
    )
    model = load(build(text))
    nodes = {str(node.name): node for node in model.graph}
    region = Region(model, [nodes["a"], nodes["n"]])
    assert [node.op_type for node in region.before.graph][:3] == ["Add", "Transpose", "Exp"]
    assert len(region.before.graph.inputs) == 2
    assert len(region.before.graph.outputs) == 2  # n for y, t for v


def suite_of(written: Path, status: int) -> list[tuple[str, str, str]]:
    """The cases that `verify --certificates --junit` writes: classname, name and the tag in it."""
    models = (written / "a.onnx", written / "b.onnx")
    result = run("verify", "--certificates", written / "c.json", *models, "--junit", written / "r.xml")
    assert result.exit_code == status, result.output
    (suite,) = ElementTree.parse(written / "r.xml").getroot()
    return [(case.attrib["classname"], case.attrib["name"], case[0].tag) for case in suite]


def test_junit_has_a_case_for_each_certificate(written: Path) -> None:
    stored = json.loads((written / "c.json").read_text())["certificates"]
    cases = suite_of(written, 0)
    found = [case for case in cases if case[0] == "normfuse.certificate"]
    names = [f"{number}: {one['rule']} of {', '.join(one['nodes'])}" for number, one in enumerate(stored, 1)]
    assert found == [("normfuse.certificate", name, "system-out") for name in names]
    assert len(found) > 1
    assert ("normfuse.certificates", "the steps", "system-out") in cases


def test_junit_tells_which_certificate_does_not_hold(written: Path) -> None:
    edited(lambda content: content["certificates"][1].update(verdict="failed", reason="ratio 7"))(written)
    tags = [tag for kind, _, tag in suite_of(written, 1) if kind == "normfuse.certificate"]
    assert tags == ["system-out", "failure", *["system-out"] * (len(tags) - 2)]
    edited(lambda content: content["certificates"][1].update(nodes=["zz"]))(written)
    cases = suite_of(written, 1)
    tags = [tag for kind, _, tag in cases if kind == "normfuse.certificate"]
    assert tags == ["system-out", "failure", *["skipped"] * (len(tags) - 2)]
    assert ("normfuse.certificates", "the steps", "failure") in cases

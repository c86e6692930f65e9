import datetime
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx
import onnx.numpy_helper
import pytest
from click.testing import CliRunner, Result

from normfuse import annotations, cli, junit, testcases, verification
from normfuse.certificates import Recheck, Renewed
from normfuse.errors import TargetError
from normfuse.metric import OutputParity
from normfuse.testcases import Case, Outcome
from normfuse.verification import Parity

WHEN = datetime.datetime(2020, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)


def output(name: str, passed: bool, level: str = "disabled") -> OutputParity:
    reason = "" if passed else "error 5 times the original's"
    return OutputParity(name, "float32", ((1, 3),), level, 1e-7, 5e-7, 5.0, "mean 30", 6.0, 1.0, passed, reason)


def model(path: Path, slope: float) -> str:
    proto = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        line (float[N, 4] x) => (float[N, 4] y, float[N, 4] z) { y = Mul (x, s)  z = Add (x, x) }
    """)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.full(4, slope, np.float32), "s"))
    onnx.save(proto, path)
    return str(path)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[str, str, str]:
    """The same model twice, and another one."""
    return model(tmp_path / "a.onnx", 2.0), model(tmp_path / "b.onnx", 2.0), model(tmp_path / "c.onnx", 2.1)


def invoke(arguments: Sequence[str], status: int, **environment: str) -> Result:
    known = {"GITHUB_ACTIONS": None, "GITHUB_STEP_SUMMARY": None}
    result = CliRunner().invoke(cli.main, list(arguments), env={**known, **environment})
    assert result.exit_code == status, result.output
    return result


def suite(path: Path) -> ElementTree.Element:
    root = ElementTree.fromstring(path.read_bytes())
    assert root.tag == "testsuites"
    (found,) = root
    cases = found.findall("testcase")
    assert int(found.attrib["tests"]) == len(cases) == len(found)
    for key, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        assert int(found.attrib[key]) == len(found.findall(f"testcase/{tag}"))
    assert all(float(case.attrib["time"]) >= 0 for case in cases)
    return found


def test_each_row_of_a_proof_is_a_case_and_the_times_add_up() -> None:
    outputs = (output("y", True), output("y", False, "enabled"))
    notes = ("not judged with TF32 on: one of the two is no ONNX model", "both models are large")
    parity = Parity(False, 5.0, outputs, notes, reason="output 'y', optimizer enabled: error 5 times the original's")
    cases = testcases.of_parity(parity, "cuda", 3.0)
    assert [(case.name, case.outcome) for case in cases] == [
        ("y [cuda, disabled]", "passed"),
        ("y [cuda, enabled]", "failed"),
        ("not judged with TF32 on", "skipped"),
    ]
    assert cases[1].message == "error 5 times the original's"
    assert "'mean 30'" in cases[1].text
    assert "5.000e-07" in cases[1].text
    assert sum(case.seconds for case in cases) == pytest.approx(3.0)


def test_a_failure_that_no_row_is_to_blame_for_is_a_case_too() -> None:
    for outputs in ((), (output("y", True),)):
        parity = Parity(False, float("inf"), outputs, reason="the inputs are a, not b")
        cases = testcases.of_parity(parity, "cpu", 1.0)
        assert [case.outcome for case in cases] == ["passed"] * len(outputs) + ["failed"]
        assert cases[-1].message == "the inputs are a, not b"
        assert sum(case.seconds for case in cases) == pytest.approx(1.0)


def test_each_certificate_is_a_case_and_the_times_add_up() -> None:
    renewed = (
        Renewed("layer-norm", ("a", "b"), "passed", "", (1.25, 1.25)),
        Renewed("conv-after", ("c",), "failed", "output 'y': its error is 5 times the original's", (1.0, 5.0)),
        Renewed("conv-after", ("c",), "not judged", "random", (0.0, 0.0)),
    )
    cases = testcases.of_certificates(Recheck(False, 3, "conv-after of c: …", renewed), 2.0)
    assert [(case.kind, case.name, case.outcome) for case in cases] == [
        ("certificate", "1: layer-norm of a, b", "passed"),
        ("certificate", "2: conv-after of c", "failed"),
        ("certificate", "3: conv-after of c", "skipped"),
        ("certificates", "the steps", "passed"),
    ]
    assert cases[1].message == "output 'y': its error is 5 times the original's"
    assert "1 on file, 5 made anew" in cases[1].text
    assert sum(case.seconds for case in cases) == pytest.approx(2.0)


def test_steps_that_lead_elsewhere_are_a_case_too() -> None:
    cases = testcases.of_certificates(Recheck(False, 0, "other bytes", (), "other bytes"), 1.0)
    assert [(case.outcome, case.message) for case in cases] == [("failed", "other bytes")]


def test_xml_holds_what_it_may_and_escapes_what_it_may_not() -> None:
    odd = 'a\x00\x1b[1m<&"]]>\udc80\ufffe\U0001f600 é\nb'
    cases = [Case("parity", odd, outcome, odd, odd, 0.25) for outcome in ("passed", "failed", "error", "skipped")]
    root = ElementTree.fromstring(junit.to_xml(odd, cases, WHEN))
    legal = 'a\\x00\\x1b[1m<&"]]>\\udc80\\ufffe\U0001f600 é\nb'
    (found,) = root
    assert found.attrib == {
        "name": legal,
        "tests": "4",
        "failures": "1",
        "errors": "1",
        "skipped": "1",
        "time": "1.000",
        "timestamp": "2020-01-02T03:04:05+00:00",
    }
    for case, tag in zip(found, ("system-out", "failure", "error", "skipped"), strict=True):
        assert case.attrib == {"classname": "normfuse.parity", "name": legal, "time": "0.250"}
        (child,) = case
        assert (child.tag, child.text) == (tag, legal)
        assert child.attrib == ({} if tag == "system-out" else {"message": legal})


def test_verify_writes_junit_where_it_passes_and_where_it_fails(pair: tuple[str, str, str], tmp_path: Path) -> None:
    file = tmp_path / "report.xml"
    invoke(["verify", pair[0], pair[1], "--junit", str(file)], 0)
    found = suite(file)
    assert {case.attrib["name"] for case in found} == {
        f"{name} [cpu, {level}]" for name in "yz" for level in ("disabled", "enabled")
    }
    assert (found.attrib["failures"], found.attrib["errors"]) == ("0", "0")
    assert float(found.attrib["time"]) > 0
    invoke(["verify", pair[0], pair[2], "--junit", str(file)], 1)
    found = suite(file)
    failures = {case.attrib["name"]: case.find("failure") for case in found if case.find("failure") is not None}
    assert all("worst element: y[" in str(one.text) for one in failures.values() if one is not None)
    failed = set(failures)
    assert failed == {f"y [cpu, {level}]" for level in ("disabled", "enabled")}
    assert sorted(os.listdir(tmp_path)) == ["a.onnx", "b.onnx", "c.onnx", "report.xml"]


def test_verify_tells_of_a_provider_that_failed(
    pair: tuple[str, str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> Parity:
        raise TargetError("ONNX Runtime failed: out of memory")

    monkeypatch.setattr(verification, "verify", fails)
    file = tmp_path / "report.xml"
    result = invoke(["verify", pair[0], pair[1], "--junit", str(file), "--annotations"], 4)
    (case,) = suite(file)
    error = case.find("error")
    assert error is not None
    assert error.attrib["message"] == "ONNX Runtime failed: out of memory"
    assert "::error file=" in result.stderr
    assert "out of memory" in result.stderr


@pytest.mark.parametrize(
    ("name", "reason"), [("no/x.xml", "no folder"), ("a.onnx", r"ends in \.xml"), ("in.xml", "is read")]
)
def test_a_place_for_junit_is_checked_before_work_starts(
    pair: tuple[str, str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, reason: str
) -> None:
    monkeypatch.setattr(verification, "verify", lambda *_, **__: pytest.fail("work has started"))
    (tmp_path / "in.xml").write_bytes(Path(pair[0]).read_bytes())
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    result = invoke(["verify", str(tmp_path / "in.xml"), pair[1], "--junit", str(tmp_path / name)], 2)
    assert len(result.stderr.splitlines()) == 1
    assert re.search(reason, result.stderr)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_github_gets_a_line_for_each_case_that_did_not_pass() -> None:
    outcomes: tuple[Outcome, ...] = ("passed", "failed", "error", "skipped")
    cases = [Case("parity", "a: 1,2%", outcome, "100 % of\r\nit: all, of it") for outcome in outcomes]
    end = "file=m%3A1%2C.onnx,title=normfuse parity%3A a%3A 1%2C2%25::100 %25 of%0D%0Ait: all, of it"
    assert annotations.annotations("m:1,.onnx", cases) == [f"::error {end}", f"::error {end}", f"::warning {end}"]


def test_the_summary_of_a_step_is_a_table_that_names_cannot_break() -> None:
    case = Case("parity", "a|b\n<script>`*_", "failed", "x\\y")
    text = annotations.summary("t", [case])
    assert text.splitlines()[4] == "| a\\|b &lt;script>\\`\\*\\_ | parity | failed | x\\\\y |"
    assert text.endswith("\n")


def test_annotations_are_made_on_github_or_where_asked_for(pair: tuple[str, str, str], tmp_path: Path) -> None:
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    on_github = {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(summary)}
    failing = ["verify", pair[0], pair[2], "--json"]
    result = invoke(failing, 1, **on_github)
    assert json.loads(result.stdout)["passed"] is False
    lines = [line for line in result.stderr.splitlines() if line.startswith("::")]
    assert len(lines) == 2
    assert all(line.startswith("::error file=") and "c.onnx" in line for line in lines)
    text = summary.read_text()
    assert text.startswith("before\n### normfuse verify")
    assert text.count("| failed |") == 2
    for arguments, environment in ((["--no-annotations"], on_github), ([], {})):
        assert "::" not in invoke([*failing, *arguments], 1, **environment).stderr
    assert summary.read_text() == text
    assert "::error" in invoke([*failing, "--annotations"], 1).stderr


def test_a_summary_that_cannot_be_written_ends_nothing(pair: tuple[str, str, str], tmp_path: Path) -> None:
    environment = {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(tmp_path)}
    assert "cannot be written" in invoke(["verify", pair[0], pair[1]], 0, **environment).stderr

"""scripts.compare and scripts.peers: what is counted, what is read from a command, and what a failure looks like."""

import json
import sys
from pathlib import Path

import onnx
import onnx.parser
import pytest

from normfuse.errors import NormfuseError
from scripts import compare, peers
from scripts.compare import OURS, Row, Size
from scripts.peers import Outcome

NESTED = """
<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
net (bool condition, float[N] x) => (float[N] y) {
    one = Constant <value = float {1.0}> ()
    z = local.twice (x)
    y = If (condition) <
        then_branch = yes () => (float[N] a) { a = Add(z, one) },
        else_branch = no () => (float[N] b) { c = Relu(z) b = Neg(c) }
    >
}
<domain: "local", opset_import: ["" : 17]>
twice (v) => (w) { w = Add(v, v) }
"""


def row(**nodes: int | None) -> Row:
    return Row("net", {name: Size(count, 0) for name, count in nodes.items()}, True, 1.0)


class TestSize:
    def test_counts_constants_subgraphs_and_functions(self, tmp_path: Path) -> None:
        path = tmp_path / "net.onnx"
        onnx.save(onnx.parser.parse_model(NESTED), path)
        assert Size.of(path) == Size(nodes=7, norms=0)


class TestRow:
    def test_fewest_counts_a_tie_and_ignores_failures(self) -> None:
        assert row(raw=9, onnxslim=5, onnxsim=None, normfuse=5).fewest
        assert not row(raw=9, onnxslim=4, normfuse=5).fewest
        assert not row(raw=9, onnxslim=4, normfuse=None).fewest

    def test_a_failed_proof_shows(self) -> None:
        cells = compare._cells(Row("net", {"raw": Size(9, 3), OURS: Size(None, None, "no")}, False, 7.5))
        assert cells == ["net", "9", "fails", "no", "3 → ?", "FAILED", "7.50"]


class TestCommands:
    def test_output_and_failure(self) -> None:
        assert peers.run((sys.executable, "-c", "print(5)")).output.strip() == "5"
        failed = peers.run((sys.executable, "-c", "raise SystemExit('first\\nlast')"))
        assert failed.problem == "last"

    def test_a_command_that_takes_too_long_has_failed(self) -> None:
        done = peers.run((sys.executable, "-c", "import time; time.sleep(30)"), timeout=0.2)
        assert done.problem == "not done after 0 s"

    def test_a_peer_that_writes_nothing_has_failed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(peers, "interpreter", lambda: Path(sys.executable))
        result = tmp_path / "result.onnx"
        result.write_text("an older result")
        done = peers.optimize(peers.Peer("silent", ("-c", "")), tmp_path / "net.onnx", result)
        assert done.problem == "wrote nothing"
        assert not result.exists()

    def test_an_environment_that_cannot_be_made(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("NORMFUSE_CACHE", str(tmp_path))
        monkeypatch.setattr(peers, "run", lambda command, timeout: Outcome(1.0, "", "no space left"))
        with pytest.raises(NormfuseError, match=r"cannot install the peers into .*: no space left"):
            peers.interpreter()
        assert not list(tmp_path.glob("*/complete"))


class TestProof:
    def test_is_read_from_the_report(self) -> None:
        content = json.dumps({"parity": {"passed": False, "ratio": 3.5}})
        assert compare._parity(Outcome(1.0, content, "parity failed")) == {"passed": False, "ratio": 3.5}

    def test_is_absent_where_there_is_no_report(self) -> None:
        assert compare._parity(Outcome(1.0, "", "no such file")) == {}

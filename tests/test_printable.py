"""Names that a model supplies give no orders to a terminal, whatever is printed of them."""

import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper, numpy_helper

import normfuse
from normfuse import annotations, cli, console_bench
from normfuse.bench import BenchTable
from normfuse.errors import NormfuseError
from normfuse.pytest_plugin import _assert_onnx_parity as assert_parity
from normfuse.testcases import Case
from normfuse.verb import Verb

ODD = "\x1b[2J\x07\n::error::\x9b\u2028\u202e é"
WRITTEN = r"\x1b[2J\x07\n::error::\x9b\u2028\u202e é"
ORDERS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]|\n::error::")


def named(name: str) -> str:
    """A name that orders the terminal about."""
    return f"{name}{ODD}"


def net(scale: float = 1.0, operator: str = "Tanh") -> onnx.ModelProto:
    """Sigmoid → BatchNormalization → Tanh → InstanceNormalization, in which every name is odd."""
    rng = np.random.default_rng(0)
    x, y = (helper.make_tensor_value_info(named(name), TensorProto.FLOAT, [named("N"), 3, 4]) for name in "xy")
    arrays = {name: rng.uniform(0.5, 2, 3).astype(np.float32) for name in ("scale", "bias", "mean", "var")}
    arrays["scale"] *= np.float32(scale)
    constants = [numpy_helper.from_array(array, named(name)) for name, array in arrays.items()]
    normalized = map(named, ("a", "scale", "bias", "mean", "var"))
    nodes = [
        helper.make_node("Sigmoid", [named("x")], [named("a")], named("gate")),
        helper.make_node("BatchNormalization", [*normalized], [named("b")], named("norm")),
        helper.make_node(operator, [named("b")], [named("c")], named("node")),
        helper.make_node("InstanceNormalization", [*map(named, ("c", "scale", "bias"))], [named("y")], named("last")),
    ]
    graph = helper.make_graph(nodes, named("graph"), [x], [y], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs the command line in a folder with models; nothing that it shows orders a terminal about."""
    monkeypatch.chdir(tmp_path)
    for name, made in {"m": net(), "other": net(1.5), "bad": net(operator=named("Op"))}.items():
        (tmp_path / f"{name}.onnx").write_bytes(made.SerializeToString())
    for name, of in {"batch": "x", "wrong": "z"}.items():
        arrays: dict[str, Any] = {named(of): np.ones((2, 3, 4), np.float32)}
        np.savez(tmp_path / f"{name}.npz", **arrays)

    def invoke(*arguments: str) -> Result:
        result = CliRunner().invoke(cli.main, arguments)
        assert ORDERS.search(result.output) is None, ORDERS.search(result.output)
        return result

    return invoke


COMMANDS = {
    "optimize m.onnx -o out.onnx -v": 0,
    "inspect m.onnx -v": 0,
    "inspect m.onnx --profile": 0,
    "verify m.onnx other.onnx --annotations": 1,
    "reduce m.onnx other.onnx": 1,
    "calibrate m.onnx batch.npz --dry-run -v": 0,
    "calibrate m.onnx wrong.npz --dry-run": 2,
    "verify m.onnx other.onnx --data wrong.npz": 2,
    "optimize bad.onnx -o out.onnx": 3,
    "optimize bad.onnx -o out.onnx --debug": 3,
}
"""What is run, and the exit status."""


@pytest.mark.parametrize("command", COMMANDS)
def test_the_command_line_shows_names_escaped(run: Callable[..., Result], command: str) -> None:
    result = run(*command.split())
    assert result.exit_code == COMMANDS[command], result.output
    assert WRITTEN in result.output


@pytest.mark.parametrize("command", ["inspect m.onnx", "verify m.onnx other.onnx"])
def test_json_holds_the_very_names(run: Callable[..., Result], command: str) -> None:
    result = run(*command.split(), "--json")
    assert any(ODD in text for text in _strings(json.loads(result.stdout)))
    assert "é" in result.stdout


def _strings(value: object) -> list[str]:
    match value:
        case str():
            return [value]
        case list():
            return [text for one in value for text in _strings(one)]
        case dict():
            return [text for one in value.values() for text in _strings(one)]
    return []


def test_errors_of_the_api_are_one_line() -> None:
    with pytest.raises(NormfuseError) as raised:
        normfuse.optimize(net(operator=named("Op")))
    assert ORDERS.search(str(raised.value)) is None
    assert "\n" not in str(raised.value)
    assert WRITTEN in str(raised.value)


def test_parity_tests_show_names_escaped() -> None:
    other = net()
    other.graph.output[0].type.tensor_type.elem_type = TensorProto.DOUBLE
    cast = helper.make_node("Cast", [named("y")], [named("z")], to=TensorProto.DOUBLE)
    other.graph.node.append(cast)
    other.graph.output[0].name = named("z")
    for candidate in (net(1.5), other):
        with pytest.raises(AssertionError) as raised:
            assert_parity(net(), candidate)
        assert ORDERS.search(str(raised.value)) is None
        assert WRITTEN in str(raised.value)
    assert ORDERS.search(str(normfuse.verify(net(), net(1.5)))) is None


def test_annotations_and_summaries_show_names_escaped() -> None:
    cases = [Case("parity", named("case"), "failed", named("why"))]
    for shown in (*annotations.annotations(named("m.onnx"), cases), annotations.summary(named("title"), cases)):
        assert ORDERS.search(shown) is None
        assert r"\x1b" in shown


def test_measured_times_show_names_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    console_bench.print_bench(BenchTable((), "cpu", 1, "all", 30, {named("x"): (1, 2)}))
    assert WRITTEN in capsys.readouterr().out


def test_warnings_show_names_escaped() -> None:
    @click.command(cls=Verb)
    def warn(as_json: bool) -> None:
        warnings.simplefilter("always")
        warnings.warn(named("name"), stacklevel=1)

    shown = CliRunner().invoke(warn, ["--debug"]).stderr
    assert ORDERS.search(shown) is None
    assert WRITTEN in shown


def test_a_case_is_written_with_names_escaped(run: Callable[..., Result], tmp_path: Path) -> None:
    run("reduce", "m.onnx", "other.onnx")
    text = (tmp_path / "m-case" / "run.py").read_text(encoding="utf-8")
    assert ORDERS.search(text) is None
    assert WRITTEN.replace("\\", "\\\\") in text


def test_models_keep_their_names(run: Callable[..., Result], tmp_path: Path) -> None:
    run("optimize", "m.onnx", "-o", "out.onnx")
    assert [value.name for value in ir.load(tmp_path / "out.onnx").graph.inputs] == [named("x")]

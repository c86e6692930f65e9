"""Hostile files are taken or refused by an error of normfuse; nothing unpickles."""

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnx.parser
import pytest
from onnx import TensorProto, helper

from normfuse.errors import ModelError, NormfuseError
from normfuse.model import load
from normfuse.pipeline import optimize
from scripts.hostile import hostile_file
from scripts.mutations import WEIGHTS

ROOT = Path(__file__).resolve().parent.parent
HEAD = '<ir_version: 9, opset_import: ["" : 18, "custom" : 1]> g '


@pytest.mark.parametrize("kind", ["bytes", "fields", "noise"])
def test_mutants_are_taken_or_refused(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("weights.bin").write_bytes(WEIGHTS)
    refusals = []
    for seed in range(30):
        try:
            optimize(hostile_file(kind, seed), "portable", verify=False)
        except NormfuseError as error:
            refusals.append(error)
    assert {error.exit_status for error in refusals} <= {2, 3}
    assert not any("\n" in str(error) for error in refusals)
    assert len(refusals) > 3


def doubling() -> onnx.ModelProto:
    """Sixty functions, each of which calls the next one twice."""
    model = onnx.parser.parse_model(HEAD + "(float[2] x) => (float[2] y) { y = custom.f0(x) }")
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("custom", 1)]
    for i in range(60):
        name, domain = (f"f{i + 1}", "custom") if i < 59 else ("Relu", "")
        nodes = [helper.make_node(name, [a], [b], domain=domain) for a, b in ("ab", "bc")]
        model.functions.append(helper.make_function("custom", f"f{i}", ["a"], ["c"], nodes, imports))
    return model


def twice() -> onnx.ModelProto:
    model = doubling()
    del model.functions[1:]
    model.functions[0].node[0].op_type = model.functions[0].node[1].op_type = "Relu"
    model.functions[0].node[0].domain = model.functions[0].node[1].domain = ""
    model.functions.add().CopyFrom(model.functions[0])
    return model


def node(op_type: str, count: int, **attributes: Any) -> Callable[[], onnx.ModelProto]:
    def made() -> onnx.ModelProto:
        model = onnx.parser.parse_model(HEAD + "(float[2] x) => (float[2] y) { y = Relu(x) }")
        model.graph.node[0].CopyFrom(helper.make_node(op_type, ["x"] * count, ["y"], **attributes))
        return model

    return made


def same_attribute() -> onnx.ModelProto:
    model = node("LeakyRelu", 1, alpha=0.5)()
    model.graph.node[0].attribute.append(helper.make_attribute("alpha", 0.1))
    return model


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (doubling, "stands for"),
        (twice, "defined twice"),
        (same_attribute, "two attributes"),
        (node("Sub", 1), "1 inputs, but takes 2"),
        (node("Relu", 3), "3 inputs, but takes 1"),
        (node("Cast", 1), "lacks the attribute 'to'"),
        (node("LeakyRelu", 1, alpha="x"), "of type STRING, not FLOAT"),
        (node("Constant", 0), "none where one value is expected"),
        (node("Relu", 1, body=onnx.GraphProto()), "GRAPH, which its operator does not have"),
    ],
)
def test_hostile_graphs_are_refused(make: Callable[[], onnx.ModelProto], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        load(make())


@pytest.mark.parametrize(("offsets", "fine"), [((0, 16), True), ((4, 4), True), ((0, 8), False), ((12, 0), False)])
@pytest.mark.parametrize("as_attribute", [False, True])
def test_ranges_of_external_data(offsets: tuple[int, int], fine: bool, as_attribute: bool, tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(64))
    model = onnx.parser.parse_model(HEAD + "(float[4] x) => (float[4] y) { t = Add(x, a) y = Add(t, b) }")
    for name, offset in zip("ab", offsets, strict=True):
        tensor = TensorProto(name=name, dims=[4], data_type=1, data_location=TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value="w.bin")
        tensor.external_data.add(key="offset", value=str(offset))
        if as_attribute and name == "a":
            model.graph.node.append(helper.make_node("Constant", [], ["a"], value=tensor))
        else:
            model.graph.initializer.append(tensor)
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    if fine:
        load(path)
    else:
        with pytest.raises(ModelError, match="overlap"):
            load(path)


def test_nothing_unpickles() -> None:
    found, seen = [], 0
    for folder in ("normfuse", "passes", "scripts", "models"):
        for file in (ROOT / folder).rglob("*.py"):
            for one in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                names, place = [], f"{file}:{getattr(one, 'lineno', 0)}"
                if isinstance(one, ast.Import):
                    names = [alias.name for alias in one.names]
                elif isinstance(one, ast.ImportFrom):
                    names = [one.module or ""]
                if {name.split(".")[0] for name in names} & {
                    "pickle",
                    "cPickle",
                    "dill",
                    "joblib",
                    "shelve",
                    "marshal",
                }:
                    found.append(place)
                if isinstance(one, ast.Call) and ast.unparse(one.func) in ("np.load", "numpy.load", "torch.load"):
                    seen += 1
                    key, safe = ("weights_only", True) if "torch" in ast.unparse(one.func) else ("allow_pickle", False)
                    given = {word.arg: ast.unparse(word.value) for word in one.keywords}
                    if given.get(key) != str(safe):
                        found.append(place)
    assert found == []
    assert seen >= 2

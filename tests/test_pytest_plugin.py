"""The fixture `assert_onnx_parity`, as users meet it: in a pytest of its own, that finds the plugin by its name."""

import configparser
import importlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import onnx_ir as ir
import pytest

from normfuse.errors import ModelError, NormfuseError
from normfuse.failure import told
from normfuse.pytest_plugin import _assert_onnx_parity as assert_parity
from normfuse.verification import Parity


def model(slope: float) -> onnx.ModelProto:
    proto = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        line (float[N, 4] x) => (float[N, 4] y, float[N, 4] z) { y = Mul (x, s)  z = Add (x, x) }
    """)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.full(4, slope, np.float32), "s"))
    return proto


def test_any_mix_of_kinds_is_judged(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    onnx.save(model(2.0), path)
    kinds = [path, str(path), path.read_bytes(), model(2.0), ir.from_proto(model(2.0))]
    for reference, candidate in zip(kinds, [*kinds[1:], kinds[0]], strict=True):
        assert assert_parity(reference, candidate, seeds=1).passed
    with pytest.raises(AssertionError, match="parity FAILED: output 'y'"):
        assert_parity(path, ir.from_proto(model(2.1)), seeds=1)


def test_own_inputs_and_shapes_are_used() -> None:
    data = {"x": np.ones((5, 4), np.float32)}
    parity = assert_parity(model(2.0), model(2.0), data=data, shapes={"N": 3}, seeds=1)
    assert set(parity.outputs[0].shapes) == {(5, 4), (3, 4)}


def test_an_example_of_the_inputs_is_flattened_for_onnx_models() -> None:
    proto = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[N] a, float[N] b, float[N] c) => (float[N] y) { y = Sum (a, b, c) }
    """)
    one, two, three = (np.full(7, value, np.float32) for value in (1, 2, 3))
    for inputs in ((one, {"x": two, "y": [three, None]}), {"c": three, "a": one, "b": two}, [one, two, three]):
        assert (7,) in assert_parity(proto, proto, inputs=inputs, shapes={"N": 2}, seeds=1).outputs[0].shapes
    with pytest.raises(NormfuseError, match=r"inputs hold 2 arrays, but the model takes 3 \(a, b, c\)"):
        assert_parity(proto, proto, inputs=(one, two))
    with pytest.raises(NormfuseError, match="inputs hold 1 arrays"):
        assert_parity(proto, proto, inputs=one)


def test_what_cannot_be_used_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NormfuseError, match="there is no file"):
        assert_parity(tmp_path / "none.onnx", model(2.0))
    with pytest.raises(ModelError, match="text, not a model"):
        assert_parity(b"hello", model(2.0))
    with pytest.raises(NormfuseError, match="provider is 'npu'; give 'cpu' or 'cuda'"):
        assert_parity(model(2.0), model(2.0), provider="npu")
    for seeds in (0, True):
        with pytest.raises(NormfuseError, match="give a whole number from 1 on"):
            assert_parity(model(2.0), model(2.0), seeds=seeds)
    for budget in (-1.0, float("nan")):
        with pytest.raises(NormfuseError, match="give seconds, a number from 0 on"):
            assert_parity(model(2.0), model(2.0), budget=budget)


def test_other_outputs_fail_and_the_message_says_so() -> None:
    other = model(2.0)
    other.graph.output[1].name = other.graph.node[1].output[0] = "w"
    with pytest.raises(AssertionError, match="the outputs are y, w, not y, z"):
        assert_parity(model(2.0), other)


def test_the_message_names_both_files_and_what_to_do_next() -> None:
    text = told(Parity(False, float("inf"), (), reason="the inputs differ"), "a.onnx", Path("b.onnx"))
    assert text.splitlines()[0] == "parity FAILED: the inputs differ"
    assert "normfuse reduce a.onnx b.onnx" in text
    assert "save both as ONNX files" in told(Parity(False, 1.0, ()), "a.onnx", b"12")


def test_in_a_test_run_it_passes_and_fails_without_inner_frames(tmp_path: Path) -> None:
    onnx.save(model(2.0), tmp_path / "a.onnx")
    onnx.save(model(2.1), tmp_path / "b.onnx")
    (tmp_path / "test_user.py").write_text(
        "def test_same(assert_onnx_parity):\n    assert assert_onnx_parity('a.onnx', 'a.onnx', seeds=1).ratio <= 2\n\n"
        "def test_other(assert_onnx_parity):\n    assert_onnx_parity('a.onnx', 'b.onnx', seeds=1)\n\n"
        "def test_none(assert_onnx_parity):\n    assert_onnx_parity('a.onnx', 'c.onnx')\n"
    )
    root = Path(__file__).parent.parent
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(root)}
    command = [sys.executable, "-m", "pytest", "-p", "normfuse.pytest_plugin", "-p", "no:cacheprovider", "-W", "error"]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 1, run.stdout + run.stderr
    assert "2 failed, 1 passed" in run.stdout
    assert "AssertionError: parity FAILED: output 'y'" in run.stdout
    assert "bits lost" in run.stdout
    assert "normfuse reduce a.onnx b.onnx" in run.stdout
    assert "there is no file c.onnx" in run.stdout
    assert "def _assert_onnx_parity" not in run.stdout
    assert "verification.py" not in run.stdout


def test_the_plugin_imports_nothing_heavy() -> None:
    code = """
import sys, normfuse.pytest_plugin
print(sorted({"numpy", "onnx", "onnx_ir", "onnxruntime", "rich", "torch"} & set(sys.modules)))
"""
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"


def test_the_entry_point_names_a_module_with_the_fixture() -> None:
    settings = configparser.ConfigParser()
    settings.read(Path(__file__).parent.parent / "setup.cfg")
    name, _, module = settings["options.entry_points"]["pytest11"].strip().partition(" = ")
    assert name == "normfuse"
    assert hasattr(importlib.import_module(module), "assert_onnx_parity")


def test_torch_is_imported_only_by_who_has_a_module() -> None:
    code = """
import sys, onnx.parser
from normfuse.pytest_plugin import _assert_onnx_parity
text = "g (float[2] x) => (float[2] y) { y = Neg(x) }"
model = onnx.parser.parse_model('<ir_version: 8, opset_import: ["" : 17]> ' + text)
_assert_onnx_parity(model, model, seeds=1)
print("torch" in sys.modules)
"""
    root = Path(__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root)}
    assert subprocess.check_output([sys.executable, "-c", code], text=True, env=environment) == "False\n"

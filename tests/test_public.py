import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import pytest
from click.testing import CliRunner

import normfuse
from normfuse.cli import main

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def test_public_names_are_few_sorted_and_all_there() -> None:
    assert normfuse.__all__ == sorted(normfuse.__all__)
    assert len(normfuse.__all__) <= 12
    for name in normfuse.__all__:
        assert getattr(normfuse, name).__doc__, name
    assert set(normfuse.__all__) == set(normfuse._HOME)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'normfuse' has no attribute 'optimise'"):
        normfuse.optimise  # noqa: B018 - the access is what is tested


def test_import_is_light() -> None:
    code = """
import sys, normfuse
print(sorted({"numpy", "onnx", "onnx_ir", "onnxruntime", "onnxscript", "rich", "torch"} & set(sys.modules)))
"""
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"


def test_using_it_imports_no_torch() -> None:
    code = """
import sys, normfuse
for name in normfuse.__all__:
    getattr(normfuse, name)
print(sorted({"onnxruntime", "onnxscript", "torch"} & set(sys.modules)))
"""
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"


@pytest.fixture
def _model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts a model.onnx into the working folder."""
    pytest.importorskip("onnxruntime")
    rng = np.random.default_rng(0)
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        readme (float[N, 3, H, W] x) => (float[N, 4, H, W] y) {
            a = Conv <pads = [1, 1, 1, 1]> (x, w)
            y = BatchNormalization (a, scale, bias, mean, var)
        }
    """)
    shapes: dict[str, int | tuple[int, ...]] = {"w": (4, 3, 3, 3), "scale": 4, "bias": 4, "mean": 4, "var": 4}
    for name, shape in shapes.items():
        array = rng.uniform(0.5, 2, shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.save(model, tmp_path / "model.onnx")
    (tmp_path / "batches").mkdir()
    np.savez(tmp_path / "batches" / "0.npz", x=rng.standard_normal((4, 3, 8, 8), dtype=np.float32))
    (tmp_path / "nets.py").write_text(
        "from torch import nn\n\n\nclass Net(nn.Conv2d):\n    def forward(self, x):\n"
        "        return super().forward(x)\n\n\ndef net():\n    return Net(3, 4, 3).eval()\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "nets", raising=False)


@pytest.mark.usefixtures("_model")
def test_the_python_of_the_readme_runs(capsys: pytest.CaptureFixture[str]) -> None:
    for block in blocks("python"):
        exec(block, {})  # noqa: S102 - our own README
    assert "2 → 1" in capsys.readouterr().out


@pytest.mark.usefixtures("_model")
def test_the_commands_of_the_readme_run() -> None:
    lines = [shlex.split(line, comments=True) for block in blocks("sh") for line in block.splitlines()]
    commands = [words[1:] for words in lines if words[:1] == ["normfuse"]]
    assert len(commands) >= 8
    for command in commands:
        if command[0] == "export" and not find_spec("torch"):
            continue
        result = CliRunner().invoke(main, [*command, "--rounds", "1"] if command[0] == "bench" else command)
        assert result.exit_code == 0, (command, result.output)


def test_the_readme_lists_every_exit_status() -> None:
    from normfuse import errors, verb

    kinds: list[type[errors.NormfuseError]] = [errors.NormfuseError, *errors.NormfuseError.__subclasses__()]
    statuses = {0, verb.GATE_FAILED, verb.INTERNAL_ERROR, verb.INTERRUPTED, *(kind.exit_status for kind in kinds)}
    assert {int(status) for status in re.findall(r"^\| (\d+) \|", README, re.MULTILINE)} == statuses

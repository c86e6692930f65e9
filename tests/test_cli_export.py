"""The verb export: modules by name, their weights and example inputs, exit statuses."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

from normfuse.cli import main  # noqa: E402  # nothing here can run without torch
from normfuse.errors import NormfuseError  # noqa: E402
from normfuse.factories import Example, load_weights, make  # noqa: E402
from normfuse.limits import Limit, limits_of  # noqa: E402
from normfuse.model import load  # noqa: E402

NETS = """
import torch
from torch import nn


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()


def ready():
    module = net()
    module.example_inputs = (torch.randn(2, 3, 8, 8),)
    module.dynamic_shapes = ({0: "batch"},)
    return module


def training():
    return ready().train()


def dropping():
    module = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
    module.example_inputs = (torch.randn(2, 4),)
    return module


class Nets:
    net = ready()


def long():
    class Long(nn.Module):
        def forward(self, x):
            return x.softmax(1) if x.shape[1] <= 16 else x

    return Long().eval()


def number():
    return 3


def broken():
    raise ValueError("no such file")


def svd():
    class Values(nn.Module):
        def forward(self, x):
            return torch.linalg.svd(x)[1]

    return Values().eval()


constant = 3
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "nets", raising=False)
    Path("nets.py").write_text(NETS)


pytestmark = pytest.mark.usefixtures("one_thread")


def export(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["export", *arguments])


class TestExport:
    def test_a_module_that_says_what_it_takes(self) -> None:
        result = export("nets:Nets.net", "-o", "out.onnx", "--verify-budget", "1", "--json")
        assert result.exit_code == 0, result.output
        found = json.loads(result.stdout)
        assert found["verb"] == "export"
        assert found["written"] == "out.onnx"
        assert found["parity"]["passed"]
        assert found["after"]["operators"] == {"Conv": 1, "Relu": 1}
        assert load("out.onnx").graph.inputs[0].shape == ["batch", 3, 8, 8]

    def test_an_input_that_forward_does_not_take_is_refused(self) -> None:
        result = export("nets:net", "-o", "out.onnx", "--input", "x:2,3,8,8")
        assert result.exit_code == 2
        assert "forward of Sequential has no parameter 'x'; it takes input" in result.stderr
        assert not Path("out.onnx").exists()

    def test_inputs_on_the_command_line_and_weights_from_a_file(self) -> None:
        state = make("nets:net", None, [Example.parse("input:1,3,8,8")]).module.state_dict()
        torch.save({name: value + 1 if value.is_floating_point() else value for name, value in state.items()}, "w.pt")
        shape = "input:batch=2,3,height=9,8"
        result = export(
            "nets:net", "-o", "out.onnx", "--weights", "w.pt", "--input", shape, "--no-verify", "--no-optimize"
        )
        assert result.exit_code == 0, result.output
        assert result.stdout.splitlines()[-1] == "written: out.onnx"
        model = load("out.onnx")
        assert model.graph.inputs[0].shape == ["batch", 3, "height", 8]
        weight = model.graph.initializers["0.bias"].const_value
        assert weight is not None
        assert weight.numpy() == pytest.approx(state["0.bias"].numpy() + 1)

    def test_an_input_that_is_given_twice_is_refused(self) -> None:
        result = export("nets:net", "-o", "out.onnx", "--input", "input:2,3,8,8", "--input", "input:1,3,8,8")
        assert result.exit_code == 2
        assert "'input' is given twice" in result.stderr

    def test_a_limit_is_the_way_out_of_a_branch_on_a_length(self) -> None:
        given = ["--input", "x:batch=2,length=10,3", "-o", "out.onnx"]
        refused = export("nets:long", *given)
        assert refused.exit_code == 3
        assert "unless length <= 16" in refused.stderr
        assert "--limit length=1..16" in refused.stderr
        assert not Path("out.onnx").exists()
        done = export("nets:long", *given, "--limit", "length=1..16", "--verify-budget", "1")
        assert done.exit_code == 0
        assert limits_of(load("out.onnx")) == {"length": Limit(1, 16)}

    @pytest.mark.parametrize(
        ("limit", "message"),
        [
            ("length", "'length' is no limit; write a name and two sizes"),
            ("length=5..4", "is no limit"),
            ("length=0..4", "is no limit"),
            ("width=1..4", "there is no dynamic dimension 'width' to limit; there are batch, length"),
        ],
    )
    def test_a_limit_of_nothing_is_refused(self, limit: str, message: str) -> None:
        result = export("nets:long", "--input", "x:batch=2,length=10,3", "-o", "out.onnx", "--limit", limit)
        assert result.exit_code == 2
        assert message in result.stderr

    def test_static_makes_no_axis_dynamic(self) -> None:
        result = export("nets:ready", "-o", "out.onnx", "--static", "--no-verify")
        assert result.exit_code == 0, result.output
        assert load("out.onnx").graph.inputs[0].shape == [2, 3, 8, 8]

    def test_what_cannot_be_proved_in_training_mode_is_told(self) -> None:
        result = export("nets:dropping", "-o", "out.onnx", "--train")
        assert result.exit_code == 0, result.output
        assert "NOT PROVED: nothing was proved against Sequential in training mode: output" in result.stdout
        assert "parity" not in result.stdout

    def test_training_mode_is_told(self) -> None:
        result = export("nets:training", "-o", "out.onnx", "--no-verify")
        assert result.exit_code == 0, result.output
        assert result.stderr.startswith("Warning: Sequential: it is in training mode; it is exported in eval mode")

    @pytest.mark.parametrize(
        ("arguments", "status", "message"),
        [
            (["nets:ready"], 2, "where to? Give -o OUT.onnx"),
            (["nets", "-o", "x.onnx"], 2, "'nets' is no factory; write package.module:factory"),
            (
                ["nothing.here:net", "-o", "x.onnx"],
                2,
                "there is no module 'nothing'; run from the folder that holds it",
            ),
            (["nets:redy", "-o", "x.onnx"], 2, "nets has no 'redy'; did you mean ready?"),
            (["nets:net", "-o", "x.onnx"], 2, "nothing says what nets:net takes: give --input NAME:DIMS"),
            (["nets:net", "-o", "x.onnx", "--input", "x:1,a"], 2, "'x:1,a' is no example input"),
            (["nets:net", "-o", "x.onnx", "--input", "x:1,2:float8"], 2, "choose a dtype from float32"),
            (["nets:ready", "-o", "x.onnx", "--opset", "17"], 2, "torch.onnx writes opsets 18 and above"),
            (["nets:ready", "-o", "x.onnx", "--weights", "none.pt"], 2, "there is no file none.pt; check the path"),
            (["nets:ready", "-o", "x.onnx", "--weights", "nets.py"], 2, "cannot read weights from nets.py"),
            (["nets:constant", "-o", "x.onnx"], 2, "nets:constant is a int, neither a torch module nor what makes one"),
            (["nets:number", "-o", "x.onnx"], 3, "nets:number() gave a int, no torch module"),
            (["nets:broken", "-o", "x.onnx"], 3, "nets:broken() failed: ValueError: no such file"),
            (["nets:svd", "-o", "x.onnx", "--input", "x:2,2"], 3, "cannot export Values: aten."),
            (["nets:ready", "-o", "missing/x.onnx"], 2, "missing"),
        ],
    )
    def test_errors_are_one_line_and_write_nothing(self, arguments: list[str], status: int, message: str) -> None:
        result = export(*arguments)
        assert result.exit_code == status, result.output
        assert message in result.stderr
        assert len([line for line in result.stderr.splitlines() if "Error" in line]) == 1
        assert not Path("x.onnx").exists()

    def test_a_result_that_computes_something_else_exits_with_1(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from onnxscript import opset18 as op

        from normfuse.translations import TRANSLATIONS

        monkeypatch.setitem(TRANSLATIONS, torch.ops.aten.relu.default, lambda x: op.Sigmoid(x))
        result = export("nets:ready", "-o", "x.onnx", "--verify-budget", "1", "--no-optimize")
        assert result.exit_code == 1, result.output
        assert "nothing written: the result does not compute what the module computes" in result.stdout
        assert not Path("x.onnx").exists()


class TestWeights:
    def test_others_than_those_of_the_module_are_refused(self) -> None:
        module = torch.nn.Linear(2, 3)
        for state, message in (
            ({"weight": torch.ones(3, 2)}, "has no weight 'bias'; it is of another Linear"),
            ({"weight": torch.ones(4, 2), "bias": torch.ones(3)}, "does not fit Linear: size mismatch for weight"),
            (
                {"weight": torch.ones(3, 2), "bias": torch.ones(3), "gamma": torch.ones(1)},
                "has a weight that the module has not: 'gamma'",
            ),
            ([1, 2], "holds no state_dict"),
            ({"epoch": 3}, "holds no state_dict; save one alone"),
            ({"model": module.state_dict(), "epoch": 3}, "holds no state_dict, but one as its entry 'model'; save one"),
            ({f"module.{name}": one for name, one in module.state_dict().items()}, "as DistributedDataParallel writes"),
        ):
            torch.save(state, "w.pt")
            with pytest.raises(NormfuseError, match=message):
                load_weights(module, "w.pt")

    @pytest.mark.parametrize("content", [b"", b"\x08\x07\x12\x07pytorch"])
    def test_a_file_of_something_else_says_so(self, content: bytes) -> None:
        """torch would advise to run what is in it."""
        Path("w.pt").write_bytes(content)
        with pytest.raises(
            NormfuseError, match=r"cannot read weights from w\.pt: it is no file that torch\.load reads"
        ):
            load_weights(torch.nn.Linear(2, 3), "w.pt")

    def test_a_pickle_is_not_run(self) -> None:
        torch.save(torch.nn.Linear(2, 3), "module.pt")
        with pytest.raises(
            NormfuseError, match=r"cannot read weights from module\.pt.*torch\.save\(module\.state_dict"
        ):
            load_weights(torch.nn.Linear(2, 3), "module.pt")

    def test_safetensors(self) -> None:
        safetensors = pytest.importorskip("safetensors.torch")
        safetensors.save_file({"weight": torch.full((3, 2), 2.0), "bias": torch.ones(3)}, "w.safetensors")
        module = torch.nn.Linear(2, 3)
        load_weights(module, "w.safetensors")
        assert bool((module.weight == 2).all())

    def test_tied_weights_that_safetensors_holds_once(self) -> None:
        safetensors = pytest.importorskip("safetensors.torch")
        parts = [torch.nn.Embedding(5, 3), torch.nn.Linear(3, 5, bias=False)]
        parts[1].weight = parts[0].weight
        module = torch.nn.Sequential(*parts)
        with torch.no_grad():
            module[0].weight.fill_(2.0)
        safetensors.save_model(module, "tied.safetensors")
        assert len(safetensors.load_file("tied.safetensors")) == 1
        with torch.no_grad():
            module[0].weight.fill_(0.0)
        load_weights(module, "tied.safetensors")
        assert bool((module[1].weight == 2).all())
        untied = torch.nn.Sequential(torch.nn.Embedding(5, 3), torch.nn.Linear(3, 5, bias=False))
        with pytest.raises(NormfuseError, match=r"has no weight '[01]\.weight'; it is of another Sequential"):
            load_weights(untied, "tied.safetensors")


def test_help_imports_nothing_of_torch() -> None:
    code = """
import sys
from click.testing import CliRunner
from normfuse.cli import main
assert CliRunner().invoke(main, ["export", "--help"]).exit_code == 0
print(sorted({"numpy", "onnx", "onnxscript", "torch"} & set(sys.modules)))
"""
    root = Path(__file__).parent.parent
    assert subprocess.check_output([sys.executable, "-c", code], text=True, cwd=root) == "[]\n"

import json
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import onnx_ir as ir
import pytest
from click.testing import CliRunner, Result

from normfuse import cli, console, pipeline, tables, verification
from normfuse.errors import NormfuseError, ParityError, TargetError
from normfuse.metric import OutputParity
from normfuse.passes.rule import Rule
from normfuse.report import Change, Counts, Refusal, Report
from normfuse.verification import Parity


def small_model(seed: int = 0) -> onnx.ModelProto:
    """Conv → BatchNormalization → Relu → Conv, with statistics that are not the identity."""
    rng = np.random.default_rng(seed)
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        small (float[N, 3, 8, 8] x) => (float[N, 2, 6, 6] y) {
            a = Conv <pads = [1, 1, 1, 1]> (x, w1)
            b = BatchNormalization (a, scale, bias, mean, var)
            c = Relu (b)
            y = Conv (c, w2)
        }
    """)
    constants = {
        "w1": rng.normal(size=(4, 3, 3, 3)),
        "scale": rng.uniform(0.5, 2, 4),
        "bias": rng.normal(size=4),
        "mean": rng.normal(size=4),
        "var": rng.uniform(0.5, 2, 4),
        "w2": rng.normal(size=(2, 4, 3, 3)),
    }
    for name, array in constants.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    for node, name in zip(model.graph.node, ("conv1", "norm", "relu", "conv2"), strict=True):
        node.name = name
    return model


def several_norms() -> onnx.ModelProto:
    """Two InstanceNormalizations alike, an LRN, and a scale that cannot be folded."""
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        norms (float[N, 4, 8, 8] x) => (float[N, 4, 8, 8] y) {
            a = InstanceNormalization (x, scale, scale)
            b = Sigmoid (a)
            c = InstanceNormalization (b, scale, scale)
            d = Tanh (c)
            e = LRN <size = 3> (d)
            f = Sigmoid (e)
            g = Mul (f, scalar)
            y = Tanh (g)
        }
    """)
    for name, array in {"scale": np.array([1, 2, 3, 4], np.float32), "scalar": np.array([3], np.float32)}.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    for node, name in zip(model.graph.node, ("first", "s", "second", "t", "lrn", "u", "scaled", "v"), strict=True):
        node.name = name
    return model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save(small_model(), path)
    return path


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def report(**settings: Any) -> Report:
    before = Counts(4, {"BatchNormalization": 1, "Conv": 2, "Relu": 1}, 196, 784)
    after = Counts(3, {"Conv": 2, "Relu": 1}, 184, 736)
    changes = [Change("conv-after", ("norm",), ("conv1",), "folded")]
    refusals = [
        Refusal("conv-before", "norm2", "shift crosses a zero-padded border"),
        Refusal("conv-before", "norm3", "shift crosses a zero-padded border"),
        Refusal("gemm-after", "norm4", "weight is shared with node [head]"),
    ]
    return Report(before, after, **{"changes": changes, "refusals": refusals, **settings})


Settings = dict[str, Any]


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Callable[[Report | Exception], Settings]:
    """Makes the pipeline answer with a report or an error; what it was asked for comes back in the dictionary."""

    def answer_with(what: Report | Exception) -> Settings:
        asked: Settings = {}

        def rewrite(model: ir.Model, target: str, **settings: Any) -> Report:
            asked.update(settings, target=target)
            if isinstance(what, Exception):
                raise what
            return what

        monkeypatch.setattr(pipeline, "rewrite", rewrite)
        return asked

    return answer_with


@pytest.fixture
def proof(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], Settings]:
    """Makes `verify` pass or fail; what it was asked for comes back in the dictionary."""

    def answer_with(passed: bool) -> Settings:
        asked: Settings = {}
        output = OutputParity("y", "float32", ((1,),), "disabled", 1e-7, 2e-2, 9.0, "unit", 12.0, 1.0, passed)

        def verify(reference: ir.Model, candidate: ir.Model, **settings: Any) -> Parity:
            asked.update(settings)
            return Parity(passed, output.ratio, (output,), reason="" if passed else "the outputs differ")

        monkeypatch.setattr(verification, "verify", verify)
        return asked

    return answer_with


def law() -> None:
    """W' = diag(s) · W."""


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = (
        Rule("conv-after", "absorb", ("Conv",), "after", law, "a convolution is linear in its weights"),
        Rule("conv-before", "absorb", ("Conv",), "before", law, "the kernel meets each channel on its own"),
    )
    monkeypatch.setattr(pipeline, "rules", lambda: rows)


class TestOptimize:
    def test_it_writes_what_it_reports(self, model: Path, tmp_path: Path) -> None:
        pytest.importorskip("onnxruntime")
        output = tmp_path / "fast.onnx"
        result = run("optimize", model, "-o", output)
        assert result.exit_code == 0, result.output
        assert "BatchNormalization" in result.stdout
        assert result.stdout.endswith(f"written: {output}\n")
        assert [node.op_type for node in onnx.load(output).graph.node] == ["Conv", "Relu", "Conv"]
        assert files(tmp_path) == {"model.onnx", "fast.onnx"}

    def test_the_result_needs_no_more_work(self, model: Path, tmp_path: Path) -> None:
        output = tmp_path / "fast.onnx"
        assert run("optimize", model, "--check").exit_code == 1
        assert run("optimize", model, "-o", output, "--no-verify").exit_code == 0
        result = run("optimize", output, "--check")
        assert result.exit_code == 0, result.output

    @pytest.mark.usefixtures("table")
    def test_the_report_groups_refusals(self, model: Path, answer: Any) -> None:
        answer(report())
        text = run("optimize", model, "--dry-run", "--no-verify").stdout
        assert "2  shift crosses a zero-padded border" in text
        assert "1  weight is shared with node [head]" in text
        assert "a convolution is linear in its weights" in text
        assert "norm3" not in text

    @pytest.mark.usefixtures("table")
    def test_verbose_names_the_nodes(self, model: Path, answer: Any) -> None:
        answer(report())
        lines = run("optimize", model, "--dry-run", "--no-verify", "--verbose").stdout.splitlines()
        assert [line.split()[0] for line in lines if "border" in line] == ["norm2", "norm3"]

    @pytest.mark.usefixtures("table")
    def test_the_sizes_stand_side_by_side(self, model: Path, answer: Any) -> None:
        answer(report())
        lines = [line.split() for line in run("optimize", model, "--dry-run").stdout.splitlines()]
        assert ["nodes", "4", "3", "-1"] in lines
        assert ["BatchNormalization", "1", "0", "-1"] in lines
        assert ["parameters", "196", "184", "-12"] in lines

    @pytest.mark.parametrize("mode", ["--dry-run", "--check"])
    @pytest.mark.usefixtures("table")
    def test_nothing_is_written(self, model: Path, tmp_path: Path, answer: Any, mode: str) -> None:
        answer(report())
        result = run("optimize", model, "-o", tmp_path / "fast.onnx", mode)
        assert result.exit_code == (1 if mode == "--check" else 0)
        assert files(tmp_path) == {"model.onnx"}

    @pytest.mark.usefixtures("table")
    def test_check_passes_where_there_is_nothing_to_do(self, model: Path, answer: Any) -> None:
        answer(report(changes=[]))
        result = run("optimize", model, "--check")
        assert result.exit_code == 0
        assert "nothing to do" in result.stdout

    @pytest.mark.usefixtures("table")
    def test_a_failed_proof_writes_nothing(self, model: Path, tmp_path: Path, answer: Any, proof: Any) -> None:
        answer(report())
        proof(False)
        result = run("optimize", model, "-o", tmp_path / "fast.onnx")
        assert result.exit_code == 1
        assert "parity FAILED: the outputs differ" in result.stdout
        assert ["y", "float32", "disabled", "1.0e-07", "2.0e-02", "9.00", "12.00"] in [
            line.split()[:7] for line in result.stdout.splitlines()
        ]
        assert files(tmp_path) == {"model.onnx"}

    @pytest.mark.usefixtures("table")
    def test_a_failed_proof_as_json(self, model: Path, tmp_path: Path, answer: Any, proof: Any) -> None:
        answer(report())
        proof(False)
        result = run("optimize", model, "-o", tmp_path / "fast.onnx", "--json")
        assert result.exit_code == 1
        content = json.loads(result.stdout)
        assert content["written"] is None
        assert content["parity"]["passed"] is False

    @pytest.mark.usefixtures("table")
    def test_the_proof_takes_what_was_asked(self, model: Path, tmp_path: Path, answer: Any, proof: Any) -> None:
        answer(report())
        asked = proof(True)
        np.savez(tmp_path / "inputs.npz", x=np.ones((1, 3, 8, 8), np.float32))
        result = run(
            *("optimize", model, "--dry-run", "--verify-budget", "5"),
            *("--data", tmp_path / "inputs.npz", "--shape", "x=2x3x8x8"),
        )
        assert result.exit_code == 0, result.output
        assert "parity passed" in result.stdout
        assert asked["budget"] == 5
        assert [inputs["x"].shape for inputs in asked["data"]] == [(1, 3, 8, 8)]
        assert asked["shapes"] == {"x": (2, 3, 8, 8)}

    @pytest.mark.usefixtures("table")
    def test_json_holds_the_whole_report(self, model: Path, tmp_path: Path, answer: Any) -> None:
        answer(report())
        output = tmp_path / "fast.onnx"
        content = json.loads(run("optimize", model, "-o", output, "--json").stdout)
        assert content["schema_version"] == 1
        assert content["written"] == str(output)
        assert content["changes"][0]["into"] == ["conv1"]
        assert [refusal["node"] for refusal in content["refusals"]] == ["norm2", "norm3", "norm4"]

    @pytest.mark.usefixtures("table")
    def test_options_reach_the_pipeline(self, model: Path, answer: Any) -> None:
        asked = answer(report())
        result = run(
            *("optimize", model, "--dry-run", "--target", "portable", "--threads", "3", "--ignore", "conv-after"),
            *("--select", "conv-before,conv-after", "--no-freeze", "--no-verify"),
        )
        assert result.exit_code == 0, result.output
        assert asked["target"] == "portable"
        assert asked["threads"] == 3
        assert asked["ignore"] == ["conv-after"]
        assert asked["select"] == ["conv-before", "conv-after"]
        assert asked["freeze"] is False


class TestUsage:
    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            ([], "Give -o OUT.onnx"),
            (["--dry-run", "--select", "conv-afer"], "did you mean 'conv-after'"),
            (["--dry-run", "--ignore", "conv-after,qqqq"], "unknown rule 'qqqq'"),
            (["--dry-run", "--target", "gpu"], "'portable', 'cpu', 'cuda'"),
            (["--dry-run", "--threads", "0"], "0 is not in the range"),
            (["--dry-run", "--shape", "x=1x0"], "such as images=1x3x224x224"),
            (["--dry-run", "--shape", "1x3"], "such as images=1x3x224x224"),
            (["--dry-run", "--bogus"], "No such option"),
        ],
    )
    def test_says_what_is_wrong(self, model: Path, arguments: list[str], says: str) -> None:
        result = run("optimize", model, *arguments)
        assert result.exit_code == 2
        assert says in result.stderr
        assert result.stdout == ""

    @pytest.mark.parametrize("content", [b"", b"no archive", b"\x93NUMPY\x01\x00"])
    def test_inputs_that_are_no_archive(self, model: Path, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "x.npz").write_bytes(content)
        result = run("optimize", model, "--dry-run", "--data", tmp_path / "x.npz")
        assert result.exit_code == 2
        assert "numpy.savez" in result.stderr

    def test_inputs_that_are_damaged(self, model: Path, tmp_path: Path) -> None:
        """Each decompressor has an error of its own."""
        path = tmp_path / "x.npz"
        np.savez_compressed(path, allow_pickle=False, x=np.arange(999, dtype=np.float32))
        content = bytearray(path.read_bytes())
        content[len(content) // 3 : len(content) // 3 + 40] = b"\xff" * 40
        path.write_bytes(bytes(content))
        result = run("optimize", model, "--dry-run", "--data", path)
        assert result.exit_code == 2
        assert "numpy.savez" in result.stderr

    def test_inputs_that_are_missing(self, model: Path, tmp_path: Path) -> None:
        result = run("optimize", model, "--dry-run", "--data", tmp_path / "x.npz")
        assert result.exit_code == 2
        assert result.stderr == f"Error: cannot read {tmp_path / 'x.npz'}: No such file or directory\n"


class TestErrors:
    @pytest.mark.parametrize(
        ("error", "status"),
        [
            (NormfuseError("no; give another"), 2),
            (ParityError("differs; report it"), 1),
            (TargetError("CUDA is missing; install it"), 4),
        ],
    )
    def test_an_expected_one_is_one_line(self, model: Path, answer: Any, error: Exception, status: int) -> None:
        answer(error)
        result = run("optimize", model, "--dry-run")
        assert result.exit_code == status
        assert result.stderr == f"Error: {error}\n"

    def test_an_unexpected_one_asks_for_a_report(self, model: Path, answer: Any) -> None:
        answer(KeyError("tensor\nname"))
        result = run("optimize", model, "--dry-run")
        assert result.exit_code == 70
        assert result.stderr.count("\n") == 1
        assert result.stderr.startswith("internal error: KeyError")
        assert "run again with --debug" in result.stderr

    def test_debug_shows_the_traceback(self, model: Path, answer: Any) -> None:
        answer(TargetError("CUDA is missing; install it"))
        result = run("optimize", model, "--dry-run", "--debug")
        assert result.exit_code == 4
        assert "Traceback" in result.stderr

    def test_a_full_disk_is_no_bug(self, model: Path, answer: Any) -> None:
        answer(OSError(28, "No space left on device", "fast.onnx"))
        result = run("optimize", model, "--dry-run")
        assert (result.exit_code, result.stderr) == (2, "Error: fast.onnx: No space left on device\n")

    def test_an_interruption_has_its_own_status(self, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupt(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(pipeline, "rewrite", interrupt)
        result = run("optimize", model, "--dry-run")
        assert (result.exit_code, result.stderr) == (130, "interrupted\n")


def cyclic() -> onnx.ModelProto:
    model = small_model()
    model.graph.node[0].input[0] = "c"
    return model


def undefined() -> onnx.ModelProto:
    model = small_model()
    model.graph.node[2].input[0] = "nowhere"
    return model


def unknown_operator() -> onnx.ModelProto:
    model = small_model()
    model.graph.node[2].op_type = "Rellu"
    return model


def future_opset() -> onnx.ModelProto:
    model = small_model()
    model.opset_import[0].version = 9999
    return model


def external(path: Path, size: int | None) -> onnx.ModelProto:
    """A model whose first weight lies in another file, of which only `size` bytes exist."""
    model = small_model()
    weight = model.graph.initializer[0]
    content = weight.raw_data
    onnx.external_data_helper.set_external_data(weight, "weights.bin", 0, len(content))
    weight.ClearField("raw_data")
    if size is not None:
        (path / "weights.bin").write_bytes(content[:size])
    return model


BAD_MODELS: dict[str, Callable[[Path], bytes | onnx.ModelProto]] = {
    "empty": lambda _: b"",
    "text": lambda _: b"just some words, no model\n" * 20,
    "git-lfs": lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 12345\n",
    "html": lambda _: b"<!DOCTYPE html><html><body>404</body></html>",
    "torch": lambda _: b"PK\x03\x04" + b"\0" * 26 + b"archive/data.pkl" + b"\0" * 100,
    "truncated": lambda _: small_model().SerializeToString()[:-400],
    "cyclic": lambda _: cyclic(),
    "undefined": lambda _: undefined(),
    "unknown-operator": lambda _: unknown_operator(),
    "future-opset": lambda _: future_opset(),
    "external-missing": lambda folder: external(folder, None),
    "external-short": lambda folder: external(folder, 10),
}
SAYS = {
    "git-lfs": "git lfs pull",
    "html": "HTML",
    "torch": "torch",
    "undefined": "nowhere",
    "unknown-operator": "Rellu",
    "cyclic": "cycl",
    "future-opset": "9999",
    "external-missing": "weights.bin",
    "external-short": "432",
}


class TestBadInput:
    def fails(self, folder: Path, *arguments: str | Path, status: tuple[int, ...] = (2, 3)) -> str:
        """Runs a command that must fail with one line, and must leave the folder as it was; returns the line."""
        before = files(folder)
        result = run(*arguments)
        assert result.exit_code in status, result.output
        assert result.stdout == ""
        assert result.stderr.count("\n") == 1, result.stderr
        assert result.stderr.startswith("Error: ")
        assert files(folder) == before
        return result.stderr

    @pytest.mark.parametrize("verb", ["optimize", "inspect", "verify", "bench"])
    @pytest.mark.parametrize("kind", sorted(BAD_MODELS))
    def test_a_bad_model(self, tmp_path: Path, verb: str, kind: str) -> None:
        path = tmp_path / f"{kind}.onnx"
        content = BAD_MODELS[kind](tmp_path)
        path.write_bytes(content if isinstance(content, bytes) else content.SerializeToString())
        more = {"optimize": ("-o", tmp_path / "out.onnx"), "verify": (path,)}.get(verb, ())
        line = self.fails(tmp_path, verb, path, *more, status=(3,))
        assert path.name in line
        assert SAYS.get(kind, "").lower() in line.lower()

    @pytest.mark.parametrize("verb", ["optimize", "inspect", "verify", "bench"])
    def test_a_missing_path(self, tmp_path: Path, verb: str) -> None:
        path = tmp_path / "missing.onnx"
        more = {"optimize": ("-o", tmp_path / "out.onnx"), "verify": (path,)}.get(verb, ())
        assert "missing.onnx" in self.fails(tmp_path, verb, path, *more, status=(2,))

    def test_a_folder(self, tmp_path: Path) -> None:
        line = self.fails(tmp_path, "optimize", tmp_path, "-o", tmp_path / "out.onnx", status=(2,))
        assert "is a folder" in line

    def test_an_output_folder_that_is_missing(self, model: Path, tmp_path: Path) -> None:
        line = self.fails(tmp_path, "optimize", model, "-o", tmp_path / "nowhere" / "out.onnx", status=(2,))
        assert "nowhere" in line

    def test_an_output_folder_that_cannot_be_written(self, model: Path, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"")
        line = self.fails(tmp_path, "optimize", model, "-o", tmp_path / "file" / "out.onnx", status=(2,))
        assert "file" in line

    def test_an_output_that_is_the_input(self, model: Path, tmp_path: Path) -> None:
        content = model.read_bytes()
        self.fails(tmp_path, "optimize", model, "-o", tmp_path / "." / "model.onnx", status=(2,))
        assert model.read_bytes() == content

    def test_the_output_is_checked_before_work_starts(self, model: Path, tmp_path: Path, answer: Any) -> None:
        answer(AssertionError("work was started"))
        self.fails(tmp_path, "optimize", model, "-o", tmp_path / "nowhere" / "out.onnx", status=(2,))


class TestExplain:
    @pytest.mark.usefixtures("table")
    def test_lists_rules(self) -> None:
        lines = run("explain").stdout.splitlines()
        assert lines[0].split() == ["rule", "kind", "operators", "side", "why", "it", "is", "right"]
        assert lines[1].split()[:4] == ["conv-after", "absorb", "Conv", "after"]

    @pytest.mark.usefixtures("table")
    def test_shows_the_law(self) -> None:
        text = run("explain", "conv-after").stdout
        assert "W' = diag(s) · W." in text
        assert "a convolution is linear in its weights" in text

    @pytest.mark.usefixtures("table")
    def test_json(self) -> None:
        content = json.loads(run("explain", "conv-after", "--json").stdout)
        assert content["schema_version"] == 1
        assert [(rule["name"], rule["law"]) for rule in content["rules"]] == [("conv-after", "W' = diag(s) · W.")]

    @pytest.mark.usefixtures("table")
    def test_an_unknown_rule(self) -> None:
        result = run("explain", "conv")
        assert result.exit_code == 2
        assert "there is no rule 'conv'" in result.stderr

    def test_every_rule_says_why(self) -> None:
        rules = pipeline.rules()
        assert len({rule.name for rule in rules}) == len(rules) > 20
        for rule in rules:
            assert rule.reason, rule.name
            assert rule.law.__doc__, rule.name


class TestVerify:
    @pytest.fixture(autouse=True)
    def _onnxruntime(self) -> None:
        pytest.importorskip("onnxruntime")

    def test_the_same_model_passes(self, model: Path) -> None:
        result = run("verify", model, model, "--seeds", "1", "--shape", "x=1x3x8x8")
        assert result.exit_code == 0, result.output
        assert "y" in result.stdout.split()

    def test_another_model_fails(self, model: Path, tmp_path: Path) -> None:
        other = tmp_path / "other.onnx"
        onnx.save(small_model(seed=1), other)
        result = run("verify", model, other, "--json")
        assert result.exit_code == 1, result.output
        content = json.loads(result.stdout)
        assert content["schema_version"] == 1
        assert content["passed"] is False


class TestBench:
    def test_times_two_models(self, model: Path) -> None:
        pytest.importorskip("onnxruntime")
        result = run("bench", model, model, "--threads", "1", "--rounds", "2", "--shape", "x=1x3x8x8", "--json")
        assert result.exit_code == 0, result.output
        content = json.loads(result.stdout)
        assert content["schema_version"] == 1
        assert [timing["name"] for timing in content["timings"]] == ["model.onnx", "model.onnx"]

    def test_prints_intervals_and_what_normalization_costs(self, model: Path) -> None:
        pytest.importorskip("onnxruntime")
        result = run("bench", model, "--threads", "1,2", "--rounds", "2", "--seconds", "0.1", "--tax")
        assert result.exit_code == 0, result.output
        lines = [line.split() for line in result.stdout.splitlines()]
        assert lines[0] == ["model", "threads", "ms", "interval", "p90", "ratio", "interval"]
        assert [line[:2] for line in lines[1:3]] == [["model.onnx", "1"], ["model.onnx", "2"]]
        assert "1 normalization, 0 affine maps" in result.stdout
        assert "CPUExecutionProvider" in result.stdout

    @pytest.mark.parametrize("threads", ["0", "1,", "two", "1;2"])
    def test_threads_are_numbers(self, model: Path, threads: str) -> None:
        result = run("bench", model, "--threads", threads)
        assert result.exit_code == 2
        assert "is no number of threads" in result.stderr


class TestInspect:
    def test_lists_the_normalizations(self, model: Path) -> None:
        result = run("inspect", model)
        assert result.exit_code == 0, result.output
        row = next(line for line in result.stdout.splitlines() if line.startswith("norm "))
        assert "BatchNormalization" in row
        assert "Conv conv1 → · → Conv conv2" in row
        assert "folded into conv1" in row

    def test_json(self, model: Path) -> None:
        content = json.loads(run("inspect", model, "--json").stdout)
        assert content["schema_version"] == 1
        assert [(site["node"], site["outcome"]) for site in content["sites"]] == [("norm", "folded")]
        assert set(content["sites"][0]["targets"]) == {"portable", "cpu", "cuda"}
        assert content["profile"] is None

    def test_prints_normalizations_by_what_they_compute(self, tmp_path: Path) -> None:
        path = tmp_path / "norms.onnx"
        onnx.save(several_norms(), path)
        result = run("inspect", path, "--no-layout")
        assert result.exit_code == 0, result.output
        lines = result.stdout.splitlines()
        assert lines[0] == (
            "InstanceNorm (InstanceNormalization): γ · (x − E[x]) / √(Var[x] + 1e-05) + β, "
            "S: H, W; per sample and channel"
        )
        assert lines[1:4] == [
            "  γ and β constant",
            "  everywhere: stays: no better form is known",
            "  node    shape",
        ]
        assert [line.split()[0] for line in lines[4:6]] == ["first", "second"]
        assert any(line.startswith("LRN (LRN): ") for line in lines)
        assert "2 normalizations" not in result.stdout
        assert lines[-1].startswith("3 normalizations (0 spelled out), 1 affine map; ")

    def test_many_affine_maps_are_counted(self, tmp_path: Path) -> None:
        proto = onnx.parser.parse_model(
            '<ir_version: 8, opset_import: ["" : 17]> g (float[1, 4] x) => (float[1, 4] y0) { '
            + " ".join(f"y{i} = Sigmoid (t{i}) t{i} = Mul (y{i + 1}, k)" for i in range(31)).replace("y31", "x")
            + " }"
        )
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array([2], np.float32), "k"))
        onnx.save(proto, tmp_path / "many.onnx")
        counted = run("inspect", tmp_path / "many.onnx", "--no-layout")
        assert [line.split()[:2] for line in counted.stdout.splitlines()[:2]] == [["affine", "maps"], ["30", "Mul"]]
        every = run("inspect", tmp_path / "many.onnx", "--no-layout", "-v")
        assert len(every.stdout.splitlines()) > 31

    def test_profile_tells_the_share_of_the_time(self, tmp_path: Path) -> None:
        pytest.importorskip("onnxruntime")
        path = tmp_path / "norms.onnx"
        onnx.save(several_norms(), path)
        np.savez(tmp_path / "x.npz", x=np.ones((2, 4, 8, 8), np.float32))
        result = run("inspect", path, "--profile", "--data", tmp_path / "x.npz", "--threads", "1")
        assert result.exit_code == 0, result.output
        assert re.search(r"^normalization: \d+\.\d % of the time, ", result.stdout, re.MULTILINE)
        assert "1 thread, x 2×4×8×8" in result.stdout
        assert re.search(r"^ *first +N×4×8×8 float +\d+\.\d % +InstanceNormalization$", result.stdout, re.MULTILINE)

    def test_inputs_without_a_profile_are_a_mistake(self, model: Path) -> None:
        result = run("inspect", model, "--shape", "x=1x3x8x8")
        assert result.exit_code == 2
        assert "--profile" in result.stderr

    def test_a_profile_without_onnxruntime_says_what_to_install(
        self, model: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        result = run("inspect", model, "--profile", "--no-layout")
        assert result.exit_code == 4
        assert "pip install normfuse[cpu]" in result.stderr
        without = run("inspect", model, "--layout")
        assert without.exit_code == 0, without.output
        assert "it is not known: ONNX Runtime is not installed" in without.stdout

    def test_says_what_breaks_the_blocked_layout(self, tmp_path: Path) -> None:
        pytest.importorskip("onnxruntime")
        path = tmp_path / "chain.onnx"
        proto = onnx.parser.parse_model(
            '<ir_version: 8, opset_import: ["" : 17]> g (float[1, 16, 8, 8] x) => (float[1, 16, 8, 8] y) '
            "{ a = Conv (x, w) p = Softplus (a) y = Conv (p, w) }"
        )
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((16, 16, 1, 1), np.float32), "w"))
        onnx.save(proto, path)
        result = run("inspect", path)
        assert result.exit_code == 0, result.output
        assert result.stdout.startswith("blocked convolution layout")
        if platform.machine().lower() in ("x86_64", "amd64"):
            assert "Softplus" in result.stdout


@pytest.mark.parametrize(
    ("reason", "group"),
    [
        ("'r7' is also read by Concat 'n22'; no way", "the value is also read by Concat; no way"),
        ("weight is shared with Conv '/a/b c'", "weight is shared with Conv"),
        ("scale overflows float16", "scale overflows float16"),
    ],
)
def test_like_reasons_are_one_group(reason: str, group: str) -> None:
    assert tables.nameless(reason) == group


class TestProgress:
    def test_is_silent_where_stderr_is_no_terminal(self, capsys: pytest.CaptureFixture[str]) -> None:
        with console.Progress("reading") as progress:
            progress.say("folding")
        assert capsys.readouterr() == ("", "")

    def test_shows_long_work_on_a_terminal(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
        monkeypatch.setattr(console, "PATIENCE", 0.0)
        with console.Progress("reading [model]") as progress:
            progress._timer.join()
            progress.say("folding")
        shown = capsys.readouterr()
        assert shown.out == ""
        assert "folding" in shown.err


@pytest.mark.parametrize("arguments", [["--help"], ["optimize", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = f"""
import sys
from normfuse.cli import main
try:
    main({arguments!r})
finally:
    print(sorted({{"numpy", "onnx", "onnx_ir", "onnxruntime", "rich", "torch"}} & set(sys.modules)), file=sys.stderr)
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stderr == "[]\n"
    assert process.stdout.startswith("normfuse" if arguments == ["--version"] else "Usage:")


def test_names_of_a_model_give_the_terminal_no_orders() -> None:
    nasty = "y\x1b[31m\n::error::x\x9b\u2028\u202e é"
    made = tables.table("name")
    made.add_row(nasty)
    failed = Parity(False, 3.0, (), notes=(nasty,), reason=nasty)
    escaped = r"y\x1b[31m\n::error::x\x9b\u2028\u202e é"
    for shown in (made, failed):
        with redirect_stdout(StringIO()) as out:
            console.print_parity(shown) if isinstance(shown, Parity) else tables.print_table(shown)
        assert escaped in out.getvalue()
        assert not set(out.getvalue()) & set("\x1b\x9b\u2028\u202e")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["explain", "conv-aftr"], "did you mean 'conv-after'"),
        (["explain", "Conv_After"], "did you mean 'conv-after'?"),
        (["explain", "lowr"], "did you mean 'lower'"),
        (["explain", "xyzzy"], "`normfuse explain` lists them"),
        (["optimize", "absent.onnx", "--dry-run", "--target", "gpu"], "Did you mean 'cuda'?"),
        (["inspect", "absent.onnx", "--target", "Portable"], "Did you mean 'portable'?"),
        (["verify", "absent.onnx", "absent.onnx", "--provider", "xyzzy"], "is not one of 'cpu', 'cuda'."),
        (["calibrate", "absent.onnx", "x.npz", "--estimator", "pool"], "Did you mean 'pooled'?"),
        (["optimize", "absent.onnx", "--dry-run", "--ignore", "lowr"], "did you mean 'lower'"),
        (
            ["optimize", "absent.onnx", "--dry-run", "--select", "freeze"],
            "only rules of FOLD, BLOCKS and LOWER can",
        ),
        (["reduce", "absent.onnx", "--select", "conv-aftr"], "did you mean 'conv-after'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_unknown_names_are_asked_after(arguments: list[str], words: str) -> None:
    result = CliRunner().invoke(cli.main, arguments)
    assert result.exit_code == 2
    assert words in " ".join(result.stderr.split())


@pytest.mark.parametrize(("name", "known"), [("gpu", "'cuda'"), ("CPU", "'cpu'"), ("xyzzy", None)])
def test_unknown_targets_of_the_api_are_asked_after(name: str, known: str | None) -> None:
    with pytest.raises(NormfuseError, match="choose one of portable, cpu, cuda") as raised:
        pipeline.optimize(small_model(), name)
    assert str(raised.value).endswith(f"did you mean {known}?") == (known is not None)


UNCHANGED = "y = Relu(a)"
NAN_EVERYWHERE = {
    UNCHANGED: 0,
    "y = Identity(a)": 1,
    "b = Mul(a, two) y = Mul(b, two)": 1,
    "b = Relu(a) unread = Neg(b) y = Tanh(b)": 1,
}
"""What stands behind a logarithm of negative numbers, and the exit status of `optimize`."""


@pytest.mark.parametrize("behind", NAN_EVERYWHERE)
def test_a_model_that_cannot_be_judged_passes_only_where_nothing_is_changed(tmp_path: Path, behind: str) -> None:
    text = f"""
        <ir_version: 8, opset_import: ["" : 17]> g (float[N, 2] x) => (float[N, 2] y)
        <float[1] far = {{-100000}}{", float[1] two = {2}" * ("two" in behind)}>
        {{ s = Tanh(x) t = Add(s, far) a = Log(t) {behind} }}
    """
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    result = CliRunner().invoke(cli.main, ["optimize", str(tmp_path / "m.onnx"), "-o", str(tmp_path / "out.onnx")])
    assert result.exit_code == NAN_EVERYWHERE[behind], result.output
    assert (tmp_path / "out.onnx").exists() is (behind == UNCHANGED)
    assert "nothing could be judged: output 'y' is NaN or infinite on every probe" in result.output
    assert ("it passes, as nothing was changed" in result.output) is (behind == UNCHANGED)
    assert ("nothing written: nothing could be judged" in result.output) is (behind != UNCHANGED)
    assert "does not compute what" not in result.output
    assert "normfuse reduce" not in result.output


def test_another_verdict_on_what_was_not_changed_stays() -> None:
    failed = Parity(False, 3.0, (), reason="output 'y' is wrong")
    assert verification.of_unchanged(failed) is failed

"""normfuse.export: torch modules to proved files."""

import copy
import re
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

from onnx.reference import ReferenceEvaluator  # noqa: E402
from onnxscript import opset18 as op  # noqa: E402  # nothing here can run without torch
from torch import Tensor, nn  # noqa: E402

import normfuse  # noqa: E402
from models.entry import randomize  # noqa: E402
from normfuse import functions  # noqa: E402
from normfuse.capture import capture  # noqa: E402
from normfuse.errors import ExportError, NormfuseError, ParityError  # noqa: E402
from normfuse.translations import TRANSLATIONS  # noqa: E402

ATEN = torch.ops.aten
BATCH = {0: "batch"}


class ByTheBatch(nn.BatchNorm2d):
    """A BatchNorm that reads no running statistics in eval mode either."""

    def forward(self, x: Tensor) -> Tensor:
        mean, variance = self.running_mean, self.running_var
        return nn.functional.batch_norm(x, mean, variance, self.weight, self.bias, training=True)


ROWS: dict[str, tuple[Any, nn.Module, str, int]] = {
    "group norm": (ATEN.group_norm.default, nn.GroupNorm(2, 4), "GroupNormalization", 99),
    "group norm without γ and β": (
        ATEN.group_norm.default,
        nn.GroupNorm(2, 4, affine=False),
        "GroupNormalization",
        99,
    ),
    "rms norm": (ATEN.rms_norm.default, nn.RMSNorm((5, 6)), "RMSNormalization", 23),
    "rms norm with an ε": (ATEN.rms_norm.default, nn.RMSNorm(6, eps=0.01), "RMSNormalization", 23),
    "layer norm": (ATEN.layer_norm.default, nn.LayerNorm(6), "LayerNormalization", 18),
    "layer norm without β": (ATEN.layer_norm.default, nn.LayerNorm((5, 6), bias=False), "LayerNormalization", 18),
    "instance norm": (ATEN.instance_norm.default, nn.InstanceNorm2d(4), "InstanceNormalization", 18),
    "instance norm by running statistics": (
        ATEN.instance_norm.default,
        nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
        "BatchNormalization",
        18,
    ),
    "batch norm": (
        ATEN._native_batch_norm_legit_no_training.default,
        nn.BatchNorm2d(4, eps=0.01),
        "BatchNormalization",
        18,
    ),
    "batch norm by the statistics of the batch": (
        ATEN._native_batch_norm_legit.no_stats,
        nn.BatchNorm2d(4, track_running_stats=False),
        "BatchStatistics",
        99,
    ),
    "batch norm by the statistics of the batch where running ones are kept": (
        ATEN._native_batch_norm_legit_functional.default,
        ByTheBatch(4),
        "BatchStatistics",
        99,
    ),
}
"""For each row of the table: a module, what it becomes, and the first opset that has that operator."""


pytestmark = pytest.mark.usefixtures("one_thread")


class Each(nn.Module):
    """Several modules side by side on the same input, an output for each."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(part(x) for part in self.parts)


def all_rows(seed: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    module = Each(*(row[1] for row in ROWS.values())).eval()
    randomize(module)
    return module


def called(model: ir.Model) -> Counter[str]:
    """Operators that are no constants and no arithmetic on them, as `domain::name`."""
    nodes = [node for node in model.graph if node.op_type not in ("Constant", "Unsqueeze")]
    return Counter(f"{node.domain}::{node.op_type}" if node.domain else node.op_type for node in nodes)


def run(path: Path | str, **inputs: Tensor) -> list[Any]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    results: list[Any] = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    return results


class TestTranslations:
    def test_every_row_has_a_case(self) -> None:
        assert set(TRANSLATIONS) - {ATEN.scalar_tensor.default} == {row[0] for row in ROWS.values()}

    @pytest.mark.parametrize("opset", [18, 23])
    def test_each_normalization_is_one_node(self, opset: int) -> None:
        module, x = all_rows(), torch.randn(2, 4, 5, 6)
        model = capture(module, (x,), {}, opset=opset, dynamic_shapes=(BATCH,))
        names = [name if opset >= since else f"normfuse::{name}" for _, _, name, since in ROWS.values()]
        assert called(model) == Counter(names)
        assert model.opset_imports[""] == opset
        onnx.checker.check_model(ir.to_proto(model), full_check=True)

    def test_the_functions_are_a_model_that_runs_and_is_proved(self, tmp_path: Path) -> None:
        path = tmp_path / "raw.onnx"
        module, x = all_rows(), torch.randn(2, 4, 5, 6)
        result = normfuse.export(module, x, path, opset=20, dynamic_shapes=(BATCH,), optimize=False, verify_budget=1)
        assert result.report.parity is not None
        assert result.report.parity.passed
        assert len({output.name for output in result.report.parity.outputs}) == len(ROWS)
        for y, wanted in zip(run(path, x=x), module(x), strict=True):
            np.testing.assert_allclose(y, wanted.detach().numpy(), rtol=2e-5, atol=2e-6)

    @pytest.mark.parametrize(("opset", "target"), [(18, "portable"), (20, "cpu"), (23, "portable")])
    def test_what_becomes_of_them_for_a_target_computes_the_same(self, opset: int, target: str, tmp_path: Path) -> None:
        path = tmp_path / "model.onnx"
        module, x = all_rows(), torch.randn(2, 4, 5, 6)
        result = normfuse.export(module, x, path, target=target, opset=opset, dynamic_shapes=(BATCH,), verify=False)
        assert not result.model.functions
        assert result.model.graph.inputs[0].shape == ["batch", 4, 5, 6]
        wide = torch.randn(3, 4, 5, 6)
        for y, wanted in zip(run(path, x=wide), module(wide), strict=True):
            np.testing.assert_allclose(y, wanted.detach().numpy(), rtol=2e-5, atol=2e-6)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
    def test_narrow_types_have_their_statistics_in_float32(self, dtype: Any) -> None:
        by_batch = nn.BatchNorm2d(4, track_running_stats=False)
        parts = (nn.GroupNorm(2, 4), nn.RMSNorm(6), nn.LayerNorm(6), by_batch, nn.InstanceNorm2d(4, affine=True))
        module = Each(*parts).to(dtype).eval()
        randomize(module)
        x = torch.randn(2, 4, 5, 6).to(dtype)
        model = capture(module, (x,), {}, opset=20)
        names = ("GroupNormalization", "RMSNormalization", "BatchStatistics", "InstanceNormalization")
        assert called(model) == {"LayerNormalization": 1, **{f"normfuse::Wide{name}": 1 for name in names}}
        result = normfuse.export(module, x, opset=20, verify_budget=1)
        assert result.report.parity is not None
        assert result.report.parity.passed

    def test_squares_that_float16_cannot_hold(self) -> None:
        norms = (nn.GroupNorm(2, 4), nn.BatchNorm2d(4, track_running_stats=False), nn.InstanceNorm2d(4))
        module, x = Each(*norms).half().eval(), (torch.randn(2, 4, 5, 6) * 1000).half()
        model = capture(module, (x,), {}, opset=20)
        functions.inline(model)
        values = ReferenceEvaluator(ir.to_proto(model)).run(None, {"x": x.numpy()})  # as written, in each node's type
        for y, wanted in zip(values, module(x), strict=True):
            np.testing.assert_allclose(np.asarray(y), wanted.detach().numpy(), rtol=2e-2, atol=2e-3)

    @pytest.mark.parametrize("optimize", [True, False])
    def test_float64_keeps_its_epsilon(self, optimize: bool) -> None:
        parts = (*(row[1] for row in ROWS.values()), nn.LocalResponseNorm(3, alpha=0.1))
        module = Each(*(copy.deepcopy(part) for part in parts)).double().eval()
        randomize(module)
        x = torch.randn(2, 4, 5, 6).double()
        parity = normfuse.export(module, x, optimize=optimize, verify_budget=2).report.parity
        assert parity is not None
        assert parity.passed
        assert {output.dtype for output in parity.outputs} == {"float64"}

    def test_another_epsilon_in_float64_is_seen(self) -> None:
        module, x = nn.LayerNorm(6).double().eval(), torch.randn(2, 6).double()

        def rounded(x: Any, shape: Any, weight: Any, bias: Any, eps: float = 1e-5, cudnn: bool = True) -> Any:
            return op.LayerNormalization(x, weight, bias, axis=-1, epsilon=eps, stash_type=11)[0]

        with pytest.raises(ParityError, match="in float64"):
            normfuse.export(module, x, translations={ATEN.layer_norm.default: rounded}, verify_budget=1)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.int64, torch.complex64], ids=str)
    def test_numbers_are_not_rounded_on_their_way(self, dtype: Any) -> None:
        class Number(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                number: Tensor = ATEN.scalar_tensor.default(3 if dtype == torch.int64 else 0.1, dtype=dtype)
                parts: Tensor = torch.view_as_real(number) if dtype.is_complex else number * torch.ones_like(x)
                return parts

        x = torch.ones(2).to(torch.float64 if dtype.is_complex else dtype)
        model = capture(Number().eval(), (x,), {})
        (y,) = ReferenceEvaluator(ir.to_proto(model)).run(None, {"x": x.numpy()})
        np.testing.assert_array_equal(np.asarray(y), Number()(x).numpy())

    def test_float64_keeps_its_own_statistics(self) -> None:
        module, x = nn.RMSNorm(6).double(), torch.randn(2, 6).double()
        assert called(capture(module, (x,), {}, opset=23)) == {"normfuse::RMSNormalization": 1}

    def test_own_rows_go_first(self) -> None:
        seen: list[Any] = []

        def relu(x: Any) -> Any:
            seen.append(x)
            return op.Max(x, op.Sub(x, x))

        result = normfuse.export(
            nn.ReLU().eval(), torch.randn(2, 3), translations={ATEN.relu.default: relu}, optimize=False, verify=False
        )
        assert seen
        assert "Max" in called(result.model)


class TestLarge:
    @pytest.mark.parametrize("fails", [False, True])
    def test_weights_that_protobuf_cannot_hold_lie_beside_the_model(
        self, fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("normfuse.storage.LARGEST", 30_000)
        monkeypatch.setattr("normfuse.streaming.MAPPED", 10_000)
        module = nn.Sequential(nn.Linear(40, 100), nn.LayerNorm(100), nn.Tanh(), nn.Linear(100, 50)).eval()
        randomize(module)
        path, x = tmp_path / "model.onnx", torch.randn(3, 40)
        if fails:
            wrong = {ATEN.tanh.default: lambda x: op.Sigmoid(x)}
            with pytest.raises(ParityError):
                normfuse.export(module, x, path, translations=wrong, verify_budget=1)
            assert not list(tmp_path.iterdir())
            return
        result = normfuse.export(module, x, path, verify_budget=1)
        assert {file.name for file in tmp_path.iterdir()} == {"model.onnx", "model.onnx.data"}
        weights = [value.const_value for value in result.model.graph.initializers.values()]
        assert sum(isinstance(tensor, ir.ExternalTensor) for tensor in weights) == 2
        np.testing.assert_allclose(run(path, input=x)[0], module(x).detach().numpy(), rtol=1e-5, atol=1e-6)


class Nested(nn.Module):
    """Nested inputs and outputs, keyword arguments, and a weight with two places."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(
        self, tokens: Tensor, extra: dict[str, Any], *, scale: Tensor, shift: float = 0.5
    ) -> dict[str, Tensor | list[Tensor]]:
        y = self.norm(self.embedding(tokens) + extra["bias"] * scale + extra["pair"][0])
        return {"logits": self.head(y), "states": [y + shift, extra["pair"][1] * 2.0]}


class Taking(nn.Module):
    """Arguments of all kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)

    def forward(self, a: Tensor, b: Any = None, *rest: Tensor, scale: Tensor | None = None, **other: Tensor) -> Tensor:
        y: Tensor = self.norm(a)
        if b is not None:
            y = y - 2 * b if isinstance(b, Tensor) else y + b["x"] - 3 * b["y"]
        for index, one in enumerate((*rest, *other.values())):
            y = y + (index + 4) * one
        return y if scale is None else y * (1 + 0.1 * scale)


class TestArguments:
    def test_nested_inputs_keyword_arguments_and_tied_weights(self, tmp_path: Path) -> None:
        torch.manual_seed(0)
        module = Nested().eval()
        randomize(module)
        tokens = torch.randint(0, 11, (2, 5))
        extra = {"bias": torch.randn(8), "pair": (torch.randn(2, 5, 8), torch.randn(3))}
        scale = torch.randn(8)
        shapes = {"tokens": {0: "batch", 1: "length"}, "extra": {"bias": None, "pair": (BATCH | {1: "length"}, None)}}
        path = tmp_path / "nested.onnx"
        result = normfuse.export(
            module,
            (tokens, extra),
            path,
            kwargs={"scale": scale},
            dynamic_shapes=shapes | {"scale": None},
            verify_budget=1,
        )
        assert result.report.parity is not None
        assert result.report.parity.passed
        tables = [value for value in result.model.graph.initializers.values() if value.shape == [11, 8]]
        turned = [value for value in result.model.graph.initializers.values() if value.shape == [8, 11]]
        assert len(tables) + len(turned) <= 2
        tokens, pair = torch.randint(0, 11, (3, 4)), torch.randn(3, 4, 8)
        names = [value.name for value in result.model.graph.inputs]
        assert len(names) == 5
        inputs = dict(zip(names, (tokens, extra["bias"], pair, extra["pair"][1], scale), strict=True))
        expected = module(tokens, {"bias": extra["bias"], "pair": (pair, extra["pair"][1])}, scale=scale)
        flat = [expected["logits"], *expected["states"]]
        for y, wanted in zip(run(path, **inputs), flat, strict=True):
            np.testing.assert_allclose(y, wanted.detach().numpy(), rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize(
        ("args", "kwargs"),
        [
            ((0, 0), {}),
            ((0,), {"b": 0}),
            ((0, 1), {"scale": 2}),
            ((0, 1, 2, 3), {"scale": 4, "z": 5}),
            ((0,), {"scale": 2, "b": 1}),
            ((0, {"y": 2, "x": 1}), {}),
        ],
        ids=[
            "twice",
            "twice by name",
            "by place and name",
            "more by place and name",
            "names in any order",
            "dict last",
        ],
    )
    def test_each_argument_is_an_input_of_its_own(self, args: Any, kwargs: Any, tmp_path: Path) -> None:
        torch.manual_seed(0)
        values = [torch.randn(2, 8) for _ in range(6)]
        one = torch.utils._pytree.tree_map(lambda place: values[place], (args, kwargs))
        module, path = Taking().eval(), tmp_path / "model.onnx"
        result = normfuse.export(module, one[0], path, kwargs=one[1], verify_budget=1)
        assert result.report.parity is not None
        assert result.report.parity.passed
        leaves, spec = torch.utils._pytree.tree_flatten((args, kwargs))
        assert len(result.model.graph.inputs) == len(leaves)
        other = [torch.randn(2, 8) for _ in leaves]
        positional, named = torch.utils._pytree.tree_unflatten(other, spec)
        order = {"a": 0, "b": 1, "rest": 2, "scale": 3, "z": 4}
        inputs = [*torch.utils._pytree.tree_leaves(positional)]
        inputs += [named[name] for name in sorted(named, key=order.__getitem__)]
        names = [str(value.name) for value in result.model.graph.inputs]
        wanted = module(*positional, **named).detach().numpy()
        np.testing.assert_allclose(run(path, **dict(zip(names, inputs, strict=True)))[0], wanted, rtol=1e-4, atol=1e-5)

    def test_names_of_inputs_may_be_those_of_others(self) -> None:
        x = torch.randn(2, 8), torch.randn(2, 8)
        result = normfuse.export(Taking().eval(), x, input_names=["b", "a"], verify_budget=1)
        assert result.report.parity is not None
        assert result.report.parity.passed
        assert [value.name for value in result.model.graph.inputs] == ["b", "a"]

    def test_names_of_inputs_and_outputs(self) -> None:
        result = normfuse.export(
            nn.Linear(3, 2).eval(), torch.randn(1, 3), input_names=["a"], output_names=["b"], verify=False
        )
        assert [value.name for value in result.model.graph.inputs] == ["a"]
        assert [value.name for value in result.model.graph.outputs] == ["b"]

    def test_a_dim_of_torch_is_a_dimension(self) -> None:
        shapes = ({0: torch.export.Dim("rows", min=1, max=64)},)
        result = normfuse.export(nn.Linear(3, 2).eval(), torch.randn(4, 3), dynamic_shapes=shapes, verify=False)
        assert result.model.graph.inputs[0].shape == ["rows", 3]

    @pytest.mark.parametrize("opset", [17, 1000])
    def test_an_opset_that_torch_does_not_write_is_refused(self, opset: int) -> None:
        with pytest.raises(NormfuseError, match=f"writes opsets 18 and above, here up to .*, not {opset}"):
            normfuse.export(nn.Linear(3, 2).eval(), torch.randn(1, 3), opset=opset)

    def test_an_opset_above_those_is_reached_by_raising(self) -> None:
        if onnx.defs.onnx_opset_version() < 24:
            pytest.skip("onnx knows no opset above those of torch")
        result = normfuse.export(nn.Linear(3, 2).eval(), torch.randn(1, 3), opset=24, verify=False)
        assert result.model.opset_imports[""] == 24


class TestMode:
    def net(self) -> nn.Sequential:
        torch.manual_seed(1)
        module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.ReLU())
        randomize(module)
        return module.train()

    def test_a_module_in_training_mode_is_exported_in_eval_mode_and_left_as_it_is(self) -> None:
        module = self.net()
        module[2].eval()
        before = {name: value.clone() for name, value in module.state_dict().items()}
        with pytest.warns(UserWarning, match="Sequential: it is in training mode; it is exported in eval mode"):
            result = normfuse.export(module, torch.randn(2, 3, 6, 6), verify_budget=1)
        assert [part.training for part in module.modules()] == [True, True, True, False, True]
        for name, value in module.state_dict().items():
            assert torch.equal(value, before[name])
        assert result.report.parity is not None
        assert result.report.parity.passed
        assert called(result.model) == {"Conv": 1, "Relu": 1}

    def test_each_dropout_draws_for_itself(self) -> None:
        class Drops(nn.Module):
            def forward(self, x: Tensor) -> Any:
                return (
                    nn.functional.dropout(x, 0.5)
                    - nn.functional.dropout(x, 0.5)
                    + torch.bernoulli(x)
                    - torch.bernoulli(x)
                )

        result = normfuse.export(Drops().eval(), torch.rand(4, 64), verify=False)
        counts = called(result.model)
        assert counts["Dropout"] == 2
        assert counts["Bernoulli"] == 2

    def test_a_part_in_training_mode_is_named(self) -> None:
        module = self.net().eval()
        module[1].train()
        with pytest.warns(UserWarning, match="its part '1' is in training mode"):
            normfuse.export(module, torch.randn(2, 3, 6, 6), verify=False)

    def test_in_eval_mode_nothing_is_said(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            normfuse.export(self.net().eval(), torch.randn(2, 3, 6, 6), verify=False)

    @pytest.mark.parametrize("optimize", [True, False])
    def test_in_training_mode_it_is_proved_by_the_statistics_of_the_batch(self, optimize: bool, tmp_path: Path) -> None:
        path = tmp_path / "training.onnx"
        module, x = self.net()[:2], torch.randn(4, 3, 6, 6) * 5 + 3
        before = {name: value.clone() for name, value in module.state_dict().items()}
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            result = normfuse.export(
                module, x, path, training=True, optimize=optimize, dynamic_shapes=(BATCH,), layers=True, verify_budget=1
            )
        parity, parts = result.report.parity, result.report.parts
        assert parity is not None
        assert parity.passed
        assert parity.notes[0] == (
            "the torch module is in training mode ('Sequential' and 2 more): judged as it computes in that mode"
        )
        assert parts is not None
        assert parts.passed
        for name, value in module.state_dict().items():
            assert torch.equal(value, before[name])
        assert not result.report.unproved
        if not optimize:
            assert called(result.model) == {"Conv": 1, "normfuse::BatchStatistics": 1}
        np.testing.assert_allclose(run(path, input=x)[0], module(x).detach().numpy(), rtol=2e-5, atol=2e-5)

    def test_stored_statistics_in_training_mode_are_not_proved(self) -> None:
        module = self.net()[:2]

        def stored(x: Any, w: Any, b: Any, mean: Any, var: Any, training: bool, momentum: float, eps: float) -> Any:
            return op.BatchNormalization(x, w, b, mean, var, epsilon=eps), *(op.Identity(v) for v in (mean, var) * 2)

        rows = {ATEN._native_batch_norm_legit_functional.default: stored}
        with pytest.raises(ParityError, match="does not compute what the module computes"):
            normfuse.export(module, torch.randn(4, 3, 6, 6), training=True, translations=rows, verify_budget=1)

    def test_running_statistics_that_are_read_have_moved(self) -> None:
        class Reader(nn.BatchNorm2d):
            def forward(self, x: Tensor) -> Tensor:
                mean, variance = self.get_buffer("running_mean"), self.get_buffer("running_var")
                return super().forward(x) + (mean * variance)[:, None, None]

        module = Reader(4, momentum=0.25).train()
        randomize(module)
        x = torch.randn(3, 4, 5, 6) + 2
        parity = normfuse.export(module, x, training=True, dynamic_shapes=(BATCH,), verify_budget=1).report.parity
        assert parity is not None
        assert parity.passed

    def test_behind_an_active_dropout_nothing_is_proved_and_that_is_said(self, tmp_path: Path) -> None:
        path = tmp_path / "dropout.onnx"
        said = r"nothing was proved against Sequential in training mode: output 'relu' depends on Dropout '[^']+'"
        with pytest.warns(UserWarning, match=said):
            result = normfuse.export(self.net(), torch.randn(2, 3, 6, 6), path, training=True)
        assert result.report.parity is None
        assert re.match(said, result.report.unproved)
        assert result.report.to_dict()["unproved"] == result.report.unproved
        assert path.exists()

    def test_it_is_left_as_it_is_where_export_fails(self) -> None:
        module = nn.Sequential(self.net(), Branches())
        with pytest.warns(UserWarning, match="training mode"), pytest.raises(ExportError):
            normfuse.export(module, torch.randn(2, 3, 6, 6))
        assert all(part.training for part in module.modules())


class TestLayers:
    def test_the_parts_are_judged_by_their_paths(self) -> None:
        torch.manual_seed(2)
        twice = nn.ReLU()
        parts = (nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), twice, nn.Conv2d(4, 4, 1), twice, nn.LSTM(6, 2))
        module = First(*parts).eval()
        randomize(module)
        report = normfuse.export(module, torch.randn(2, 3, 8, 8), layers=True, verify_budget=1).report
        assert report.parts is not None
        assert report.parts.passed
        assert {output.name for output in report.parts.outputs} == {"inner.0", "inner.1", "inner.3"}
        assert [
            note for note in report.notes if note.startswith("parts of the module were not compared: inner, inner.2")
        ]
        assert report.to_dict()["parts"]["passed"]

    def test_the_part_that_was_captured_wrong_is_named(self) -> None:
        module = nn.Sequential(nn.Linear(4, 4), nn.Sigmoid(), nn.Linear(4, 4)).eval()
        translations = {ATEN.sigmoid.default: lambda x: op.Tanh(x)}
        with pytest.raises(ParityError) as raised:
            normfuse.export(module, torch.randn(3, 4), translations=translations, layers=True, verify_budget=1)
        report = raised.value.report
        assert isinstance(report, normfuse.Report)
        assert report.parts is not None
        passed = {output.name: output.passed for output in report.parts.outputs if output.level == "disabled"}
        assert passed == {"0": True, "1": False, "2": False}


class First(nn.Module):
    """All parts of a sequence but the last one, which is there and not called."""

    def __init__(self, *inner: nn.Module) -> None:
        super().__init__()
        self.inner = nn.ModuleList(inner)

    def forward(self, x: Tensor) -> Tensor:
        for index in range(len(self.inner) - 1):
            x = self.inner[index](x)
        return x


class Branches(nn.Module):
    """Control flow that depends on values."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if x.sum() > 0 else x - 1


class Unknown(nn.Module):
    """An operator that torch.onnx has no translation of."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = torch.linalg.svd(x)[1]
        return y


class Complex(nn.Module):
    """A product of complex numbers, as some write rotary embeddings."""

    def forward(self, x: Tensor) -> Tensor:
        turned = torch.view_as_complex(x[..., :2]).unsqueeze(-1).clone()
        y: Tensor = torch.view_as_real(torch.polar(x[..., :1].abs(), x[..., :1]) * turned)
        return y


class Fixed(nn.Module):
    """A size that cannot be dynamic."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, 12)


@dataclass
class Pair:
    """Tensors in a class that torch does not know."""

    a: Any
    b: Any


class Paired(nn.Module):
    """An output of a class that torch does not know."""

    def forward(self, x: Tensor) -> Pair:
        return Pair(x, x + 1)


class Numbered(nn.Module):
    """An output that is a number."""

    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        return x + 1, 5


class TestErrors:
    @pytest.mark.parametrize(
        ("part", "arguments", "message"),
        [
            (Branches(), {}, r"cannot export Sequential, 1 \(Branches\).*use torch\.where or torch\.cond"),
            (
                Unknown(),
                {},
                r"cannot export Sequential, 1 \(Unknown\): aten\._?linalg_svd.*no translation of it: write",
            ),
            (
                Complex(),
                {},
                r"cannot export Sequential, 1 \(Complex\): aten\.\w+.*real and imaginary parts",
            ),
            (
                Fixed(),
                {"dynamic_shapes": ({0: "batch"},)},
                r"cannot export Sequential.*for every size of a dimension in dynamic_shapes: leave that dimension out",
            ),
            (Numbered(), {}, "it gives a number or text, which can be no output: return tensors only"),
            (
                Paired(),
                {},
                r"a pytree for it.*; register its class with torch\.export\.register_dataclass",
            ),
            (nn.Identity(), {"dynamic_shapes": ({0: "batch"}, {0: "b"})}, "dynamic_shapes must be nested like the arg"),
            (nn.Identity(), {"kwargs": {"other": torch.ones(1)}}, "example inputs are not what the module takes"),
        ],
        ids=["control flow", "operator", "complex numbers", "size", "number", "class", "structure", "arguments"],
    )
    def test_one_line_names_the_module_and_what_to_try(
        self,
        part: nn.Module,
        arguments: dict[str, Any],
        message: str,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        module = nn.Sequential(nn.ReLU(), part).eval()
        with pytest.raises(ExportError, match=message) as raised:
            normfuse.export(module, torch.randn(2, 3, 4), tmp_path / "model.onnx", **arguments)
        assert "\n" not in str(raised.value)
        assert "\x1b" not in str(raised.value)
        assert capsys.readouterr().err == ""
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"dynamic_shapes": ({-1: "w"}, None)}, "names axis -1 of a, which has the axes 0 to 1"),
            ({"dynamic_shapes": ({2: "w"}, None)}, "names axis 2 of a, which has the axes 0 to 1"),
            ({"dynamic_shapes": ({0: ""}, None)}, "no name for axis 0 of a: ''"),
            ({"dynamic_shapes": ({0: "n"}, {1: "n"})}, "'n' is 2 as axis 0 of a and 8 as axis 1 of b; give the"),
            ({"input_names": ["u", "v", "w"]}, r"input_names has 3 names \(u, v, w\), but Taking has 2 inputs"),
            ({"output_names": ["p", "q"]}, r"output_names has 2 names \(p, q\), but Taking has 1 outputs"),
            ({"input_names": ["u", "u"]}, "hold 'u' twice; give each its own"),
            ({"input_names": ["u"], "output_names": ["u"]}, "hold 'u' twice; give each its own"),
            ({"output_names": [" "]}, "' ' is no name for an input or output"),
        ],
        ids=str,
    )
    def test_what_torch_would_leave_out_in_silence_is_refused(self, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(NormfuseError, match=message):
            normfuse.export(Taking().eval(), (torch.randn(2, 8), torch.randn(2, 8)), verify=False, **arguments)

    def test_without_outputs_there_is_nothing_to_export(self) -> None:
        class Silent(nn.Module):
            def forward(self, x: Tensor) -> None:
                return None

        with pytest.raises(ExportError, match="Silent gives no tensor, so there is nothing to compute; return one"):
            normfuse.export(Silent().eval(), torch.ones(2), verify=False)

    def test_what_is_no_module_is_refused(self) -> None:
        with pytest.raises(ExportError, match=r"a function cannot be exported; give the torch\.nn\.Module"):
            normfuse.export(lambda x: x, torch.ones(1))  # type: ignore[arg-type]  # that is what is tested

    def test_without_tensors_there_is_nothing_to_export(self) -> None:
        class Constant(nn.Module):
            def forward(self) -> Tensor:
                y: Tensor = torch.ones(2)
                return y

        with pytest.raises(ExportError, match="Constant has no tensor among its example inputs"):
            normfuse.export(Constant().eval())

    def test_a_place_that_cannot_be_written_is_refused_before_work_starts(self, tmp_path: Path) -> None:
        with pytest.raises(NormfuseError, match="missing"):
            normfuse.export(Unknown(), torch.ones(2, 2), tmp_path / "missing" / "model.onnx")

    def test_a_result_that_computes_something_else_is_not_written(self, tmp_path: Path) -> None:
        def wrong(x: Any) -> Any:
            return op.Sigmoid(x)

        path = tmp_path / "model.onnx"
        path.write_bytes(b"what was there")
        with pytest.raises(ParityError, match="does not compute what the module computes") as raised:
            normfuse.export(nn.Tanh().eval(), torch.randn(2, 3), path, translations={ATEN.tanh.default: wrong})
        assert raised.value.report is not None
        assert path.read_bytes() == b"what was there"

    def test_what_the_torch_extra_is_for_is_said(self, monkeypatch: pytest.MonkeyPatch) -> None:
        find = "importlib.util.find_spec"
        monkeypatch.setattr(find, lambda name, *rest: None if name == "onnxscript" else name)
        with pytest.raises(ExportError, match=re.escape("export needs onnxscript; run: pip install normfuse[torch]")):
            normfuse.export(nn.Identity(), torch.ones(1))


def test_shapes_of_no_input_are_an_error_though_there_is_an_example() -> None:
    """Left out with a note, the proof would rest on the example alone."""
    with pytest.raises(NormfuseError, match="there is no input 'lenght' to give a shape to; the model has"):
        normfuse.export(nn.Linear(8, 2).eval(), torch.randn(2, 8), shapes={"lenght": 8})


class TestNarrow:
    """bfloat16, which opset 20 lacks in many operators."""

    NETS = (
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()),
        nn.Sequential(nn.Softplus(), nn.Flatten(2), nn.GRU(64, 4)),
    )

    @pytest.mark.parametrize(("net", "target"), [(0, "cpu"), (1, "cuda")])
    def test_the_first_opset_that_has_the_operators_is_taken(self, net: int, target: str, tmp_path: Path) -> None:
        path = tmp_path / "model.onnx"
        module = copy.deepcopy(self.NETS[net]).to(torch.bfloat16).eval()
        randomize(module)
        x = torch.randn(2, 3, 8, 8).to(torch.bfloat16)
        result = normfuse.export(module, x, path, target=target, verify_budget=1)
        assert result.model.opset_imports[""] == 22
        onnx.checker.check_model(path, full_check=True)
        assert result.report.parity is not None
        assert result.report.parity.passed

    def test_an_opset_that_lacks_them_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "model.onnx"
        module, x = copy.deepcopy(self.NETS[0]).to(torch.bfloat16).eval(), torch.randn(2, 3, 8, 8).to(torch.bfloat16)
        said = r"cannot export Sequential: opset 21 has no Conv of bfloat16 \(node '[^']+'\); ask for opset 22"
        with pytest.raises(ExportError, match=said):
            normfuse.export(module, x, path, opset=21, target="cuda")
        assert not path.exists()

    def test_others_stay_in_the_opset_that_they_had(self) -> None:
        module, x = nn.LayerNorm(6).to(torch.bfloat16).eval(), torch.randn(2, 6).to(torch.bfloat16)
        assert normfuse.export(module, x, verify=False).model.opset_imports[""] == 20


def test_branches_are_proved() -> None:
    class Either(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(4)

        def forward(self, x: Tensor) -> Any:
            return torch.cond(x.sum() > 0, lambda x: self.norm(x), lambda x: self.norm(-x) * 2, (x,))

    result = normfuse.export(Either().eval(), torch.randn(3, 4), verify_budget=1)
    assert "If" in result.report.after.operators
    parity = result.report.parity
    assert parity is not None
    assert (parity.passed, parity.judged_by) == (True, "oracle")

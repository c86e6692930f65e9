"""The nets that made each norm known, and the table of their exports."""

from pathlib import Path

import pytest
from click.testing import CliRunner

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

from models import KNOWN, Entry, cnn  # noqa: E402  # nothing here can run without torch
from models.tiny import TINY  # noqa: E402
from normfuse.cli import main  # noqa: E402
from normfuse.errors import ExportError  # noqa: E402
from normfuse.model import load  # noqa: E402
from scripts import export_all  # noqa: E402

ROOT = Path(__file__).parent.parent

NORMS = {
    "alexnet-lrn": "LocalResponseNorm",
    "bert-blocks": "LayerNorm",
    "bit": "GroupNorm",
    "densenet": "BatchNorm2d",
    "diffusion-unet": "GroupNorm",
    "dit-blocks": "LayerNorm",
    "fast-style": "InstanceNorm2d",
    "googlenet-lrn": "LocalResponseNorm",
    "inception": "BatchNorm2d",
    "llama-blocks": "RMSNorm",
    "lstm-layer-norm": "LayerNorm",
    "mobilenet": "BatchNorm2d",
    "preact-resnet": "BatchNorm2d",
    "resnet-group-norm": "GroupNorm",
    "resnet18": "BatchNorm2d",
    "stylegan": "InstanceNorm2d",
    "vit-blocks": "LayerNorm",
    "wav2vec-features": "GroupNorm",
}
"""The layer that each net is known for; AdaIN and ConvNeXt write theirs themselves."""


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("entry", KNOWN.values(), ids=KNOWN)
class TestKnown:
    def test_it_runs_and_its_numbers_are_not_trivial(self, entry: Entry) -> None:
        module = entry()
        inputs = module.example_inputs
        assert not module.training
        assert isinstance(inputs, tuple)
        with torch.no_grad():
            y = module(*inputs)
            assert y.isfinite().all()
            assert y.std() > 0.01
            assert torch.equal(y, entry()(*inputs)), "the same at each call"
        kinds = [type(part).__name__ for part in module.modules()]
        assert NORMS.get(entry.name, "Conv2d") in kinds

    def test_scales_and_statistics_are_random(self, entry: Entry) -> None:
        module = entry()
        tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        for name, tensor in tensors.items():
            if name.endswith(("running_mean", "running_var")) or (name.endswith("weight") and tensor.dim() == 1):
                assert tensor.std() > 0.05, name

    def test_dimensions_are_named(self, entry: Entry) -> None:
        shapes: object = entry().dynamic_shapes
        assert isinstance(shapes, tuple)
        assert len(shapes) == len(entry.shapes)
        assert all(dims is None or 0 in dims for dims in shapes)


def test_a_net_is_exported_by_its_name_from_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    path = str(tmp_path / "x.onnx")
    run = CliRunner().invoke(main, ["export", "models.cnn:resnet18", "-o", path, "--no-verify", "--no-optimize"])
    assert run.exit_code == 0, run.output
    model = load(path)
    assert model.graph.inputs[0].shape == ["batch", 3, "height", "width"]
    assert [node.op_type for node in model.graph].count("BatchNormalization") == 20


class TestExportAll:
    def test_a_row_says_what_became_of_a_net(self) -> None:
        plan = export_all.Plan(seconds=0.1, budget=1.0)
        (row,) = export_all.rows([export_all.entries()["mlp"]], plan)
        assert row.is_right or row.is_slower
        assert row.nodes[0] is not None
        assert row.nodes[1] is not None
        assert row.ratio is not None
        assert row.interval is not None
        assert "| mlp | " in str(row)

    def test_what_fails_is_a_row(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fails(*arguments: object, **settings: object) -> None:
            raise ExportError("cannot export Net: it is empty")

        monkeypatch.setattr("normfuse.export", fails)
        monkeypatch.setattr(export_all, "_plain", lambda *arguments: None)
        assert export_all.main(["mlp", "levit"]) == 1

    def test_slower_is_wrong_beyond_noise_alone(self) -> None:
        assert export_all.Row("a", time=1.2, interval=(1.1, 1.3)).is_slower
        assert not export_all.Row("a", time=1.2, interval=(0.9, 1.3)).is_slower
        assert not export_all.Row("a", time=1.02, interval=(1.01, 1.03)).is_slower

    def test_an_unknown_net_is_told(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            export_all.main(["resnet19"])
        assert "unknown net resnet19" in capsys.readouterr().err


def test_the_names_are_all_different() -> None:
    from models import LARGE, MODELS
    from models.packages import PACKAGED

    names = [*MODELS, *KNOWN, *LARGE, *PACKAGED, *TINY]
    assert len(names) == len(set(names))
    assert {entry.name for entry in cnn.ENTRIES} <= set(KNOWN)

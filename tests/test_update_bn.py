"""`calibrate` with the flow `batch` is torch's `update_bn` with momentum=None, to the rounding of float32."""

import numpy as np
import onnx
import onnx.numpy_helper
import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402  # nothing here can run without torch
from torch.optim.swa_utils import update_bn  # noqa: E402

from models import MODELS  # noqa: E402
from models.export import export  # noqa: E402
from normfuse.calibration import calibrate  # noqa: E402
from scripts.calibration import main  # noqa: E402

SIZES = (4, 4, 3)
"""The last batch is smaller."""


@pytest.mark.parametrize("name", ["preactivation-resnet", "dense-net", "conv-1d"])
def test_update_bn(name: str) -> None:
    entry = MODELS[name]
    module, model = entry.module(), export(entry, "torchscript", 17, dynamic_batch=True)
    generator = torch.Generator().manual_seed(1)
    data = [torch.randn((size, *entry.shapes[0][1:]), generator=generator) * 1.7 + 0.5 for size in SIZES]
    stored = [one for one in module.modules() if isinstance(one, nn.modules.batchnorm._BatchNorm)]
    for one in stored:
        one.momentum = None
    own = _by_statistics(model)
    names = [own[_key(one.running_mean)] for one in stored]
    report = calibrate(model, [{"x0": batch.numpy()} for batch in data], flow="batch").report
    update_bn(data, module.train())
    assert len(report.layers) == len(stored) == len(set(names))
    found = {layer.name: layer.new for layer in report.layers}
    for one, node in zip(stored, names, strict=True):
        assert one.running_mean is not None
        assert one.running_var is not None
        mean, variance = one.running_mean.numpy(), one.running_var.numpy()
        assert np.abs(found[node].mean - mean).max() <= 1e-6 * np.sqrt(variance.max())
        np.testing.assert_allclose(found[node].variance, variance, rtol=2e-6)


def test_the_table_of_the_script(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """update_bn, shards and resuming agree, and what was scrambled is repaired; dask has tests of its own."""
    monkeypatch.setattr("scripts.calibration.find_spec", lambda name: None)
    assert main(["conv-1d"]) == 0
    row = capsys.readouterr().out.splitlines()[-1]
    assert row.startswith("| conv-1d | 3, 3 | ")
    assert "| shards, resumed |" in row


def _key(mean: Tensor | None) -> bytes:
    assert mean is not None
    return bytes(mean.numpy().tobytes())


def _by_statistics(model: onnx.ModelProto) -> dict[bytes, str]:
    """The BatchNormalizations by their means, before anything has changed them."""
    arrays = {one.name: onnx.numpy_helper.to_array(one).tobytes() for one in model.graph.initializer}
    return {arrays[node.input[3]]: node.name for node in model.graph.node if node.op_type == "BatchNormalization"}

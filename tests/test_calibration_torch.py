"""`calibrate` on torch modules: the same as on the ONNX models that they export to."""

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402  # nothing here can run without torch
from torch.optim.swa_utils import update_bn  # noqa: E402

from models import MODELS  # noqa: E402
from normfuse.calibration import calibrate  # noqa: E402
from normfuse.errors import NormfuseError  # noqa: E402

SIZES = (4, 4, 3)


def data(name: str) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    shape = MODELS[name].shapes[0][1:]
    return [torch.randn((size, *shape), generator=generator) * 1.7 + 0.5 for size in SIZES]


def norms(module: nn.Module) -> dict[str, Any]:
    return {name: part for name, part in module.named_modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)}


@pytest.mark.parametrize("name", ["unet", "mlp", "conv-3d"])
def test_the_flow_batch_is_update_bn(name: str) -> None:
    module = MODELS[name].module()
    found = calibrate(module, data(name), flow="batch")
    expected = MODELS[name].module()
    for part in norms(expected).values():
        part.momentum = None
    called: list[str] = []
    for path, part in norms(expected).items():
        part.register_forward_pre_hook(lambda *_, path=path: called.append(path) if path not in called else None)
    update_bn(data(name), expected.train())
    assert [layer.name for layer in found.report.layers] == list(called)
    for name, part in norms(expected).items():
        own = norms(found.model)[name]
        assert (own.running_mean - part.running_mean).abs().max() <= 1e-6 * part.running_var.max().sqrt()
        torch.testing.assert_close(own.running_var, part.running_var, rtol=2e-6, atol=0)
        assert own.num_batches_tracked == len(SIZES)


@pytest.mark.parametrize("estimator", ["mean", "pooled"])
def test_levels_end_in_a_fixed_point(estimator: Any) -> None:
    """Measured anew, behind layers as they are now, each finds what it holds."""
    result = calibrate(MODELS["dense-net"].module(), data("dense-net"), estimator=estimator)
    seen: dict[str, list[Tensor]] = {name: [] for name in norms(result.model)}
    for name, part in norms(result.model).items():
        part.register_forward_pre_hook(lambda _, args, name=name: seen[name].append(args[0].transpose(0, 1).flatten(1)))
    for batch in data("dense-net"):
        result.model(batch)
    assert len(result.report.layers) == len(seen) == 11
    for name, batches in seen.items():
        if estimator == "pooled":
            every = torch.cat(batches, 1).double()
            mean, variance = every.mean(1), every.var(1)
        else:
            mean = torch.stack([batch.double().mean(1) for batch in batches]).mean(0)
            variance = torch.stack([batch.double().var(1) for batch in batches]).mean(0)
        own = norms(result.model)[name]
        torch.testing.assert_close(own.running_mean.double(), mean, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(own.running_var.double(), variance, rtol=1e-5, atol=0)


def test_the_module_stays_as_it_was() -> None:
    module = MODELS["mlp"].module().train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    result = calibrate(module, data("mlp"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert all(part.training for part in module.modules())
    assert all(part.training for part in result.model.modules())
    assert not any(part._forward_pre_hooks for part in result.model.modules())
    assert result.report.outputs[0].relative > 0.1


class Twice(nn.Module):
    """One BatchNorm in two places, and one that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.unused = nn.BatchNorm1d(3), nn.BatchNorm1d(3)

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        y: Tensor = self.norm(torch.relu(self.norm(x)) + (0 if shift is None else shift))
        return y


class TestRefusals:
    def test_one_layer_in_two_places(self) -> None:
        batches = [torch.randn(5, 3) for _ in range(3)]
        with pytest.raises(NormfuseError, match="it is called 2 times on one batch, of which a pass sees one"):
            calibrate(Twice(), batches)
        found, expected = calibrate(Twice(), batches, flow="batch"), Twice()
        expected.norm.momentum = None
        update_bn(batches, expected.train())
        assert expected.norm.running_var is not None
        torch.testing.assert_close(found.model.norm.running_var, expected.norm.running_var, rtol=2e-6, atol=0)
        assert [one.node for one in found.report.refusals] == ["unused"]

    @pytest.mark.parametrize(
        ("module", "batches", "reason"),
        [
            (nn.Linear(3, 2), [torch.ones(2, 3)], "the module has no BatchNorm"),
            (nn.BatchNorm1d(3, track_running_stats=False), [torch.ones(2, 3)], "track_running_stats=False"),
            (nn.BatchNorm1d(3), [torch.ones(1, 3)], "one element per channel"),
            (nn.BatchNorm1d(3), [torch.full((2, 3), torch.nan)], "reads NaN or infinities"),
            (nn.BatchNorm1d(3), [torch.ones(2, 4)], "batch 0: the module BatchNorm1d does not run on it"),
            (nn.BatchNorm1d(3), [], "there are no batches"),
            (nn.BatchNorm1d(3), iter([torch.ones(2, 4)]), "batch 0: the module BatchNorm1d does not run on it"),
            (nn.BatchNorm1d(3), [torch.ones(2, 3), torch.ones(0, 3)], "batch 1: .* reads no elements; give larger"),
            (nn.BatchNorm1d(3), [torch.ones(2, 3), []], "batch 1 is empty"),
            (nn.BatchNorm1d(3, eps=0.0), [torch.ones(2, 3)], "'': 3 channels are constant in the data and ε is 0"),
            (nn.BatchNorm1d(3), 5, "a int holds no batches"),
            (nn.BatchNorm1d(3), None, "a NoneType holds no batches"),
            (nn.BatchNorm1d(3), "nowhere", "nowhere holds no batch; give .npz"),
            (
                nn.BatchNorm1d(3).half(),
                [1e3 * torch.randn(9, 3).half()],
                r"'': a variance of .* overflows torch\.float16",
            ),
        ],
    )
    def test_what_cannot_be_calibrated(self, module: nn.Module, batches: Any, reason: str) -> None:
        with pytest.raises(NormfuseError, match=reason):
            calibrate(module, batches)

    def test_what_is_for_onnx_models(self) -> None:
        with pytest.raises(NormfuseError, match="export the module first"):
            calibrate(nn.BatchNorm1d(3), [torch.ones(2, 3)], checkpoint="c.npz")


def test_batches_of_arrays_and_of_keywords() -> None:
    arrays = [np.random.default_rng(index).normal(1, 2, (6, 3)).astype(np.float32) for index in range(2)]
    found = [
        calibrate(Twice(), batches, flow="batch").model.norm.running_var
        for batches in (arrays, [[array, "label"] for array in arrays], [{"x": array} for array in arrays])
    ]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    shifted = [{"x": array, "shift": array[::-1].copy()} for array in arrays]
    assert not torch.equal(found[0], calibrate(Twice(), shifted, flow="batch").model.norm.running_var)

"""`calibrate` on torch modules: the same as on the ONNX models that they export to."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402  # nothing here can run without torch
from torch.optim.swa_utils import update_bn  # noqa: E402

from models import MODELS  # noqa: E402
from normfuse.calibration import calibrate  # noqa: E402
from normfuse.calibration_calls import UNREACHED  # noqa: E402
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


class Branching(nn.Module):
    """What is called depends on the batch: of 4 `norm`, then `other`; of 3 the reverse; of 2 `norm` twice."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.other = nn.BatchNorm1d(3), nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor
        match len(x):
            case 2:
                y = self.norm(self.norm(x) * 3)
            case 3:
                y = self.norm(torch.relu(self.other(x)))
            case 4:
                y = self.other(torch.relu(self.norm(x)))
            case _:
                y = self.norm(x)
        return y


def sized(*sizes: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn((size, 3), generator=generator) * 2 + 1 for size in sizes]


class TestCalls:
    """What is called may differ from batch to batch."""

    @pytest.mark.parametrize("sizes", [(8, 2), (2, 8), (8, 8, 8, 8, 2)])
    def test_two_calls_on_any_batch(self, sizes: tuple[int, ...]) -> None:
        with pytest.raises(NormfuseError, match="'norm': it is called 2 times on one batch, of which a pass sees one"):
            calibrate(Branching(), sized(*sizes))

    def test_other_orders_on_other_batches(self) -> None:
        for sizes in ((3, 4), (4, 8, 3)):
            with pytest.raises(NormfuseError, match=r"come to '(norm|other)' and '(norm|other)' in different orders"):
                calibrate(Branching(), sized(*sizes))

    @pytest.mark.parametrize("sizes", [(8, 4, 9), (4, 8, 9), (8, 9, 4)])
    def test_a_layer_that_some_batches_do_not_come_to(self, sizes: tuple[int, ...]) -> None:
        batches = sized(*sizes)
        result = calibrate(Branching(), batches)
        every = [batch.double() for batch in batches]
        assert [layer.name for layer in result.report.layers] == ["norm", "other"]
        np.testing.assert_allclose(
            result.report.layers[0].new.mean, torch.stack([batch.mean(0) for batch in every]).mean(0), rtol=1e-6
        )
        read = torch.relu(result.model.eval().norm(batches[sizes.index(4)])).double()
        np.testing.assert_allclose(result.report.layers[1].new.variance, read.detach().var(0), rtol=1e-6)
        note = "'other' is called on 1 of 3 batches: its statistics are those of these"
        assert note in result.report.notes

    @pytest.mark.parametrize("sizes", [(8, 3, 2, 4), (3, 8), (2, 4)])
    def test_the_flow_batch_sees_all_calls(self, sizes: tuple[int, ...]) -> None:
        batches, expected = sized(*sizes), Branching()
        found = calibrate(Branching(), batches, flow="batch")
        for part in (expected.norm, expected.other):
            part.momentum = None
        update_bn(batches, expected.train())
        for own, part in ((found.model.norm, expected.norm), (found.model.other, expected.other)):
            torch.testing.assert_close(own.running_mean, part.running_mean, rtol=2e-6, atol=2e-6)
            torch.testing.assert_close(own.running_var, part.running_var, rtol=2e-6, atol=0)
            assert own.num_batches_tracked == part.num_batches_tracked

    def test_what_is_called_depends_on_the_statistics(self) -> None:
        """With the new ones a batch comes to `norm` twice."""

        class Deciding(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.norm, self.other = nn.BatchNorm1d(3), nn.BatchNorm1d(3)

            def forward(self, x: Tensor) -> Tensor:
                y: Tensor = self.norm(x)
                return self.norm(y) if len(x) == 9 and y.mean().abs() < 1 else self.other(y) if len(x) == 8 else y

        with pytest.raises(NormfuseError, match="with the new statistics the batches come to other BatchNorms"):
            calibrate(Deciding(), [batch + 3 for batch in sized(8, 9)])

    def test_one_that_no_batch_comes_to(self) -> None:
        report = calibrate(Branching(), sized(8, 9), flow="batch").report
        assert [(one.node, one.reason) for one in report.refusals] == [("other", UNREACHED)]

    def test_a_module_that_writes_to_its_input(self) -> None:
        """Each pass is given what the first was given, and the caller's batches stay as they were."""

        class Writing(Branching):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x.mul_(2).add_(1))

        batches = sized(4, 4)
        kept = [batch.clone() for batch in batches]
        found = calibrate(Writing(), batches).report
        assert all(torch.equal(one, other) for one, other in zip(batches, kept, strict=True))
        expected = calibrate(Branching(), [2 * batch + 1 for batch in kept]).report
        for one, other in zip(found.layers, expected.layers, strict=True):
            np.testing.assert_array_equal(one.new.mean, other.new.mean)
            np.testing.assert_array_equal(one.new.variance, other.new.variance)

    def test_batches_that_differ_from_pass_to_pass_are_told(self) -> None:
        drawn = 0

        class Augmented:
            def __iter__(self) -> Iterator[Tensor]:
                nonlocal drawn
                drawn += 1
                yield from (batch + drawn for batch in sized(8, 9))

        note = "the batches, or their order, were not the same in each pass: another run may differ"
        assert note in calibrate(Branching(), Augmented()).report.notes
        assert note not in calibrate(Branching(), sized(8, 9)).report.notes

    def test_batches_that_can_be_read_once_only(self) -> None:
        class Once:
            def __init__(self) -> None:
                self.left = iter(sized(8, 9))

            def __iter__(self) -> Iterator[Tensor]:
                yield from self.left

        with pytest.raises(NormfuseError, match="the batches can be read only once; give a list"):
            calibrate(Branching(), Once())
        report = calibrate(nn.BatchNorm1d(3), Once(), flow="batch").report  # one pass
        expected = calibrate(nn.BatchNorm1d(3), sized(8, 9), flow="batch").report
        np.testing.assert_array_equal(report.layers[0].new.mean, expected.layers[0].new.mean)
        assert "how far the outputs move is not known, as the batches can be read only once" in report.notes


class TestForms:
    """What batches may be given as."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        for index, batch in enumerate(sized(8, 9)):
            arrays = {"x": batch.numpy(), "labels": np.arange(3)}
            np.savez(tmp_path / f"{index}.npz", **arrays)  # type: ignore[arg-type]  # the stubs take one for a flag
        return tmp_path

    def test_files(self, folder: Path) -> None:
        expected = calibrate(Twice(), sized(8, 9), flow="batch").report
        found = calibrate(Twice(), folder, flow="batch").report
        assert "left out of the data, as no input of that name can be fed: 'labels'" in found.notes
        np.testing.assert_array_equal(found.layers[0].new.variance, expected.layers[0].new.variance)
        pytest.importorskip("fsspec")
        found = calibrate(Twice(), f"file://{folder}", flow="batch").report
        np.testing.assert_array_equal(found.layers[0].new.variance, expected.layers[0].new.variance)

    def test_files_of_one_array_and_of_other_names(self, folder: Path) -> None:
        np.save(folder / "x.npy", sized(8)[0].numpy())
        found = calibrate(Twice(), [folder / "x.npy"], flow="batch").report
        expected = calibrate(Twice(), sized(8), flow="batch").report
        np.testing.assert_array_equal(found.layers[0].new.mean, expected.layers[0].new.mean)
        with pytest.raises(
            NormfuseError, match=r"0\.npz has no array for the parameter 'input' of BatchNorm1d, only x"
        ):
            calibrate(nn.BatchNorm1d(3), folder)

    def test_what_comes_only_once(self) -> None:
        class Reader:
            def __init__(self, rewinds: bool) -> None:
                self.begin()
                if rewinds:
                    self.rewind = self.begin

            def begin(self) -> None:
                self.left = iter({"x": batch.numpy()} for batch in sized(8, 4))

            def get_next(self) -> Any:
                return next(self.left, None)

        expected = calibrate(Branching(), sized(8, 4)).report
        assert len(expected.layers) == 2
        for batches in (
            iter(sized(8, 4)),
            ([batch, "a label"] for batch in sized(8, 4)),
            ({"x": batch} for batch in sized(8, 4)),
            Reader(True),
            Reader(False),
        ):
            found = calibrate(Branching(), batches).report
            assert found.to_dict() == expected.to_dict()
        with pytest.raises(NormfuseError, match="batch 0 holds a object, and comes only once"):
            calibrate(Branching(), iter([object()]))

    @pytest.mark.parametrize("kind", [lambda x: x, lambda x: x.numpy(), lambda x: {"x": x}])
    def test_one_batch_alone(self, kind: Any) -> None:
        (batch,) = sized(8)
        found = calibrate(Branching(), kind(batch)).report
        assert found.to_dict() == calibrate(Branching(), [batch]).report.to_dict()


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
            (nn.BatchNorm1d(3), "nowhere", "there is no file or folder nowhere; check the path"),
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

    def test_statistics_that_two_layers_share(self) -> None:
        module = nn.Sequential(*(nn.BatchNorm1d(3) for _ in range(3)))
        module[1].running_mean = module[0].running_mean
        report = calibrate(module, sized(8)).report
        assert [layer.name for layer in report.layers] == ["2"]
        assert [(one.node, one.reason) for one in report.refusals] == [
            ("0", "its statistics are those of '1' too; give each layer its own tensors"),
            ("1", "its statistics are those of '0' too; give each layer its own tensors"),
        ]

    def test_what_python_does_not_see(self) -> None:
        compiled = torch.compile(nn.BatchNorm1d(3), backend="eager")
        parts = nn.Sequential(nn.BatchNorm1d(3), compiled)
        for module, reason in ((compiled, "the module is compiled"), (parts, "its part '1' is compiled")):
            with pytest.raises(NormfuseError, match=f"{reason}, and does not show what it does"):
                calibrate(module, sized(8))

    @pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
    def test_what_is_scripted(self) -> None:
        with pytest.raises(NormfuseError, match="the module is scripted, and does not show what it does"):
            calibrate(torch.jit.script(nn.BatchNorm1d(3)), sized(8))

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


def test_float64_arrays_are_rounded_as_for_an_onnx_model() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    wide = [batch.double().numpy() for batch in sized(8, 9)]
    found, expected = calibrate(net, wide).report, calibrate(net, sized(8, 9)).report
    np.testing.assert_array_equal(found.layers[0].new.mean, expected.layers[0].new.mean)


class TestWhatStays:
    """What a forward pass does besides, and what it gives besides."""

    class Counting(nn.Module):
        """What it gives depends on how often it was called."""

        seen: Tensor
        last: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
            self.register_buffer("seen", torch.zeros(()))
            self.register_buffer("last", torch.zeros(3), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            self.seen += 1
            self.last = x[0].clone()
            y: Tensor = self.second(self.first(x + self.seen))
            return y

    def test_other_buffers(self) -> None:
        """Each pass begins with those that the module came with, and so does what comes out."""
        result = calibrate(self.Counting(), sized(8, 9))
        own = result.model.state_dict()
        assert own["seen"] == 0
        assert "last" not in own
        assert not result.model.last.any()
        counted = [batch.double() + index for index, batch in enumerate(sized(8, 9), 1)]
        expected = torch.stack([batch.mean(0) for batch in counted]).mean(0)
        np.testing.assert_allclose(result.report.layers[0].new.mean, expected, rtol=1e-6)
        deviation = torch.sqrt(own["first.running_var"].double() + 1e-5)
        read = [(batch - own["first.running_mean"].double()) / deviation for batch in counted]
        np.testing.assert_allclose(
            result.report.layers[1].new.variance, torch.stack([batch.var(0) for batch in read]).mean(0), rtol=1e-5
        )

    def test_random_numbers(self) -> None:
        class Noisy(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.norm = nn.BatchNorm1d(3)

            def forward(self, x: Tensor) -> Tensor:
                y: Tensor = self.norm(x + torch.randn_like(x))
                return y

        before = torch.get_rng_state()
        first, second = (calibrate(Noisy(), sized(8, 9)).report for _ in range(2))
        assert torch.equal(before, torch.get_rng_state())
        assert first.to_dict() == second.to_dict()
        note = "the module draws random numbers: another run may differ"
        assert note in first.notes
        assert note not in calibrate(Branching(), sized(8, 9)).report.notes

    def test_outputs_that_are_no_tensors(self) -> None:
        class Telling(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.norm = nn.BatchNorm1d(3)

            def forward(self, x: Tensor) -> dict[str, Any]:
                return {"y": self.norm(x), "cache": object(), "none": None}

        report = calibrate(Telling(), sized(8, 9)).report
        assert [output.name for output in report.outputs] == ["y"]
        assert report.outputs[0].relative > 0.1
        assert "outputs that are no tensors are not compared: 'cache'" in report.notes

    def test_an_instance_norm_is_named(self) -> None:
        instance = nn.InstanceNorm1d(3, track_running_stats=True)
        batches = [torch.randn(4, 3, 6, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
        report = calibrate(nn.Sequential(instance, nn.BatchNorm1d(3)), batches).report
        assert [one.node for one in report.refusals] == ["0"]
        with pytest.raises(NormfuseError, match="'': it is an InstanceNorm, whose statistics are means over examples"):
            calibrate(instance, batches)

    def test_float16_statistics_that_underflow(self) -> None:
        net = nn.BatchNorm1d(3, eps=1e-12).half()
        with pytest.raises(NormfuseError, match=r"a variance of .* underflows torch\.float16"):
            calibrate(net, [1e-5 * batch.half() for batch in sized(8)])

    def test_no_weights(self) -> None:
        with pytest.raises(NormfuseError, match="on the device meta"):
            calibrate(nn.BatchNorm1d(3).to("meta"), sized(8))

    def test_passes_of_fewer_batches(self) -> None:
        class Draining:
            left = 9

            def __iter__(self) -> Iterator[Tensor]:
                self.left -= 1
                yield from sized(*[4] * self.left)

        with pytest.raises(NormfuseError, match="one pass had 8 batches, the next 7"):
            calibrate(Branching(), Draining())

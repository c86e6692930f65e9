"""normfuse.capture: what is captured of a module before it is optimized."""

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from onnx.reference import ReferenceEvaluator  # noqa: E402  # nothing here can run without torch
from torch import Tensor, nn  # noqa: E402
from torch.nn import functional  # noqa: E402
from torch.nn.utils import parametrizations  # noqa: E402

import normfuse  # noqa: E402
from normfuse.capture import capture  # noqa: E402
from normfuse.capture_shapes import simplify_reshapes  # noqa: E402


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph if node.op_type != "Constant"]


def computed(model: ir.Model, *inputs: Tensor) -> Any:
    names = [str(value.name) for value in model.graph.inputs]
    evaluator = ReferenceEvaluator(ir.to_proto(model))
    (y, *_) = evaluator.run(None, {name: value.numpy() for name, value in zip(names, inputs, strict=True)})
    return y


class PixelNorm(nn.Module):
    """An ε that torch's own optimizer takes for nothing."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-8)
        return y


class Normalize(nn.Module):
    """functional.normalize."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = functional.normalize(x, dim=1)
        return y


class TestTidy:
    def test_a_small_epsilon_stays(self) -> None:
        x = 1e-4 * torch.randn(2, 6)
        model = capture(PixelNorm().eval(), (x,), {})
        np.testing.assert_allclose(computed(model, x), PixelNorm()(x).numpy(), rtol=1e-5)

    def test_batch_norm_is_left_for_fold(self) -> None:
        module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
        assert operators(capture(module, (torch.randn(1, 3, 5, 5),), {})) == ["Conv", "BatchNormalization"]

    def test_normalize_broadcasts(self) -> None:
        model = capture(Normalize().eval(), (torch.randn(2, 3, 4),), {}, dynamic_shapes=({0: "batch", 2: "n"},))
        assert operators(model) == ["ReduceL2", "Clip", "Div"]
        x = torch.randn(3, 3, 5)
        np.testing.assert_allclose(computed(model, x), functional.normalize(x, dim=1).numpy(), rtol=1e-6)

    def test_the_windows_of_an_lrn_are_found_where_sizes_are_computed(self) -> None:
        module = nn.Sequential(nn.Conv2d(3, 6, 3), nn.LocalResponseNorm(5)).eval()
        x = torch.randn(2, 3, 9, 9)
        dims = ({0: "batch", 2: "height", 3: "width"},)
        result = normfuse.export(module, x, dynamic_shapes=dims, verify=False)
        assert [change for change in result.report.changes if change.rule.startswith("lrn")], result.report.changes
        x = torch.randn(1, 3, 8, 12)
        np.testing.assert_allclose(computed(result.model, x), module(x).detach().numpy(), rtol=1e-5, atol=1e-6)


class TestWeights:
    @pytest.mark.parametrize(
        "layer",
        [
            parametrizations.weight_norm(nn.Linear(4, 3)),
            parametrizations.spectral_norm(nn.Linear(4, 3)),
            parametrizations.orthogonal(nn.Linear(4, 3)),
            nn.utils.spectral_norm(nn.Linear(4, 3)),
        ],
        ids=["weight norm", "spectral norm", "orthogonal", "old spectral norm"],
    )
    def test_those_that_are_computed_are_computed_once(self, layer: nn.Module) -> None:
        layer.eval()
        x = torch.randn(2, 4)
        before = {name: value.clone() for name, value in layer.state_dict().items()}
        model = capture(layer, (x,), {})
        assert operators(model) in (["MatMul", "Add"], ["Gemm"])
        np.testing.assert_allclose(computed(model, x), layer(x).detach().numpy(), rtol=1e-5, atol=1e-6)
        assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
        assert not nn.utils.parametrize._cache

    @pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
    def test_an_old_weight_norm_is_proved_and_left_as_it_is(self) -> None:
        layer = nn.utils.weight_norm(nn.Linear(4, 3)).eval()
        weight = layer.weight
        report = normfuse.export(layer, torch.randn(2, 4), verify_budget=1).report
        assert report.parity is not None
        assert report.parity.passed
        assert layer.weight is weight
        assert not weight.is_leaf


def reshaped(data: list[int | str], shape: list[int | str], known: bool = False) -> ir.Model:
    """A Reshape from one shape to another, whose shape is an input of the graph unless it is known."""
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(data))
    to = ir.Value(name="to", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([len(shape)]))
    if known:
        to.const_value = ir.tensor(np.array([size if isinstance(size, int) else -1 for size in shape]), name="to")
    node = ir.node("Reshape", [x, to])
    y = node.outputs[0]
    y.name, y.type, y.shape = "y", x.type, ir.Shape(shape)
    inputs, initializers = ([x], [to]) if known else ([x, to], [])
    graph = ir.Graph(inputs, [y], nodes=[node], initializers=initializers, opset_imports={"": 18}, name="g")
    return ir.Model(graph, ir_version=10)


class TestReshapes:
    @pytest.mark.parametrize(
        ("before", "after", "operator"),
        [
            (["n", 3, "h - 2"], ["n", 3, "h - 2"], "Identity"),
            (["n", 3, "h - 2", "w"], ["n", 1, 3, "h - 2", "w"], "Unsqueeze"),
            (["n", 1, 3, "h"], ["n", 3, "h"], "Squeeze"),
            (["n", 6, "h"], ["n", 2, 3, "h"], "Reshape"),
            (["n", "h", 4], ["n", "4*h"], "Reshape"),
        ],
    )
    def test_what_the_formulas_tell_is_written_plainly(
        self, before: list[int | str], after: list[int | str], operator: str
    ) -> None:
        model = reshaped(before, after)
        simplify_reshapes(model)
        assert operators(model) == [operator]
        sizes = {"n": 2, "h": 5, "w": 7, "h - 2": 3, "4*h": 20}
        shapes = [[sizes[one] if isinstance(one, str) else one for one in shape] for shape in (before, after)]
        x = np.arange(np.prod(shapes[0]), dtype=np.float32).reshape(shapes[0])
        evaluator = ReferenceEvaluator(ir.to_proto(model))
        results: Any = evaluator.run(None, {"x": x, "to": np.zeros(len(after), np.int64)})  # `to` is read no more
        y = results[0]
        assert list(y.shape) == shapes[1]
        np.testing.assert_array_equal(y.ravel(), x.ravel())
        onnx.checker.check_model(ir.to_proto(model))

    @pytest.mark.parametrize(
        ("before", "after"),
        [
            (["n", "h"], ["h", "n"]),
            (["n", "h", "w"], ["h", "w", "n"]),
            (["n", 0, "h"], ["n", "h", 0]),
        ],
        ids=["two that moved", "three that moved", "a size of 0"],
    )
    def test_what_they_do_not_tell_is_left(self, before: list[int | str], after: list[int | str]) -> None:
        model = reshaped(before, after)
        simplify_reshapes(model)
        (node,) = model.graph
        assert node.op_type == "Reshape"
        assert node.inputs[1] is model.graph.inputs[1]

    def test_a_constant_shape_is_left(self) -> None:
        model = reshaped([2, 1, 3], [2, 3], known=True)
        simplify_reshapes(model)
        assert operators(model) == ["Reshape"]

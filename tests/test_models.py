"""Our own torch models: their exports compute what torch computes, and normfuse folds what can be folded in them.

Each model is exported by both exporters, the opset and the dynamic batch in turn, so that all opsets are met.
"""

import ctypes
from functools import cache

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch")
onnxruntime = pytest.importorskip("onnxruntime")

import normfuse  # noqa: E402  # nothing here can run without torch
from models import MODELS, Entry  # noqa: E402
from models.export import OPSETS, Exporter, export  # noqa: E402
from normfuse.errors import ExportError  # noqa: E402

NOT_DYNAMIC = "instance-norm-running"
"""Its statistics are tiled by the batch size: a batch that is not known cannot be traced, nor its norm folded."""

TRACED = {"conv-1d", "dense-net", "frozen-resnet", "input-normalization-padded", "preactivation-resnet", "weight-norm"}
"""Exported by tracing only, to save time: the dynamo exporter writes nothing in them that is not in the others."""

Case = tuple[str, Exporter, int, bool]

NORMALIZED: list[Case] = [
    ("resnet-gn", "torchscript", 17, True),
    ("resnet-gn", "dynamo", 21, False),
    ("alexnet", "torchscript", 13, False),
    ("googlenet", "torchscript", 17, True),
    ("style-transfer", "torchscript", 17, True),
    ("adain-features", "torchscript", 20, False),
    ("adain-linear", "torchscript", 17, True),
    ("convnext", "torchscript", 13, True),
    ("convnext", "dynamo", 18, False),
]
"""The nets whose norms have statistics of the input; tests/test_spellings.py has all spellings of those."""

_FOLDED = [name for name in MODELS if name not in {name for name, *_ in NORMALIZED}]
CASES: list[Case] = [
    *((name, "torchscript", (13, 18, 20)[index % 3], False) for index, name in enumerate(_FOLDED)),
    *((name, "torchscript", 17, name != NOT_DYNAMIC) for name in _FOLDED),
    *(
        (name, "dynamo", (18, 20, 21, 23)[index % 4], index % 2 == 0 and name != NOT_DYNAMIC)
        for index, name in enumerate(name for name in _FOLDED if name not in TRACED)
    ),
    *NORMALIZED,
]

GONE = {
    "frozen-resnet": {"Mul", "Sqrt", "Reciprocal", "Div"},
    "input-normalization": {"Mul", "Sub", "Div"},
    "spectral-norm": {"Div", "ReduceSum"},
    "weight-norm": {"Div", "ReduceL2"},
    "weight-standardized": {"Div", "ReduceMean", "Sqrt", "Sub"},
    "convnext": {"Pow", "Shape"},
    "resnet-gn": {"GroupNormalization", "Shape"},
}
"""Operators that only prepare weights, fold into them, or spell a norm out: none of them may be left."""


@cache
def exported(name: str, exporter: Exporter, opset: int, dynamic: bool, keep_bn: bool = True) -> onnx.ModelProto:
    return export(MODELS[name], exporter, opset, dynamic, keep_bn)


def assert_computes(model: onnx.ModelProto, entry: Entry) -> None:
    """Runs a model as it is written, on the entry's examples, and compares it with torch."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (actual,) = session.run(None, {f"x{index}": value.numpy() for index, value in enumerate(entry.examples())})
    with torch.no_grad():
        expected = entry.module()(*entry.examples()).numpy()
    assert expected.std() > 0.05
    np.testing.assert_allclose(actual, expected, rtol=0, atol=5e-6 * np.abs(expected).max())


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


class TestEntries:
    @pytest.mark.parametrize("entry", MODELS.values(), ids=MODELS)
    def test_statistics_are_random_and_always_the_same(self, entry: Entry) -> None:
        first, second = (dict(entry.module().named_buffers()) for _ in range(2))
        parameters = dict(entry.module().named_parameters())
        scales = [
            value for name, value in parameters.items() if name.endswith(("weight", "gamma")) and value.dim() == 1
        ]
        for name, value in first.items():
            assert torch.equal(value, second[name])
            if name.endswith(("running_mean", "running_var")):
                assert value.std() > 0.1
        for scale in scales:
            assert not torch.allclose(scale, torch.ones_like(scale), atol=0.1)

    def test_the_global_generator_is_left_alone(self) -> None:
        before = torch.get_rng_state()
        MODELS["mlp"].module()
        assert torch.equal(before, torch.get_rng_state())

    def test_scales_have_both_signs(self) -> None:
        scale = MODELS["mlp"].module().get_parameter("2.weight")
        assert (scale > 0).any()
        assert (scale < 0).any()


class TestExport:
    @pytest.mark.parametrize("exporter", OPSETS)
    def test_torch_folds_only_where_it_may(self, exporter: Exporter) -> None:
        kept = operators(exported("unet", exporter, 20, False))
        folded = operators(exported("unet", exporter, 20, False, keep_bn=False))
        assert kept.count("BatchNormalization") == 10
        assert folded.count("BatchNormalization") < 10

    def test_refuses_an_opset_that_the_exporter_does_not_write(self) -> None:
        with pytest.raises(ExportError, match="dynamo does not write opset 13; choose 18 to 23"):
            export(MODELS["mlp"], "dynamo", 13)

    def test_says_what_cannot_be_exported(self, capfd: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(ExportError, match=f"torchscript cannot export {NOT_DYNAMIC}"):
            export(MODELS[NOT_DYNAMIC], "torchscript", 17, dynamic_batch=True)
        ctypes.CDLL(None).fflush(None)  # torch writes its graph to the stdout of C, which is buffered
        assert "instance_norm" in capfd.readouterr().out


class TestOptimize:
    @pytest.mark.parametrize(("name", "exporter", "opset", "dynamic"), CASES)
    def test_folds_and_proves_what_torch_computes(
        self, name: str, exporter: Exporter, opset: int, dynamic: bool
    ) -> None:
        model = exported(name, exporter, opset, dynamic)
        assert_computes(model, MODELS[name])
        assert [entry.version for entry in model.opset_import if entry.domain == ""] == [opset]
        assert bool(model.graph.input[0].type.tensor_type.shape.dim[0].dim_param) == dynamic

        result = normfuse.optimize(model, verify=True)
        assert_computes(result.model, MODELS[name])
        report = result.report
        assert report.parity is not None
        assert report.parity.passed, report.parity
        assert report.after.norms.get("BatchNormalization", 0) <= MODELS[name].keeps, report.refusals
        assert report.after.nodes < report.before.nodes
        assert not GONE.get(name, set()) & report.after.operators.keys()
        assert not normfuse.optimize(result.model, verify=False).report.changes, "a second run must find nothing to do"

    @pytest.mark.parametrize("name", ["levit", "mlp", "unet"])
    def test_folds_what_torch_left(self, name: str) -> None:
        before = exported(name, "torchscript", 20, False, keep_bn=False)
        assert "BatchNormalization" in operators(before)
        result = normfuse.optimize(before, verify=True)
        assert "BatchNormalization" not in operators(result.model)
        assert result.report.parity is not None
        assert result.report.parity.passed, result.report.parity

    def test_a_scale_in_front_of_zero_padding_moves_only_if_a_node_goes(self) -> None:
        result = normfuse.optimize(exported("input-normalization-padded", "torchscript", 17, False), verify=True)
        assert len(result.model.graph.node) <= 4  # a shift, Conv, Relu, Conv
        assert result.report.parity is not None
        assert result.report.parity.passed, result.report.parity

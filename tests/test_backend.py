"""onnx's own test cases of normalizations and activations, with their expanded bodies, still pass when optimized.

The cases come with the onnx package: models, inputs, the outputs that they must give, and how far off these may be.
Each is taken as it is, where γ and β are inputs of the graph and the mean may be an output, and once more with
constants for all inputs but the first and the first output alone, which leaves the rules more to do.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime  # type: ignore[import-untyped]  # it ships no types
import pytest
from onnx.backend.test.case import node as collection
from onnx.reference import ReferenceEvaluator

import normfuse

Arrays = Sequence[npt.NDArray[Any]]

OPERATORS = {
    "batch_normalization": ("batchnorm",),
    "batchnorm": ("batchnorm",),
    "elu": ("elu",),
    "gelu": ("gelu",),
    "groupnormalization": ("group_normalization",),
    "hardsigmoid": ("hardsigmoid",),
    "hardswish": ("hardswish",),
    "instance_normalization": ("instancenorm",),
    "instancenorm": ("instancenorm",),
    "layernormalization": ("layer_normalization",),
    "leakyrelu": ("leakyrelu",),
    "lpnormalization": ("l1normalization", "l2normalization", "lpnormalization"),
    "lrn": ("lrn",),
    "meanvariancenormalization": ("mvn",),
    "mish": ("mish",),
    "prelu": ("prelu",),
    "rmsnormalization": ("rms_normalization",),
    "softplus": ("softplus",),
    "swish": ("swish",),
}
"""Modules of test cases, and what the names of their cases begin with."""


@dataclass(frozen=True)
class Case:
    """A model, what it is given, what it must give, and how far off that may be."""

    model: onnx.ModelProto
    inputs: Arrays
    outputs: Arrays
    rtol: float
    atol: float

    @property
    def with_constants(self) -> "Case":
        """The model with constants for all inputs but the first, and with its first output alone."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        for entry, array in zip(self.model.graph.input[1:], self.inputs[1:], strict=False):
            model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), entry.name))
            model.graph.input.remove(entry)
        del model.graph.output[1:]
        return Case(model, self.inputs[:1], self.outputs[:1], self.rtol, self.atol)


def collected() -> Iterator[tuple[str, Case]]:
    """The cases by name; each module adds its own to one list when it is imported. Releases of onnx lack some."""
    for module, prefixes in OPERATORS.items():
        try:
            with np.errstate(all="ignore"):  # expected outputs are computed here, those of a row of zeros too
                import_module(f"onnx.backend.test.case.node.{module}")
        except ModuleNotFoundError:
            continue
        starts = tuple(f"test_{prefix}" for prefix in prefixes)
        for case in collection._NodeTestCases:
            if not case.name.startswith(starts) or case.model is None or not case.data_sets:
                continue
            inputs, outputs = case.data_sets[0]
            own = Case(case.model, inputs, outputs, case.rtol, case.atol)
            yield case.name, own
            if len(inputs) + len(outputs) > 2:
                yield f"{case.name}-constants", own.with_constants


CASES = dict(collected())


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(model: onnx.ModelProto, original: onnx.ModelProto, inputs: Arrays) -> list[npt.NDArray[Any]]:
    """Runs a model with ONNX Runtime, or with onnx's own evaluator where the original does not load there either."""
    feed = dict(zip((entry.name for entry in model.graph.input), inputs, strict=False))
    try:
        runner = session(model)
    except Exception:  # ONNX Runtime's errors share no base class of their own
        with pytest.raises(Exception, match=r"."):
            session(original)
        runner = ReferenceEvaluator(model)
    return list(runner.run(None, feed))


@pytest.mark.parametrize("target", ["portable", "cpu"])
@pytest.mark.parametrize("name", CASES)
def test_the_expected_outputs(name: str, target: str) -> None:
    case = CASES[name]
    result = normfuse.optimize(case.model, target, verify=False).model
    if target == "portable":
        onnx.checker.check_model(result)
    got = run(result, case.model, case.inputs)
    for value, wanted in zip(got, case.outputs, strict=True):
        assert value.dtype == wanted.dtype
        np.testing.assert_allclose(value, wanted, rtol=case.rtol, atol=case.atol)


def test_the_cases_are_there() -> None:
    for prefix in ("batchnorm", "instancenorm", "layer_normalization", "lrn", "mvn", "group_normalization", "l2norm"):
        assert any(key.startswith(f"test_{prefix}") for key in CASES), prefix
    assert any(key.endswith("_expanded") for key in CASES)

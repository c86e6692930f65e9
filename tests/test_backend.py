"""onnx's own test cases of normalizations and activations, with their expanded bodies, still pass when optimized.

The cases come with the onnx package: models, inputs, the outputs that they must give, and how far off these may be.
Each is taken as it is, where γ and β are inputs of the graph and the mean may be an output, and once more with
constants for all inputs but the first and the first output alone, which leaves the rules more to do.
"""

from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime  # type: ignore[import-untyped]  # it ships no types
import pytest
from onnx.backend.test.case import node as collection
from onnx.backend.test.case.test_case import TestCase
from onnx.reference import ReferenceEvaluator

import normfuse

Arrays = Sequence[npt.NDArray[Any]]

OPERATORS = {
    "batch_normalization": ("batchnorm",),
    "elu": ("elu",),
    "gelu": ("gelu",),
    "groupnormalization": ("group_normalization",),
    "hardsigmoid": ("hardsigmoid",),
    "hardswish": ("hardswish",),
    "instance_normalization": ("instancenorm",),
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


def cases() -> Iterator[TestCase]:
    """The cases; each module adds its own to one list when it is imported. Releases of onnx lack some of them."""
    for module, prefixes in OPERATORS.items():
        try:
            with np.errstate(all="ignore"):  # expected outputs are computed here, those of a row of zeros too
                import_module(f"onnx.backend.test.case.node.{module}")
        except ModuleNotFoundError:
            continue
        starts = tuple(f"test_{prefix}" for prefix in prefixes)
        yield from (case for case in collection._NodeTestCases if case.name.startswith(starts))


CASES = {case.name: case for case in cases()}


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


def with_constants(model: onnx.ModelProto, inputs: Arrays) -> onnx.ModelProto:
    """A model whose inputs are constants but for the first, and whose first output is its only one."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for entry, array in zip(model.graph.input[1:], inputs[1:], strict=False):
        result.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), entry.name))
        result.graph.input.remove(entry)
    del result.graph.output[1:]
    return result


VARIANTS = [
    pytest.param(name, constants, id=f"{name}{'-constants' if constants else ''}")
    for name, case in CASES.items()
    for constants in (False, True)
    if not constants or len(case.model.graph.input) + len(case.model.graph.output) > 2
]


@pytest.mark.parametrize("target", ["portable", "cpu"])
@pytest.mark.parametrize(("name", "constants"), VARIANTS)
def test_the_expected_outputs(name: str, constants: bool, target: str) -> None:
    case = CASES[name]
    for inputs, outputs in case.data_sets:
        model = with_constants(case.model, inputs) if constants else case.model
        result = normfuse.optimize(model, target, verify=False).model
        if target == "portable":
            onnx.checker.check_model(result)
        got = run(result, model, inputs)
        assert len(got) == len(model.graph.output)
        for value, wanted in zip(got, outputs, strict=False):
            assert value.dtype == wanted.dtype
            np.testing.assert_allclose(value, wanted, rtol=case.rtol, atol=case.atol)


def test_the_cases_are_there() -> None:
    for prefix in ("batchnorm", "instancenorm", "layer_normalization", "lrn", "mvn", "group_normalization", "l2norm"):
        assert any(key.startswith(f"test_{prefix}") for key in CASES), prefix
    assert any(key.endswith("_expanded") for key in CASES)

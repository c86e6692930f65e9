"""One model around one carrying operator: `Case`, made by `up` and `down`.

In every model `a` is the affine node. `c` is what a convolution or product computes in front of the operator, `t` what
the operator computes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from tests.parity import Array, batch_norm, build

Weights = dict[str, Any]
"""Initializers by name: arrays, or shapes that `build` fills."""

NORM = "BatchNormalization({}, n_scale, n_bias, n_mean, n_var)"


@dataclass(frozen=True)
class Case:
    """A model around one operator.

    Attributes:
        rule: the row of CARRY.
        what: what the case shows, in words.
        text: the graph, as ONNX text.
        reason: why the map stays; empty where it goes.
        opset: of the model.
        without: rules of FOLD that are not used.
        also: operators that go together with the affine node.
        weights: initializers.
    """

    rule: str
    what: str
    text: str
    reason: str = ""
    opset: int = 18
    without: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    weights: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.rule.removesuffix('-carries')} {self.what}"

    def model(self) -> onnx.ModelProto:
        """Builds the model, with the shapes of its outputs."""
        model = build(self.text, opset=self.opset, **self.weights)
        outputs = onnx.shape_inference.infer_shapes(model, data_prop=True).graph.output
        for stated, inferred in zip(model.graph.output, outputs, strict=True):
            stated.CopyFrom(inferred)
        return model


def up(
    rule: str,
    what: str,
    operator: str,
    affine: str = NORM.format("t"),
    reason: str = "",
    *,
    x: str = "N,3,8,9",
    norm: int = 6,
    inputs: str = "",
    outputs: str = "",
    opset: int = 18,
    without: tuple[str, ...] = (),
    also: tuple[str, ...] = (),
    **weights: Any,
) -> Case:
    """Conv to (N, 6, 6, 7) → operator → affine."""
    text = f"(float[{x}] x{inputs}) => (float[] a{outputs}) {{ c = Conv(x, w) {operator} a = {affine} }}"
    known = {"w": (6, 3, 3, 3)} | (batch_norm("n", norm) if "n_mean" in affine else {})
    return Case(f"{rule}-carries", f"up, {what}", text, reason, opset, without, also, known | weights)


def down(
    rule: str,
    what: str,
    operator: str,
    affine: str = NORM.format("x"),
    reason: str = "",
    *,
    x: str = "N,6,6,7",
    linear: str = "y = Conv(t, w)",
    inputs: str = "",
    outputs: str = "float[] y",
    opset: int = 18,
    without: tuple[str, ...] = (),
    also: tuple[str, ...] = (),
    **weights: Any,
) -> Case:
    """Affine → operator → convolution or product."""
    text = f"(float[{x}] x{inputs}) => ({outputs}) {{ a = {affine} {operator} {linear} }}"
    known = {"w": (4, 6, 3, 3)} | (batch_norm("n", int(x.split(",")[1])) if "n_mean" in affine else {})
    return Case(f"{rule}-carries", f"down, {what}", text, reason, opset, without, also, known | weights)


def positive_norm(channels: int) -> Weights:
    """A BatchNormalization whose scales are positive."""
    parameters = batch_norm("n", channels)
    return parameters | {"n_scale": np.abs(parameters["n_scale"])}


def positive(*shape: int, dtype: npt.DTypeLike = np.float32) -> Array:
    """Distinct scales between 0.5 and 2."""
    return np.linspace(0.5, 2.0, int(np.prod(shape))).reshape(shape).astype(dtype)


def ints(*numbers: int) -> Array:
    """A vector of int64."""
    return np.array(numbers, np.int64)


def floats(*numbers: float) -> Array:
    """A vector of float32."""
    return np.array(numbers, np.float32)

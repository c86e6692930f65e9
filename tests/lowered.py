"""`Lowered`: a case of the tests of LOWER, and the spellings that cases are written with."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import pytest

import normfuse
from normfuse.pipeline import Result
from normfuse.target import Target
from tests.parity import build

RMS = "q = Mul(x, x) m = ReduceMean<axes=[-1]>(q) a = Add(m, e) r = Sqrt(a) i = Reciprocal(r) n = Mul(x, i)"
CENTRED = "m = ReduceMean<axes={axes}>(x) d = Sub(x, m) q = Mul(d, d) v = ReduceMean<axes={axes}>(q)"
EPSILON = np.float32(1e-5)
E: dict[str, Any] = {"e": EPSILON}


@dataclass(frozen=True)
class Lowered:
    """A model, where it runs, and what it becomes."""

    rule: str
    text: str
    expected: str
    provider: Any = "cpu"
    threads: int = 1
    opset: int = 17
    weights: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.rule}: {self.provider} {self.threads} opset {self.opset} {self.text[-48:]}"

    def run(self) -> tuple[onnx.ModelProto, Result]:
        model = build(self.text, opset=self.opset, **self.weights)
        return model, normfuse.optimize(model, Target(self.provider, self.threads), verify=True)


def image(body: str) -> str:
    return f"(float[2,6,4,4] x) => (float[2,6,4,4] y) {{ {body} }}"


def rows(body: str) -> str:
    return f"(float[2,5,16] x) => (float[2,5,16] y) {{ {body} }}"


def centred(axes: str, tail: str = "y = Div(d, r)") -> str:
    return f"{CENTRED.format(axes=axes)} a = Add(v, e) r = Sqrt(a) {tail}"


def refusal_of(rule: str, model: onnx.ModelProto, target: Target) -> str:
    """Why a row does not serve the normalization of a model, asked directly: reports tell it where no row does."""
    from normfuse.model import load
    from normfuse.passes.access import RefusedError
    from normfuse.passes.emitter import Emitter
    from normfuse.passes.lift import LiftPass
    from normfuse.passes.lowering import site_of
    from normfuse.passes.lowerings import LOWERINGS
    from normfuse.passes.norms import read_norm
    from normfuse.passes.prepare import PreparePass
    from normfuse.passes.weights import Weights

    row = next(row for row in LOWERINGS if row.name == rule)
    loaded = load(model)
    PreparePass(None, ())(loaded)
    LiftPass()(loaded)
    weights = Weights(loaded)
    for node in loaded.graph:
        norm = read_norm(node, weights)
        if norm is not None:
            with pytest.raises(RefusedError) as refused:
                row.law(site_of(norm, weights), Emitter(weights, "y"), target)
            return str(refused.value)
    raise AssertionError("no normalization was found")

"""Random chains and graphs of affine, carrying and linear operators compute the same after folding.

`HYPOTHESIS_PROFILE=nightly` runs 1,000 examples of them, the default profile `ci` 100.
"""

import os

import numpy as np
import onnx
import onnx_ir as ir
from hypothesis import HealthCheck, Phase, given, settings

from normfuse.oracle import Oracle
from normfuse.pipeline import optimize
from normfuse.runtime import session
from tests.chains import models
from tests.parity import Array, ops

_PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
PROFILES = {
    "ci": settings(_PATIENT, max_examples=100, derandomize=True, database=None),
    "nightly": settings(_PATIENT, max_examples=1000),
}
PROFILE = PROFILES[os.environ.get("HYPOTHESIS_PROFILE", "ci")]


def interface(model: onnx.ModelProto) -> tuple[list[onnx.ValueInfoProto], list[onnx.ValueInfoProto]]:
    return list(model.graph.input), list(model.graph.output)


def computing(model: onnx.ModelProto) -> int:
    """How many nodes compute something of the input."""
    counts = ops(model)
    return counts.total() - counts["Constant"]


def feeds(model: onnx.ModelProto, batch: int) -> dict[str, Array]:
    dims = model.graph.input[0].type.tensor_type.shape.dim
    shape = [dim.dim_value or batch for dim in dims]
    return {"x": np.random.default_rng(batch).normal(0.5, 1.0, shape)}


@PROFILE
@given(models())
def test_a_chain_computes_the_same(model: onnx.ModelProto) -> None:
    """In float64, so that nothing but a wrong rule can make a difference."""
    optimized = optimize(model, verify=False).model
    onnx.checker.check_model(optimized, full_check=True)
    assert computing(optimized) <= computing(model)
    assert interface(optimized) == interface(model)
    before, after = Oracle(ir.from_proto(model)), Oracle(ir.from_proto(optimized))
    for batch in (1, 3):
        y64, y = before.run(feeds(model, batch)), after.run(feeds(model, batch))
        for name, wanted in y64.items():
            assert y[name].shape == wanted.shape
            np.testing.assert_allclose(y[name], wanted, rtol=1e-9, atol=1e-9 * (1 + np.abs(wanted).max(initial=0)))


@settings(PROFILE, max_examples=PROFILE.max_examples // 5)
@given(models(np.float32))
def test_a_chain_runs_on_the_runtime(model: onnx.ModelProto) -> None:
    """In float32 by ONNX Runtime: a chain may cancel, so that the bound of `assert_same` is too narrow for it."""
    optimized = optimize(model, verify=False).model
    sessions = [session(each.SerializeToString(), "disabled", threads=1) for each in (model, optimized)]
    exact = Oracle(ir.from_proto(model))
    for batch in (1, 3):
        inputs = {name: x.astype(np.float32) for name, x in feeds(model, batch).items()}
        y64 = exact.run(inputs)
        before, after = (each.run(inputs) for each in sessions)
        for name, wanted in y64.items():
            assert after[name].shape == wanted.shape
            error = np.linalg.norm(before[name] - wanted) + 4 * 2.0**-24 * np.linalg.norm(wanted)
            assert np.linalg.norm(after[name] - wanted) <= 32 * error


def test_most_chains_have_something_to_fold() -> None:
    seen: list[tuple[int, int]] = []

    @settings(PROFILES["ci"], phases=[Phase.generate])
    @given(models())
    def grow(model: onnx.ModelProto) -> None:
        seen.append((computing(model), computing(optimize(model, verify=False).model)))

    grow()
    smaller = [before - after for before, after in seen if after < before]
    assert len(smaller) > 0.5 * len(seen)
    assert len({before for before, _ in seen}) > 5
    assert max(smaller) > 3


@settings(PROFILE, max_examples=PROFILE.max_examples // 5)
@given(models())
def test_optimizing_a_chain_twice_changes_nothing(model: onnx.ModelProto) -> None:
    once = optimize(model, verify=False).model
    assert not optimize(once, verify=False).report.changes

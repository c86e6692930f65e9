"""Random graphs of everything compute the same for every target; what `scripts.soak` finds wrong, it says.

`HYPOTHESIS_PROFILE=nightly` runs 1,000 examples of them. A failing graph is made small by hypothesis: all choices of
`scripts.graphs` are numbers below a bound, and 0 is the simplest.
"""

import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import normfuse
from normfuse.model import load
from normfuse.pipeline import rewrite
from normfuse.target import Target
from scripts import examination, graphs_rare, soak
from scripts.examination import TARGETS, examine, loads
from scripts.features import NAMES, features
from scripts.graphs import FLOATS, Growth, Seeded, Step, Value
from scripts.graphs_nesting import info
from scripts.graphs_rare import INPUTS
from scripts.random_graphs import SHAPES, random_model, seeded_model
from tests.parity import build, ops

_PATIENT = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)
PROFILES = {
    "ci": settings(_PATIENT, max_examples=8, derandomize=True, database=None, phases=[Phase.generate, Phase.shrink]),
    "nightly": settings(_PATIENT, max_examples=1000),
}
PROFILE = PROFILES[os.environ.get("HYPOTHESIS_PROFILE", "ci")]


class Drawn:
    """Choices that hypothesis draws."""

    def __init__(self, draw: st.DrawFn) -> None:
        self._draw = draw

    def below(self, bound: int) -> int:
        return self._draw(st.integers(0, bound - 1))


@st.composite
def graphs(draw: st.DrawFn) -> onnx.ModelProto:
    return random_model(Drawn(draw))


@PROFILE
@given(graphs(), st.sampled_from(TARGETS))
def test_a_graph_is_right_for_its_target(model: onnx.ModelProto, target: Target) -> None:
    onnx.checker.check_model(model, full_check=True)
    assert not examine(model, target, on_runtime=loads(model)).faults


@pytest.mark.parametrize("seed", range(6))
def test_a_seed_is_right_for_a_target(seed: int) -> None:
    model = seeded_model(seed)
    assert not examine(model, TARGETS[seed % 4], on_runtime=loads(model)).faults


def test_a_graph_is_a_function_of_its_seed() -> None:
    assert seeded_model(5).SerializeToString(deterministic=True) == seeded_model(5).SerializeToString(
        deterministic=True
    )


def test_graphs_hold_what_they_promise() -> None:
    """Operators of every kind, control flow, functions, dtypes, dynamic dimensions, opsets; and all are valid."""
    operators: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    dtypes, opsets, symbols, inner, listed, functions = set(), set(), set(), 0, 0, 0
    for seed in range(300):
        model = seeded_model(seed)
        if seed < 60:
            onnx.checker.check_model(model, full_check=True)
        operators += ops(model)
        seen.update(features(model))
        tensor = model.graph.input[0].type.tensor_type
        dtypes.add(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name)
        opsets.add(model.opset_import[0].version)
        symbols |= {dim.dim_param for dim in tensor.shape.dim if dim.dim_param}
        read = {name for node in model.graph.node for name in node.input}
        inner += any(port.name in read for port in model.graph.output)
        listed += any(port.name.startswith("k") for port in model.graph.input)
        functions += len(model.functions)
    wanted = {"Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum", "BatchNormalization", "LayerNormalization", "LRN"}
    wanted |= {"GroupNormalization", "InstanceNormalization", "RMSNormalization", "If", "Loop", "Scan", "Pad", "Cast"}
    assert wanted <= operators.keys()
    assert dtypes == {"float32", "float16", "float64", "bfloat16"}
    assert {9, 13, 17, 18, 21, 23} <= opsets
    assert {"N", "S", "H"} <= symbols
    assert min(inner, listed, functions) > 5
    assert not [name for name in NAMES if seen[name] < 3]


@pytest.mark.parametrize(
    ("step", "rule"),
    [
        (graphs_rare.norm_between_transposes, "norm-by-transposes"),
        (graphs_rare.groups_between_transposes, "group-norm-channels-last"),
        (graphs_rare.norm_by_batch_norm, "norm-in-nodes"),
        (graphs_rare.looked_up, "gather-after"),
        (graphs_rare.softmax_of_sum, "softmax-drops-shift"),
        (graphs_rare.affine_between_convolutions, "affine-as-batch-norm"),
        (graphs_rare.groups_by_difference, "group-norm"),
    ],
    ids=lambda one: getattr(one, "__name__", one),
)
def test_a_form_that_is_rare_reaches_its_rule(step: Step, rule: str) -> None:
    for seed in range(100):
        g = Growth(Seeded(seed), 21, np.random.default_rng(seed))
        x = Value(INPUTS[0], SHAPES[seed % len(SHAPES)], FLOATS["float32"])
        made = g.attempt(step, x)
        if made is None:
            continue
        graph = onnx.helper.make_graph(g.nodes, "rare", [info(x)], [info(made)], g.constants)
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
        onnx.checker.check_model(model, full_check=True)
        used = {
            one.rule
            for target in ("portable", "cpu", "cuda")
            for one in rewrite(load(model), target, threads=1).changes
        }
        if rule in used:
            return
    pytest.fail(f"{step.__name__} never reaches {rule}")


def broken(change: Any) -> Any:
    """An `optimize` whose result is spoilt."""
    right = normfuse.optimize

    def optimize(model: onnx.ModelProto, *arguments: Any, **options: Any) -> normfuse.Result:
        result = right(model, *arguments, **options)
        change(result.model)
        return result

    return optimize


def scaled(model: onnx.ModelProto) -> None:
    weight = model.graph.initializer[0]
    weight.CopyFrom(onnx.numpy_helper.from_array(1.001 * onnx.numpy_helper.to_array(weight), weight.name))


def renamed(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        node.name = "same"


def retyped(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 7


def crashing(model: onnx.ModelProto) -> None:
    raise KeyError("gone")


@pytest.mark.parametrize(
    ("change", "fault"),
    [(scaled, "parity: "), (renamed, "names: "), (retyped, "signature: "), (crashing, "crash: KeyError")],
)
def test_what_is_wrong_is_said(change: Any, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("(float[2,3] x) => (float[2,4] y) { m = MatMul(x, w) y = Tanh(m) }", w=(3, 4))
    monkeypatch.setattr(normfuse, "optimize", broken(change))
    faults = examine(model, TARGETS[0], on_runtime=True).faults
    assert any(one.startswith(fault) for one in faults), faults


def test_a_second_run_that_changes_something_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("(float[2,3] x) => (float[2,4] y) { m = MatMul(x, w) y = Mul(m, k) }", w=(3, 4), k=(4,))
    right = normfuse.optimize

    def forgetful(source: onnx.ModelProto, *arguments: Any, **options: Any) -> normfuse.Result:
        return normfuse.Result(model, right(source, *arguments, **options).report)

    monkeypatch.setattr(normfuse, "optimize", forgetful)
    assert any(one.startswith("idempotence: ") for one in examine(model, TARGETS[1], on_runtime=True).faults)


def test_roundings_excuse_a_constant_row_but_no_wrong_epsilon() -> None:
    """A row that is constant is amplified by 1/√ε, in any order of the same operations; another ε shows elsewhere."""
    text = (
        "(float[2,3] x) => (float[2,8] y) {{ c = MatMul(x, w) d = Add(c, k) "
        "y = LayerNormalization<epsilon={epsilon}>({x}, g) }}"
    )
    weights: dict[str, Any] = {"w": np.full((3, 8), 0.3, np.float32), "k": np.full(8, 0.1, np.float32)}
    weights["g"] = np.linspace(0.5, 2, 8).astype(np.float32)
    model, same, other = (
        build(text.format(epsilon=epsilon, x="d"), opset=17, **weights) for epsilon in (1e-5, 1e-5, 1e-3)
    )
    weights["w"] = np.linspace(-1, 1, 24).reshape(3, 8).astype(np.float32)
    moving, wrong = (build(text.format(epsilon=epsilon, x="d"), opset=17, **weights) for epsilon in (1e-5, 1e-3))
    assert examination._is_noise(model, same, "cpu")
    assert not examination._is_noise(moving, wrong, "cpu")
    assert other.graph.node[-1].attribute[0].f != model.graph.node[-1].attribute[0].f


def test_soak_counts_and_names_the_rules_that_were_never_used(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = soak.look(0, TARGETS[:1])
    tally = soak.Tally()
    tally.add(outcome)
    said = "\n".join(tally.lines())
    assert said.startswith("1 graphs (1 ")
    assert "never used: " in said
    assert said.endswith("0 failures")


def test_a_graph_that_fails_is_written_out_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(normfuse, "optimize", broken(renamed))
    assert soak.main(["--one", "4", "--targets", "portable", "--out", str(tmp_path)]) == 1
    written = onnx.load(tmp_path / "4.onnx")
    assert "names: " in written.doc_string
    written.ClearField("doc_string")
    assert written == seeded_model(4)
    assert "seed 4, float" in capsys.readouterr().out


def test_soak_ends_with_its_graphs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--minutes", "5", "--graphs", "1", "--seed", "3", "--targets", "portable", "--out", str(tmp_path)]
    assert soak.main(arguments) == 0
    assert "1 graphs" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())

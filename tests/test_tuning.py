"""`--tune`: the fastest form that loses no accuracy is taken, once measured, by times that the tests make up."""

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime  # type: ignore[import-untyped]  # it ships no types
import pytest
from click.testing import CliRunner

import normfuse
from normfuse.bench import Timing
from normfuse.cli import main
from normfuse.errors import NormfuseError, TargetError
from normfuse.model import load, serialize
from normfuse.norm import Standardize
from normfuse.passes import lower
from normfuse.passes.access import RefusedError
from normfuse.passes.emitter import Emitter
from normfuse.passes.excerpt import excerpt, sizes_of
from normfuse.passes.forms import AS_IT_WAS, forms_of
from normfuse.passes.lift import LiftPass
from normfuse.passes.lowering import Lowering, NormSite, site_of
from normfuse.passes.lowerings import LOWERINGS
from normfuse.passes.norms import Norm, read_norm
from normfuse.passes.prepare import PreparePass
from normfuse.passes.weights import Weights
from normfuse.pipeline import Result
from normfuse.target import Target
from normfuse.tuning import Tuner
from normfuse.tuning_cache import TuningCache
from tests.lowered import EPSILON, Lowered, centred, image
from tests.parity import build, ops, reasons_of, rng, rules_of
from tests.test_lower import APPLIES, CANCELLING, GROUP_WEIGHTS, GROUPS

GROUP_NORM = image(GROUPS)
BY_INSTANCE = "BatchNormalization InstanceNormalization Reshape Reshape"
BY_LAYER = "Add LayerNormalization Mul Reshape Reshape"
AS_WRITTEN = "Add InstanceNormalization Mul Reshape Reshape"


@dataclass
class Stopwatch:
    """A timer that answers with given seconds, and remembers what it was asked.

    Attributes:
        seconds: of each form; 1 for the others.
        spread: the third quartile of each ratio is this many times the median.
        asked: for each call the forms, the target and the shapes.
    """

    seconds: Mapping[str, float]
    spread: float = 1.0
    asked: list[tuple[list[str], Target, dict[str, tuple[int, ...]]]] = field(default_factory=list)

    def __call__(self, models: Mapping[str, ir.Model], target: Target, shapes: Any, seconds: float) -> list[Timing]:
        assert seconds > 0
        self.asked.append((list(models), target, dict(shapes)))
        first = self.seconds.get(next(iter(models)), 1.0)
        return [self._timing(name, self.seconds.get(name, 1.0), first) for name in models]

    def _timing(self, name: str, own: float, first: float) -> Timing:
        ratio = own / first
        return Timing(name, own, (own, own * self.spread), ratio, (ratio, ratio * self.spread if own != first else 1.0))


def never(*arguments: Any) -> Any:
    raise AssertionError("it was measured again")


@pytest.fixture
def cache(tmp_path: Path) -> TuningCache:
    return TuningCache(tmp_path / "tuning")


@pytest.fixture
def tune(cache: TuningCache) -> Callable[..., Result]:
    """Optimizes a model for one thread with made-up times; every form counts as accurate."""

    def run(model: onnx.ModelProto, timer: Any, target: Target | None = None, **settings: Any) -> Result:
        settings.setdefault("judge", lambda *arguments: True)
        tuner = Tuner(cache=TuningCache(cache.folder), timer=timer, **settings)
        return normfuse.optimize(model, target or Target("cpu", 1), tune=tuner, verify=False)

    return run


def group_norm(text: str = GROUP_NORM, **weights: Any) -> onnx.ModelProto:
    return build(text, opset=17, **(GROUP_WEIGHTS | weights))


def details(result: Result) -> str:
    return "\n".join(change.detail for change in result.report.changes)


class TestChoice:
    def test_the_fastest_goes_before_the_order_of_the_table(self, tune: Callable[..., Result]) -> None:
        timer = Stopwatch({"norm-by-layer-norm": 898e-6, "norm-by-instance-norm": 1022e-6, AS_IT_WAS: 2e-3})
        result = tune(group_norm(), timer)
        assert ops(result.model) == ops_of(BY_LAYER)
        assert "norm-by-layer-norm" in rules_of(result)
        assert "fastest of 3 forms measured: 898 µs, next 1022 µs (norm-by-instance-norm)" in details(result)
        assert timer.asked[0][0][0] == "norm-by-instance-norm", "what the table chooses is what all are compared with"

    def test_what_was_there_can_win(self, tune: Callable[..., Result]) -> None:
        result = tune(group_norm(), Stopwatch({AS_IT_WAS: 0.5}))
        assert ops(result.model) == ops_of(AS_WRITTEN)
        assert "fastest of 3 forms measured: 500000 µs, next 1000000 µs" in reasons_of(result)

    @pytest.mark.parametrize(
        ("seconds", "spread"), [(0.98, 1.0), (0.9, 1.1)], ids=["by little", "within the spread of the rounds"]
    )
    def test_noise_does_not_win(self, tune: Callable[..., Result], seconds: float, spread: float) -> None:
        result = tune(group_norm(), Stopwatch({"norm-by-layer-norm": seconds}, spread))
        assert ops(result.model) == ops_of(BY_INSTANCE)
        assert "of 3 forms measured none is clearly faster: 1000000 µs, best other" in details(result)

    def test_who_wins_once_must_win_again(self, tune: Callable[..., Result]) -> None:
        class Lucky(Stopwatch):
            def __call__(self, *arguments: Any) -> list[Timing]:
                timings = super().__call__(*arguments)
                self.seconds = {}
                return timings

        timer = Lucky({"norm-by-layer-norm": 0.5})
        assert ops(tune(group_norm(), timer).model) == ops_of(BY_INSTANCE)
        assert timer.asked[1][0] == ["norm-by-instance-norm", "norm-by-layer-norm"]

    def test_the_next_is_taken_where_the_fastest_is_less_accurate(self, tune: Callable[..., Result]) -> None:
        def judge(reference: ir.Model, candidate: ir.Model, *rest: Any) -> bool:
            return all(node.op_type != "LayerNormalization" for node in candidate.graph)

        result = tune(group_norm(), Stopwatch({"norm-by-layer-norm": 0.2, AS_IT_WAS: 0.5}), judge=judge)
        assert ops(result.model) == ops_of(AS_WRITTEN)
        assert "less accurate: norm-by-layer-norm" in reasons_of(result)

    def test_alike_forms_are_measured_once(self, tune: Callable[..., Result]) -> None:
        model = build(image("y = InstanceNormalization(x, w, c)"), opset=17, w=(6,), c=(6,))
        timer = Stopwatch({})
        result = tune(model, timer)
        assert "instance-norm" not in timer.asked[0][0]
        assert ops(result.model) == ops_of("InstanceNormalization")

    def test_nothing_is_measured_where_there_is_no_choice(self, tune: Callable[..., Result]) -> None:
        model = build(image(centred("[1,3]")), opset=17, e=EPSILON)
        assert ops(tune(model, never).model) == ops(model)

    def test_what_does_not_load_is_not_timed(self, tune: Callable[..., Result], monkeypatch: Any) -> None:
        def law(site: NormSite, emitter: Emitter, target: Target) -> ir.Value:
            return emitter.op("NoSuchKernel", site.data, domain="com.microsoft")

        row = Lowering("no-kernel", "lower", (), None, law, "", targets=("cpu",), suits=lambda site, target: False)
        monkeypatch.setattr(lower, "LOWERINGS", (row, *LOWERINGS))
        timer = Stopwatch({"no-kernel": 0.1})
        tune(group_norm(), timer)
        assert timer.asked[0][0] == ["norm-by-instance-norm", AS_IT_WAS, "norm-by-layer-norm"]

    def test_a_row_that_asks_for_neighbours_keeps_its_place(
        self, tune: Callable[..., Result], monkeypatch: Any
    ) -> None:
        def law(site: NormSite, emitter: Emitter, target: Target) -> ir.Value:
            if site.data.producer() is None:
                raise RefusedError("there is nothing in front of it")
            return by_instance.law(site, emitter, target)

        by_instance = next(row for row in LOWERINGS if row.name == "norm-by-instance-norm")
        row = Lowering("behind", "lower", (), None, law, "", targets=("cpu",))
        monkeypatch.setattr(lower, "LOWERINGS", (row, *LOWERINGS))
        result = tune(group_norm(GROUP_NORM.replace("{ r = Reshape(x", "{ l = Tanh(x) r = Reshape(l")), never)
        assert "behind" in rules_of(result)
        assert "not measured: behind depends on what stands around it" in details(result)


CHANNELS_FIRST = centred("[1]").replace("(x", "(f").replace("y = Div", "n = Div")


class TestSurroundings:
    """A Transpose next to a convolution costs nothing in ONNX Runtime, one that stands alone does."""

    @pytest.mark.parametrize(
        ("body", "around"),
        [
            (f"f = Conv(x, k) {CHANNELS_FIRST} y = Conv(n, k)", "between convolutions"),
            (f"f = Conv(x, k) {CHANNELS_FIRST} y = Tanh(n)", "behind a convolution"),
            (f"f = Tanh(x) {CHANNELS_FIRST} y = Conv(n, k)", "in front of a convolution"),
        ],
    )
    def test_convolutions_are_timed_with_it(self, tune: Callable[..., Result], body: str, around: str) -> None:
        seen: list[Any] = []

        class Watch(Stopwatch):
            def __call__(self, models: Mapping[str, ir.Model], *rest: Any) -> list[Timing]:
                seen.extend(Counter(node.op_type for node in model.graph)["Conv"] for model in models.values())
                return super().__call__(models, *rest)

        result = tune(build(image(body), opset=17, e=EPSILON, k=(6, 6, 1, 1)), Watch({}))
        assert len(seen) >= 3
        assert set(seen) == {body.count("Conv(")}
        assert f"forms measured {around}: " in details(result)

    def test_what_they_hold_is_computed_as_before(self) -> None:
        body = f"f = Conv(x, k) {CHANNELS_FIRST} y = Conv(n, k)"
        model = load(build(image(body), opset=17, e=EPSILON, k=(6, 6, 1, 1)))
        PreparePass(None, ())(model)
        LiftPass()(model)
        site = next(sites(model))
        alone = excerpt(model, site)
        lower.restore(alone)
        forms = forms_of(model, site, [row for row in LOWERINGS if "cpu" in row.targets], Target("cpu", 1))
        assert forms.around == (True, True)
        assert {"channels-first-by-products", "norm-by-transposes"} < set(forms.models)
        (expected,) = run(alone)
        np.testing.assert_array_equal(run(forms.models[AS_IT_WAS])[0], expected)
        for form in forms.models.values():
            assert [node.op_type for node in form.graph].count("Conv") == 2
            np.testing.assert_allclose(run(form)[0], expected, rtol=1e-4, atol=1e-5)


class TestAccuracy:
    def test_a_variance_that_cancels_never_wins(self, cache: TuningCache) -> None:
        model = build(f"(float[5,16] x) => (float[5,16] y) {{ {CANCELLING} }}", opset=17, e=EPSILON)
        tuner = Tuner(cache=cache, timer=Stopwatch({AS_IT_WAS: 0.1}))
        result = normfuse.optimize(model, Target("cpu", 1), tune=tuner)
        assert ops(result.model) == ops_of("LayerNormalization")
        assert f"less accurate: {AS_IT_WAS}" in details(result)

    def test_an_original_that_is_accurate_may(self, cache: TuningCache) -> None:
        tuner = Tuner(cache=cache, timer=Stopwatch({AS_IT_WAS: 0.1}))
        result = normfuse.optimize(group_norm(), Target("cpu", 1), tune=tuner)
        assert ops(result.model) == ops_of(AS_WRITTEN)

    def test_a_row_that_is_accurate_may(self, cache: TuningCache) -> None:
        tuner = Tuner(cache=cache, timer=Stopwatch({"norm-by-layer-norm": 0.1}))
        result = normfuse.optimize(group_norm(), Target("cpu", 1), tune=tuner)
        assert ops(result.model) == ops_of(BY_LAYER)
        assert result.report.parity is not None
        assert result.report.parity.passed


class TestMemory:
    FAST: Mapping[str, float] = {"norm-by-layer-norm": 0.5}

    def test_what_is_measured_is_said(self, tune: Callable[..., Result]) -> None:
        said: list[str] = []
        tune(group_norm(), Stopwatch(self.FAST), progress=said.append)
        tune(group_norm(), never, progress=said.append)
        assert said == ["measuring GroupNorm of 2 groups γ β; 2×6×4×4 float; opset 17, cpu, 1 thread"]

    def test_a_second_run_measures_nothing(self, tune: Callable[..., Result]) -> None:
        first = tune(group_norm(), Stopwatch(self.FAST))
        second = tune(group_norm(), never, judge=never)
        assert second.model == first.model
        assert details(second) == details(first)

    def test_alike_sites_of_a_model_are_measured_once(self, tune: Callable[..., Result]) -> None:
        second = GROUPS.replace("(x", "(y").replace("y = ", "z = ")
        second = " ".join(f"z{part}" if part in "rnbg" else part for part in second.split(" "))
        for name in "rnbg":
            second = second.replace(f"({name},", f"(z{name},")
        text = f"(float[2,6,4,4] x) => (float[2,6,4,4] z) {{ {GROUPS} {second} }}"
        timer = Stopwatch(self.FAST)
        result = tune(group_norm(text), timer)
        assert ops(result.model)["LayerNormalization"] == 2
        assert len(timer.asked) == 2, "all forms, and the fastest against the table's choice"

    @pytest.mark.parametrize(
        "other",
        [
            {"target": Target("cpu", 2)},
            {"target": Target("portable", 1)},
            {"model": group_norm(GROUP_NORM.replace("4,4]", "5,4]"), t=np.array([2, 6, 5, 4]))},
            {"model": build(GROUP_NORM, opset=18, **GROUP_WEIGHTS)},
            {"model": group_norm(image(GROUPS).replace("g = Mul(b, w)", "h = Mul(b, w) g = Mul(h, w)"))},
        ],
        ids=["threads", "provider", "shape", "opset", "spelling"],
    )
    def test_what_differs_is_measured_for_itself(self, tune: Callable[..., Result], other: dict[str, Any]) -> None:
        tune(group_norm(), Stopwatch(self.FAST))
        timer = Stopwatch(self.FAST)
        tune(other.get("model", group_norm()), timer, other.get("target"))
        assert timer.asked

    @pytest.mark.parametrize("what", ["normfuse.tuning.machine", "normfuse.tuning.__version__"])
    def test_another_machine_or_version_measures_for_itself(
        self, tune: Callable[..., Result], what: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tune(group_norm(), Stopwatch(self.FAST))
        monkeypatch.setattr(what, (lambda: "an abacus") if what.endswith("machine") else "0.0.0")
        timer = Stopwatch(self.FAST)
        tune(group_norm(), timer)
        assert timer.asked

    def test_what_the_budget_does_not_reach_follows_the_table(self, tune: Callable[..., Result]) -> None:
        clock: Iterator[float] = iter(range(100))
        larger = GROUPS.replace("(x", "(p").replace("y = ", "z = ")
        for name in "rnbg":
            larger = larger.replace(f"{name} = ", f"z{name} = ").replace(f"({name},", f"(z{name},")
        text = (
            f"(float[2,6,4,4] x) => (float[2,6,4,8] z) {{ {GROUPS} p = Concat<axis=3>(y, y) "
            f"{larger.replace('(zn, t)', '(zn, u)')} }}"
        )
        timer = Stopwatch(self.FAST)
        result = tune(group_norm(text, u=np.array([2, 6, 4, 8])), timer, clock=lambda: next(clock), budget=1.0)
        assert ops(result.model)["LayerNormalization"] == 1
        assert ops(result.model)["InstanceNormalization"] == 1
        assert "not measured: the budget of 1 s is spent" in details(result)


class TestSizes:
    DYNAMIC = image(GROUPS).replace("[2,6,4,4]", "[N,6,H,W]").replace("r = ", "t = Shape(x) r = ")
    WEIGHTS: Mapping[str, Any] = {name: weight for name, weight in GROUP_WEIGHTS.items() if name != "t"}

    def shapes(self, tune: Callable[..., Result], text: str, given: Any = None, **weights: Any) -> Any:
        timer = Stopwatch({})
        result = tune(build(text, opset=17, **self.WEIGHTS, **weights), timer, shapes=given)
        ((_, _, shapes),) = timer.asked
        (shape,) = (shape for name, shape in shapes.items())
        sized = "×".join(map(str, shape))
        assert f" at {sized}: " in details(result)
        return shape

    def test_dynamic_ones_have_the_defaults_of_bench(self, tune: Callable[..., Result]) -> None:
        assert self.shapes(tune, self.DYNAMIC) == (1, 6, 224, 224)

    def test_a_shape_can_be_given(self, tune: Callable[..., Result]) -> None:
        assert self.shapes(tune, self.DYNAMIC, {"x": (2, 6, 5, 7)}) == (2, 6, 5, 7)

    def test_a_size_can_be_given_by_the_name_of_its_dimension(self, tune: Callable[..., Result]) -> None:
        assert self.shapes(tune, self.DYNAMIC, {"H": 9, "W": 3}) == (1, 6, 9, 3)

    def test_inner_ones_follow_from_those_of_the_inputs(self, tune: Callable[..., Result]) -> None:
        text = self.DYNAMIC.replace("[N,6,H,W] x", "[N,3,H,W] x").replace("{ t", "{ f = Conv<strides=[2,2]>(x, k) t")
        text = text.replace("Shape(x)", "Shape(f)").replace("Reshape(x", "Reshape(f")
        given = {"x": (2, 3, 16, 12)}
        assert self.shapes(tune, text, given, k=(6, 3, 2, 2)) == (2, 6, 8, 6)

    def test_sizes_of_a_model_are_inferred_without_changing_it(self) -> None:
        model = load(build("(float[N,3] x) => (float[N,6] y) { y = Concat<axis=1>(x, x) }"))
        assert sizes_of(model, {"x": (5, 3)}) == {"x": [5, 3], "y": [5, 6]}
        assert [str(dim) for dim in model.graph.inputs[0].shape or ()] == ["N", "3"]

    def test_a_shape_for_an_input_that_does_not_exist_is_an_error(self, tune: Callable[..., Result]) -> None:
        with pytest.raises(NormfuseError, match="no input named z; the model has x"):
            tune(group_norm(), never, shapes={"z": (1,)})

    def test_computed_scale_and_bias_are_inputs(self, tune: Callable[..., Result]) -> None:
        text = (
            "(float[1,6,4,4] x, float[1,6,1,1] w, float[1,6,1,1] c) => (float[1,6,4,4] y)"
            " { n = InstanceNormalization(x, one, zero) g = Mul(n, w) y = Add(g, c) }"
        )
        model = build(text, opset=17, one=np.ones(6, np.float32), zero=np.zeros(6, np.float32))
        timer = Stopwatch({AS_IT_WAS: 0.9})
        result = tune(model, timer)
        assert set(timer.asked[0][2].values()) == {(1, 6, 4, 4), (1, 6, 1, 1)}
        assert ops(result.model) == ops_of("Add InstanceNormalization Mul")


def ops_of(names: str) -> Any:
    return Counter(names.split())


def sites(model: ir.Model) -> Iterator[NormSite]:
    weights = Weights(model)
    for graph in (model.graph, *model.graph.subgraphs()):
        for node in graph:
            norm = read_norm(node, weights)
            if norm is not None:
                yield site_of(norm, weights)


class TestExcerpt:
    @pytest.mark.parametrize("item", [item for item in APPLIES if item.provider == "cpu"], ids=str)
    def test_it_computes_bit_for_bit_what_the_whole_does(self, item: Lowered) -> None:
        model = load(build(item.text, opset=item.opset, **item.weights))
        PreparePass(None, ())(model)
        LiftPass()(model)
        site = next(sites(model))
        part = excerpt(model, site)
        model.graph.outputs[:] = [site.output]
        results = []
        for one in (model, part):
            lower.restore(one)
            results.append(run(one))
        (whole,), (own,) = results
        np.testing.assert_array_equal(own, whole)

    def test_it_holds_what_computes_its_shapes(self) -> None:
        model = load(build(TestSizes.DYNAMIC, opset=17, **TestSizes.WEIGHTS))
        PreparePass(None, ())(model)
        LiftPass()(model)
        part = excerpt(model, next(sites(model)))
        assert [value.name for value in part.graph.inputs] == ["x"]

    def test_it_reaches_out_of_a_branch(self) -> None:
        body = "{ h = Tanh(x) y = If(k) <then_branch = a () => (p) { p = InstanceNormalization(h, w, c) },"
        text = f"(float[2,6,4,4] x, bool k) => (float[2,6,4,4] y) {body} else_branch = b () => (q) {{ q = Neg(h) }}> }}"
        model = load(build(text, opset=17, w=(6,), c=(6,)))
        PreparePass(None, ())(model)
        (site,) = sites(model)
        part = excerpt(model, site)
        assert [value.name for value in part.graph.inputs] == ["h"]
        assert set(part.graph.initializers) == {"w", "c"}
        assert run(part)[0].shape == (2, 6, 4, 4)

    def test_it_refuses_integers_from_outside(self) -> None:
        model = load(build("(float[2,6] x, int64[2] s) => (float[a,b] y) { y = Reshape(x, s) }"))
        node, data = model.graph[0], model.graph.inputs[0]
        site = NormSite(Norm(node, Standardize((1,)), data), None, None, (), Weights(model))
        with pytest.raises(RefusedError, match="it reads 's', which holds no real numbers"):
            excerpt(model, site)


def run(model: ir.Model) -> list[np.ndarray[Any, Any]]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(serialize(model), options, providers=["CPUExecutionProvider"])
    feeds = {
        value.name: rng(value.name)
        .normal(0.5, 2.0, [d if isinstance(d, int) else 4 for d in value.shape])
        .astype(np.float32)
        for value in session.get_inputs()
    }
    return list(session.run(None, feeds))


class TestTargets:
    def test_portable_is_measured_among_its_own_rows(self, tune: Callable[..., Result]) -> None:
        timer = Stopwatch({"instance-norm": 0.5})
        result = tune(build(image(centred("[2,3]")), opset=17, e=EPSILON), timer, Target("portable", 1))
        portable = {row.name for row in LOWERINGS if "portable" in row.targets} | {AS_IT_WAS}
        assert {"instance-norm", AS_IT_WAS} < set(timer.asked[0][0]) <= portable
        assert "fastest of" in details(result)

    def test_portable_does_not_measure_what_has_more_nodes(self, tune: Callable[..., Result]) -> None:
        model = build(image("y = GroupNormalization<num_groups=2>(x, w, c)"), opset=21, w=(6,), c=(6,))
        assert ops(tune(model, never, Target("portable", 1)).model) == ops_of("GroupNormalization")

    def test_onnx_runtime_is_needed(self, cache: TuningCache, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        with pytest.raises(TargetError, match=r"ONNX Runtime is not installed; run: pip install normfuse\[cpu\]"):
            normfuse.optimize(group_norm(), tune=Tuner(cache=cache), verify=False)

    def test_cuda_is_needed_for_cuda(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
        onnx.save(group_norm(), tmp_path / "model.onnx")
        arguments = ["optimize", str(tmp_path / "model.onnx"), "--dry-run", "--target", "cuda", "--tune"]
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 4
        assert "ONNX Runtime has no CUDAExecutionProvider here" in result.output


class TestCommands:
    @pytest.fixture(autouse=True)
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setenv("NORMFUSE_CACHE", str(tmp_path / "cache"))
        onnx.save(group_norm(), tmp_path / "model.onnx")
        monkeypatch.chdir(tmp_path)
        return tmp_path / "cache" / "tuning"

    def invoke(self, *arguments: str, status: int = 0) -> str:
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == status, result.output
        return result.output

    def test_what_is_really_measured_is_kept_listed_and_forgotten(self, folder: Path) -> None:
        tuning = ("optimize", "model.onnx", "-o", "out.onnx", "--threads", "1", "--tune")
        assert "1 distinct normalization measured" in self.invoke(*tuning)
        again = json.loads(self.invoke(*tuning, "--json"))
        counts = {name: again["tuning"][name] for name in ("measured", "known", "not_measured")}
        assert counts == {"measured": 0, "known": 1, "not_measured": 0}
        listed = self.invoke("tune", "--list")
        (record,) = json.loads(self.invoke("tune", "--list", "--json"))["records"]
        assert record["description"] == "GroupNorm of 2 groups γ β; 2×6×4×4 float; opset 17, cpu, 1 thread"
        timed = {form["form"]: form["seconds"] for form in record["forms"]}
        assert set(timed) == {AS_IT_WAS, "norm-by-instance-norm", "norm-by-layer-norm"}
        assert all(seconds > 0 for seconds in timed.values())
        for text in (record["description"], record["chosen"], record["date"], record["machine"], "1 normalization"):
            assert text in listed
        assert json.loads(self.invoke("tune", "--clear", "--json"))["cleared"] == 1
        assert "nothing has been measured" in self.invoke("tune", "--list")
        assert list(folder.iterdir()) == []

    def test_no_time_measures_nothing(self) -> None:
        output = self.invoke("optimize", "model.onnx", "--dry-run", "--no-verify", "--tune", "--tune-budget", "0")
        assert "0 distinct normalizations measured" in output
        assert "1 not measured" in output

    def test_a_damaged_record_is_one_line_on_stderr(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "notes.txt").write_text("mine")
        result = CliRunner().invoke(main, ["tune", "--list"])
        assert result.exit_code == 0
        assert result.stderr.count("\n") == 1
        assert "notes.txt was not written by normfuse" in result.stderr

    def test_python_warns_of_a_cache_that_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "cache").write_text("a file where a folder should be")
        with pytest.warns(UserWarning, match="what was measured is not kept"):
            normfuse.optimize("model.onnx", Target("cpu", 1), tune=True, verify=False)

    @pytest.mark.parametrize("arguments", [(), ("--list", "--clear")])
    def test_one_thing_at_a_time(self, arguments: tuple[str, ...]) -> None:
        assert "give --list" in self.invoke("tune", *arguments, status=2)

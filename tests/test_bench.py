"""normfuse.bench: what it times, how it orders the turns, and what it refuses. No assertion depends on the clock."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from normfuse.bench import FEWEST_ROUNDS, BenchTable, Timing, bench
from normfuse.errors import ModelError, NormfuseError, TargetError
from normfuse.spread import CONFIDENCE, interval_ranks

pytest.importorskip("onnxruntime")

RELU = '<ir_version: 8, opset_import: ["" : 17]> net (float[N,3,4] x) => (float[N,3,4] y) { y = Relu(x) }'
TWO = '<ir_version: 8, opset_import: ["" : 17]> net (float[N,3,4] x) => (float[N,3,4] y) { a = Relu(x) y = Tanh(a) }'


def model(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(text)


def quick(*models: object, **options: object) -> BenchTable:
    return bench(list(models), **{"threads": 1, "rounds": 6, "seconds": 0.2, **options})  # type: ignore[arg-type]  # passed on


class TestTable:
    def test_holds_one_timing_a_model_in_the_order_given(self) -> None:
        table = quick(model(RELU), model(TWO), names=["first", "second"])
        assert [timing.name for timing in table.timings] == ["first", "second"]
        assert table.threads == 1
        assert table.level == "all"
        assert table.provider == "cpu"
        assert FEWEST_ROUNDS <= table.rounds <= 6

    def test_the_first_model_is_the_unit(self) -> None:
        first, second = quick(model(RELU), model(TWO)).timings
        assert (first.ratio, first.ratio_quartiles) == (1.0, (1.0, 1.0))
        assert second.ratio_quartiles[0] <= second.ratio <= second.ratio_quartiles[1]

    def test_medians_lie_between_their_quartiles(self) -> None:
        for timing in quick(model(RELU), model(TWO)).timings:
            assert 0 < timing.quartiles[0] <= timing.median <= timing.quartiles[1]

    def test_goes_through_json(self) -> None:
        table = quick(model(RELU))
        content = json.loads(json.dumps(table.to_dict()))
        assert content["schema_version"] == 1
        assert content["timings"][0]["median"] == table.timings[0].median
        assert content["shapes"] == {"x": [1, 3, 4]}

    def test_prints_milliseconds_and_the_ratio_with_its_spread(self) -> None:
        timing = Timing("net", 0.002, (0.0015, 0.0025), 0.5, (0.25, 0.75))
        line = str(BenchTable((timing,), "cpu", 1, "all", 6, {})).splitlines()[1]
        assert line.split() == ["net", "2.000", "1.500", "2.500", "0.500", "0.250", "0.750"]

    def test_intervals_enclose_what_they_are_of(self) -> None:
        for timing in quick(model(RELU), model(TWO)).timings:
            assert timing.interval[0] <= timing.median <= timing.interval[1]
            assert timing.ratio_interval[0] <= timing.ratio <= timing.ratio_interval[1]
            assert timing.p90 > 0
            assert timing.providers == ("CPUExecutionProvider",)
            assert timing.tax is None

    def test_several_numbers_of_threads_are_timed_each_against_its_own_first(self) -> None:
        table = quick(model(RELU), model(TWO), names=["a", "b"], threads=(2, 1, 2))
        assert [(timing.name, timing.threads) for timing in table.timings] == [("a", 2), ("b", 2), ("a", 1), ("b", 1)]
        assert [timing.ratio for timing in table.timings[::2]] == [1.0, 1.0]
        assert table.threads == 2
        assert table.onnxruntime

    @pytest.mark.parametrize(
        ("count", "rank", "reached"),
        [(1, 1, 0.0), (5, 1, 0.9375), (6, 1, 0.96875), (10, 2, 0.97852), (30, 10, 0.95722), (100, 40, 0.96480)],
    )
    def test_the_ranks_of_an_interval_are_those_of_the_tables(self, count: int, rank: int, reached: float) -> None:
        assert interval_ranks(count)[0] == rank
        assert interval_ranks(count)[1] == pytest.approx(reached, abs=1e-5)

    def test_an_interval_encloses_the_median_as_often_as_it_says(self) -> None:
        rng = np.random.default_rng(0)
        count, draws = 15, 20_000
        rank, reached = interval_ranks(count)
        ordered = np.sort(rng.exponential(size=(draws, count)), axis=1)
        enclosed = float(np.mean((ordered[:, rank - 1] <= np.log(2)) & (np.log(2) <= ordered[:, -rank])))
        assert reached >= CONFIDENCE
        assert enclosed == pytest.approx(reached, abs=4 * (reached * (1 - reached) / draws) ** 0.5)


class TestModels:
    def test_every_kind_of_source_can_stand_beside_another(self, tmp_path: Path) -> None:
        import onnx_ir as ir

        proto = model(RELU)
        path = tmp_path / "net.onnx"
        onnx.save(proto, path)
        table = quick(path, str(path), proto.SerializeToString(), proto, ir.from_proto(proto))
        assert [timing.name for timing in table.timings] == ["net.onnx", "net.onnx", "model 3", "model 4", "model 5"]

    def test_external_data_is_found_beside_the_file(self, tmp_path: Path) -> None:
        proto = model('<ir_version: 8, opset_import: ["" : 17]> net (float[N,4] x) => (float[N,4] y) { y = Add(x, w) }')
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.arange(4, dtype=np.float32), "w"))
        path = tmp_path / "net.onnx"
        onnx.save(proto, path, save_as_external_data=True, size_threshold=0, location="net.data")
        assert quick(path).shapes == {"x": (1, 4)}


class TestInputs:
    def test_dynamic_dimensions_are_filled_in(self) -> None:
        image = '<ir_version: 8, opset_import: ["" : 17]> net (float[N,3,H,W] x) => (float[N,3,H,W] y) { y = Relu(x) }'
        tokens = '<ir_version: 8, opset_import: ["" : 17]> net (int64[N,T] x) => (int64[N,T] y) { y = Abs(x) }'
        assert quick(model(image)).shapes == {"x": (1, 3, 224, 224)}
        assert quick(model(tokens)).shapes == {"x": (1, 128)}

    def test_sizes_that_the_model_does_not_take_are_passed_over(self) -> None:
        text = """<ir_version: 8, opset_import: ["" : 17]> net (float[N,3,H,W] x) => (float[N,192] y)
            { shape = Constant <value_ints = [-1, 192]> () y = Reshape (x, shape) s = Slice (x, a, b) }"""
        fixed = text.replace("s = Slice (x, a, b)", "").replace("-1, 192", "1, 12288")
        assert quick(model(fixed)).shapes == {"x": (1, 3, 64, 64)}

    def test_own_inputs_are_used(self) -> None:
        assert quick(model(RELU), data={"x": np.ones((2, 3, 4))}).shapes == {"x": (2, 3, 4)}

    def test_a_shape_can_be_given(self) -> None:
        assert quick(model(RELU), shapes={"x": (5, 3, 4)}).shapes == {"x": (5, 3, 4)}


class TestRefusals:
    def test_a_shape_for_an_input_that_does_not_exist(self) -> None:
        with pytest.raises(NormfuseError, match="there is no input 'z' to give a shape to; the model has N, x"):
            quick(model(RELU), shapes={"z": (1,)})

    def test_no_models(self) -> None:
        with pytest.raises(NormfuseError, match="0 models"):
            quick()

    def test_other_inputs_than_the_first(self) -> None:
        other = model(RELU.replace("x", "z"))
        with pytest.raises(NormfuseError, match="model 2 has other inputs"):
            quick(model(RELU), other)

    def test_a_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(NormfuseError, match="there is no file"):
            quick(tmp_path / "none.onnx")

    def test_what_does_not_load_and_what_does_not_run(self) -> None:
        with pytest.raises(ModelError, match="text, not a model"):
            quick(b"not a model")
        with pytest.raises(TargetError, match=r"model 1: ONNX Runtime failed to run it.*give other shapes"):
            quick(model(RELU), shapes={"x": (1, 3, 5)})

    @pytest.mark.parametrize("threads", [0, -1, (1, 0)])
    def test_threads_below_one(self, threads: int | tuple[int, ...]) -> None:
        with pytest.raises(NormfuseError, match="threads must be at least 1"):
            quick(model(RELU), threads=threads)

    def test_an_unknown_provider(self) -> None:
        with pytest.raises(TargetError, match="no provider 'abacus'"):
            quick(model(RELU), provider="abacus")

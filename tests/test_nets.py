"""scripts.nets: how norms are counted, when a time is slower, and what a row looks like."""

from pathlib import Path

import onnx
import onnx.parser
import pytest

from normfuse.bench import Timing
from normfuse.errors import NormfuseError
from scripts import nets
from scripts.nets import OURS, Norms, Plan, Row, Variant

NORMS = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[2, 4, 6] x) => (float[2, 4, 6] y)
<float[4] scale = {1, 2, 3, 4}, float[4] bias = {4, 3, 2, 1}, float[4] mean = {1, 0, 1, 0}, float[4] var = {1, 2, 1, 2},
 float epsilon = {0.00001}>
{
    a = Relu(x)
    b = BatchNormalization(a, scale, bias, mean, var)
    c = InstanceNormalization(b, scale, bias)
    m = ReduceMean <axes = [-1]> (c)
    d = Sub(c, m)
    s = Mul(d, d)
    v = ReduceMean <axes = [-1]> (s)
    e = Add(v, epsilon)
    r = Sqrt(e)
    y = Div(d, r)
}
"""


def timing(name: str, ratio: float, spread: float = 0.01) -> Timing:
    return Timing(name, 0.01 * ratio, (0.01, 0.01), ratio, (ratio - spread, ratio + spread))


def row(**ratios: float) -> Row:
    variants = {name: Variant(9, Norms(3, 0), {1: timing(name, ratio)}) for name, ratio in ratios.items()}
    return Row("net", "dynamo", 20, 3, variants)


class TestNorms:
    def test_are_counted_however_they_are_spelled(self, tmp_path: Path) -> None:
        path = tmp_path / "net.onnx"
        onnx.save(onnx.parser.parse_model(NORMS), path)
        assert nets.norms(path) == Norms(dynamic=2, batch=1)


class TestFaster:
    def test_is_more_than_noise_and_apart(self) -> None:
        assert row(raw=1.0, onnxslim=0.9, normfuse=1.0).faster(1) == ["onnxslim"]
        assert row(raw=1.0, onnxslim=0.98, normfuse=1.0).faster(1) == []
        wide = row(raw=1.0, onnxslim=0.9, normfuse=1.0)
        wide.variants["onnxslim"].times[1] = timing("onnxslim", 0.9, spread=0.2)
        assert wide.faster(1) == []

    def test_is_nothing_where_ours_was_not_timed(self) -> None:
        found = row(raw=1.0, onnxslim=0.5)
        found.variants[OURS] = Variant(problem="no")
        assert found.faster(1) == []


class TestShortfalls:
    def test_are_named(self) -> None:
        found = row(raw=1.0, onnxslim=0.8, normfuse=1.0)
        found.layers = 5
        found.variants[OURS].passed = False
        assert nets.shortfalls(found, Plan(threads=(1,))) == [
            "net dynamo-20: 3 of 5 norms are recognised",
            "net dynamo-20: the proof fails",
            "net dynamo-20, 1 thread: 1.000 of raw, onnxslim 0.800",
        ]

    def test_are_none_where_ours_is_fastest(self) -> None:
        assert nets.shortfalls(row(raw=1.0, onnxslim=0.9, normfuse=0.8), Plan(threads=(1,))) == []

    def test_an_export_that_failed_is_one(self) -> None:
        assert nets.shortfalls(Row("net", "dynamo", 20, problem="cannot"), Plan()) == ["net dynamo-20: cannot"]


class TestBlock:
    def test_shows_nodes_norms_times_and_problems(self) -> None:
        found = row(raw=1.0, onnxslim=0.8, normfuse=1.0)
        found.variants["onnxsim"] = Variant(problem="no such kernel")
        found.variants[OURS].bits_lost, found.variants[OURS].passed = 0.25, True
        lines = nets.block(found, Plan(threads=(1,))).splitlines()
        assert [line.split() for line in lines] == [
            ["net", "dynamo-20,", "3", "norms", "raw", "onnxslim", "normfuse", "onnxsim"],
            ["nodes", "9", "9", "9", "fails"],
            ["norms", "3", "+", "0", "3", "+", "0", "3", "+", "0"],
            ["time,", "1", "thread,", "10.0", "ms", "1.000", "0.800", "1.000", "slower", "than", "onnxslim"],
            ["bits", "lost", "0.2"],
            ["onnxsim", "fails:", "no", "such", "kernel"],
        ]


class TestChoice:
    def test_is_by_name_or_leaves_out_what_is_only_folded(self) -> None:
        pytest.importorskip("torch")
        assert [entry.name for entry in nets.choose(["unet-large"], all=False)] == ["unet-large"]
        usual, every = ({entry.name for entry in nets.choose([], all)} for all in (False, True))
        assert every - usual == nets.FOLDED
        with pytest.raises(NormfuseError, match="unknown net resnet; choose from levit-large"):
            nets.choose(["resnet"], all=False)


class TestLayers:
    def test_are_those_with_statistics_of_the_input(self) -> None:
        pytest.importorskip("torch")
        from models import MODELS

        assert nets.layers(MODELS["resnet-gn"]) == 6
        assert nets.layers(MODELS["alexnet"]) == 2
        assert nets.layers(MODELS["unet"]) == 0

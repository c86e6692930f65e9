"""Optimizing stays linear, and scripts.bench scale shows it. No assertion depends on the clock."""

import json

import pytest

import normfuse
from models.scaling import FAMILIES
from normfuse.passes.plan import Plan
from scripts import bench, bench_scale


def asked(monkeypatch: pytest.MonkeyPatch, family: str, nodes: int) -> float:
    """How often FOLD asks a node of a model whether it takes a map, for each of its nodes."""
    count, ask = 0, Plan._ask

    def counted(self: Plan, *arguments: object) -> None:
        nonlocal count
        count += 1
        ask(self, *arguments)  # type: ignore[arg-type]  # passed on

    model = FAMILIES[family](nodes)
    with monkeypatch.context() as patched:
        patched.setattr(Plan, "_ask", counted)
        normfuse.optimize(model, verify=False)
    return count / len(model.graph)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_node_is_asked_as_often_in_a_larger_model(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = (1000, 2000) if family == "transformer" else (270, 540)  # 500 nodes lie in the reach of one map
    small, large = (asked(monkeypatch, family, nodes) for nodes in sizes)
    assert 0 < large < 1.5 * small


def test_a_scale_behind_a_thousand_carriers_is_no_recursion_too_deep() -> None:
    model = FAMILIES["chain"](800)
    result = normfuse.optimize(model, verify=False)
    assert result.report.changes


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_has_as_many_nodes_as_it_is_asked_for(family: str) -> None:
    for nodes in (200, 800):
        assert len(FAMILIES[family](nodes).graph) == pytest.approx(nodes, rel=0.1)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_passes_its_proof(family: str) -> None:
    result = normfuse.optimize(FAMILIES[family](60))
    assert result.report.parity is not None
    assert result.report.parity.passed


class TestBenchScale:
    def test_growth_is_the_ratio_of_time_per_node(self) -> None:
        growth = bench_scale.Growth("mixed", (100, 1000), (0.1, 2.0), (50, 500))
        assert growth.per_node == (0.001, 0.002)
        assert growth.growth == 2.0

    def test_prints_json(self, capsys: pytest.CaptureFixture[str]) -> None:
        bench.main(["scale", "fan-out", "--sizes", "20", "40", "--repeats", "1", "--no-pairs", "--json"])
        content = json.loads(capsys.readouterr().out)
        assert content["schema_version"] == 1
        assert content["pairs"] is None
        (family,) = content["families"]
        assert family["family"] == "fan-out"
        assert len(family["seconds"]) == len(family["nodes"]) == 2

    def test_prints_a_line_for_each_family(self, capsys: pytest.CaptureFixture[str]) -> None:
        bench.main(["scale", "--sizes", "20", "--repeats", "1", "--no-pairs"])
        assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(FAMILIES)

    def test_an_unknown_family(self) -> None:
        with pytest.raises(SystemExit):
            bench.main(["scale", "spiral", "--no-pairs"])

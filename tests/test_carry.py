"""CARRY: for each operator an affine map that passes it, in both directions, and one that must not."""

import pytest

from normfuse.passes.carry import CARRY
from normfuse.pipeline import optimize
from tests.carrying import Case, ints, positive, up
from tests.carrying_places import PLACES
from tests.carrying_values import VALUES
from tests.parity import build, fold, ops, reasons_of, refuse

CASES = VALUES + PLACES
PASSING = [case for case in CASES if not case.reason]
REFUSED = [case for case in CASES if case.reason]


def affine_node(case: Case) -> str:
    """The operator that computes `a`."""
    return str(next(node.op_type for node in case.model().graph.node if "a" in node.output))


@pytest.mark.parametrize("case", PASSING, ids=str)
def test_the_map_passes_and_the_affine_node_goes(case: Case) -> None:
    model = case.model()
    after = fold(model, ignore=[*case.without, "block", "lower"]).model
    expected = ops(model)
    expected.subtract([affine_node(case), *case.also])
    assert +expected == ops(after)


@pytest.mark.parametrize("case", PASSING, ids=str)
def test_it_is_the_row_that_lets_it_pass(case: Case) -> None:
    model = case.model()
    after = optimize(model, verify=False, ignore=[*case.without, case.rule, "block", "lower"]).model
    assert ops(after)[affine_node(case)] == ops(model)[affine_node(case)]


@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_the_map_stays_and_the_reason_is_said(case: Case) -> None:
    model = case.model()
    result = fold(model, ignore=[*case.without, "block", "lower"])
    expected = ops(model)
    expected.subtract(case.also)
    assert +expected == ops(result.model)
    assert case.reason in reasons_of(result)


@pytest.mark.parametrize("rule", [rule.name for rule in CARRY])
def test_every_row_has_a_case_that_passes_and_one_that_is_refused(rule: str) -> None:
    assert any(case.rule == rule for case in PASSING)
    assert any(case.rule == rule for case in REFUSED)


@pytest.mark.parametrize(
    "operator", ["Abs", "Clip", "Elu", "Erf", "Exp", "HardSigmoid", "HardSwish", "Sigmoid", "Tanh"]
)
def test_no_scale_passes_what_is_not_homogeneous(operator: str) -> None:
    model = build(
        f"(float[N,3] x) => (float[N,4] a) {{ c = MatMul(x, w) t = {operator}(c) a = Mul(t, k) }}",
        w=(3, 4),
        k=positive(4),
    )
    refuse(model, f"no rule moves it from behind {operator} 't'")


def test_a_pad_that_moves_the_channels_by_one_is_refused() -> None:
    """As many channels as before, each another one; the oracle runs no negative pads."""
    case = up("pad", "", "t = Pad(c, p)", "Mul(t, k)", p=ints(0, 1, 0, 0, 0, -1, 0, 0), k=(6, 1, 1))
    result = optimize(case.model(), verify=False)
    assert ops(result.model) == ops(case.model())
    assert "it pads the channels" in reasons_of(result)

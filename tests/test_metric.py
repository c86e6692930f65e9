"""The metric: what pools, what does not hide, and what is no error."""

from typing import Any

import numpy as np
import pytest

from normfuse.metric import PRECISIONS, OutputParity, Tally

FLOAT = PRECISIONS["float32"]
UNIT = 2.0**-24


def truth(scale: float = 1.0, shape: tuple[int, ...] = (2, 6, 50), seed: int = 0) -> Any:
    return scale * np.random.default_rng(seed).standard_normal(shape)


def off(y: Any, relative: float, seed: int) -> Any:
    """y with a relative error, as float32 made by a worse computer."""
    return (y * (1 + relative * np.random.default_rng(seed).standard_normal(y.shape))).astype(np.float32)


def judge(errors: dict[str, tuple[float, float]], scale: dict[str, float] | None = None) -> OutputParity:
    """The verdict where, by family, the original and the candidate have these relative errors."""
    tally = Tally("y", "float32", FLOAT)
    for family, (reference, candidate) in errors.items():
        y = truth((scale or {}).get(family, 1.0))
        tally.add(family, y, off(y, reference, 1), off(y, candidate, 2))
    return tally.verdict("disabled")


def test_the_ratio_is_that_of_the_errors() -> None:
    verdict = judge({"a": (1e-5, 3e-5)})
    assert verdict.ratio == pytest.approx(3, rel=0.2)
    assert verdict.reference == pytest.approx(1e-5, rel=0.1)
    assert not verdict.passed
    assert judge({"a": (1e-5, 1.5e-5)}).passed


def test_a_family_of_large_scale_or_error_does_not_hide_another() -> None:
    many = {f"f{i}": (1e-6, 1e-6) for i in range(8)}
    assert judge(many | {"ill": (1e-2, 1e-2)}).passed
    verdict = judge(many | {"ill": (1e-2, 1e-2), "bad": (1e-6, 2e-5)}, {"ill": 1e4, "bad": 1e-3})
    assert not verdict.passed
    assert verdict.family == "bad"


def test_errors_below_a_few_roundings_are_none() -> None:
    assert judge({"a": (0.0, 4 * UNIT)}).ratio < 1.2


def test_the_ceiling_binds_only_where_the_original_leaves_room() -> None:
    families = {f"f{i}": (1e-6, 1e-6) for i in range(9)}
    assert judge(families | {"g": (9e-5, 1.2e-4)}).passed
    assert "above 0.0001" in judge({"g": (4e-5, 1.1e-4)} | {f"f{i}": (1e-3, 1e-3) for i in range(40)}).reason


def test_what_moved_inputs_explain_is_no_error() -> None:
    y = truth()
    tally = Tally("y", "float32", FLOAT)
    tally.add("a", y, off(y, 0, 1), off(y, 1e-5, 2), [off(y, 1e-5, 3)])
    assert tally.verdict("disabled").ratio == pytest.approx(1, rel=0.1)
    assert tally.conditioning("a") == pytest.approx(1e-5, rel=0.1)


@pytest.mark.parametrize(
    ("family", "moved", "passes"),
    [("scale 1e2", 0.02, True), ("scale 1e2", 0.002, False), ("scale 1", 0.02, False), ("data", 0.02, False)],
)
def test_where_one_ulp_decides_nothing_is_proved(family: str, moved: float, passes: bool) -> None:
    y = truth()
    tally = Tally("y", "float32", FLOAT)
    for name in ("batch 3", "mean 30"):
        tally.add(name, y, off(y, 1e-6, 1), off(y, 1e-6, 2), [off(y, 1e-6, 3)])
    tally.add(family, y, off(y, 1e-6, 1), off(y, 0.5, 2), [off(y, moved, 3)])
    assert tally.verdict("disabled").passed is passes
    assert tally.lost(family) is passes


def test_one_of_several_draws_of_moved_inputs_shows_a_jump() -> None:
    y = truth()
    tally = Tally("y", "float32", FLOAT)
    tally.add("scale 1e2", y, off(y, 1e-6, 1), off(y, 0.5, 2), [off(y, 1e-6, 3)])
    tally.add_noise("scale 1e2", 1, y, off(y, 1e-6, 1), off(y, 2e-6, 4))
    assert tally.suspicious("scale 1e2")
    assert not tally.verdict("disabled").passed
    tally.add_noise("scale 1e2", 2, y, off(y, 1e-6, 1), off(y, 0.3, 5))
    assert not tally.suspicious("scale 1e2")
    assert tally.lost("scale 1e2")
    assert tally.verdict("disabled").passed


def test_the_coarser_the_dtype_the_more_one_ulp_may_move() -> None:
    y = truth()
    for dtype, lost in (("float32", True), ("float16", False)):
        tally = Tally("y", dtype, PRECISIONS[dtype])
        tally.add("scale 1e2", y, y, y, [off(y, 0.015, 3)])
        assert tally.lost("scale 1e2") is lost


def test_one_bad_channel_is_seen() -> None:
    y = truth(shape=(1, 400, 50))
    candidate = off(y, 1e-6, 2)
    candidate[:, 7] = off(y[:, 7], 2e-5, 3)
    tally = Tally("y", "float32", FLOAT)
    tally.add("a", y, off(y, 1e-6, 1), candidate)
    verdict = tally.verdict("disabled")
    assert verdict.ratio < 2
    assert verdict.channel_ratio > 4
    assert not verdict.passed


def test_an_absolute_error_is_allowed_to_a_sigmoid() -> None:
    y = np.full((4, 100), 1e-6)
    candidate = (y + 5e-8).astype(np.float32)
    for absolute in (True, False):
        tally = Tally("y", "float32", FLOAT, absolute=absolute)
        tally.add("a", y, y.astype(np.float32), candidate)
        assert tally.verdict("disabled").passed is absolute


def test_infinities_must_be_those_of_the_original_or_the_truth() -> None:
    y = np.array([[1.0, 2.0, 3.0]])
    overflown = np.array([[1, np.inf, 3]], np.float32)
    for candidate, passes in ((overflown, True), (y.astype(np.float32), True), (-overflown, False)):
        tally = Tally("y", "float32", FLOAT)
        tally.add("a", y, overflown, candidate)
        assert tally.verdict("disabled").passed is passes


def test_an_output_without_a_finite_element_is_blind() -> None:
    strange = np.array([[np.nan, np.inf]], np.float32)
    tally = Tally("y", "float32", FLOAT)
    tally.add("empty", strange[:0], strange[:0], strange[:0])
    assert not tally.blind  # it has no elements, of which each could be compared
    tally.add("a", strange, strange, strange)
    assert tally.blind
    tally.add("b", *[np.array([[np.nan, 1.0]], np.float32)] * 3)
    assert not tally.blind


def test_doubt_needs_an_error_that_conditioning_does_not_explain() -> None:
    y = truth()
    plain, moved = off(y, 1e-2, 1), off(y, 1e-2, 2)
    for noise, doubtful in (([plain], True), ([moved], False)):
        tally = Tally("y", "float32", FLOAT)
        tally.add("a", y, plain, plain, noise)
        assert tally.doubtful(["a"]) is doubtful
        assert not tally.doubtful(["other"])


def test_integers_may_differ_where_the_original_does() -> None:
    y = np.arange(2000).reshape(2, 1000)
    for flips, passes in ((0, True), (2, True), (3, False)):
        candidate = y.copy()
        candidate[0, :flips] += 1
        tally = Tally("y", "int64", FLOAT)
        tally.add("a", y, y, candidate)
        verdict = tally.verdict("disabled")
        assert verdict.passed is passes
        assert (verdict.ratio <= 2) is passes


def test_spread_and_stillness() -> None:
    tally = Tally("y", "float32", FLOAT)
    for seed in range(3):
        y = 5 + truth(2.0, (10, 100), seed)
        tally.add("a", y, y.astype(np.float32), y.astype(np.float32))
    assert tally.spread == pytest.approx(2, rel=0.1)
    assert not tally.still
    still = Tally("y", "float32", FLOAT)
    still.add("a", np.ones((2, 2)), np.ones((2, 2), np.float32), np.ones((2, 2), np.float32))
    assert still.still

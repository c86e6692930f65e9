"""Exact sums, and what the estimators make of the moments of batches."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from normfuse.population import ESTIMATORS, Estimator, Moments, Sums
from normfuse.superaccumulator import Superaccumulator
from tests.parity import Array, rng

NUMBERS = st.floats(allow_nan=False, allow_infinity=False, width=64)


def moments(x: Array) -> Moments:
    """Those of (m, C)."""
    mean = x.mean(0)
    return Moments(len(x), mean, np.asarray(((x - mean) ** 2).sum(0)))


def summed(batches: list[Array], estimator: Estimator) -> Sums:
    sums = Sums(estimator, batches[0].shape[1])
    for batch in batches:
        sums.add(moments(batch))
    return sums


@pytest.fixture
def batches() -> list[Array]:
    """Uneven ones, whose means are large against their deviations."""
    draw = rng("batches")
    return [draw.normal(1e4 + 3 * size, 0.5, (size, 3)) for size in (7, 2, 5, 11)]


class TestSuperaccumulator:
    @given(st.lists(NUMBERS, max_size=20))
    def test_no_number_is_rounded(self, numbers: list[float]) -> None:
        total = Superaccumulator(1)
        for number in numbers:
            total.add(np.array([number]))
        assert total.exact() == [sum(map(Fraction, numbers))]

    @given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=9), st.integers(0, 9))
    def test_grouping_does_not_matter(self, rows: list[tuple[float, float]], cut: int) -> None:
        whole, first, second = (Superaccumulator(2) for _ in range(3))
        for row in rows:
            whole.add(np.array(row))
        for part, accumulator in ((rows[:cut], second), (rows[cut:], first)):
            for row in reversed(part):
                accumulator.add(np.array(row))
        first.merge(second)
        assert first.exact() == whole.exact()

    @pytest.mark.parametrize("number", [5e-324, -2.2250738585072014e-308, 1.7976931348623157e308, 0.0, -0.0])
    def test_the_ends_of_the_range(self, number: float) -> None:
        total = Superaccumulator(1)
        total.add(np.array([number]))
        total.add(np.array([number]))
        assert total.exact() == [2 * Fraction(number)]

    @pytest.mark.parametrize("number", [np.inf, np.nan])
    def test_what_has_no_sum_is_an_error(self, number: float) -> None:
        with pytest.raises(ValueError, match="only finite numbers"):
            Superaccumulator(1).add(np.array([number]))


class TestSums:
    def test_mean_is_the_mean_over_batches(self, batches: list[Array]) -> None:
        found = summed(batches, "mean").statistics()
        np.testing.assert_allclose(found.mean, np.mean([batch.mean(0) for batch in batches], 0), rtol=1e-15)
        np.testing.assert_allclose(found.variance, np.mean([batch.var(0, ddof=1) for batch in batches], 0), rtol=1e-11)

    def test_what_mean_leaves_out(self) -> None:
        """Samples of two elements that are alike: their means have a variance of 9, and 1 between the elements."""
        draw = rng("alike")
        batches = [draw.normal(draw.normal(0, 3), 1, (40, 1)) for _ in range(500)]
        found = summed(batches, "mean").statistics()
        assert found.missing is not None
        assert found.variance[0] == pytest.approx(1, rel=0.05)
        assert found.missing[0] == pytest.approx(np.var([one.mean() for one in batches], ddof=1) - 1 / 40, rel=1e-2)
        independent = summed([draw.normal(0, 1, (4, 1)) for _ in range(500)], "mean").statistics()
        assert independent.missing is not None
        assert independent.missing[0] < 0.05
        assert summed(batches[:1], "mean").statistics().missing is None
        assert summed(batches, "pooled").statistics().missing is None

    def test_pooled_is_that_of_all_elements(self, batches: list[Array]) -> None:
        every, found = np.concatenate(batches), summed(batches, "pooled").statistics()
        np.testing.assert_allclose(found.mean, every.mean(0), rtol=1e-15)
        np.testing.assert_allclose(found.variance, every.var(0, ddof=1), rtol=1e-11)

    def test_pooled_does_not_cancel(self) -> None:
        """Two batches of one element each: their squares agree in all digits that a float64 has."""
        found = summed([np.array([[1e9]]), np.array([[1e9 + 1e-6]])], "pooled").statistics()
        assert found.variance[0] == pytest.approx((1e9 + 1e-6 - 1e9) ** 2 / 2, rel=1e-12)

    @pytest.mark.parametrize("estimator", ESTIMATORS)
    def test_who_sums_up_what_changes_no_bit(self, estimator: Estimator, batches: list[Array]) -> None:
        whole = summed(batches, estimator)
        parts = [summed(batches[2:], estimator), summed(batches[1::-1], estimator)]
        parts[0].merge(parts[1])
        assert (parts[0].batches, parts[0].count) == (4, 25)
        for found, expected in zip(_arrays(parts[0]), _arrays(whole), strict=True):
            np.testing.assert_array_equal(found, expected, strict=True)

    def test_a_constant_channel_has_no_variance(self) -> None:
        found = summed([np.full((3, 1), 0.1), np.full((4, 1), 0.1)], "pooled").statistics()
        assert found.variance[0] >= 0
        assert found.variance[0] < 1e-30


def _arrays(sums: Sums) -> tuple[Array, Array]:
    found = sums.statistics()
    return found.mean, found.variance

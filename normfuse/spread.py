"""Medians and how sure they are, for any distribution: intervals by order statistics.

With n values, the k-th smallest and the k-th largest enclose the median with probability 1 − 2 · P(B(n, ½) < k).
"""

import math

import numpy as np

from normfuse.runtime import Array

CONFIDENCE = 0.95
"""What the intervals are to reach; few values reach less, and `interval_ranks` tells how much."""

Interval = tuple[float, float]


def interval_ranks(count: int) -> tuple[int, float]:
    """Which order statistics enclose a median: k, counted from 1 from either end, and the probability that they do.

    P(x₍ₖ₎ ≤ median ≤ x₍ₙ₊₁₋ₖ₎) = 1 − 2 · P(B(n, ½) < k); the largest k that reaches `CONFIDENCE`, 1 where none does.
    """
    below, rank, reached = 0.0, 1, 1.0 - 2.0 * 0.5**count
    for k in range(1, (count + 1) // 2 + 1):
        below += math.comb(count, k - 1) * 0.5**count
        if 1.0 - 2.0 * below < CONFIDENCE:
            break
        rank, reached = k, 1.0 - 2.0 * below
    return rank, max(reached, 0.0)


def median_interval(values: Array) -> tuple[float, Interval, Interval]:
    """The median, the quartiles, and the confidence interval of the median."""
    low, median, high = (float(value) for value in np.percentile(values, (25, 50, 75)))
    rank, _ = interval_ranks(len(values))
    ordered = np.sort(values)
    return median, (low, high), (float(ordered[rank - 1]), float(ordered[-rank]))

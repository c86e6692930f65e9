"""Population statistics of a BatchNormalization from the moments of batches: `Sums`, with two estimators.

A batch B has m elements per channel (N times the spatial size), their mean μ_B and M2_B = Σ (x − μ_B)²:

| estimator | E[x] | Var[x] |
|---|---|---|
| `mean` | E_B[μ_B] | E_B[M2_B / (m − 1)], which is m/(m − 1) · E_B[σ²_B] where all batches are of one size |
| `pooled` | Σ m μ_B / n, n = Σ m | M2 / (n − 1), M2 = Σ M2_B + Σ m μ_B² − (Σ m μ_B)² / n |

`mean` is that of S. Ioffe and C. Szegedy, "Batch Normalization", 2015, arXiv:1502.03167, algorithm 2, line 10; every
batch counts the same and has its own m, as in torch.optim.swa_utils.update_bn with momentum=None. Between batches the
means differ, and that part of the variance it leaves out: with independent samples it is right in the mean all the
same, because m/(m − 1) makes up for it. But the pixels of one image are alike, so with few images in a batch it is too
small; `Statistics.missing` says by how much.

`pooled` has the moments of all elements together, whatever the batches are: what T. F. Chan, G. H. Golub and R. J.
LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979, merge pair by pair,

    M2 = M2_a + M2_b + (μ_b − μ_a)² · n_a n_b / (n_a + n_b),

which is associative as long as nothing is rounded. Nothing is: all sums are exact (`normfuse.superaccumulator`), and
the results are rounded once, to float64. So they do not depend on the order of the batches, nor on who summed them up.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

import numpy as np

from normfuse.superaccumulator import Float64, Superaccumulator

Estimator = Literal["mean", "pooled"]
ESTIMATORS: tuple[Estimator, ...] = ("mean", "pooled")

_SPLIT = 134217729.0
"""2²⁷ + 1: cuts a float64 into two halves (T. J. Dekker, "A floating-point technique", 1971)."""


@dataclass(frozen=True, slots=True)
class Moments:
    """The moments of one batch.

    Attributes:
        count: m, the elements per channel.
        mean: μ_B, (C,) float64.
        m2: Σ (x − μ_B)², (C,) float64.
    """

    count: int
    mean: Float64
    m2: Float64


@dataclass(frozen=True, slots=True)
class Statistics:
    """What a BatchNormalization normalizes by.

    Attributes:
        mean: E[x], (C,) float64.
        variance: Var[x], (C,) float64.
        missing: what the estimator `mean` leaves out of the variance because the samples of a batch are alike, (C,)
            float64: Var_B[μ_B] less what it would be were they independent, Var[x]/m. None where that is not known.
    """

    mean: Float64
    variance: Float64
    missing: Float64 | None = None


@dataclass(slots=True)
class Sums:
    """Exact sums over batches, from which an estimator makes the statistics of one BatchNormalization.

    Attributes:
        estimator: `mean` or `pooled`.
        channels: C.
        batches: how many were added.
        count: elements per channel in all of them.
        first: Σ μ_B, or Σ m μ_B.
        second: Σ M2_B / (m − 1), or Σ (M2_B + m μ_B²).
        third: Σ μ_B², or nothing.
    """

    estimator: Estimator
    channels: int
    batches: int = 0
    count: int = 0
    first: Superaccumulator = field(init=False)
    second: Superaccumulator = field(init=False)
    third: Superaccumulator = field(init=False)

    def __post_init__(self) -> None:
        self.first = Superaccumulator(self.channels)
        self.second = Superaccumulator(self.channels)
        self.third = Superaccumulator(self.channels)

    def add(self, moments: Moments) -> None:
        """Adds a batch; `mean` needs two elements per channel.

        Raises:
            ValueError: a moment is not finite.
        """
        if self.estimator == "mean":
            self.first.add(moments.mean)
            self.second.add(moments.m2 / (moments.count - 1))
            for term in _product(moments.mean, moments.mean):
                self.third.add(term)
        else:
            count = np.full_like(moments.mean, moments.count)
            for term in _product(count, moments.mean):
                self.first.add(term)
            squares = [term for part in _product(moments.mean, moments.mean) for term in _product(count, part)]
            for term in (moments.m2, *squares):
                self.second.add(term)
        self.batches += 1
        self.count += moments.count

    def merge(self, other: "Sums") -> None:
        """Adds the batches of another process."""
        self.first.merge(other.first)
        self.second.merge(other.second)
        self.third.merge(other.third)
        self.batches += other.batches
        self.count += other.count

    def statistics(self) -> Statistics:
        """What the estimator makes of the batches.

        Raises:
            ValueError: there is no batch, or all of them together have one element per channel.
        """
        if self.count < 2:
            raise ValueError("less than two elements per channel have no variance")
        first, second = self.first.exact(), self.second.exact()
        n, batches = self.count, self.batches
        if self.estimator == "mean":
            mean, variance = _rounded([s / batches for s in first]), _rounded([s / batches for s in second])
            if batches == 1:
                return Statistics(mean, variance)
            scatter = [(s - t * t / batches) / (batches - 1) for s, t in zip(self.third.exact(), first, strict=True)]
            return Statistics(mean, variance, np.maximum(_rounded(scatter) - variance * batches / n, 0))
        m2 = [squares - total * total / n for total, squares in zip(first, second, strict=True)]
        # μ_B and M2_B were rounded before they were added, which may leave a tiny negative rest
        return Statistics(
            _rounded([total / n for total in first]), _rounded([max(x, Fraction(0)) / (n - 1) for x in m2])
        )


def _product(a: Float64, b: Float64) -> tuple[Float64, Float64]:
    """a · b as the sum of two float64, exactly unless it under- or overflows (Dekker, 1971)."""
    product = a * b
    high_a, low_a = _halves(a)
    high_b, low_b = _halves(b)
    return product, ((high_a * high_b - product) + high_a * low_b + low_a * high_b) + low_a * low_b


def _halves(x: Float64) -> tuple[Float64, Float64]:
    scaled = _SPLIT * x
    high = scaled - (scaled - x)
    return high, x - high


def _rounded(fractions: Sequence[Fraction]) -> Float64:
    return np.array([float(one) for one in fractions], np.float64)

"""`Superaccumulator`: sums of float64 without any rounding, so that they do not depend on order or grouping.

A sum is held as one long fixed-point integer per channel, in digits of 32 bits that are not carried:

    Σ x  =  2^−1126 · Σ_j digit_j · 2^(32 j)

Each float64 is a whole number of 53 bits times a power of two, and falls into three digits at most. An int64 digit
takes 2³¹ of them before it could overflow. This is the small superaccumulator of R. M. Neal, "Fast exact summation
using small and large superaccumulators", 2015, arXiv:1505.05571.
"""

from fractions import Fraction

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

_SCALE = 1126
"""The lowest bit of the smallest subnormal number, once its mantissa is 53 bits long, stands for 2^−1126."""

_WIDTH = 32
DIGITS = (1024 - 53 + _SCALE) // _WIDTH + 3
"""Digits that hold any float64."""

MOST = 1 << 30
"""So many numbers may be added: half of what a digit can take."""


class Superaccumulator:
    """The exact sum of vectors.

    Attributes:
        digits: (C, DIGITS) int64.
    """

    __slots__ = ("digits",)

    def __init__(self, channels: int, digits: Int64 | None = None) -> None:
        self.digits: Int64 = np.zeros((channels, DIGITS), np.int64) if digits is None else digits

    def add(self, vector: Float64) -> None:
        """Adds a vector of (C,) float64, all of them finite.

        Raises:
            ValueError: one is not finite.
        """
        if not np.all(np.isfinite(vector)):
            raise ValueError("only finite numbers have a sum")
        mantissa, exponent = np.frexp(vector)
        whole = np.ldexp(mantissa, 53).astype(np.int64)
        place = exponent.astype(np.int64) - 53 + _SCALE
        place[whole == 0] = 0
        digit, shift = place // _WIDTH, (place % _WIDTH).astype(np.uint64)
        size, sign = np.abs(whole).astype(np.uint64), np.sign(whole)
        low_bits, width = np.uint64(2**_WIDTH - 1), np.uint64(_WIDTH)
        above = size >> (width - shift)  # what is left once the lowest digit is cut off
        channels = np.arange(len(vector))
        for offset, part in enumerate(((size << shift) & low_bits, above & low_bits, above >> width)):
            self.digits[channels, digit + offset] += sign * part.astype(np.int64)

    def merge(self, other: "Superaccumulator") -> None:
        """Adds what another one has summed up."""
        self.digits += other.digits

    def exact(self) -> list[Fraction]:
        """The sums, one per channel."""
        unit = Fraction(1, 2**_SCALE)
        return [
            unit * sum(int(row[digit]) << (_WIDTH * int(digit)) for digit in np.flatnonzero(row)) for row in self.digits
        ]

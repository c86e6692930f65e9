"""How an affine map along one axis looks after a Reshape: `through_dims`.

An axis is found again by what lies before it and behind it: where the dimensions behind two axes have the same product,
the axes end at the same element.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Self

import numpy as np

from normfuse.affine import Affine, Float64
from normfuse.passes.access import Dim, RefusedError

TIMES = "·"
"""Joins the factors in the name of a dimension that is a product of others; exporters use other signs."""


@dataclass(frozen=True, slots=True)
class Extent:
    """A product of dimensions: a number times symbols."""

    number: int
    symbols: tuple[tuple[str, int], ...]

    @classmethod
    def of(cls, dims: Sequence[Dim]) -> Self | None:
        """The product of dimensions, None where one of them is not known."""
        if any(dim is None for dim in dims):
            return None
        factors = [factor for dim in dims for factor in str(dim).split(TIMES)]
        numbers = [int(factor) for factor in factors if factor.lstrip("-").isdecimal()]
        symbols = Counter(factor for factor in factors if not factor.lstrip("-").isdecimal())
        return cls(math.prod(numbers), tuple(sorted(symbols.items())))

    @property
    def dim(self) -> Dim:
        """It as one dimension: a size, a symbol, or a product such as `2·batch·height`."""
        symbols = [symbol for symbol, power in self.symbols for _ in range(power)]
        if not symbols:
            return self.number
        return TIMES.join([*([str(self.number)] if self.number != 1 else []), *symbols])


def _ratio(above: Extent | None, below: Extent | None) -> Fraction | None:
    """The quotient of two products of dimensions where it is a known number."""
    if above is None or below is None or above.symbols != below.symbols or 0 in (above.number, below.number):
        return None
    return Fraction(above.number, below.number)


def through_dims(affine: Affine, here: Sequence[Dim], there: Sequence[Dim]) -> Affine:
    """The same map of the same elements laid out in other dimensions.

    Raises:
        RefusedError: the channels cannot be found again, or the map differs among channels that end up on other axes.
    """
    axis, size = affine.axis, affine.size
    if axis is None:
        return affine
    for target, dim in enumerate(there):
        if not isinstance(dim, int) or dim == 1:
            continue
        inner = _ratio(Extent.of(here[axis + 1 :]), Extent.of(there[target + 1 :]))
        if inner is None:
            outer = _ratio(Extent.of(here[:axis]), Extent.of(there[:target]))
            if outer is None:
                continue
            inner = Fraction(dim) / (size * outer)
        scale, shift = (_laid_out(vector, dim, inner) for vector in (affine.scale, affine.shift))
        if scale is not None and shift is not None:
            return Affine.of(target, scale, shift)
    raise RefusedError("the Reshape does not keep the channels on an axis of their own")


def _laid_out(vector: Float64, dim: int, inner: Fraction) -> Float64 | None:
    """What each index of an axis of `dim` holds where `inner` of its steps, or one over a number, are one channel.

    A step that spans several channels needs them to agree, and so does an index that is met again after the last one.
    """
    if inner > dim:
        return None
    steps = np.repeat(vector, inner.numerator)
    if steps.size % inner.denominator:
        return None
    spans = steps.reshape(-1, inner.denominator)
    period = math.gcd(len(spans), dim)
    rounds = spans[:, 0].reshape(-1, period)
    if np.any(spans != spans[:, :1]) or np.any(rounds != rounds[:1]):
        return None
    return np.tile(rounds[0], dim // period)

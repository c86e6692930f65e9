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
        symbols = Counter(dim for dim in dims if isinstance(dim, str))
        return cls(math.prod(dim for dim in dims if isinstance(dim, int)), tuple(sorted(symbols.items())))


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
        merged = _merge(affine, dim, inner) if inner >= 1 else _split(affine, dim, 1 / inner)
        if merged is None and inner == 1:
            merged = _split(affine, dim, Fraction(1))
        if merged is not None:
            return merged.along(target)
    raise RefusedError("the Reshape does not keep the channels on an axis of their own")


def _merge(affine: Affine, dim: int, inner: Fraction) -> Affine | None:
    """Channels that become one axis of `dim` with `inner` elements each behind them and whole copies before them."""
    if inner.denominator != 1 or dim % (affine.size * inner.numerator):
        return None
    copies = dim // (affine.size * inner.numerator)

    def lay(vector: Float64) -> Float64:
        return np.tile(np.repeat(vector, inner.numerator), copies)

    return Affine.of(0, lay(affine.scale), lay(affine.shift))


def _split(affine: Affine, dim: int, inner: Fraction) -> Affine | None:
    """Channels (outer · dim · inner) of which only `dim` differ."""
    if inner.denominator != 1 or affine.size % (dim * inner.numerator):
        return None
    grids = [vector.reshape(-1, dim, inner.numerator) for vector in (affine.scale, affine.shift)]
    if any(np.any(grid != grid[:1, :, :1]) for grid in grids):
        return None
    return Affine.of(0, grids[0][0, :, 0], grids[1][0, :, 0])

"""`Affine`: scale and shift along one axis, in float64; what a BatchNormalization at inference is.

    y = scale · x + shift        with scale = γ / √(Var[x] + ε),  shift = β − γ · E[x] / √(Var[x] + ε)

Affine maps over the same axis are a monoid: `then` is associative, `Affine.identity()` its neutral element, and where
no scale is zero there is an inverse.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Affine:
    """y = scale · x + shift, with scale and shift constant along all axes of x but one.

    Attributes:
        axis: the axis of x that scale and shift vary along, counted from the front; None where they are the same
            everywhere.
        scale: (C,) float64, or (1,) where `axis` is None.
        shift: (C,) float64, or (1,) where `axis` is None.
    """

    axis: int | None
    scale: Float64
    shift: Float64

    def __post_init__(self) -> None:
        if self.scale.ndim != 1 or self.scale.shape != self.shift.shape:
            raise ValueError(f"scale {self.scale.shape} and shift {self.shift.shape} must be vectors of one length")
        if self.axis is None and self.scale.size != 1:
            raise ValueError(f"a map without an axis has one scale, not {self.scale.size}")

    @classmethod
    def of(cls, axis: int | None, scale: npt.ArrayLike, shift: npt.ArrayLike) -> Self:
        """Makes a map from numbers or vectors, and drops the axis where nothing varies along it."""
        scale, shift = _vector(scale), _vector(shift)
        if scale.shape != shift.shape:
            if shift.size == 1 and scale.ndim == 1:  # as `np.broadcast_arrays`, which is slow
                shift = np.full(scale.size, shift.item())
            elif scale.size == 1 and shift.ndim == 1:
                scale = np.full(shift.size, scale.item())
            else:
                scale, shift = np.broadcast_arrays(scale, shift)
        if scale.size == 0:
            return cls(None, np.ones(1), np.zeros(1))
        if axis is None or ((scale == scale[:1]).all() and (shift == shift[:1]).all()):
            return cls(None, scale[:1].copy(), shift[:1].copy())
        return cls(axis, scale.copy(), shift.copy())

    @classmethod
    def identity(cls) -> Self:
        """The map that changes nothing."""
        return cls.of(None, 1.0, 0.0)

    @classmethod
    def batch_norm(
        cls, gamma: Float64, beta: Float64, mean: Float64, variance: Float64, epsilon: float, axis: int = 1
    ) -> Self:
        """BatchNormalization with population statistics, each (C,) float64.

        Source: Ioffe and Szegedy, Batch Normalization, 2015, algorithm 2.
        """
        scale = gamma / np.sqrt(variance + epsilon)
        return cls.of(axis, scale, beta - scale * mean)

    @property
    def size(self) -> int:
        """How many channels have a scale and a shift of their own: C, or 1."""
        return self.scale.size

    @property
    def is_identity(self) -> bool:
        """Whether y = x."""
        return self.keeps_scale and self.keeps_origin

    @property
    def keeps_scale(self) -> bool:
        """Whether every scale is one."""
        return bool((self.scale == 1.0).all())

    @property
    def keeps_origin(self) -> bool:
        """Whether every shift is zero."""
        return bool((self.shift == 0.0).all())

    @property
    def is_positive(self) -> bool:
        """Whether every scale is greater than zero, so that order is kept."""
        return bool((self.scale > 0.0).all())

    @property
    def is_finite(self) -> bool:
        """Whether no scale and no shift is infinite or not a number."""
        return bool(np.isfinite(self.scale).all() and np.isfinite(self.shift).all())

    @property
    def is_invertible(self) -> bool:
        """Whether no scale is zero."""
        return bool((self.scale != 0.0).all())

    @property
    def scaling(self) -> "Affine":
        """x ↦ scale · x."""
        return Affine.of(self.axis, self.scale, 0.0)

    @property
    def shifting(self) -> "Affine":
        """x ↦ x + shift, what follows `scaling`."""
        return Affine.of(self.axis, 1.0, self.shift)

    @property
    def preshifting(self) -> "Affine":
        """x ↦ x + shift / scale, what `scaling` follows.

        Raises:
            ZeroDivisionError: a scale is zero.
        """
        if not self.is_invertible:
            raise ZeroDivisionError("a map with a zero scale cannot shift first")
        return Affine.of(self.axis, 1.0, self.shift / self.scale)

    def inverse(self) -> "Affine":
        """The map that undoes this one.

        Raises:
            ZeroDivisionError: a scale is zero.
        """
        if not self.is_invertible:
            raise ZeroDivisionError("a map with a zero scale has no inverse")
        return Affine.of(self.axis, 1.0 / self.scale, -self.shift / self.scale)

    def meets(self, other: "Affine") -> bool:
        """Whether the two vary along the same axis, so that `then` is an `Affine` again."""
        return self.axis is None or other.axis is None or (self.axis == other.axis and self.size == other.size)

    def then(self, other: "Affine") -> "Affine":
        """other(self(x)).

        Raises:
            ValueError: the two vary along different axes.
        """
        if not self.meets(other):
            raise ValueError(f"maps along axis {self.axis} and axis {other.axis} do not compose to one along an axis")
        axis = other.axis if self.axis is None else self.axis
        return Affine.of(axis, other.scale * self.scale, other.scale * self.shift + other.shift)

    def along(self, axis: int) -> "Affine":
        """The same scales and shifts along another axis."""
        return self if self.axis is None else Affine(axis, self.scale, self.shift)

    def spread(self, size: int) -> tuple[Float64, Float64]:
        """Scale and shift for each of `size` channels, two (size,) float64."""
        return np.broadcast_to(self.scale, size), np.broadcast_to(self.shift, size)

    def aligned(self, rank: int) -> tuple[Float64, Float64]:
        """Scale and shift shaped to broadcast against x of that rank."""
        shape = [1] * rank
        if self.axis is not None:
            shape[self.axis] = self.size
        return self.scale.reshape(shape), self.shift.reshape(shape)

    def __call__(self, x: Float64) -> Float64:
        """The map itself: x (…, C, …) float64 with C at `axis`."""
        scale, shift = self.aligned(x.ndim)
        return scale * x + shift


def _vector(one: npt.ArrayLike) -> Float64:
    """A number or vector as a vector of float64."""
    array = np.asarray(one, np.float64)
    return array if array.ndim else array.reshape(1)

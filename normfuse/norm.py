"""`Standardize`: the part of a normalization that has statistics of its input, with its float64 reference.

    y = (x − μ_S) / σ_S        σ_S = (α · E_S[(x − μ_S)²] + ε)^½

Every normalization is an affine map behind one of these, and they differ in the set S that shares μ and σ:

    BatchNorm (training)   N and spatial, per channel
    BatchNorm (inference)  nothing: an `Affine` alone
    LayerNorm              the trailing axes; or C and spatial, per sample
    RMSNorm                as LayerNorm, μ = 0
    InstanceNorm           spatial, per sample and channel
    AdaIN, AdaLN           as InstanceNorm, LayerNorm; the affine map is computed
    GroupNorm              spatial and a group of channels, per sample
    LRN                    a window of channels, μ = 0, σ = (k + α · E_S[x²])^β
"""

from dataclasses import dataclass, replace
from typing import Literal, Self

import numpy as np
import onnx_ir as ir

from normfuse.affine import Float64

Place = Literal["inside", "outside", "clamp"]
"""Where ε stands: (m + ε)^e, m^e + ε, or max(m^e, ε)."""


@dataclass(frozen=True, slots=True)
class Standardize:
    """(x − μ_S) / σ_S, with S a set of positions around each element of x.

    With d = x − μ_S (or d = x), m = α · Σ_S |d|^p / (n − ddof) (or without the division), n = |S|, the divisor is
    (m + ε)^e, m^e + ε or max(m^e, ε).

    Attributes:
        axes: the axes that S extends over, in order, counted from the front.
        epsilon: ε; k of an LRN.
        place: where ε stands.
        centred: whether the mean over S is subtracted.
        groups: how many groups the axis `channel`, one of `axes`, is cut into; None where it is not.
        channel: the axis that is cut into groups or windows; the channels of (N, C, *spatial).
        window: LRN: how many channels before and after its own each one sees, zeros beyond the border; `axes` is then
            (channel,).
        total: whether m is the sum over S instead of the mean.
        ddof: what n is reduced by: 0, or 1 for the unbiased variance.
        order: p: 2, or 1 for an L1 norm.
        alpha: α; 1 but for LRN.
        exponent: e; ½ but for LRN and L1 norms.
        dtype: the dtype that the statistics are computed in; None for that of x.
        cancels: whether the model computes the variance as E[x²] − E[x]², which loses it at large means.
    """

    axes: tuple[int, ...]
    epsilon: float = 0.0
    place: Place = "inside"
    centred: bool = True
    groups: int | None = None
    channel: int = 1
    window: tuple[int, int] | None = None
    total: bool = False
    ddof: int = 0
    order: int = 2
    alpha: float = 1.0
    exponent: float = 0.5
    dtype: ir.DataType | None = None
    cancels: bool = False

    def __post_init__(self) -> None:
        if not self.axes or list(self.axes) != sorted(set(self.axes)) or self.axes[0] < 0:
            raise ValueError(f"axes {self.axes} must be increasing and not negative")
        if self.groups is not None and self.channel not in self.axes:
            raise ValueError("the axis that is cut into groups must be among the axes")
        if self.window is not None and self.axes != (self.channel,):
            raise ValueError("a window extends over the channels alone")

    @classmethod
    def batch_norm(cls, rank: int, epsilon: float = 1e-5) -> Self:
        """BatchNorm with the statistics of the batch (Ioffe and Szegedy, 2015): x (N, C, *spatial) of that rank."""
        return cls((0, *range(2, rank)), epsilon)

    @classmethod
    def layer_norm(cls, axes: tuple[int, ...], epsilon: float = 1e-5) -> Self:
        """LayerNorm (Ba, Kiros and Hinton, 2016) over some axes."""
        return cls(axes, epsilon)

    @classmethod
    def rms_norm(cls, axes: tuple[int, ...], epsilon: float = 1e-5) -> Self:
        """RMSNorm (Zhang and Sennrich, 2019) over some axes."""
        return cls(axes, epsilon, centred=False)

    @classmethod
    def instance_norm(cls, rank: int, epsilon: float = 1e-5) -> Self:
        """InstanceNorm (Ulyanov, Vedaldi and Lempitsky, 2016) of x (N, C, *spatial) of that rank."""
        return cls(tuple(range(2, rank)), epsilon)

    @classmethod
    def group_norm(cls, rank: int, groups: int, epsilon: float = 1e-5) -> Self:
        """GroupNorm (Wu and He, 2018) of x (N, C, *spatial) of that rank."""
        return cls(tuple(range(1, rank)), epsilon, groups=groups)

    @classmethod
    def local_response(cls, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0) -> Self:
        """LRN (Krizhevsky, Sutskever and Hinton, 2012) with the window of ONNX: ⌊(size − 1) / 2⌋ channels before."""
        window = ((size - 1) // 2, size // 2)
        return cls((1,), bias, centred=False, window=window, alpha=alpha, exponent=beta)

    @classmethod
    def lp_norm(cls, axes: tuple[int, ...], order: int = 2, epsilon: float = 0.0) -> Self:
        """x / max(‖x‖_p, ε) over some axes, p 1 or 2."""
        return cls(axes, epsilon, "clamp", centred=False, total=True, order=order, exponent=1.0 / order)

    @property
    def size(self) -> int | None:
        """The length of the window of an LRN."""
        return None if self.window is None else sum(self.window) + 1

    def name(self, rank: int) -> str:
        """What the field calls it, for x of that rank: `LayerNorm`, `RMSNorm`, `InstanceNorm`, `GroupNorm`, `LRN`."""
        spatial = tuple(range(2, rank))
        if self.window is not None:
            return "LRN"
        if self.total:
            return f"L{self.order}Norm"
        if not self.centred:
            return "RMSNorm"
        if self.groups is not None:
            return "GroupNorm"
        if spatial and self.axes == spatial and not (rank == 3 and self.dtype is not None):
            return "InstanceNorm"
        if rank > 1 and self.axes == (0, *spatial):
            return "BatchNorm"
        return "LayerNorm"

    @property
    def formula(self) -> str:
        """The formula as one line of text."""
        data, names = "x", f"axes {', '.join(map(str, self.axes))}"
        if self.window is not None:
            names = f"{self.size} channels"
        elif self.groups is not None:
            names = f"{names} in {self.groups} groups"
        centred = f"({data} − E[x])" if self.centred else data
        spread = "Var[x]" if self.centred else ("|x|" if self.order == 1 else "x²")
        if self.centred and (self.order == 1 or self.total):
            power = "|x − E[x]|" if self.order == 1 else "(x − E[x])²"
            spread = f"{'Σ' if self.total else 'E'}[{power}]"
        elif not self.centred:
            spread = f"{'Σ' if self.total else 'E'}[{spread}]"
        elif self.ddof:
            spread = f"n/(n − {self.ddof}) · {spread}"
        if self.alpha != 1.0:
            spread = f"{self.alpha:g} · {spread}"
        return f"{centred} / {self._divisor(spread)} over {names}"

    def _divisor(self, spread: str) -> str:
        def power(text: str, compound: bool) -> str:
            if self.exponent == 0.5:
                return f"√({text})" if compound else f"√{text}"
            if self.exponent == 1.0:
                return f"({text})" if compound else text
            return f"({text})^{self.exponent:g}"

        match self.place:
            case _ if self.epsilon == 0.0:
                return power(spread, False)
            case "inside":
                return power(f"{spread} + {self.epsilon:g}", True)
            case "outside":
                return f"({power(spread, False)} + {self.epsilon:g})"
            case _:
                return f"max({power(spread, False)}, {self.epsilon:g})"

    def simplified(self, channels: int | str | None) -> "Standardize":
        """One group is no group; as many groups as channels are statistics of each channel alone."""
        if self.groups == 1:
            return replace(self, groups=None)
        if self.groups is not None and self.groups == channels:
            axes = tuple(axis for axis in self.axes if axis != self.channel)
            return replace(self, groups=None, axes=axes) if axes else self
        return self

    def count(self, dims: tuple[int | str | None, ...]) -> int | None:
        """n, the number of elements of S in x of these dimensions; None where one of them is not known."""
        if self.size is not None:
            return self.size
        sizes = [dims[axis] for axis in self.axes]
        product = 1
        for size in sizes:
            if not isinstance(size, int):
                return None
            product *= size
        return product // (self.groups or 1)

    def __call__(self, x: Float64) -> Float64:
        """The reference: x (…) float64 to y of the same shape, computed in two passes."""
        grouped, axes = self._grouped(x)
        data = grouped - grouped.mean(axes, keepdims=True) if self.centred else grouped
        powers = np.abs(data) ** self.order
        if self.window is not None:
            sums, count = self._windowed(powers), sum(self.window) + 1
        else:
            sums, count = powers.sum(axes, keepdims=True), int(np.prod([grouped.shape[axis] for axis in axes]))
        with np.errstate(divide="ignore", invalid="ignore"):
            moment = self.alpha * sums / (1 if self.total else count - self.ddof)
            match self.place:
                case "inside":
                    divisor = (moment + self.epsilon) ** self.exponent
                case "outside":
                    divisor = moment**self.exponent + self.epsilon
                case _:
                    divisor = np.maximum(moment**self.exponent, self.epsilon)
            return np.asarray((data / divisor).reshape(x.shape))

    def _grouped(self, x: Float64) -> tuple[Float64, tuple[int, ...]]:
        """x with its channels cut into groups, and the axes to reduce there."""
        if self.groups is None:
            return x, self.axes
        cut, channels = self.channel, x.shape[self.channel]
        if channels % self.groups:
            raise ValueError(f"{channels} channels cannot be cut into {self.groups} groups")
        shape = (*x.shape[:cut], self.groups, channels // self.groups, *x.shape[cut + 1 :])
        return x.reshape(shape), tuple(axis + (axis >= cut) for axis in self.axes)

    def _windowed(self, powers: Float64) -> Float64:
        """The sum over the window of each channel."""
        assert self.window is not None
        before, after = self.window
        padding = [(0, 0)] * powers.ndim
        padding[self.channel] = (before, after)
        windows = np.lib.stride_tricks.sliding_window_view(
            np.pad(powers, padding), before + after + 1, axis=self.channel
        )
        return np.asarray(windows.sum(-1))

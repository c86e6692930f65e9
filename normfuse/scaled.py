"""Large weights that are not held: `Scaled`, a product that is computed where it is read, and `Folded`, its tensor.

    W' = W · f₁ · f₂ · …        W in a file that is mapped, fᵢ float64 and constant along most axes

A fold into a weight is nearly always such a product. So what is kept of it is where W lies and the factors: nothing is
copied, several folds still round only once, and the numbers are made piece by piece when the model is written. What
is more than a product goes into an unlinked temporary file (`spilled`) and is mapped from there.
"""

import math
import mmap
import tempfile
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

LARGE = 1 << 20
"""Bytes from which on a weight that lies in a file is not held in memory."""

_PIECE = 1 << 16
"""Elements of W' that are computed at a time: their float64 fits a processor's second cache."""

Float64 = npt.NDArray[np.float64]


class Scaled(np.lib.mixins.NDArrayOperatorsMixin):
    """W · f₁ · f₂ · … in float64, computed where it is read.

    It is an array for numpy: a product with something that broadcasts to it, and a reshape, stay unread; whatever else
    is asked of it is asked of the array itself.

    Attributes:
        factors: float64 arrays that are broadcast to the shape of W, multiplied one after another.
        shape: the dimensions.

    Example:
        >>> twice = Scaled(np.float32([[1, 2], [3, 4]])) * np.array([2.0, 0.5])
        >>> type(twice).__name__, twice.shape, np.asarray(twice).tolist()
        ('Scaled', (2, 2), [[2.0, 1.0], [6.0, 2.0]])
    """

    __slots__ = ("_source", "factors", "shape")

    def __init__(self, source: "npt.NDArray[Any] | ir.TensorProtocol", factors: tuple[Float64, ...] = ()) -> None:
        """Takes W, which is not read."""
        self._source = source
        self.factors = factors
        self.shape: tuple[int, ...] = source.shape if isinstance(source, np.ndarray) else tuple(source.shape.numpy())

    @property
    def base(self) -> npt.NDArray[Any]:
        """W, of any float type and at least one dimension."""
        return self._source if isinstance(self._source, np.ndarray) else np.asarray(self._source.numpy())

    @property
    def ndim(self) -> int:
        """How many dimensions there are."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """How many elements there are."""
        return math.prod(self.shape)

    @property
    def dtype(self) -> np.dtype[np.float64]:
        """What it reads as: float64."""
        return np.dtype(np.float64)

    def reshape(self, *shape: Any) -> Any:
        """The same elements in other dimensions: unread, unless a factor would have to be written out."""
        try:
            factors = tuple(np.reshape(factor, _dimensions(shape), copy=False) for factor in self.factors)
            return Scaled(np.reshape(self.base, _dimensions(shape), copy=False), factors)
        except ValueError:
            return np.asarray(self).reshape(*shape)

    def pieces(self) -> Iterator[Float64]:
        """The elements in order, some entries of the first axis at a time."""
        base, step = self.base, max(1, _PIECE // max(1, self.size // max(1, len(self))))
        for start in range(0, len(base), step):
            piece = base[start : start + step].astype(np.float64)
            for factor in self.factors:
                np.multiply(piece, factor[start : start + step], out=piece)
            yield piece

    def peaks(self, axis: int | None) -> tuple[Float64, Float64]:
        """Bounds without computing the product: for each channel along an axis, or for all of it.

        Returns:
            at least the largest |W'| of each channel, and at most that; (1,) each where `axis` is None.
        """
        others = tuple(i for i in range(self.ndim) if i != axis)
        peak = np.zeros(1 if axis is None else self.shape[axis])
        base, step = self.base, max(1, 4 * _PIECE // max(1, self.size // max(1, len(self))))
        for start in range(0, len(base), step):
            piece = base[start : start + step]
            piece = piece.astype(np.float32) if piece.dtype.itemsize < 4 else piece
            found = np.maximum(piece.max(axis=others), -piece.min(axis=others)).astype(np.float64)
            place = slice(start, start + step) if axis == 0 else slice(None)
            peak[place] = np.maximum(peak[place], found)
        high, low = peak.copy(), peak.copy()
        for factor in self.factors:
            compact = np.abs(factor[tuple(slice(None) if stride else slice(1) for stride in factor.strides)])
            high *= compact.max(axis=others)
            low *= compact.min(axis=others)
        return high, low

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        array, start = np.empty(self.shape), 0
        for piece in self.pieces():
            array[start : start + len(piece)] = piece
            start += len(piece)
        return array if dtype is None else array.astype(dtype, copy=False)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        if ufunc is np.multiply and method == "__call__" and not options:
            other = inputs[1] if inputs[0] is self else inputs[0]
            if not isinstance(other, Scaled) and _spreads(np.shape(other), self.shape):
                factor = np.broadcast_to(np.asarray(other, np.float64), self.shape)
                return Scaled(self._source, (*self.factors, factor))
        return getattr(ufunc, method)(*(np.asarray(x) if isinstance(x, Scaled) else x for x in inputs), **options)

    def __getitem__(self, key: Any) -> Any:
        return np.asarray(self)[key]

    def __len__(self) -> int:
        return self.shape[0]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(np.asarray(self), name)


class Folded(ir.LazyTensor):
    """A `Scaled` rounded to a storage dtype whenever it is read or written.

    Attributes:
        array: the exact numbers.
    """

    __slots__ = ("array",)

    def __init__(self, array: Scaled, dtype: ir.DataType, name: str | None, doc_string: str | None = None) -> None:
        super().__init__(
            self._rounded, dtype, ir.Shape(array.shape), cache=False, name=name or "", doc_string=doc_string
        )
        self.array = array

    def _rounded(self) -> "ir.Tensor[Any]":
        rounded, start = np.empty(self.array.shape, self.dtype.numpy()), 0
        for piece in self.array.pieces():
            rounded[start : start + len(piece)] = _round(piece, self.dtype)
            start += len(piece)
        return ir.Tensor(rounded, dtype=self.dtype, name=self.name)

    def tofile(self, file: BinaryIO) -> None:
        """Writes the rounded numbers piece by piece."""
        for piece in self.array.pieces():
            file.write(ir.Tensor(_round(piece, self.dtype), dtype=self.dtype).tobytes())


def spilled(array: Float64) -> Scaled:
    """An array in an unlinked temporary file, mapped: the system may drop its pages from memory."""
    with tempfile.TemporaryFile(prefix="normfuse-") as file:
        np.ascontiguousarray(array).tofile(file)
        file.flush()
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return Scaled(np.frombuffer(mapped, np.float64).reshape(array.shape))


def is_mapped(tensor: ir.TensorProtocol | None) -> bool:
    """Whether a tensor of at least `LARGE` bytes lies in a file, as it is or times factors."""
    if tensor is None or tensor.nbytes < LARGE or tensor.dtype.bitwidth < 8:
        return False
    if isinstance(tensor, ir.ExternalTensor | Folded):
        return True
    if type(tensor) is not ir.Tensor:
        return False
    owner: Any = tensor.raw
    while isinstance(owner, np.ndarray):
        owner = owner.base
    return isinstance(owner, mmap.mmap) or (isinstance(owner, memoryview) and isinstance(owner.obj, mmap.mmap))


def head(tensor: ir.TensorProtocol, count: int = 64) -> bytes:
    """The first elements of a tensor, as bytes, without mapping or computing the rest."""
    if isinstance(tensor, ir.ExternalTensor):
        with open(tensor.path, "rb") as file:
            file.seek(tensor.offset or 0)
            return file.read(min(count * tensor.dtype.bitwidth // 8, tensor.nbytes))
    if isinstance(tensor, Folded):
        first = next(tensor.array.pieces(), np.empty(0)).ravel()[:count]
        return _round(first, tensor.dtype).tobytes()
    return np.asarray(tensor.numpy().ravel()[:count]).tobytes()


def _dimensions(given: tuple[Any, ...]) -> Any:
    """The argument of reshape, which may come as one tuple or as several integers."""
    return given[0] if len(given) == 1 else given


def _round(array: Float64, dtype: ir.DataType) -> npt.NDArray[Any]:
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return array.astype(dtype.numpy())


def _spreads(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    try:
        return np.broadcast_shapes(shape, target) == target
    except ValueError:
        return False

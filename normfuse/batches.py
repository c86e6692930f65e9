"""Batches of inputs to calibrate with, whatever they come as: `Batches`, which can be read again for each pass.

| given | a batch is |
|---|---|
| a `.npz` file | its arrays, under the names of the inputs |
| a `.npy` file | the array; for models with one input |
| a `.safetensors` file | its tensors, under the names of the inputs |
| a folder | as many batches as it has such files, in the order of their names |
| a URL such as `s3://bucket/folder` | the same, where fsspec is installed |
| several of these | those of the first, then those of the second, … |
| a `CalibrationDataReader` of ONNX Runtime | what its `get_next` gives, until that is None |
| any other iterable | a mapping of arrays by input name; for models with one input the array alone will do, or a list \
that begins with it, as a torch DataLoader gives |

Everything is checked against the inputs of the model: files by their headers before any work begins, the rest as it
comes. An input that has a default, an initializer, may be given or not.
"""

import os
import shutil
import sys
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

from normfuse.errors import NormfuseError
from normfuse.passes.access import dims, operator
from normfuse.passes.prepare import INITIAL_IR_VERSION
from normfuse.ports import inputs_of
from normfuse.runtime import Array

Batch = dict[str, Array]


@dataclass(frozen=True, slots=True)
class Header:
    """What is known of an array without its numbers.

    Attributes:
        dtype: of its elements.
        shape: its sizes.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Input:
    """What the model says of an input.

    Attributes:
        name: of the input.
        dtype: of its elements, where it says.
        dims: for each axis its size, or the name of a dynamic dimension, or None; None where it does not even say how
            many there are.
    """

    name: str
    dtype: ir.DataType | None
    dims: tuple[int | str | None, ...] | None


class Signature:
    """The inputs of a model, and what may be fed to them.

    Attributes:
        inputs: those that must be fed.
        optional: those that have a default, which a batch may override.
        names: of those that must be fed.
        ignored: names of arrays that no input takes, as far as batches have been seen.
    """

    def __init__(self, model: ir.Model) -> None:
        """Takes the inputs of a model.

        Raises:
            NormfuseError: numpy or ONNX Runtime has not the dtype of one that must be fed.
        """
        needed = inputs_of(model)
        others = [value for value in model.graph.inputs if value not in needed]
        self.inputs = [_input(value) for value in needed]
        self.optional = [_input(value) for value in others if (model.ir_version or 0) >= INITIAL_IR_VERSION]
        self.names = [value.name for value in self.inputs]
        self.ignored: dict[str, None] = {}
        self._statistics = {
            str(value.name)
            for node in model.graph
            if operator(node) == "BatchNormalization"
            for value in node.inputs[3:5]
            if value is not None
        }
        for value in self.inputs:
            _require_dtype(value)

    @property
    def all(self) -> list[Input]:
        """The inputs that may be fed."""
        return [*self.inputs, *self.optional]

    def takes(self, name: str) -> bool:
        """Whether an input has a name."""
        return any(value.name == name for value in self.all)

    def named(self, batch: Any, what: str) -> Mapping[str, Any]:
        """A batch as a mapping.

        Raises:
            NormfuseError: it is none.
        """
        if isinstance(batch, Mapping):
            return batch
        if len(self.names) == 1:
            first = batch[0] if isinstance(batch, list | tuple) and batch else batch
            if hasattr(first, "__array__"):
                return {self.names[0]: first}
        wanted = f"give a mapping of arrays by input name: {', '.join(self.names)}"
        raise NormfuseError(f"{what} is a {type(batch).__name__}; {wanted}")

    def check(self, headers: Mapping[str, Header], what: str) -> None:
        """Checks that arrays can be fed to the model.

        Raises:
            NormfuseError: one is missing, or has a dtype or a shape that the model does not take; or one is for a
                statistic that is estimated.
        """
        sizes: dict[str, tuple[int, str]] = {}
        self.ignored |= dict.fromkeys(name for name in headers if not self.takes(name))
        for name in self.names:
            if name not in headers:
                raise NormfuseError(f"{what} has no array for input {name!r}, only {', '.join(headers) or 'none'}")
        for value in self.all:
            name = value.name
            if name not in headers:
                continue
            if name in self._statistics:
                raise NormfuseError(
                    f"{what} has an array for {name!r}, a statistic of a BatchNormalization: take it out"
                )
            _require_dtype(value)
            header = headers[name]
            if value.dtype is not None and not _casts(header.dtype, value.dtype):
                raise NormfuseError(
                    f"{what}: input {name!r} is {str(value.dtype).lower()}, the array {header.dtype}; convert it first"
                )
            if 0 in header.shape:
                raise NormfuseError(f"{what}: the array for input {name!r} of shape {list(header.shape)} is empty")
            if value.dims is None:
                continue
            if len(value.dims) != len(header.shape):
                raise NormfuseError(
                    f"{what}: input {name!r} has {len(value.dims)} dimensions, the array {len(header.shape)} "
                    f"(shape {list(header.shape)})"
                )
            for axis, (dim, size) in enumerate(zip(value.dims, header.shape, strict=True)):
                if isinstance(dim, int) and dim > 0 and dim != size:
                    hint = "; export the model with a dynamic batch, or split the data" if axis == 0 else ""
                    raise NormfuseError(
                        f"{what}: axis {axis} of input {name!r} has size {dim}, that of the array {size}{hint}"
                    )
                if isinstance(dim, str):
                    other, first = sizes.setdefault(dim, (size, name))
                    if other != size:
                        raise NormfuseError(
                            f"{what}: dimension {dim!r} is {other} in input {first!r}, {size} in {name!r}"
                        )

    def fed(self, batch: Any, what: str) -> Batch:
        """A batch as arrays of the dtypes that the model takes, checked.

        Raises:
            NormfuseError: the model does not take it.
        """
        given = {str(name): array for name, array in self.named(batch, what).items()}
        # what nothing takes may be no array at all
        arrays = {name: _array(array, name, what) for name, array in given.items() if self.takes(name)}
        headers = {name: Header(array.dtype, array.shape) for name, array in arrays.items()}
        self.check({name: headers.get(name, _NONE) for name in given}, what)
        return {one.name: _converted(arrays[one.name], one, what) for one in self.all if one.name in arrays}


_NONE = Header(np.dtype(object), ())


def _array(given: Any, name: str, what: str) -> Array:
    """An array of what was given as one, such as a tensor or a list.

    Raises:
        NormfuseError: it is none.
    """
    if "torch" in sys.modules and isinstance(given, sys.modules["torch"].Tensor):
        from normfuse.calls import to_array

        return to_array(given)
    try:
        return np.asarray(given)
    except (TypeError, ValueError) as error:  # a list of lists of different lengths
        told = " ".join(str(error).split())[:200]
        raise NormfuseError(f"{what}: what is given for input {name!r} is no array: {told}") from error


def _input(value: ir.Value) -> Input:
    return Input(str(value.name), value.dtype, None if value.shape is None else tuple(dims(value) or ()))


def _require_dtype(value: Input) -> None:
    """Checks that ONNX Runtime takes arrays of the dtype of an input.

    Raises:
        NormfuseError: it does not.
    """
    if not is_given(value):
        kind = str(value.dtype).lower()
        raise NormfuseError(
            f"input {value.name!r} is {kind}: ONNX Runtime takes and gives no {kind} in Python; make it a float with a "
            "Cast behind it, calibrate that, and put the statistics back"
        )


def is_given(value: Input | ir.Value) -> bool:
    """Whether ONNX Runtime takes an input from Python, or gives an output, as far as its dtype tells."""
    return value.dtype is None or value.dtype in _TAKEN


_TAKEN = frozenset(
    {
        ir.DataType.UNDEFINED,
        ir.DataType.FLOAT,
        ir.DataType.DOUBLE,
        ir.DataType.FLOAT16,
        ir.DataType.BOOL,
        ir.DataType.STRING,
        *(kind for kind in ir.DataType if kind.name in ("INT8", "INT16", "INT32", "INT64")),
        *(kind for kind in ir.DataType if kind.name in ("UINT8", "UINT16", "UINT32", "UINT64")),
    }
)
"""What ONNX Runtime takes from numpy."""


def _converted(array: Array, value: Input, what: str) -> Array:
    """An array in the dtype of an input.

    Raises:
        NormfuseError: a number is larger than that holds.
    """
    if value.dtype is None:
        return array
    with np.errstate(over="ignore"):
        found = array.astype(value.dtype.numpy(), copy=False)
    if found.dtype.kind == "f" and found.dtype.itemsize < array.dtype.itemsize:
        lost = np.isinf(found) & np.isfinite(array)
        if lost.any():
            kind, largest = str(value.dtype).lower(), float(np.abs(array[lost]).max())
            raise NormfuseError(
                f"{what}: the array for input {value.name!r} holds {largest:.3g}, more than {kind} holds "
                f"({float(np.finfo(found.dtype).max):.3g}); scale the data as the model wants them"
            )
    return found


def _casts(given: np.dtype[Any], wanted: ir.DataType) -> bool:
    """Whether an array goes into an input: floats are rounded, integers must fit; no kind becomes another."""
    if wanted == ir.DataType.STRING:
        return given.kind in "OSU"
    target = wanted.numpy()
    if given == target:
        return True
    if given.kind == "f" and wanted.is_floating_point():
        return True
    return given.kind in "iu" and target.kind in "iu" and np.can_cast(given, target, "safe")


@dataclass(frozen=True, slots=True)
class Shard:
    """Every `count`-th batch, from batch `index` on; the first has index 0."""

    index: int = 0
    count: int = 1


WHOLE = Shard()
"""All batches."""


class Taker(Protocol):
    """What takes batches, and knows what fits it: as `Signature`."""

    names: list[str]
    ignored: dict[str, None]

    def takes(self, name: str) -> bool:
        """Whether an array of a name is of use."""

    def check(self, headers: Mapping[str, Header], what: str) -> None:
        """Checks what is known of arrays before they are read."""

    def fed(self, batch: Any, what: str) -> Batch:
        """A batch as arrays, checked."""


class Batches:
    """Batches that can be read again.

    Attributes:
        count: how many there are, where that is known.
        is_fixed: whether each reading gives the same, in another process too, as far as anybody can promise that.
        fingerprint: what tells them from others without reading them all; "" where nothing does.
        twice: files that are given more than once.
    """

    count: int | None = None
    is_fixed = False
    fingerprint = ""
    twice: tuple[str, ...] = ()

    def __init__(self, signature: Taker) -> None:
        self._signature = signature

    @property
    def ignored(self) -> tuple[str, ...]:
        """Names of arrays that no input takes, as far as batches have been seen."""
        return tuple(self._signature.ignored)

    def title(self, index: int) -> str:
        """What errors call a batch."""
        return f"batch {index}"

    def check_apart(self, path: str) -> None:
        """Checks that a file can be written without harm to the batches.

        Raises:
            NormfuseError: it is one of them, or would be taken for one.
        """

    def read(self, shard: Shard = WHOLE) -> Iterator[Batch]:
        """The batches of a shard in their order, checked.

        Raises:
            NormfuseError: one cannot be read, or the model does not take it.
        """
        raise NotImplementedError

    def share(self, shard: Shard) -> int | None:
        """How many batches a shard has, where that is known."""
        return None if self.count is None else len(range(shard.index, self.count, shard.count))


class Iterated(Batches):
    """Batches of an iterable that begins anew each time."""

    def __init__(self, source: Iterable[Any], signature: Signature) -> None:
        super().__init__(signature)
        self._source, self.is_fixed = source, type(source) in (list, tuple)  # others may shuffle
        try:
            self.count = len(source)  # type: ignore[arg-type]  # tried
        except (TypeError, NotImplementedError):
            self.count = None

    def read(self, shard: Shard = WHOLE) -> Iterator[Batch]:
        """As for `Batches`."""
        for index, batch in enumerate(self._source):
            if index % shard.count == shard.index:
                yield self._signature.fed(batch, self.title(index))


class Spooled(Batches):
    """Batches that come only once: they are written to a temporary folder, and read from there the next time.

    TMPDIR says where it is made. It is removed with this object.
    """

    def __init__(self, source: Iterator[Any], signature: Signature) -> None:
        super().__init__(signature)
        self._source, self._inputs = source, signature.all
        self._folder = tempfile.mkdtemp(prefix="normfuse-")
        weakref.finalize(self, shutil.rmtree, self._folder, True)
        self._spooled = 0

    def read(self, shard: Shard = WHOLE) -> Iterator[Batch]:
        """As for `Batches`."""
        index = 0
        while True:
            path = os.path.join(self._folder, f"{index}.npz")
            if index < self._spooled:
                with np.load(path, allow_pickle=False) as archive:
                    batch = {
                        value.name: _unspooled(archive[f"array_{place}"])
                        for place, value in enumerate(self._inputs)
                        if f"array_{place}" in archive
                    }
            else:
                given = next(self._source, _END)
                if given is _END:
                    self.count = index
                    return
                batch = self._signature.fed(given, self.title(index))
                # by place, as not every name of an input is one of a file
                named = {
                    f"array_{place}": _spooled(batch[value.name])
                    for place, value in enumerate(self._inputs)
                    if value.name in batch
                }
                np.savez(path, allow_pickle=False, **named)
                self._spooled = index + 1
            if index % shard.count == shard.index:
                yield batch
            index += 1


def _spooled(array: Array) -> Array:
    """An array as it is written: strings as such, not as objects, which would be pickled."""
    return array.astype("U") if array.dtype.kind == "O" else array


def _unspooled(array: Array) -> Array:
    return array.astype(object) if array.dtype.kind == "U" else array


class Rewound(Batches):
    """Batches of a `CalibrationDataReader` that can be rewound."""

    def __init__(self, reader: Any, signature: Signature) -> None:
        super().__init__(signature)
        self._reader = reader

    def read(self, shard: Shard = WHOLE) -> Iterator[Batch]:
        """As for `Batches`."""
        self._reader.rewind()  # the first time too: who has read from it before left it where it was
        for index, batch in enumerate(iter(self._reader.get_next, None)):
            if index % shard.count == shard.index:
                yield self._signature.fed(batch, self.title(index))


def batches_of(source: Any, model: ir.Model) -> Batches:
    """Batches for a model.

    Raises:
        NormfuseError: they cannot be read, or the model does not take them.
    """
    signature = Signature(model)
    if isinstance(source, str | os.PathLike):
        source = [source]
    if isinstance(source, Mapping) or hasattr(source, "__array__"):
        return Iterated([source], signature)
    if are_paths(source):
        from normfuse.batch_files import Files

        return Files([os.fspath(one) for one in source], signature)
    if callable(getattr(source, "get_next", None)):
        if callable(getattr(source, "rewind", None)):
            return Rewound(source, signature)
        return Spooled(iter(source.get_next, None), signature)
    try:
        iterator = iter(source)
    except TypeError:
        raise holds_none(source) from None
    return Spooled(iterator, signature) if iterator is source else Iterated(source, signature)


def are_paths(source: Any) -> bool:
    """Whether it is a list of paths."""
    return isinstance(source, list | tuple) and bool(source) and all(isinstance(x, str | os.PathLike) for x in source)


def holds_none(source: object) -> NormfuseError:
    """What is said of what is no iterable."""
    return NormfuseError(
        f"a {type(source).__name__} holds no batches; give an iterable of mappings from input names to arrays, or "
        "paths of .npz files"
    )


_END = object()

"""What fits the inputs of a model: `Signature`. Arrays are checked by their headers, or as they come, and converted.

An input that has a default, an initializer, may be given or not, where a caller may override that.
"""

import sys
from collections.abc import Mapping
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

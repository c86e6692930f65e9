"""Operators that only fill or move elements, in numpy: constants of them are made without starting an evaluator."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from normfuse.passes.access import attribute

Array = npt.NDArray[np.generic]


def filled(node: ir.Node, shape: Array) -> Array:
    """An array of one value; float32 zeros where no value is given."""
    value = attribute(node, "value")
    if value is None:
        return np.zeros(shape.tolist(), np.float32)
    number = np.asarray(value.numpy())
    return np.full(shape.tolist(), number.ravel()[0], number.dtype)


def same(node: ir.Node, data: Array) -> Array:
    """The data itself."""
    return data


def unsqueezed(node: ir.Node, data: Array, axes: Array | None = None) -> Array:
    """Axes of size 1 added where they stand in the result."""
    listed = attribute(node, "axes") if axes is None else axes.tolist()
    return np.expand_dims(data, tuple(listed))


def transposed(node: ir.Node, data: Array) -> Array:
    """The axes in another order, the reverse one where none is given."""
    return np.transpose(data, attribute(node, "perm"))


def reshaped(node: ir.Node, data: Array, shape: Array) -> Array:
    """The elements in other dimensions; 0 copies a dimension, −1 takes what is left."""
    copies = not attribute(node, "allowzero", 0)
    return data.reshape([data.shape[i] if n == 0 and copies else n for i, n in enumerate(shape.tolist())])


MOVES: dict[str, Callable[..., Array]] = {
    "ConstantOfShape": filled,
    "Identity": same,
    "Reshape": reshaped,
    "Transpose": transposed,
    "Unsqueeze": unsqueezed,
}

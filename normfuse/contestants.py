"""The two sides of a parity test, in any mix of ONNX models and torch modules, made ready for `verify`."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from normfuse.errors import NormfuseError
from normfuse.foreign import Foreign
from normfuse.model import load
from normfuse.modules import is_module, torch_module
from normfuse.ports import inputs_of

Array = np.ndarray[Any, Any]


def contestants(
    reference: Any, candidate: Any, inputs: Any = None
) -> tuple[tuple[ir.Model | Foreign, ir.Model | Foreign], list[Mapping[str, Array]]]:
    """Reads both sides; names, types and shapes of a module are those of the ONNX model on the other side.

    Args:
        reference: a path, bytes, `onnx.ModelProto`, `onnx_ir.Model`, `torch.onnx.ONNXProgram` or `torch.nn.Module`.
        candidate: the same.
        inputs: an example of what they take, as for `torch.onnx.export`.

    Returns:
        both sides, and the example as arrays by input name, where there is one.

    Raises:
        NormfuseError: a side is none of these, or the example is not of its inputs.
        ModelError: it is no valid model.
    """
    sides = [source if is_module(source) else load(source) for source in (reference, candidate)]
    like = next((side for side in sides if isinstance(side, ir.Model)), None)
    if like is not None and not any(map(is_module, (reference, candidate))):
        return (sides[0], sides[1]), [] if inputs is None else [_named(like, inputs)]
    ready: list[ir.Model | Foreign] = []
    for side in sides:
        # of two modules the second is called as the first
        ready.append(
            side if isinstance(side, ir.Model) else torch_module(side, inputs, like or next(iter(ready), None))
        )
    example = next((one.example for one in ready if isinstance(one, Foreign) and one.example), None)
    return (ready[0], ready[1]), [] if example is None else [example]


def _named(model: ir.Model, inputs: Any) -> Mapping[str, Array]:
    """An example of the inputs of an ONNX model as arrays by name."""
    names = [str(value.name) for value in inputs_of(model)]
    if isinstance(inputs, Mapping) and set(inputs) == set(names):
        return {name: _array(inputs[name]) for name in names}
    values = list(_flattened(inputs))
    if len(values) != len(names):
        raise NormfuseError(f"inputs hold {len(values)} arrays, but the model takes {len(names)} ({', '.join(names)})")
    return {name: _array(value) for name, value in zip(names, values, strict=True)}


def _flattened(inputs: Any) -> Iterator[Any]:
    """The arrays in nested arguments, in the order of `torch.export`; None is none."""
    if isinstance(inputs, Mapping):
        inputs = tuple(inputs.values())
    if isinstance(inputs, tuple | list):
        for part in inputs:
            yield from _flattened(part)
    elif inputs is not None:
        yield inputs


def _array(value: Any) -> Array:
    if hasattr(value, "detach"):
        from normfuse.calls import to_array

        return to_array(value)
    return np.asarray(value)

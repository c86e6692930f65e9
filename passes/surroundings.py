"""What stands around a normalization and makes another one of it.

Reshape → norm → Reshape       InstanceNorm of (N, G, ·) is GroupNorm; BatchNorm of (1, N·C, …) is InstanceNorm
Transpose → norm → Transpose   LayerNorm of channels last is LayerNorm over channels
Cast → norm → Cast             the same with statistics in a wider dtype
"""

from dataclasses import dataclass, replace

import onnx_ir as ir

from normfuse.norm import Standardize
from normfuse.passes.access import RefusedError, attribute, dims, known_dims, operator
from normfuse.passes.lifted import Found, members
from normfuse.passes.norms import Norm, Parameter, read_norm
from normfuse.passes.sizes import MOVERS, Pieces, pieces, sizes_of
from normfuse.passes.views import plain
from normfuse.passes.weights import Weights

_CHAIN = 4
"""So many nodes that give other dimensions are looked through at most."""

_WIDTH = {ir.DataType.FLOAT16: 1, ir.DataType.BFLOAT16: 1, ir.DataType.FLOAT: 2, ir.DataType.DOUBLE: 3}


@dataclass(frozen=True, slots=True)
class _Core:
    """A normalization with its scale and bias, within the norm or behind it."""

    norm: Norm
    scale: Parameter | None
    bias: Parameter | None


def reshaped(node: ir.Node, weights: Weights) -> Found | None:
    """Reshape(norm(Reshape(x))) with the dimensions of x: the same normalization over other axes, or in groups."""
    inner = _behind(node.inputs[0])
    core = None if inner is None else _core(inner, weights)
    if core is None:
        return None
    output, norm = node.outputs[0], core.norm
    wanted, within = sizes_of(output, weights), sizes_of(norm.data, weights)
    data, opening = plain(norm.data), 0
    while opening < _CHAIN and (before := _moved(data)) is not None:
        data, opening = plain(before), opening + 1
        if wanted is not None and sizes_of(data, weights) == wanted:
            break
    else:
        if opening and wanted is None:
            raise RefusedError("the dimensions behind the Reshape are not known")
        return None
    if within is None or wanted is None:
        raise RefusedError("the dimensions within the Reshapes are not known")
    parts = pieces(wanted, within)
    standardize = _regrouped(norm.standardize, parts, dims(data) or [])
    if standardize is None:
        return None
    scale, scale_axes = _spread(core.scale, parts, data, weights)
    bias, bias_axes = _spread(core.bias, parts, data, weights)
    return _found(standardize, data, output, (scale, scale_axes), (bias, bias_axes))


def _moved(value: ir.Value) -> ir.Value | None:
    """The value that a Reshape, Flatten, Squeeze or Unsqueeze has made this one of."""
    node = value.producer()
    return None if node is None or operator(node) not in MOVERS else node.inputs[0]


def _behind(value: ir.Value | None) -> ir.Value | None:
    """The value in front of all Reshapes."""
    for _ in range(_CHAIN):
        if value is None or (before := _moved(plain(value))) is None:
            break
        value = before
    return None if value is None else plain(value)


def _core(value: ir.Value, weights: Weights) -> _Core | None:
    """A value as norm · scale + bias, scale and bias within the norm or behind it."""
    node = value.producer()
    if node is None:
        return None
    norm = read_norm(node, weights)
    if norm is not None:
        return _Core(norm, norm.scale, norm.bias) if value is norm.output else None
    if operator(node) not in ("Add", "Mul"):
        return None
    for index in (0, 1):
        inner, other = node.inputs[index], node.inputs[1 - index]
        before = None if inner is None else plain(inner).producer()
        if inner is None or other is None or before is None:
            continue
        is_norm = operator(before) != "Mul" or operator(node) != "Add"
        norm = read_norm(before, weights) if is_norm else None
        core = _core(plain(inner), weights) if norm is not None or not is_norm else None
        if core is None or core.bias is not None or (operator(node) == "Mul" and core.scale is not None):
            continue
        own, rank = dims(other), core.norm.rank
        if own is None or len(own) > rank or dims(value) != dims(core.norm.output):
            return None
        parameter = Parameter(other, tuple(range(rank - len(own), rank)))
        scale, bias = (parameter, None) if operator(node) == "Mul" else (core.scale, parameter)
        return _Core(core.norm, scale, bias)
    return None


def _regrouped(inner: Standardize, parts: Pieces, outer: list[int | str | None]) -> Standardize | None:
    """What is computed of the data in front of the Reshape.

    Raises:
        RefusedError: it has no axes there.
    """
    if inner.groups is not None or inner.window is not None:
        return None
    rank = len(outer)
    axes: list[int] = []
    groups: int | None = None
    channel = 1
    for axis in range(rank):
        own = [(other in inner.axes, size) for one, other, size in parts if one == axis]
        flags = [flag for flag, _ in own]
        if not any(flags):
            continue
        axes.append(axis)
        if all(flags):
            continue
        cut = flags.index(True)
        if groups is not None or not all(flags[cut:]) or any(size.symbols for _, size in own):
            raise RefusedError("the Reshape in front of it makes groups of elements that are not neighbours")
        groups, channel = 1, axis
        for _, size in own[:cut]:
            groups *= size.number
    if not axes:
        raise RefusedError("it normalizes axes of one element")
    axes += [axis for axis in range(min(axes) + 1, rank) if outer[axis] == 1]
    standardize = replace(inner, axes=tuple(sorted(set(axes))), groups=groups, channel=channel)
    return standardize.simplified(outer[channel]) if groups is not None else standardize


def _spread(
    parameter: Parameter | None, parts: Pieces, data: ir.Value, weights: Weights
) -> tuple[ir.Value | None, tuple[int, ...]]:
    """γ or β as a value that stands along whole axes of the data, and these axes.

    Raises:
        RefusedError: it does not.
    """
    if parameter is None:
        return None, ()
    value, sizes = parameter.value, dims(parameter.value)
    if sizes is None or parameter.repeats != 1 or (any(size == 1 for size in sizes) and len(sizes) > 1):
        raise RefusedError("its γ or β stands along the axes within the Reshapes")
    axes: list[int] = []
    for inner in parameter.axes:
        outer = [one for one, other, _ in parts if other == inner]
        if any(one in outer and other != inner for one, other, _ in parts):
            raise RefusedError("its γ or β stands along parts of axes")
        axes += outer
    if len(axes) == len(sizes):
        return value, tuple(axes)
    before = _moved(plain(value))
    if before is None or len(sizes) != 1 or before in (None, data):
        raise RefusedError("its γ or β stands along several axes at once")
    own = sizes_of(before, weights)
    wanted = tuple(size for one, _, size in parts if one in axes)
    if own is None or own != wanted:
        raise RefusedError("its γ or β stands along several axes at once")
    return before, tuple(axes)


def _found(
    standardize: Standardize,
    data: ir.Value,
    output: ir.Value,
    scale: tuple[ir.Value | None, tuple[int, ...]],
    bias: tuple[ir.Value | None, tuple[int, ...]],
) -> Found:
    """The find; scale and bias must stand along the same axes, in order.

    Raises:
        RefusedError: they do not, or a value between is read by others.
    """
    stated = [axes for value, axes in (scale, bias) if value is not None]
    if any(axes != stated[0] or list(axes) != sorted(set(axes)) for axes in stated):
        raise RefusedError("its γ and β stand along different axes")
    inputs = [value for value in (data, scale[0], bias[0]) if value is not None]
    nodes = members(output, inputs)
    return Found(standardize, data, output, nodes, scale[0], bias[0], stated[0] if stated else None)


def transposed(node: ir.Node, weights: Weights) -> Found | None:
    """Transpose(norm(Transpose(x))) with inverse permutations: the same normalization over the permuted axes."""
    core = None if node.inputs[0] is None else _core(plain(node.inputs[0]), weights)
    opening = None if core is None else plain(core.norm.data).producer()
    if core is None or opening is None or operator(opening) != "Transpose" or opening.inputs[0] is None:
        return None
    norm, data = core.norm, opening.inputs[0]
    reverse = list(range(norm.rank))[::-1]
    there, back = attribute(opening, "perm", reverse), attribute(node, "perm", reverse)
    if [there[axis] for axis in back] != list(range(norm.rank)):
        return None
    inner = norm.standardize
    axes, channel = tuple(sorted(there[axis] for axis in inner.axes)), inner.channel
    if inner.groups is not None or inner.window is not None:
        channel = there[channel]
    standardize = replace(inner, axes=axes, channel=channel)
    if any(parameter is not None and parameter.repeats != 1 for parameter in (core.scale, core.bias)):
        raise RefusedError("its γ and β stand for groups")
    scale, bias = (
        (None, ()) if one is None else (one.value, tuple(there[axis] for axis in one.axes))
        for one in (core.scale, core.bias)
    )
    return _found(standardize, data, node.outputs[0], scale, bias)


def widened(node: ir.Node, weights: Weights) -> Found | None:
    """Cast(norm(Cast(x))) back to the dtype of x: the same normalization with statistics in the wider dtype."""
    inner = node.inputs[0]
    norm = None if inner is None else read_norm(plain(inner).producer(), weights)
    opening = None if norm is None else plain(norm.data).producer()
    if norm is None or opening is None or operator(opening) != "Cast" or opening.inputs[0] is None:
        return None
    data, output, wide = opening.inputs[0], node.outputs[0], norm.data.dtype
    if data.dtype is None or wide is None or data.dtype != output.dtype:
        return None
    if _WIDTH.get(data.dtype, 9) >= _WIDTH.get(wide, 0):
        return None
    if not norm.is_bare:
        raise RefusedError("its γ or β has another dtype than the data")
    known_dims(data)
    standardize = replace(norm.standardize, dtype=norm.standardize.dtype or wide)
    return _found(standardize, data, output, (None, ()), (None, ()))

"""Dimensions as products of numbers and symbols, also where they are computed of shapes at run time.

A dimension that is not known has a symbol of its own, the name of its value and its place, so that a Reshape to
Shape(x) is seen to give the dimensions of x whatever they are.
"""

from collections import Counter
from collections.abc import Callable

import onnx_ir as ir

from normfuse.passes.access import RefusedError, attribute, dims, operator
from normfuse.passes.lifted import DOMAIN
from normfuse.passes.reshaping import Extent
from normfuse.passes.views import plain
from normfuse.passes.weights import Weights, constant_tensor

MOVERS = frozenset({"Flatten", "Reshape", "Squeeze", "Unsqueeze"})
"""Operators that keep the elements in their order and give them other dimensions."""

_DEPTH = 12
ONE = Extent(1, ())
_KEEPERS = frozenset({"InstanceNormalization", "LayerNormalization"})
"""Operators whose first input has the dimensions of the result; lifted calls are such, too."""

Sizes = tuple[Extent, ...]


def times(*extents: Extent) -> Extent:
    """A product."""
    number, symbols = 1, Counter[str]()
    for extent in extents:
        number *= extent.number
        symbols.update(dict(extent.symbols))
    return Extent(number, tuple(sorted(symbols.items())))


def divided(above: Extent, below: Extent) -> Extent | None:
    """A quotient, None where it is no whole number for all values of the symbols."""
    symbols = Counter(dict(above.symbols))
    symbols.subtract(dict(below.symbols))
    if below.number == 0 or above.number % below.number or any(power < 0 for power in symbols.values()):
        return None
    return Extent(above.number // below.number, tuple(sorted((+symbols).items())))


def stated(value: ir.Value) -> Sizes | None:
    """The dimensions of a value as its shape states them; None where not even their number is known."""
    value = plain(value)
    found = dims(value)
    if found is None:
        return None
    return tuple(extent(f"{value.name}[{axis}]" if size is None else size) for axis, size in enumerate(found))


def extent(dim: int | str) -> Extent:
    """One dimension."""
    found = Extent.of([dim])
    assert found is not None
    return found


def sizes_of(value: ir.Value, weights: Weights, depth: int = _DEPTH) -> Sizes | None:
    """The dimensions of a value, through the Reshapes that give it its own; None where they cannot be told."""
    value = plain(value)
    found, node = dims(value), value.producer()
    while node is not None and (operator(node) in _KEEPERS or node.domain == DOMAIN) and node.inputs:
        data = node.inputs[0]
        if data is None or dims(data) is None or len(dims(data) or ()) != len(found or ()):
            break
        value = plain(data)
        found, node = dims(value), value.producer()
    is_known = found is not None and all(isinstance(size, int) for size in found)
    if node is None or operator(node) not in MOVERS or not depth or is_known:
        return stated(value)
    data = node.inputs[0]
    inner = None if data is None else sizes_of(data, weights, depth - 1)
    if inner is None:
        return stated(value)
    outer = moved(node, inner, weights)
    return stated(value) if outer is None else outer


def moved(node: ir.Node, inner: Sizes, weights: Weights) -> Sizes | None:
    """The dimensions behind a node that keeps the order of the elements."""
    if operator(node) == "Reshape":
        return _reshaped(node, inner, weights)
    if operator(node) == "Flatten":
        axis = attribute(node, "axis", 1)
        axis += len(inner) if axis < 0 else 0
        return times(*inner[:axis]), times(*inner[axis:])
    axes = attribute(node, "axes")
    if axes is None and len(node.inputs) > 1:
        axes = weights.integers(node.inputs[1])
    if axes is None:
        return None
    if operator(node) == "Squeeze":
        gone = {axis % len(inner) for axis in axes}
        return tuple(size for axis, size in enumerate(inner) if axis not in gone)
    rank = len(inner) + len(axes)
    new, rest = {axis % rank for axis in axes}, iter(inner)
    if len(new) < len(axes):
        return None
    return tuple(ONE if axis in new else next(rest) for axis in range(rank))


def _reshaped(node: ir.Node, inner: Sizes, weights: Weights) -> Sizes | None:
    wanted = integers_of(node.inputs[1], weights) if len(node.inputs) > 1 and node.inputs[1] is not None else None
    if wanted is None or (attribute(node, "allowzero", 0) and Extent(0, ()) in wanted):
        return None
    result: list[Extent] = []
    open_place: int | None = None
    for place, size in enumerate(wanted):
        if size is None:
            return None
        if size.number == 0:
            if place >= len(inner):
                return None
            size = inner[place]
        elif size == Extent(-1, ()):
            if open_place is not None:
                return None
            open_place, size = place, ONE
        result.append(size)
    whole, told = times(*inner), times(*result)
    if open_place is None:
        return tuple(result) if whole == told else None
    left = divided(whole, told)
    if left is None:
        return None
    result[open_place] = left
    return tuple(result)


def integers_of(value: ir.Value, weights: Weights, depth: int = _DEPTH) -> list[Extent | None] | None:
    """The integers of a small vector or scalar that is computed of shapes, None for those that are not known."""
    value = plain(value)
    if constant_tensor(value) is not None:
        numbers = weights.integers(value)
        return None if numbers is None or len(numbers) > 64 else [Extent(number, ()) for number in numbers]
    node = value.producer()
    if node is None or not depth or not node.inputs:
        return None
    operands = [one for one in node.inputs if one is not None]

    def read(index: int) -> list[Extent | None]:
        found = integers_of(operands[index], weights, depth - 1) if index < len(operands) else None
        if found is None:
            raise RefusedError("a shape is computed in a way that is not known")
        return found

    try:
        return _computed(node, operands, read, weights)
    except RefusedError:
        return None


def _computed(
    node: ir.Node, operands: list[ir.Value], read: Callable[[int], list[Extent | None]], weights: Weights
) -> list[Extent | None] | None:
    match operator(node):
        case "Shape":
            sizes = sizes_of(operands[0], weights)
            return None if sizes is None else list(sizes[attribute(node, "start", 0) : attribute(node, "end")])
        case "Size":
            sizes = sizes_of(operands[0], weights)
            return None if sizes is None else [times(*sizes)]
        case "Gather" if attribute(node, "axis", 0) == 0:
            data, places = read(0), weights.integers(operands[1])
            if places is None or any(not -len(data) <= place < len(data) for place in places):
                return None
            return [data[place] for place in places]
        case "Slice":
            bounds = [attribute(node, "starts"), attribute(node, "ends"), [0], [1]]
            for place, operand in enumerate(operands[1:5]):
                bounds[place] = weights.integers(operand)
            if any(bound is None or len(bound) != 1 for bound in bounds) or bounds[3] == [0]:
                return None
            start, end, _, step = (bound[0] for bound in bounds)
            return read(0)[start:end:step] if step > 0 else None
        case "Concat":
            return [size for index in range(len(operands)) for size in read(index)]
        case "Cast" if attribute(node, "to") in (ir.DataType.INT32, ir.DataType.INT64):
            return read(0)
        case "ReduceProd":
            factors = [size for size in read(0) if size is not None]
            return [times(*factors)] if len(factors) == len(read(0)) else None
        case "Equal":
            one, other = _as_long(read(0), read(1))
            return [_equal(first, second) for first, second in zip(one, other, strict=True)]
        case "Where":
            chosen, (one, other) = read(0), _as_long(read(1), read(2))
            if len(chosen) != len(one):
                return None
            known = (
                None if flag is None else (second, first)[flag.number]
                for flag, first, second in zip(chosen, one, other, strict=True)
            )
            return list(known)
        case "Squeeze" | "Unsqueeze":
            return read(0)
        case "Reshape" if len(dims(node.outputs[0]) or (1, 1)) < 2:
            return read(0)
        case "Mul" | "Div":
            one, other = read(0), read(1)
            if len(one) != 1 or len(other) != 1 or one[0] is None or other[0] is None:
                return None
            if min(one[0].number, other[0].number) < 1:
                return None
            return [times(one[0], other[0]) if node.op_type == "Mul" else divided(one[0], other[0])]
        case _:
            return None


def _as_long(one: list[Extent | None], other: list[Extent | None]) -> tuple[list[Extent | None], list[Extent | None]]:
    """Two vectors broadcast to one length."""
    length = max(len(one), len(other))
    if {len(one), len(other)} - {1, length}:
        raise RefusedError("two vectors of different lengths")
    return one * (length // len(one)), other * (length // len(other))


def _equal(one: Extent | None, other: Extent | None) -> Extent | None:
    """1 or 0; None where it depends. No dimension is negative."""
    if one is None or other is None:
        return None
    if one == other or not (one.symbols or other.symbols):
        return Extent(int(one == other), ())
    return Extent(0, ()) if min(one.number, other.number) < 0 else None


Pieces = list[tuple[int, int, Extent]]
"""Runs of elements: the axis that each is a part of before and after a Reshape, and its length."""


def pieces(before: Sizes, after: Sizes) -> Pieces:
    """The largest parts that both layouts of the same elements are made of, from the first axis to the last.

    Raises:
        RefusedError: the layouts cut the elements at places of which neither divides the other.
    """
    result: Pieces = []
    old = [(axis, size) for axis, size in enumerate(before) if size != ONE]
    new = [(axis, size) for axis, size in enumerate(after) if size != ONE]
    while old and new:
        (one, size), (other, wanted) = old.pop(0), new.pop(0)
        less, more = divided(wanted, size), divided(size, wanted)
        if less is None and more is None:
            raise RefusedError("the Reshape in front of it cuts and joins dimensions in a way that is not known")
        if less is not None:
            result.append((one, other, size))
            if less != ONE:
                new.insert(0, (other, less))
        else:
            assert more is not None
            result.append((one, other, wanted))
            old.insert(0, (one, more))
    if old or new:
        raise RefusedError("the Reshape in front of it has dimensions that are not known")
    return result

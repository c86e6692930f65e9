"""Which axes of the data each dimension of a value stands along, so that statistics broadcast where they belong.

A mean over axis 1 of x (N, C, L) with keepdims=0 has the dimensions (N, L); subtracted from x it would stand along
C and L, and where N = C no shape tells. `Alignment` follows every dimension through reductions and reshapes instead.
"""

import onnx_ir as ir

from normfuse.passes.access import Dim, RefusedError, attribute, dims, known_dims, only_reader, operator
from normfuse.passes.views import averaged, plain, reduced_axes, widened
from normfuse.passes.weights import Weights

Place = tuple[tuple[int, ...], ...]
"""For each dimension of a value the axes of the data that it stands along, none for one that they all share."""

_ALIKE = frozenset({"Abs", "Cast", "Clip", "Dropout", "Identity", "Neg", "Pow", "Reciprocal", "Relu", "Sqrt"})
_BROADCAST = frozenset({"Add", "Div", "Max", "Min", "Mul", "Sub", "Sum"})
_REDUCTIONS = frozenset({"ReduceL1", "ReduceL2", "ReduceMean", "ReduceSum", "ReduceSumSquare"})

_LAYOUT = frozenset({"Flatten", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
_CHAIN = 4
"""So many nodes that lay data out anew are looked through at most."""

_MISPLACED = "its statistics do not stand along the axes that they are taken over"


class Alignment:
    """Where values that are computed of some data stand.

    Attributes:
        dims: the dimensions of the data.
        extents: for the result of each reduction on the way, the axes of the data that it extends over; one that is
            reduced further is not among them.
    """

    def __init__(self, data: ir.Value, weights: Weights) -> None:
        """Starts from the data."""
        self.dims = known_dims(data)
        self.extents: dict[ir.Value, set[int]] = {}
        self._weights = weights
        self._root = widened(data)
        self._identity: Place = tuple((axis,) for axis in range(len(self.dims)))
        self._known: dict[ir.Value, Place | None] = {data: self._identity}
        self._mixed: set[ir.Value] = set()
        self._spread: dict[ir.Value, dict[int, Dim]] = {}

    def set(self, value: ir.Value, place: Place | None) -> None:
        """States where a value stands; None for one that only broadcasts."""
        self._known[value] = place

    def of(self, value: ir.Value) -> Place | None:
        """Where a value stands; None where it is not computed of the data.

        Raises:
            RefusedError: that depends on dimensions that are not known, or it mixes places up.
        """
        if value not in self._known:
            is_data = widened(value) is self._root
            self._known[value] = self._identity if is_data else self._place(value)
        return self._known[value]

    def check(self, output: ir.Value, axes: tuple[int, ...]) -> None:
        """Makes sure that a value stands as the data do, and every reduction extends over these axes.

        Raises:
            RefusedError: it does not.
        """
        place = self.of(output)
        if place is None or len(place) != len(self.dims):
            raise RefusedError("it broadcasts the data to other dimensions")
        if any(own != (axis,) for axis, own in enumerate(place)):
            raise RefusedError(_MISPLACED)
        for position, size in self._spread.get(output, {}).items():
            if size != self.dims[position] or size is None:
                raise RefusedError("it broadcasts the data to other dimensions")
        long = {axis for axis, size in enumerate(self.dims) if size != 1}
        if any(extent & long != set(axes) & long for extent in self.extents.values()):
            raise RefusedError("its mean and its variance extend over different axes")

    def _place(self, value: ir.Value) -> Place | None:
        node = value.producer()
        if node is None or not node.inputs or value is not node.outputs[0]:
            return None
        name = operator(node)
        if name in _BROADCAST:
            return self._broadcast(value, [one for one in node.inputs if one is not None])
        averages = averaged(node, self._weights) if name == "MatMul" else None
        data = node.inputs[0] if averages is None else averages[0]
        inner = None if data is None else self.of(data)
        if data is None or inner is None:
            return None
        if averages is not None:
            return self._without(node, data, inner, (averages[1],), keepdims=True)
        if name in _ALIKE:
            return self._same(value, data, inner)
        if name in _REDUCTIONS or name == "GlobalAveragePool":
            return self._reduced(node, inner)
        if name == "Transpose":
            return None if data in self._spread else _turned(node, inner)
        if name in ("Expand", "Flatten", "Reshape", "Squeeze", "Unsqueeze"):
            return self._moved(node, value, data, inner)
        return None

    def _same(self, value: ir.Value, data: ir.Value, inner: Place) -> Place:
        if data in self._spread:
            self._spread[value] = self._spread[data]
        if data in self._mixed:
            self._mixed.add(value)
        return inner

    def _reduced(self, node: ir.Node, inner: Place) -> Place:
        rank = len(inner)
        if node.op_type == "GlobalAveragePool":
            axes: tuple[int, ...] | None = tuple(range(2, rank))
            keepdims = True
        else:
            axes, keepdims = reduced_axes(node, rank, self._weights), bool(attribute(node, "keepdims", 1))
        if axes is None:
            raise RefusedError("the axes of its statistics are not known")
        data = node.inputs[0]
        assert data is not None
        return self._without(node, data, inner, axes, keepdims)

    def _without(self, node: ir.Node, data: ir.Value, inner: Place, axes: tuple[int, ...], keepdims: bool) -> Place:
        """Where the result of a reduction over some axes stands."""
        inside = plain(data)
        earlier = self.extents.pop(inside, set()) if only_reader(inside) is not None else set()
        self.extents[node.outputs[0]] = {one for axis in axes for one in inner[axis]} | earlier
        return tuple(() if axis in axes else own for axis, own in enumerate(inner) if keepdims or axis not in axes)

    def _broadcast(self, value: ir.Value, operands: list[ir.Value]) -> Place | None:
        places = [self.of(one) for one in operands]
        if all(place is None for place in places):
            return None
        spread: dict[int, Dim] = {}
        rows: list[Place] = []
        for operand, place in zip(operands, places, strict=True):
            if place is None:
                foreign = dims(operand)
                if foreign is None:
                    raise RefusedError(f"the rank of {operand.name!r} is not known")
                place = ((),) * len(foreign)
                if any(size != 1 for size in foreign):
                    self._mixed.add(value)
                spread |= {axis - len(foreign): size for axis, size in enumerate(foreign) if size != 1}
            else:
                spread |= self._spread.get(operand, {})
                if operand in self._mixed:
                    self._mixed.add(value)
            rows.append(place)
        rank = max(map(len, rows))
        merged: list[tuple[int, ...]] = []
        for axis in range(rank):
            found = {row[axis - rank + len(row)] for row in rows if axis - rank + len(row) >= 0} - {()}
            if len(found) > 1:
                raise RefusedError(_MISPLACED)
            merged.append(found.pop() if found else ())
        if spread:
            self._spread[value] = spread
        return tuple(merged)

    def _moved(self, node: ir.Node, value: ir.Value, data: ir.Value, inner: Place) -> Place:
        """Where a value stands that has other dimensions."""
        if operator(node) == "Expand":
            return self._expanded(node, value, data, inner)
        if data in self._mixed or data in self._spread:
            raise RefusedError("a scale is laid out anew with its statistics")
        before, after = known_dims(data), known_dims(value)
        return relaid(inner, before, after)

    def _expanded(self, node: ir.Node, value: ir.Value, data: ir.Value, inner: Place) -> Place:
        shape = node.inputs[1].producer() if len(node.inputs) > 1 and node.inputs[1] is not None else None
        before, after = known_dims(data), dims(value)
        self._same(value, data, inner)
        if shape is not None and operator(shape) == "Shape" and not shape.attributes:
            source = shape.inputs[0]
            if source is not None and widened(source) is self._root:
                return ((),) * (len(self.dims) - len(inner)) + inner
        if after is None:
            raise RefusedError("the dimensions that its statistics are expanded to are not known")
        padded: list[Dim] = [*([1] * (len(after) - len(before))), *before]
        changed = {
            axis - len(after): new for axis, (old, new) in enumerate(zip(padded, after, strict=True)) if old != new
        }
        if changed:
            self._spread[value] = self._spread.get(value, {}) | changed
        return ((),) * (len(after) - len(inner)) + inner


def relaid(place: Place, before: list[Dim], after: list[Dim]) -> Place:
    """Where the dimensions of a Reshape stand: the same elements in the same order.

    Raises:
        RefusedError: dimensions are cut, or are not known.
    """
    old = [(own, size) for own, size in zip(place, before, strict=True) if size != 1]
    new = [(axis, size) for axis, size in enumerate(after) if size != 1]
    result: list[tuple[int, ...]] = [()] * len(after)
    while old and new and old[0][1] == new[0][1] and old[0][1] is not None:
        result[new.pop(0)[0]] = old.pop(0)[0]
    while old and new and old[-1][1] == new[-1][1] and old[-1][1] is not None:
        result[new.pop()[0]] = old.pop()[0]
    while len(new) > 1 and old:
        axis, size = new.pop(0)
        if not isinstance(size, int):
            break
        taken, product = [], 1
        while old and product < size and isinstance(dim := old[0][1], int):
            product *= dim
            taken.append(old.pop(0)[0])
        if product != size:
            raise RefusedError("a Reshape cuts the axes of its statistics")
        result[axis] = tuple(one for own in taken for one in own)
    if old and len(new) == 1:  # whatever is left has the same number of elements
        result[new[0][0]] = tuple(one for own, _ in old for one in own)
    elif old or new:
        raise RefusedError("a Reshape of its statistics has dimensions that are not known")
    return tuple(result)


def through_layout(axes: tuple[int, ...], there: ir.Value, here: ir.Value) -> tuple[int, ...] | None:
    """The axes of `here` that are the same positions as some axes of `there`, a Reshape or Transpose of it.

    None where it is no such value, or an axis of `here` is cut on the way.
    """
    chain: list[ir.Node] = []
    value, origin = plain(there), plain(here)
    while value is not origin:
        node = value.producer()
        if node is None or operator(node) not in _LAYOUT or node.inputs[0] is None or len(chain) == _CHAIN:
            return None
        chain.append(node)
        value = plain(node.inputs[0])
    sizes = dims(here)
    if not chain or sizes is None:
        return None if chain else axes
    place: Place = tuple((axis,) for axis in range(len(sizes)))
    for node in reversed(chain):
        before, after = dims(node.inputs[0]), dims(node.outputs[0])
        if before is None or after is None:
            return None
        try:
            place = _turned(node, place) if node.op_type == "Transpose" else relaid(place, before, after)
        except RefusedError:
            return None
    return tuple(sorted({one for axis in axes for one in place[axis]})) or None


def _turned(node: ir.Node, place: Place) -> Place:
    order = attribute(node, "perm", list(range(len(place)))[::-1])
    return tuple(place[axis] for axis in order)

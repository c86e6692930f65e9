"""The inputs of a model as probes see them: `Port`, the sizes worth trying, and the values an integer may take."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import onnx_ir as ir

from normfuse.errors import NormfuseError

Sizes = dict[str, int]

ATTEMPTS = 64
"""How many combinations of sizes are tried before giving up."""

BATCH = (1, 2)
_IMAGE = (64, 96, 32, 48, 128, 224, 256, 320, 640)
_SEQUENCE = (7, 12, 16, 32, 64, 128, 80)
_CHANNELS = (3, 1, 4, 8)
_USUAL_IMAGE, _USUAL_SEQUENCE = 224, 128
"""What models are mostly used at."""

_LONG = 64
"""Windows above this tell that a model reads a signal."""

_FIXED, _LARGEST_RANK = 6, 8
"""So many sizes that Reshapes fix are tried; a constant of more elements is no shape."""

_TRANSPARENT = frozenset(
    {"Cast", "Concat", "Expand", "Flatten", "Identity", "Reshape", "Slice", "Squeeze", "Tile", "Transpose", "Unsqueeze"}
)


@dataclass(frozen=True, slots=True)
class Port:
    """An input of a model as probes see it.

    Attributes:
        name: of the input.
        dtype: of its elements.
        dims: for each axis its size, or the key of a dynamic dimension.
        limit: for integers the number of values it may take, 2 where nothing says.
        asked: for integers the numbers that the model compares it with, such as the sampling rates that it knows.
    """

    name: str
    dtype: ir.DataType
    dims: tuple[int | str, ...]
    limit: int = 2
    asked: tuple[int, ...] = ()

    def shape(self, sizes: Sizes) -> tuple[int, ...]:
        """Its shape once the dynamic dimensions have sizes."""
        return tuple(sizes[dim] if isinstance(dim, str) else dim for dim in self.dims)


def inputs_of(model: ir.Model) -> list[ir.Value]:
    """The inputs that must be fed: those without an initializer."""
    return [value for value in model.graph.inputs if value.name not in model.graph.initializers]


def port_of(value: ir.Value, shapes: Mapping[str, Sequence[int] | int]) -> Port:
    """Reads an input; `shapes` holds what the caller knows of shapes by input name and sizes by dimension name.

    Raises:
        NormfuseError: it cannot be probed.
    """
    name, dtype = str(value.name), value.dtype
    if dtype is None or not (is_float_type(dtype) or dtype.is_integer() or dtype == ir.DataType.BOOL):
        raise NormfuseError(f"input {name!r} is {dtype or 'no tensor'}: give data to verify with")
    given = shapes.get(name)
    if given is not None and not isinstance(given, int):
        return Port(name, dtype, tuple(given), _limit(value), _asked(value))
    if value.shape is None:
        raise NormfuseError(f"input {name!r} has no shape: give shapes or data to verify with")
    dims: list[int | str] = []
    for axis, dim in enumerate(value.shape):
        if isinstance(dim, int) and dim > 0:
            dims.append(dim)
            continue
        symbol = dim.value if isinstance(dim, ir.SymbolicDim) else None
        # exporters write "?" and −1 for unrelated dimensions
        key = symbol if symbol and symbol not in ("?", "-1") else f"{name}[{axis}]"
        size = shapes.get(key)
        dims.append(size if isinstance(size, int) else key)
    return Port(name, dtype, tuple(dims), _limit(value), _asked(value))


def is_float_type(dtype: ir.DataType) -> bool:
    """Whether probes draw real numbers for it."""
    return dtype.is_floating_point()


def _limit(value: ir.Value) -> int:
    """The number of values an integer input may take: the size of the smallest table it indexes, else 2."""
    limits: list[int] = []
    seen: set[int] = set()
    queue = [value]
    while queue:
        current = queue.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        for node, index in current.uses():
            if node.op_type in _TRANSPARENT:
                queue.extend(node.outputs)
            elif node.op_type in ("Gather", "GatherElements") and index == 1:
                axis = node.attributes.get_int("axis", 0)
                table = node.inputs[0]
                size = _size(table, axis)
                if size is not None:
                    limits.append(size)
            elif node.op_type == "OneHot" and index == 0:
                depth = ir.convenience.get_const_tensor(node.inputs[1]) if node.inputs[1] is not None else None
                if depth is not None:
                    limits.append(int(depth.numpy().reshape(-1)[0]))
    return min(limits, default=2)


def _asked(value: ir.Value) -> tuple[int, ...]:
    """The integers that an integer input is compared with."""
    if value.dtype is None or not value.dtype.is_integer():
        return ()
    others = [
        other
        for node, _ in value.uses()
        if node.op_type == "Equal"
        for other in node.inputs
        if other is not None and other is not value
    ]
    tensors = [tensor for other in others if (tensor := ir.convenience.get_const_tensor(other)) is not None]
    return tuple(sorted({int(tensor.numpy().reshape(())) for tensor in tensors if tensor.size == 1}))


def _size(table: ir.Value | None, axis: int) -> int | None:
    """The size of a table, also where it is stored in another type and scaled before it is read."""
    if table is None:
        return None
    if table.shape is not None:
        known = table.shape[axis]
        return known if isinstance(known, int) and known > 0 else None
    node = table.producer()
    if node is None or node.op_type not in ("Cast", "DequantizeLinear", "Identity", "Mul"):
        return None
    return next((size for value in node.inputs if (size := _size(value, axis)) is not None and size > 1), None)


def candidates_of(port: Port, axis: int) -> tuple[int, ...]:
    """Sizes worth trying for a dynamic dimension, best first."""
    rank = len(port.dims)
    if axis == 0:
        return BATCH
    if rank >= 4:
        last = port.dims[-1]
        channel = rank - 1 if isinstance(last, int) and last in (1, 3, 4) else 1
        return _CHANNELS if axis == channel else _IMAGE if rank == 4 else (16, 8, 32, 64)
    return _SEQUENCE


def fixed_sizes(model: ir.Model) -> tuple[int, ...]:
    """Sizes above one in the shapes of Reshapes and Expands, most frequent first: exporters bake in what they saw."""
    counts: Counter[int] = Counter()
    for node in model.graph:
        if node.op_type in ("Concat", "Expand", "Reshape"):
            for value in node.inputs[node.op_type != "Concat" :]:
                shape = None if value is None else ir.convenience.get_const_tensor(value)
                if shape is not None and shape.dtype == ir.DataType.INT64 and shape.size <= _LARGEST_RANK:
                    counts.update({int(size) for size in shape.numpy().reshape(-1) if size > 1})
    return tuple(size for size, _ in counts.most_common(_FIXED))


def longest_window(model: ir.Model) -> int:
    """The longest window that a model slides along a signal, or mirrors at its ends; 0 where it has none above 64.

    Exporters of speech models leave the length of their input open, but a window has to fit into it.
    """
    lengths = [length for nodes in _node_lists(model) for node in nodes for length in _windows(node)]
    return max((length for length in lengths if length > _LONG), default=0)


def _node_lists(model: ir.Model) -> Iterator[Iterator[ir.Node]]:
    yield model.graph.all_nodes()
    for function in model.functions.values():
        yield function.all_nodes()


def _windows(node: ir.Node) -> Iterator[int]:
    """The lengths of the windows of a node that goes along one axis."""
    match node.op_type:
        case "Conv" if len(node.inputs) > 1 and (weight := node.inputs[1]) is not None and weight.shape is not None:
            if len(weight.shape) == 3 and isinstance(size := weight.shape[2], int):
                yield size
        case "STFT" | "DFT":
            # of STFT the window and its length, of DFT the length that its input is cut or filled to
            for value in node.inputs[2:4] if node.op_type == "STFT" else node.inputs[1:2]:
                tensor = None if value is None else ir.convenience.get_const_tensor(value)
                if tensor is not None:
                    yield int(tensor.size if tensor.size > 1 else tensor.numpy().reshape(()))
                elif value is not None and value.shape is not None and len(value.shape) == 1:
                    yield size if isinstance(size := value.shape[0], int) else 0
        case "Pad" if node.attributes.get_string("mode", "constant") == "reflect" and len(node.inputs) > 1:
            pads = None if node.inputs[1] is None else ir.convenience.get_const_tensor(node.inputs[1])
            if pads is not None and 0 < pads.size <= _LARGEST_RANK:
                yield int(pads.numpy().max())


def signal_sizes(port: Port, axis: int, window: int) -> tuple[int, ...]:
    """Lengths into which a long window fits, for an axis that may be time; empty where it is not."""
    return (2 * window, 4 * window, window, 3 * window) if window and axis > 0 and len(port.dims) < 4 else ()


def may_be_batch(port: Port, axis: int) -> bool:
    """Whether an axis may stand for the batch though it is not the first: that of a state, (layers, batch, width)."""
    dims = port.dims
    return axis == 1 and len(dims) == 3 and isinstance(dims[0], int) and isinstance(dims[2], int)


def timing_candidates_of(port: Port, axis: int) -> tuple[int, ...]:
    """The same sizes, those that models are mostly used at first."""
    sizes = candidates_of(port, axis)
    usual = _USUAL_IMAGE if sizes is _IMAGE else _USUAL_SEQUENCE if sizes is _SEQUENCE else sizes[0]
    return (usual, *(size for size in sizes if size != usual))


def default_shape(declared: Sequence[object]) -> tuple[int, ...]:
    """A declared shape with its dynamic dimensions filled in, without a model to try them out on."""
    spatial = len(declared) >= 4
    return tuple(
        size
        if isinstance(size, int) and size > 0
        else 1
        if axis == 0
        else _USUAL_IMAGE
        if spatial and axis >= 2
        else _USUAL_SEQUENCE
        for axis, size in enumerate(declared)
    )


def combinations(candidates: Mapping[str, tuple[int, ...]]) -> Iterator[Sizes]:
    """Combinations of sizes, those nearest to the front of the lists first; at most `ATTEMPTS`."""
    depths = [range(len(sizes)) for sizes in candidates.values()]
    # with many dimensions only the first sizes of each are combined
    width = max(2, int(4 ** (8 / max(len(depths), 1))))
    places = product(*(depth[:width] for depth in depths)) if len(depths) <= 12 else iter([(0,) * len(depths)])
    for place in sorted(places, key=lambda place: (sum(place), place))[:ATTEMPTS]:
        yield {dim: sizes[i] for (dim, sizes), i in zip(candidates.items(), place, strict=True)}


def second_sizes(candidates: Mapping[str, tuple[int, ...]], base: Sizes, dims: Sequence[str]) -> Iterator[Sizes]:
    """Other sizes of these dimensions: all of them moved, else one of them."""
    if not dims:
        return
    options = {dim: [size for size in candidates[dim] if size != base[dim]][:4] for dim in dims}
    for i in range(max(map(len, options.values()))):
        yield base | {dim: sizes[min(i, len(sizes) - 1)] for dim, sizes in options.items()}
    for dim, sizes in options.items():
        for size in sizes:
            yield base | {dim: size}

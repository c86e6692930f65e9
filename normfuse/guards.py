"""What torch.export took for granted of the sizes of dynamic axes: `Guard`, `Axis`.

A module is traced with one size of each axis, and what it asks of a size is answered for all sizes as for that one.
torch keeps the answers as guards: ranges of sizes, formulas such as `length % 4 == 0`, and axes that it took for one.
`normfuse.trials` finds out which of them the file would need.

This module imports torch.
"""

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch.utils import _pytree as tree
from torch.utils._sympy.printers import PythonPrinter

from normfuse.errors import NormfuseError
from normfuse.limits import Limit

_ENDLESS = 2**48
"""From here on a bound of torch is none."""

Formula = Any
"""A sympy expression; sympy comes with torch, and without types."""

Sizes = Mapping[Formula, int]
"""The values of torch's symbols."""


@dataclass(frozen=True, slots=True)
class Axis:
    """A dynamic axis of an example input.

    Attributes:
        place: which of the leaves of the arguments the input is, and which of its axes this is.
        name: what the user calls it; else its input and its number.
        root: the name of what its size is computed of, where the user declared that; else `name`.
        limit: the sizes that the user declared.
        size: in the example.
        formula: the size as torch knows it.
        named: whether the user gave the name.
    """

    place: tuple[int, int]
    name: str
    root: str
    limit: Limit
    size: int
    formula: Formula
    named: bool


@dataclass(frozen=True, slots=True)
class Guard:
    """Something that torch took for granted.

    Attributes:
        text: as a condition on the user's names.
        symbols: of torch, that it depends on.
        numbers: sizes near which it may change.
        holds: whether it does.
        advice: what the user can do about it.
    """

    text: str
    symbols: frozenset[Formula]
    numbers: frozenset[int]
    holds: Callable[[Sizes], bool]
    advice: str


@dataclass(frozen=True, slots=True)
class Guards:
    """What torch took for granted in one export.

    Attributes:
        axes: the dynamic axes of the inputs.
        guards: ranges and formulas.
    """

    axes: tuple[Axis, ...]
    guards: tuple[Guard, ...]

    @classmethod
    def of(
        cls,
        program: torch.export.ExportedProgram,
        module: torch.nn.Module,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        dynamic_shapes: Any,
    ) -> Self:
        """What torch took for granted of sizes when it made a program of a module."""
        leaves = tree.tree_leaves(bound(module, args, kwargs))
        axes = dynamic_axes(program, leaves, declared(module, args, kwargs, dynamic_shapes))
        return cls(tuple(axes), tuple(guards_of(axes, program) if axes else ()))


def bound(module: torch.nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call by parameter, in the order of the parameters.

    Raises:
        TypeError: the module does not take them.
    """
    return dict(inspect.signature(module.forward).bind(*args, **kwargs).arguments)


def declared(module: torch.nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], spec: Any) -> list[Any]:
    """For each leaf of the arguments, in the order of the parameters, what `dynamic_shapes` says of it."""
    if hasattr(spec, "dynamic_shapes"):  # torch.export.ShapesCollection
        spec = spec.dynamic_shapes(module, tuple(args), dict(kwargs))
    arguments = bound(module, args, kwargs)
    if isinstance(spec, tuple | list):
        spec = dict(zip(arguments, spec, strict=False))
    return [_followed(spec, path) for path, _ in tree.tree_flatten_with_path(arguments)[0]]


def check_declared(module: torch.nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], spec: Any) -> None:
    """Checks what torch would leave out in silence: axes that an input has not, names of nothing, names of two sizes.

    Raises:
        NormfuseError: it would.
    """
    try:
        arguments = bound(module, args, kwargs)
        specs = declared(module, args, kwargs, spec)
    except (AttributeError, LookupError, TypeError, ValueError):
        return  # not nested like the arguments, which torch says better
    sizes: dict[str, tuple[int, str]] = {}
    for (path, leaf), dims in zip(tree.tree_flatten_with_path(arguments)[0], specs, strict=True):
        if not isinstance(leaf, torch.Tensor) or not isinstance(dims, Mapping | tuple | list):
            continue
        where = tree.keystr(path).replace("['", "", 1).replace("']", "", 1)
        rows = dims.items() if isinstance(dims, Mapping) else enumerate(dims)
        for axis, dim in rows:
            if type(axis) is int and not 0 <= axis < leaf.dim():
                known = f"has the axes 0 to {leaf.dim() - 1}" if leaf.dim() else "is a scalar"
                raise NormfuseError(f"dynamic_shapes names axis {axis} of {where}, which {known}")
            if isinstance(dim, str) and not dim.strip():
                raise NormfuseError(f"dynamic_shapes has no name for axis {axis} of {where}: {dim!r}")
            name, size = _name_of(dim), leaf.shape[axis]
            other = sizes.setdefault(name, (size, f"axis {axis} of {where}")) if name else (size, "")
            if other[0] != size:
                raise NormfuseError(
                    f"the dimension {name!r} is {other[0]} as {other[1]} and {size} as axis {axis} of {where}; give "
                    "the two sizes two names, or inputs that agree"
                )


def _followed(spec: Any, path: Iterable[Any]) -> Any:
    for part in path:
        key = next(getattr(part, kind) for kind in ("key", "name", "idx") if hasattr(part, kind))
        if spec is None:
            return None
        if isinstance(spec, Mapping):
            spec = spec.get(key)
        elif isinstance(key, int) and isinstance(spec, Sequence):
            spec = spec[key] if key < len(spec) else None
        else:
            spec = getattr(spec, str(key), None)
    return spec


def dynamic_axes(program: torch.export.ExportedProgram, leaves: Sequence[Any], specs: Sequence[Any]) -> list[Axis]:
    """The axes of the example inputs that torch left dynamic.

    Args:
        program: what torch made of the module.
        leaves: of the arguments, in the order of the parameters.
        specs: what the user declared for each.
    """
    given = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    inputs = [one.arg for one in program.graph_signature.input_specs if one.kind.name == "USER_INPUT"]
    nodes = [given[name] for one in inputs if (name := getattr(one, "name", "")) in given]
    tensors = [(place, leaf) for place, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
    nodes = [node for node in nodes if isinstance(node.meta.get("val"), torch.Tensor)]
    axes = []
    for node, (place, leaf) in zip(nodes, tensors, strict=True):
        for number, size in enumerate(node.meta["val"].shape):
            if not isinstance(size, int):
                dim = _dim(specs[place], number)
                name, root, limit = _titled(dim, f"{node.name}[{number}]")
                axes.append(
                    Axis((place, number), name, root, limit, leaf.shape[number], size.node.expr, name == _name_of(dim))
                )
    return axes


def _dim(spec: Any, axis: int) -> Any:
    if isinstance(spec, Mapping):
        return spec.get(axis)
    return spec[axis] if isinstance(spec, tuple | list) and axis < len(spec) else None


def _name_of(dim: Any) -> str:
    return dim if isinstance(dim, str) else str(getattr(dim, "__name__", ""))


def _titled(dim: Any, other: str) -> tuple[str, str, Limit]:
    """The name of a dimension, that of its root, and its limit."""
    if isinstance(dim, str):
        return dim, dim, Limit()
    least, most = _bound(getattr(dim, "min", None)), _bound(getattr(dim, "max", None))
    name = _name_of(dim) or other
    root, law = getattr(dim, "root", None), getattr(dim, "fn", None)
    if root is None or law is None:
        return name, name, Limit(max(1, least or 1), most)
    offset, step = int(law(0)), int(law(1)) - int(law(0))
    return name, root.__name__, Limit(max(1, least or 1), most, step, offset % step)


def _bound(value: Any) -> int | None:
    try:
        number = int(value)
    except (AttributeError, OverflowError, TypeError, ValueError):  # torch's infinities are of its own
        return None
    return number if abs(number) < _ENDLESS else None


def guards_of(axes: Sequence[Axis], program: torch.export.ExportedProgram) -> list[Guard]:
    """What torch took for granted of the sizes that dynamic axes stand for."""
    environment = _environment(program)
    known = {symbol for axis in axes for symbol in axis.formula.free_symbols}
    names: dict[Formula, Formula] = {}
    for axis in axes:
        for symbol in axis.formula.free_symbols:
            if symbol not in names or axis.formula.is_Symbol:
                names[symbol] = type(symbol)(axis.root, integer=True)
    found: dict[str, Guard] = {}
    asserted = [one.expr for some in environment.deferred_runtime_asserts.values() for one in some]
    for expression in (*asserted, *(guard.expr for guard in environment.guards)):
        condition = environment.replace(expression)
        symbols = frozenset(condition.free_symbols)
        if symbols and symbols <= known:  # others are of what depends on values, which torch checks itself
            guard = _asserted(condition, symbols, names)
            if guard.text != "True":
                found[guard.text] = guard
    for symbol, span in environment.var_to_range.items():
        if symbol in known:
            title = str(names[symbol])
            for least, most in ((_bound(span.lower), None), (None, _bound(span.upper))):
                if most is not None or (least is not None and least > 1):
                    guard = _ranged(title, symbol, least, most)
                    found[guard.text] = guard
    return list(found.values())


def _asserted(condition: Formula, symbols: frozenset[Formula], names: Mapping[Formula, Formula]) -> Guard:
    text = PythonPrinter().doprint(condition.xreplace(dict(names))).replace("torch.sym_", "")
    text = re.sub(r"\d+\.\d+", lambda number: f"{float(number[0]):g}", text)
    titles = " and ".join(sorted({str(names[symbol]) for symbol in symbols}))
    advice = (
        f"leave {titles} out of dynamic_shapes, rule such sizes out, as torch.export.Dim(name, min=…, max=…) does "
        "(--limit), or take the condition out of the module"
    )
    numbers = frozenset(int(one) for one in condition.atoms() if one.is_Integer and 0 <= one < _ENDLESS)
    return Guard(text, symbols, numbers, _holding(condition), advice)


def _ranged(title: str, symbol: Formula, least: int | None, most: int | None) -> Guard:
    inside = Limit(1 if least is None else least, most)
    sign, bound, number = ("<=", "max", most) if most is not None else (">=", "min", least or 1)
    advice = (
        f"leave {title} out of dynamic_shapes, or make the limit your own with "
        f"torch.export.Dim({title!r}, {bound}={number}) (--limit {title}={least or 1}..{most or ''})"
    )
    return Guard(
        f"{title} {sign} {number}",
        frozenset({symbol}),
        frozenset({number}),
        lambda sizes: inside.allows(sizes[symbol]),
        advice,
    )


def _holding(condition: Formula) -> Callable[[Sizes], bool]:
    return lambda sizes: bool(condition.subs(dict(sizes)) == True)  # noqa: E712  # sympy's own true


def _environment(program: torch.export.ExportedProgram) -> Any:
    for node in program.graph.nodes:
        value = node.meta.get("val")
        for size in value.shape if node.op == "placeholder" and isinstance(value, torch.Tensor) else ():
            if not isinstance(size, int):
                return size.node.shape_env
    raise AssertionError("there is no dynamic axis")

"""Random graphs: how one grows, node by node, from choices that a seed or hypothesis makes.

A graph is a function of its choices alone. A `Step` reads a value and adds one operator or a few; what does not fit
(the rank, the opset, the dtype) is taken back. Every choice is a number below a bound, and 0 is the simplest, so that
a failing graph can be made small by making choices small. The steps are in `scripts.graphs_linear`, `graphs_places`,
`graphs_norms` and `graphs_nesting`; `scripts.random_graphs` puts them together.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Protocol, TypeVar

import ml_dtypes
import numpy as np
import onnx

Array = np.ndarray[Any, Any]
Dim = int | str
Option = TypeVar("Option")

LARGEST = 2500
"""So many elements a value may have."""

FLOATS: dict[str, Any] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "float64": np.dtype(np.float64),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
"""The dtypes that values have."""


class UnfitError(Exception):
    """A step does not fit where it stands."""


def need(condition: object) -> None:
    """Lets a step go on.

    Raises:
        UnfitError: the condition is false.
    """
    if not condition:
        raise UnfitError


class Choices(Protocol):
    """What makes the choices."""

    def below(self, bound: int) -> int:
        """A number from 0 to bound − 1; 0 is the simplest choice."""


def one_of(choices: Choices, options: Sequence[Option]) -> Option:
    """One of some options, the simplest first."""
    return options[choices.below(len(options))]


class Seeded:
    """Choices by a seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def below(self, bound: int) -> int:
        """A number from 0 to bound − 1."""
        return self._random.randrange(bound)


@dataclass(frozen=True, slots=True)
class Value:
    """A float value of a growing graph.

    Attributes:
        name: its name.
        dims: sizes; a string where it is dynamic, equal for what is surely equal.
        dtype: one of `FLOATS`.
    """

    name: str
    dims: tuple[Dim, ...]
    dtype: np.dtype[Any]

    @property
    def rank(self) -> int:
        """The number of dimensions."""
        return len(self.dims)

    def sized(self, least: int = 1) -> list[int]:
        """The axes whose size is a number, not below `least`."""
        return [axis for axis, dim in enumerate(self.dims) if isinstance(dim, int) and dim >= least]

    def size(self, axis: int) -> int:
        """The size of an axis.

        Raises:
            UnfitError: there is no such axis, or it is dynamic.
        """
        need(axis < self.rank)
        dim = self.dims[axis]
        if not isinstance(dim, int):
            raise UnfitError
        return dim

    def having(self, axis: int, dim: Dim) -> tuple[Dim, ...]:
        """The dimensions with another size of one axis."""
        return (*self.dims[:axis], dim, *self.dims[axis + 1 :])


class Numbers:
    """Gives out numbers for names that are free everywhere in a model."""

    def __init__(self) -> None:
        self._last = 0

    def next(self) -> int:
        """The next one."""
        self._last += 1
        return self._last


@dataclass
class Growth:
    """A graph, or the body of a subgraph or function, that grows.

    Attributes:
        choices: what chooses.
        opset: of the default domain.
        rng: draws the numbers in weights.
        numbers: for names.
        dtype: of the floats that are written now.
        inline: whether constants are nodes always, as in the body of a function.
        nodes: what has grown.
        constants: initializers.
        values: the values that steps may read, oldest first; those around a subgraph are among them.
        pool: names of weights that may be read again, by shape and dtype.
        functions: model-local functions.
        depth: how deep in subgraphs and functions this is.
    """

    choices: Choices
    opset: int
    rng: np.random.Generator
    numbers: Numbers = field(default_factory=Numbers)
    dtype: np.dtype[Any] = FLOATS["float32"]
    inline: bool = False
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    pool: dict[tuple[Any, ...], list[str]] = field(default_factory=dict)
    functions: list[onnx.FunctionProto] = field(default_factory=list)
    depth: int = 0

    def choose(self, *options: Option) -> Option:
        """One of some options, the simplest first."""
        return one_of(self.choices, options)

    def chance(self, percent: int) -> bool:
        """True as often as that; False is simpler."""
        return self.choices.below(100) >= 100 - percent

    def name(self, prefix: str) -> str:
        """A free name."""
        return f"{prefix}{self.numbers.next()}"

    def within(self, *, inline: bool = False) -> "Growth":
        """The body of a subgraph of this one; where `inline`, of a function, which sees nothing around it."""
        values, pool = ([], {}) if inline else (list(self.values), {key: list(had) for key, had in self.pool.items()})
        return replace(self, inline=inline, nodes=[], constants=[], values=values, pool=pool, depth=self.depth + 1)

    def constant(self, content: Any, dtype: Any = None) -> str:
        """Writes a constant, an initializer or a Constant node, and returns its name."""
        array = np.asarray(content, self.dtype if dtype is None else dtype)
        name = self.name("k")
        if not self.inline and not self.chance(25):
            self.constants.append(onnx.numpy_helper.from_array(array, name))
            return name
        spelled: dict[str, Any] = {"value": onnx.numpy_helper.from_array(array, f"{name}_value")}
        if self.opset >= 12 and array.dtype.name in ("float32", "int64") and array.ndim < 2 and self.chance(40):
            kind = "float" if array.dtype.kind == "f" else "int"
            spelled = {f"value_{kind}s": array.tolist()} if array.ndim else {f"value_{kind}": array.item()}
            need(array.size)
        self.nodes.append(onnx.helper.make_node("Constant", [], [name], name=f"n_{name}", **spelled))
        return name

    def integers(self, *numbers: int) -> str:
        """Writes a vector of int64."""
        return self.constant(numbers, np.int64)

    def number(self, value: float) -> str:
        """Writes a scalar, or a vector of one."""
        return self.constant(np.full(self.choose((), (1,)), value))

    def weight(self, *shape: int, low: float | None = None, high: float = 1.0) -> str:
        """Writes a weight, or reads one of the same shape again.

        Args:
            shape: its shape.
            low: the numbers are from U(low, high), where given; else from a normal distribution that keeps the size
                of what is multiplied.
            high: see `low`.
        """
        key = (shape, self.dtype.name, low, high)
        known = self.pool.setdefault(key, [])
        if known and self.chance(15):
            return self.choose(*known)
        if low is None:
            spread = max(1, int(np.prod(shape[1:]))) ** -0.5 if len(shape) > 1 else 0.6
            array = self.rng.normal(0.05, spread, shape)
        else:
            array = self.rng.uniform(low, high, shape)
        known.append(self.constant(array))
        return known[-1]

    def scale(self, *shape: int) -> str:
        """Writes a scale: positive, of both signs, or with zeros."""
        array = self.rng.uniform(0.5, 1.6, shape)
        match self.choose("positive", "positive", "signs", "zeros"):
            case "signs":
                array *= np.where(self.rng.random(shape) < 0.4, -1, 1)
            case "zeros":
                array *= np.where(self.rng.random(shape) < 0.3, 0, 1)
        return self.constant(array)

    def add(self, operator: str, inputs: Sequence[str], dims: Sequence[Dim], **attributes: Any) -> Value:
        """Writes a node with one output of the current dtype.

        Raises:
            UnfitError: the operator does not exist in this opset or takes no values of this dtype, or the output has
                no elements or too many.
        """
        need(accepts(operator, self.opset, self.dtype.name))
        need(operator != "Reshape" or 0 not in dims)  # a 0 copies, and nothing can be −1 beside it
        return self.add_any(operator, inputs, dims, **attributes)

    def add_any(self, operator: str, inputs: Sequence[str], dims: Sequence[Dim], **attributes: Any) -> Value:
        """The same for a function, which takes all dtypes."""
        sizes = [dim for dim in dims if isinstance(dim, int)]
        need(all(size >= 0 for size in sizes) and int(np.prod(sizes)) <= LARGEST and len(dims) <= 6)
        name = self.name("v")
        self.nodes.append(onnx.helper.make_node(operator, inputs, [name], name=f"n_{name}", **attributes))
        return Value(name, tuple(dims), self.dtype)

    def both(self, operator: str, one: str, other: str, dims: Sequence[Dim]) -> Value:
        """Writes a node whose two inputs may change places."""
        return self.add(operator, [other, one] if self.chance(40) else [one, other], dims)

    def reduce(self, operator: str, x: Value, axes: Sequence[int], *, keepdims: bool = True) -> Value:
        """Writes a reduction with its axes as the opset has them, some of them negative."""
        stated = [axis - x.rank if self.opset >= 11 and self.chance(30) else axis for axis in axes]
        dims = tuple(1 if axis in axes else dim for axis, dim in enumerate(x.dims) if keepdims or axis not in axes)
        if self.opset >= (13 if operator == "ReduceSum" else 18):
            return self.add(operator, [x.name, self.integers(*stated)], dims, keepdims=int(keepdims))
        return self.add(operator, [x.name], dims, axes=stated, keepdims=int(keepdims))

    @contextmanager
    def of(self, dtype: np.dtype[Any]) -> Iterator[None]:
        """Writes values of another dtype meanwhile."""
        before, self.dtype = self.dtype, dtype
        try:
            yield
        finally:
            self.dtype = before

    def attempt(self, step: "Step", x: Value) -> Value | None:
        """Takes a step; None where it does not fit, and all is as it was."""
        marks = len(self.nodes), len(self.constants), len(self.values), len(self.functions)
        pool = {key: list(names) for key, names in self.pool.items()}
        before, self.dtype = self.dtype, x.dtype
        try:
            return step(self, x)
        except UnfitError:
            for grown, mark in zip((self.nodes, self.constants, self.values, self.functions), marks, strict=True):
                del grown[mark:]  # type: ignore[attr-defined]  # they are lists of unlike things
            self.pool = pool
            return None
        finally:
            self.dtype = before

    def walk(self, steps: Sequence[Sequence["Step"]], x: Value, length: int, *, dims: bool = False) -> Value:
        """Takes some steps from a value, each from the newest value or seldom from an older one.

        Args:
            steps: kinds of steps; one is chosen, then a step of it.
            x: where to start.
            length: how many steps are to fit.
            dims: whether each step must keep dimensions and dtype, and start at the newest value.

        Returns:
            the newest value.
        """
        taken = 0
        for _ in range(4 * length):
            if taken >= length:
                break
            source = x if dims or not self.values or not self.chance(8) else self.choose(*self.values)
            made = self.attempt(self.choose(*self.choose(*steps)), source)
            if made is None:
                continue
            if dims and (made.dims, made.dtype) != (x.dims, x.dtype):
                continue  # what was written stays unread, as dead code does
            self.values.append(made)
            x, taken = made, taken + 1
        return x


Step = Callable[[Growth, Value], Value]
"""Writes nodes that read a value, or raises `UnfitError`."""


@cache
def accepts(operator: str, opset: int, dtype: str) -> bool:
    """Whether an operator of the default domain exists in an opset and takes values of a dtype."""
    try:
        schema = onnx.defs.get_schema(operator, opset)
    except onnx.defs.SchemaError:
        return False
    if schema.deprecated:
        return False
    kinds = {"float32": "float", "float64": "double"}
    kind = f"tensor({kinds.get(dtype, dtype)})"
    read = schema.inputs if operator in ("Pow", "Loop", "Scan", "If") else schema.inputs[:1]
    read = [*read, *schema.outputs] if operator == "If" else read
    return all(kind in one.types for one in read if "tensor(float)" in one.types)

"""Whether a file would be right where a guard of torch.export does not hold: `judge_guards`.

ONNX knows no guards: the file computes something for every size. At sizes where a guard does not hold, a copy of the
module and the file are run on the same inputs.

    the module fails there              the file needs no guard: a table that ends, shapes that do not fit together
    both give the same                  the guard was about speed, as those on the batch of a convolution are
    the file fails there, loudly        a note says so
    they differ                         the file would be wrong, and the export is refused

Two axes that torch took for one while the module does not need them to be are refused as well: the shapes in the file
say that they are equal. Sizes that the user ruled out, by `torch.export.Dim(name, min=…, max=…)`, are not tried; they
are kept in the file (`normfuse.limits`).

This module imports torch.
"""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from math import prod
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
import torch
from torch.utils import _pytree as tree

from normfuse.assignments import Places, Space
from normfuse.calls import outputs_of, to_array
from normfuse.errors import ExportError, TargetError
from normfuse.guards import Axis, Guards, Sizes, bound
from normfuse.limits import Limit, note_limits
from normfuse.modules import copied

LARGEST = 2**24
"""Numbers that the inputs of a trial may have."""

TRIALS, JUDGED = 6, 3
"""How many assignments of sizes are tried for a guard, and after how many at which the module runs that is enough."""

MANY = 8
"""Where inputs are so many times as large as the example, one assignment is enough."""

VARIED = 64
"""So many values of an example are looked at; where few of them differ, N(0, 1) is tried as well: zeros hide much."""

CLOSE = {8: 1e-9, 4: 1e-4, 2: 5e-2}
"""The distance of two outputs, relative, that is rounding whatever it is at the sizes of the example, by bytes."""

SLACK = 30
"""A distance so many times that at the sizes of the example is rounding, too."""

Array = np.ndarray[Any, Any]
Outcome = Literal["same", "differs", "module fails", "file fails", "random", "not tried"]


class Trials:
    """A copy of a module, and the file that was made of it, run side by side at other sizes than the example's."""

    def __init__(
        self, module: torch.nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], model: ir.Model, run: "Run"
    ) -> None:
        """Takes the module in the mode that it was captured in, the example, the file, and what runs that."""
        self._bound = inspect.signature(module.forward).bind(*args, **kwargs)
        self._module, self._run = copied(module), run
        self._leaves, self._spec = tree.tree_flatten(dict(self._bound.arguments))
        self._names = [str(value.name) for value in model.graph.inputs]
        self._outputs = [str(value.name) for value in model.graph.outputs]
        self._known: dict[tuple[tuple[tuple[int, int], int], ...], Outcome] = {}
        self._base: float | None = None
        floats = [leaf for leaf in self._leaves if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()]
        self._is_poor = any(len(set(leaf.detach().flatten()[:VARIED].tolist())) < VARIED // 2 for leaf in floats)
        self._numbers = self._count({})

    def outcome(self, places: Places) -> Outcome:
        """What becomes of both at these sizes of the dynamic axes."""
        key = tuple(sorted(places.items()))
        if key not in self._known:
            found = [self._compared(places, own) for own in ((True, False) if self._is_poor else (True,))]
            order: tuple[Outcome, ...] = ("differs", "random", "not tried", "file fails", "same", "module fails")
            self._known[key] = next(outcome for outcome in order if outcome in found)
        return self._known[key]

    def _compared(self, places: Places, own: bool) -> Outcome:
        drawn = self._drawn(places, own)
        if drawn is None:
            return "not tried"
        wanted = self._wanted(drawn)
        if not isinstance(wanted, dict):
            return wanted
        given = self._given(drawn)
        if given is None:
            return "file fails"
        if self._base is None:
            first = self._drawn({}, own)
            expected = None if first is None else self._wanted(first)
            if first is None or not isinstance(expected, dict) or _apart(expected, self._wanted(first)) > 0:
                return "random"
            self._base = _apart(expected, self._given(first))
        floors = (CLOSE.get(value.dtype.itemsize, 0.0) for value in wanted.values() if _is_float(value))
        floor = max(floors, default=0.0)
        return "same" if _apart(wanted, given) <= max(floor, SLACK * self._base) else "differs"

    def is_large(self, places: Places) -> bool:
        """Whether inputs of these sizes are so much larger than the example that one trial is enough."""
        return self._count(places) > MANY * self._numbers

    def _count(self, places: Places) -> int:
        return sum(map(prod, self._shapes(places).values()))

    def _shapes(self, places: Places) -> dict[int, list[int]]:
        shapes = {place: list(leaf.shape) for place, leaf in enumerate(self._leaves) if isinstance(leaf, torch.Tensor)}
        for (place, axis), size in places.items():
            shapes[place][axis] = size
        return shapes

    def _drawn(self, places: Places, own: bool) -> list[Any] | None:
        """Inputs of these sizes: of the values of the example, or N(0, 1) for real numbers; None where too large."""
        generator = torch.Generator().manual_seed(0)
        shapes = self._shapes(places)
        if self._count(places) > LARGEST:
            return None
        leaves = list(self._leaves)
        for place, shape in shapes.items():
            leaves[place] = _filled(leaves[place], shape, generator, own)
        return leaves

    def _wanted(self, leaves: Sequence[Any]) -> dict[str, Array] | Outcome:
        """What the module gives."""
        fresh = [leaf.clone() if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        self._bound.arguments.update(tree.tree_unflatten(fresh, self._spec))
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                found = outputs_of(self._module(*self._bound.args, **self._bound.kwargs))
        except (MemoryError, torch.OutOfMemoryError):
            return "not tried"
        except Exception as error:  # whatever the module's own code raises
            return "not tried" if "allocate memory" in str(error) else "module fails"
        return dict(zip(self._outputs, found.values(), strict=False))

    def _given(self, leaves: Sequence[Any]) -> Mapping[str, Array] | None:
        """What the file gives; None where it fails."""
        arrays = [to_array(leaf) for leaf in leaves if isinstance(leaf, torch.Tensor)]
        try:
            return self._run(dict(zip(self._names, arrays, strict=True)))
        except TargetError:
            return None


Run = Callable[[Mapping[str, Array]], Mapping[str, Array]]


def judge_guards(
    guards: Guards, module: torch.nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], model: ir.Model
) -> list[str]:
    """Tries what torch took for granted of sizes, and writes into the model which the user declared.

    Args:
        guards: what torch took for granted.
        module: in the mode that it was captured in.
        args: positional arguments of the example.
        kwargs: keyword arguments of it.
        model: what was captured.

    Returns:
        what the user should know.

    Raises:
        ExportError: the file would compute something else than the module at sizes that the user did not rule out.
    """
    if not guards.axes:
        return []
    tensors = [
        place
        for place, leaf in enumerate(tree.tree_leaves(bound(module, args, kwargs)))
        if isinstance(leaf, torch.Tensor)
    ]
    inputs = dict(zip(tensors, model.graph.inputs, strict=True))
    limits = {name_in(model, inputs[axis.place[0]], axis): axis.limit for axis in guards.axes}
    note_limits(model, limits)
    notes = [f"{name} is {limit}, as declared: the file says so" for name, limit in limits.items() if limit != Limit()]
    space = Space(guards.axes)
    found = [(guard, list(islice(space.violating(guard), 8 * TRIALS))) for guard in guards.guards]
    parted = list(space.parted())
    if not parted and not any(sizes for _, sizes in found):
        return notes
    title = type(module).__name__
    trials = Trials(module, args, kwargs, model, runner(model))
    for one, other, some in parted:
        if any(trials.outcome(sizes) != "module fails" for sizes in some):
            raise ExportError(
                f"{title} takes {one!r} and {other!r} of different sizes, too, but torch.export took them for one "
                "dimension: give both the same name where they are always equal, or leave one out of dynamic_shapes"
            )
    for guard, assignments in found:
        assignments.sort(key=lambda values: sum(not one.holds(values) for one in guards.guards))
        outcomes: list[Outcome] = []
        for values in _spread(assignments):
            places = space.sizes(values) or {}
            outcome = trials.outcome(places)
            outcomes.append(outcome)
            if outcome == "differs":
                asked = [axis for axis in space.axes if axis.formula.free_symbols & guard.symbols]
                at = ", ".join(dict.fromkeys(f"{axis.name} = {space.size(axis, values)}" for axis in asked))
                raise ExportError(
                    f"{title} computes something else unless {guard.text}, such as for {at}; torch.export took it for "
                    f"granted, as it is so for the example: {guard.advice}"
                )
            ran = len([one for one in outcomes if one != "module fails"])
            if ran >= JUDGED or (ran and trials.is_large(places)):
                break
        for outcome, what in (
            ("file fails", "the file does not run, though the module does"),
            ("random", "nothing could be compared, for the module gives something else each time"),
            ("not tried", "nothing was tried: such inputs are too large"),
        ):
            if outcome in outcomes:
                notes.append(f"torch.export took for granted that {guard.text}: elsewhere {what}")
    return notes


def _spread(assignments: Sequence[Sizes]) -> Iterator[Sizes]:
    """Some of them, near ones and far ones: where two sizes are just equal, both branches of a comparison may agree."""
    last = len(assignments) - 1
    places = (0, last // 2, last, 1, last // 4, 3 * last // 4)
    for place in dict.fromkeys(places[:TRIALS] if last >= 0 else ()):
        if place <= last:
            yield assignments[place]


def name_in(model: ir.Model, value: ir.Value, axis: Axis) -> str:
    """What a dynamic axis is called in a file; where torch left it its own name though the user gave one, that one."""
    size = None if value.shape is None else value.shape[axis.place[1]]
    name = str(size.value) if isinstance(size, ir.SymbolicDim) else ""
    if axis.named and axis.formula.is_Symbol and name == str(axis.formula) != axis.name:
        rename(model, name, axis.name)
        return axis.name
    return name


def rename(model: ir.Model, old: str, new: str) -> None:
    """Renames a dimension in all shapes of a model, formulas with it included."""
    word = re.compile(rf"\b{re.escape(old)}\b")
    values = {id(value): value for graph in model.graphs() for value in (*graph.inputs, *graph.initializers.values())}
    values |= {id(value): value for graph in model.graphs() for node in graph for value in node.outputs}
    for value in values.values():
        for number, size in enumerate(value.shape or ()):
            if isinstance(size, ir.SymbolicDim) and size.value and word.search(size.value):
                shape = value.shape
                assert shape is not None
                shape[number] = ir.SymbolicDim(word.sub(new, size.value))


def runner(model: ir.Model) -> Run:
    """What runs a model once, by name; its own operators are as they are written."""
    from normfuse.evaluated import Evaluated
    from normfuse.runtime import is_installed, session

    if is_installed():
        try:
            loaded = session(model, "disabled", name="the module as it was captured")
            return loaded.run
        except TargetError:
            pass  # such as for want of kernels in bfloat16
    return Evaluated(model, "the module as it was captured").run


def _filled(tensor: torch.Tensor, shape: Sequence[int], generator: torch.Generator, own: bool) -> torch.Tensor:
    if not own and tensor.is_floating_point():
        return torch.randn(tuple(shape), generator=generator).to(tensor)
    values = tensor.detach().reshape(-1)
    places = torch.randint(max(values.numel(), 1), (prod(shape),), generator=generator)
    return values[places.to(values.device)].reshape(tuple(shape))


def _apart(wanted: Any, given: Any) -> float:
    """The largest distance of two sets of outputs, relative; infinite where shapes or what is not finite differ."""
    if not isinstance(given, Mapping):
        return np.inf
    worst = 0.0
    for name, y in wanted.items():
        other = given[name]
        if y.shape != other.shape:
            return np.inf
        a, b = (np.asarray(one, np.complex128 if one.dtype.kind == "c" else np.float64) for one in (y, other))
        odd = ~np.isfinite(a)
        if not np.array_equal(odd, ~np.isfinite(b)):
            return np.inf
        a, b = np.where(odd, 0, a), np.where(odd, 0, b)
        scale = float(np.linalg.norm(a))
        distance = float(np.linalg.norm(a - b))
        worst = max(worst, distance / scale if scale else distance)
    return worst


def _is_float(value: Array) -> bool:
    return bool(value.dtype.kind == "f" or value.dtype.name == "bfloat16")

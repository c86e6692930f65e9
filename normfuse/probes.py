"""Inputs that tell near-equal formulas apart.

Plain N(0, 1) cannot tell ε inside a root from ε outside it, nor E[x²] − E[x]² from a centred variance. With
z ~ N(0, 1):

| family | inputs | tells apart |
|---|---|---|
| scale 1, scale 1e-3, scale 1e2 | z · scale | ε and where it stands, saturation |
| mean 30, mean 1e3 | mean + z | one-pass variances, cancellation |
| constant rows | one value along the last axis | what is divided by σ = 0 |
| heavy tails | Student's t with two degrees of freedom | clipping |
| large channel | one channel a hundred times the rest | groups, axes |
| unit interval | uniform in [0, 1] | nothing by itself: what images look like |
| batch 3, second size | z at other sizes of the dynamic dimensions | constants that were shapes |

Integer inputs are drawn below the size of the table they index, else from {0, 1}.
"""

import os
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from normfuse.errors import NormfuseError
from normfuse.limits import Limit, limits_of
from normfuse.ports import (
    BATCH,
    Port,
    Sizes,
    candidates_of,
    combinations,
    fixed_sizes,
    inputs_of,
    is_float_type,
    longest_window,
    may_be_batch,
    port_of,
    second_sizes,
    signal_sizes,
    timing_candidates_of,
)

if TYPE_CHECKING:
    from normfuse.runtime import Session

Array = np.ndarray[Any, Any]
Inputs = dict[str, Array]

LARGEST = 2**28
"""Numbers that an input may have when it is drawn."""

SANE = ("scale 1", "unit interval", "batch 3", "second size", "data")
"""Families on which a model is not ill-conditioned by construction."""

_FAMILIES: dict[str, Callable[[np.random.Generator, Array], Array]] = {
    "scale 1": lambda rng, z: z,
    "scale 1e-3": lambda rng, z: z * 1e-3,
    "mean 30": lambda rng, z: z + 30.0,
    "scale 1e2": lambda rng, z: z * 1e2,
    "constant rows": lambda rng, z: np.broadcast_to(z[..., :1], z.shape),
    "large channel": lambda rng, z: z * _one_large(rng, z.shape),
    "heavy tails": lambda rng, z: np.asarray(rng.standard_t(2, z.shape)),
    "mean 1e3": lambda rng, z: z + 1e3,
    "unit interval": lambda rng, z: np.asarray(rng.random(z.shape)),
}
_BINARY = ("zeros and ones", "other zeros and ones")
"""Masks, in every other input beside numbers of scale 1; and in the others. Not in a single one: what norms make of two
values may cancel by chance, exactly so in one form and not in another."""
_DISCRETE = ("scale 1", "constant rows")
"""The families that say something of a model without float inputs."""

_OTHER_SIDE = ("constant rows", "heavy tails")
"""The families in which conditions are false, and masks begin with a place that is not set."""


@dataclass(frozen=True, slots=True)
class Probe:
    """One set of inputs.

    Attributes:
        family: the row of the table above that it belongs to, or `data` for the user's own.
        inputs: arrays by input name.
    """

    family: str
    inputs: Inputs


@dataclass(frozen=True, slots=True)
class Plan:
    """What probes of a model look like: its inputs and sizes it was seen to accept.

    Attributes:
        ports: the inputs.
        sizes: sizes of the dynamic dimensions for the main families.
        others: by family, other sizes.
    """

    ports: tuple[Port, ...]
    sizes: Sizes
    others: dict[str, Sizes] = field(default_factory=dict)

    def probes(self, seed: int) -> Iterator[Probe]:
        """One probe of each family."""
        floats = [port for port in self.ports if is_float_type(port.dtype)]
        names = list(_FAMILIES) if floats else list(_DISCRETE)
        for index, name in enumerate(names):
            yield self._probe(name, name, self.sizes, np.random.default_rng((seed, index)))
            if index == 0:
                for place, (other, sizes) in enumerate(self.others.items()):
                    yield self._probe(other, name, sizes, np.random.default_rng((seed, place, 1)))

        for turn, family in enumerate(_BINARY if len(floats) > 1 else ()):
            binary = {port.name for port in floats[turn :: len(_BINARY)]}
            laws = {port.name: family if port.name in binary else "scale 1" for port in self.ports}
            yield self._probe(family, laws, self.sizes, np.random.default_rng((seed, turn, 2)))

    def _probe(self, family: str, law: str | Mapping[str, str], sizes: Sizes, rng: np.random.Generator) -> Probe:
        laws = law if isinstance(law, Mapping) else {port.name: law for port in self.ports}
        return Probe(family, {port.name: _draw(port, port.shape(sizes), laws[port.name], rng) for port in self.ports})


def plan(
    model: ir.Model,
    accepts: Callable[[Inputs], bool],
    shapes: Mapping[str, Sequence[int] | int] | None = None,
    candidates_of: Callable[[Port, int], tuple[int, ...]] = candidates_of,
) -> Plan:
    """Finds sizes of the dynamic dimensions that a model accepts.

    Args:
        model: the model.
        accepts: runs the model and says whether it took the inputs.
        shapes: shapes by input name, or sizes by the name of a dynamic dimension, where the caller knows them.
        candidates_of: the sizes to try for an axis of an input, best first.

    Raises:
        NormfuseError: an input cannot be probed, or no sizes were accepted.
    """
    shapes = dict(shapes or {})
    ports = tuple(port_of(value, shapes) for value in inputs_of(model))
    known = {port.name for port in ports} | set(_symbols(model))
    for name in shapes:
        if name not in known:
            raise NormfuseError(
                f"there is no input {name!r} to give a shape to; the model has {', '.join(sorted(known))}"
            )
    limits = limits_of(model)
    for name, size in shapes.items():
        if isinstance(size, int) and name in limits and not limits[name].allows(size):
            raise NormfuseError(f"dimension {name!r} cannot be {size}: the model was exported for {limits[name]}")
    candidates: dict[str, tuple[int, ...]] = {}
    window, states = longest_window(model), set[str]()
    for port in ports:
        for axis, dim in enumerate(port.dims):
            if isinstance(dim, str):
                candidates.setdefault(dim, (*signal_sizes(port, axis, window), *candidates_of(port, axis)))
                states |= {dim} if may_be_batch(port, axis) else set()
    batch = {dim for dim, sizes in candidates.items() if sizes == BATCH}
    fixed = fixed_sizes(model)
    attempts = [(candidates, batch)]
    if fixed and candidates:
        mixed = {dim: (*own, *fixed) if own == BATCH else (*fixed, *own) for dim, own in candidates.items()}
        attempts.append((mixed, batch))
    if states - batch:
        attempts.append((candidates | dict.fromkeys(states, BATCH), batch | states))
    found = next(
        (
            (sizes, first)
            for some, first in attempts
            for sizes in combinations(_allowed(some, limits))
            if _takes(ports, sizes, accepts)
        ),
        None,
    )
    if found is None:
        tried = ", ".join(candidates)
        if not tried:
            sizes = ", ".join(f"{port.name} {'×'.join(map(str, port.shape({}))) or 'a scalar'}" for port in ports)
            raise NormfuseError(f"the model does not run on inputs of these shapes: {sizes}; give others, or data")
        raise NormfuseError(
            f"the model took no sizes of its dynamic dimensions ({tried}) that were tried; "
            "give shapes (--shape NAME=1x3x224x224), or data (--data)"
        )
    base, batch = found
    candidates = _allowed(candidates, limits)
    others: dict[str, Sizes] = {}
    larger = base | {dim: limits[dim].nearest(3) if dim in limits else 3 for dim in batch}
    if larger != base and _takes(ports, larger, accepts):
        others["batch 3"] = larger
    rest = [dim for dim in candidates if dim not in batch]
    for second in second_sizes(candidates, base, rest):
        if _takes(ports, second, accepts):
            others["second size"] = second
            break
    return Plan(ports, base, others)


def probes(model: ir.Model, *, seed: int, shapes: Mapping[str, Sequence[int] | int] | None = None) -> Iterator[Probe]:
    """Probes of a model, its sizes tried out with ONNX Runtime.

    Args:
        model: the model.
        seed: of the random numbers.
        shapes: as for `plan`.

    Raises:
        NormfuseError: as for `plan`.
        TargetError: ONNX Runtime cannot load the model.
    """
    from normfuse.errors import TargetError
    from normfuse.runtime import session

    loaded = session(model, "disabled")

    def accepts(inputs: Inputs) -> bool:
        try:
            loaded.run(inputs)
        except TargetError:
            return False
        return True

    return plan(model, accepts, shapes).probes(seed)


def typical_inputs(
    model: ir.Model,
    loaded: "Session",
    *,
    shapes: Mapping[str, Sequence[int] | int] | None = None,
    data: str | PathLike[str] | Mapping[str, Array] | Collection[Any] | None = None,
    seed: int = 0,
) -> Inputs:
    """One set of inputs to time a model with: the caller's own, or N(0, 1) at sizes that models are used at.

    Args:
        model: the model.
        loaded: the same, to try out sizes.
        shapes: as for `plan`.
        data: as for `data_probes`; the first of several.
        seed: of the random numbers.

    Raises:
        NormfuseError: as for `plan` and `data_probes`.
        TargetError: the model does not run at the sizes it has, or those that were given.
    """
    from normfuse.errors import TargetError

    if own := data_probes(model, data):
        return own[0].inputs
    failures: list[TargetError] = []

    def accepts(inputs: Inputs) -> bool:
        try:
            loaded.run(inputs)
        except TargetError as failure:
            failures.append(failure)
            return False
        return True

    try:
        found = plan(model, accepts, shapes, timing_candidates_of)
    except NormfuseError:
        if failures:
            raise TargetError(f"{failures[0]}; give other shapes, or data") from failures[0]
        raise
    return next(found.probes(seed)).inputs


def data_probes(
    model: ir.Model, data: str | PathLike[str] | Mapping[str, Array] | Collection[Any] | None
) -> list[Probe]:
    """Probes from the user's own arrays.

    Args:
        model: the model they are for.
        data: a path of an .npz file, a mapping of arrays by input name, or several of either.

    Raises:
        NormfuseError: a file cannot be read, or an input has no array in it.
    """
    if data is None:
        return []
    if isinstance(data, str | PathLike):
        try:
            with open(data, "rb") as file, np.load(file, allow_pickle=False) as archive:
                arrays: Mapping[str, Array] = dict(archive)
        except (EOFError, OSError, TypeError, ValueError, zipfile.BadZipFile) as error:
            raise NormfuseError(f"{os.fspath(data)}: not an .npz file of arrays: {error}") from error
    elif isinstance(data, Mapping):
        arrays = data
    else:
        return [probe for part in data for probe in data_probes(model, part)]
    inputs: Inputs = {}
    for value in inputs_of(model):
        name = str(value.name)
        if name not in arrays:
            raise NormfuseError(f"the data has no array for input {name!r}, only {', '.join(arrays) or 'none'}")
        try:
            array = np.asarray(arrays[name])
            if array.dtype.kind == "O" and value.dtype is not None and value.dtype != ir.DataType.STRING:
                raise TypeError("it holds objects")
            inputs[name] = array if value.dtype is None else array.astype(value.dtype.numpy(), copy=False)
        except (TypeError, ValueError) as error:
            raise NormfuseError(f"the data for input {name!r} is no array of its type: {error}") from error
    return [Probe("data", inputs)]


def moved(inputs: Inputs, seed: int, draw: int = 0) -> Inputs:
    """The inputs with each float moved by one unit in the last place, up or down at random; each draw is another."""
    rng = np.random.default_rng((seed, 2, draw))
    return {name: move(array, rng) for name, array in inputs.items()}


def move(array: Array, rng: np.random.Generator) -> Array:
    """One array moved by one unit in the last place; what is exact stays: integers, and anything but IEEE floats.

    A count, a year, a mask of zeros and ones have no rounding that could be another. Large numbers are integers for
    want of bits, and move.
    """
    if array.dtype.kind != "f":
        return array
    with np.errstate(all="ignore"):
        target = np.where(rng.random(array.shape) < 0.5, np.inf, -np.inf).astype(array.dtype)
        exact = (np.rint(array) == array) & (np.abs(array) <= 0.125 / np.finfo(array.dtype).eps)
        return np.asarray(np.where(exact, array, np.nextafter(array, target)))


def _takes(ports: Sequence[Port], sizes: Sizes, accepts: Callable[[Inputs], bool]) -> bool:
    rng = np.random.default_rng(0)
    return accepts({port.name: _draw(port, port.shape(sizes), "scale 1", rng) for port in ports})


def _allowed(candidates: Mapping[str, tuple[int, ...]], limits: Mapping[str, Limit]) -> dict[str, tuple[int, ...]]:
    """The same sizes, moved to where the user of an export said that they are."""
    return {dim: limits[dim].fitted(sizes) if dim in limits else sizes for dim, sizes in candidates.items()}


def _symbols(model: ir.Model) -> Iterator[str]:
    """The names of dynamic dimensions."""
    for value in inputs_of(model):
        for dim in value.shape or ():
            if isinstance(dim, ir.SymbolicDim) and dim.value:
                yield dim.value


def _draw(port: Port, shape: tuple[int, ...], law: str, rng: np.random.Generator) -> Array:
    """An array for an input under the law of a family."""
    if prod(shape) > LARGEST:
        raise NormfuseError(
            f"input {port.name!r} of shape {list(shape)} is too large to be drawn; give a smaller one with --shape"
        )
    if is_float_type(port.dtype):
        z = rng.standard_normal(shape)
        values = _binary(rng, z) if law in _BINARY else _FAMILIES[law](rng, z) if z.ndim else z
        return values.astype(port.dtype.numpy())
    if port.asked and prod(shape) == 1 and rng.random() < 0.5:
        values = np.full(shape, rng.choice(port.asked))
    elif port.limit == 2 or port.dtype == ir.DataType.BOOL:
        # masks: mostly set, and never all clear but where they are conditions, which take both sides
        values = np.asarray(rng.random(shape) < 0.8)
        values[(..., slice(0, 1)) if shape else ()] = law not in _OTHER_SIDE
    elif law == "constant rows" and shape:
        values = np.broadcast_to(rng.integers(0, port.limit, (*shape[:-1], 1)), shape)
    else:
        values = rng.integers(0, port.limit, shape)
    return np.asarray(values).astype(port.dtype.numpy())


def _binary(rng: np.random.Generator, z: Array) -> Array:
    """Mostly ones; neither a row nor all channels of a place are ones alone, which would be a constant to a norm."""
    values = np.asarray(rng.random(z.shape) < 0.8)
    for axis in {1, z.ndim - 1}:
        if 0 <= axis < z.ndim and z.shape[axis] > 1:
            values[(slice(None),) * axis + (0,)] = False
    return values


def _one_large(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Factors: 100 for one channel, 1 elsewhere; channels are axis 1, or the last axis of matrices."""
    axis = 1 if len(shape) > 1 else 0
    factors = np.ones(shape[axis])
    factors[rng.integers(shape[axis])] = 1e2
    return factors.reshape(*(-1 if i == axis else 1 for i in range(len(shape))))

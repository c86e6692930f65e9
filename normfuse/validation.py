"""Is this a model at all? The checks that are made before any work: names, order, operators, opsets, external data.

The rules are checked on the `Outline` of a model. What ONNX asks and is checked here:

- every name a node reads is defined, in its graph or in one around it, and defined once (static single assignment);
- nodes can be put in order: no value depends on itself, no function calls itself;
- every operator of the default domain exists in the opset that is imported;
- external data lies inside the folder of the model and is as long as its tensor.
"""

import math
import os
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache

import onnx
import onnx.defs
import onnx_ir as ir

from normfuse.errors import ModelError
from normfuse.outline import Block, Outline, Routine, Step

ONNX_RUNTIME_ONLY = frozenset(
    {
        "Affine",
        "Crop",
        "DynamicSlice",
        "GRUUnit",
        "GivenTensorFill",
        "ImageScaler",
        "LayerNormalization",
        "ParametricSoftplus",
        "Scale",
        "ScaledTanh",
        "SimplifiedLayerNormalization",
    }
)
"""Operators that ONNX Runtime has in the default domain from opset 1 on, where ONNX has none or only a later one."""

DEEPEST = 100
"""Functions that call one another in a row, at most: what onnx, too, follows."""

LARGEST = 10_000_000
"""Nodes that one call may stand for: a few functions that each call the next one twice stand for any number."""

_SHOWN = 8
"""Nodes of a cycle that a message names at most."""


def validate(outline: Outline) -> bool:
    """Checks a model.

    Returns:
        Whether the nodes of all graphs stand in an order in which they can run.

    Raises:
        ModelError: the model breaks one of the rules; the message names the node and what to do, not the file.
    """
    _validate_versions(outline)
    local = frozenset((routine.domain, routine.name) for routine in outline.routines)
    checks = [_Check(outline.opsets, local, "")]
    checks[0].block(outline.graph, frozenset())
    for routine in outline.routines:
        _validate_opset(routine.opsets, f"function {routine.name!r}: ")
        checks.append(_Check(routine.opsets, local, f"function {routine.name!r}: "))
        checks[-1].block(routine.body, frozenset())
    _validate_calls(outline.routines)
    return all(check.ordered for check in checks)


def _validate_versions(outline: Outline) -> None:
    if outline.ir_version < 1:
        raise ModelError("no IR version, which every ONNX model has; the file is damaged or no ONNX model")
    if outline.ir_version > onnx.IR_VERSION:
        raise ModelError(
            f"IR version {outline.ir_version} is asked for, but the installed onnx {onnx.__version__} knows up to "
            f"{onnx.IR_VERSION}; upgrade onnx"
        )
    _validate_opset(outline.opsets, "")


def _validate_opset(opsets: Mapping[str, int], where: str) -> None:
    newest = onnx.defs.onnx_opset_version()
    version = opsets.get("")
    if version is not None and version < 1:
        raise ModelError(f"{where}opset {version} does not exist; the first is 1")
    if version is not None and version > newest:
        raise ModelError(
            f"{where}opset {version} is asked for, but the installed onnx {onnx.__version__} knows up to {newest}; "
            "upgrade onnx, or export the model with a lower opset"
        )


def _validate_calls(routines: Sequence[Routine]) -> None:
    index = {(routine.domain, routine.name): i for i, routine in enumerate(routines)}
    calls = [
        {index[key] for step in routine.body.all_steps() if (key := (step.domain, step.op_type)) in index}
        for routine in routines
    ]
    if cycle := find_cycle(calls):
        raise ModelError(
            f"functions call one another in a circle: {' → '.join(routines[i].name for i in cycle[:_SHOWN])}; "
            "ONNX has no recursion"
        )
    sizes: dict[int, tuple[int, int]] = {}  # of what a call stands for: nodes, and calls one inside the other
    waiting = list(range(len(routines)))
    while waiting:
        i = waiting.pop()
        if missing := [j for j in calls[i] if j not in sizes]:
            waiting += [i, *missing]
            continue
        called = [index.get((step.domain, step.op_type), -1) for step in routines[i].body.all_steps()]
        nodes = sum(sizes[j][0] if j >= 0 else 1 for j in called)
        depth = 1 + max((sizes[j][1] for j in calls[i]), default=0)
        if depth > DEEPEST or nodes > LARGEST:
            raise ModelError(
                f"function {routines[i].name!r} calls others {depth} deep and stands for {nodes:,} nodes, more than "
                f"{DEEPEST} or {LARGEST:,}; inline the functions of the model, or export it again"
            )
        sizes[i] = nodes, depth


class _Check:
    """Checks the blocks of one graph or function; `ordered` tells whether their nodes stood in order."""

    def __init__(self, opsets: Mapping[str, int], local: Collection[tuple[str, str]], where: str) -> None:
        self.opsets = opsets
        self.local = local
        self.where = where
        self.ordered = True

    def fail(self, message: str) -> ModelError:
        return ModelError(self.where + message)

    def block(self, block: Block, visible: frozenset[str]) -> set[str]:
        """Checks a block inside a scope that knows the names `visible`; returns those of them that it reads."""
        ready = self._constants(block)
        writers = self._writers(block, ready)
        scope = visible.union(ready, writers)
        captured: set[str] = set()
        ordered = True
        needs: list[set[int]] = []
        for step in block.steps:
            self._operator(step)
            reads = set(step.reads)
            reads.discard("")
            for name in reads - scope:
                raise self.fail(f"{step} reads {name!r}, which nothing defines; export the model again")
            for inner in step.blocks:
                reads |= self.block(inner, scope)
            needs.append({writers[name] for name in reads if name in writers})
            here = {name for name in reads if name in writers or name in ready}
            captured |= reads - here
            ordered = ordered and here <= ready
            ready.update(step.writes)
        for name in block.outputs:
            if name not in writers and name not in ready:
                hint = "put an Identity between" if name in visible else "export the model again"
                raise self.fail(f"the graph output {name!r} is not computed in its graph; {hint}")
        if not ordered:
            self.ordered = False
            if cycle := find_cycle(needs):
                nodes = [str(block.steps[i]) for i in cycle[:_SHOWN]] + ["…"] * (len(cycle) > _SHOWN)
                raise self.fail(f"the graph has a cycle: {' → '.join(nodes)}; no order can run it")
        return captured

    def _constants(self, block: Block) -> set[str]:
        for names, what in ((block.inputs, "graph input"), (block.constants, "initializer")):
            if "" in names:
                raise self.fail(f"{what} {names.index('')} has no name; export the model again")
            if len(set(names)) < len(names):
                twice = next(name for name in names if names.count(name) > 1)
                raise self.fail(f"{what} {twice!r} is defined twice; names must be unique")
        return {*block.inputs, *block.constants}

    def _writers(self, block: Block, constants: Collection[str]) -> dict[str, int]:
        writers: dict[str, int] = {}
        for i, step in enumerate(block.steps):
            for name in step.writes:
                if not name:
                    continue
                if name in writers or name in constants:
                    first = str(block.steps[writers[name]]) if name in writers else "a graph input or initializer"
                    raise self.fail(f"{name!r} is defined twice, by {first} and by {step}; names must be unique")
                writers[name] = i
        return writers

    def _operator(self, step: Step) -> None:
        if step.domain or ("", step.op_type) in self.local:
            return
        version = self.opsets.get("")
        if version is None:
            raise self.fail(f"{step} is of the default domain, but no opset of it is imported; add the opset import")
        if not _exists(step.op_type, version):
            since = _since(step.op_type)
            raise self.fail(
                f"{step} is an operator of opset {since}, but the model imports opset {version}; convert the model"
                if since
                else f"{step} is no operator of opset {version}; give it the domain it comes from, or fix its name"
            )


@lru_cache(maxsize=4096)
def _exists(op_type: str, opset: int) -> bool:
    if op_type in ONNX_RUNTIME_ONLY:
        return True
    try:
        onnx.defs.get_schema(op_type, opset, "")
    except onnx.defs.SchemaError:
        return False
    return True


def _since(op_type: str) -> int:
    """The opset an operator came with, or 0 where there is no such operator."""
    return next((v for v in range(1, onnx.defs.onnx_opset_version() + 1) if _exists(op_type, v)), 0)


def find_cycle(needs: Sequence[Collection[int]]) -> list[int]:
    """A cycle in a graph that is given as what each node needs; empty where there is none.

    >>> find_cycle([[1], [2], [1]])
    [1, 2, 1]
    """
    waits = [len(need) for need in needs]
    readers: list[list[int]] = [[] for _ in needs]
    for i, need in enumerate(needs):
        for j in need:
            readers[j].append(i)
    free = [i for i, count in enumerate(waits) if not count]
    for i in free:
        for j in readers[i]:
            waits[j] -= 1
            if not waits[j]:
                free.append(j)
    if len(free) == len(needs):
        return []
    path = [next(i for i, count in enumerate(waits) if count)]
    while path.count(path[-1]) == 1:
        path.append(next(j for j in needs[path[-1]] if waits[j]))
    return path[path.index(path[-1]) :]


def validate_external(tensor: ir.ExternalTensor) -> None:
    """Checks that the data of an external tensor lies in the folder of the model and is all there.

    Raises:
        ModelError: the location leads out of the folder, the file is missing, or it is too short.
    """
    folder, location = os.fspath(tensor.base_dir), os.fspath(tensor.location)
    what = f"tensor {tensor.name!r} has its data in {location!r}"
    if not isinstance(location, str):
        raise ModelError(f"{what}, which is not UTF-8; the file is damaged, fetch or export it again")
    if os.path.isabs(location) or os.path.normpath(location).split(os.sep)[0] == os.pardir or "\0" in location:
        raise ModelError(f"{what}, outside the folder of the model; put the file beside the model and name it so")
    if tensor.dtype == ir.DataType.STRING:
        raise ModelError(f"{what}, but ONNX has no external strings; store them in the model")
    path = os.path.join(folder, location)
    real, root = os.path.realpath(path), os.path.realpath(folder)
    if os.path.commonpath((real, root)) != root:
        raise ModelError(f"{what}, a link to {real}, outside the folder of the model; copy the file beside the model")
    dims = [int(dim) for dim in tensor.shape.numpy()]
    if tensor.dtype == ir.DataType.UNDEFINED or min(dims, default=0) < 0:
        raise ModelError(f"{what}, but its type {tensor.dtype.name} and shape {dims} tell no size; export again")
    offset, size = tensor.offset or 0, -(-math.prod(dims) * tensor.dtype.bitwidth // 8)  # exact, however large
    length = size if tensor.length is None else tensor.length
    try:
        status = os.stat(real)
    except OSError:
        raise ModelError(
            f"{what}, but there is no file {path} ({offset + length:,} bytes expected); put it beside the model"
        ) from None
    if not os.path.isfile(real):
        raise ModelError(f"{what}, but {path} is no file; put the data file there")
    if status.st_nlink > 1:
        raise ModelError(f"{what}, a file with several hard links, which is not read for safety; make it a copy")
    if offset < 0 or length != size:
        raise ModelError(f"{what} at offset {offset} with {length} bytes, but its shape needs {size}; export again")
    if offset + length > status.st_size:
        raise ModelError(
            f"{what}, but {path} has {status.st_size:,} bytes where {offset + length:,} are expected; "
            "the file is cut short, fetch it again"
        )


def validate_ranges(path: str, ranges: Collection[tuple[int, int]]) -> None:
    """Checks that the tensors in a data file lie apart, or are the same one.

    Args:
        path: the data file, for the message.
        ranges: first byte and the one after the last, of each tensor.

    Raises:
        ModelError: two of them overlap without being equal.
    """
    end = 0
    for start, stop in sorted(one for one in ranges if one[1] > one[0]):
        if start < end:
            raise ModelError(
                f"tensors overlap in {path} at byte {start:,}: only equal ranges can be shared; export the model again"
            )
        end = stop

"""Where ONNX Runtime's blocked convolution layout breaks, and what breaks it.

On x86 ONNX Runtime runs convolutions in a blocked layout. A chain stays in it only through operators that know it; each
other one costs a ReorderOutput before it and a ReorderInput behind it, and itself runs unblocked and unfused. What
reads a ReorderOutput breaks the layout. ONNX Runtime itself is asked: it writes the model as it runs it to a file.
"""

import platform
from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from normfuse.anatomy import Atlas
from normfuse.constants import Constants
from normfuse.errors import NormfuseError
from normfuse.executed import BLOCKED, Executed, Kernel, execute
from normfuse.fates import Course, Fate, nodes_of
from normfuse.passes.access import dims

_X86 = frozenset({"amd64", "i386", "i686", "x86", "x86_64"})

_REACH = 64
"""Nodes that an expanded operator may have."""

_WHY = {
    "BatchNormalization": "its parameters are not constant, or no blocked node stands before it",
    "Cast": "it changes the type",
    "Clip": "it is no activation of a convolution",
    "Concat": "its parts do not fill blocks, or lie on another axis",
    "Conv": "its channels or groups do not fill blocks",
    "ConvTranspose": "there is no blocked kernel",
    "Flatten": "it changes the shape",
    "GlobalAveragePool": "its input is read in the plain layout, too",
    "HardSigmoid": "it does not fuse into the convolution before it",
    "Pad": "there is no blocked kernel",
    "ReduceMean": "there is no blocked kernel: GlobalAveragePool has one",
    "Reshape": "it changes the shape",
    "Resize": "it does not enlarge by whole factors",
    "Shape": "it reads the plain shape",
    "Slice": "there is no blocked kernel",
    "Split": "there is no blocked kernel",
    "Squeeze": "it changes the shape",
    "Transpose": "it moves the channels",
}
"""Why an operator does not stay in the layout."""


@dataclass(frozen=True, slots=True)
class Break:
    """A node that leaves the blocked layout, or what is spelled out and does.

    Attributes:
        node: its name in the model, or that of the node that ONNX Runtime has expanded or fused it from; empty where
            there is none. Of what is spelled out, its first node that leaves the layout.
        operator: its type in the model; `output of the model` where an output leaves the layout.
        part_of: what it is, or is a part of (`LayerNorm`, `HardSwish`); empty where it is neither.
        because: why it does not stay in the layout.
        reorders: tensors that are reordered for it.
        fate: what `normfuse.optimize` does with it for `cpu`; None where the model has no such node.
    """

    node: str
    operator: str
    part_of: str
    because: str
    reorders: int
    fate: Fate | None


@dataclass(frozen=True, slots=True)
class Layout:
    """How the convolutions of a model are laid out.

    Attributes:
        known: whether ONNX Runtime could be asked.
        note: why it is not known, or why there is nothing to say; else empty.
        convolutions: how many convolutions run in the blocked layout.
        unblocked: how many do not.
        reorders: how many nodes go into the layout or out of it.
        reorders_after: the same once `normfuse.optimize` has run for `cpu`; None where that does not load.
        breaks: what reads a tensor that leaves the layout.
    """

    known: bool
    note: str = ""
    convolutions: int = 0
    unblocked: int = 0
    reorders: int = 0
    reorders_after: int | None = None
    breaks: tuple[Break, ...] = ()


def find(model: ir.Model, atlas: Atlas, course: Course, threads: int) -> Layout:
    """Asks ONNX Runtime how it lays out the convolutions of a model.

    Args:
        model: the model, its nodes named as `course` knows them.
        atlas: what LIFT found in it.
        course: what the stages do with it for `cpu`.
        threads: intra-op threads.
    """
    if not any(node.op_type == "Conv" and node.domain in ("", "ai.onnx") for node in nodes_of(model)):
        return Layout(True, "the model has no convolutions")
    if platform.machine().lower() not in _X86:
        return Layout(
            False, f"it is not known: ONNX Runtime has blocked kernels for x86 only, this is {platform.machine()}"
        )
    try:
        before = execute(model, "the model", threads=threads)
    except NormfuseError as error:
        return Layout(False, f"it is not known: {error}")
    convolutions = sum(kernel.operator == "Conv" and kernel.domain == BLOCKED for kernel in before.kernels)
    unblocked = sum(kernel.operator in ("Conv", "FusedConv") and kernel.domain != BLOCKED for kernel in before.kernels)
    if not convolutions:
        return Layout(True, "ONNX Runtime runs no convolution of it in the blocked layout", 0, unblocked)
    try:
        after: int | None = _reorders(execute(course.model, "the optimized model", threads=threads))
    except NormfuseError:
        after = None
    return Layout(True, "", convolutions, unblocked, _reorders(before), after, _breaks(before, model, atlas, course))


def _reorders(executed: Executed) -> int:
    return executed.count("ReorderInput") + executed.count("ReorderOutput")


def _breaks(executed: Executed, model: ir.Model, atlas: Atlas, course: Course) -> tuple[Break, ...]:
    nodes = {str(node.name): node for node in nodes_of(model)}
    origins = {str(value.name): str(node.name) for node in nodes.values() for value in node.outputs}
    left: dict[tuple[str, ...], list[tuple[str, Kernel]]] = {}
    tensors: dict[tuple[str, ...], set[str]] = {}
    outputs = 0
    for kernel in executed.kernels:
        if kernel.operator != "ReorderOutput" or kernel.domain != BLOCKED:
            continue
        for value in kernel.outputs:
            outputs += value in executed.outputs
            for reader in executed.readers.get(value, ()):
                own = _origin(reader, executed, nodes, origins)
                whole = atlas.wholes.get(own, (own,)) if own else (reader.name,)
                left.setdefault(whole, []).append((own, reader))
                tensors.setdefault(whole, set()).add(value)
    found = []
    for whole, members in left.items():
        own, kernel = members[0]
        part_of = atlas.members.get(own, "") or (atlas.norms[own].name if own in atlas.norms else "")
        operator = nodes[own].op_type if own else kernel.operator
        because = _because(operator, part_of, nodes.get(own))
        fate = course.fate(whole, is_norm=bool(part_of)) if own else None
        found.append(Break(own, operator, part_of, because, len(tensors[whole]), fate))
    if outputs:
        found.append(Break("", "output of the model", "", "outputs have the plain layout", outputs, None))
    return tuple(found)


def _origin(kernel: Kernel, executed: Executed, nodes: Mapping[str, ir.Node], origins: Mapping[str, str]) -> str:
    """The node of the model that a kernel stands for: itself, or the one that writes the next value of the model."""
    pending, seen = [kernel], {id(kernel)}
    while pending:
        current = pending.pop(0)
        if current.own in nodes:
            return current.own
        for value in current.writes:
            if value in origins:
                return origins[value]
        for reader in (reader for value in current.outputs for reader in executed.readers.get(value, ())):
            if id(reader) not in seen and len(seen) < _REACH:
                seen.add(id(reader))
                pending.append(reader)
    return ""


def _because(operator: str, part_of: str, node: ir.Node | None) -> str:
    if part_of.endswith("Norm") or part_of in ("LRN", "normalization"):
        return "it has statistics of its input"
    if part_of:
        return "it is spelled out in operators that leave the layout"
    if node is not None and operator in ("Add", "Div", "Mul", "Sub", "Sum"):
        return _why_not_equal(node)
    return _WHY.get(operator, "there is no blocked kernel for it")


def _why_not_equal(node: ir.Node) -> str:
    """Add and Mul stay blocked where all operands do and have one shape."""
    operands = [value for value in node.inputs if value is not None]
    constants = Constants()
    if any(value in constants for value in operands):
        return "an operand is constant"
    shapes = [dims(value) for value in operands]
    if all(sizes is not None for sizes in shapes) and any(sizes != shapes[0] for sizes in shapes):
        return "its operands differ in shape"
    if node.op_type in ("Div", "Sub"):
        return "there is no blocked kernel"
    return "an operand is not in the layout, or differs in shape"

"""What two models declare to take and to give: whether that is the same, and what to do where it is not."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from normfuse.ports import inputs_of


@dataclass(frozen=True, slots=True)
class Difference:
    """What differs between the inputs or outputs of two models.

    Attributes:
        what: what it is, in one line.
        hint: what to do so that the models can be compared.
    """

    what: str
    hint: str


def interface_difference(reference: ir.Model, candidate: ir.Model) -> Difference | None:
    """The first difference between the inputs and outputs that two models declare, or None."""
    return next(_differences(reference, candidate), None)


def _differences(reference: ir.Model, candidate: ir.Model) -> Iterator[Difference]:
    for kind, before, after in (
        ("inputs", inputs_of(reference), inputs_of(candidate)),
        ("outputs", list(reference.graph.outputs), list(candidate.graph.outputs)),
    ):
        names = [[str(value.name) for value in values] for values in (before, after)]
        if names[0] != names[1]:
            what = f"the {kind} are {', '.join(names[1]) or 'none'}, not {', '.join(names[0]) or 'none'}"
            yield Difference(what, _naming(kind, *names))
            return
        for old, new in zip(before, after, strict=True):
            title = f"{kind[:-1]} {old.name!r}"
            if old.dtype is not None and new.dtype is not None and old.dtype != new.dtype:
                hint = f"export both models with this {kind[:-1]} in one type, or put a Cast beside it in one of them"
                yield Difference(f"{title} is {new.dtype}, not {old.dtype}", hint)
            if old.shape is not None and new.shape is not None and not _agree(old.shape, new.shape, kind):
                yield Difference(f"{title} has shape {new.shape}, not {old.shape}", _sizing(kind, old.shape, new.shape))


def _naming(kind: str, before: Sequence[str], after: Sequence[str]) -> str:
    """What to do about other names."""
    if sorted(before) == sorted(after):
        return f"list the {kind} of both models in one order"
    if len(before) == len(after):
        arguments = f"{kind[:-1]}_names of torch.onnx.export"
        return f"values are matched by name: give the {kind} of both models the same names, such as by {arguments}"
    return f"compare models with the same {kind}: take out of one what the other has not, or export both alike"


def _sizing(kind: str, before: ir.Shape, after: ir.Shape) -> str:
    """What to do about other shapes."""
    if len(before) != len(after):
        return f"export both models with {kind} of the same number of dimensions"
    if kind == "inputs":
        return "export both models with the same sizes, or with the same dimensions dynamic"
    return "export both models for the same sizes"


def _agree(old: ir.Shape, new: ir.Shape, kind: str) -> bool:
    """Whether a declared shape takes over another; an input must not lose a dynamic dimension."""
    if len(old) != len(new):
        return False
    for before, after in zip(old, new, strict=True):
        fixed = isinstance(after, int) and after >= 0
        if fixed and (before != after if isinstance(before, int) and before >= 0 else kind == "inputs"):
            return False
    return True

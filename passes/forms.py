"""The forms of a normalization as small models: what each row of LOWERINGS writes, and the nodes as they were."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from normfuse.passes.access import RefusedError, dims
from normfuse.passes.emitter import Emitter
from normfuse.passes.excerpt import excerpt
from normfuse.passes.likeness import attributes
from normfuse.passes.lower import replace, restore
from normfuse.passes.lowering import Lowering, NormSite, grows, site_of
from normfuse.passes.norms import read_norm
from normfuse.passes.weights import Weights, constant_tensor
from normfuse.target import Target

AS_IT_WAS = "as it was"


@dataclass(frozen=True, slots=True)
class Forms:
    """The forms of a site.

    Attributes:
        models: one for each form, by the name of the first row that writes it; first the original.
        names: by the name of each row that fits, and of the original, the form that it writes.
    """

    models: dict[str, ir.Model]
    names: dict[str, str]


def fits(row: Lowering, site: NormSite, target: Target) -> bool:
    """Whether a row could be taken for a site."""
    emitter = Emitter(site.weights, str(site.output.name))
    try:
        row.law(site, emitter, target)
    except RefusedError:
        return False
    return not grows(site, emitter, target)


def forms_of(model: ir.Model, site: NormSite, rows: Sequence[Lowering], target: Target) -> Forms:
    """The original and what rows write, no two alike.

    Raises:
        RefusedError: the site cannot stand alone.
    """
    original = excerpt(model, site)
    restore(original)
    models, names = {AS_IT_WAS: original}, {AS_IT_WAS: AS_IT_WAS}
    seen = {fingerprint(original): AS_IT_WAS}
    for row in rows:
        written = excerpt(model, site)
        weights = Weights(written)
        node = next(node for node in written.graph if node.outputs[0].name == site.norm.output.name)
        norm = read_norm(node, weights)
        assert norm is not None
        own = site_of(norm, weights)
        emitter = Emitter(weights, str(own.output.name))
        try:
            result = row.law(own, emitter, target)
        except RefusedError:
            continue  # it asks for neighbours
        replace(written, own, emitter, result)
        restore(written)
        names[row.name] = seen.setdefault(fingerprint(written), row.name)
        if names[row.name] == row.name:
            models[row.name] = written
    return Forms(models, names)


def fingerprint(model: ir.Model) -> str:
    """A digest of the nodes of a model and how they are joined; of large constants only the dtype and shape count."""
    numbers: dict[ir.Value | None, str] = {None: ""}
    opset = model.opset_imports.get("", 1)

    def number(value: ir.Value | None) -> str:
        if value not in numbers:
            assert value is not None
            tensor = constant_tensor(value)
            what = f"{value.dtype}{dims(value)}" if tensor is None else f"{tensor.dtype}{list(tensor.shape)}"
            small = tensor is not None and (tensor.size == 1 or not tensor.dtype.is_floating_point())
            numbers[value] = f"{len(numbers)}:{what}" + (f"={tensor.numpy().tolist()}" if small and tensor else "")
        return numbers[value]

    lines = [
        repr(
            (
                node.op_identifier(),
                sorted((name, str(value)) for name, value in attributes(node, opset).items()),
                [number(value) for value in node.inputs],
                [number(value) for value in node.outputs],
            )
        )
        for graph in model.graphs()
        for node in graph
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]

"""The forms of a normalization as small models: what each row of LOWERINGS writes, and the nodes as they were.

Where a normalization stands next to convolutions, it does so in its forms, too: convolutions have a layout of their own
in ONNX Runtime, and what the way into it and out of it costs depends on the form. A Transpose next to a convolution is
free. The convolutions are depthwise, 1 × 1, with weights of one, so that no number changes.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from normfuse.passes.access import RefusedError, dims, operator
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
        around: whether a convolution stands in front of the site, and behind it.
    """

    models: dict[str, ir.Model]
    names: dict[str, str]
    around: tuple[bool, bool]


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
    around = _convolutions(site, target)
    original = excerpt(model, site)
    restore(original)
    _surround(original, site, around)
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
        _surround(written, site, around)
        names[row.name] = seen.setdefault(fingerprint(written), row.name)
        if names[row.name] == row.name:
            models[row.name] = written
    return Forms(models, names, around)


def _convolutions(site: NormSite, target: Target) -> tuple[bool, bool]:
    """Whether a convolution stands right in front of a site, and right behind it."""
    channels = site.dims[1] if site.rank == 4 else None
    if target.provider == "cuda" or site.dtype != ir.DataType.FLOAT or not isinstance(channels, int):
        return False, False
    producer = site.data.producer()
    behind = any(operator(use.node) == "Conv" and use.idx == 0 for use in site.output.uses())
    return producer is not None and operator(producer) == "Conv", behind


def _surround(form: ir.Model, site: NormSite, around: tuple[bool, bool]) -> None:
    """Puts convolutions that change nothing around a form."""
    graph, before, behind = form.graph, *around
    names = Weights(form)
    if before:
        data = next(value for value in graph.inputs if value.name == site.data.name)
        readers = tuple(data.uses())
        node = _convolution(graph, data, site, names)
        for use in readers:
            use.node.replace_input_with(use.idx, node.outputs[0])
        graph.insert_before(graph[0], node)
    if behind:
        node = _convolution(graph, graph.outputs[0], site, names)
        graph.append(node)
        graph.outputs[0] = node.outputs[0]


def _convolution(graph: ir.Graph, value: ir.Value, site: NormSite, names: Weights) -> ir.Node:
    channels = site.dims[1]
    assert isinstance(channels, int)
    tensor = ir.tensor(np.ones((channels, 1, 1, 1), np.float32), name=names.fresh(f"{value.name}_ones"))
    ones = ir.Value(
        name=tensor.name, shape=ir.Shape([channels, 1, 1, 1]), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(ones)
    node = ir.node("Conv", [value, ones], {"group": channels}, name=names.fresh(f"{value.name}_convolution"))
    node.outputs[0].name, node.outputs[0].type = node.name, value.type
    node.outputs[0].shape = None if value.shape is None else value.shape.copy()
    return node


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

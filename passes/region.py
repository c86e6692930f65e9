"""A part of a graph as a model of its own, before and after a change: `Region`.

    inputs  →  the nodes that a change touches  →  what everybody else reads of them

Outside of the touched nodes nothing changes: what flows in comes from the same values before and after, and what flows
out goes to the same readers. So the part as it was is known by its nodes, and the part as it became is what lies
between those readers and those values.
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from normfuse.passes.access import RefusedError, operator
from normfuse.passes.extent import between, bounds, enclosed, inner_nodes, reads_of
from normfuse.passes.lifted import DOMAIN, inline, tidy
from normfuse.passes.weights import EXACT

_SHAPE_READERS = ("Shape", "Size")
"""Readers to whom only the dimensions matter: they belong to the part, and what they make of it is what flows out."""

_PREFIX = "normfuse.excerpt"
"""What the names of all values in an excerpt begin with, so that names within subgraphs cannot hide them."""


class DisturbedError(Exception):
    """A change has an effect outside of what it touches: with the effect in words."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A place that a value flows out to: an input of a node, or an output of a graph where there is no node.

    Attributes:
        node: the reader.
        graph: the graph whose output it is.
        index: of the input or output.
    """

    node: ir.Node | None
    graph: ir.Graph | ir.Function | None
    index: int

    @property
    def value(self) -> ir.Value | None:
        """What is read there now; None where the reader is gone."""
        if self.node is not None:
            return self.node.inputs[self.index] if self.node.graph is not None else None
        assert self.graph is not None
        return self.graph.outputs[self.index]


class Region:
    """What a change touches.

    Attributes:
        names: of the nodes that it touches.
        before: that part as it was, as a model; its inputs are `x0`, `x1`, … and its outputs `y0`, `y1`, … behind a
            prefix.
        exact: the same with the float64 values of the constants that are known in float64.
    """

    def __init__(self, model: ir.Model, nodes: Collection[ir.Node]) -> None:
        """Cuts out what these nodes compute, with the integers that they need.

        Raises:
            RefusedError: it cannot stand alone: with the reason.
        """
        changed = dict.fromkeys([*nodes, *enclosed(nodes)])
        for node in tuple(changed):
            for value in node.outputs:
                readers = (use.node for use in value.uses() if use.node.graph is not None)
                changed.update(dict.fromkeys(one for one in readers if operator(one) in _SHAPE_READERS))
        self._inputs, members = bounds(changed)
        self.names = tuple(node.name or node.op_type for node in nodes)
        self._slots = [slots for node in changed for value in node.outputs if (slots := _slots(value, changed))]
        if not self._slots:
            raise RefusedError("nothing reads what it computes")
        self._shared = list(_shared(members, changed))
        outputs = [_read(slots) for slots in self._slots]
        assert all(output is not None for output in outputs)
        self.before, self.exact = self._excerpt(model, members, [one for one in outputs if one is not None], None)

    def after(self, model: ir.Model, opset: int | None = None) -> tuple[ir.Model, tuple[str, ...]]:
        """That part as it is now, as a model, and the names of its nodes.

        Args:
            model: the model.
            opset: that of the part; the model's where None.

        Raises:
            RefusedError: it cannot stand alone: with the reason.
            DisturbedError: what others read has changed, too.
        """
        for value, tensor, reader in self._shared:
            if value.const_value is not tensor:
                raise DisturbedError(f"it changed {value.name!r}, which {reader} reads, too")
        outputs = [_read(slots) for slots in self._slots]
        if any(output is None for output in outputs):
            raise RefusedError("a reader of what it computed is gone")
        values = [output for output in outputs if output is not None]
        members = between(values, self._inputs)
        now, _ = self._excerpt(model, members, values, opset)
        return now, tuple(node.name or node.op_type for node in members)

    def _excerpt(
        self, model: ir.Model, nodes: Collection[ir.Node], outputs: list[ir.Value], opset: int | None
    ) -> tuple[ir.Model, ir.Model]:
        """A copy of some nodes as a model, and the same with float64 constants where these are known."""
        reads = dict.fromkeys(value for node in nodes for value in reads_of(node)) | dict.fromkeys(outputs)
        constants = [value for value in reads if value.producer() is None and value not in self._inputs]
        if len({value.name for value in constants}) < len(constants):
            raise RefusedError("it reads constants of the same name from several graphs")
        imports = dict(model.opset_imports) | ({} if opset is None else {"": opset})
        view = ir.GraphView(
            self._inputs, outputs, nodes=tuple(nodes), initializers=constants, opset_imports=imports, name="excerpt"
        )
        graph = view.clone()
        exact = view.clone()
        for old, new in zip(nodes, exact, strict=True):
            for value, copy in zip(old.outputs, new.outputs, strict=True):
                if EXACT in value.meta and "value" in new.attributes:
                    new.attributes["value"] = ir.AttrTensor("value", _exact(value))
                    copy.type = ir.TensorType(ir.DataType.DOUBLE)  # a type is shared by all copies
        for value in constants:
            copy = exact.initializers[str(value.name)]
            if EXACT in value.meta:
                copy.const_value = _exact(value)
                copy.type = ir.TensorType(ir.DataType.DOUBLE)
        called = [model.functions[key] for key in _called(model, nodes)]
        excerpt, truth = (
            ir.Model(one, ir_version=model.ir_version, functions=[function.clone() for function in called])
            for one in (graph, exact)
        )
        for one in (excerpt, truth):
            _restore(one)
            _rename(one.graph)
        return excerpt, truth


def _restore(model: ir.Model) -> None:
    """Puts back what was lifted: a runtime need not know a SimplifiedLayerNormalization within a function."""
    pending = [node for node in model.graph if node.domain == DOMAIN]
    while pending:
        pending += [node for node in inline(model, pending.pop()) if node.domain == DOMAIN]
    tidy(model)


def _exact(value: ir.Value) -> "ir.Tensor[np.ndarray[tuple[int, ...], np.dtype[np.float64]]]":
    """What is known of a constant in float64."""
    return ir.Tensor(np.asarray(value.meta[EXACT], np.float64), name=value.name)


def _slots(value: ir.Value, changed: Collection[ir.Node]) -> list[Slot]:
    """Where a value flows out of some nodes.

    Raises:
        RefusedError: it is the output of a graph that it is not computed in.
    """
    inside = {one for node in changed for one in inner_nodes(node)}
    slots = [
        Slot(use.node, None, use.idx)
        for use in value.uses()
        if use.node.graph is not None and use.node not in changed and use.node not in inside
    ]
    if value.is_graph_output():
        producer = value.producer()
        graph = None if producer is None else producer.graph
        places = [] if graph is None else [i for i, output in enumerate(graph.outputs) if output is value]
        if not places:
            raise RefusedError(f"{value.name!r} is an output of a graph within")
        slots.extend(Slot(None, graph, place) for place in places)
    return slots


def _shared(
    members: Iterable[ir.Node], changed: Collection[ir.Node]
) -> Iterator[tuple[ir.Value, ir.TensorProtocol | None, str]]:
    """The initializers that some nodes read and others too, each with its tensor and one of these others."""
    for value in dict.fromkeys(value for node in members for value in reads_of(node) if value.is_initializer()):
        others = [use.node for use in value.uses() if use.node not in changed]
        if others:
            yield value, value.const_value, others[0].name or others[0].op_type
        elif value.is_graph_output():
            yield value, value.const_value, "the caller of the model"


def _read(slots: Iterable[Slot]) -> ir.Value | None:
    """What is read at places that read the same; None where none of them is left.

    Raises:
        DisturbedError: they do not any more.
    """
    values = dict.fromkeys(value for slot in slots if (value := slot.value) is not None)
    if len(values) > 1:
        names = " and ".join(repr(value.name) for value in values)
        raise DisturbedError(f"what read one value reads {names} now")
    return next(iter(values), None)


def _rename(graph: ir.Graph) -> None:
    """Gives inputs, outputs and all values between names of their own; each output becomes a node of its own."""
    for index, value in enumerate(graph.inputs):
        value.const_value = None
        value.name = f"{_PREFIX}.x{index}"
    count = 0
    for node in graph:
        for value in node.outputs:
            value.const_value = None  # a name is given to the tensor, too, which all copies share
            if value.name != "":
                value.name, count = f"{_PREFIX}.v{count}", count + 1
    results = list(graph.outputs)
    graph.outputs.clear()
    for index, result in enumerate(results):
        last = ir.node("Identity", [result], name=f"{_PREFIX}.{index}")
        last.outputs[0].name, last.outputs[0].type = f"{_PREFIX}.y{index}", result.type
        graph.append(last)
        graph.outputs.append(last.outputs[0])


def _called(model: ir.Model, nodes: Iterable[ir.Node]) -> dict[ir.OperatorIdentifier, None]:
    """The functions that nodes call, and those that these call."""
    found: dict[ir.OperatorIdentifier, None] = {}
    pending = list(nodes)
    while pending:
        node = pending.pop()
        pending.extend(inner_nodes(node))
        key = node.op_identifier()
        if key in model.functions and key not in found:
            found[key] = None
            pending.extend(model.functions[key].all_nodes())
    return found

"""Lifted nodes: a call of a model-local function whose body is the very nodes that were recognised.

Lifting changes no number: each intermediate model runs, and `inline` puts the nodes back as they were. What a call
computes is written in its metadata: a `Standardize`, or an activation.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from normfuse.norm import Standardize
from normfuse.passes.access import CALLED, RefusedError, dims
from normfuse.passes.removal import nodes_within, remove

DOMAIN = "normfuse"

_MEANING = "normfuse.meaning"


@dataclass(frozen=True, slots=True)
class Found:
    """What a recogniser found.

    Attributes:
        meaning: what the nodes compute: a `Standardize`, or an activation.
        data: the value that they compute it of.
        output: the value that holds the result; everything else they compute is read by them alone.
        nodes: the nodes, those that only compute constants not included.
        scale: a value that the nodes multiply the result by, broadcast against it as numpy does; None where they do
            not.
        bias: a value that they add at last; None where they do not.
        axes: the axes of the data that scale and bias stand along; None where they broadcast from the last one on.
    """

    meaning: object
    data: ir.Value
    output: ir.Value
    nodes: tuple[ir.Node, ...]
    scale: ir.Value | None = None
    bias: ir.Value | None = None
    axes: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Lifted:
    """What the metadata of a call hold.

    Attributes:
        meaning: what it computes.
        data: the index of the input that it computes it of.
        scale: the index of the input that the result is multiplied by, or None.
        bias: the index of the input that is added at last, or None.
        names: names of the nodes in its body, for reports.
        operators: the operators of the nodes in its body.
        axes: the axes of the data that scale and bias stand along; None where they broadcast from the last one on.
        output: the value in its body that holds the result.
    """

    meaning: object
    data: int
    scale: int | None
    bias: int | None
    names: tuple[str, ...] = field(default=())
    axes: tuple[int, ...] | None = None
    operators: frozenset[str] = frozenset()
    output: ir.Value | None = None


def lifted(node: ir.Node | None) -> Lifted | None:
    """What a node that was lifted computes; None for any other node."""
    return None if node is None or node.domain != DOMAIN else node.meta.get(_MEANING)


def members(output: ir.Value, inputs: Iterable[ir.Value], limit: int = 64) -> tuple[ir.Node, ...]:
    """The nodes between some values and an output, in the order of the graph.

    Args:
        output: what they compute.
        inputs: where to stop: the data, scale and bias, and what else comes from outside. Constants stop by
            themselves: values without a producer.
        limit: as many nodes at most.

    Raises:
        RefusedError: a value between is read by another node or is an output of the graph, or there are too many.
    """
    stops, found, pending = set(inputs), dict[ir.Node, None](), [output]
    while pending:
        value = pending.pop()
        node = value.producer()
        if value in stops or node is None or node in found:
            continue
        found[node] = None
        if len(found) > limit:
            raise RefusedError("it has too many nodes")
        for graph_node in (node, *nodes_within(node)):
            pending.extend(one for one in graph_node.inputs if one is not None)
    graph = next(iter(found)).graph if found else None
    if any(node.graph is not graph for node in found):
        raise RefusedError("its nodes stand in more than one graph")
    while (shared := next(_shared(output, found), None)) is not None:
        node, reason = shared
        outside = _computed_of_shapes(node, found)
        if outside is None:
            raise RefusedError(reason)
        for one in outside:
            del found[one]
    return tuple(sorted(found, key=_positions(graph, found).__getitem__))


def _shared(output: ir.Value, found: Mapping[ir.Node, None]) -> Iterator[tuple[ir.Node, str]]:
    """The nodes whose results others see, too, and who does."""
    for node in found:
        for value in node.outputs:
            if value is output:
                continue
            if value.is_graph_output():
                yield node, f"{value.name!r} is an output of the graph"
            for use in value.uses():
                if use.node not in found and not any(use.node in nodes_within(one) for one in found):
                    yield node, f"{value.name!r} is also read by {use.node.op_type} {use.node.name!r}"


def _computed_of_shapes(node: ir.Node, found: Mapping[ir.Node, None]) -> set[ir.Node] | None:
    """A node and all that it is computed of, where these are integers, as sizes are: they can stay outside."""
    taken, pending = set[ir.Node](), [node]
    while pending:
        one = pending.pop()
        if one in taken or one not in found:
            continue
        if any(value.dtype not in (ir.DataType.INT64, ir.DataType.INT32) for value in one.outputs):
            return None
        taken.add(one)
        pending.extend(before for value in one.inputs if value is not None and (before := value.producer()) is not None)
    return taken


def _positions(graph: ir.Graph | ir.Function | None, nodes: Iterable[ir.Node]) -> dict[ir.Node, int]:
    """The order of a few nodes, by their data: each behind those that it reads."""
    left, order = dict.fromkeys(nodes), dict[ir.Node, int]()

    def place(node: ir.Node) -> None:
        if node in order or node not in left:
            return
        for inner in (node, *nodes_within(node)):
            for value in inner.inputs:
                producer = None if value is None else value.producer()
                if producer is not None and producer is not node:
                    place(producer)
        order[node] = len(order)

    for node in left:
        place(node)
    return order


def lift(model: ir.Model, found: Found, operator: str, overload: str) -> ir.Node:
    """Replaces the nodes of a find by one call of a function that holds them.

    Args:
        model: the model; it gets the function.
        found: what was recognised.
        operator: the name of the function: `Standardize` or `Activation`.
        overload: tells it from the other functions of that name.

    Returns:
        the call. Its output has the name of the output of the find, its first inputs are data, scale and bias.
    """
    body = list(found.nodes)
    graph = body[-1].graph
    assert graph is not None
    within = [inner for node in body for inner in nodes_within(node)]
    inside = {value for node in (*body, *within) for value in node.outputs}
    wanted = [value for value in (found.data, found.scale, found.bias) if value is not None]
    readers = [inner for node in body for inner in (node, *nodes_within(node))]
    wanted += [value for node in readers for value in node.inputs if value is not None and value not in inside]
    outside = [value for value in dict.fromkeys(wanted) if not _is_bound(value, body)]
    output = found.output
    anchor = output.producer()  # it reads all the others, so it stands last
    assert anchor is not None
    call = ir.Node(DOMAIN, operator, outside, overload=overload, num_outputs=1, name=body[-1].name)
    call.outputs[0].name, call.outputs[0].type = output.name, output.type
    # All that is lifted has the dimensions of its data, whether or not inference found that out.
    call.outputs[0].shape = output.shape if found.data.shape is None else found.data.shape.copy()
    call.outputs[0].doc_string = output.doc_string
    call.outputs[0].metadata_props.update(output.metadata_props)
    graph.insert_after(anchor, call)
    output.replace_all_uses_with(call.outputs[0], replace_graph_outputs=True)
    graph.remove(body)
    parameters = [ir.Value(name=f"{value.name}", type=value.type, shape=value.shape) for value in outside]
    places = dict(zip(outside, parameters, strict=True))
    for node in readers:
        for index, value in enumerate(node.inputs):
            if value in places:
                node.replace_input_with(index, places[value])
    function = ir.Function(
        DOMAIN,
        operator,
        overload,
        graph=ir.Graph(parameters, [output], nodes=body, opset_imports=dict(model.opset_imports)),
        attributes=[],
    )
    model.functions[function.identifier()] = function
    model.opset_imports.setdefault(DOMAIN, 1)
    call.meta[CALLED] = _called(found)
    call.meta[_MEANING] = Lifted(
        found.meaning,
        outside.index(found.data),
        None if found.scale is None else outside.index(found.scale),
        None if found.bias is None else outside.index(found.bias),
        tuple(name for node in body for name in _names(node)),
        found.axes,
        frozenset[str]().union(*(_operators(node) for node in body)),
        output,
    )
    return call


def _called(found: Found) -> str:
    """What messages call a find: the name of the normalization or activation."""
    if isinstance(found.meaning, Standardize):
        return found.meaning.name(len(dims(found.data) or ()))
    return str(getattr(found.meaning, "kind", found.meaning))


def _names(node: ir.Node) -> tuple[str, ...]:
    """The name of a node, or those of the nodes in a lifted call."""
    record = lifted(node)
    return (node.name or node.op_type,) if record is None else record.names


def _operators(node: ir.Node) -> frozenset[str]:
    """The operator of a node, or those of the nodes in a lifted call."""
    record = lifted(node)
    return frozenset({node.op_type}) if record is None else record.operators


def _is_bound(value: ir.Value, body: Sequence[ir.Node]) -> bool:
    """Whether a value is an input or initializer of a subgraph of the nodes themselves."""
    graphs = {inner.graph for node in body for inner in nodes_within(node)}
    producer = value.producer()
    return (producer is not None and producer.graph in graphs) or value.graph in graphs


def inline(model: ir.Model, call: ir.Node) -> tuple[ir.Node, ...]:
    """Puts the nodes of a lifted call back in its place, as they were; lifted calls among them stay calls."""
    function = model.functions.pop(call.op_identifier())
    graph = call.graph
    assert graph is not None
    for parameter, value in zip(function.inputs, call.inputs, strict=True):
        assert value is not None
        parameter.replace_all_uses_with(value)
    body, output = list(function), function.outputs[0]
    function.graph.outputs.clear()
    function.remove(body)
    graph.insert_before(call, body)
    name = call.outputs[0].name
    call.outputs[0].replace_all_uses_with(output, replace_graph_outputs=True)
    graph.remove(call, safe=True)
    output.name = name
    return tuple(body)


def forget(model: ir.Model, call: ir.Node) -> None:
    """Removes the function of a call that has been replaced, and those of the lifted calls in it."""
    function = model.functions.pop(call.op_identifier(), None)
    for inner in () if function is None else function.all_nodes():
        if lifted(inner) is not None:
            forget(model, inner)


def remove_unread(model: ir.Model, nodes: Collection[ir.Node]) -> list[ir.Node]:
    """Removes nodes of which nothing is read, readers first; those that are left."""
    left = list(nodes)
    while free := [node for node in left if not any(one.uses() or one.is_graph_output() for one in node.outputs)]:
        for node in free:
            left.remove(node)
            remove(node)
            if lifted(node) is not None:
                forget(model, node)
    return left


def take_over(old: ir.Value, new: ir.Value) -> None:
    """Gives a value's name, readers and documentation to another one."""
    if new.dtype is None or new.shape is None:
        new.type, new.shape = old.type, old.shape
    name, old.name = old.name, None
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    new.name, new.doc_string = name, old.doc_string
    new.metadata_props.update(old.metadata_props)


def tidy(model: ir.Model) -> None:
    """Takes the domain back out where nothing is lifted any more."""
    if not any(identifier[0] == DOMAIN for identifier in model.functions):
        model.opset_imports.pop(DOMAIN, None)

"""Which nodes belong to a part of a graph: those between values, and what they need beside what flows in."""

from collections.abc import Collection, Iterable, Iterator

import onnx_ir as ir

from normfuse.passes.access import RefusedError, graphs_of
from normfuse.passes.weights import constant_tensor

_MOST_NODES = 512
"""A part with more nodes than this is not cut out."""

_STEPS_BETWEEN = 4
"""So many nodes may lie between two that a change touches."""


def enclosed(nodes: Collection[ir.Node]) -> Iterator[ir.Node]:
    """The nodes between some others: what they read is not free where it is computed of what those compute."""
    inside = set(nodes)
    reached: dict[ir.Node, ir.Node | None] = {}  # each with the one that it was reached from
    edge: list[ir.Node | None] = [None]
    for _ in range(_STEPS_BETWEEN):
        following: list[ir.Node | None] = []
        for node in edge:
            outputs = node.outputs if node is not None else [value for one in nodes for value in one.outputs]
            for use in (use for value in outputs for use in value.uses()):
                if use.node in inside:
                    inner = node
                    while inner is not None and inner not in inside:
                        inside.add(inner)
                        yield inner
                        inner = reached[inner]
                elif use.node not in reached and use.node.graph is not None and len(reached) < _MOST_NODES:
                    reached[use.node] = node
                    following.append(use.node)
        edge = following


def bounds(changed: Collection[ir.Node]) -> tuple[list[ir.Value], list[ir.Node]]:
    """What flows into some nodes, and the nodes in order, those that compute the integers which they need included.

    Raises:
        RefusedError: what they need is not known, or there are too many.
    """
    members, inputs = dict.fromkeys(changed), dict[ir.Value, None]()
    pending = list(changed)
    while pending:
        node = pending.pop()
        if any(attribute.is_ref() for attribute in node.attributes.values()):
            raise RefusedError("an attribute is set by the caller of its function")
        for value in reads_of(node):
            producer = value.producer()
            if producer in members or constant_tensor(value) is not None:
                if producer is not None and producer not in members:
                    members[producer] = None  # a Constant node
                continue
            if producer is not None and not _is_probed(value):
                members[producer] = None
                pending.append(producer)
            else:
                inputs[value] = None
        if len(members) > _MOST_NODES:
            raise RefusedError(f"it touches more than {_MOST_NODES} nodes")
    return list(inputs), _in_order(members)


def _is_probed(value: ir.Value) -> bool:
    """Whether a value can be drawn at random: integers stand for sizes and places, and must be computed."""
    dtype = value.dtype if isinstance(value.type, ir.TensorType) else None
    return dtype is not None and (dtype.is_floating_point() or dtype == ir.DataType.BOOL)


def between(outputs: Iterable[ir.Value], inputs: Collection[ir.Value]) -> list[ir.Node]:
    """The nodes between some values and outputs, in order.

    Raises:
        RefusedError: the outputs depend on other values, too.
    """
    known, members, pending = set(inputs), dict[ir.Node, None](), list(outputs)
    while pending:
        value = pending.pop()
        node = value.producer()
        if value in known or node in members:
            continue
        if node is None:
            if constant_tensor(value) is None:
                raise RefusedError(f"it reads {value.name!r} now, which it did not before")
            continue
        members[node] = None
        pending.extend(reads_of(node))
        if len(members) > _MOST_NODES:
            raise RefusedError(f"what it became has more than {_MOST_NODES} nodes")
    return _in_order(members)


def _in_order(members: Collection[ir.Node]) -> list[ir.Node]:
    """Nodes, each behind those that it reads."""
    order, inside = dict[ir.Node, None](), set(members)
    pending = [(node, False) for node in reversed(list(members))]
    while pending:
        node, expanded = pending.pop()
        if node in order:
            continue
        if expanded:
            order[node] = None
            continue
        pending.append((node, True))
        producers = (value.producer() for value in reads_of(node))
        pending.extend((one, False) for one in producers if one in inside and one is not None and one not in order)
    return list(order)


def inner_nodes(node: ir.Node) -> Iterator[ir.Node]:
    """The nodes in the subgraphs of a node, at any depth."""
    for graph in graphs_of(node):
        yield from graph.all_nodes()


def reads_of(node: ir.Node) -> Iterator[ir.Value]:
    """The values that a node reads, itself or in its subgraphs, from outside of these."""
    yield from (value for value in node.inputs if value is not None)
    graphs = list(graphs_of(node))
    if not graphs:
        return
    inner = [one for graph in graphs for one in graph.all_nodes()]
    for one in inner:
        graphs.extend(graphs_of(one))
    bound = {value for one in inner for value in one.outputs}
    bound.update(value for graph in graphs for value in (*graph.inputs, *graph.initializers.values()))
    read = [value for one in inner for value in one.inputs]
    read += [value for graph in graphs for value in graph.outputs]
    yield from (value for value in read if value is not None and value not in bound)

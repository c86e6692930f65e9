"""What a rule reads of a node: attributes, dimensions, axes."""

from collections.abc import Iterator, Sequence
from typing import Any

import onnx_ir as ir

Dim = int | str | None
"""A dimension: its size, its symbol, or None where nothing is known."""


class RefusedError(Exception):
    """A law does not apply; the text is the reason."""


def attribute(node: ir.Node, name: str, default: Any = None) -> Any:
    """The value of an attribute: int, float, str, or a list of them.

    Raises:
        RefusedError: the attribute is set by the caller of the function that the node stands in.
    """
    found = node.attributes.get(name)
    if found is None:
        return default
    if found.is_ref():
        raise RefusedError(f"attribute {name} is set by the caller of the function")
    value = found.value
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def dims(value: ir.Value | None) -> list[Dim] | None:
    """The dimensions of a value, or None where not even their number is known."""
    if value is None or value.shape is None:
        return None
    return [
        (dim if dim >= 0 else None) if isinstance(dim, int) else (dim.value if is_symbol(dim.value) else None)
        for dim in value.shape
    ]


def is_symbol(name: str | None) -> bool:
    """Whether two dimensions of this name are of one size; some exporters call all that they do not know `?`."""
    return bool(name) and any(character.isalnum() for character in str(name))


def known_dims(value: ir.Value | None) -> list[Dim]:
    """The dimensions of a value.

    Raises:
        RefusedError: their number is not known.
    """
    found = dims(value)
    if found is None:
        raise RefusedError(f"the rank of {'a value' if value is None else repr(value.name)} is not known")
    return found


def rank(value: ir.Value | None) -> int:
    """The number of dimensions of a value.

    Raises:
        RefusedError: it is not known.
    """
    return len(known_dims(value))


def operator(node: ir.Node) -> str:
    """The type of a node of the default domain; empty for those of other domains, which may share a name."""
    return node.op_type if node.domain in ("", "ai.onnx") else ""


def only_reader(value: ir.Value) -> ir.Node | None:
    """The node that reads a value where it is the only one and the value is no output of the graph."""
    uses = tuple(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


CALLED = "normfuse.called"
"""Key in `ir.Node.meta` of what messages call a node instead of its operator."""


def title(node: ir.Node) -> str:
    """A node as messages call it."""
    kind = node.meta.get(CALLED, node.op_type)
    return f"{kind} {node.name!r}" if node.name else str(kind)


def graphs_of(node: ir.Node) -> Iterator[ir.Graph]:
    """The graphs that a node holds itself, such as the branches of an If."""
    for attribute in node.attributes.values():
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()

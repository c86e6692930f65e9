"""Does each node fit its operator? What ONNX's schemas say of inputs, outputs and attributes, checked before any work.

- a node has as many inputs and outputs as its operator or function takes, and none of the required ones is missing;
- its attributes have the types of the schema, and those that are required are there;
- a Constant has one value;
- a Split has as many outputs as it says, and an axis is one that a tensor can have: the C++ code of onnx and of ONNX
  Runtime does not check these, and ends the whole process, or writes out two billion dimensions.

Attributes that no schema knows are let through: they say nothing to what reads the model here.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import onnx
import onnx.defs
import onnx.shape_inference
import onnx_ir as ir

from normfuse.errors import ModelError, NormfuseError

_PLAIN = frozenset(map(ir.AttributeType, range(1, 5))) | frozenset(map(ir.AttributeType, range(6, 9)))
"""Types of attributes that can be let through unknown: numbers, strings, a tensor; not graphs and types."""


_MOST_AXES = 1024
"""Dimensions that a tensor can have, by far."""


@dataclass(frozen=True, slots=True)
class Signature:
    """What an operator takes and gives.

    Attributes:
        inputs: the least and the largest number of inputs.
        outputs: the same of outputs.
        required: places of inputs that may not be left out.
        kinds: the types of attributes, by name.
        needed: attributes that may not be left out.
    """

    inputs: tuple[int, int]
    outputs: tuple[int, int]
    required: tuple[int, ...]
    kinds: Mapping[str, int]
    needed: tuple[str, ...]


@lru_cache(maxsize=4096)
def signature(op_type: str, opset: int) -> Signature | None:
    """The signature of an operator of the default domain; None where ONNX has none of that name."""
    try:
        schema = onnx.defs.get_schema(op_type, opset, "")
    except onnx.defs.SchemaError:
        return None
    single = onnx.defs.OpSchema.FormalParameterOption.Single
    return Signature(
        (schema.min_input, schema.max_input),
        (schema.min_output, schema.max_output),
        tuple(i for i, one in enumerate(schema.inputs) if one.option == single),
        {name: int(cast(Any, one.type)) for name, one in schema.attributes.items()},
        tuple(name for name, one in schema.attributes.items() if one.required),
    )


def validate_signatures(model: ir.Model) -> None:
    """Checks the nodes of a model, of its subgraphs and functions.

    Raises:
        ModelError: a node does not fit its operator, or a call its function.
    """
    _nodes(model.graph, model.opset_imports, model.functions, "")
    for function in model.functions.values():
        _nodes(function.graph, function.opset_imports, model.functions, f"function {function.name!r}: ")


def _nodes(
    graph: ir.Graph,
    opsets: Mapping[str, int],
    functions: Mapping[ir.OperatorIdentifier, ir.Function],
    where: str,
) -> None:
    for node in ir.traversal.RecursiveGraphIterator(graph):
        function = functions.get(node.op_identifier())
        if function is not None:
            problem = _misfit(node, (0, len(function.inputs)), (0, len(function.outputs)))
        elif node.domain not in ("", "ai.onnx") or (row := signature(node.op_type, opsets.get("", 1))) is None:
            continue
        else:
            problem = _misfit(node, row.inputs, row.outputs) or _broken(node, row)
        if not problem and not where and any(one.is_ref() for one in node.attributes.values()):
            problem = "has an attribute of the caller of its function, but stands in none"
        if problem:
            what = f"node {node.name!r} ({node.op_type})" if node.name else f"a {node.op_type} node"
            raise ModelError(f"{where}{what} {problem}; export the model again")


def _misfit(node: ir.Node, inputs: tuple[int, int], outputs: tuple[int, int]) -> str:
    for values, (least, most), what in ((node.inputs, inputs, "inputs"), (node.outputs, outputs, "outputs")):
        count = len(values)
        while count > most and ((last := values[count - 1]) is None or not last.name):
            count -= 1
        if not least <= count <= most:
            return f"has {count} {what}, but takes {least if least == most else f'{least} to {most}'}"
    return ""


def _broken(node: ir.Node, row: Signature) -> str:
    for place in row.required:
        if place < len(node.inputs) and node.inputs[place] is None:
            return f"lacks input {place}, which it needs"
    attributes = node.attributes
    for name, attribute in attributes.items():
        kind = row.kinds.get(name)
        if kind is None and attribute.type not in _PLAIN:
            return f"has an attribute {name!r} of type {attribute.type.name}, which its operator does not have"
        if kind is not None and int(attribute.type) != kind:
            return f"has an attribute {name!r} of type {attribute.type.name}, not {ir.AttributeType(kind).name}"
    for name in row.needed:
        if name not in attributes:
            return f"lacks the attribute {name!r}"
    if node.op_type == "Constant" and (len(attributes) != 1 or next(iter(attributes)) not in row.kinds):
        return f"has the attributes {', '.join(map(repr, attributes)) or 'none'} where one value is expected"
    return _fatal(node)


def _fatal(node: ir.Node) -> str:
    """What onnx and ONNX Runtime do not live through: attributes that they take for indices and counts."""
    for name in ("axis", "num_outputs"):
        number = node.attributes.get(name)
        if number is None or number.type != ir.AttributeType.INT or number.is_ref():
            continue
        if name == "axis" and abs(number.as_int()) > _MOST_AXES:
            return f"has the axis {number.as_int()}, which no tensor has"
        if name == "num_outputs" and node.op_type == "Split" and number.as_int() != len(node.outputs):
            return f"has num_outputs={number.as_int()}, but {len(node.outputs)} outputs"
    return ""


@contextmanager
def explained(reload: Callable[[], ir.Model]) -> Iterator[None]:
    """What goes wrong inside is the model's fault if onnx finds shapes in it that contradict one another.

    Args:
        reload: gives the model as it was before the work.

    Raises:
        ModelError: onnx says why the model cannot run; where it finds nothing, the error stays what it is: ours.
        NormfuseError: the memory ran out.
    """
    try:
        yield
    except NormfuseError:
        raise
    except MemoryError as error:
        raise NormfuseError(
            f"the memory does not suffice ({error or 'no more'}); free some, or use smaller shapes"
        ) from error
    except Exception as error:
        reason = contradiction(reload())
        if reason:
            raise ModelError(f"its shapes contradict one another: {reason}; export the model again") from error
        raise


def contradiction(model: ir.Model) -> str:
    """What onnx's strict shape inference finds wrong with a model, as one line; empty where it finds nothing."""
    try:
        proto: Any = ir.to_proto(model)
        onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True)
    except onnx.shape_inference.InferenceError as error:
        return " ".join(str(error).replace("[ShapeInferenceError] ", "").split())[:300]
    except Exception:  # such as a model of more than 2 GiB: nothing is known then
        return ""
    return ""

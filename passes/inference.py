"""Shapes and types of all values, by onnx's own inference on an outline of the model: no weight is copied.

What the model states of values is believed where onnx knows no better: behind operators of other domains, and behind
sequences, whose elements onnx takes to have one shape.
"""

from collections.abc import Iterable

import onnx
import onnx_ir as ir

from normfuse.passes.access import is_symbol
from normfuse.passes.dimensions import name_dimensions
from normfuse.passes.lengths import SMALL, Lengths

_LONGEST = 1 << 20
"""Elements of a vector, from which on onnx does not propagate data: it writes out each of them, known or not."""

_KEEPS_SHAPE = {
    "BiasGelu": ("com.microsoft",),
    "FastGelu": ("com.microsoft",),
    "Gelu": ("com.microsoft",),
    "GroupNorm": ("com.microsoft",),
    "GroupNormalization": ("", "ai.onnx"),
    "LayerNormalization": ("", "ai.onnx"),
    "QuickGelu": ("com.microsoft",),
    "RMSNormalization": ("", "ai.onnx"),
    "SimplifiedLayerNormalization": ("", "ai.onnx"),
    "SkipGroupNorm": ("com.microsoft",),
    "SkipLayerNormalization": ("com.microsoft",),
    "SkipSimplifiedLayerNormalization": ("com.microsoft",),
}
"""Operators of which onnx infers nothing, by their domains; the only result has the shape of the first input. ONNX
Runtime has some of them below the opset that onnx has them from."""


def infer_shapes(model: ir.Model) -> None:
    """Infers shapes and types of the values in the graph and its subgraphs.

    What the model states of values that onnx can infer is not believed: it may be left over from other shapes.
    """
    outline = _outline(model)
    try:
        inferred = _inferred(outline, data_prop=False)
        if not _is_long(inferred):
            inferred = _inferred(outline, data_prop=True)
    except (onnx.shape_inference.InferenceError, IndexError, OverflowError, RuntimeError, ValueError):
        return
    _take_over([node for node in model.graph if _is_inferable(model, node)], model.graph, inferred.graph)
    name_dimensions(model)


def has_long_vectors(model: ir.Model) -> bool:
    """Whether onnx must not propagate data in a model, because it would write out each element of a long vector."""
    try:
        return _is_long(_inferred(_outline(model), data_prop=False))
    except (onnx.shape_inference.InferenceError, IndexError, OverflowError, RuntimeError, ValueError):
        return True


def _is_long(inferred: onnx.ModelProto) -> bool:
    return Lengths(inferred).longest > _LONGEST


def _inferred(outline: onnx.ModelProto, data_prop: bool) -> onnx.ModelProto:
    return onnx.shape_inference.infer_shapes(outline, check_type=False, strict_mode=False, data_prop=data_prop)


def _outline(model: ir.Model) -> onnx.ModelProto:
    proto = onnx.ModelProto(ir_version=max(model.ir_version, 4))
    for domain, version in model.opset_imports.items():
        proto.opset_import.add(domain=domain, version=version)
    proto.functions.extend(ir.serde.serialize_function(function) for function in model.functions.values())
    for function in proto.functions:
        for node in function.node:
            _cast(node)
    graph = proto.graph
    graph.name = "outline"
    inferred = [node for node in model.graph if _is_inferable(model, node)]
    graph.node.extend(_stand_in(node) for node in inferred)
    stated = [value for node in model.graph if not _is_inferable(model, node) for value in node.outputs]
    graph.input.extend(_described(value) for value in (*model.graph.inputs, *stated) if value.name and value.type)
    for value in model.graph.outputs:
        graph.output.append(_described(value))
        graph.output[-1].type.tensor_type.ClearField("shape")
    listed = set(model.graph.inputs)
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is None or value in listed:
            continue
        if tensor.dtype in (ir.DataType.INT32, ir.DataType.INT64) and tensor.size <= SMALL:
            graph.initializer.append(ir.serde.serialize_tensor(tensor))
            graph.initializer[-1].name = str(value.name)
        else:
            graph.input.append(
                onnx.helper.make_tensor_value_info(str(value.name), tensor.dtype, list(tensor.shape.numpy()))
            )
    return proto


def _stand_in(node: ir.Node) -> onnx.NodeProto:
    """A node as inference is shown it, with those in its subgraphs."""
    proto = ir.serde.serialize_node(node)
    _pass_on(proto)
    return proto


def _pass_on(proto: onnx.NodeProto) -> None:
    """Makes an Identity or a Cast of an operator that keeps the shape, at any depth."""
    _cast(proto)
    if proto.domain in _KEEPS_SHAPE.get(proto.op_type, ()) and not any(proto.output[1:]):
        proto.op_type, proto.domain = "Identity", ""
        del proto.input[1:], proto.output[1:], proto.attribute[:]
    for attribute in proto.attribute:
        for graph in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
            for inner in graph.node:
                _pass_on(inner)


def _cast(proto: onnx.NodeProto) -> None:
    """Makes a Cast or an Identity of an operator at which onnx ends the process where it does not know the input."""
    if proto.domain not in ("", "ai.onnx") or proto.op_type not in ("EyeLike", "RegexFullMatch"):
        return
    to = [one.i for one in proto.attribute if one.name == "dtype"]
    if proto.op_type == "RegexFullMatch":
        to = [onnx.TensorProto.BOOL]
    proto.op_type = "Cast" if to else "Identity"
    del proto.attribute[:]
    proto.attribute.extend(onnx.helper.make_attribute("to", dtype) for dtype in to)


def _is_inferable(model: ir.Model, node: ir.Node) -> bool:
    if node.op_type == "SequenceAt":
        return False
    if node.domain in _KEEPS_SHAPE.get(node.op_type, ()) and not any(value.name for value in node.outputs[1:]):
        return True
    return node.domain in ("", "ai.onnx", "ai.onnx.ml") or node.op_identifier() in model.functions


def _described(value: ir.Value) -> onnx.ValueInfoProto:
    """The type and shape of a value, without the names of dimensions that name nothing."""
    proto = ir.serde.serialize_value(value)
    for dim in proto.type.tensor_type.shape.dim:
        if not is_symbol(dim.dim_param) and dim.dim_value <= 0:
            dim.ClearField("value")
    return proto


def _take_over(nodes: Iterable[ir.Node], graph: ir.Graph, inferred: onnx.GraphProto) -> None:
    infos = {info.name: info for info in (*inferred.value_info, *inferred.output)}
    for node, proto in zip(nodes, inferred.node, strict=True):
        for value in node.outputs:
            if value.name in infos:
                _describe(value, infos[value.name].type)
        for name, attribute in node.attributes.items():
            for inner, inner_proto in zip(_graphs(attribute), _graph_protos(proto, name), strict=True):
                _take_over(inner, inner, inner_proto)


def _describe(value: ir.Value, proto: onnx.TypeProto) -> None:
    if not proto.HasField("tensor_type"):
        return
    tensor = proto.tensor_type
    if tensor.elem_type and value.dtype is None:
        value.dtype = ir.DataType(tensor.elem_type)
    if tensor.HasField("shape"):
        value.shape = ir.Shape(
            [dim.dim_value if dim.HasField("dim_value") else (dim.dim_param or None) for dim in tensor.shape.dim]
        )


def _graphs(attribute: ir.Attr) -> Iterable[ir.Graph]:
    if attribute.type == ir.AttributeType.GRAPH:
        return [attribute.as_graph()]
    return attribute.as_graphs() if attribute.type == ir.AttributeType.GRAPHS else []


def _graph_protos(node: onnx.NodeProto, name: str) -> Iterable[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.name == name:
            return [attribute.g] if attribute.HasField("g") else attribute.graphs
    return []

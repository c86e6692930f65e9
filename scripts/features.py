"""What random graphs are made of, counted, so that gaps are seen: `features`."""

from collections import Counter
from collections.abc import Callable, Iterator

import onnx

KINDS = ("float32", "float16", "float64", "bfloat16")

_NORMS = ("BatchNormalization", "GroupNormalization", "InstanceNormalization", "LayerNormalization", "LpNormalization")
_OPERATORS: tuple[str, ...] = (*_NORMS, "LRN", "RMSNormalization", "If", "Loop", "Scan", "DequantizeLinear", "PRelu")

Graph = onnx.GraphProto | onnx.FunctionProto


def _is_prime(size: int) -> bool:
    return size > 4 and all(size % factor for factor in range(2, size))


def _sizes(model: onnx.ModelProto) -> list[int]:
    return [dim.dim_value for port in model.graph.input for dim in port.type.tensor_type.shape.dim if dim.dim_value]


def _reads(model: onnx.ModelProto) -> Counter[str]:
    return Counter(name for graph in graphs(model) for node in graph.node for name in node.input if name)


def _has_shared_weights(model: onnx.ModelProto) -> bool:
    reads = _reads(model)
    return any(reads[tensor.name] > 1 for tensor in model.graph.initializer)


def _has_several_consumers(model: onnx.ModelProto) -> bool:
    reads = _reads(model)
    constants = {tensor.name for graph in graphs(model) for tensor in getattr(graph, "initializer", ())}
    made = (name for node in model.graph.node if node.op_type != "Constant" for name in node.output)
    return any(reads[name] > 1 for name in made if name not in constants)


def _has_negative_slope(model: onnx.ModelProto) -> bool:
    slopes = (one.f for node in nodes(model) if node.op_type == "LeakyRelu" for one in node.attribute)
    return any(slope < 0 for slope in slopes)


def _has_parts(*operators: str) -> Callable[[onnx.ModelProto], bool]:
    def has(model: onnx.ModelProto) -> bool:
        return set(operators) <= {node.op_type for node in nodes(model)}

    return has


def _listed(model: onnx.ModelProto) -> bool:
    initial = {tensor.name for tensor in model.graph.initializer}
    return any(port.name in initial for port in model.graph.input)


def _made_of_constants(model: onnx.ModelProto) -> bool:
    initial = {tensor.name for tensor in model.graph.initializer}
    initial |= {node.output[0] for node in model.graph.node if node.op_type == "Constant"}
    added = {
        node.output[0]
        for node in model.graph.node
        if node.op_type == "Add" and all(name in initial for name in node.input)
    }
    return any(node.op_type == "Sqrt" and node.input[0] in added for node in model.graph.node)


FEATURES: dict[str, Callable[[onnx.ModelProto], bool]] = {
    "dynamic dimension": lambda model: any(
        dim.dim_param for port in model.graph.input for dim in port.type.tensor_type.shape.dim
    ),
    "size 1": lambda model: 1 in _sizes(model),
    "prime size": lambda model: any(map(_is_prime, _sizes(model))),
    "function": lambda model: bool(model.functions),
    "shared weight": _has_shared_weights,
    "several consumers": _has_several_consumers,
    "several outputs": lambda model: len(model.graph.output) > 1,
    "initializer as input": _listed,
    "negative slope": _has_negative_slope,
    "Clip with bounds": _has_parts("Clip"),
    "normalization by parts": _has_parts("ReduceMean", "Sqrt"),
    "BatchNorm by parts": _made_of_constants,
    "LRN by parts": _has_parts("AveragePool", "Pow", "Unsqueeze", "Squeeze"),
    "gate": _has_parts("Sigmoid", "Mul"),
}
"""What a model may have besides operators and dtypes, and how it is seen."""

NAMES = (*FEATURES, *_OPERATORS, *KINDS)
"""All features, those that no graph has among them."""


def features(model: onnx.ModelProto) -> set[str]:
    """The features of a model, by their names in `NAMES`."""
    operators = {node.op_type for node in nodes(model)}
    kind = onnx.helper.tensor_dtype_to_np_dtype(model.graph.input[0].type.tensor_type.elem_type).name
    return (
        {name for name, has in FEATURES.items() if has(model)} | (operators & set(_OPERATORS)) | ({kind} & set(KINDS))
    )


def graphs(model: onnx.ModelProto) -> Iterator[Graph]:
    """The graph, the bodies of functions, and the subgraphs in any of them."""
    pending: list[Graph] = [model.graph, *model.functions]
    while pending:
        graph = pending.pop()
        yield graph
        pending += (one.g for node in graph.node for one in node.attribute if one.type == onnx.AttributeProto.GRAPH)


def nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """All nodes of a model, wherever they stand."""
    for graph in graphs(model):
        yield from graph.node

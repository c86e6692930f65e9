"""The float64 oracle: what a model would compute if rounding did not matter.

    y64 = the model, every float upcast to float64, run by `onnx.reference` with the operators of `normfuse.kernels`.

Values, not spellings, are upcast: a weight stored in float16 keeps its rounded value, and so does an attribute stored
in float32. Integer, boolean and quantised values keep their types.
"""

import time
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from normfuse.kernels import KERNELS, RANDOM, Kernel
from normfuse.kernels_control import CONTROL
from normfuse.kernels_spatial import Array, Call

FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
"""Types that are upcast."""

_TYPE_ATTRIBUTES = frozenset({"dtype", "output_datatype", "softmax_precision", "to"})


class _Evaluator(ReferenceEvaluator):
    """onnx's evaluator with the operators of `KERNELS`, which it does not hand on to the bodies of functions itself."""

    def __init__(self, proto: Any, **options: Any) -> None:
        own = [*CONTROL, *(_operator(*key, kernel) for key, kernel in KERNELS.items())]
        options["new_ops"] = options.get("new_ops") or own
        super().__init__(proto, **options)


class OracleError(Exception):
    """The oracle cannot run this model, or not within its time; the message says at which node and why."""


class Oracle:
    """The float64 reference of one model.

    Example:
        >>> x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([2]))
        >>> node = ir.node("Mul", [x, x])
        >>> graph = ir.Graph([x], node.outputs, nodes=[node], opset_imports={"": 18}, name="square")
        >>> outputs = Oracle(ir.Model(graph, ir_version=10)).run({"x": np.float32([1e-30, 3])})
        >>> [float(y) for y in outputs[node.outputs[0].name]][1]
        9.0
    """

    def __init__(self, model: ir.Model, *, upcast: bool = True) -> None:
        """Upcasts a copy of the model.

        Args:
            model: the model, which is not changed.
            upcast: whether floats become float64; without it everything is computed in the types of the model.

        Raises:
            OracleError: the model holds an operator that nothing here can run.
        """
        for node in _nodes(model):
            if node.op_type in RANDOM:
                raise OracleError(f"{_label(node.op_type, node.name)}: its result is random")
        try:
            self._upcast = upcast
            copy = _upcast(model.clone()) if upcast else model.clone()
            self._weights = {
                name: value.const_value.numpy()
                for name, value in copy.graph.initializers.items()
                if value.const_value is not None
            }
            self.outputs = [str(value.name) for value in copy.graph.outputs]
            copy.graph.initializers.clear()
            self._evaluator = _Evaluator(ir.to_proto(copy))
        except Exception as error:
            raise OracleError(_first_line(error)) from error

    def run(
        self, inputs: Mapping[str, Array], names: Collection[str] | None = None, *, deadline: float | None = None
    ) -> dict[str, Array]:
        """Computes the outputs, or the values `names`, in float64.

        Args:
            inputs: arrays by input name; floats are upcast.
            names: values of the main graph to return instead of the outputs; those that no node makes are left out.
            deadline: `time.perf_counter()` at which to give up; looked at between nodes.

        Raises:
            OracleError: a node could not be run, or the deadline has passed.
        """
        wanted = set(self.outputs if names is None else names)
        values: dict[str, Any] = {"": None} | self._weights
        values |= {name: _float64(array) if self._upcast else array for name, array in inputs.items()}
        nodes = self._evaluator.rt_nodes_
        # a node with subgraphs may read any value, so then none is dropped
        last = {} if any(node.need_context() for node in nodes) else _last_uses(nodes)
        with np.errstate(all="ignore"):
            for index, node in enumerate(nodes):
                label = _label(node.op_type, node.onnx_node.name)
                if deadline is not None and time.perf_counter() > deadline:
                    raise OracleError(f"out of time at {label}, node {index + 1} of {len(nodes)}")
                context = {"context": values} if node.need_context() else {}
                try:
                    results = node.run(*(values[name] for name in node.input), **context)
                except Exception as error:
                    raise OracleError(f"{label}: {_first_line(error)}") from error
                values.update(zip(node.output, results, strict=False))
                for name in last.get(index, ()):
                    if name not in wanted:
                        values.pop(name, None)
        return {name: values[name] for name in wanted if name in values}


def _last_uses(nodes: Iterable[OpRun]) -> dict[int, list[str]]:
    """The values that each node is the last to read."""
    last = {name: index for index, node in enumerate(nodes) for name in node.input if name}
    by_node: dict[int, list[str]] = {}
    for name, index in last.items():
        by_node.setdefault(index, []).append(name)
    return by_node


def _operator(domain: str, name: str, kernel: Kernel) -> type[OpRun]:
    """The class under which the reference evaluator knows a kernel."""

    def run(self: OpRun, *inputs: Any, **attributes: Any) -> Any:
        attributes.pop("attributes", None)
        call = Call(attributes, self.run_params["opsets"][domain], len(self.onnx_node.output))
        kinds = [array.dtype for array in inputs if isinstance(array, np.ndarray) and _is_float(array.dtype)]
        if not kinds or np.dtype(np.float64) in kinds:
            return kernel(call, *inputs)
        # in the types of the model: half precision is summed in float32, as kernels do, and the result is of x's type
        results = kernel(call, *(_float32(array) for array in inputs))
        return tuple(
            result.astype(kinds[0], copy=False)
            if isinstance(result, np.ndarray) and _is_float(result.dtype)
            else result
            for result in results
        )

    # without a schema only the attributes that the node states are passed: defaults depend on the opset
    return type(name, (OpRun,), {"op_domain": domain, "op_schema": None, "_run": run})


def _nodes(model: ir.Model) -> Iterable[ir.Node]:
    yield from model.graph.all_nodes()
    for function in model.functions.values():
        yield from function.all_nodes()


def _upcast(model: ir.Model) -> ir.Model:
    """Turns every float of the model into float64, in place."""
    functions = [inner for one in model.functions.values() for inner in (one.graph, *one.graph.subgraphs())]
    for graph in [*model.graphs(), *functions]:
        for value in [*graph.inputs, *graph.initializers.values()]:
            _upcast_value(value)
    for node in _nodes(model):
        for value in node.outputs:
            _upcast_value(value)
        for attribute in list(node.attributes.values()):
            _upcast_attribute(node, attribute)
        if node.op_type == "ConstantOfShape" and "value" not in node.attributes:
            node.attributes["value"] = ir.AttrTensor("value", ir.tensor(np.zeros(1)))
    return model


def _upcast_value(value: ir.Value) -> None:
    if value.type is not None:
        value.type = _upcast_type(value.type)
    if value.const_value is not None and value.const_value.dtype in FLOATS:
        value.const_value = _upcast_tensor(value.const_value)


def _upcast_type(kind: ir.TypeProtocol) -> ir.TypeProtocol:
    match kind:
        case ir.TensorType() if kind.dtype in FLOATS:
            return ir.TensorType(ir.DataType.DOUBLE)
        case ir.SequenceType() | ir.OptionalType():
            return type(kind)(_upcast_type(kind.elem_type))
    return kind


def _upcast_tensor(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return ir.tensor(np.asarray(tensor.numpy()).astype(np.float64), name=tensor.name)


def _upcast_attribute(node: ir.Node, attribute: ir.Attr) -> None:
    """Upcasts what an attribute says about types and what it holds in tensors."""
    if attribute.is_ref():
        return
    name, kind, value = attribute.name, attribute.type, attribute.value
    if kind == ir.AttributeType.TENSOR and value.dtype in FLOATS:
        node.attributes[name] = ir.AttrTensor(name, _upcast_tensor(value))
    elif kind == ir.AttributeType.TENSORS:
        node.attributes[name] = ir.AttrTensors(name, [_upcast_tensor(t) if t.dtype in FLOATS else t for t in value])
    elif node.op_type == "Constant" and kind in (ir.AttributeType.FLOAT, ir.AttributeType.FLOATS):
        del node.attributes[name]
        node.attributes["value"] = ir.AttrTensor("value", ir.tensor(np.float32(value).astype(np.float64)))
    elif kind == ir.AttributeType.INT and name in _TYPE_ATTRIBUTES and value in FLOATS:
        node.attributes[name] = ir.AttrInt64(name, int(ir.DataType.DOUBLE))
    elif kind == ir.AttributeType.TYPE_PROTO:
        node.attributes[name] = ir.AttrTypeProto(name, ir.TypeAndShape(_upcast_type(value.type), value.shape))


def _is_float(dtype: np.dtype[Any]) -> bool:
    return dtype.kind == "f" or dtype.name == "bfloat16"


def _float32(array: Any) -> Any:
    """A float array of less than float32 as float32; anything else as it is."""
    narrow = isinstance(array, np.ndarray) and _is_float(array.dtype) and array.dtype.itemsize < 4
    return array.astype(np.float32) if narrow else array


def _float64(array: Array) -> Array:
    """A float array of any width, bfloat16 included, as float64; anything else as it is."""
    array = np.asarray(array)
    return array.astype(np.float64) if _is_float(array.dtype) else array


def _label(op_type: str, name: str | None) -> str:
    return f"{op_type} {name!r}" if name else op_type


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__

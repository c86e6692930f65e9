"""opset: raises the opset of a model by onnx's own version converter, one node at a time.

The converter takes whole models, and drops model-local functions and weights in other files. So only a node whose
operator has changed is given to it, alone, and what comes back takes the node's place. Everything else, names, weights,
functions, subgraphs and operators of other domains, stays as it is, and the size of the model does not matter.
"""

from collections.abc import Collection, Iterable

import numpy as np
import onnx
import onnx_ir as ir
from onnx import version_converter

from normfuse.errors import ModelError, NormfuseError
from normfuse.passes.access import operator, title
from normfuse.passes.inference import infer_shapes
from normfuse.passes.journal import Journal
from normfuse.passes.opset_mendings import MENDINGS, Places
from normfuse.passes.rule import Rule
from normfuse.passes.weights import Weights, constant_tensor, is_function_body, mark_functions
from normfuse.report import Change, Refusal
from normfuse.target import CUDA_OPSET, Target

_SHOWN = 4096
"""Constants of up to this many elements are shown to the converter; of others it sees the shape."""

_KEPT = frozenset({"Constant", "If", "Loop", "SequenceMap"})
"""Operators of which only the types have changed; what stands in their subgraphs is converted where it stands."""


class OpsetPass(ir.passes.InPlacePass):
    """Raises the opset of a model, its subgraphs and its functions.

    Attributes:
        changes: what was done.
    """

    def __init__(self, opset: int, journal: Journal | None = None) -> None:
        """Raises models to an opset of the default domain."""
        super().__init__()
        self._journal = journal or Journal()
        self._opset = opset
        self.changes: list[Change] = []

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Operator of the old opset → the nodes that compute the same in the new one, for each that has changed.

        Raises:
            ModelError: a node cannot be converted.
        """
        before = model.opset_imports.get("", 0)
        if before == self._opset:
            return ir.passes.PassResult(model, False)
        infer_shapes(model)
        mark_functions(model)
        weights = Weights(model)
        changed: list[ir.Node] = []
        written: list[ir.Node] = []
        graphs: list[tuple[ir.Graph, int]] = [(graph, before) for graph in (model.graph, *model.graph.subgraphs())]
        for function in model.functions.values():
            own = function.opset_imports.get("", before)
            graphs += [(graph, own) for graph in (function.graph, *function.subgraphs()) if own < self._opset]
            if own < self._opset and "" in function.opset_imports:
                function.opset_imports[""] = self._opset
        for graph, opset in graphs:
            for node in tuple(graph):
                if self._is_changed(node, opset):
                    changed.append(node)
                    name = node.name or node.op_type
                    forbidden = self._journal.forbids("opset", (name,))
                    if forbidden:
                        problem = f"{title(node)} cannot be raised from opset {opset} to {self._opset}"
                        raise ModelError(f"{problem}: {forbidden}; keep the model's opset")
                    seen = self._journal.before([node])
                    new = self._convert(node, opset, weights)
                    into = tuple(one.name or one.op_type for one in new)
                    self._journal.after(seen, Change("opset", (name,), into), self._opset)
                    written += new
        model.opset_imports[""] = self._opset
        model.ir_version = max(model.ir_version, _least_ir_version(self._opset))
        names, into = (tuple(node.name or node.op_type for node in nodes) for nodes in (changed, written))
        detail = f"opset {before} → {self._opset}: {len(changed)} nodes rewritten for it"
        self.changes.append(Change("opset", names, into, detail))
        return ir.passes.PassResult(model, True)

    def _is_changed(self, node: ir.Node, opset: int) -> bool:
        """Whether the operator of a node is another one in the new opset."""
        name = operator(node)
        if not name or name in _KEPT or not onnx.defs.has(name):
            return False
        return _version(name, opset) != _version(name, self._opset)

    def _convert(self, node: ir.Node, opset: int, weights: Weights) -> list[ir.Node]:
        """Puts what the converter makes of a node in its place."""
        problem = f"{title(node)} cannot be raised from opset {opset} to {self._opset}"
        if any(attribute.is_ref() for attribute in node.attributes.values()):
            raise ModelError(f"{problem}: an attribute is set by the caller of its function; keep the model's opset")
        proto, places = _alone(node, opset)
        try:
            raised = ir.from_proto(version_converter.convert_version(proto, self._opset))
        except Exception as error:  # the converter throws what C++ has
            raise ModelError(f"{problem}: {_reason(error)}; keep the model's opset or export it anew") from error
        for mend in MENDINGS:
            mend(node, opset, raised.graph, places, weights)
        return _splice(node, raised.graph, places, weights)


def check_opset(opset: int | None, current: int, target: Target) -> None:
    """Checks that a model can be asked to have an opset.

    Raises:
        NormfuseError: the opset is below the model's own, onnx does not know it, or the target should not have it.
    """
    if opset is None:
        return
    known = onnx.defs.onnx_opset_version()
    if opset > known:
        raise NormfuseError(f"onnx {onnx.__version__} knows opsets up to {known}, not {opset}; upgrade onnx")
    if opset < current:
        raise NormfuseError(f"the model has opset {current}, which can be raised but not lowered to {opset}")
    if target.provider == "cuda" and opset > CUDA_OPSET >= current:
        raise NormfuseError(
            f"above opset {CUDA_OPSET} ONNX Runtime runs InstanceNormalization and MaxPool on the CPU, not on CUDA; "
            f"choose at most {CUDA_OPSET}, not {opset}"
        )


def lost_kernels(model: ir.Model, target: Target) -> list[Refusal]:
    """What ONNX Runtime runs on the CPU, with copies, because the opset of a model is above the last it has on CUDA."""
    opset = model.opset_imports.get("", 0)
    if target.provider != "cuda" or opset <= CUDA_OPSET:
        return []
    reason = f"ONNX Runtime runs it on the CPU at opset {opset}; export the model at opset {CUDA_OPSET} or below"
    nodes = [node for node in model.graph.all_nodes() if operator(node) in ("InstanceNormalization", "MaxPool")]
    return [Refusal("opset", node.name or node.op_type, reason) for node in nodes]


def _version(name: str, opset: int) -> int:
    try:
        return int(onnx.defs.get_schema(name, opset, "").since_version)
    except onnx.defs.SchemaError:
        return 0


def _least_ir_version(opset: int) -> int:
    return int(onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", opset)], ignore_unknown=True))


def _alone(node: ir.Node, opset: int) -> tuple[onnx.ModelProto, Places]:
    """A model of one node, and what its names stand for: `x0`, `x1`, … for the inputs, `y0`, … for the outputs."""
    distinct = list(dict.fromkeys(value for value in node.inputs if value is not None))
    places = {f"x{index}": value for index, value in enumerate(distinct)}
    places |= {f"y{index}": value for index, value in enumerate(node.outputs) if value.name}
    names = {value: name for name, value in places.items()}
    graph = onnx.GraphProto(name="alone")
    for value in distinct:
        tensor = constant_tensor(value)
        if tensor is not None and tensor.size <= _SHOWN and not _is_text(tensor.dtype):
            graph.initializer.append(ir.to_proto(tensor))
            graph.initializer[-1].name = names[value]
        else:
            graph.input.append(_described(value, names[value]))
    graph.output.extend(_described(value, names[value]) for value in node.outputs if value.name)
    own = graph.node.add()
    own.CopyFrom(ir.to_proto(node))
    own.input[:] = [names.get(value, "") if value is not None else "" for value in node.inputs]
    own.output[:] = [names.get(value, "") for value in node.outputs]
    proto = onnx.ModelProto(ir_version=8, graph=graph)
    proto.opset_import.add(domain="", version=opset)
    return proto, places


def _is_text(dtype: ir.DataType) -> bool:
    return dtype == ir.DataType.STRING


def _described(value: ir.Value, name: str) -> onnx.ValueInfoProto:
    info = onnx.ValueInfoProto()
    if value.type is not None:
        info.CopyFrom(ir.to_proto(value))
    info.name = name
    return info


def _splice(node: ir.Node, raised: ir.Graph, places: Places, weights: Weights) -> list[ir.Node]:
    """Moves the nodes of a converted graph to where a node stands, and removes it."""
    graph = node.graph
    assert graph is not None
    stand_ins: dict[ir.Value, ir.Value] = {}
    for value in (*raised.inputs, *raised.initializers.values()):
        if value.name in places:
            stand_ins[value] = places[value.name]
        elif value.const_value is not None:
            stand_ins[value] = _constant(np.asarray(value.const_value.numpy()), node, weights)
    nodes: list[ir.Node] = []
    for new in tuple(raised):
        raised.remove(new)
        tensor = ir.convenience.get_const_tensor(new.outputs[0]) if new.op_type == "Constant" else None
        if tensor is not None:
            stand_ins[new.outputs[0]] = _constant(np.asarray(tensor.numpy()), node, weights)
        else:
            nodes.append(new)
    outputs = {value: places[str(value.name)] for value in raised.outputs}
    raised.outputs.clear()
    for new in nodes:
        for index, read in enumerate(new.inputs):
            if read is not None and read in stand_ins:
                new.replace_input_with(index, stand_ins[read])
    _name(node, nodes, set(outputs), weights)
    graph.insert_before(node, nodes)
    for written, old in outputs.items():
        written.type, written.shape, written.doc_string = old.type, old.shape, old.doc_string
        written.metadata_props.update(old.metadata_props)
        name, old.name = old.name, None
        old.replace_all_uses_with(written, replace_graph_outputs=True)
        written.name = name
    graph.remove(node, safe=True)
    return nodes


def _name(node: ir.Node, nodes: Iterable[ir.Node], outputs: Collection[ir.Value], weights: Weights) -> None:
    """The converted node keeps name, metadata and documentation; what was put beside it gets names of its own."""
    heirs = [new for new in nodes if new.op_type == node.op_type] or [n for n in nodes if set(n.outputs) & set(outputs)]
    for new in nodes:
        if new is heirs[0]:
            new.name, new.doc_string = node.name, node.doc_string
            new.metadata_props.update(node.metadata_props)
        else:
            new.name = weights.fresh(f"{node.name or node.outputs[0].name}_{new.op_type}")
        for value in new.outputs:
            if value not in outputs and value.name:
                value.name = weights.fresh(f"{new.name or node.outputs[0].name}_output")


def _constant(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]], node: ir.Node, weights: Weights) -> ir.Value:
    """A constant that the converter made: an initializer, or a Constant node in a function."""
    graph = node.graph
    assert graph is not None
    name = weights.fresh(f"{node.outputs[0].name}_constant")
    tensor = ir.Tensor(array, name=name)
    if is_function_body(graph):
        constant = ir.node("Constant", [], {"value": tensor}, name=weights.fresh(f"{name}_node"))
        graph.insert_before(node, constant)
        value = constant.outputs[0]
        value.name = name
    else:
        value = ir.Value(name=name, const_value=tensor)
        assert isinstance(graph, ir.Graph)
        graph.register_initializer(value)
    value.shape, value.dtype = ir.Shape(array.shape), tensor.dtype
    return value


def _reason(error: BaseException) -> str:
    """What a converter says, without the place in its source."""
    text = " ".join(str(error).split())
    return text.rsplit("failed: ", 1)[-1][:200] or type(error).__name__


RULES: tuple[Rule, ...] = (
    Rule(
        "opset",
        "opset",
        (),
        None,
        OpsetPass.call,
        "onnx's version converter writes each operator that has changed as it is in the new opset",
    ),
)

"""prepare: what depends on weights alone is evaluated once, and the shapes are inferred.

Weight standardization, weight norm, spectral norm, the rsqrt of a FrozenBN, chains of Unsqueeze, Cast and Identity in
front of a weight: all become initializers, computed in float64 and rounded once; what leads to something discrete, as a
size, is computed in the types of the model. Known shapes become constants.
"""

import math
from collections.abc import Collection, Iterable, Iterator

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from normfuse.passes.access import RefusedError, operator
from normfuse.passes.branches import known_branches
from normfuse.passes.inference import infer_shapes
from normfuse.passes.journal import Journal
from normfuse.passes.lifted import remove_unread
from normfuse.passes.moves import MOVES
from normfuse.passes.removal import RemoveUnusedPass
from normfuse.passes.rule import Rule
from normfuse.passes.shapes import reshape_constants, shape_constants
from normfuse.passes.weights import EXACT, Weights, constant_tensor, is_float, round_to
from normfuse.report import Change, Refusal

GROWTH_BYTES = 32 << 20
"""A constant that is larger than four times what it is computed from is evaluated up to this size."""

_KEPT = frozenset(
    {
        "Bernoulli",
        "Constant",
        "DequantizeLinear",
        "Dropout",
        "DynamicQuantizeLinear",
        "Multinomial",
        "QuantizeLinear",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
    }
)
"""What is not evaluated: it is random, or the form in which quantized weights are stored."""

_SMOOTH = frozenset(
    {
        "Abs",
        "Add",
        "BatchNormalization",
        "Concat",
        "Div",
        "Expand",
        "Flatten",
        "Gather",
        "Gemm",
        "Identity",
        "InstanceNormalization",
        "LayerNormalization",
        "MatMul",
        "Mul",
        "Neg",
        "Pow",
        "Reciprocal",
        "ReduceL1",
        "ReduceL2",
        "ReduceMean",
        "ReduceSum",
        "ReduceSumSquare",
        "Reshape",
        "Slice",
        "Split",
        "Sqrt",
        "Squeeze",
        "Sub",
        "Sum",
        "Tile",
        "Transpose",
        "Unsqueeze",
    }
)
"""Operators whose result changes little where their input does: what weights are computed with."""

_SIZED = frozenset(
    {
        "AveragePool",
        "BlackmanWindow",
        "CenterCropPad",
        "Col2Im",
        "Conv",
        "ConvTranspose",
        "DFT",
        "Expand",
        "HammingWindow",
        "HannWindow",
        "LpPool",
        "MaxPool",
        "MaxUnpool",
        "MelWeightMatrix",
        "OneHot",
        "Pad",
        "Range",
        "Resize",
        "STFT",
        "Tile",
        "Upsample",
    }
)
"""Operators whose result can be of any size, whatever that of their inputs."""

_LONGEST = 64
"""Dimensions that a shape can sensibly have."""

_INITIAL_IR_VERSION = 4
"""From this IR version on, an initializer need not be an input of the graph, and one that is may be overridden."""


_ROUNDS = 16
"""Shapes that become constants tell inference of more shapes: at most this often."""


class PreparePass(ir.passes.InPlacePass):
    """Makes constants of what is constant.

    Attributes:
        changes: what was done.
        refusals: what was not done, with the reasons.
    """

    def __init__(
        self, freeze: bool | None = None, ignore: Collection[str] = (), journal: Journal | None = None
    ) -> None:
        """Prepares models.

        Args:
            freeze: whether initializers that are listed as inputs become constants; None decides as
                `freezes_by_itself` does.
            ignore: names of rules not to use.
            journal: sees each change.
        """
        super().__init__()
        self._journal = journal or Journal()
        self._freeze = False if "freeze" in ignore else freeze
        self._constants, self._shapes = "constant" not in ignore, "known-shape" not in ignore
        self._branches = "known-branch" not in ignore
        self._most = 0
        self.changes: list[Change] = []
        self.refusals: list[Refusal] = []

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Prepares a model."""
        self.freeze_inputs(model)
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        self._most = 4 * sum(_bytes(graph.initializers.values()) for graph in model.graphs())
        infer_shapes(model)
        for graph in (model.graph, *model.graph.subgraphs()):
            for node in graph:
                if operator(node) == "CastLike":
                    _state_dtype(node)
        changed = self._constants and self.fold_constants(model)
        changed |= self._branches and self.take_branches(model)
        for _ in range(_ROUNDS):
            if not (self._shapes and self.fold_shapes(model)) and not changed:
                break
            if self._constants:
                self.fold_constants(model)
            changed = self._branches and self.take_branches(model)
            infer_shapes(model)
        return ir.passes.PassResult(model, bool(self.changes))

    def freeze_inputs(self, model: ir.Model) -> None:
        """Initializers that are listed as inputs become constants where the exporter listed all of them."""
        listed = [value for value in model.graph.inputs if value.is_initializer()]
        if not listed:
            return
        freeze = freezes_by_itself(model) if self._freeze is None else self._freeze
        if not freeze:
            for value in listed:
                reason = "it is an input of the graph that a caller may set; --freeze makes it a constant"
                self.refusals.append(Refusal("freeze", value.name or "", reason))
            return
        kept = [] if self._freeze else [value for value in listed if _is_quantized(value)]
        reason = "it is quantized: were it constant, ONNX Runtime might round what it multiplies; --freeze makes it so"
        self.refusals += (Refusal("freeze", value.name or "", reason) for value in kept)
        listed = [value for value in listed if value not in kept]
        if not listed:
            return
        for value in listed:
            model.graph.inputs.remove(value)
        model.ir_version = max(model.ir_version, _INITIAL_IR_VERSION)
        detail = f"{len(listed)} initializers listed as inputs became constants; --no-freeze keeps them"
        self.changes.append(Change("freeze", (), (), detail))

    def fold_constants(self, model: ir.Model) -> bool:
        """Evaluates the nodes that depend on constants alone."""
        changed = False
        for graph in (model.graph, *model.graph.subgraphs()):
            for nodes in _connected(list(_evaluable(graph, self._most))):
                changed |= self._evaluate(model, graph, nodes)
        if changed:
            RemoveUnusedPass()(model)
        return changed

    def fold_shapes(self, model: ir.Model) -> bool:
        """Replaces what is computed of known dimensions by constants."""
        changed = False
        for value, integers in shape_constants(model.graph):
            node = value.producer()
            assert node is not None
            change = Change("known-shape", (node.name or node.op_type,), (), "its dimensions are known")
            if self._is_forbidden(change):
                continue
            seen = self._journal.before([node])
            array = np.asarray(integers, value.dtype.numpy() if value.dtype is not None else np.int64)
            _replace(model.graph, value, array, ir.DataType.from_numpy(array.dtype), None)
            self._journal.after(seen, change)
            self.changes.append(change)
            changed = True
        weights: Weights | None = None
        for node, shape in reshape_constants(model.graph):
            stated = node.inputs[1]
            change = Change("known-shape", (node.name or node.op_type,), (), f"reshapes to {shape}")
            if self._is_forbidden(change):
                continue
            weights = weights or Weights(model)
            seen = self._journal.before([node])
            node.replace_input_with(1, weights.new_shape(shape, node))
            self._journal.after(seen, change)
            if constant_tensor(stated) is None:  # 0 for −1 says the same in words that inference understands
                self.changes.append(change)
            changed = True
        if changed:
            RemoveUnusedPass()(model)
        return changed

    def take_branches(self, model: ir.Model) -> bool:
        """If(true, A, B) = A: branches that are always taken take the place of their If."""
        changed = False
        for node, take in known_branches(model):
            change = Change("known-branch", (node.name or node.op_type,), (), "its condition is always the same")
            if self._is_forbidden(change):
                continue
            seen = self._journal.before([node])
            take()
            self._journal.after(seen, change)
            self.changes.append(change)
            changed = True
        return changed

    def _is_forbidden(self, change: Change) -> bool:
        """Whether a change must not be made; the reason becomes a refusal."""
        reason = self._journal.forbids(change.rule, change.nodes)
        if reason:
            refusal = Refusal(change.rule, change.nodes[0], reason)
            self.refusals.extend([refusal] if refusal not in self.refusals else [])
        return bool(reason)

    def _evaluate(self, model: ir.Model, graph: ir.Graph, nodes: list[ir.Node]) -> bool:
        """Replaces nodes by the constants that they compute; those that only move elements need no evaluator."""
        names = tuple(node.name or node.op_type for node in nodes)
        if self._is_forbidden(Change("constant", names)):
            return False
        seen = self._journal.before(nodes)
        names_made = [str(value.name) for node in nodes for value in node.outputs if value.name]
        read = {value for node in nodes for value in node.inputs if value is not None and value.is_initializer()}
        rest = [node for node in nodes if not _move(graph, node)]
        for smooth, group in _groups(rest):
            self._run(model, graph, group, smooth)
        left = remove_unread(model, nodes)
        gone = tuple(name for node, name in zip(nodes, names, strict=True) if node not in left)
        if gone:
            made = [graph.initializers[name] for name in names_made if name in graph.initializers]
            growth = _bytes(made) - _bytes(value for value in read if not value.uses())
            cost = f"; the weights grow by {growth / 1e6:.1f} MB, --ignore constant leaves them" if growth > 1e6 else ""
            change = Change("constant", gone, (), f"evaluated once: depends on weights alone{cost}")
            self._journal.after(seen, change)
            self.changes.append(change)
        return bool(gone)

    def _run(self, model: ir.Model, graph: ir.Graph, nodes: list[ir.Node], smooth: bool) -> None:
        """Evaluates nodes: in float64 where they are smooth, in the types of the model otherwise."""
        from normfuse.oracle import Oracle, OracleError

        members = set(nodes)
        wanted = [
            output
            for node in nodes
            for output in node.outputs
            if any(use.node not in members for use in output.uses()) and output.dtype is not None
        ]
        feeds: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]] = {}
        try:
            results = Oracle(_cut_out(model, nodes, wanted, feeds), upcast=smooth).run(feeds)
        except OracleError as error:
            if len(nodes) == 1:
                self.refusals.append(Refusal("constant", nodes[0].name or nodes[0].op_type, f"not evaluated: {error}"))
                return
            for node in nodes:
                if all(value is None or constant_tensor(value) is not None for value in node.inputs):
                    self._run(model, graph, [node], smooth)
            return
        for value in wanted:
            array = np.asarray(results[str(value.name)])
            dtype = value.dtype
            assert dtype is not None
            is_real = smooth and is_float(dtype) and array.dtype.kind == "f"
            _replace(graph, value, array, dtype, array.astype(np.float64, copy=False) if is_real else None)


def _groups(nodes: list[ir.Node]) -> Iterator[tuple[bool, list[ir.Node]]]:
    """Nodes that are connected with one another, and whether all of them are smooth.

    A Floor, a comparison or a Cast to a narrower type turns a difference in rounding into another number: what leads to
    one is computed as the model says.
    """
    for group in _connected(nodes):
        yield all(_is_smooth(node) for node in group), group


def _connected(nodes: list[ir.Node]) -> Iterator[list[ir.Node]]:
    """Nodes that are connected with one another, each group in their order."""
    groups: dict[ir.Node, list[ir.Node]] = {}
    for node in nodes:
        group = [node]
        for value in node.inputs:
            other = groups.get(producer) if value is not None and (producer := value.producer()) is not None else None
            if other is not None and other is not group:
                other.extend(member for member in group if member not in other)
                group = other
        for member in group:
            groups[member] = group
    order = {node: place for place, node in enumerate(nodes)}
    for group in {id(group): group for group in groups.values()}.values():
        yield sorted(group, key=order.__getitem__)


def _is_smooth(node: ir.Node) -> bool:
    if node.op_type == "Cast":
        return node.outputs[0].dtype in (ir.DataType.FLOAT, ir.DataType.DOUBLE)
    return node.op_type in _SMOOTH


def _move(graph: ir.Graph, node: ir.Node) -> bool:
    """Evaluates a node that only fills or moves elements of constants."""
    tensors = [constant_tensor(value) for value in node.inputs]
    output = node.outputs[0]
    if node.op_type not in MOVES or any(tensor is None for tensor in tensors):
        return False
    if any(value is not None and EXACT in value.meta for value in node.inputs):
        return False  # what is known in float64 stays so
    try:
        array = MOVES[node.op_type](node, *(tensor.numpy() for tensor in tensors if tensor is not None))
    except (IndexError, RefusedError, ValueError):
        return False
    _replace(graph, output, array, output.dtype or ir.DataType.from_numpy(array.dtype), None)
    return True


def _bytes(values: Iterable[ir.Value]) -> int:
    """Bytes of initializers."""
    return sum(value.const_value.nbytes for value in values if value.const_value is not None)


def freezes_by_itself(model: ir.Model) -> bool:
    """Whether all initializers are listed as inputs: the habit of an exporter, not a wish to override them.

    Before IR version 4 they had to be, and none could be overridden.
    """
    return model.ir_version < _INITIAL_IR_VERSION or all(
        value.is_graph_input() for value in model.graph.initializers.values()
    )


def _is_quantized(value: ir.Value) -> bool:
    """Whether a value is a weight that DequantizeLinear reads, or its scale or zero point.

    ONNX Runtime 1.32 makes a MatMul by a constant of int8 one that rounds the other operand to int8, too. A weight that
    a caller may set keeps it from that, and no rule folds into it.
    """
    return any(operator(node) == "DequantizeLinear" for node, _ in value.uses())


def _state_dtype(node: ir.Node) -> None:
    """Makes a CastLike whose dtype is known a Cast, which reads one input less."""
    like = node.inputs[1]
    if like is None or like.dtype is None:
        return
    node.op_type = "Cast"
    node.resize_inputs(1)
    node.attributes["to"] = ir.AttrInt64("to", like.dtype.value)


def _evaluable(graph: ir.Graph, most: int) -> Iterator[ir.Node]:
    """Nodes that compute constants, in order, each a reader of constants or of such nodes alone.

    Args:
        graph: the graph.
        most: bytes that one result may have: else what was evaluated could grow again, in each round.
    """
    constant: set[ir.Value] = set()
    for node in graph:
        if operator(node) in ("", *_KEPT):
            continue
        if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
            continue
        if not all(v is None or v in constant or _is_tensor(v) for v in node.inputs):
            continue
        if any(output.is_graph_output() for output in node.outputs) or not _is_worth(node, most):
            continue
        constant.update(node.outputs)
        yield node


def _is_tensor(value: ir.Value) -> bool:
    tensor = constant_tensor(value)
    return tensor is not None and tensor.dtype != ir.DataType.STRING


def _is_worth(node: ir.Node, most: int) -> bool:
    """Whether the results are known not to be much larger than what they are computed from."""
    known = sum(tensor.nbytes for tensor in map(constant_tensor, node.inputs) if tensor is not None)
    limit = max(GROWTH_BYTES, min(4 * known, most))
    size = 0
    for output in node.outputs:
        if output.name and (output.dtype is None or output.dtype == ir.DataType.STRING):
            return False
        if output.dtype is None:
            continue
        count = _count(output)
        if count is None:
            count = _largest(node)
        if count is None:
            return False
        size += count * output.dtype.bitwidth // 8
    return size <= limit


def _count(value: ir.Value) -> int | None:
    """The elements of a value, or None where its shape is not known."""
    own = None if value.shape is None else [dim for dim in value.shape if isinstance(dim, int) and dim >= 0]
    return None if own is None or value.shape is None or len(own) < len(value.shape) else math.prod(own)


def _largest(node: ir.Node) -> int | None:
    """As many elements as a result can have whose shape is not known: each element of an input with each of the others.

    None where an operator makes more than that, or an input is not known.
    """
    if node.op_type == "ConstantOfShape":
        shape = constant_tensor(node.inputs[0]) if node.inputs else None
        return None if shape is None else math.prod(max(0, int(n)) for n in shape.numpy().ravel())
    if node.op_type in ("Expand", "Tile"):
        size, factors = _count_of(node.inputs[0]), constant_tensor(node.inputs[1]) if len(node.inputs) > 1 else None
        if size is None or factors is None or factors.size > _LONGEST:
            return None
        return size * math.prod(max(1, int(n)) for n in factors.numpy().ravel())
    if node.op_type in _SIZED:
        return None
    counts = []
    for value in node.inputs:
        count = 1 if value is None else _count_of(value)
        if count is None:
            return None
        counts.append(max(1, count))
    return math.prod(counts)


def _count_of(value: ir.Value | None) -> int | None:
    """The elements of an input: of the constant that it is, or by its shape."""
    tensor = constant_tensor(value)
    return tensor.size if tensor is not None else None if value is None else _count(value)


def _cut_out(
    model: ir.Model,
    nodes: Iterable[ir.Node],
    wanted: Iterable[ir.Value],
    feeds: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]],
) -> ir.Model:
    """A model of some nodes alone; the constants that they read become its inputs, with their values in `feeds`."""
    values: dict[ir.Value, ir.Value] = {}
    inputs: list[ir.Value] = []

    def copy(value: ir.Value) -> ir.Value:
        if value not in values:
            values[value] = ir.Value(name=value.name, type=value.type, shape=value.shape)
            tensor = constant_tensor(value)
            if tensor is not None:
                exact = value.meta.get(EXACT)
                feeds[str(value.name)] = np.asarray(tensor.numpy() if exact is None else exact)
                values[value].dtype = tensor.dtype
                inputs.append(values[value])
        return values[value]

    copies = [
        ir.Node(
            node.domain,
            node.op_type,
            [None if value is None else copy(value) for value in node.inputs],
            list(node.attributes.values()),
            outputs=[copy(output) for output in node.outputs],
            name=node.name,
        )
        for node in nodes
    ]
    graph = ir.Graph(
        inputs, [copy(value) for value in wanted], nodes=copies, opset_imports=dict(model.opset_imports), name="weights"
    )
    return ir.Model(graph, ir_version=model.ir_version)


def _replace(
    graph: ir.Graph,
    value: ir.Value,
    array: np.ndarray[tuple[int, ...], np.dtype[np.generic]],
    dtype: ir.DataType,
    exact: np.ndarray[tuple[int, ...], np.dtype[np.float64]] | None,
) -> None:
    """Lets the readers of a value read an initializer instead, which takes its name over."""
    rounded = array.astype(dtype.numpy()) if exact is None else round_to(exact, dtype)
    name, value.name = value.name, f"{value.name}_computed"
    constant = ir.Value(name=name, const_value=ir.Tensor(rounded, dtype=dtype, name=name))
    constant.shape, constant.dtype = ir.Shape(array.shape), dtype
    if exact is not None:
        constant.meta[EXACT] = exact
    graph.register_initializer(constant)
    value.replace_all_uses_with(constant)


RULES: tuple[Rule, ...] = (
    Rule(
        "freeze",
        "prepare",
        (),
        None,
        PreparePass.freeze_inputs,
        "an exporter that lists all initializers as inputs does not mean any of them to be overridden",
    ),
    Rule("constant", "prepare", (), None, PreparePass.fold_constants, "what depends on weights alone never changes"),
    Rule("known-shape", "prepare", (), None, PreparePass.fold_shapes, "a dimension that is known is a constant"),
    Rule(
        "known-branch",
        "prepare",
        (),
        None,
        PreparePass.take_branches,
        "an If whose condition never changes is the branch that it takes",
    ),
)

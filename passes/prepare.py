"""prepare: what depends on weights alone is evaluated once, and the shapes are inferred.

Weight standardization, weight norm, spectral norm, the rsqrt of a FrozenBN, chains of Unsqueeze, Cast and Identity in
front of a weight: all become initializers, computed in float64 and rounded once; what leads to something discrete, as a
size, is computed in the types of the model. Known shapes become constants.
"""

from collections.abc import Collection, Iterable

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from normfuse.passes.access import RefusedError, operator
from normfuse.passes.branches import known_branches
from normfuse.passes.evaluable import connected, cut_out, evaluable, groups
from normfuse.passes.inference import infer_shapes
from normfuse.passes.journal import Journal
from normfuse.passes.lifted import remove_unread
from normfuse.passes.moves import MOVES
from normfuse.passes.removal import RemoveUnusedPass
from normfuse.passes.rule import Rule
from normfuse.passes.shapes import reshape_constants, shape_constants
from normfuse.passes.weights import EXACT, Weights, constant_tensor, is_float, round_to
from normfuse.report import Change, Refusal

INITIAL_IR_VERSION = 4
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
        model.ir_version = max(model.ir_version, INITIAL_IR_VERSION)
        detail = f"{len(listed)} initializers listed as inputs became constants; --no-freeze keeps them"
        self.changes.append(Change("freeze", (), (), detail))

    def fold_constants(self, model: ir.Model) -> bool:
        """Evaluates the nodes that depend on constants alone."""
        changed = False
        for graph in (model.graph, *model.graph.subgraphs()):
            for nodes in connected(list(evaluable(graph, self._most))):
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
        for smooth, group in groups(rest):
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
            results = Oracle(cut_out(model, nodes, wanted, feeds), upcast=smooth).run(feeds)
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
    return model.ir_version < INITIAL_IR_VERSION or all(
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

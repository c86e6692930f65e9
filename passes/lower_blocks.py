"""BLOCKS: what stands between linear operators, in the form that keeps ONNX Runtime's blocked convolution layout.

On x86 a chain of convolutions stays in a blocked layout only through operators that know it; each other one costs a
reorder before and behind it. So a spelled hard-swish becomes HardSigmoid → Mul, which fuses into the convolution; a
scale and a shift that could not be folded become one BatchNormalization, which runs as a blocked depthwise convolution;
and a mean over H and W becomes GlobalAveragePool. The same forms of activations are the fastest elsewhere, too.
"""

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from normfuse.activation import Activation
from normfuse.affine import Affine
from normfuse.passes.access import RefusedError, attribute, dims, only_reader, operator
from normfuse.passes.activation_forms import forms, is_written, write
from normfuse.passes.emitter import Emitter
from normfuse.passes.journal import Journal
from normfuse.passes.lifted import inline, lifted, remove_unread, take_over
from normfuse.passes.residuals import residual
from normfuse.passes.rule import Rule
from normfuse.passes.sources import Source, read
from normfuse.passes.weights import Weights, constant_tensor
from normfuse.report import Change, Refusal
from normfuse.target import Target

_BLOCKED = frozenset(
    {
        "AveragePool",
        "BatchNormalization",
        "Clip",
        "Conv",
        "Gelu",
        "HardSigmoid",
        "HardSwish",
        "LeakyRelu",
        "MaxPool",
        "Relu",
        "Sigmoid",
        "Tanh",
    }
)
"""Operators that know the blocked layout, or fuse into a convolution in front of them."""

_RANK = 4


_MERGING = frozenset({"Add", "Concat", "Sum"})
"""Operators of several blocked values; those that are added have the same dimensions."""

_FUSED = frozenset({"HardSigmoid", "Sigmoid"})
"""Gates whose product with what they are computed of is fused into one node that knows the layout."""


def activation(
    node: ir.Node, weights: Weights, emitter: Emitter, target: Target
) -> tuple[list[ir.Node], ir.Value] | None:
    """An activation in the first of its `forms`, where what stands there is none of them."""
    meaning, data = _activation(node)
    if meaning is None or data is None:
        return None
    if meaning.rounded:
        raise RefusedError("its constants are rounded: another spelling would not compute the same")
    best = forms(meaning, target, weights.opset)
    record = lifted(node)
    if not best or (record is not None and any(is_written(term, record, node, weights) for term in best)):
        return None
    if record is None and target.provider != "cpu":
        return None
    if weights.opset < 8 and (weights.opset < 6 or best[0].has_numbers):
        return None  # a number broadcasts only where an attribute says so
    if meaning.kind == "TanhGelu" and weights.opset < 20 and node.outputs[0].is_graph_output():
        raise RefusedError("ONNX Runtime fuses a GELU by tanh only where its result is read by another node")
    if data.dtype != ir.DataType.FLOAT:
        raise RefusedError(f"ONNX Runtime has the operators of {meaning.kind} for float32 only")
    return [node], write(best[0], data, emitter)


def _activation(node: ir.Node) -> tuple[Activation | None, ir.Value | None]:
    """What a lifted call or an operator computes that ONNX Runtime expands, and of what."""
    record = lifted(node)
    if record is not None:
        return (record.meaning if isinstance(record.meaning, Activation) else None), node.inputs[record.data]
    match operator(node):
        case "Mish":
            return Activation("Mish", 1.0, 0.0), node.inputs[0]
        case "Swish":
            return Activation("Swish", float(attribute(node, "alpha", 1.0)), 0.0), node.inputs[0]
        case _:
            return None, None


def slopes(node: ir.Node, weights: Weights, emitter: Emitter, target: Target) -> tuple[list[ir.Node], ir.Value] | None:
    """max(x, a · x) for PRelu(x, a) where all a ≤ 1, and LeakyRelu where all are equal."""
    if operator(node) != "PRelu" or target.provider != "cpu" or weights.opset < 8:
        return None
    data, slope = node.inputs[0], weights.array(node.inputs[1])
    if data is None or slope is None or data.dtype != ir.DataType.FLOAT or slope.size == 0:
        return None
    if np.all(slope == slope.ravel()[0]):
        return [node], emitter.op("LeakyRelu", data, alpha=float(slope.ravel()[0]))
    if np.any(slope > 1.0) or np.any(slope == 0.0) or not np.all(np.isfinite(slope)):
        raise RefusedError("a slope is zero or more than one")
    return [node], emitter.op("Max", data, emitter.op("Mul", data, node.inputs[1]))


def affine(node: ir.Node, weights: Weights, emitter: Emitter, target: Target) -> tuple[list[ir.Node], ir.Value] | None:
    """BatchNormalization(s, t, 0, 1, ε = 0) for the Mul and Add by constants between two convolutions."""
    if target.provider != "cpu" or operator(node) not in ("Add", "Div", "Mul", "Sub"):
        return None
    run: list[ir.Node] = []
    whole, current = Affine.identity(), node
    while (source := _per_channel(current, weights)) is not None:
        run.append(current)
        whole = whole.then(source.affine)
        following = only_reader(current.outputs[0])
        if following is None or following.graph is not node.graph or operator(following) == "BatchNormalization":
            break
        current = following
    if not run:
        return None
    first = _per_channel(node, weights)
    assert first is not None
    data, output = first.data, run[-1].outputs[0]
    before = data.producer()
    sizes = dims(data)
    if before is None or sizes is None or len(sizes) != _RANK or not isinstance(sizes[1], int):
        return None
    if not _in_chain(before) or not any(operator(use.node) == "Conv" for use in output.uses()):
        return None
    if data.dtype != ir.DataType.FLOAT or weights.opset < 9:
        return None
    channels = sizes[1]
    scale, shift = whole.spread(channels)
    parameters = [scale, shift, np.zeros(channels), np.ones(channels)]
    stems = ("scale", "bias", "mean", "variance")
    constants = [emitter.constant(one, data.dtype, stem) for one, stem in zip(parameters, stems, strict=True)]
    return run, emitter.op("BatchNormalization", data, *constants, epsilon=0.0)


def _per_channel(node: ir.Node, weights: Weights) -> Source | None:
    """A node as a scale and shift per channel of (N, C, H, W)."""
    if operator(node) not in ("Add", "Div", "Mul", "Sub"):
        return None
    source = read(node, weights)
    if not isinstance(source, Source) or source.affine.axis not in (None, 1):
        return None
    return source if dims(node.outputs[0]) == dims(source.data) else None


def _in_chain(node: ir.Node, reach: int = 4) -> bool:
    """Whether a node stands behind a convolution, with nothing between that leaves the blocked layout."""
    if operator(node) == "Conv":
        return True
    before = [value.producer() for value in node.inputs if value is not None and constant_tensor(value) is None]
    gates = [gate for gate in before if gate is not None and operator(gate) in _FUSED]
    if operator(node) in _MERGING or (operator(node) == "Mul" and gates):
        alike = len({str(dims(value)) for value in node.inputs}) == 1 or operator(node) == "Concat"
    else:
        alike = operator(node) in _BLOCKED
    if not alike or not reach or not before:
        return False
    return all(one is not None and _in_chain(one, reach - 1) for one in before)


def pooled(node: ir.Node, weights: Weights, emitter: Emitter, target: Target) -> tuple[list[ir.Node], ir.Value] | None:
    """GlobalAveragePool for a ReduceMean over H and W, with a Flatten where it does not keep them."""
    if operator(node) != "ReduceMean" or target.provider != "cpu":
        return None
    data = node.inputs[0]
    sizes = dims(data)
    if data is None or sizes is None or len(sizes) != _RANK or data.dtype != ir.DataType.FLOAT:
        return None
    axes = attribute(node, "axes")
    if axes is None and len(node.inputs) > 1:
        axes = weights.integers(node.inputs[1])
    before = data.producer()
    if axes is None or sorted(axis % _RANK for axis in axes) != [2, 3] or before is None or not _in_chain(before):
        return None
    mean = emitter.op("GlobalAveragePool", data, dims=[*sizes[:2], 1, 1])
    return [node], mean if attribute(node, "keepdims", 1) else emitter.op("Flatten", mean, dims=sizes[:2], axis=1)


BLOCKS: tuple[Rule, ...] = (
    Rule(
        "activation",
        "block",
        (),
        None,
        activation,
        "an activation is written in the operators that ONNX Runtime fuses, with each other or into a convolution",
    ),
    Rule(
        "slopes-as-maximum",
        "block",
        ("PRelu",),
        None,
        slopes,
        "for slopes up to one PRelu is max(x, a · x): its kernel takes many times as long",
    ),
    Rule(
        "affine-as-batch-norm",
        "block",
        ("Add", "Div", "Mul", "Sub"),
        None,
        affine,
        "a scale and shift between convolutions stay in the blocked layout as a BatchNormalization",
    ),
    Rule(
        "mean-as-pool",
        "block",
        ("ReduceMean",),
        None,
        pooled,
        "a mean over H and W is GlobalAveragePool, which knows the blocked layout",
    ),
    Rule(
        "residual-as-sum",
        "block",
        ("Add",),
        None,
        residual,
        "ONNX Runtime fuses Add → LayerNormalization into a kernel that is 6 times slower on CPU, and Sum it does not",
    ),
)


class BlockPass(ir.passes.InPlacePass):
    """Writes what stands between linear operators, in the graph and its subgraphs.

    Attributes:
        changes: what was rewritten.
        refusals: what was not, with the reasons.
    """

    def __init__(self, target: Target, ignore: Collection[str] = (), journal: Journal | None = None) -> None:
        """Uses all rows of `BLOCKS` but those that `ignore` names."""
        super().__init__()
        self._journal = journal or Journal()
        self._target = target
        self._rows = tuple(row for row in BLOCKS if row.name not in ignore)
        self.changes: list[Change] = []
        self.refusals: list[Refusal] = []

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites a model."""
        self.refusals = []
        weights = Weights(model)
        before = len(self.changes)
        for graph in (model.graph, *model.graph.subgraphs()):
            for node in tuple(graph):
                if node.graph is graph:
                    self._rewrite(model, node, weights)
        return ir.passes.PassResult(model, len(self.changes) > before)

    def _rewrite(self, model: ir.Model, node: ir.Node, weights: Weights) -> None:
        for row in self._rows:
            emitter = Emitter(weights, str(node.outputs[0].name))
            try:
                written = row.law(node, weights, emitter, self._target)
            except RefusedError as refused:
                emitter.discard()
                self.refusals.append(Refusal(row.name, _title(node), str(refused)))
                continue
            if written is None:
                emitter.discard()
                continue
            nodes, result = written
            forbidden = self._journal.forbids(row.name, _names(nodes))
            if forbidden:
                emitter.discard()
                self.refusals.append(Refusal(row.name, _title(node), forbidden))
                continue
            self._replace(model, row, nodes, emitter, result)
            return
        record = lifted(node)
        if record is not None and isinstance(record.meaning, Activation):
            inline(model, node)  # LOWER looks for the activation behind a normalization as it was written

    def _replace(self, model: ir.Model, row: Rule, nodes: list[ir.Node], emitter: Emitter, result: ir.Value) -> None:
        names, seen = _names(nodes), self._journal.before(nodes)
        output = nodes[-1].outputs[0]
        emitter.commit(nodes[-1])
        result.type, result.shape = output.type, output.shape
        take_over(output, result)
        assert not remove_unread(model, nodes), "a node that was replaced is still read"
        into = tuple(str(node.name) for node in emitter.nodes)
        change = Change(row.name, names, into, f"as {', '.join(node.op_type for node in emitter.nodes)}")
        self._journal.after(seen, change)
        self.changes.append(change)


def _names(nodes: list[ir.Node]) -> tuple[str, ...]:
    """The names of nodes that are replaced, those in the body of a lifted call instead of its own."""
    record = lifted(nodes[0])
    return tuple(one.name or one.op_type for one in nodes) if record is None else record.names


def _title(node: ir.Node) -> str:
    """The name of a node; that of the last in a lifted call."""
    record = lifted(node)
    return node.name or node.op_type if record is None or not record.names else record.names[-1]

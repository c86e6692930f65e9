"""BLOCKS: what stands between linear operators, in the form that keeps ONNX Runtime's blocked convolution layout.

On x86 a chain of convolutions stays in a blocked layout only through operators that know it; each other one costs a
reorder before and behind it. So a spelled hard-swish becomes HardSigmoid → Mul, which fuses into the convolution; a
scale and a shift that could not be folded become one BatchNormalization, which runs as a blocked depthwise convolution;
and a mean over H and W becomes GlobalAveragePool.
"""

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from normfuse.activation import Activation
from normfuse.affine import Affine
from normfuse.passes.access import RefusedError, attribute, dims, only_reader, operator
from normfuse.passes.emitter import Emitter
from normfuse.passes.lifted import forget, lifted
from normfuse.passes.rule import Rule
from normfuse.passes.sources import Source, read
from normfuse.passes.weights import Weights
from normfuse.report import Change, Refusal
from normfuse.target import Target

_BLOCKED = frozenset(
    {
        "AveragePool",
        "BatchNormalization",
        "Clip",
        "Conv",
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


def activation(
    node: ir.Node, weights: Weights, emitter: Emitter, target: Target
) -> tuple[list[ir.Node], ir.Value] | None:
    """HardSigmoid(α, β), and for a HardSwish · x; the HardSwish operator where the target is `portable` and has it."""
    record = lifted(node)
    if record is None or not isinstance(record.meaning, Activation):
        return None
    data = node.inputs[record.data]
    assert data is not None
    if data.dtype != ir.DataType.FLOAT:
        raise RefusedError("ONNX Runtime has HardSigmoid for float32 only")
    meaning = record.meaning
    if meaning.kind == "HardSwish" and target.provider != "cpu" and weights.opset >= 14:
        return [node], emitter.op("HardSwish", data)
    gate = emitter.op("HardSigmoid", data, alpha=meaning.alpha, beta=meaning.beta)
    return [node], gate if meaning.kind == "HardSigmoid" else emitter.op("Mul", data, gate)


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
    if not reach or node.inputs[0] is None:
        return False
    record = lifted(node)
    product = operator(node) == "Mul" and any(
        value is not None and value.producer() is not None and operator(value.producer()) == "HardSigmoid"  # type: ignore[arg-type]
        for value in node.inputs
    )
    if operator(node) not in _BLOCKED and record is None and not product:
        return False
    before = node.inputs[0].producer()
    return before is not None and _in_chain(before, reach - 1)


def pooled(node: ir.Node, weights: Weights, emitter: Emitter, target: Target) -> tuple[list[ir.Node], ir.Value] | None:
    """GlobalAveragePool for a ReduceMean over H and W that keeps them."""
    if operator(node) != "ReduceMean" or target.provider != "cpu" or not attribute(node, "keepdims", 1):
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
    return [node], emitter.op("GlobalAveragePool", data, dims=[*sizes[:2], 1, 1])


BLOCKS: tuple[Rule, ...] = (
    Rule(
        "hard-activation",
        "block",
        (),
        None,
        activation,
        "x · clip(x + 3, 0, 6) / 6 is x · HardSigmoid(x), which fuses into a convolution",
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
)


class BlockPass(ir.passes.InPlacePass):
    """Writes what stands between linear operators, in the graph and its subgraphs.

    Attributes:
        changes: what was rewritten.
        refusals: what was not, with the reasons.
    """

    def __init__(self, target: Target, ignore: Collection[str] = ()) -> None:
        """Uses all rows of `BLOCKS` but those that `ignore` names."""
        super().__init__()
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
                self.refusals.append(Refusal(row.name, node.name or node.op_type, str(refused)))
                continue
            if written is None:
                continue
            nodes, result = written
            self._replace(model, row, nodes, emitter, result)
            return

    def _replace(self, model: ir.Model, row: Rule, nodes: list[ir.Node], emitter: Emitter, result: ir.Value) -> None:
        record = lifted(nodes[0])
        names = tuple(one.name or one.op_type for one in nodes) if record is None else record.names
        output = nodes[-1].outputs[0]
        emitter.commit(nodes[-1])
        result.type, result.shape = output.type, output.shape
        name, output.name = output.name, None
        output.replace_all_uses_with(result, replace_graph_outputs=True)
        result.name, result.doc_string = name, output.doc_string
        result.metadata_props.update(output.metadata_props)
        graph = nodes[-1].graph
        assert graph is not None
        for node in reversed(nodes):
            graph.remove(node, safe=True)
            if lifted(node) is not None:
                forget(model, node)
        into = tuple(str(node.name) for node in emitter.nodes)
        self.changes.append(Change(row.name, names, into, f"as {', '.join(node.op_type for node in emitter.nodes)}"))

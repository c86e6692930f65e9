"""Every normalization and affine map of a model: what it computes, what it costs, and what would become of it.

All of them are y = γ · (x − μ_S) / σ_S + β, with σ_S = sqrt(Var_S + ε), and differ in the set S that shares μ and σ
(x is (N, C, *spatial)):

======================= ============================================== ============
operator                S                                              statistics
======================= ============================================== ============
Add, Sub, Mul, Div      nothing: y = a · x + b                         constant
BatchNormalization      nothing: μ and σ are constants                 stored
the same, training      N and spatial; per channel                     of the batch
InstanceNormalization   spatial; per sample and channel                of the input
GroupNormalization      spatial and a group of channels; per sample    of the input
LayerNormalization      the trailing axes; per sample                  of the input
RMSNormalization        the same with μ = 0                            of the input
LRN                     a window of channels                           of the input
======================= ============================================== ============

A normalization that is spelled out in several nodes is not found as one: its constant factors are listed.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from math import prod
from typing import Any, Literal

import onnx_ir as ir

from normfuse.model import Source, load
from normfuse.pipeline import optimize
from normfuse.report import NORMALIZATIONS, Report
from normfuse.target import Target

Statistics = Literal["constant", "stored", "batch", "input"]
Outcome = Literal["folded", "removed", "stays"]

LINEAR = frozenset({"Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul"})
"""Operators that are linear where one operand is constant."""

FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE})

AFFINE_FORMULAS = {
    ("Add", 0): "x + b",
    ("Add", 1): "x + b",
    ("Mul", 0): "a · x",
    ("Mul", 1): "a · x",
    ("Sub", 0): "b − x",
    ("Sub", 1): "x − b",
    ("Div", 1): "x / a",
}
"""(operator, which operand is the constant): what it computes. A constant over x is not affine."""

NORM_FORMULAS = {
    "BatchNormalization": "γ · (x − μ) / √(σ² + ε) + β",
    "GroupNorm": "γ · (x − μ_S) / √(Var_S + ε) + β, S: spatial and a group of channels; per sample",
    "GroupNormalization": "γ · (x − μ_S) / √(Var_S + ε) + β, S: spatial and a group of channels; per sample",
    "InstanceNormalization": "γ · (x − μ_S) / √(Var_S + ε) + β, S: spatial; per sample and channel",
    "LRN": "x / (k + α/n · Σ_S x²)^β, S: a window of n channels",
    "LayerNormalization": "γ · (x − μ_S) / √(Var_S + ε) + β, S: the trailing axes; per sample",
    "LpNormalization": "x / ‖x‖_S, S: one axis",
    "MeanVarianceNormalization": "(x − μ_S) / (√Var_S + ε), S: the given axes",
    "RMSNormalization": "γ · x / √(mean_S x² + ε), S: the trailing axes; per sample",
    "SimplifiedLayerNormalization": "γ · x / √(mean_S x² + ε), S: the trailing axes; per sample",
    "SkipGroupNorm": "as GroupNorm, of x + skip + bias",
    "SkipLayerNormalization": "as LayerNormalization, of x + skip + bias",
    "SkipSimplifiedLayerNormalization": "as SimplifiedLayerNormalization, of x + skip + bias",
    "Standardize": "(x − μ_S) / √(Var_S + ε)",
}
TRAINING_FORMULA = "γ · (x − μ_S) / √(Var_S + ε) + β, S: N and spatial; per channel"

DEFAULT_EPSILON = {"SkipLayerNormalization": 1e-12, "SkipSimplifiedLayerNormalization": 1e-12}
"""What an operator takes for ε where the attribute is absent; 1e-5 for those not listed."""

NO_EPSILON = frozenset({"LRN", "LpNormalization", "MeanVarianceNormalization", "Standardize"})


@dataclass(frozen=True, slots=True)
class Site:
    """One normalization or affine map of a model.

    Attributes:
        node: the node's name; one that was made up from its output where the file has none, or has it twice.
        operator: its operator type.
        statistics: where μ and σ come from: `constant` (a plain affine map), `stored` (BatchNormalization at
            inference, which is one, too), `batch` or `input`.
        formula: what it computes, with the set S that shares one mean.
        shape: of the output; an int for each static dimension, else its name or None. None where it is not known.
        dtype: of the output, as ONNX calls it, or None where it is not known.
        epsilon: ε, or None where the formula has none.
        behind: operator and name of the nearest linear nodes that it reads from, through any others.
        before: operator and name of the nearest linear nodes that read it, through any others.
        elements: tensor elements read and written in one run, its cost where memory bounds the time: 2 for each element
            with constant statistics, 3 with statistics of the input; dynamic dimensions count as 1. None where the
            shape is not known.
        outcome: what `normfuse.optimize` does with the node: `folded` into others, `removed`, or it `stays`.
        into: names of the nodes that take over what it did.
        reasons: why it stays, one line each.
    """

    node: str
    operator: str
    statistics: Statistics
    formula: str
    shape: tuple[int | str | None, ...] | None
    dtype: str | None
    epsilon: float | None
    behind: tuple[str, ...]
    before: tuple[str, ...]
    elements: int | None
    outcome: Outcome
    into: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The site as JSON-ready values."""
        return asdict(self)


def inspect(source: Source, target: str | Target = "cpu") -> tuple[Site, ...]:
    """Lists every normalization and every affine map with a constant scalar or per-axis operand, in graph order.

    What would become of each is found by optimizing a copy, without the numerical check; the model is not changed.

    Args:
        source: a path, bytes, an `onnx.ModelProto`, an `onnx_ir.Model` or a `torch.onnx.ONNXProgram`.
        target: the execution provider that the model would be optimized for.

    Raises:
        ModelError: the model cannot be read, is not valid or is not supported.
        NormfuseError: there is no such target.
    """
    model = load(source)
    _name_nodes(model)
    result = optimize(model, target, verify=False)
    survivors = {str(node.name) for node in _nodes(result.model)}
    _infer_shapes(model)
    constants = _Constants()
    return tuple(
        _site(node, statistics, formula, constants, result.report, survivors)
        for node in _nodes(model)
        for statistics, formula in _kinds(node, model, constants)
    )


def _nodes(model: ir.Model) -> Iterator[ir.Node]:
    """All nodes, those of subgraphs and of model-local functions included."""
    yield from model.graph.all_nodes()
    for function in model.functions.values():
        yield from function.all_nodes()


def _name_nodes(model: ir.Model) -> None:
    """Gives each node a name that no other has: by them its fate is found in the report."""
    taken: set[str] = set()
    for node in _nodes(model):
        name = base = node.name or f"{node.op_type}_{node.outputs[0].name}"
        count = 1
        while name in taken:
            count += 1
            name = f"{base}_{count}"
        taken.add(name)
        node.name = name


def _infer_shapes(model: ir.Model) -> None:
    """Fills in the shapes that the file does not state, as far as ONNX can tell them."""
    from onnx_ir.passes.common import ShapeInferencePass

    ShapeInferencePass(check_type=False, strict_mode=False)(model)


class _Constants:
    """Which values do not depend on the model's inputs."""

    def __init__(self) -> None:
        self._known: dict[ir.Value, bool] = {}

    def __contains__(self, value: ir.Value) -> bool:
        pending = [value]
        while pending:
            current = pending[-1]
            producer = current.producer()
            if current in self._known:
                pending.pop()
            elif current.const_value is not None or (producer is not None and producer.op_type == "Constant"):
                self._known[current] = True
            elif producer is None or not producer.inputs:
                self._known[current] = False
            elif unknown := [one for one in producer.inputs if one is not None and one not in self._known]:
                pending.extend(unknown)
            else:
                self._known[current] = all(self._known[one] for one in producer.inputs if one is not None)
        return self._known[value]


def _kinds(node: ir.Node, model: ir.Model, constants: _Constants) -> Iterator[tuple[Statistics, str]]:
    """The statistics and the formula of a normalization or affine map; nothing for any other node."""
    if node.op_type == "BatchNormalization" and _trains(node, model):
        yield "batch", TRAINING_FORMULA
    elif node.op_type in NORMALIZATIONS:
        statistics: Statistics = "stored" if node.op_type == "BatchNormalization" else "input"
        yield statistics, NORM_FORMULAS[node.op_type]
    elif node.domain == "" and len(node.inputs) == 2:
        fixed = [place for place, value in enumerate(node.inputs) if value is not None and value in constants]
        if len(fixed) == 1 and (node.op_type, fixed[0]) in AFFINE_FORMULAS:
            operand = node.inputs[fixed[0]]
            if operand is not None and operand.dtype in FLOATS and _along_one_axis(operand):
                yield "constant", AFFINE_FORMULAS[node.op_type, fixed[0]]


def _trains(node: ir.Node, model: ir.Model) -> bool:
    """Whether a BatchNormalization takes the statistics of its batch."""
    mode = node.attributes.get("training_mode")
    if mode is not None:
        return bool(mode.as_int())
    return model.opset_imports.get("", 1) < 14 and len(node.outputs) > 1


def _along_one_axis(operand: ir.Value) -> bool:
    """Whether a constant is a scalar or differs along one axis only: then it is the scale or shift of an `Affine`."""
    return operand.shape is not None and sum(dim != 1 for dim in operand.shape) <= 1


def _site(
    node: ir.Node, statistics: Statistics, formula: str, constants: _Constants, report: Report, survivors: set[str]
) -> Site:
    name, output = str(node.name), node.outputs[0]
    shape = None if output.shape is None else tuple(_dim(dim) for dim in output.shape)
    outcome, into, reasons = _fate(name, report, survivors)
    return Site(
        node=name,
        operator=node.op_type,
        statistics=statistics,
        formula=formula,
        shape=shape,
        dtype=None if output.dtype is None else output.dtype.name,
        epsilon=_epsilon(node),
        behind=_nearest_linear(node, constants, lambda one: one.predecessors()),
        before=_nearest_linear(node, constants, lambda one: one.successors()),
        elements=_elements(shape, statistics),
        outcome=outcome,
        into=into,
        reasons=reasons,
    )


def _dim(dim: int | ir.SymbolicDim) -> int | str | None:
    """A dimension; those that shape inference made up a name for are unknown."""
    if isinstance(dim, int):
        return dim if dim >= 0 else None
    return None if dim.value is None or dim.value.startswith("unk__") else dim.value


def _epsilon(node: ir.Node) -> float | None:
    if node.op_type not in NORMALIZATIONS or node.op_type in NO_EPSILON:
        return None
    attribute = node.attributes.get("epsilon")
    return DEFAULT_EPSILON.get(node.op_type, 1e-5) if attribute is None else attribute.as_float()


def _elements(shape: tuple[int | str | None, ...] | None, statistics: Statistics) -> int | None:
    """Tensor elements read and written: statistics of the input take one more pass over it."""
    if shape is None:
        return None
    passes = 2 if statistics in ("constant", "stored") else 3
    return passes * prod(dim if isinstance(dim, int) else 1 for dim in shape)


def _nearest_linear(
    node: ir.Node, constants: _Constants, neighbours: Callable[[ir.Node], Sequence[ir.Node]]
) -> tuple[str, ...]:
    """Operators and names of the first linear nodes on each way from a node, data paths only."""
    found: dict[str, None] = {}
    pending, seen = list(neighbours(node)), {node}
    while pending:
        current = pending.pop()
        if current in seen or current.op_type in ("Shape", "Size") or current.outputs[0] in constants:
            continue
        seen.add(current)
        if current.op_type in LINEAR and any(value in constants for value in current.inputs if value is not None):
            found[f"{current.op_type} {current.name}"] = None
        else:
            pending.extend(neighbours(current))
    return tuple(sorted(found))


def _fate(name: str, report: Report, survivors: set[str]) -> tuple[Outcome, tuple[str, ...], tuple[str, ...]]:
    """What became of a node: the outcome, what took it over, and why it stays."""
    takers = dict.fromkeys(taker for change in report.changes if name in change.nodes for taker in change.into)
    if name not in survivors:
        return ("folded" if takers else "removed"), tuple(takers), ()
    return "stays", (), tuple(dict.fromkeys(one.reason for one in report.refusals if one.node == name))

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

A normalization that is spelled out in several nodes is one site, named after the last of them; LIFT finds it, in the
graph and its subgraphs. In the bodies of model-local functions only operators are found.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any, overload

import onnx_ir as ir

from normfuse.anatomy import Anatomy, Atlas
from normfuse.arguments import check
from normfuse.constants import Constants
from normfuse.fates import Course, nodes_of
from normfuse.formulas import AFFINE_FORMULAS, NORM_FORMULAS, TRAINING_FORMULA
from normfuse.model import Source, load
from normfuse.passes.inference import has_long_vectors
from normfuse.passes.prepare import PreparePass
from normfuse.pipeline import quiet
from normfuse.report import NORMALIZATIONS
from normfuse.signatures import explained
from normfuse.site import Site, Statistics
from normfuse.target import PROVIDERS, Target

if TYPE_CHECKING:
    from normfuse.blocked import Layout
    from normfuse.shares import Profile

LINEAR = frozenset({"Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul"})
"""Operators that are linear where one operand is constant."""

FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE})

DEFAULT_EPSILON = {"SkipLayerNormalization": 1e-12, "SkipSimplifiedLayerNormalization": 1e-12}
"""What an operator takes for ε where the attribute is absent; 1e-5 for those not listed."""

NO_EPSILON = frozenset({"LRN", "LpNormalization", "MeanVarianceNormalization", "Standardize"})


@dataclass(frozen=True, slots=True)
class Inspection(Sequence[Site]):
    """What `inspect` returns: a sequence of sites, in graph order, and what else was asked for.

    Attributes:
        sites: the sites.
        profile: how long the model takes, and its normalizations; None where it was not timed.
        layout: where the blocked convolution layout breaks; None where that was not asked for.
    """

    sites: tuple[Site, ...]
    profile: "Profile | None" = None
    layout: "Layout | None" = None

    @overload
    def __getitem__(self, index: int) -> Site: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Site]: ...
    def __getitem__(self, index: int | slice) -> Site | Sequence[Site]:
        return self.sites[index]

    def __len__(self) -> int:
        return len(self.sites)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON-ready values."""
        return {
            "sites": [site.to_dict() for site in self.sites],
            "profile": None if self.profile is None else asdict(self.profile),
            "layout": None if self.layout is None else asdict(self.layout),
        }


def inspect(
    source: Source,
    target: str | Target = "cpu",
    *,
    threads: int | None = None,
    profile: bool = False,
    layout: bool = False,
    data: Any = None,
    shapes: Mapping[str, Any] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Inspection:
    """Lists every normalization and every affine map with a constant scalar or per-axis operand, in graph order.

    What would become of each is found by optimizing a copy for each target, without the numerical check; the model is
    not changed.

    Args:
        source: a path, bytes, an `onnx.ModelProto`, an `onnx_ir.Model` or a `torch.onnx.ONNXProgram`.
        target: the execution provider whose outcome `Site.outcome` tells; `Site.targets` tells those of all.
        threads: intra-op threads that the session will use; those of this machine where None.
        profile: time the nodes in ONNX Runtime, and tell the share of each site.
        layout: ask ONNX Runtime where its blocked convolution layout breaks.
        data: inputs to time with, as `normfuse.verify` takes them; random ones where None.
        shapes: shapes of random inputs, by input name.
        progress: called with what is being done.

    Raises:
        ModelError: the model cannot be read, is not valid or is not supported.
        NormfuseError: there is no such target, or no inputs can be made.
        TargetError: the model is to be timed, and ONNX Runtime is missing or cannot run it.
    """
    check(target=target, threads=threads, profile=profile, layout=layout, data=data, shapes=shapes, progress=progress)
    where = Target.parse(target, threads)
    model = load(source)
    with quiet(), explained(lambda: load(source)):
        name = os.path.basename(source) if isinstance(source, str | os.PathLike) else model.graph.name or "the model"
        return _inspection(model, name, where, profile, layout, data, shapes, progress or (lambda doing: None))


def _inspection(
    model: ir.Model,
    name: str,
    where: Target,
    profile: bool,
    layout: bool,
    data: Any,
    shapes: Mapping[str, Any] | None,
    say: Callable[[str], None],
) -> Inspection:
    _name_nodes(model)
    prepared = model.clone()
    PreparePass()(prepared)
    atlas = Atlas()
    courses: dict[str, Course] = {}
    for provider in dict.fromkeys((where.provider, *PROVIDERS)):
        say(f"optimizing a copy for {provider}")
        courses[provider] = Course(prepared, Target(provider, where.threads), None if courses else atlas.observe)
    _infer_shapes(model)
    constants = Constants()
    sites = tuple(_sites(model, constants, atlas, courses, where.provider))
    found = Inspection(sites)
    if profile:
        from normfuse.shares import measure

        say("timing the nodes")
        found = measure(found, model, name, where.threads, data, shapes)
    if layout:
        from normfuse.blocked import find

        say("asking ONNX Runtime for its layout")
        found = replace(found, layout=find(model, atlas, courses["cpu"], where.threads))
    return found


def _sites(
    model: ir.Model, constants: Constants, atlas: Atlas, courses: Mapping[str, Course], target: str
) -> Iterator[Site]:
    ways = _Nearest(constants, lambda one: one.predecessors()), _Nearest(constants, lambda one: one.successors())
    for node in nodes_of(model):
        name = str(node.name)
        anatomy = atlas.norms.get(name)
        if anatomy is not None:
            yield _norm_site(node, anatomy, ways, courses, target)
        elif name not in atlas.members:
            for statistics, formula in _kinds(node, model, constants):
                yield _site(node, statistics, formula, ways, courses, target)


def _name_nodes(model: ir.Model) -> None:
    """Gives each node a name that no other has: by them its fate is found in the report."""
    taken: set[str] = set()
    for node in nodes_of(model):
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

    ShapeInferencePass(check_type=False, strict_mode=False, data_prop=not has_long_vectors(model))(model)


def _kinds(node: ir.Node, model: ir.Model, constants: Constants) -> Iterator[tuple[Statistics, str]]:
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
    node: ir.Node,
    statistics: Statistics,
    formula: str,
    ways: "tuple[_Nearest, _Nearest]",
    courses: Mapping[str, Course],
    target: str,
) -> Site:
    """An operator that is no more than that."""
    name, output = str(node.name), node.outputs[0]
    shape = None if output.shape is None else tuple(_dim(dim) for dim in output.shape)
    is_norm = statistics in ("batch", "input")
    fates = {provider: course.fate((name,), is_norm=is_norm) for provider, course in courses.items()}
    return Site(
        node=name,
        operator=node.op_type,
        statistics=statistics,
        formula=formula,
        shape=shape,
        dtype=None if output.dtype is None else output.dtype.name,
        epsilon=_epsilon(node),
        behind=ways[0].of(node),
        before=ways[1].of(node),
        elements=_elements(shape, statistics),
        outcome=fates[target].outcome,
        into=fates[target].into,
        reasons=fates[target].reasons,
        name=node.op_type.removesuffix("alization") if node.op_type in NORMALIZATIONS else None,
        nodes=(name,),
        targets={provider: fates[provider] for provider in PROVIDERS},
    )


def _norm_site(
    node: ir.Node, anatomy: Anatomy, ways: "tuple[_Nearest, _Nearest]", courses: Mapping[str, Course], target: str
) -> Site:
    """A normalization that could be read, an operator or spelled out; `node` is the last of its nodes."""
    statistics: Statistics = "batch" if node.op_type == "BatchNormalization" else "input"
    plain = _site(node, statistics, anatomy.formula, ways, courses, target)
    fates = {provider: course.fate(anatomy.nodes, is_norm=True) for provider, course in courses.items()}
    shape = plain.shape if anatomy.shape is None else tuple(map(_known, anatomy.shape))
    return replace(
        plain,
        operator=node.op_type if len(anatomy.nodes) == 1 else anatomy.name,
        shape=shape,
        dtype=plain.dtype or anatomy.dtype,
        epsilon=anatomy.epsilon,
        elements=_elements(shape, statistics),
        outcome=fates[target].outcome,
        into=fates[target].into,
        reasons=fates[target].reasons,
        name=anatomy.name,
        nodes=anatomy.nodes,
        details=anatomy.details,
        scale=anatomy.scale,
        bias=anatomy.bias,
        groups=anatomy.groups,
        ddof=anatomy.ddof,
        targets={provider: fates[provider] for provider in PROVIDERS},
    )


def _dim(dim: int | ir.SymbolicDim) -> int | str | None:
    """A dimension; one that is negative is unknown."""
    if isinstance(dim, int):
        return dim if dim >= 0 else None
    return _known(dim.value)


def _known(dim: int | str | None) -> int | str | None:
    """A dimension; those that shape inference made up a name for are unknown."""
    return None if isinstance(dim, str) and dim.startswith("unk__") else dim


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


class _Nearest:
    """The first linear nodes on each way from a node, data paths only; what is found of a node is kept for others."""

    def __init__(self, constants: Constants, neighbours: Callable[[ir.Node], Sequence[ir.Node]]) -> None:
        self._constants, self._neighbours = constants, neighbours
        self._found: dict[ir.Node, frozenset[str]] = {}

    def of(self, node: ir.Node) -> tuple[str, ...]:
        """Operators and names, sorted."""
        pending = [node]
        while pending:
            current = pending[-1]
            ways = [other for other in self._neighbours(current) if self._is_data(other)]
            if missing := [one for one in ways if one not in self._found and not self._is_linear(one)]:
                pending += missing  # a graph has no cycles
                continue
            pending.pop()
            if current in self._found:
                continue
            parts = {frozenset([f"{o.op_type} {o.name}"]) if self._is_linear(o) else self._found[o] for o in ways}
            self._found[current] = next(iter(parts)) if len(parts) == 1 else frozenset().union(*parts)
        return tuple(sorted(self._found[node]))

    def _is_data(self, node: ir.Node) -> bool:
        return node.op_type not in ("Shape", "Size") and node.outputs[0] not in self._constants

    def _is_linear(self, node: ir.Node) -> bool:
        return node.op_type in LINEAR and any(value in self._constants for value in node.inputs if value is not None)

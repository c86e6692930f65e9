"""Laws of LOWER for ONNX Runtime's CUDA provider, which has normalizations that ONNX has not.

GroupNorm, SkipGroupNorm    channels last; even channels per group, at most 512 of them; SiLU within
SkipLayerNormalization, SkipSimplifiedLayerNormalization    the sum in front of the normalization within

Their kernels compute a variance as E[x²] − E[x]² in the precision of the sums, so those with a mean stand only where
the model has such a variance itself: nothing is lost then.
"""

from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from normfuse.activation import Activation
from normfuse.passes.access import attribute, dims, operator
from normfuse.passes.emitter import Emitter
from normfuse.passes.lifted import lifted
from normfuse.passes.lowering import NormSite
from normfuse.passes.lowering_forms import affine, is_along, need, operator_root, scaled, vector
from normfuse.target import Target

DOMAIN = "com.microsoft"

_CHANNELS_PER_GROUP = 512
"""What a block of the GroupNorm kernel can hold."""


def _need_loss(site: NormSite) -> None:
    """GroupNormalization, which ONNX Runtime expands so, and variances that are written so."""
    loses = site.standardize.cancels or "GroupNormalization" in site.operators
    need(loses, "its kernel computes E[x²] − E[x]², which loses accuracy at large means")


@dataclass(frozen=True, slots=True)
class _Sum:
    """An Add in front of a normalization.

    Attributes:
        node: the Add.
        operands: what it adds.
        is_read: whether something else reads the sum, too.
    """

    node: ir.Node
    operands: tuple[ir.Value, ir.Value]
    is_read: bool


def _sum(value: ir.Value, site: NormSite) -> _Sum | None:
    """The Add of two values of equal dimensions that makes a value, in the graph of the normalization."""
    node = value.producer()
    if node is None or operator(node) != "Add" or node.graph is not site.norm.node.graph:
        return None
    one, other = node.inputs
    if one is None or other is None or dims(one) is None or dims(one) != dims(other) or None in (dims(one) or ()):
        return None
    return _Sum(node, (one, other), value.is_graph_output() or len(tuple(value.uses())) > 1)


def _need_constants(site: NormSite, axes: tuple[int, ...]) -> None:
    constant = all(is_along(one, axes, site.rank) for one in (site.scale, site.bias))
    need(constant, "its γ or β is computed, or does not stand along its channels alone")


def group_norm(site: NormSite, emitter: Emitter, target: Target) -> ir.Value:
    """Transpose → GroupNormalization → SiLU → Transpose as GroupNorm(x; γ, β, activation) of (N, H, W, C).

    An Add in front that gives x in (N, H, W, C) makes it a SkipGroupNorm, which returns the sum as well.
    """
    need(site.dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16), "GroupNorm runs on float32 and float16")
    root, factor = operator_root(site)
    rank, groups, channels = site.rank, root.groups, site.dims[1] if site.rank > 1 else None
    need(root.centred and groups is not None and root.channel == 1, "it has no groups of channels")
    assert groups is not None
    need(root.axes == tuple(range(1, rank)) and rank in (3, 4), "GroupNorm runs on (N, H, W, C)")
    need(site.standardize.dtype in (None, site.dtype, ir.DataType.FLOAT), "its statistics are of another dtype")
    need(isinstance(channels, int), "the number of its channels is not known")
    assert isinstance(channels, int)
    size = channels // groups
    need(size % 2 == 0 and size <= _CHANNELS_PER_GROUP, f"GroupNorm takes no groups of {size} channels")
    _need_loss(site)
    _need_constants(site, (1,))
    last, first = (0, *range(2, rank), 1), (0, rank - 1, *range(1, rank - 1))
    source, freed = _turned(site.data, first)
    active, activation = _silu(site.output, emitter)
    behind = _only_turn(active, last)
    inserted = (source is None) + (behind is None)
    need(inserted <= freed + (behind is not None), "GroupNorm wants channels last, which would take more Transposes")
    gamma = vector(scaled(site.scale, factor), 1.0, (1,), site.dims, emitter, ir.DataType.FLOAT)
    beta = vector(site.bias, 0.0, (1,), site.dims, emitter, ir.DataType.FLOAT)
    sizes = [site.dims[axis] for axis in last]
    if source is None:
        source = emitter.op("Transpose", site.data, dims=sizes, perm=list(last))
    options: dict[str, Any] = {"domain": DOMAIN, "groups": groups, "epsilon": root.epsilon, "activation": activation}
    added = _sum(source, site) if rank == 4 else None
    if added is not None:
        wanted = (True, True) if _is_read_besides(source, site.data) else (True,)
        one, other = added.operands
        results = emitter.several("SkipGroupNorm", one, gamma, beta, other, wanted=wanted, **options)
        emitter.before = added.node
        if len(results) == 2:
            emitter.takes[source] = results[1]
        value = results[0]
    else:
        if rank == 3:
            shape = [site.dims[0], site.dims[2], 1, channels]
            source = emitter.op("Reshape", source, emitter.integers([0, 0, 1, channels]), dims=shape)
        value = emitter.op("GroupNorm", source, gamma, beta, **options)
        if rank == 3:
            value = emitter.op("Reshape", value, emitter.integers([0, 0, channels]), dims=sizes)
    if behind is not None:
        emitter.consumed.append(behind)
        emitter.takes[behind.outputs[0]] = value
        return value
    turned = emitter.op("Transpose", value, dims=site.dims, perm=list(first))
    if active is not site.output:
        emitter.takes[active] = turned
    return turned


def _turned(value: ir.Value, order: tuple[int, ...]) -> tuple[ir.Value | None, bool]:
    """What a Transpose of that order makes a value of, and whether it is not needed besides; None where none does."""
    node = value.producer()
    if node is None or operator(node) != "Transpose" or tuple(attribute(node, "perm", ())) != order:
        return None, False
    return node.inputs[0], len(tuple(value.uses())) == 1 and not value.is_graph_output()


def _only_turn(value: ir.Value, order: tuple[int, ...]) -> ir.Node | None:
    """The Transpose of that order that is all that reads a value."""
    uses = tuple(value.uses())
    if len(uses) != 1 or value.is_graph_output() or operator(uses[0].node) != "Transpose":
        return None
    return uses[0].node if tuple(attribute(uses[0].node, "perm", ())) == order else None


def _is_read_besides(source: ir.Value, turned: ir.Value) -> bool:
    """Whether something reads a value besides the Transpose that makes another one of it, which only a norm reads."""
    if source.is_graph_output() or len(tuple(source.uses())) > 1:
        return True
    return turned.is_graph_output() or len(tuple(turned.uses())) > 1


def _silu(value: ir.Value, emitter: Emitter) -> tuple[ir.Value, int]:
    """x · σ(x) where that is all that reads a value, and 1; else the value, and 0."""
    uses = tuple(value.uses())
    readers = {use.node for use in uses}
    if value.is_graph_output():
        return value, 0
    if len(uses) == 1:
        record = lifted(uses[0].node)
        meaning = None if record is None else record.meaning
        if isinstance(meaning, Activation) and meaning.kind == "Swish" and meaning.alpha == 1.0:
            emitter.consumed.append(uses[0].node)
            return uses[0].node.outputs[0], 1
    gates = [node for node in readers if operator(node) == "Sigmoid"]
    products = [node for node in readers if operator(node) == "Mul"]
    if len(uses) != 2 or len(gates) != 1 or len(products) != 1:
        return value, 0
    gate = gates[0].outputs[0]
    if gate.is_graph_output() or set(products[0].inputs) != {value, gate} or len(tuple(gate.uses())) != 1:
        return value, 0
    emitter.consumed += [products[0], gates[0]]
    return products[0].outputs[0], 1


def skip_layer_norm(site: NormSite, emitter: Emitter, target: Target) -> ir.Value:
    """Add → LayerNormalization as SkipLayerNormalization(x, skip; γ, β), which returns the sum as well."""
    need(site.standardize.centred, "it subtracts no mean")
    _need_loss(site)
    return _skip("SkipLayerNormalization", site, emitter)


def skip_rms_norm(site: NormSite, emitter: Emitter, target: Target) -> ir.Value:
    """Add → RMSNormalization as SkipSimplifiedLayerNormalization(x, skip; γ), which returns the sum as well."""
    need(not site.standardize.centred, "it subtracts a mean")
    return _skip("SkipSimplifiedLayerNormalization", site, emitter)


def _skip(name: str, site: NormSite, emitter: Emitter) -> ir.Value:
    root, factor = operator_root(site)
    last = (site.rank - 1,)
    need(root.axes == last and root.groups is None and site.rank == 3, f"{name} is for the last of three axes")
    need(site.dtype == ir.DataType.FLOAT, f"{name} computes its statistics in the dtype of x, which is not float32")
    need(site.standardize.dtype in (None, site.dtype), "its statistics are of another dtype")
    added = _sum(site.data, site)
    need(added is not None, "there is no Add of equals in front of it")
    assert added is not None
    _need_constants(site, last)
    gamma = vector(scaled(site.scale, factor), 1.0, last, site.dims, emitter, site.dtype)
    need(gamma is not None, "the size of its last axis is not known")
    inputs = [*added.operands, gamma]
    if root.centred and site.bias is not None:
        inputs.append(vector(site.bias, 0.0, last, site.dims, emitter, site.dtype))
    wanted = (True, False, False, True) if added.is_read else (True,)
    results = emitter.several(name, *inputs, wanted=wanted, domain=DOMAIN, epsilon=root.epsilon)
    emitter.before = added.node
    emitter.consumed.append(added.node)
    if added.is_read:
        emitter.takes[site.data] = results[-1]
    return affine(site, results[0], None, None if root.centred else site.bias, emitter)

"""Classic bugs in the laws of LOWER and BLOCKS, each done to what the real law has written: `lowering_mutants`."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir

from normfuse.norm import Standardize
from normfuse.passes import lower, lower_blocks, lowering_forms, lowerings_standard
from normfuse.passes.emitter import Emitter
from normfuse.passes.weights import EXACT
from normfuse.target import Target
from scripts.mutants_rows import WrittenBug, spoil_constant, with_row, writing_law
from scripts.mutants_subjects import lowered
from scripts.planting import Mutant, Patches, Subject
from tests import test_lower
from tests.lowered import E, Lowered, centred, image
from tests.lowered_elsewhere import ROW_WEIGHTS, WINDOW, WINDOW_WEIGHTS
from tests.parity import build

_DYNAMIC = test_lower.ADAIN.replace("[2,6", "[N,6")
_HALF = (
    "(float16[2,5,16] x) => (float16[2,5,16] y) { h = Cast<to=1>(x) q = Mul(h, h) m = ReduceMean<axes=[-1]>(q)"
    " a = Add(m, e) r = Sqrt(a) n = Div(h, r) y = Cast<to=10>(n) }"
)
_POOLED = "(float[2,8,6,6] i) => (float[2,8] y) { x = Conv(i, k) y = ReduceMean<axes=[2,3], keepdims=0>(x) }"
_GATE = "(float[2,8] x, float[2,8] g) => (float[2,8] y) { s = Sigmoid(g) y = Mul(x, s) }"
_SQUARE = "(float[4,4,4] x) => (float[4,4,4] y) {{ {} }}"


def _inputs_swapped(operator: str, first: int, second: int) -> WrittenBug:
    def spoil(emitter: Emitter) -> bool:
        for node in (one for one in emitter.nodes if one.op_type == operator):
            one, other = node.inputs[first], node.inputs[second]
            node.replace_input_with(first, other)
            node.replace_input_with(second, one)
        return True

    return spoil


def _not_turned_back(emitter: Emitter) -> bool:
    """Both Transposes of one order."""
    turns = [node for node in emitter.nodes if node.op_type == "Transpose"]
    turns[-1].attributes["perm"] = turns[0].attributes["perm"]
    return True


def _operator(old: str, new: str) -> WrittenBug:
    def spoil(emitter: Emitter) -> bool:
        for node in emitter.nodes:
            node.op_type = new if node.op_type == old else node.op_type
        return True

    return spoil


def _alpha_of_the_sum(emitter: Emitter) -> bool:
    """α where α/n belongs."""
    for node in emitter.nodes:
        if node.op_type == "Conv" and node.inputs[1] is not None:
            weight = node.inputs[1].meta[EXACT]
            spoil_constant(node.inputs[1], weight * weight.size)
        elif node.op_type == "LRN":
            node.attributes["alpha"] = ir.AttrFloat32("alpha", node.attributes["alpha"].as_float() * 5)
    return True


def _keepdims_lost(emitter: Emitter) -> bool:
    for node in emitter.nodes:
        if node.op_type == "ReduceMean":
            node.attributes["keepdims"] = ir.AttrInt64("keepdims", 0)
    return True


def _flatten_left_out(emitter: Emitter) -> bool:
    emitter.nodes[-1].op_type = "Identity"
    emitter.nodes[-1].attributes.clear()
    return True


def _one_pass(site: Any, emitter: Emitter, target: Target) -> ir.Value:
    """γ · (x − E[x]) / √(E[x²] − E[x]² + ε) + β."""
    axes = list(site.standardize.axes)

    def mean(value: ir.Value) -> ir.Value:
        return emitter.op("ReduceMean", value, dims=[*site.dims[:-1], 1], axes=axes, keepdims=1)

    average = mean(site.data)
    squares = mean(emitter.op("Mul", site.data, site.data))
    variance = emitter.op("Sub", squares, emitter.op("Mul", average, average))
    guarded = emitter.op("Add", variance, emitter.constant(np.asarray(site.standardize.epsilon), site.dtype))
    centred_data = emitter.op("Sub", site.data, average, dims=site.dims)
    value = emitter.op("Div", centred_data, emitter.op("Sqrt", guarded), dims=site.dims)
    return lowering_forms.affine(site, value, site.scale, site.bias, emitter)


def _narrow(site: Any, emitter: Emitter, target: Target) -> ir.Value:
    """x / √(E[x²] + ε) with x² in float16."""
    mean = emitter.op(
        "ReduceMean", emitter.op("Mul", site.data, site.data), dims=[*site.dims[:-1], 1], axes=[-1], keepdims=1
    )
    guarded = emitter.op("Add", mean, emitter.constant(np.asarray(site.standardize.epsilon), site.dtype))
    return emitter.op("Div", site.data, emitter.op("Sqrt", guarded), dims=site.dims)


def _gate_dropped(law: Callable[..., Any]) -> Callable[..., Any]:
    """x · σ(x) for x · σ(g)."""

    def spoiled(node: ir.Node, weights: Any, emitter: Emitter, target: Target) -> Any:
        gate = node.inputs[1].producer() if node.op_type == "Mul" and node.inputs[1] is not None else None
        if gate is None or gate.op_type != "Sigmoid":
            return law(node, weights, emitter, target)
        return [node], emitter.op("Mul", node.inputs[0], emitter.op("Sigmoid", node.inputs[0]))

    return spoiled


def _root(change: Callable[[Standardize, float], tuple[Standardize, float]]) -> Patches:
    """What the laws take a normalization for."""
    found = lowerings_standard.__dict__["operator_root"]
    return {(lowerings_standard, "operator_root"): lambda site: change(*found(site))}


def _batch_baked_in() -> Patches:
    """The batch of a Reshape as a constant."""
    found = Emitter.integers

    def integers(self: Emitter, numbers: Any, stem: str = "shape") -> ir.Value:
        baked = [2 if number == 0 or (number == -1 and not place) else number for place, number in enumerate(numbers)]
        return found(self, baked, stem)

    return {(Emitter, "integers"): integers}


def _written(name: str, bug: WrittenBug) -> Callable[[], Patches]:
    module, table = (lower_blocks, "BLOCKS") if name in _BLOCKS else (lower, "LOWERINGS")
    rule = next(row for row in module.__dict__[table] if row.name == name)
    return partial(with_row, module, table, rule, writing_law(rule.law, bug))


def _block(name: str, law: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Callable[[], Patches]:
    rule = next(row for row in lower_blocks.BLOCKS if row.name == name)
    return partial(with_row, lower_blocks, "BLOCKS", rule, law(rule.law))


def _instead(name: str, law: Callable[..., Any]) -> Callable[[], Patches]:
    rule = next(row for row in lower.__dict__["LOWERINGS"] if row.name == name)
    return partial(with_row, lower, "LOWERINGS", rule, law)


_BLOCKS = frozenset(row.name for row in lower_blocks.BLOCKS)
_ROWS = Lowered("layer-norm", test_lower.SPELLED_ROWS, "", weights=ROW_WEIGHTS)
_RMS = Lowered("rms-norm", test_lower.GAMMA_ROWS, "", weights=ROW_WEIGHTS)
_LRN = Lowered("lrn-by-conv", image("y = LRN<size=5, alpha=0.3>(x)"), "")
_WINDOW = Lowered("lrn", image(WINDOW), "", "portable", weights=WINDOW_WEIGHTS)
_ADAIN = Lowered("instance-norm", _DYNAMIC, "", weights=test_lower.ADAIN_WEIGHTS)
_UNBIASED = Lowered("instance-norm", image(test_lower.UNBIASED), "", weights=E | {"f": np.float32(16 / 15)})
_CHANNELS = Lowered("norm-by-transposes", test_lower.SPELLED_CHANNELS, "", weights=test_lower.CHANNEL_WEIGHTS)
_NODES = Lowered(
    "norm-in-nodes",
    _SQUARE.format(centred("[-1]", "i = Reciprocal(r) n = Mul(d, i) g = Mul(w, n) y = Add(g, c)")),
    "",
    "portable",
    opset=13,
    weights=E | {"w": (4,), "c": (4,)},
)
_NARROW = Subject("rms-norm", _HALF, partial(build, _HALF, opset=17, e=np.float32(1e-3)))
_GATED = Subject("activation", _GATE, partial(build, _GATE, opset=17))
_POOL = Subject("mean-as-pool", _POOLED, partial(build, _POOLED, opset=17, k=(8, 8, 1, 1)))

BUGS: tuple[tuple[str, Subject, Callable[[], Patches]], ...] = (
    (
        "RMSNorm with the mean subtracted",
        lowered(_RMS),
        _written("rms-norm", _operator("SimplifiedLayerNormalization", "LayerNormalization")),
    ),
    (
        "LayerNorm without its mean",
        lowered(_ROWS),
        _written("layer-norm", _operator("LayerNormalization", "SimplifiedLayerNormalization")),
    ),
    ("E[x²] − E[x]² for the variance", lowered(_ROWS), _instead("layer-norm", _one_pass)),
    ("x² in float16", _NARROW, _instead("rms-norm", _narrow)),
    (
        "AdaIN: γ and β exchanged",
        lowered(_ADAIN),
        _written("instance-norm", _inputs_swapped("InstanceNormalization", 1, 2)),
    ),
    ("the batch size baked into a Reshape", lowered(_ADAIN), _batch_baked_in),
    ("ddof ignored", lowered(_UNBIASED), lambda: _root(lambda root, factor: (root, 1.0))),
    ("turned the same way twice", lowered(_CHANNELS), _written("norm-by-transposes", _not_turned_back)),
    ("LRN: α not divided by n", lowered(_LRN), _written("lrn-by-conv", _alpha_of_the_sum)),
    ("LRN: α not divided by n", lowered(_WINDOW), _written("lrn", _alpha_of_the_sum)),
    ("keepdims lost, on square dimensions", lowered(_NODES), _written("norm-in-nodes", _keepdims_lost)),
    ("keepdims instead of none", _POOL, _written("mean-as-pool", _flatten_left_out)),
    ("a product with a gate taken for SiLU: the gate dropped", _GATED, _block("activation", _gate_dropped)),
)
"""Bug, model, and what is patched."""


def lowering_mutants() -> Iterator[Mutant]:
    """The bugs, one model each."""
    for bug, subject, plant in BUGS:
        yield Mutant(subject.rule, bug, subject, plant, must=True)

"""Bugs planted into every row of every rule table by a scheme: `row_mutants`.

| table | what is planted |
|---|---|
| SOURCES, BIAS | the map that a node is read as is spoiled |
| ABSORB | the map that arrives is spoiled before the row takes it, or the last weight after |
| CARRY | the map that is passed on is spoiled |
| LOWERINGS, BLOCKS | one of the nodes or constants that were written is spoiled |

The models are those of the tests of each row.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir

from normfuse.affine import Affine
from normfuse.passes import fold, lower, lower_blocks
from normfuse.passes.deal import Deal, Offer
from normfuse.passes.emitter import Emitter
from normfuse.passes.fold_rules import BIAS
from normfuse.passes.rule import Rule
from normfuse.passes.weights import EXACT, round_to
from scripts.mutants_subjects import block_subjects, fold_subjects, lower_subjects
from scripts.planting import Mutant, Patches, Subject

AffineBug = Callable[[Affine], Affine | None]
"""A spoiled map; None where there is nothing to spoil in that way."""


def _shift_dropped(affine: Affine) -> Affine | None:
    return None if affine.keeps_origin else affine.scaling


def _scale_dropped(affine: Affine) -> Affine | None:
    return None if affine.keeps_scale else affine.shifting


def _scale_inverted(affine: Affine) -> Affine | None:
    if affine.keeps_scale or not affine.is_invertible:
        return None
    return Affine.of(affine.axis, 1.0 / affine.scale, affine.shift)


def _scale_off(affine: Affine) -> Affine | None:
    return Affine.of(affine.axis, affine.scale * 1.001, affine.shift)


def _shift_off(affine: Affine) -> Affine | None:
    return None if affine.keeps_origin else Affine.of(affine.axis, affine.scale, affine.shift * 1.001)


def _channels_rolled(affine: Affine) -> Affine | None:
    if affine.axis is None:
        return None
    return Affine.of(affine.axis, np.roll(affine.scale, 1), np.roll(affine.shift, 1))


def _channels_ignored(affine: Affine) -> Affine | None:
    return None if affine.axis is None else Affine.of(None, affine.scale[:1], affine.shift[:1])


def _sign_flipped(affine: Affine) -> Affine | None:
    if affine.keeps_scale and not affine.keeps_origin:
        return Affine.of(affine.axis, affine.scale, -affine.shift)
    return Affine.of(affine.axis, -affine.scale, affine.shift)


AFFINE_BUGS: dict[str, AffineBug] = {
    "shift dropped": _shift_dropped,
    "scale dropped": _scale_dropped,
    "scale inverted": _scale_inverted,
    "scale off by 0.1 %": _scale_off,
    "shift off by 0.1 %": _shift_off,
    "channels rolled by one": _channels_rolled,
    "the first channel's for all": _channels_ignored,
    "sign flipped": _sign_flipped,
}


def _source_law(law: Callable[..., Any], bug: AffineBug) -> Callable[..., Any]:
    def spoiled(node: ir.Node, weights: Any) -> Any:
        found = law(node, weights)
        wrong = None if found is None else bug(found[1])
        return found if wrong is None else (found[0], wrong)

    return spoiled


def _absorb_law(law: Callable[..., Any], bug: AffineBug) -> Callable[..., Any]:
    def spoiled(offer: Offer) -> Any:
        return law(replace(offer, affine=bug(offer.affine) or offer.affine))

    return spoiled


def _last_weight_off(law: Callable[..., Any]) -> Callable[..., Any]:
    def spoiled(offer: Offer) -> Any:
        return tuple(
            replace(deal, weights=(*deal.weights[:-1], replace(deal.weights[-1], array=deal.weights[-1].array * 1.001)))
            if deal.weights
            else deal
            for deal in law(offer)
        )

    return spoiled


def _carry_law(law: Callable[..., Any], bug: AffineBug) -> Callable[..., Any]:
    def spoil(deal: Deal) -> Deal:
        return replace(deal, needs=tuple(replace(one, affine=bug(one.affine) or one.affine) for one in deal.needs))

    def spoiled(offer: Offer) -> Any:
        return tuple(spoil(deal) for deal in law(offer))

    return spoiled


WrittenBug = Callable[[Emitter], bool]
"""Spoils what was written; whether there was anything to spoil."""


def _attribute(name: str, change: Callable[[Any], Any]) -> WrittenBug:
    def spoil(emitter: Emitter) -> bool:
        nodes = [node for node in emitter.nodes if name in node.attributes]
        for node in nodes[-1:]:
            value = change(node.attributes[name].value)
            node.attributes[name] = ir.convenience.convert_attribute(name, value, node.attributes[name].type)
        return bool(nodes)

    return spoil


def _constants(emitter: Emitter) -> list[ir.Value]:
    read = {value for node in emitter.nodes for value in node.inputs if value is not None}
    return [value for value in read if EXACT in value.meta]


def spoil_constant(value: ir.Value, array: Any) -> None:
    """Gives a constant that was written another content."""
    assert value.dtype is not None
    value.meta[EXACT] = array
    value.const_value = ir.Tensor(round_to(array, value.dtype), dtype=value.dtype)


def _last_constant_off(emitter: Emitter) -> bool:
    for node in reversed(emitter.nodes):
        for value in reversed(node.inputs):
            if value is not None and EXACT in value.meta and np.any(value.meta[EXACT]):
                spoil_constant(value, value.meta[EXACT] * 1.001)
                return True
    return False


def _small_constant_tenfold(emitter: Emitter) -> bool:
    """ε as a constant: one number less than 0.01, but not zero."""
    for value in _constants(emitter):
        exact = value.meta[EXACT]
        if exact.size == 1 and 0.0 < abs(float(exact.ravel()[0])) < 0.01:
            spoil_constant(value, exact * 10)
            return True
    return False


def _constant_rolled(emitter: Emitter) -> bool:
    for value in _constants(emitter):
        exact = value.meta[EXACT]
        if exact.size > 1 and np.any(exact != exact.ravel()[0]):
            spoil_constant(value, np.roll(exact, 1))
            return True
    return False


def _parameters_swapped(emitter: Emitter) -> bool:
    for node in emitter.nodes:
        if "Norm" in node.op_type and len(node.inputs) > 2 and node.inputs[1] is not None:
            scale, bias = node.inputs[1], node.inputs[2]
            node.replace_input_with(1, bias)
            node.replace_input_with(2, scale)
            return True
    return False


def _operator(old: str, new: str) -> WrittenBug:
    def spoil(emitter: Emitter) -> bool:
        node = next((one for one in emitter.nodes if one.op_type == old), None)
        if node is not None:
            node.op_type = new
        return node is not None

    return spoil


def _operands_swapped(emitter: Emitter) -> bool:
    node = next((one for one in emitter.nodes if one.op_type in ("Div", "Sub")), None)
    if node is None:
        return False
    first, second = node.inputs[:2]
    node.replace_input_with(0, second)
    node.replace_input_with(1, first)
    return True


def _operand_doubled(emitter: Emitter) -> bool:
    node = next((one for one in emitter.nodes if one.op_type in ("Add", "Max", "Mul", "Sum")), None)
    if node is None or node.inputs[0] is node.inputs[1]:
        return False
    node.replace_input_with(1, node.inputs[0])
    return True


WRITTEN_BUGS: dict[str, WrittenBug] = {
    "ε ten times larger": _attribute("epsilon", lambda value: value * 10 or 1e-3),
    "ε dropped": _attribute("epsilon", lambda value: 0.0 if value else 1e-3),
    "ε, as a constant, ten times larger": _small_constant_tenfold,
    "γ and β swapped": _parameters_swapped,
    "the last constant off by 0.1 %": _last_constant_off,
    "a constant rolled by one": _constant_rolled,
    "axis moved": _attribute("axis", lambda value: value - 1 if value else 1),
    "axes moved": _attribute("axes", lambda value: [one - 1 for one in value]),
    "the order transposed": _attribute("perm", lambda value: value[::-1]),
    "the groups doubled": _attribute("num_groups", lambda value: value * 2 if value == 2 else 1),
    "groups, as CUDA has them, changed": _attribute("groups", lambda value: 1 if value > 1 else 2),
    "SiLU forgotten or added": _attribute("activation", lambda value: 1 - value),
    "α off by 0.1 %": _attribute("alpha", lambda value: value * 1.001),
    "α doubled": _attribute("alpha", lambda value: value * 2),
    "β doubled": _attribute("beta", lambda value: value * 2),
    "bias k off": _attribute("bias", lambda value: value * 1.01),
    "the window one larger": _attribute("size", lambda value: value + 2),
    "p of the norm wrong": _attribute("p", lambda value: 3 - value),
    "pads one shifted": _attribute("pads", lambda value: [*value[1:], value[0]]),
    "GELU by tanh for erf, or the reverse": _attribute(
        "approximate", lambda value: "none" if value in ("tanh", b"tanh") else "tanh"
    ),
    "Sqrt left out": _operator("Sqrt", "Identity"),
    "Reciprocal left out": _operator("Reciprocal", "Identity"),
    "Sub for Add": _operator("Add", "Sub"),
    "Add for Sub": _operator("Sub", "Add"),
    "Div for Mul": _operator("Mul", "Div"),
    "RMSNorm for LayerNorm": _operator("LayerNormalization", "RMSNormalization"),
    "Min for Max": _operator("Max", "Min"),
    "Max for Sum": _operator("Sum", "Max"),
    "the largest for the mean": _operator("GlobalAveragePool", "GlobalMaxPool"),
    "the largest for the mean, reduced": _operator("ReduceMean", "ReduceMax"),
    "Sigmoid for HardSigmoid": _operator("HardSigmoid", "Sigmoid"),
    "Relu for LeakyRelu": _operator("LeakyRelu", "Relu"),
    "operands swapped": _operands_swapped,
    "an operand doubled": _operand_doubled,
}


def writing_law(law: Callable[..., Any], bug: WrittenBug) -> Callable[..., Any]:
    """A law of LOWER or BLOCKS of which what was written is spoiled."""

    def spoiled(site: Any, *rest: Any) -> Any:
        found = law(site, *rest)
        emitter = next(one for one in rest if isinstance(one, Emitter))
        if found is not None:
            bug(emitter)
        return found

    return spoiled


def with_row(module: Any, table: str, rule: Rule, law: Callable[..., Any]) -> Patches:
    """A table with another law in one of its rows."""
    rows: Sequence[Rule] = getattr(module, table)
    return {(module, table): tuple(replace(row, law=law) if row.name == rule.name else row for row in rows)}


def row_mutants() -> Iterator[Mutant]:
    """Each bug of the scheme in each row, for each of its models."""
    for table, spoil in (("SOURCES", _source_law), ("ABSORB", _absorb_law), ("CARRY", _carry_law)):
        for rule in getattr(fold, table):
            for subject in fold_subjects(rule):
                for bug, change in AFFINE_BUGS.items():
                    yield _mutant(rule, bug, subject, partial(with_row, fold, table, rule, spoil(rule.law, change)))
                if table == "ABSORB":
                    law, bug = _last_weight_off(rule.law), "its last weight off by 0.1 %"
                    yield _mutant(rule, bug, subject, partial(with_row, fold, table, rule, law))
    for subject in fold_subjects(BIAS):
        for bug, change in AFFINE_BUGS.items():
            wrong = replace(BIAS, law=_source_law(BIAS.law, change))
            yield _mutant(BIAS, bug, subject, partial(dict, {(fold, "BIAS"): wrong}))
    for module, table, subjects in ((lower, "LOWERINGS", lower_subjects), (lower_blocks, "BLOCKS", block_subjects)):
        for rule in getattr(module, table):
            for subject in subjects(rule):
                for bug, damage in WRITTEN_BUGS.items():
                    law = writing_law(rule.law, damage)
                    yield _mutant(rule, bug, subject, partial(with_row, module, table, rule, law))


def _mutant(rule: Rule, bug: str, subject: Subject, plant: Callable[[], Patches]) -> Mutant:
    return Mutant(rule.name, bug, subject, plant)

"""Bugs planted into every row of LIFT: what was found is taken for something near to it. `lift_mutants`."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir

from normfuse.activation import Activation
from normfuse.passes import lift, recognizers
from normfuse.passes.lifted import Found
from normfuse.passes.rule import Rule
from normfuse.target import Target
from scripts.mutants_subjects import lowered
from scripts.planting import CPU, Mutant, Patches, Subject
from tests import test_activations, test_lower
from tests.lowered import E, Lowered, centred, image, rows
from tests.lowered_elsewhere import WINDOW
from tests.parity import build

FoundBug = Callable[[Found], Found | None]
"""Takes what was found for something else; None where there is nothing to mistake."""

ROWS: dict[str, Any] = {"w": (16,), "c": (16,), "e": np.float32(1e-3)}
CHANNELS: dict[str, Any] = {"w": (6,), "c": (6,)}
_STATISTICS = "m = ReduceMean<axes=[-1]>(x) d = Sub(x, m) q = Mul(d, d) v = ReduceMean<axes=[-1]>(q) a = Add(v, e)"
_MULTIPLIED_OUT = f"{_STATISTICS} r = Sqrt(a) i = Reciprocal(r) k = Mul(i, w) p = Mul(x, k) o = Mul(m, k)"
_OF_THE_BATCH = (
    "m = ReduceMean<axes=[0,2,3], keepdims=0>(x) f = ReduceMean<axes=[0,2,3]>(x) d = Sub(x, f) q = Mul(d, d)"
    " v = ReduceMean<axes=[0,2,3], keepdims=0>(q) y = BatchNormalization<epsilon=0.001>(x, w, c, m, v)"
)
_TURNED = (
    "(float[2,4,4,16] x) => (float[2,4,4,16] y) { t = Transpose<perm=[0,2,3,1]>(x) n = LayerNormalization(t, w, c)"
    " y = Transpose<perm=[0,3,1,2]>(n) }"
)
_HALF = (
    "(float16[2,5,16] x) => (float16[2,5,16] y) { h = Cast<to=1>(x) n = LayerNormalization<epsilon=0.001>(h, one)"
    " g = Cast<to=10>(n) k = Mul(g, w) y = Add(k, c) }"
)


def _meaning(**changes: Callable[[Any], Any]) -> FoundBug:
    """Fields of what a normalization or activation is, taken for others."""

    def bug(found: Found) -> Found | None:
        own = found.meaning
        names = {name for name in changes if hasattr(own, name)}
        if not names:
            return None
        fields = {name: changes[name](getattr(own, name)) for name in names}
        if all(getattr(own, name) == value for name, value in fields.items()):
            return None
        try:
            return replace(found, meaning=replace(own, **fields))  # type: ignore[type-var]  # a dataclass of either kind
        except ValueError:
            return None

    return bug


def _swapped(found: Found) -> Found | None:
    if found.scale is None or found.bias is None:
        return None
    return replace(found, scale=found.bias, bias=found.scale)


def _alone(name: str) -> FoundBug:
    nothing: dict[str, Any] = {name: None}
    return lambda found: None if getattr(found, name) is None else replace(found, **nothing)


def _kind(found: Found) -> Found | None:
    others = {
        "Clip": "HardSwish",
        "Gelu": "TanhGelu",
        "HardSwish": "HardSigmoid",
        "LeakyRelu": "Relu",
        "Mish": "Relu",
        "Relu": "Mish",
        "Sigmoid": "Swish",
        "Swish": "Sigmoid",
        "TanhGelu": "Gelu",
    }
    own = found.meaning
    if not isinstance(own, Activation) or own.kind not in others:
        return None
    return replace(found, meaning=replace(own, kind=others[own.kind]))  # type: ignore[arg-type]  # one of the kinds


FOUND_BUGS: dict[str, FoundBug] = {
    "ε ten times larger": _meaning(epsilon=lambda value: value * 10),
    "ε dropped": _meaning(epsilon=lambda value: 0.0),
    "ε outside the root": _meaning(place=lambda value: "outside" if value == "inside" else "inside"),
    "the mean subtracted, or not": _meaning(centred=lambda value: not value),
    "biased variance for unbiased, or the reverse": _meaning(ddof=lambda value: 1 - value),
    "α doubled": _meaning(alpha=lambda value: value * 2),
    "the root taken twice": _meaning(exponent=lambda value: value / 2),
    "one axis fewer": _meaning(axes=lambda value: value[1:] or value),
    "the axis before": _meaning(axes=lambda value: tuple(axis - 1 for axis in value) if value[0] else value),
    "twice as many groups": _meaning(groups=lambda value: value and value * 2),
    "a window one larger": _meaning(window=lambda value: value and (value[0] + 1, value[1] + 1)),
    "α off by 1 %": _meaning(alpha=lambda value: value * 1.01),
    "β off by 1 %": _meaning(beta=lambda value: value * 1.01),
    "another activation": _kind,
    "γ and β swapped": _swapped,
    "γ forgotten": _alone("scale"),
    "β forgotten": _alone("bias"),
}


def _law(law: Callable[..., Any], bug: FoundBug) -> Callable[..., Any]:
    def spoiled(node: ir.Node, weights: Any) -> Any:
        found = law(node, weights)
        return found if found is None else bug(found) or found

    return spoiled


def _planted(table: str, rule: Rule, bug: FoundBug) -> Patches:
    found = getattr(recognizers, table)
    return {
        (lift, table): tuple(replace(row, law=_law(row.law, bug)) if row.name == rule.name else row for row in found)
    }


def lift_subjects(rule: Rule) -> Iterator[Subject]:
    """Models for a row of LIFT, each lowered behind it."""
    match rule.name:
        case "standardize":
            unbiased = image(test_lower.UNBIASED)
            yield lowered(Lowered("standardize", rows(centred("[-1]", test_lower.AFFINE_ROWS)), "", weights=ROWS))
            yield lowered(Lowered("standardize", unbiased, "", weights=E | {"f": np.float32(16 / 15)}))
            yield lowered(Lowered("standardize", image(WINDOW), "", weights=test_lower.WINDOW_WEIGHTS))
            yield lowered(Lowered("standardize", test_lower.GAMMA_ROWS, "", weights=E | {"w": (16,)}))
        case "standardize-affine":
            body = f"{_MULTIPLIED_OUT} b = Sub(c, o) y = Add(p, b)"
            yield lowered(Lowered(rule.name, rows(body), "", weights=ROWS))
        case "batch-statistics":
            text = f"(float[4,6,3,3] x) => (float[4,6,3,3] y) {{ {_OF_THE_BATCH} }}"
            for target in (CPU, Target("cuda", 1), Target("portable", 1)):
                yield Subject(rule.name, text, partial(build, text, opset=17, **CHANNELS), target)
        case "reshaped-norm":
            yield lowered(Lowered(rule.name, image(test_lower.GROUPS), "", weights=test_lower.GROUP_WEIGHTS))
            text = image(test_lower.GROUPS)
            yield lowered(Lowered(rule.name, text, "", threads=4, weights=test_lower.GROUP_WEIGHTS))
        case "transposed-norm":
            text = _TURNED.replace("4,4,16", "16,20,20")
            yield Subject(rule.name, text, partial(build, text, opset=17, w=(16,), c=(16,)))
        case "cast-norm":
            weights = {"w": rng16(16), "c": rng16(16), "one": np.ones(16, np.float32)}
            yield Subject(rule.name, _HALF, partial(build, _HALF, opset=17, **weights))
        case _:
            for provider, opset, body, expected in test_activations.LOWERED:
                what = f"{opset} {body}: {expected}"
                make = partial(test_activations.model, body, opset=opset)
                yield Subject(rule.name, what, make, Target(provider, 1))  # type: ignore[arg-type]  # a str


def rng16(size: int) -> Any:
    """A vector of float16 that is not trivial."""
    return np.random.default_rng(size).normal(1.0, 0.5, size).astype(np.float16)


def lift_mutants() -> Iterator[Mutant]:
    """Each bug in each row, for each of its models."""
    for table in ("FORMS", "SURROUNDINGS", "ACTIVATIONS"):
        for rule in getattr(recognizers, table):
            for subject in lift_subjects(rule):
                for bug, change in FOUND_BUGS.items():
                    yield Mutant(rule.name, bug, subject, partial(_planted, table, rule, change))

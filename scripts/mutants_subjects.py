"""The models that bugs are planted for: the cases of the tests, by row of the rule tables.

Of each row two models where it applies, as different as its cases allow; of the rows that drop a shift also those where
it must refuse, for the bugs that let through what was refused.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import onnx

from normfuse.passes.rule import Rule
from normfuse.target import Target
from scripts.planting import Subject
from tests import test_absorb, test_absorb_affine, test_activations, test_carry, test_lower, test_sources
from tests.lowered import Lowered
from tests.parity import build, names

FOLD_ONLY = ("block", "lower")
_EACH = 2

NORMED = "(float[N,4,6,6] x) => (float[N,5,4,4] y) {{ {} }}"
NORM_WEIGHTS: dict[str, Any] = {"w": (5, 4, 3, 3), "b": (5,), "s": (5,), "t": (5,), "u": (5, 4, 4)}
_BIASES = (
    "c = Conv(x, w, b) y = InstanceNormalization(c, s, t)",
    "c = Conv(x, w, b) y = LayerNormalization<axis=1>(c, u)",
)

_CONV = "x = Conv(i, k) {} o = Conv<pads=[1,1,1,1]>(y, v)"
_CHAIN = "(float[2,8,6,6] i) => (float[2,8,6,6] o) {{ {} }}"
_CHAIN_WEIGHTS: dict[str, Any] = {"k": (8, 8, 1, 1), "v": (8, 8, 3, 3), "s": (1,), "t": (8, 1, 1)}


def apart(cases: Sequence[Any], count: int = _EACH) -> list[Any]:
    """The first, the last, and what lies evenly between."""
    places = {round(place) for place in np.linspace(0, len(cases) - 1, min(count, len(cases)))}
    return [cases[place] for place in sorted(places)]


@cache
def _plain_cases(refused: bool = False) -> dict[str, list[Any]]:
    modules = (test_sources, test_absorb, test_absorb_affine)
    cases = [case for one in modules for case in (one.REFUSES if refused else one.APPLIES)]
    return {name: [case for case in cases if case.rule == name] for name in names(cases)}


def _of_case(case: Any) -> Subject:
    return Subject(case.rule, case.what, lambda: case.model, ignore=FOLD_ONLY)


def _carried(case: Any) -> Subject:
    return Subject(case.rule, case.what, case.model, ignore=(*case.without, *FOLD_ONLY))


def fold_subjects(rule: Rule) -> Iterator[Subject]:
    """Models for a row of FOLD."""
    if rule.name == "bias":
        for body in _BIASES:
            text = NORMED.format(body)
            yield Subject(rule.name, body, partial(build, text, **NORM_WEIGHTS), ignore=FOLD_ONLY)
        return
    if rule.kind == "carry":
        passing = [case for case in test_carry.PASSING if case.rule == rule.name]
        for way in ("up", "down"):
            yield from map(_carried, apart([case for case in passing if case.what.startswith(way)]))
        return
    yield from map(_of_case, apart(_plain_cases()[rule.name]))
    if "drops-shift" in rule.name:
        yield from map(_of_case, apart(_plain_cases(refused=True)[rule.name], 6))


def lower_subjects(rule: Rule) -> Iterator[Subject]:
    """Models for a row of LOWERINGS, for each of its targets."""
    cases = [case for case in test_lower.APPLIES if case.rule == rule.name]
    for provider in ("cpu", "portable", "cuda"):
        found = [case for case in cases if case.provider == provider]
        yield from map(lowered, apart(found) if found else [])


def lowered(case: Lowered) -> Subject:
    """A case of LOWER."""
    make = partial(build, case.text, opset=case.opset, **case.weights)
    return Subject(case.rule, f"{case.opset} {case.text}", make, Target(case.provider, case.threads))


def block_subjects(rule: Rule) -> Iterator[Subject]:
    """Models for a row of BLOCKS."""
    match rule.name:
        case "activation" | "slopes-as-maximum":
            for provider, opset, body, expected in test_activations.LOWERED:
                if ("PRelu" in body) == (rule.name == "slopes-as-maximum"):
                    make: Callable[[], onnx.ModelProto] = partial(test_activations.model, body, opset=opset)
                    what = f"{opset} {body}: {expected}"
                    yield Subject(rule.name, what, make, Target(provider, 1))  # type: ignore[arg-type]  # a str
        case "affine-as-batch-norm":
            text = _CHAIN.format(_CONV.format("h = HardSwish(x) m = Mul(h, s) y = Add(m, t)"))
            yield Subject(rule.name, "between Convs", partial(build, text, opset=17, **_CHAIN_WEIGHTS))
        case "mean-as-pool":
            text = "(float[2,8,6,6] i) => (float[2,8] y) { x = Conv(i, k) y = ReduceMean<axes=[2,3], keepdims=0>(x) }"
            yield Subject(rule.name, "behind a Conv", partial(build, text, opset=17, k=(8, 8, 1, 1)))
        case "residual-as-sum":
            text = (
                "(float[2,5,16] x, float[2,5,16] s) => (float[2,5,16] y)"
                " { z = Add(x, s) n = LayerNormalization(z, w, c) y = Relu(n) }"
            )
            yield Subject(rule.name, "in front of a LayerNorm", partial(build, text, opset=17, w=(16,), c=(16,)))

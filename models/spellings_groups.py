"""Every spelling of GroupNorm by a normalization between Reshapes, and of hard activations."""

from collections.abc import Iterator
from functools import partial
from itertools import product

import onnx
import onnx_ir as ir

from models.spelling import Spelling
from normfuse.activation import Activation
from normfuse.norm import Standardize

_SPATIAL = {3: (12,), 4: (4, 6), 5: (2, 3, 4)}
_CHANNELS, _GROUPS = 6, 2


def spellings() -> Iterator[Spelling]:
    """GroupNorm: rank × form within × constant or computed shape × static or dynamic batch; HardSwish in any order."""
    yield from _group_norms()
    yield from _hard_activations()


def _group_norms() -> Iterator[Spelling]:
    inner = {
        "InstanceNormalization": "n = InstanceNormalization<epsilon=0.00001>(r, o, z)",
        "LayerNormalization": "n = LayerNormalization<axis=2, epsilon=0.00001>(r, w)",
        "mean and variance": (
            "m = ReduceMean<axes=[2]>(r) d = Sub(r, m) q = Mul(d, d) v = ReduceMean<axes=[2]>(q) a = Add(v, e)"
            " s = Sqrt(a) n = Div(d, s)"
        ),
    }
    for rank, (name, body), shaped, batch in product(_SPATIAL, inner.items(), ("constant", "computed"), ("2", "N")):
        if name == "LayerNormalization" and rank == 3 and batch == "N":
            continue
        standardize = Standardize.group_norm(rank, _GROUPS, float(_EPSILON))
        title = f"{rank}-D, {name}, {shaped} shape, batch {batch}"
        yield Spelling("GroupNorm", title, partial(_group_norm, rank, body, shaped, batch), standardize)


_EPSILON = 9.999999747378752e-06
"""1e-5 as float32 has it."""


def _group_norm(rank: int, body: str, shaped: str, batch: str) -> ir.Model:
    dims = [batch, str(_CHANNELS), *map(str, _SPATIAL[rank])]
    size = 1
    for extent in _SPATIAL[rank]:
        size *= extent
    size *= _CHANNELS // _GROUPS
    back = "Shape(x)" if shaped == "computed" else f"Constant<value_ints=[{','.join(['-1', *dims[1:]])}]>()"
    ones = ",".join(["1.0"] * size)
    text = (
        f"t = Constant<value_ints=[0,{_GROUPS},-1]>() o = Constant<value_floats=[1.0,1.0]>()"
        f" z = Constant<value_floats=[0.0,0.0]>() w = Constant<value_floats=[{ones}]>()"
        f" e = Constant<value_float=0.00001>() r = Reshape(x, t) {body} b = {back} y = Reshape(n, b)"
    )
    return _parsed(dims, text)


def _hard_activations() -> Iterator[Spelling]:
    added = {"x + 3": "a = Add(x, three)", "3 + x": "a = Add(three, x)", "x − (−3)": "a = Sub(x, minus)"}
    clipped = {
        "Clip": "c = Clip(a, zero, six)",
        "Min of Relu": "l = Relu(a) c = Min(l, six)",
        "Min of Max": "l = Max(a, zero) c = Min(six, l)",
        "Max of Min": "l = Min(a, six) c = Max(l, zero)",
    }
    scaled = {
        "x · c / 6": "p = Mul(x, c) y = Div(p, six)",
        "c · x · ⅙": "p = Mul(c, x) y = Mul(p, sixth)",
        "x · (c / 6)": "p = Div(c, six) y = Mul(x, p)",
        "(⅙ · c) · x": "p = Mul(sixth, c) y = Mul(p, x)",
        "(x / 6) · c": "p = Div(x, six) y = Mul(p, c)",
    }
    for (first, one), (second, two), (third, three) in product(added.items(), clipped.items(), scaled.items()):
        lifts_gate = third in ("x · (c / 6)", "(⅙ · c) · x")
        meaning = Activation("HardSigmoid", 1.0 / 6.0) if lifts_gate else Activation("HardSwish")
        title = f"{first}, {second}, {third}"
        yield Spelling("HardSwish", title, partial(_hard, f"{one} {two} {three}"), _Close(meaning))


class _Close:
    """Equal to an activation of the same kind whose numbers differ by float32 rounding."""

    def __init__(self, meaning: Activation) -> None:
        self.meaning = meaning

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Activation)
            and other.kind == self.meaning.kind
            and abs(other.alpha - self.meaning.alpha) < 1e-7
            and abs(other.beta - self.meaning.beta) < 1e-6
        )

    def __hash__(self) -> int:
        return hash(self.meaning.kind)


def _hard(body: str) -> ir.Model:
    constants = {"zero": 0.0, "three": 3.0, "minus": -3.0, "six": 6.0, "sixth": 1.0 / 6.0}
    text = " ".join(f"{name} = Constant<value_float={number:.9f}>()" for name, number in constants.items())
    return _parsed(["2", "3", "8"], f"{text} {body}")


def _parsed(dims: list[str], body: str) -> ir.Model:
    shape = ",".join(dims)
    text = f'<ir_version: 8, opset_import: ["" : 17]> g (float[{shape}] x) => (float[{shape}] y) {{ {body} }}'
    model = ir.from_proto(onnx.parser.parse_model(text))
    for index, node in enumerate(model.graph):
        node.name = f"n{index}"
    return model

"""Every spelling of GroupNorm by a normalization between Reshapes."""

from collections.abc import Iterator
from functools import partial
from itertools import product

import onnx
import onnx_ir as ir

from models.spelling import Spelling
from normfuse.norm import Standardize

_SPATIAL = {3: (12,), 4: (4, 6), 5: (2, 3, 4)}
_CHANNELS, _GROUPS = 6, 2


def spellings() -> Iterator[Spelling]:
    """GroupNorm: rank × form within × constant or computed shape × static or dynamic batch."""
    yield from _group_norms()


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


def _parsed(dims: list[str], body: str) -> ir.Model:
    shape = ",".join(dims)
    text = f'<ir_version: 8, opset_import: ["" : 17]> g (float[{shape}] x) => (float[{shape}] y) {{ {body} }}'
    model = ir.from_proto(onnx.parser.parse_model(text))
    for index, node in enumerate(model.graph):
        node.name = f"n{index}"
    return model

"""Dimensions that onnx's inference gives up on get the names of those that they are equal to."""

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from normfuse.passes.inference import infer_shapes
from normfuse.passes.reshaping import Extent
from tests.parity import build

IMAGE = "(float[N,6,H,W] x) => (float[A,B,C,D] z)"

CASES = {
    "a computed Reshape": ("t = Shape(x) b = Relu(x) y = Reshape(b, t)", "N 6 H W"),
    "rows": ("r = Reshape(x, rows) y = Unsqueeze(r, axis)", "N 1 6 H·W"),
    "rows and back": ("r = Reshape(x, rows) q = Relu(r) t = Shape(x) y = Reshape(q, t)", "N 6 H W"),
    "Expand": ("m = ReduceMean<axes=[2,3]>(x) t = Shape(x) y = Expand(m, t)", "N 6 H W"),
    "Expand to what a Where computes": (
        "m = ReduceMean<axes=[2,3]>(x) t = Shape(x) e = Equal(t, minus) w = Where(e, ones, t) y = Expand(m, w)",
        "N 6 H W",
    ),
    "a pool that keeps its size": ("y = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>(x)", "N 6 H W"),
    "a pool that does not": ("y = AveragePool<kernel_shape=[3,1], pads=[0,0,0,0]>(x)", "N 6 ? W"),
    "a convolution": ("y = Conv<pads=[1,1,1,1]>(x, kernel)", "N 4 H W"),
    "zero pads": ("t = Shape(x) r = Reshape(x, t) y = Pad(r, pads)", "N 6 H ?"),
    "broadcast": ("m = ReduceMean<axes=[1]>(x) t = Shape(x) e = Expand(m, t) y = Sub(x, e)", "N 6 H W"),
    "Transpose": ("t = Shape(x) r = Reshape(x, t) y = Transpose<perm=[3,0,2,1]>(r)", "W N H 6"),
    "Concat": ("t = Shape(x) r = Reshape(x, t) y = Concat<axis=1>(r, x)", "N 12 H W"),
    "a product": ("t = Shape(x) r = Reshape(x, t) y = MatMul(r, matrix)", "N 6 H 5"),
}
WEIGHTS: dict[str, Any] = {
    "rows": np.array([0, 6, -1]),
    "axis": np.array([1]),
    "minus": np.array([-1, -1, -1, -1]),
    "ones": np.array([1, 1, 1, 1]),
    "kernel": (4, 6, 3, 3),
    "pads": np.array([0, 0, 0, 1, 0, 0, 0, 1]),
    "matrix": (8, 5),
}


def _y(model: ir.Model) -> ir.Value:
    last = model.graph.outputs[0].producer()
    assert last is not None
    value = last.inputs[0]
    assert value is not None
    return value


@pytest.mark.parametrize(("body", "expected"), CASES.values(), ids=CASES)
def test_dimensions_get_names(body: str, expected: str) -> None:
    text = f"{IMAGE} {{ {body} z = Relu(y) }}".replace("H,W]", "H,8]" if "MatMul" in body else "H,W]", 1)
    model = ir.from_proto(build(text, opset=13, **{name: one for name, one in WEIGHTS.items() if name in body}))
    infer_shapes(model)
    shape = _y(model).shape
    assert shape is not None
    names = [str(dim) if isinstance(dim, int) else str(dim.value) for dim in shape]
    assert " ".join("?" if name == "None" or name.startswith("unk__") else name for name in names) == expected


def test_a_product_of_dimensions_is_one_name() -> None:
    extent = Extent.of(["W", 2, "H", "H", 3])
    assert extent is not None
    assert extent.dim == "6·H·H·W"
    assert Extent.of([extent.dim]) == extent
    assert Extent.of([2, 3]) == Extent(6, ())


def test_an_axis_that_is_made_twice_tells_no_dimensions() -> None:
    model = ir.from_proto(build(f"{IMAGE} {{ y = Unsqueeze(x, axes) z = Relu(y) }}", axes=np.array([1, 1])))
    infer_shapes(model)
    assert _y(model).shape is None

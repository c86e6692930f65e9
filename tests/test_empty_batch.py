"""Batches without elements, as the heads of detectors have where nothing was found: what ran before runs after."""

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]  # it ships no types
import pytest

import normfuse
from normfuse.target import Target
from tests.lowered import CENTRED, E, Lowered
from tests.lowered_elsewhere import WINDOW, WINDOW_WEIGHTS
from tests.parity import build, rules_of

AFFINE = "a = Add(v, e) r = Sqrt(a) n = Div(d, r) g = Mul(n, w) y = Add(g, c)"
CHANNELS = f"(float[N,6,18,18] x) => (float[N,6,18,18] y) {{ {CENTRED.format(axes='[1]')} {AFFINE} }}"
WHOLE = f"(float[N,6,4,4] x) => (float[N,6,4,4] y) {{ {CENTRED.format(axes='[1,2,3]')} {AFFINE} }}"
MAPS = f"(float[N,6,4,4] x) => (float[N,6,4,4] y) {{ {CENTRED.format(axes='[2,3]')} {AFFINE} }}"
GROUPS = (
    "(float[N,6,4,4] x) => (float[N,6,4,4] y) { r = Reshape(x, s) n = InstanceNormalization(r, one, zero)"
    " b = Reshape(n, t) g = Mul(b, w) y = Add(g, c) }"
)
SPELLED_GROUPS = GROUPS.replace(
    "n = InstanceNormalization(r, one, zero)",
    f"{CENTRED.format(axes='[2]').replace('(x', '(r')} a = Add(v, e) o = Sqrt(a) n = Div(d, o)",
)
ADAIN = (
    "(float[N,6,4,4] x, float[N,6,1,1] s, float[N,6,1,1] t) => (float[N,6,4,4] y)"
    " { n = InstanceNormalization(x, one, zero) g = Mul(n, s) y = Add(g, t) }"
)
PER_CHANNEL = {"w": (6, 1, 1), "c": (6, 1, 1)}
GROUP_WEIGHTS = PER_CHANNEL | {
    "s": np.array([0, 2, 48]),
    "t": np.array([0, 6, 4, 4]),
    "one": np.ones(2, np.float32),
    "zero": np.zeros(2, np.float32),
}

FORMS = (
    Lowered("channels-first-by-products", CHANNELS, "", weights=E | PER_CHANNEL),
    Lowered("norm-by-transposes", CHANNELS, "", "cuda", weights=E | PER_CHANNEL),
    Lowered("norm-by-instance-norm", WHOLE, "", weights=E | {"w": (6, 4, 1), "c": (6, 1, 1)}),
    Lowered("norm-by-instance-norm", GROUPS, "", weights=GROUP_WEIGHTS),
    Lowered("norm-by-instance-norm", SPELLED_GROUPS, "", "portable", weights=E | GROUP_WEIGHTS),
    Lowered("norm-by-layer-norm", GROUPS, "", threads=4, weights=GROUP_WEIGHTS),
    Lowered("norm-by-layer-norm", GROUPS, "", "cuda", opset=23, weights=GROUP_WEIGHTS),
    Lowered("instance-norm", MAPS, "", weights=E | PER_CHANNEL),
    Lowered("instance-norm", ADAIN, "", weights={"one": np.ones(6, np.float32), "zero": np.zeros(6, np.float32)}),
    Lowered(
        "lrn-by-conv",
        f"(float[N,6,4,4] x) => (float[N,6,4,4] y) {{ {WINDOW} }}",
        "",
        weights=WINDOW_WEIGHTS | {"s": np.array([0, 1, 6, 4, 4]), "t": np.array([0, 6, 4, 4])},
    ),
)


def shape_after(model: onnx.ModelProto, images: int) -> tuple[int, ...]:
    """The shape of the output for so many images, or what the runtime raises."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = {one.name: np.ones([images, *one.shape[1:]], np.float32) for one in session.get_inputs()}
    return tuple(session.run(None, feeds)[0].shape)


@pytest.mark.parametrize("item", FORMS, ids=str)
def test_it_runs_without_elements(item: Lowered) -> None:
    model = build(item.text, opset=item.opset, **item.weights)
    result = normfuse.optimize(model, Target(item.provider, item.threads), verify=False)
    assert item.rule in rules_of(result)
    for images in (0, 2):
        assert shape_after(result.model, images) == shape_after(model, images)
        assert shape_after(model, images)[0] == images


def test_what_is_not_known_is_inferred() -> None:
    """−1 stands for sizes that are dynamic, and any batch but an empty one runs."""
    item = replace(FORMS[0], text=CHANNELS.replace("18,18", "H,18"))
    result = normfuse.optimize(build(item.text, opset=17, **item.weights), Target("cpu", 1), verify=False)
    assert item.rule in rules_of(result)
    session = onnxruntime.InferenceSession(result.model.SerializeToString(), providers=["CPUExecutionProvider"])
    for height in (18, 20):
        assert session.run(None, {"x": np.ones((2, 6, height, 18), np.float32)})[0].shape == (2, 6, height, 18)

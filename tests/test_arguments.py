"""Arguments that cannot be meant are refused before anything is read, in one line that tells what may be given."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest

import normfuse
from normfuse.errors import NormfuseError
from normfuse.pytest_plugin import _assert_onnx_parity
from normfuse.reduction import reduce
from normfuse.target import Target


def net() -> onnx.ModelProto:
    """y = BatchNormalization(x)."""
    return onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 2, 3] x) => (float[N, 2, 3] y)
        <float[2] s = {1, 2}, float[2] b = {3, 4}, float[2] m = {5, 6}, float[2] v = {7, 8}>
        { y = BatchNormalization (x, s, b, m, v) }
    """)


ABSENT = "absent.onnx"
"""No file: who reads it before looking at the arguments fails with another error."""

APIS: dict[str, Callable[..., Any]] = {
    "optimize": lambda **given: normfuse.optimize(ABSENT, **given),
    "verify": lambda **given: normfuse.verify(ABSENT, ABSENT, **given),
    "inspect": lambda **given: normfuse.inspect(ABSENT, **given),
    "calibrate": lambda **given: normfuse.calibrate(ABSENT, [], **given),
    "export": lambda **given: normfuse.export(cast(Any, None), **given),
    "reduce": lambda **given: reduce(ABSENT, **given),
    "assert_onnx_parity": lambda **given: _assert_onnx_parity(ABSENT, ABSENT, **given),
}

Given = tuple[dict[str, Any], ...]
NO_DATA: tuple[Any, ...] = (5, b"x.npz", np.ones((2, 2)), {5: 5}, iter([{}]), [[5]])
DATA: Given = tuple({"data": wrong} for wrong in NO_DATA)
SHAPES = (
    {"shapes": {"x": "1x2"}},
    {"shapes": {"x": (1, "2")}},
    {"shapes": {"x": -1}},
    {"shapes": {"x": (1.5,)}},
    {"shapes": {"x": (True,)}},
    {"shapes": {0: (1, 2)}},
    {"shapes": [("x", (1, 2))]},
    {"shapes": "x=1x2"},
)
TARGETS = ({"target": "gpu"}, {"target": 5}, {"target": None}, {"target": ["cpu"]})
THREADS = ({"threads": 0}, {"threads": "2"}, {"threads": 1.5}, {"threads": True})
RULES = ({"select": "fold"}, {"ignore": "fold"}, {"select": [5]}, {"ignore": None}, {"ignore": ["fild"]})
OPSET = ({"opset": "x"}, {"opset": 0}, {"opset": 17.0}, {"opset": True})
BUDGETS = (-1, float("nan"), "60", None, True)
PROVIDERS = ({"provider": "gpu"}, {"provider": 5}, {"provider": ["cpu"]})
PROGRESS = ({"progress": True}, {"progress": "bar"})

WRONG: dict[str, Given] = {
    "optimize": (
        *(*DATA, *SHAPES, *TARGETS, *THREADS, *RULES, *OPSET),
        *({"verify_budget": one} for one in BUDGETS),
        *({"verify": "no"}, {"freeze": "no"}, {"tune": "yes"}, {"observers": print}, {"observers": [5]}),
    ),
    "verify": (
        *(*DATA, *SHAPES, *PROVIDERS, *PROGRESS),
        *({"budget": one} for one in BUDGETS),
        *({"seeds": 0}, {"seeds": 1.5}, {"seeds": "2"}),
    ),
    "inspect": (*DATA, *SHAPES, *TARGETS, *THREADS, *PROGRESS, {"profile": "no"}, {"layout": 3}),
    "calibrate": (
        *(*THREADS, *PROGRESS),
        *({"checkpoint": 5}, {"checkpoint": b"c.npz"}, {"scheduler": 5}),
    ),
    "export": (
        *(*DATA, *SHAPES, *TARGETS, *THREADS, *RULES, *OPSET, *PROGRESS),
        *({"verify_budget": one} for one in BUDGETS),
        *({"path": 5}, {"kwargs": [1]}, {"kwargs": {1: 2}}, {"input_names": "x"}, {"output_names": [1]}),
        *({"training": "no"}, {"optimize": "no"}, {"verify": "no"}, {"layers": "no"}, {"translations": [1]}),
    ),
    "reduce": (
        *(*DATA, *SHAPES, *TARGETS, *THREADS, *RULES, *OPSET, *PROVIDERS, *PROGRESS),
        *({"budget": one} for one in BUDGETS),
        *({"seeds": 0}, {"folder": 5}, {"freeze": "no"}),
    ),
    "assert_onnx_parity": (
        *(*DATA, *SHAPES, *PROVIDERS),
        *({"budget": one} for one in BUDGETS),
        *({"seeds": 0}, {"seeds": True}),
    ),
}


@pytest.mark.parametrize("api", APIS)
def test_what_cannot_be_meant_is_refused(api: str) -> None:
    for wrong in WRONG[api]:
        (name,) = wrong
        with pytest.raises(NormfuseError) as raised:
            APIS[api](**wrong)
        message = str(raised.value)
        assert ABSENT not in message, wrong
        assert name.rstrip("s") in message or "rule" in message, (wrong, message)
        assert "give" in message or "choose" in message or "did you mean" in message, (wrong, message)
        assert "\n" not in message
        assert len(message) < 250, message


def test_what_may_be_meant_is_taken() -> None:
    x = np.ones((2, 2, 3), np.float32)
    shapes: tuple[Any, ...] = ({"N": np.int64(2)}, {"x": [2, 2, 3]}, {"x": np.array([2, 2, 3])}, {})
    numbers: dict[str, Any] = {"budget": np.float32(5), "seeds": np.int64(1)}
    for given in shapes:
        assert normfuse.verify(net(), net(), shapes=given, **numbers).passed
    for data in ({"x": x}, [{"x": x}], ({"x": x.tolist()},), []):
        assert normfuse.verify(net(), net(), data=data, seeds=1).passed
    settings: dict[str, Any] = {"select": (), "ignore": {"lift"}, "opset": np.int64(17), "verify": np.bool_(False)}
    settings |= {"threads": np.int64(2), "tune": np.bool_(False)}
    result = normfuse.optimize(net(), Target("cpu", 1), **settings)
    assert result.report.parity is None


def test_layers_are_part_of_the_proof() -> None:
    with pytest.raises(NormfuseError, match="layers is part of the proof"):
        normfuse.export(cast(Any, None), layers=True, verify=False)


def test_arrays_that_are_none_are_refused(tmp_path: Path) -> None:
    for wrong in ("text", [[1, 2], [3]], object(), None):
        with pytest.raises(NormfuseError, match="input 'x'"):
            normfuse.verify(net(), net(), data={"x": wrong})
    (tmp_path / "x.npz").write_bytes(b"PK\x03\x04 nothing")
    (tmp_path / "empty.npz").touch()
    np.save(tmp_path / "x.npy", np.ones(3))
    for name in ("x.npz", "empty.npz", "x.npy", "absent.npz"):
        with pytest.raises(NormfuseError, match=name):
            normfuse.verify(net(), net(), data=tmp_path / name)


def test_targets_that_are_none_cannot_be_made() -> None:
    wrongs: tuple[dict[str, Any], ...] = ({"provider": "gpu"}, {"threads": 0}, {"threads": "2"})
    for wrong in wrongs:
        with pytest.raises(NormfuseError):
            Target(**wrong)
    with pytest.raises(NormfuseError, match="threads"):
        Target.parse(Target("cpu", 2), 0)


def test_places_that_are_none_are_refused() -> None:
    for place in (5, b"m.onnx", None):
        with pytest.raises(NormfuseError, match="path"):
            normfuse.save(net(), place)  # type: ignore[arg-type]  # that is the point

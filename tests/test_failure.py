"""What a failing parity test prints: a row for each output, the worst elements, and never more than a screen."""

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import pytest

from normfuse import verification
from normfuse.failure import NOTES, ROWS, told
from normfuse.metric import OutputParity
from normfuse.verification import Parity, verify
from normfuse.worst import SHOWN, Worst


def model(body: str, shape: str = "N,4", **tensors: Any) -> onnx.ModelProto:
    text = f'<ir_version: 8, opset_import: ["" : 17]> g (float[{shape}] x) => (float[{shape}] y) {{ {body} }}'
    proto = onnx.parser.parse_model(text)
    for name, value in tensors.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
    return proto


def scaled(*factors: float) -> onnx.ModelProto:
    return model("y = Mul (x, s)", s=np.array(factors, np.float32))


def test_the_worst_element_is_found_with_its_index_seed_and_values() -> None:
    data = {"x": np.array([[1, 2, 3, 4], [5, 6, -7, 8]], np.float32)}
    parity = verify(scaled(1, 1, 1, 1), scaled(1, 1, 1.5, 1), data=data, shapes={"N": 3}, seeds=2)
    assert not parity.passed
    assert [(worst.output, worst.level) for worst in parity.worst] == [("y", "disabled"), ("y", "enabled")]
    for worst, output in zip(parity.worst, parity.outputs, strict=True):
        assert worst.family == output.family
        assert worst.seed in (0, 1)
        assert worst.index[1] == 2  # the only column that differs
        assert worst.candidate == pytest.approx(1.5 * worst.reference)
        assert worst.oracle == pytest.approx(worst.reference, rel=1e-6)
    assert parity.to_dict()["worst"][0]["index"] == list(parity.worst[0].index)


def test_the_largest_of_all_seeds_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each probe of the worst family is run again; the element is the furthest off in units of its own output."""
    drawn = verify(scaled(1, 1, 1, 1), scaled(1, 1, 1.5, 1), seeds=3).worst[0]
    assert drawn.family
    shares = []
    for seed in range(3):
        seen = verification.verify(scaled(1, 1, 1, 1), scaled(1, 1, 1.5, 1), seeds=seed + 1).worst[0]
        shares.append(seen.seed)
    assert shares == sorted(shares)  # a later seed takes over only where it is worse
    assert drawn.seed == shares[-1]


def test_nan_where_there_should_be_none_is_the_worst() -> None:
    data = {"x": np.array([[1, 2, -3, 4e4]], np.float32)}
    before, after = model("z = Abs (x)  y = Sqrt (z)"), model("y = Sqrt (x)")
    parity = verify(before, after, data=data, seeds=1)
    worst = parity.worst[0]
    assert np.isnan(worst.candidate)
    assert worst.reference > 0
    assert parity.to_dict()["worst"][0]["candidate"] is None
    assert "nan" in told(parity, "a.onnx", "b.onnx")


def test_integers_have_a_worst_element_too() -> None:
    text = (
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N,4] x) => (int64[N,4] y) { a = OP(x)  y = Cast <to=7> (a) }'
    )
    before, after = (onnx.parser.parse_model(text.replace("OP", name)) for name in ("Floor", "Ceil"))
    parity = verify(before, after, seeds=1)
    assert not parity.passed
    assert parity.worst[0].candidate == parity.worst[0].reference + 1


def test_shapes_that_differ_have_none() -> None:
    before = model("y = Add (x, x)", "2,2")
    after = model("a = Add (x, x)  y = Reshape (a, s)", "2,2", s=np.array([4, 1], np.int64))
    after.graph.output[0].type.tensor_type.ClearField("shape")
    parity = verify(before, after, seeds=1)
    assert not parity.passed
    assert parity.worst == ()
    assert "worst of" not in told(parity, "a.onnx", "b.onnx")


def test_what_passes_has_none() -> None:
    assert verify(scaled(1, 2, 3, 4), scaled(1, 2, 3, 4), seeds=1).worst == ()


def row(name: str, passed: bool) -> OutputParity:
    return OutputParity(name, "float32", ((1, 3),), "disabled", 1e-7, 5e-7, 5.0, "mean 30", 6.0, 1.0, passed)


def test_the_table_shows_what_there_is_to_know() -> None:
    worst = Worst("y", "disabled", "mean 30", 1, (0, 17), 1.25, 1.5, 1.2500000001)
    parity = Parity(False, 5.0, (row("a", True), row("y", False)), reason="because", probes=20, worst=(worst,))
    lines = told(parity, "a.onnx", b"12").splitlines()
    assert lines[0] == "parity FAILED: because"
    assert " ".join(lines[4].split()) == (
        "output optimizer E reference E candidate ratio ≤ 2 channel ≤ 4 bits lost probes"
    )
    assert lines[5].split() == ["y", "disabled", "1.0e-07", "5.0e-07", "5", "6", "2.3", "mean", "30", "FAILED"]
    assert lines[6].split()[0] == "a"
    place = next(index for index, line in enumerate(lines) if "worst of" in line)
    assert lines[place + 1].split() == ["y", "disabled", "[0,", "17]", "1.25", "1.5", "1.2500000001", "mean", "30", "1"]
    unknown = replace(worst, oracle=None)
    assert "not known" in told(replace(parity, worst=(unknown,), judged_by="noise"), "a.onnx", b"12")


def test_it_is_never_longer_than_a_screen() -> None:
    outputs = tuple(row(f"y{i}", i % 3 == 0) for i in range(40))
    elements = tuple(Worst(f"y{i}", "disabled", "mean 30", 1, (0, i), 1.0, 2.0, 1.5) for i in range(SHOWN))
    notes = tuple(f"note {i}" for i in range(9))
    text = told(Parity(False, 5.0, outputs, notes, reason="because", worst=elements), "a.onnx", "b.onnx")
    assert len(text.splitlines()) < 25
    assert f"… and {40 - ROWS} more rows" in text
    assert f"… and {9 - NOTES} more notes" in text
    assert "passed" not in text  # what failed stands first

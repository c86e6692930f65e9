"""scripts.bench lowerings: its cases are what they say, and its tables hold every form. No assertion on the clock."""

import json

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]  # it ships no types
import pytest

from normfuse.target import Target
from scripts import bench
from scripts.bench_lowerings import EAGER, OURS, RAW, Row, Table, forms
from scripts.cases import (
    Case,
    adain,
    batch_norm,
    cases,
    channels_first,
    group_norm,
    instance_norm,
    layer_norm,
    local_response,
    rms_norm,
)

SMALL = (
    group_norm((2, 8, 4, 4), 4),
    group_norm((2, 8, 4, 4), 4, silu=True),
    group_norm((1, 8, 4, 4), 4, op=True),
    instance_norm((2, 4, 5, 5)),
    adain((2, 4, 5, 5)),
    local_response((2, 8, 5, 5)),
    local_response((1, 8, 5, 5), op=True),
    layer_norm((1, 4, 16)),
    layer_norm((1, 4, 16), "i = Reciprocal(o) n = Mul(d, i) g = Mul(n, w)"),
    layer_norm((1, 4, 16), residual=True),
    channels_first((1, 8, 4, 4)),
    channels_first((1, 8, 4, 4), turned=True),
    rms_norm((1, 4, 16), "Llama"),
    rms_norm((1, 4, 16), "T5"),
    rms_norm((1, 4, 16), "T5", dtype="float16"),
    rms_norm((1, 4, 16), "Llama", opset=23),
    batch_norm((1, 4, 5, 5)),
)


def test_names_are_unique() -> None:
    names = [case.name for case in cases()]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_a_case_and_its_forms_compute_what_torch_does(case: Case) -> None:
    torch = pytest.importorskip("torch")
    feed = case.inputs_from(np.random.default_rng(0))
    assert case.eager is not None
    tensors = {name: torch.from_numpy(one) for name, one in {**case.arrays(), **feed}.items()}
    wanted = case.eager(torch, tensors).numpy()
    models, _ = forms(case, Target("cpu", 1))
    assert {RAW, OURS} <= models.keys()
    for name, model in models.items():
        if name == RAW:
            onnx.checker.check_model(model)
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        tolerance = 1e-2 if case.dtype == "float16" else 2e-5
        np.testing.assert_allclose(session.run(None, feed)[0], wanted, rtol=tolerance, atol=tolerance, err_msg=name)


def test_a_fault_is_what_the_quartiles_show() -> None:
    def row(name: str, ratio: float, third: float) -> Row:
        return Row(name, ratio, (ratio, ratio), ratio, (ratio, third))

    ours = row(OURS, 1.0, 1.0)
    assert not list(
        Table("norm", 1, (), (row(RAW, 0.9, 1.1), ours, row("other", 0.8, 1.0), row(EAGER, 0.1, 0.1))).faults
    )
    slower, worse = Table("norm", 1, (), (row(RAW, 0.5, 0.6), ours, row("other", 0.8, 0.85))).faults
    assert slower == "slower than as exported: 2.00×"
    assert worse == "1.25× the time of other"


def test_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    bench.main(["lowerings", "GroupNorm 1×32×8×8", "--threads", "1", "--rounds", "2", "--seconds", "0.1", "--json"])
    content = json.loads(capsys.readouterr().out)
    assert content["schema_version"] == 1
    assert content["device"]
    (table,) = content["cases"]
    assert {RAW, OURS, EAGER} <= {row["name"] for row in table["rows"]}
    assert table["used"]


def test_prints_a_table_and_the_faults(capsys: pytest.CaptureFixture[str]) -> None:
    bench.main(["lowerings", "RMSNorm T5 1×1×512", "--threads", "1", "--rounds", "2", "--seconds", "0.1"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("RMSNorm T5 1×1×512, 1 thread: ")
    assert "faults in 1 tables" in "".join(lines)


def test_a_case_that_is_not_there() -> None:
    with pytest.raises(SystemExit):
        bench.main(["lowerings", "SoftmaxNorm"])

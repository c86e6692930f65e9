"""What torch's exporters write of a normalization is found: one export of each module, of every way in turn.

`python -m scripts.exporters` takes all ways, and proves what is written for each target.
"""

import pytest

torch = pytest.importorskip("torch")
onnxruntime = pytest.importorskip("onnxruntime")

from models.normalizations import NORMALIZATIONS, Normalization  # noqa: E402  # nothing here can run without torch
from scripts.exporters import WAYS, look  # noqa: E402

TRACED = [way for way in WAYS if way.exporter == "torchscript"]
PROVED = ("adain-linear", "group-norm-reshaped", "head-layer-norm", "local-response-even", "rms-norm-t5-half")
EXPORTED = ("adain", "instance-norm-var-mean", "rms-norm-hugging-face-half", "local-response")
"""Exported by torch.export, too; the others by tracing only, which is quick."""


@pytest.mark.parametrize("subject", NORMALIZATIONS, ids=lambda subject: subject.entry.name)
def test_it_is_found_where_it_is_traced(subject: Normalization) -> None:
    start = NORMALIZATIONS.index(subject)
    for step in range(len(TRACED)):
        way = TRACED[(start + step) % len(TRACED)]
        outcome = look(subject, way, ("cpu",) if subject.entry.name in PROVED else ())
        if outcome is not None:
            assert outcome.is_right, str(outcome)
            return
    assert subject.entry.name in ("rms-norm", "head-rms-norm"), "tracing exports all but torch.nn.RMSNorm"


@pytest.mark.parametrize("name", EXPORTED)
def test_it_is_found_where_it_is_exported(name: str) -> None:
    subject = next(item for item in NORMALIZATIONS if item.entry.name == name)
    way = [way for way in WAYS if way.exporter == "dynamo" and way.dynamic][EXPORTED.index(name)]
    outcome = look(subject, way, ())
    assert outcome is not None
    assert outcome.is_right, str(outcome)

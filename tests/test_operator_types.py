"""Floats that operators do not take, by opset."""

import onnx.defs
import onnx_ir as ir
import pytest

from normfuse.errors import TargetError
from normfuse.operator_types import Misfit, misfit
from normfuse.verification import verify

CONV = '<ir_version: 10, opset_import: ["": {opset}]> g ({dtype}[1, 2, 4] x, {dtype}[2, 2, 3] w) => (y) {{ {body} }}'


def model(opset: int, dtype: str, body: str = "y = Conv (x, w)") -> ir.Model:
    text = CONV.format(opset=opset, dtype=dtype, body=body).replace("=> (y)", f"=> ({dtype}[a, b, c] y)")
    return ir.from_onnx_text(text)


@pytest.mark.parametrize(("opset", "dtype"), [(22, "bfloat16"), (20, "float16"), (20, "double"), (11, "float")])
def test_what_fits(opset: int, dtype: str) -> None:
    assert misfit(model(opset, dtype)) is None


def test_what_does_not() -> None:
    found = misfit(model(20, "bfloat16"))
    assert found == Misfit("Conv", "", "bfloat16", 20, 22)
    assert str(found) == "opset 20 has no Conv of bfloat16"


def test_types_that_nobody_states_are_inferred() -> None:
    found = misfit(model(20, "bfloat16", "z = Add (x, x) y = Softplus (z)"))
    assert found is not None
    assert (found.operator, found.since) == ("Softplus", 22)


def test_no_opset_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx.defs, "onnx_opset_version", lambda: 23)
    found = misfit(model(22, "bfloat16", "y = Celu (x)"))
    assert found is not None
    assert found.since is None


def test_the_inputs_of_a_variadic_operator_are_of_one_kind() -> None:
    assert misfit(model(18, "bfloat16", "y = Concat <axis = 0> (x, x, x)")) is None


@pytest.mark.parametrize("provider", ["cpu", "cuda"])
def test_an_invalid_model_is_not_judged_for_want_of_kernels(provider: str) -> None:
    pytest.importorskip("onnxruntime")
    invalid = model(20, "bfloat16")
    with pytest.raises(TargetError, match=r"Type 'tensor\(bfloat16\)'|opset 20 has no Conv of bfloat16"):
        verify(invalid, invalid.clone(), provider=provider, stand_in=True, budget=1)

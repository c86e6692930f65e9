"""A pytest plugin: the fixture `assert_onnx_parity`, there in every test run where normfuse is installed.

Parity tests::

    def test_the_quick_model_computes_what_the_exported_one_computes(assert_onnx_parity):
        assert_onnx_parity("net.onnx", "net.fast.onnx")


    def test_the_exported_model_computes_what_the_module_computes(assert_onnx_parity):
        module, x = Net(), torch.randn(2, 3, 32, 32)
        assert_onnx_parity(module, torch.onnx.export(module.eval(), (x,)), inputs=(x,))

Only pytest is imported with this module: what a test needs is imported when it runs.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    from normfuse.verification import Parity


class AssertOnnxParity(Protocol):
    """What the fixture `assert_onnx_parity` gives."""

    def __call__(
        self,
        reference: Any,
        candidate: Any,
        *,
        data: Any = None,
        inputs: Any = None,
        shapes: Mapping[str, Sequence[int] | int] | None = None,
        seeds: int = 2,
        provider: str = "cpu",
        budget: float = 60.0,
    ) -> "Parity":
        """Asserts that a candidate computes what a reference computes; see `assert_onnx_parity`."""


@pytest.fixture(scope="session")
def assert_onnx_parity() -> AssertOnnxParity:
    """Asserts that a model computes what another one computes.

    Both are run on inputs that tell near-equal formulas apart, and each is compared with the reference in float64: the
    candidate may lose one bit of accuracy against the reference, no more, whatever that itself loses. `normfuse verify`
    judges in the same way; no tolerance is to be chosen. Where a module and an ONNX model are compared, two libraries
    run them, which add up in other orders: then the formula may lose one bit, no more, and what the candidate's library
    rounds besides may not exceed the ceiling of the dtype (1e-4 for float32); a note says how much that is.

    It is called as assert_onnx_parity(reference, candidate, ...) with:

    * reference, candidate: the model as it was and as it became, in any mix of a path, bytes, an `onnx.ModelProto`, an
      `onnx_ir.Model`, a `torch.onnx.ONNXProgram` and a `torch.nn.Module`. A module stays as it is: what runs are deep
      copies in eval mode, one in its own types and, where it is the reference, one in float64. Its nested outputs are
      taken in the order in which `torch.onnx.export` makes them outputs.
    * data: inputs to judge on besides the probes: an .npz file, arrays by input name, or several of these.
    * inputs: one more of these, as `torch.onnx.export` takes it: an array or tensor, a tuple of positional or a dict of
      keyword arguments, nested as a module wants them. Two modules need it: there names, types and shapes are those of
      the arrays in it. With an ONNX model on one side names, types and shapes are those of that model, and a module
      without `inputs` is called by its parameters' names where these are the model's inputs, else by place.
    * shapes: shapes by input name, or sizes by the name of a dynamic dimension; by default sizes are tried out.
    * seeds: how often each kind of probe is drawn; 2 by default.
    * provider: "cpu", or "cuda", where nothing may fall back to the CPU. Modules run where they are.
    * budget: seconds that float64 may take; the noise of the reference judges what it leaves. 60 by default.

    It returns the `normfuse.Parity`: .ratio, .bits_lost, .outputs, .notes.

    Raises:
        AssertionError: the candidate does not compute what the reference computes. The message tells for each output
            the errors of both, their ratio, the bits that are lost and the worst probes, and for those that failed the
            worst element: its index, what each side and float64 make of it, the seed and family of the probe.
        NormfuseError: it could not be judged: no model, no inputs, no such provider.
    """
    return _assert_onnx_parity


def _assert_onnx_parity(
    reference: Any,
    candidate: Any,
    *,
    data: Any = None,
    inputs: Any = None,
    shapes: Mapping[str, Sequence[int] | int] | None = None,
    seeds: int = 2,
    provider: str = "cpu",
    budget: float = 60.0,
) -> "Parity":
    __tracebackhide__ = True
    from normfuse import verification
    from normfuse.arguments import check
    from normfuse.contestants import contestants
    from normfuse.errors import NormfuseError, ParityError
    from normfuse.failure import sides, told

    check(data=data, shapes=shapes, seeds=seeds, provider=provider, budget=budget)
    try:
        both, example = contestants(reference, candidate, inputs)
        own = [*([] if data is None else [data]), *example] or None
        parity = verification.verify(*both, data=own, shapes=shapes, seeds=seeds, provider=provider, budget=budget)
    except ParityError as difference:
        raise AssertionError("\n".join([f"parity FAILED: {difference}", *sides(reference, candidate)])) from None
    except NormfuseError as error:
        raise error.with_traceback(None) from None
    if not parity.passed:
        raise AssertionError(told(parity, reference, candidate))
    return parity

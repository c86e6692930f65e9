"""A pytest plugin: the fixture `assert_onnx_parity`, there in every test run where normfuse is installed.

Parity tests::

    def test_the_quick_model_computes_what_the_exported_one_computes(assert_onnx_parity):
        assert_onnx_parity("net.onnx", "net.fast.onnx")


    def test_the_exported_model_computes_what_the_module_computes(assert_onnx_parity):
        module, x = Net(), torch.randn(2, 3, 32, 32)
        assert_onnx_parity(module, torch.onnx.export(module.eval(), (x,)), inputs=(x,))

Only pytest is imported with this module: what a test needs is imported when it runs.
"""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    from normfuse.metric import OutputParity
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
    judges in the same way; no tolerance is to be chosen.

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
            the errors of both, their ratio, the bits that are lost and the worst probes.
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
    from normfuse.contestants import contestants
    from normfuse.errors import NormfuseError, ParityError

    if provider not in ("cpu", "cuda"):
        raise NormfuseError(f"there is no provider {provider!r}; choose 'cpu' or 'cuda'")
    if isinstance(seeds, bool) or not isinstance(seeds, int) or seeds < 1:
        raise NormfuseError(f"seeds is {seeds!r}, no number from 1")
    if not budget >= 0:
        raise NormfuseError(f"budget is {budget!r}, no number of seconds")
    try:
        sides, example = contestants(reference, candidate, inputs)
        own = [*([] if data is None else [data]), *example] or None
        parity = verification.verify(*sides, data=own, shapes=shapes, seeds=seeds, provider=provider, budget=budget)
    except ParityError as difference:
        raise AssertionError(f"parity FAILED: {difference}\n{_sides(reference, candidate)}") from None
    except NormfuseError as error:
        raise error.with_traceback(None) from None
    if not parity.passed:
        raise AssertionError(told(parity, reference, candidate))
    return parity


def told(parity: "Parity", reference: Any, candidate: Any) -> str:
    """Why a parity failed, for people: the verdict, both sides, each output, what was judged, what to do next.

    Args:
        parity: the verdict.
        reference: the model as it was.
        candidate: the model as it became.
    """
    judge = {"oracle": "the reference in float64", "noise": "the reference's own noise"}[parity.judged_by]
    lines = [f"parity FAILED: {parity.reason}", _sides(reference, candidate)]
    if parity.outputs:
        lines += ["", *_table([_head(), *map(_row, parity.outputs)]), ""]
        lines.append(f"  judged by {judge} on {parity.probes} probes; a ratio of 2, which is one bit, passes")
    lines += [f"  note: {note}" for note in parity.notes]
    if _is_file(reference) and _is_file(candidate):
        lines.append(f"  next: normfuse reduce {os.fspath(reference)} {os.fspath(candidate)}")
        lines.append("        finds the first value that differs, and the smallest part of the model that shows it")
    else:
        lines.append(
            "  next: save both as files; normfuse reduce REFERENCE CANDIDATE finds the first value that differs"
        )
    return "\n".join(lines)


def _sides(reference: Any, candidate: Any) -> str:
    return f"  reference: {_side(reference)}\n  candidate: {_side(candidate)}"


def _side(source: Any) -> str:
    """What a side is, in a few words."""
    if _is_file(source):
        return str(os.fspath(source))
    kind = type(source)
    if kind is bytes:
        return f"{len(source):,} bytes"
    return f"{kind.__module__.partition('.')[0]} {kind.__name__}"


def _is_file(source: Any) -> bool:
    return isinstance(source, str | os.PathLike)


def _head() -> tuple[str, ...]:
    return "output", "optimizer", "E reference", "E candidate", "ratio", "bits lost", "worst probes", ""


def _row(output: "OutputParity") -> tuple[str, ...]:
    import math

    lost = math.log2(output.ratio) if output.ratio > 1 else 0.0
    return (
        output.name,
        output.level,
        f"{output.reference:.1e}",
        f"{output.candidate:.1e}",
        f"{output.ratio:.3g}",
        f"{lost:.1f}",
        output.family or "any",
        "passed" if output.passed else "FAILED",
    )


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]

"""A pytest plugin: the fixture `assert_onnx_parity`, there in every test run where normfuse is installed.

A parity test::

    def test_the_quick_model_computes_what_the_exported_one_computes(assert_onnx_parity):
        assert_onnx_parity("net.onnx", "net.fast.onnx")

Only pytest is imported with this module: what a test needs is imported when it runs.
"""

import os
import sys
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
      `onnx_ir.Model` and a `torch.onnx.ONNXProgram`.
    * data: inputs to judge on besides the probes: an .npz file, arrays by input name, or several of these.
    * shapes: shapes by input name, or sizes by the name of a dynamic dimension; by default sizes are tried out.
    * seeds: how often each kind of probe is drawn; 2 by default.
    * provider: "cpu", or "cuda", where nothing may fall back to the CPU.
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
    shapes: Mapping[str, Sequence[int] | int] | None = None,
    seeds: int = 2,
    provider: str = "cpu",
    budget: float = 60.0,
) -> "Parity":
    __tracebackhide__ = True
    from normfuse import verification
    from normfuse.errors import NormfuseError

    for source in (reference, candidate):
        _require_onnx(source)
    if provider not in ("cpu", "cuda"):
        raise NormfuseError(f"there is no provider {provider!r}; choose 'cpu' or 'cuda'")
    if isinstance(seeds, bool) or not isinstance(seeds, int) or seeds < 1:
        raise NormfuseError(f"seeds is {seeds!r}, no number from 1")
    if not budget >= 0:
        raise NormfuseError(f"budget is {budget!r}, no number of seconds")
    try:
        parity = verification.verify(
            reference, candidate, data=data, shapes=shapes, seeds=seeds, provider=provider, budget=budget
        )
    except NormfuseError as error:
        raise error.with_traceback(None) from None
    if not parity.passed:
        raise AssertionError(told(parity, reference, candidate))
    return parity


def _require_onnx(source: Any) -> None:
    """Lets what can be read as an ONNX model pass, and tells those who have a torch module what to do."""
    __tracebackhide__ = True
    from normfuse.errors import NormfuseError

    torch = sys.modules.get("torch")
    if torch is not None and isinstance(source, torch.nn.Module):
        raise NormfuseError(
            f"{type(source).__name__} is a torch module, no ONNX model; export it with torch.onnx.export(...), which "
            "returns a program that can be given here"
        )


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

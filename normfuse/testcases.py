"""A verification as test cases, for those who read test results: JUnit XML (`normfuse.junit`), GitHub.

============ ====================================================================
case         what it is
============ ====================================================================
parity       a row of the proof: one output at one optimization level
models       the two as a whole, where no row is to blame: they differ in their
             inputs or outputs, or nothing could be judged
certificate  a change, by its certificate on file, judged anew
certificates that these lead, step by step, from the one model to the other
verify       that the verification could not be made: its error
============ ====================================================================

What was not judged is a case that was skipped. Rows are judged together, and so are certificates: each is given an
equal share of the time, and the sum is the time that it took.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from normfuse.certificates import Recheck, Renewed
    from normfuse.metric import OutputParity
    from normfuse.verification import Parity

Outcome = Literal["passed", "failed", "error", "skipped"]

_OUTCOMES: dict[str, Outcome] = {"passed": "passed", "failed": "failed", "not judged": "skipped"}


@dataclass(frozen=True, slots=True)
class Case:
    """A test case.

    Attributes:
        kind: `parity`, `models`, `certificate`, `certificates` or `verify`.
        name: what was judged.
        outcome: what became of it.
        message: why it did not pass, in one line; empty where it did.
        text: the figures.
        seconds: what it took.
    """

    kind: str
    name: str
    outcome: Outcome
    message: str = ""
    text: str = ""
    seconds: float = 0.0


def of_parity(parity: "Parity", provider: str, seconds: float) -> list[Case]:
    """The cases of a proof.

    Args:
        parity: the verdict.
        provider: where both models ran.
        seconds: what the verification took.
    """
    skipped = [note for note in parity.notes if note.startswith("not judged ")]
    share = seconds / max(1, len(parity.outputs))
    cases = [_row(output, parity, provider, share) for output in parity.outputs]
    blamed = any(not output.passed for output in parity.outputs)
    if not cases or (not parity.passed and not blamed):
        outcome: Outcome = "passed" if parity.passed else "failed"
        cases.append(Case("models", "the models", outcome, parity.reason, str(parity), 0.0 if cases else seconds))
    return [*cases, *(Case("parity", note.partition(":")[0], "skipped", note) for note in skipped)]


def of_certificates(found: "Recheck", seconds: float) -> list[Case]:
    """The cases of a file of certificates: one for each, in the order of its changes, and one for the whole.

    Args:
        found: what became of them.
        seconds: what that took.
    """
    share = seconds / (len(found.renewed) + 1)
    cases = [
        # one rule may change the same nodes more than once, and names of cases must differ
        Case("certificate", f"{number}: {one.name}", _OUTCOMES[one.outcome], one.reason, _figures(one), share)
        for number, one in enumerate(found.renewed, 1)
    ]
    outcome: Outcome = "failed" if found.whole else "passed"
    return [*cases, Case("certificates", "the steps", outcome, found.whole, str(found), share)]


def _figures(one: "Renewed") -> str:
    named = (f"{ratio:.4g} {when}" for ratio, when in zip(one.ratios, ("on file", "made anew"), strict=False))
    return f"rule {one.rule} on {', '.join(one.nodes)}\nworst error ratio {', '.join(named)}; at most 2 passes"


def of_error(error: BaseException, seconds: float) -> Case:
    """The case of a verification that could not be made.

    Args:
        error: why.
        seconds: what was spent on it.
    """
    message = str(error) or type(error).__name__
    return Case("verify", "the verification", "error", message, f"{type(error).__name__}: {error}", seconds)


def _row(output: "OutputParity", parity: "Parity", provider: str, seconds: float) -> Case:
    text = (
        f"output {output.name} {output.dtype} on {provider}, optimizer {output.level}\n"
        f"E of the candidate {output.candidate:.3e}, of the reference {output.reference:.3e}\n"
        f"ratio {output.ratio:.4g}, of the worst channel {output.channel_ratio:.4g}; "
        f"most on {output.family or 'any'!r}\n"
        f"judged by {parity.judged_by} on {parity.probes} probes"
    )
    text += "".join(
        f"\nworst element: {worst}"
        for worst in parity.worst
        if (worst.output, worst.level) == (output.name, output.level)
    )
    outcome: Outcome = "passed" if output.passed else "failed"
    return Case("parity", f"{output.name} [{provider}, {output.level}]", outcome, output.reason, text, seconds)

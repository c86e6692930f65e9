"""Plants a bug, rewrites a model with it, and looks who notices: `examine`.

A bug is planted by patching what the passes look up (a row of a rule table, a function of theirs) for as long as one
model is rewritten. What judges is not touched: the parts are cut out, run and compared as in any run of `optimize`.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal
from unittest.mock import patch

import numpy as np
import onnx
import onnx_ir as ir

from normfuse.certificates import fingerprint
from normfuse.certification import Certifier
from normfuse.errors import NormfuseError
from normfuse.metric import PRECISIONS
from normfuse.model import load
from normfuse.oracle import Oracle, OracleError
from normfuse.pipeline import rewrite
from normfuse.ports import inputs_of
from normfuse.probes import plan
from normfuse.report import Certificate
from normfuse.target import Target
from normfuse.verification import verify

Patches = Mapping[tuple[Any, str], Any]
"""What takes the place of an attribute of a module or class."""

Plant = Callable[[], Patches]
"""Makes the patches of a bug."""

CPU = Target("cpu", 1)

_SCALES = (1e-4, 1e-2, 1.0, 30.0)
"""Standard deviations of the inputs on which a survivor is compared with what it should be, in float64."""


@dataclass(frozen=True)
class Subject:
    """A model that exercises a rule.

    Attributes:
        rule: the row.
        what: the case in words.
        make: builds the model.
        target: what it is rewritten for.
        ignore: rules that are not used.
        opset: what it is raised to.
    """

    rule: str
    what: str
    make: Callable[[], onnx.ModelProto]
    target: Target = CPU
    ignore: tuple[str, ...] = ()
    opset: int | None = None

    @property
    def key(self) -> tuple[str, str, str, int]:
        """What tells it from other subjects."""
        return self.rule, self.what, self.target.provider, self.target.threads


@dataclass(frozen=True)
class Mutant:
    """A bug in a rule, and a model that it spoils.

    Attributes:
        rule: the row that it is planted into, or the stage.
        bug: what is wrong, in words.
        subject: the model.
        plant: makes the patches.
        must: whether it must be caught: it is known to be wrong. The others are made by a scheme, and may change
            nothing in this model.
    """

    rule: str
    bug: str
    subject: Subject
    plant: Plant
    must: bool = False

    def __str__(self) -> str:
        return f"{self.rule}: {self.bug} ({self.subject.what}, {self.subject.target.provider})"


Fate = Literal["caught", "survived", "harmless", "idle", "refused"]


@dataclass(frozen=True, slots=True)
class Examined:
    """What became of a mutant.

    Attributes:
        fate: `caught` by a certificate, or by the proof of the whole model where none covers the change; `survived`;
            `harmless`: other nodes or weights that compute the same in float64; `idle`: the result is that without the
            bug; `refused`: the pass itself gave up.
        family: the probe family that showed it most; `shape` where an output had another shape, `surroundings` where
            something outside of the part had changed, `whole model` where only the proof of that showed it, `runtime`
            where ONNX Runtime did not take it.
        ratio: of that certificate.
        whole: whether the proof of the whole model fails, too; None where it was not asked.
        reason: of the certificate that failed, or of the pass.
    """

    fate: Fate
    family: str = ""
    ratio: float = 0.0
    whole: bool | None = None
    reason: str = ""


@contextmanager
def planted(patches: Patches) -> Iterator[None]:
    """Puts patches in place, and takes them away."""
    with ExitStack() as stack:
        for (owner, name), value in patches.items():
            stack.enter_context(patch.object(owner, name, value))
        yield


class NoBaselineError(Exception):
    """Without a bug, a certificate of the subject fails already."""


@lru_cache(maxsize=4)
def _sound(subject: Subject) -> tuple[ir.Model, ir.Model, str]:
    """The model, what becomes of it without a bug, and the fingerprint of that.

    Raises:
        NoBaselineError: a certificate fails without a bug.
    """
    original = load(subject.make())
    model, certificates = _rewritten(original, subject)
    for one in certificates:
        if one.verdict == "failed":
            raise NoBaselineError(f"{subject.rule}, {subject.what}: {one.rule} fails without a bug: {one.reason}")
    return original, model, fingerprint(model)


def _rewritten(original: ir.Model, subject: Subject) -> tuple[ir.Model, list[Certificate]]:
    certifier = Certifier({}, provider=subject.target.provider)
    model = original.clone()
    rewrite(model, subject.target, journal=certifier, ignore=subject.ignore, opset=subject.opset)
    return model, certifier.certificates


def examine(mutant: Mutant, whole: bool = True) -> Examined:
    """Rewrites the model of a mutant with its bug, each change judged.

    Args:
        mutant: the mutant.
        whole: whether to ask for the proof of the whole model, too.

    Raises:
        NoBaselineError: a certificate fails without the bug.
    """
    subject = mutant.subject
    original, sound, healthy = _sound(subject)
    try:
        with planted(mutant.plant()):
            model, certificates = _rewritten(original, subject)
    except Exception as error:  # whatever a bug makes a pass raise: no model is written
        return Examined("refused", reason=f"{type(error).__name__}: {error}")
    failed = max((one for one in certificates if one.verdict == "failed"), key=lambda one: one.ratio, default=None)
    if failed is not None:
        noticed = _whole_fails(original, model, subject) if whole else None
        return Examined("caught", _shown_by(failed), failed.ratio, noticed, failed.reason)
    if fingerprint(model) == healthy:
        return Examined("idle")
    if not mutant.must and not _is_wrong(original, sound, model):
        return Examined("harmless")
    noticed = _whole_fails(original, model, subject) if whole or not certificates else None
    if noticed and not any(one.rule == mutant.rule for one in certificates):
        return Examined("caught", "whole model", 0.0, noticed)
    reasons = "; ".join(f"{one.rule} {one.verdict} {one.ratio:.2g} {one.reason}".strip() for one in certificates)
    return Examined("survived", "", 0.0, noticed, reasons)


def _shown_by(failed: Certificate) -> str:
    """What showed that a change is wrong."""
    if failed.reason.startswith(("it changed ", "what read one value ")):
        return "surroundings"
    if "does not take what was written" in failed.reason:
        return "runtime"
    if "(probes '" in failed.reason:
        return failed.reason.rpartition("(probes '")[2].partition("'")[0]
    return failed.family or "shape"


def _whole_fails(original: ir.Model, model: ir.Model, subject: Subject) -> bool:
    try:
        return not verify(original, model, provider=subject.target.provider, stand_in=True).passed
    except NormfuseError:
        return True  # it does not run at all


def _is_wrong(original: ir.Model, sound: ir.Model, model: ir.Model) -> bool:
    """Whether what became of a model is another function, in float64, by more than roundings of weights."""
    try:
        exact, right, other = Oracle(original), Oracle(sound), Oracle(model)
        drawn = next(plan(original, lambda inputs: True).probes(1))
        for scale in _SCALES:
            feeds = {
                name: array * array.dtype.type(scale) if array.dtype.kind == "f" else array
                for name, array in drawn.inputs.items()
            }
            truth, healthy, mutated = exact.run(feeds), right.run(feeds), other.run(feeds)
            for name, wanted in truth.items():
                if mutated[name].shape != wanted.shape:
                    return True
                if _distance(mutated[name], wanted) > 4 * _distance(healthy[name], wanted) + 16 * _unit(original):
                    return True
    except (NormfuseError, OracleError):
        return True
    return False


def _unit(model: ir.Model) -> float:
    """The unit round-off of the coarsest value."""
    values = [*inputs_of(model), *model.graph.initializers.values()]
    values += [value for node in model.graph.all_nodes() for value in node.outputs]
    names = [value.dtype.numpy().name for value in values if value.dtype is not None]
    return max((PRECISIONS[name].unit for name in names if name in PRECISIONS), default=2.0**-24)


def _distance(array: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any]) -> float:
    """‖array − wanted‖ / ‖wanted‖, infinite where one is not finite and the other is."""
    array, wanted = np.asarray(array, np.float64), np.asarray(wanted, np.float64)
    finite = np.isfinite(array)
    if np.any(finite != np.isfinite(wanted)):
        return float("inf")
    size = float(np.linalg.norm(wanted[finite])) or 1.0
    return float(np.linalg.norm((array - wanted)[finite])) / size

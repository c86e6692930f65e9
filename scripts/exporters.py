"""Whether each normalization is found in torch's exports: `python -m scripts.exporters [--no-proof] [NAME …]`.

Every module of `models.normalizations`, by both exporters, in the opsets that each writes, with static and dynamic
dimensions: LIFT must find exactly the normalization that the module computes, restoring must give the same model bit
for bit, and what `optimize` writes for `cpu` and `portable` must pass its proof.
"""

import argparse
import logging
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime  # type: ignore[import-untyped]  # it ships no types

import normfuse
from models.export import Exporter, export
from models.normalizations import NORMALIZATIONS, Normalization
from normfuse.errors import ExportError, NormfuseError
from normfuse.norm import Standardize
from normfuse.passes.lift import LiftPass
from normfuse.passes.lower import restore
from normfuse.passes.prepare import PreparePass
from scripts.spellings import meanings

OPSETS: dict[Exporter, tuple[int, ...]] = {"torchscript": (13, 17, 20), "dynamo": (18, 20, 21, 23)}
TARGETS = ("cpu", "portable")


@dataclass(frozen=True, slots=True)
class Way:
    """How a module is exported.

    Attributes:
        exporter: `torchscript` or `dynamo`.
        opset: the opset that it writes.
        dynamic: whether batch and spatial dimensions are left open.
    """

    exporter: Exporter
    opset: int
    dynamic: bool

    def __str__(self) -> str:
        return f"{self.exporter} {self.opset} {'dynamic' if self.dynamic else 'static'}"


WAYS = tuple(Way(name, opset, dynamic) for name, own in OPSETS.items() for opset in own for dynamic in (False, True))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one export.

    Attributes:
        subject: what was exported.
        way: how.
        found: what LIFT and the operators of the export say it computes.
        reasons: why something was not found.
        is_exact: whether the restored model computes bit for bit what the prepared one does.
        failures: for each target whose result did not pass its proof, why.
    """

    subject: Normalization
    way: Way
    found: tuple[object, ...]
    reasons: tuple[str, ...]
    is_exact: bool
    failures: tuple[str, ...] = ()

    @property
    def is_right(self) -> bool:
        """Whether exactly what had to be found was found, exactly, and all proofs passed."""
        wanted = () if self.subject.meaning is None else (self.subject.meaning,)
        agree = len(self.found) == len(wanted) and all(map(is_alike, self.found, wanted))
        return agree and self.is_exact and not self.failures

    def __str__(self) -> str:
        what = "; ".join(map(str, self.found)) or "nothing"
        exact = "" if self.is_exact else ", restored to something else"
        return f"{self.subject.entry.name}, {self.way}: {what}{exact} {' | '.join((*self.failures, *self.reasons))}"


def is_alike(found: object, wanted: Standardize) -> bool:
    """Whether two descriptions are the same but for numbers rounded to float32, and sums in float64 for float32."""
    if not isinstance(found, Standardize):
        return False
    numbers = ("epsilon", "alpha", "exponent")
    near = all(math.isclose(getattr(found, name), getattr(wanted, name), rel_tol=1e-6) for name in numbers)
    wide = found.dtype if found.dtype == ir.DataType.DOUBLE and wanted.dtype is not None else wanted.dtype
    return near and replace(found, **{name: getattr(wanted, name) for name in numbers}) == replace(wanted, dtype=wide)


def look(subject: Normalization, way: Way, targets: Sequence[str] = TARGETS) -> Outcome | None:
    """Exports a module and looks at it; None where the exporter cannot, or writes what ONNX Runtime does not load."""
    try:
        proto = export(subject.entry, way.exporter, way.opset, way.dynamic, keep_bn=False)
        _session(proto)
    except (ExportError, onnxruntime.capi.onnxruntime_pybind11_state.Fail):
        return None  # such as a float16 RMSNormalization-23 with a float32 scale
    prepared, lifting = ir.from_proto(proto), LiftPass()
    PreparePass()(prepared)
    before = ir.to_proto(prepared)
    lifting(prepared)
    found = tuple(item for item in meanings(prepared) if isinstance(item, Standardize))
    restore(prepared)
    return Outcome(
        subject,
        way,
        found,
        tuple(dict.fromkeys(refusal.reason for refusal in lifting.refusals)),
        _is_same(before, ir.to_proto(prepared), subject),
        tuple(_failures(proto, targets)),
    )


def _failures(proto: onnx.ModelProto, targets: Sequence[str]) -> Iterator[str]:
    for target in targets:
        try:
            normfuse.optimize(proto, target)
        except NormfuseError as error:
            yield f"{target}: {error}"


def _is_same(one: onnx.ModelProto, other: onnx.ModelProto, subject: Normalization) -> bool:
    """Whether two models compute the same, bit for bit, with the optimizer of ONNX Runtime switched off."""
    inputs = {f"x{index}": tensor.numpy() for index, tensor in enumerate(subject.entry.examples())}
    first, second = (_session(model).run(None, inputs)[0] for model in (one, other))
    return bool(np.array_equal(first, second, equal_nan=True)) and first.dtype == second.dtype


def _session(model: onnx.ModelProto) -> Any:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def main(arguments: Sequence[str] = ()) -> int:
    """Prints the table: for each module how many exports there are, and in how many it was found and proved."""
    parser = argparse.ArgumentParser(prog="python -m scripts.exporters", description=__doc__)
    parser.add_argument("names", nargs="*", help="modules to look at; all where there are none")
    parser.add_argument("--no-proof", action="store_true", help="only look for them")
    options = parser.parse_args(arguments)
    logging.getLogger("onnx_ir").setLevel(logging.CRITICAL)
    known = [subject.entry.name for subject in NORMALIZATIONS]
    if unknown := sorted(set(options.names) - set(known)):
        parser.error(f"unknown module {', '.join(unknown)}; choose from {', '.join(known)}")
    wrong: list[Outcome] = []
    print("| module | exports | right | what it is |\n| --- | ---: | ---: | --- |")
    for subject in NORMALIZATIONS:
        if options.names and subject.entry.name not in options.names:
            continue
        outcomes = [look(subject, way, () if options.no_proof else TARGETS) for way in WAYS]
        made = [outcome for outcome in outcomes if outcome is not None]
        wrong += [outcome for outcome in made if not outcome.is_right]
        formula = "nothing to be found" if subject.meaning is None else subject.meaning.formula
        right = sum(outcome.is_right for outcome in made)
        print(f"| {subject.entry.name} | {len(made)} | {right} | {formula} |", flush=True)
    for outcome in wrong:
        print(f"wrong: {outcome}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

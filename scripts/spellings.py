"""Looks for every spelling of `models`, and leaves every look-alike: `python -m scripts.spellings`.

Prints one row for each form: its spellings, how many are found, its look-alikes, how many are left alone. Each model
is lifted and restored, and what was restored must compute bit for bit what it did. The exit status is 1 where one is
missed.
"""

import logging
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import onnx_ir as ir
import onnxruntime  # type: ignore[import-untyped]  # it ships no types

from models import lookalikes, spellings_activations, spellings_groups, spellings_sizes
from models import spellings as norms
from models.spelling import Spelling
from normfuse.activation import Kind
from normfuse.norm import Standardize
from normfuse.passes.access import RefusedError
from normfuse.passes.lift import LiftPass
from normfuse.passes.lifted import lifted
from normfuse.passes.lower import restore
from normfuse.passes.norms import read_norm
from normfuse.passes.prepare import PreparePass
from normfuse.passes.weights import Weights

SHOWN = 10
"""So many of those that are missed are printed for each form."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a spelling.

    Attributes:
        spelling: the spelling.
        meanings: what was found in it.
        reasons: why something was not.
        is_exact: whether the restored model computes bit for bit what the model did; None where it was not run.
    """

    spelling: Spelling
    meanings: tuple[object, ...]
    reasons: tuple[str, ...]
    is_exact: bool | None

    @property
    def is_right(self) -> bool:
        """Whether what had to be found was found, and nothing else."""
        wanted = () if self.spelling.meaning is None else (self.spelling.meaning,)
        return self.meanings == wanted and self.is_exact is not False

    def __str__(self) -> str:
        found = "; ".join(map(str, self.meanings)) or "nothing"
        exact = ", restored to something else" if self.is_exact is False else ""
        why = f" ({'; '.join(self.reasons)})" if self.reasons else ""
        return f"{self.spelling.form}: {self.spelling.name}: {found}{exact}{why}"


def meanings(model: ir.Model) -> tuple[object, ...]:
    """What the lifted calls and normalization operators of a model compute."""
    found: list[object] = []
    weights = Weights(model)
    for graph in (model.graph, *model.graph.subgraphs()):
        for node in graph:
            record = lifted(node)
            if record is not None:
                found.append(record.meaning)
                continue
            try:
                norm = read_norm(node, weights)
            except RefusedError:
                continue
            if norm is not None:
                found.append(norm.standardize)
    return tuple(found)


def look(spelling: Spelling, run: bool = True) -> Outcome:
    """Lifts a spelling, and runs it restored beside the model as it was."""
    model = spelling.build()
    prepared = spelling.build()
    PreparePass()(prepared)
    lifting = LiftPass()
    lifting(prepared)
    found = meanings(prepared)
    if spelling.meaning is None:
        activations = spelling.form in get_args(Kind)  # a normalization that is none may hold an activation
        found = tuple(
            record.meaning
            for node in prepared.graph.all_nodes()
            if (record := lifted(node)) is not None and (activations or isinstance(record.meaning, Standardize))
        )
    reasons = tuple(refusal.reason for refusal in lifting.refusals)
    if not run:
        return Outcome(spelling, found, reasons, None)
    restore(prepared)
    return Outcome(spelling, found, reasons, _is_same(model, prepared))


def _is_same(model: ir.Model, restored: ir.Model) -> bool:
    """Whether two models compute the same, bit for bit, with the optimizer of ONNX Runtime switched off."""
    x = model.graph.inputs[0]
    assert x.shape is not None
    assert x.dtype is not None
    shape = [dim if isinstance(dim, int) else 2 for dim in x.shape]
    data = np.random.default_rng(len(str(x.shape))).normal(0.5, 2.0, shape).astype(x.dtype.numpy())
    one, two = (_run(item, data) for item in (model, restored))
    return all(np.array_equal(a, b, equal_nan=True) and a.dtype == b.dtype for a, b in zip(one, two, strict=True))


def _run(
    model: ir.Model, x: np.ndarray[tuple[int, ...], np.dtype[np.generic]]
) -> list[np.ndarray[tuple[int, ...], np.dtype[np.generic]]]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    content = ir.to_proto(model).SerializeToString()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    results: list[np.ndarray[tuple[int, ...], np.dtype[np.generic]]] = session.run(None, {"x": x})
    return results


def all_spellings() -> Iterator[Spelling]:
    """The spellings and look-alikes of all generators."""
    yield from norms.spellings()
    yield from spellings_groups.spellings()
    yield from spellings_activations.spellings()
    yield from spellings_sizes.spellings()
    yield from lookalikes.lookalikes()
    yield from spellings_activations.lookalikes()
    yield from spellings_sizes.lookalikes()


def main(arguments: Sequence[str] = ()) -> int:
    """Prints the table; arguments are names of forms to look at, all where there are none."""
    logging.getLogger("onnx_ir").setLevel(logging.CRITICAL)
    counts: Counter[tuple[str, str]] = Counter()
    wrong: dict[str, list[Outcome]] = {}
    for spelling in all_spellings():
        if arguments and spelling.form not in arguments:
            continue
        outcome = look(spelling)
        kind = "look-alikes" if spelling.meaning is None else "spellings"
        counts[spelling.form, kind] += 1
        counts[spelling.form, f"right {kind}"] += outcome.is_right
        if not outcome.is_right:
            wrong.setdefault(spelling.form, []).append(outcome)
    print("\n".join(_table(counts)))
    for outcomes in wrong.values():
        for outcome in outcomes[:SHOWN]:
            print(f"wrong: {outcome}")
    return int(bool(wrong))


def _table(counts: Counter[tuple[str, str]]) -> Iterable[str]:
    columns = ("spellings", "right spellings", "look-alikes", "right look-alikes")
    yield "| form | spellings | found | look-alikes | left alone |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    forms = list(dict.fromkeys(form for form, _ in counts))
    for form in forms:
        yield f"| {form} | {' | '.join(str(counts[form, column]) for column in columns)} |"
    totals = (str(sum(counts[form, column] for form in forms)) for column in columns)
    yield f"| all | {' | '.join(totals)} |"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

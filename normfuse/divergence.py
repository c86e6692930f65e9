"""Where a candidate first computes something else than the reference: `Divergence`.

Both models run on one failing probe, with all values that bear the same name in both as outputs. Each of these is
judged by the metric against the float64 oracle of the reference, as an output would be.

That a value differs does not make it wrong: what a fold has moved behind it is not in it yet, or is in it already. So
the search goes back from the failing output, and each value that agrees ends it there. Of the values that it meets, in
the order in which they are computed, the first one is sought that

1. comes out wrong from right values: the parts of both models between it and the values in front of it that agree,
   fed with what the reference should have there, differ as the whole models do; and
2. means the same in both: where the candidate is fed with the right one, what it computes from it agrees again.
"""

import math
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from normfuse.contest import Array, Contest, Values, with_outputs
from normfuse.cut import Case, cut
from normfuse.errors import TargetError
from normfuse.judging import aligned
from normfuse.matching import Values as Graph
from normfuse.matching import matched
from normfuse.metric import Tally, is_float
from normfuse.probes import moved
from normfuse.witness import Witness, fails, truth_of

_MOST = 24
"""So many values are tried as the first one that diverges."""

_SMALL = 1024
"""Inputs of a case with at most so many elements become constants."""


@dataclass(frozen=True, slots=True)
class Compared:
    """A value that bears the same name in both models.

    Attributes:
        name: the value.
        operator: what makes it in the reference.
        depth: nodes on the longest way to it from an input.
        shape: in this run.
        reference: E of the reference.
        candidate: E of the candidate.
        ratio: as for an output; at most 2 passes.
        agrees: whether it would pass as an output.
    """

    name: str
    operator: str
    depth: int
    shape: tuple[int, ...]
    reference: float
    candidate: float
    ratio: float
    agrees: bool


class Divergence:
    """Both models on a failing probe.

    Attributes:
        reference: the model as it was.
        candidate: the model as it became.
        witness: the probe.
        table: the values of both, in the order in which the reference computes them.
        endpoint: the value at which the search begins: the output that fails, or what a Sigmoid hides there.
        seen: whether the failure shows with all values as outputs: that can keep ONNX Runtime from what is wrong.
    """

    def __init__(self, contest: Contest, candidate: ir.Model, witness: Witness) -> None:
        """Runs both models and compares their values.

        Args:
            contest: the two models.
            candidate: the second one.
            witness: the probe, and how the candidate fails on it.
        """
        self.reference, self.candidate, self.witness = contest.reference, candidate, witness
        self._contest = contest
        self._graphs = Graph(self.reference), Graph(candidate)
        self._places = {name: place for place, name in enumerate(self._graphs[0].depth)}
        names = matched(*self._graphs)
        title = contest.outputs[0] if witness.verdict is None else witness.verdict.name
        self._owner = contest.owners.get(title, title)
        hidden = next((one for one in contest.hidden if one.title == title), None)
        self._hidden = {one.names[0] for one in contest.hidden}
        same = hidden is not None and hidden.names[0] == hidden.names[1] and hidden.names[0] in names
        self.endpoint = hidden.names[0] if hidden is not None and same else self._owner
        self._axes = {one.names[0]: one.axis for one in contest.hidden if one.axis is not None}
        self._native: Values = {}
        self._truth: Values = {}
        self._noise: list[Values] = []
        self.table = self._compare(names)
        self._agreeing = {row.name for row in self.table if row.agrees}
        self._diverging = {row.name: row for row in self.table if not row.agrees}
        self.seen = self.endpoint in self._diverging

    def _compare(self, names: list[str]) -> list[Compared]:
        """Runs both models, and judges what they have in common."""
        contest, witness = self._contest, self.witness
        watched = with_outputs(self.reference, names)
        try:
            session = contest.open(watched, "disabled", "the reference")
            native = session.run(witness.inputs)
        except TargetError:
            return []  # all values at once are too much for the runtime
        names = [name for name in names if isinstance(native.get(name), np.ndarray)]
        self._native = {name: native[name] for name in names}
        truth = truth_of(contest, witness, names)
        self._truth = self._native if truth is None else truth
        self._noise = [session.run(moved(witness.inputs, 0))]
        try:
            other = contest.open(with_outputs(self.candidate, names), witness.level, "the candidate")
            found = other.run(witness.inputs)
        except TargetError:
            return []
        if witness.level != "disabled":
            with suppress(TargetError):
                self._noise.append(contest.open(watched, witness.level, "the reference").run(witness.inputs))
        rows = [self._row(name, found.get(name)) for name in names]
        return [row for row in rows if row is not None]

    def _row(self, name: str, value: Array | None) -> Compared | None:
        """One value of the candidate; None where it is no tensor of the same type and shape in both."""
        native, truth, graph = self._native[name], self._truth.get(name), self._graphs[0]
        if not isinstance(value, np.ndarray) or not isinstance(truth, np.ndarray) or truth.shape != native.shape:
            return None
        if value.shape != native.shape or value.dtype != native.dtype:
            return None
        operator = graph.operator(name)
        absolute = operator == "Sigmoid" or name in self._hidden
        tally = Tally(name, native.dtype.name, self._contest.precision, absolute=absolute)
        results = [native, value, *(one[name] for one in self._noise if one[name].shape == native.shape)]
        if name in self._axes:
            results = [aligned(one, truth, self._axes[name]) for one in results]
        tally.add("data", truth, results[0], results[1], results[2:])
        verdict = tally.verdict(self.witness.level)
        return Compared(
            name,
            operator,
            graph.depth[name],
            native.shape,
            verdict.reference,
            verdict.candidate,
            verdict.ratio,
            verdict.passed,
        )

    def operators(self, name: str) -> tuple[str, str]:
        """What makes a value in the reference and in the candidate."""
        return self._graphs[0].operator(name), self._graphs[1].operator(name)

    def reduce(self, case: Case) -> Iterator[tuple[str, Case]]:
        """The first value that diverges with the part around it, the best guess first, the whole models last.

        Args:
            case: the whole models.
        """
        doubted: list[tuple[str, Case]] = []
        for name in self._suspects():
            part = self._part(name, self._agreeing)
            if part is None or not self._fails(part):
                continue
            if self._means_the_same(name):
                yield name, self._smaller(name, part)
            else:
                doubted.append((name, part))
        for name, part in doubted:
            yield name, self._smaller(name, part)
        yield from self._by_prefix()
        yield self.endpoint, case

    def _suspects(self) -> list[str]:
        """The values that diverge between what agrees and the failing output, in order; those that hardly do last."""
        if not self.seen:
            return []
        _, between = self._graphs[1].behind(self.endpoint, self._agreeing)
        names = sorted((name for name in between if name in self._diverging), key=self._places.__getitem__)
        little = math.sqrt(self._diverging[self.endpoint].ratio)  # rounding adds up to a few units on the way
        return sorted(names, key=lambda name: self._diverging[name].ratio < little)[:_MOST]

    def _means_the_same(self, name: str) -> bool:
        """Whether something that the candidate computes from the right value agrees again; also where nothing is."""
        if name == self.endpoint:
            return True
        later = [other for other in self._diverging if self._places[other] > self._places[name]]
        heirs = [other for other in later if name in self._graphs[1].behind(other, self._agreeing | {name})[0]]
        fed = {**self.witness.inputs, name: self._right(name)}
        try:
            mended = cut(self.candidate, heirs, fed, {})
            values = self._contest.open(mended, self.witness.level, "the candidate").run(fed)
        except TargetError:
            return False
        rows = [self._row(other, values.get(other)) for other in heirs]
        return any(row is not None and row.agrees for row in rows)

    def _right(self, name: str) -> Array:
        """What a value of the reference should be, in its type."""
        return np.asarray(self._truth[name]).astype(self._native[name].dtype)

    def _by_prefix(self) -> Iterator[tuple[str, Case]]:
        """The failing output with more and more in front of it; cut off behind the first value that shows it."""
        names = [*self._agreeing, *self._diverging] or [name for name in matched(*self._graphs) if name in self._native]
        _, between = self._graphs[1].behind(self.endpoint, ())
        way = sorted((name for name in between if name in names), key=self._places.__getitem__)
        end = self.endpoint
        if not self.seen and way:
            low, high = 0, len(way) - 1
            while low < high:
                middle = (low + high) // 2
                part = self._part(way[middle], ())
                low, high = (low, middle) if part is not None and self._fails(part) else (middle + 1, high)
            end = way[low]
        known = self._agreeing if self.seen or self._agreeing else set(names)
        step = 1
        while True:
            place = self._places.get(end, len(self._places)) - step
            stops = {name for name in known if self._places[name] <= place}
            part = self._part(end, stops)
            if part is not None and self._fails(part):
                yield end, self._smaller(end, part, stops)
            if not stops:
                return
            step *= 2

    def _fails(self, case: Case) -> bool:
        return fails(case.before, case.after, case.inputs, self.witness.level, self._contest.provider)

    def _part(
        self,
        name: str,
        stops: Collection[str],
        rows: int | None = None,
        frozen: Collection[str] = (),
    ) -> Case | None:
        """Both models between some values and another one, or None where they cannot be fed.

        Args:
            name: the value that is computed.
            stops: values that are taken from the reference.
            rows: how much of the first axis is kept; all where None.
            frozen: inputs that become constants.
        """
        if name in self._axes:
            name = self._owner  # a Softmax tells what matters of it
        if name not in self._graphs[0] or name not in self._graphs[1]:
            return None
        known = [name for name in stops if name in self._truth]
        found = {one for graph in self._graphs for one in graph.behind(name, known)[0]}
        inputs, constants = dict[str, Array](), dict[str, Array]()
        for one in sorted(found, key=lambda other: self._places.get(other, -1)):
            if one in self.witness.inputs:
                array = self.witness.inputs[one]
            elif one in self._truth:
                array = self._right(one)
            else:
                return None
            counted = not is_float(array) and one not in self.witness.inputs
            if counted or one in frozen:
                constants[one] = array
            else:
                inputs[one] = array if rows is None or array.ndim == 0 else array[:rows]
        if not inputs:
            inputs, constants = constants, {}
        if not inputs:
            return None
        runs = self.witness.verdict is not None  # sizes that do not fit must show when it runs, not when it is loaded
        expected = self._native if rows is None and runs else None
        models = (self.reference, self.candidate)
        parts = [cut(model, [name], inputs, constants, expected, fixed=runs) for model in models]
        return Case(parts[0], parts[1], inputs, name)

    def _smaller(self, name: str, case: Case, stops: Collection[str] | None = None) -> Case:
        """The same case with a batch of one and fewer inputs, where it still fails."""
        stops = self._agreeing if stops is None else stops
        rows, frozen = None, set[str]()
        sizes = {array.shape[:1] for array in case.inputs.values() if array.ndim}
        if len(sizes) == 1 and next(iter(sizes)) > (1,):
            part = self._part(name, stops, rows=1)
            if part is not None and self._fails(part):
                case, rows = part, 1
        for one, array in list(case.inputs.items()):
            if len(case.inputs) > 1 and array.size <= _SMALL:
                part = self._part(name, stops, rows, {*frozen, one})
                if part is not None and self._fails(part):
                    case = part
                    frozen.add(one)
        return case

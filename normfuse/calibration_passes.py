"""The passes over the data: what is measured in which, by whom, and how the parts of several processes come together.

A pass ends with `advance`, which makes statistics of its exact sums. With shards each process writes the state of its
own at the end of a pass, and `merged` adds them up and advances: the result has the same bits as that of one process,
as long as ONNX Runtime computes the same on all machines.
"""

import os
import time
from collections.abc import Callable, Sequence

import onnx_ir as ir

from normfuse.batch_digest import Digest, joined
from normfuse.batch_inputs import Batch
from normfuse.batches import WHOLE, Batches, Shard
from normfuse.calibration_state import Plan, State, digest_of, load_state
from normfuse.errors import NormfuseError
from normfuse.measuring import Flow, Measurer, least_elements, lone
from normfuse.population import Estimator, Moments
from normfuse.stored import Stored

Say = Callable[[str, float, float | None], None]
"""Called with what is being done, how much of it is done, and how much there is, where that is known."""

INTERVAL = 5.0
"""Seconds between two checkpoints."""


def silent(doing: str, done: float, total: float | None) -> None:
    """Says nothing."""


def begun(model: ir.Model, plan: Plan, estimator: Estimator, flow: Flow) -> State:
    """The state before the first pass."""
    state = State(digest_of(model), estimator, flow, len(plan))
    state.begin(plan[0])
    return state


def resumed(path: str | None, model: ir.Model, estimator: Estimator, flow: Flow, shard: Shard = WHOLE) -> State | None:
    """The state in a checkpoint; None where there is none yet.

    Raises:
        NormfuseError: it cannot be read, or was made of another model or with other settings.
    """
    if path is None or not os.path.exists(path):
        return None
    state = load_state(path, model, digest_of(model))
    check_settings(path, state, estimator, flow)
    if state.shard != shard:
        raise NormfuseError(f"{path} belongs to another shard; give the same, or another file")
    return state


def check_settings(path: str, state: State, estimator: Estimator, flow: Flow) -> None:
    """Checks that a state was made with some settings.

    Raises:
        NormfuseError: it was not.
    """
    for what, was, wanted in (("estimator", state.estimator, estimator), ("flow", state.flow, flow)):
        if was != wanted:
            raise NormfuseError(f"{path} was made with the {what} {was}, not {wanted}; give the same, or another file")


def run_pass(
    model: ir.Model,
    plan: Plan,
    state: State,
    batches: Batches,
    threads: int | None = None,
    say: Say = silent,
    checkpoint: str | None = None,
) -> None:
    """Measures the batches of the state's shard that are left in its pass.

    A checkpoint is written every few seconds, and when the pass ends, however it does: at its end, by an error or by
    Ctrl-C.

    Raises:
        NormfuseError: there are no batches, or those that the state has seen were others.
        TargetError: ONNX Runtime cannot run the model.
    """
    check_data(state, batches)
    level, seen, saved = plan[state.number], Digest(), -1.0
    skipped, expected = state.done, state.digest
    weights = [max(stored.index for stored in one) + 1 for one in plan]  # a pass runs the nodes up to its layers
    least = least_elements(state.estimator, state.flow)
    measurer = Measurer(model, level, state.known, state.flow, least, threads)
    try:
        for index, batch in enumerate(batches.read(state.shard)):
            place = state.shard.index + index * state.shard.count
            seen.add(batch, place)
            if index < skipped:
                if index + 1 == skipped and str(seen) != expected:
                    break
                continue
            state.add(_measured(measurer, batch, batches.title(place)), seen)
            count = batches.share(state.shard)
            doing = f"pass {state.number + 1} of {len(plan)}, batch {state.done}" + (f" of {count}" if count else "")
            finished = sum(weights[: state.number]) * (count or 0) + weights[state.number] * state.done
            say(doing, finished, None if count is None else count * sum(weights))
            if checkpoint is not None and time.monotonic() - saved > INTERVAL:
                state.save(checkpoint)
                saved = time.monotonic()
        if str(seen) != state.digest:
            raise NormfuseError(
                "the checkpoint was made of other batches; give the same in the same order, or begin anew"
            )
        if not state.done:
            whose = "" if state.shard == WHOLE else f" for shard {state.shard.index + 1}/{state.shard.count}"
            if state.number and state.shard == WHOLE:
                raise NormfuseError("the batches can be read only once; give a list, or an iterator")
            raise NormfuseError(f"there are no batches{whose}; give at least one")
        if state.number and state.shard == WHOLE and state.done != state.batches:
            raise NormfuseError(
                f"one pass had {state.batches} batches, the next {state.done}; give what can be read again, such as a "
                "list"
            )
        state.complete = True
    finally:
        if checkpoint is not None and state.consistent and state.done > skipped:
            state.save(checkpoint)


def _measured(measurer: Measurer, batch: Batch, title: str) -> dict[Stored, Moments]:
    try:
        return measurer.measure(batch)
    except NormfuseError as error:
        raise type(error)(f"{title}: {error}") from error


def check_data(state: State, batches: Batches) -> None:
    """Checks that batches are those which a state has seen, as far as that can be told without reading them.

    Raises:
        NormfuseError: they are not.
    """
    if state.data and batches.fingerprint and state.data != batches.fingerprint:
        raise NormfuseError("other batches were given before; give the same in the same order, or begin anew")
    if state.number and batches.is_fixed and batches.count != state.batches:
        raise NormfuseError(
            f"the first pass had other batches, {state.batches} where there are {batches.count} now; give the same in "
            "the same order, or begin anew"
        )
    state.data = batches.fingerprint or state.data
    state.total = batches.count or 0 if batches.is_fixed else 0


def check_first(state: State, batches: Batches) -> None:
    """Checks that the batches are those of the first pass, where a state comes from a file.

    Raises:
        NormfuseError: they are not.
    """
    check_data(state, batches)
    if not state.first:
        return
    seen = [Digest() for _ in state.first]
    for index, batch in enumerate(batches.read()):
        seen[index % len(seen)].add(batch, index)
    if tuple(map(str, seen)) != state.first:
        raise NormfuseError("the first pass had other batches; give the same in the same order, or begin anew")


def advance(state: State, plan: Plan, digests: Sequence[str], content: str) -> bool:
    """Makes statistics of the sums of a pass whose batches have all been measured, and begins the next pass.

    Args:
        state: that of all shards.
        plan: what is measured in each pass.
        digests: of the batches, by shard.
        content: of all of them, as `Digest` has it.

    Returns:
        whether the batches were those of the first pass.

    Raises:
        NormfuseError: there was one element per channel in all of them.
    """
    same = state.before in ("", content)
    for stored, sums in state.sums.items():
        if sums.count < 2:
            raise lone(stored.name)
        state.known[stored] = sums.statistics()
        state.batches = sums.batches
    state.first, state.before = state.first or tuple(digests), state.before or content
    state.number += 1
    state.begin(plan[state.number] if state.number < len(plan) else [])
    state.shard = WHOLE
    return same


def merged(parts: Sequence[tuple[str, State]], plan: Plan) -> State:
    """Adds up the parts of all shards of a pass, and advances.

    Args:
        parts: paths and states.
        plan: what is measured in each pass.

    Raises:
        NormfuseError: they do not belong together, or one is missing, twice there or not complete.
    """
    (path, whole), *_ = parts
    by_index: dict[int, str] = {}
    digests = [""] * whole.shard.count
    for other, state in parts:
        check_settings(other, state, whole.estimator, whole.flow)
        if not state.complete:
            raise NormfuseError(f"{other} is no part that is complete; run its shard to the end first")
        if state.number != whole.number or state.shard.count != whole.shard.count:
            raise NormfuseError(f"{other} is of another pass, or of another number of shards, than {path}")
        if not same_known(state, whole):
            raise NormfuseError(f"{other} was made after other statistics than {path}; run one of them again")
        pairs = ((state.data, whole.data), (state.total, whole.total))
        if any(one and two and one != two for one, two in pairs):
            raise NormfuseError(f"{other} was made of other data than {path}; {_ALL}")
        index = state.shard.index
        if index in by_index:
            what = "is given twice" if other == by_index[index] else f"is the same shard as {by_index[index]}"
            raise NormfuseError(f"{other} {what}; give each once")
        by_index[index] = other
        digests[index] = state.digest
    missing = [str(index + 1) for index in range(whole.shard.count) if index not in by_index]
    if missing:
        raise NormfuseError(f"of {whole.shard.count} shards {', '.join(missing)} are missing; give the parts of all")
    total = sum(state.done for _, state in parts)
    for other, state in parts:
        share = len(range(state.shard.index, total, state.shard.count))
        if state.done != share:
            raise NormfuseError(
                f"{other} has {state.done} of {total} batches, where shard {state.shard.index + 1}/{state.shard.count} "
                f"has {share}; {_ALL}"
            )
    content = joined(state.content for _, state in parts)
    for _, state in parts[1:]:
        whole.data = whole.data or state.data
        for stored, sums in state.sums.items():
            whole.sums[stored].merge(sums)
    if not advance(whole, plan, digests, content):
        raise NormfuseError("the shards had other batches in the first pass; give each the same in every pass")
    return whole


_ALL = "give each shard the batches of all, in the same order: it takes its share"


def same_known(one: State, other: State) -> bool:
    """Whether two states hold the same statistics of the passes that are done."""
    return one.known.keys() == other.known.keys() and all(
        one.known[stored].mean.tobytes() == other.known[stored].mean.tobytes()
        and one.known[stored].variance.tobytes() == other.known[stored].variance.tobytes()
        for stored in one.known
    )

"""A calibration on several machines: each measures a shard of the batches, and one merges the parts.

    pass 1    measure_shard(i of n)  →  n parts  →  merge_parts  →  a state with the statistics of the first level
    pass 2    measure_shard(i of n, after that state)  →  …
    the last  merge_parts  →  a state whose passes are all done: `normfuse.calibration.concluded` makes the model of it

With the flow `batch` there is one pass. Sums are exact, so what comes out has the bits of a calibration in one process.
"""

from collections.abc import Sequence

import onnx_ir as ir

from normfuse.batches import Batches, Shard
from normfuse.calibration_passes import Say, begun, check_settings, merged, resumed, run_pass, same_known, silent
from normfuse.calibration_state import State, digest_of, load_state, planned
from normfuse.errors import NormfuseError
from normfuse.measuring import Flow
from normfuse.population import Estimator


def measure_shard(
    model: ir.Model,
    batches: Batches,
    shard: Shard,
    estimator: Estimator = "mean",
    flow: Flow = "levels",
    *,
    after: str | None = None,
    checkpoint: str | None = None,
    threads: int | None = None,
    say: Say = silent,
) -> State:
    """Measures the batches of one shard in one pass.

    Args:
        model: as `normfuse.model.load` returned it.
        batches: the batches of all shards, the same in the same order for each of them.
        shard: those to measure.
        estimator: as for `normfuse.calibrate`; so is the flow.
        flow: as for `normfuse.calibrate`.
        after: the file of the state that `merge_parts` made of the last pass; None for the first.
        checkpoint: a file to go on from, and to write how far it has come to.
        threads: intra-op threads.
        say: as for `normfuse.calibrate`.

    Returns:
        the part, to be saved.

    Raises:
        NormfuseError: a file is not of this calibration, or the batches do not fit the model.
        TargetError: ONNX Runtime cannot run the model.
    """
    plan, _ = planned(model, estimator, flow)
    state = resumed(checkpoint, model, estimator, flow, shard)
    if after is not None:
        last = load_state(after, model, digest_of(model))
        check_settings(after, last, estimator, flow)
        if last.complete or last.done:
            raise NormfuseError(f"{after} is a part or a checkpoint; --after wants what --merge wrote of the last pass")
        if last.number >= len(plan):
            raise NormfuseError(f"{after} is of a calibration that is done; --merge its parts into a model")
        if state is not None and state.number != last.number:
            raise NormfuseError(f"{checkpoint} is of another pass than {after}; give another file")
        if state is not None and not same_known(state, last):
            raise NormfuseError(
                f"{checkpoint} was made after other statistics than {after} holds; begin anew without it"
            )
        state = state or last
    elif state is not None and state.number:
        raise NormfuseError(f"{checkpoint} is of a later pass; give --after, or another file")
    state = state or begun(model, plan, estimator, flow)
    state.shard = shard
    run_pass(model, plan, state, batches, threads, say, checkpoint)
    if len(state.first) == shard.count and state.first[shard.index] != state.digest:
        raise NormfuseError("the first pass had other batches in this shard; give the same in the same order")
    return state


def merge_parts(model: ir.Model, paths: Sequence[str]) -> State:
    """Adds up the parts of all shards of a pass.

    Raises:
        NormfuseError: they are no parts of one pass over this model, or one is missing.
    """
    digest = digest_of(model)
    parts = [(path, load_state(path, model, digest)) for path in paths]
    state = parts[0][1]
    return merged(parts, planned(model, state.estimator, state.flow)[0])

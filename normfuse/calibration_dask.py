"""A calibration on a cluster of dask.distributed: one task for each shard of a pass, merged as those of machines are.

The workers read the batches themselves: files must lie where all of them can read. Only sums come back.
"""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import Any

import onnx_ir as ir

from normfuse.batches import Batches, Shard
from normfuse.calibration_passes import Say, begun, check_first, merged, resumed, run_pass, silent
from normfuse.calibration_state import State, planned
from normfuse.errors import NormfuseError
from normfuse.measuring import Flow
from normfuse.model import load, serialize
from normfuse.population import Estimator
from normfuse.target import available_threads

LOCAL = "local"
"""The scheduler of a cluster on this machine, for this calibration alone."""

_TASKS = 4
"""Tasks for each worker in a pass, so that a slow one does not keep all others waiting."""


def measured_on(
    scheduler: str,
    model: ir.Model,
    batches: Batches,
    estimator: Estimator = "mean",
    flow: Flow = "levels",
    *,
    threads: int | None = None,
    say: Say = silent,
    checkpoint: str | None = None,
) -> State:
    """Runs all passes on a cluster.

    Args:
        scheduler: its address, such as `tcp://host:8786`, or `local`.
        model: as `normfuse.model.load` returned it.
        batches: the batches: files, or a list or tuple, as each worker must read the same.
        estimator: as for `normfuse.calibrate`; so is the flow.
        flow: as for `normfuse.calibrate`.
        threads: intra-op threads of each worker; one on a local cluster, else all processors, where None.
        say: as for `normfuse.calibrate`.
        checkpoint: a file to go on from, and to write what each pass has found to.

    Returns:
        the state after the last pass.

    Raises:
        NormfuseError: dask.distributed is not installed, there is no such scheduler, or the batches cannot be shared.
        TargetError: ONNX Runtime cannot run the model on a worker.
    """
    if not batches.is_fixed:
        raise NormfuseError(
            "each worker of a cluster reads the batches by itself, and an iterable may give others each time, as a "
            "DataLoader that shuffles does; give files, or list(batches)"
        )
    if not batches.count:
        raise NormfuseError("there are no batches; give at least one")
    plan, _ = planned(model, estimator, flow)
    state = resumed(checkpoint, model, estimator, flow)
    if state is None:
        state = begun(model, plan, estimator, flow)
    else:
        say("checking that the batches are the same", 0, None)
        check_first(state, batches)
    say("connecting to the cluster", 0, None)
    with _client(scheduler) as client:
        workers = len(client.nthreads())
        if not workers:
            raise NormfuseError(
                f"the scheduler at {scheduler} has no workers; start some with `dask worker {scheduler}`"
            )
        count = min(batches.count, _TASKS * workers)
        shared = client.scatter((serialize(model), batches), broadcast=True, hash=False)
        own = 1 if threads is None and scheduler == LOCAL else threads
        while state.number < len(plan):
            shards = [replace(state, shard=Shard(index, count)) for index in range(count)]
            tasks = [client.submit(_measure, shared, shard, own, pure=False) for shard in shards]
            state = merged(list(_results(client, tasks, state, batches.count, say)), plan)
            if checkpoint is not None:
                state.save(checkpoint)
    return state


def _measure(shared: tuple[bytes, Batches], state: State, threads: int | None) -> State:
    """One shard of a pass, on a worker."""
    payload, batches = shared
    model = load(payload)
    plan, _ = planned(model, state.estimator, state.flow)
    state.begin(plan[state.number])
    run_pass(model, plan, state, batches, threads)
    return state


def _results(client: Any, tasks: list[Any], state: State, total: int, say: Say) -> Iterator[tuple[str, State]]:
    """The parts as they come; where one fails or the user presses Ctrl-C, the others are called off."""
    from distributed import as_completed

    done = 0
    try:
        for task in as_completed(tasks):
            part: State = task.result()
            done += part.done
            doing = f"pass {state.number + 1} of {state.passes}, {done} of {total} batches"
            say(doing, state.number * total + done, state.passes * total)
            yield f"shard {part.shard.index + 1}", part
    finally:
        client.cancel(tasks)


@contextmanager
def _client(scheduler: str) -> Iterator[Any]:
    """A client of a scheduler, or of a cluster that ends with it.

    Raises:
        NormfuseError: there is none.
    """
    try:
        from distributed import Client, LocalCluster
    except ImportError:
        raise NormfuseError("dask.distributed is not installed; run: pip install normfuse[cluster]") from None
    with ExitStack() as closing:
        if scheduler == LOCAL:
            workers = available_threads()
            cluster = LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                dashboard_address=":0",  # a port that is free, as it listens even without a dashboard
                scheduler_kwargs={"dashboard": False},
                silence_logs=logging.CRITICAL,  # what a worker fails with is raised here
            )
            scheduler = closing.enter_context(cluster).scheduler_address
        made: list[Any] = []

        class Known(Client):
            """A client that is known also where its constructor fails."""

            def __init__(self, address: str) -> None:
                made.append(self)
                super().__init__(address, timeout=_PATIENCE)  # type: ignore[no-untyped-call]

        try:
            client = Known(scheduler)
        except (OSError, ValueError, TimeoutError) as error:
            # left to the garbage collector it would close at any time, even while the next one holds the lock for that
            with suppress(Exception):
                made[0].close()
            what = " ".join(str(error).split())[:200] or type(error).__name__
            hint = "start one with `dask scheduler`, or give `local`"
            raise NormfuseError(f"cannot reach a scheduler at {scheduler}: {what}; {hint}") from error
        yield closing.enter_context(client)


_PATIENCE = "10s"
"""How long a scheduler may take to answer."""

"""Estimates BatchNormalization's population statistics anew from data: `calibrate`.

A layer must be measured as it will be fed, behind layers that are right already. So there is one pass over the data
for each depth level, with all levels before it corrected: the flow `levels`. With the flow `batch` one pass measures
all layers at once, each behind layers that normalize by the statistics of the batch at hand, as in training and in
torch.optim.swa_utils.update_bn. What a layer reads then is not what it will read: the batch's statistics scatter around
those of the population, the more the smaller the batches are.
"""

import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import onnx_ir as ir

from normfuse.arguments import check
from normfuse.batch_inputs import Batch, is_given
from normfuse.batches import Batches, batches_of
from normfuse.calibration_passes import Say, advance, begun, check_first, resumed, run_pass, silent
from normfuse.calibration_report import UNLIKE, Calibration, Layer, Moved, Movement, told_of
from normfuse.calibration_state import Plan, State, planned, require_place
from normfuse.errors import NormfuseError
from normfuse.measuring import Flow, feeds
from normfuse.model import Source, load, restore_kind
from normfuse.pipeline import Result
from normfuse.population import Estimator
from normfuse.randomness import unprovable
from normfuse.report import Counts, Refusal
from normfuse.runtime import session
from normfuse.storage import destination
from normfuse.stored import statistics_of, write

COMPARED = 3
"""Batches on which the outputs before and after are compared."""


@dataclass(frozen=True, slots=True)
class Calibrated(Result):
    """What `calibrate` returns.

    Attributes:
        model: the model with its new statistics, of the kind that was given.
        report: old and new statistics, and how far the outputs have moved.
    """

    report: Calibration


def calibrate(
    source: Source | Any,
    batches: Iterable[Mapping[str, Any]] | Any,
    *,
    estimator: Estimator = "mean",
    flow: Flow = "levels",
    threads: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    scheduler: str | None = None,
    progress: Say | None = None,
) -> Calibrated:
    """Estimates the population statistics of all BatchNormalizations of a model anew.

    Args:
        source: a path, bytes, an `onnx.ModelProto`, an `onnx_ir.Model`, `torch.onnx.ONNXProgram` or `torch.nn.Module`;
            it is not changed. For a module see `normfuse.calibration_torch`.
        batches: arrays by input name, batch by batch, such as a list of them; or what else `normfuse.batches` reads.
        estimator: `mean` over batches, E[x] = E_B[μ_B] and Var[x] = m/(m − 1) · E_B[σ²_B]; or `pooled`, the mean and
            the unbiased variance M2/(n − 1) of all elements together, whatever the sizes of the batches.
        flow: `levels`, one pass per depth level, each behind levels that are right already; or `batch`, one pass in
            which every layer normalizes by the statistics of the batch, as in training.
        threads: intra-op threads; all processors where None.
        checkpoint: a file to go on from, and to write how far it has come to; removed when all is done.
        scheduler: the address of a dask.distributed scheduler whose workers do the passes, or `local` for a cluster on
            this machine; None for this process alone. It takes files, which the workers read, or a list.
        progress: called with what is being done, how much of it is done, and how much there is.

    Returns:
        the model and the report.

    Raises:
        ModelError: the model cannot be read or is not valid.
        NormfuseError: it has no statistics to estimate, the batches do not fit it, or the checkpoint is not of this.
        TargetError: ONNX Runtime is missing, or cannot run the model.

    Example:
        >>> import numpy as np, onnx
        >>> model = onnx.parser.parse_model('''<ir_version: 10, opset_import: ["": 18]>
        ...     net (float[N, 2] x) => (float[N, 2] y)
        ...     <float[2] scale = {1, 1}, float[2] bias = {0, 0}, float[2] mean = {0, 0}, float[2] var = {1, 1}>
        ...     { y = BatchNormalization(x, scale, bias, mean, var) }''')
        >>> result = calibrate(model, [{"x": np.float32([[1, 10], [3, 30]])}])
        >>> result.report.layers[0].new.mean, result.report.layers[0].new.variance
        (array([ 2., 20.]), array([  2., 200.]))
    """
    check(threads=threads, checkpoint=checkpoint, scheduler=scheduler, progress=progress)
    if "torch" in sys.modules and isinstance(source, sys.modules["torch"].nn.Module):
        from normfuse.calibration_torch import calibrated_module

        if checkpoint is not None or scheduler is not None or threads is not None:
            raise NormfuseError("threads, checkpoint and scheduler are for ONNX models; export the module first")
        found, module = calibrated_module(source, batches, estimator, flow, progress or silent)
        return Calibrated(module, found)
    original = load(source)
    path = None if checkpoint is None else os.fspath(checkpoint)
    read = batches_of(batches, original)
    report, calibrated = calibrated_of(original, read, estimator, flow, threads, progress or silent, path, scheduler)
    model = restore_kind(calibrated, source)
    if path is not None:
        os.unlink(destination(path))
    return Calibrated(model, report)


def calibrated_of(
    model: ir.Model,
    batches: Batches,
    estimator: Estimator = "mean",
    flow: Flow = "levels",
    threads: int | None = None,
    say: Say = silent,
    checkpoint: str | None = None,
    scheduler: str | None = None,
) -> tuple[Calibration, ir.Model]:
    """The report, and a copy with new statistics, for a model that `normfuse.model.load` returned; see `calibrate`.

    The checkpoint stays.
    """
    plan, refusals = planned(model, estimator, flow)
    if checkpoint is not None:
        require_place(checkpoint)
        batches.check_apart(checkpoint)
    if scheduler is not None:
        from normfuse.calibration_dask import measured_on

        same = True
        state = measured_on(scheduler, model, batches, estimator, flow, threads=threads, say=say, checkpoint=checkpoint)
    else:
        state, same = _measured(model, batches, plan, estimator, flow, threads, say, checkpoint)
    report, result = concluded(model, state, refusals)
    if not same:
        report.notes.append(UNLIKE)
    say("comparing the outputs", 0, None)
    report.compare(moved(model, result, islice(batches.read(), COMPARED), threads))
    report.notes += [*told_of(batches.ignored, batches.twice), *ungiven(model)]
    return report, result


def ungiven(model: ir.Model) -> list[str]:
    """What is said of outputs that cannot be compared."""
    names = ", ".join(repr(value.name) for value in model.graph.outputs if not is_given(value))
    what = "ONNX Runtime does not give these outputs in Python, so how far they move is not known"
    return [f"{what}: {names}"] if names else []


def _measured(
    model: ir.Model,
    batches: Batches,
    plan: Plan,
    estimator: Estimator,
    flow: Flow,
    threads: int | None,
    say: Say,
    checkpoint: str | None,
) -> tuple[State, bool]:
    """The state after all passes in this process, and whether each of them had the same batches."""
    state = resumed(checkpoint, model, estimator, flow)
    if state is None:
        state = begun(model, plan, estimator, flow)
    else:
        say("checking that the batches are the same", 0, None)
        check_first(state, batches)
    same = True
    while state.number < len(plan):
        run_pass(model, plan, state, batches, threads, say, checkpoint)
        same &= advance(state, plan, [state.digest], state.content)
    if checkpoint is not None:
        state.save(checkpoint)
    return state, same


def concluded(model: ir.Model, state: State, refusals: Iterable[Refusal]) -> tuple[Calibration, ir.Model]:
    """The report, and a copy of a model with the statistics of a state whose passes are all done.

    Raises:
        NormfuseError: a statistic overflows the dtype that it is stored in.
    """
    result = model.clone()
    write(result, state.known)
    report = Calibration(Counts.of(model), Counts.of(result), refusals=list(refusals))
    report.estimator, report.flow, report.passes, report.batches = (
        state.estimator,
        state.flow,
        state.passes,
        state.batches,
    )
    for stored, new in state.known.items():
        report.add(Layer(stored.name, stored.level, stored.epsilon, statistics_of(model, stored), new))
    report.weigh()
    if reason := unprovable(model):
        report.notes.append(f"{reason.partition(',')[0]}: another run may differ")
    return report, result


def moved(before: ir.Model, after: ir.Model, batches: Iterable[Batch], threads: int | None = None) -> list[Moved]:
    """How far the outputs of a model move, on some batches together.

    Raises:
        TargetError: ONNX Runtime cannot run one of the models.
    """
    kept = [{name: array.copy() for name, array in batch.items()} for batch in batches]  # a reader may reuse its own
    old = _outputs(before, kept, threads)  # one after the other: each session holds the weights
    movement = Movement()
    for was, now in zip(old, _outputs(after, kept, threads), strict=True):
        for name, array in was.items():
            if isinstance(array, np.ndarray):
                movement.add(name, array, now[name])
    return movement.moved()


def _outputs(model: ir.Model, batches: Iterable[Batch], threads: int | None) -> list[dict[str, Any]]:
    names = [str(value.name) for value in model.graph.outputs if is_given(value)]
    if not names:
        return []
    loaded = session(model, "disabled", threads=threads, name="the model")
    return [loaded.run(feeds(loaded, batch), names) for batch in batches]

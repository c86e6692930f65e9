"""`calibrate` for torch modules: the same estimators and flows, by hooks on the BatchNorm modules of a copy.

A module does not tell which of its BatchNorms depend on which. With the flow `levels` each has a pass of its own, in
the order in which the forward pass comes to them, which ends there; a pass before these looks which are called on each
of the batches, and in which order, as that may depend on the data. With the flow `batch` one pass runs with all of them
in train mode, and only them: torch.optim.swa_utils.update_bn puts all else, such as dropout, in train mode too.

A batch is what `update_bn` takes: a tensor or an array, or a list that begins with it; besides, a mapping of keyword
arguments, and whatever else `normfuse.batches_torch` reads. This module is imported where torch is imported already.
"""

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from normfuse.batch_digest import Digest
from normfuse.batches_torch import Parameters, module_batches
from normfuse.calibration_calls import NO_BATCHES, ONCE, UNREACHED, fewer, look_at, require_eager, run, tracked
from normfuse.calibration_passes import Say
from normfuse.calibration_report import UNLIKE, Calibration, Layer, Movement, told_of
from normfuse.calibration_state import check_options
from normfuse.calls import is_number, leaves_of, to_array
from normfuse.errors import NormfuseError
from normfuse.measuring import Flow, checked, least_elements, lone
from normfuse.module_state import Buffers, draws, kept_random
from normfuse.population import Estimator, Moments, Statistics, Sums
from normfuse.report import Counts, Refusal
from normfuse.stored import RULE, lost_by_rounding, unscalable

COMPARED = 3
"""Batches on which the outputs before and after are compared."""


class _Reached(BaseException):  # so that no module takes it for an error
    """The forward pass has come to the BatchNorm that is measured."""


def calibrated_module(
    module: nn.Module, source: Any, estimator: Estimator, flow: Flow, say: Say
) -> tuple[Calibration, nn.Module]:
    """The report, and a copy of a module with new statistics; see `normfuse.calibrate`.

    Raises:
        NormfuseError: it has no statistics to estimate, cannot be copied, or does not run on the batches.
    """
    check_options(estimator, flow)
    require_eager(module)
    batches, parameters = module_batches(source, module)
    try:
        original, result = copy.deepcopy(module), copy.deepcopy(module)
    except Exception as error:
        what = " ".join(str(error).split())[:200]
        raise NormfuseError(f"the module {type(module).__name__} cannot be copied: {what}; export it first") from error
    with torch.no_grad(), kept_random(result):
        return _calibrated(original, result, batches, parameters, estimator, flow, say), result


def _calibrated(
    original: nn.Module,
    result: nn.Module,
    batches: Iterable[Any],
    parameters: Parameters,
    estimator: Estimator,
    flow: Flow,
    say: Say,
) -> Calibration:
    """Calibrates a module in place, of which there is another copy to compare it with."""
    modes = [part.training for part in result.modules()]
    original.eval()
    result.eval()
    named, refusals = tracked(result)
    others = Buffers(result, set(named.values()))
    look = look_at(result, named, batches, say) if flow == "levels" else None
    if look is None:
        plan = [list(named)] if named else []
    else:
        refusals += look.refusals()
        refused = {refusal.node for refusal in refusals}
        plan = [[name] for name in look.order(set(named) - refused)]
    _require_any(plan, refusals)
    old = {name: _statistics(part) for name, part in named.items()}
    new: dict[str, Statistics] = {}
    report = Calibration(_counts(original), _counts(original), refusals=refusals)
    report.estimator, report.flow, report.passes = estimator, flow, len(plan)
    same = True
    for number, names in enumerate(plan):
        sums = {name: Sums(estimator, len(old[name].mean)) for name in names}
        reached: Counter[str] = Counter()  # in the order of the first calls
        digest = Digest()
        report.batches = 0
        layers = {name: named[name] for name in names}
        others.restore()
        for moments in _measured(result, layers, batches, estimator, flow, digest):
            for name, one in moments:
                sums[name].add(one)
            reached.update(dict(moments).keys())
            report.batches += 1
            say(f"pass {number + 1} of {len(plan)}, batch {report.batches}", report.batches, None)
        if not report.batches:
            raise NormfuseError(NO_BATCHES if look is None else ONCE)
        if look is not None and report.batches != look.batches:
            raise fewer(look.batches, report.batches)
        same &= look is None or look.digest == str(digest)
        refusals += [Refusal(RULE, name, UNREACHED) for name in names if name not in reached]
        for name, times in reached.items():
            total = sums[name]
            if total.count < 2:
                raise lone(name, total.count)
            if times < report.batches:
                share = f"{times} of {report.batches} batches"
                report.notes.append(f"{name!r} is called on {share}: its statistics are those of these")
            new[name] = total.statistics()
            _write(name, named[name], new[name], total.batches)
    _require_any([list(new)] if new else [], refusals)
    if not same:
        report.notes.append(UNLIKE)
    others.restore()
    if look is not None and len(look.orders) > 1:  # it depends on the data: on the statistics, too?
        again = look_at(result, named, batches, say)
        if again.digest == look.digest and (again.calls, again.orders) != (look.calls, look.orders):
            raise NormfuseError(
                "with the new statistics the batches come to other BatchNorms, or in another order, than with the old; "
                "take the flow `batch`"
            )
        others.restore()
    _compare(report, original, result, batches)
    others.restore()
    for level, name in enumerate(new, 1):
        report.add(Layer(name, 1 if flow == "batch" else level, named[name].eps, old[name], new[name]))
    report.weigh()
    report.notes += told_of(parameters.ignored, parameters.twice)
    for inner, training in zip(result.modules(), modes, strict=True):
        inner.training = training
    return report


def _require_any(plan: list[list[str]], refusals: list[Refusal]) -> None:
    """Makes sure that there is a BatchNorm to measure.

    Raises:
        NormfuseError: there is none.
    """
    if not plan and refusals:
        raise NormfuseError(f"no BatchNorm can be calibrated: {refusals[0].node!r}: {refusals[0].reason}")
    if not plan:
        raise NormfuseError("the module has no BatchNorm; what is folded into weights cannot be estimated anew")


def _measured(
    module: nn.Module,
    layers: Mapping[str, _BatchNorm],
    batches: Iterable[Any],
    estimator: Estimator,
    flow: Flow,
    digest: Digest,
) -> Iterator[list[tuple[str, Moments]]]:
    """The moments of what some layers read, batch by batch: one for each call."""
    least = least_elements(estimator, flow)
    found: list[tuple[str, Moments]] = []
    current = 0

    def measure(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(part: nn.Module, args: Any, kwargs: Any) -> None:
            try:
                found.append((name, checked(name, _moments(args[0] if args else kwargs["input"]), least)))
            except NormfuseError as error:
                raise NormfuseError(f"batch {current}: {error}") from error
            if flow == "levels":
                raise _Reached

        return hook

    hooks = [part.register_forward_pre_hook(measure(name), with_kwargs=True) for name, part in layers.items()]
    try:
        for part in layers.values():
            part.train(flow == "batch")
        for current, batch in enumerate(batches):
            found.clear()
            with suppress(_Reached):
                run(module, batch, current, digest)
            yield list(found)
    finally:
        for hook in hooks:
            hook.remove()
        for part in layers.values():
            part.eval()


def _moments(x: Tensor) -> Moments:
    """Those of (N, C, *spatial), in float64."""
    wide = (x.cpu() if x.device.type == "mps" else x).double()  # which has no float64
    flat = wide.transpose(0, 1).reshape(wide.shape[1], -1)
    mean = flat.mean(1)
    m2 = ((flat - mean[:, None]) ** 2).sum(1)
    return Moments(flat.shape[1], mean.cpu().numpy(), m2.cpu().numpy())


def _statistics(part: _BatchNorm) -> Statistics:
    assert part.running_mean is not None
    assert part.running_var is not None
    mean, variance = (one.detach().cpu().double().numpy().copy() for one in (part.running_mean, part.running_var))
    return Statistics(mean, variance)


def _write(name: str, part: _BatchNorm, statistics: Statistics, batches: int) -> None:
    """Writes the statistics into a BatchNorm, rounded once.

    Raises:
        NormfuseError: one overflows or underflows its dtype, or it is a variance of 0 where ε is 0.
    """
    for what, buffer, array in (
        ("mean", part.running_mean, statistics.mean),
        ("variance", part.running_var, statistics.variance),
    ):
        assert buffer is not None
        largest = float(np.abs(array).max(initial=0))
        if largest > torch.finfo(buffer.dtype).max:
            raise NormfuseError(f"BatchNorm {name!r}: a {what} of {largest:.1e} overflows {buffer.dtype}")
        buffer.copy_(torch.from_numpy(array).to(buffer.dtype))
        rounded, round_off = buffer.double().cpu().numpy(), torch.finfo(buffer.dtype).eps / 2
        if lost := lost_by_rounding(what, rounded, statistics, part.eps, round_off):
            raise NormfuseError(
                f"BatchNorm {name!r}: a {what} of {lost:.1e} underflows {buffer.dtype}; scale the data, or keep its "
                "statistics in float32"
            )
        if what == "variance" and not part.eps and not bool(buffer.all()):
            raise unscalable(name, int((buffer == 0).sum()))
    if part.num_batches_tracked is not None:
        part.num_batches_tracked.fill_(batches)


def _compare(report: Calibration, before: nn.Module, after: nn.Module, batches: Iterable[Any]) -> None:
    """Says how far the outputs move on the first batches, and what cannot be compared."""
    movement, left, drawn, index = Movement(), dict[str, None](), False, -1
    for index, batch in zip(range(COMPARED), batches, strict=False):
        with kept_random(before):  # so that both draw the same
            result, draws_any = draws(before, partial(run, before, batch, index))
        drawn |= draws_any
        old, new = (leaves_of(one) for one in (result, run(after, batch, index)))
        for name, leaf in old.items():
            if name in new and is_number(leaf) and is_number(new[name]):
                movement.add(name, to_array(leaf), to_array(new[name]))
            else:
                left[name] = None
    report.compare(movement.moved())
    if left:
        report.notes.append(f"outputs that are no tensors are not compared: {', '.join(map(repr, left))}")
    if index < 0:
        report.notes.append("how far the outputs move is not known, as the batches can be read only once")
    if drawn:
        report.notes.append("the module draws random numbers: another run may differ")


def _counts(module: nn.Module) -> Counts:
    """The size of a module: its leaves are its nodes."""
    leaves = [part for part in module.modules() if not list(part.children())]
    kinds = sorted(type(part).__name__ for part in leaves)
    held: Iterable[Tensor] = [*module.parameters(), *module.buffers()]
    operators = {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}
    return Counts(len(leaves), operators, sum(t.numel() for t in held), sum(t.numel() * t.element_size() for t in held))

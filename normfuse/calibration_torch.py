"""`calibrate` for torch modules: the same estimators and flows, by hooks on the BatchNorm modules of a copy.

A module does not tell which of its BatchNorms depend on which. With the flow `levels` each has a pass of its own, in
the order in which the forward pass comes to them, which ends there. With the flow `batch` one pass runs with all of
them in train mode, and only them: torch.optim.swa_utils.update_bn puts all else, such as dropout, in train mode too.

A batch is what `update_bn` takes: a tensor or an array, or a list that begins with it; besides, a mapping of keyword
arguments. This module is imported where torch is imported already.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from normfuse.calibration_passes import Say
from normfuse.calibration_report import Calibration, Layer, Moved, Movement
from normfuse.calibration_state import check_options
from normfuse.calls import is_array, outputs_of
from normfuse.errors import NormfuseError
from normfuse.measuring import Flow, checked, least_elements, lone
from normfuse.population import Estimator, Moments, Statistics, Sums
from normfuse.report import Counts, Refusal
from normfuse.stored import RULE

COMPARED = 3
"""Batches on which the outputs before and after are compared."""


class _Reached(BaseException):  # so that no module takes it for an error
    """The forward pass has come to the BatchNorm that is measured."""


def calibrated_module(
    module: nn.Module, batches: Any, estimator: Estimator, flow: Flow, say: Say
) -> tuple[Calibration, nn.Module]:
    """The report, and a copy of a module with new statistics; see `normfuse.calibrate`.

    Raises:
        NormfuseError: it has no statistics to estimate, cannot be copied, or does not run on the batches.
    """
    check_options(estimator, flow)
    if iter(batches) is batches:
        raise NormfuseError("an iterator can be read only once; give a list or a DataLoader")
    try:
        original, result = copy.deepcopy(module), copy.deepcopy(module)
    except Exception as error:
        what = " ".join(str(error).split())[:200]
        raise NormfuseError(f"the module {type(module).__name__} cannot be copied: {what}; export it first") from error
    modes = [part.training for part in result.modules()]
    original.eval()
    result.eval()
    with torch.no_grad():
        order, refusals = _called(result, batches, flow)
        old = {name: _statistics(part) for name, part in order.items()}
        new: dict[str, Statistics] = {}
        plan = [list(order)] if flow == "batch" else [[name] for name in order]
        report = Calibration(_counts(module), _counts(module), refusals=refusals)
        report.estimator, report.flow, report.passes = estimator, flow, len(plan)
        for number, names in enumerate(plan):
            sums = {name: Sums(estimator, len(old[name].mean)) for name in names}
            report.batches = 0
            for moments in _measured(result, {name: order[name] for name in names}, batches, estimator, flow):
                for name, one in moments:
                    sums[name].add(one)
                report.batches += 1
                say(f"pass {number + 1} of {len(plan)}, batch {report.batches}", report.batches, None)
            for name, total in sums.items():
                if total.count < 2:
                    raise lone(name)
                new[name] = total.statistics()
                _write(name, order[name], new[name], total.batches)
        report.outputs = _moved(original, result, batches)
    for level, (name, part) in enumerate(order.items(), 1):
        report.add(Layer(name, 1 if flow == "batch" else level, part.eps, old[name], new[name]))
    report.weigh()
    for inner, training in zip(result.modules(), modes, strict=True):
        inner.training = training
    return report, result


def _called(module: nn.Module, batches: Any, flow: Flow) -> tuple[dict[str, _BatchNorm], list[Refusal]]:
    """The BatchNorms to measure by name, in the order in which they are called, and the others with the reason.

    Raises:
        NormfuseError: there is none.
    """
    named = {name: part for name, part in module.named_modules() if isinstance(part, _BatchNorm)}
    calls: dict[str, int] = {}

    def count(name: str) -> Callable[..., None]:
        return lambda *_: calls.update({name: calls.get(name, 0) + 1})

    hooks = [part.register_forward_pre_hook(count(name)) for name, part in named.items()]
    try:
        for batch in batches:
            _run(module, batch, 0)
            break
        else:
            raise NormfuseError("there are no batches; give at least one")
    finally:
        for hook in hooks:
            hook.remove()
    refusals = []
    for name, part in named.items():
        if part.running_mean is None or part.running_var is None:
            refusals.append(Refusal(RULE, name, "track_running_stats=False: its statistics are those of the batch"))
        elif name not in calls:
            refusals.append(Refusal(RULE, name, "the batches do not come to it"))
        elif calls[name] > 1 and flow == "levels":
            reason = f"it is called {calls[name]} times, once behind itself; the flow `batch` measures all calls"
            refusals.append(Refusal(RULE, name, reason))
    refused = {refusal.node for refusal in refusals}
    order = {name: named[name] for name in calls if name not in refused}
    if not order and refusals:
        raise NormfuseError(f"no BatchNorm can be calibrated: {refusals[0].node!r}: {refusals[0].reason}")
    if not order:
        raise NormfuseError("the module has no BatchNorm; what is folded into weights cannot be estimated anew")
    return order, refusals


def _measured(
    module: nn.Module, layers: Mapping[str, _BatchNorm], batches: Any, estimator: Estimator, flow: Flow
) -> Iterator[list[tuple[str, Moments]]]:
    """The moments of what some layers read, batch by batch: one for each call."""
    least = least_elements(estimator, flow)
    found: list[tuple[str, Moments]] = []

    def measure(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(part: nn.Module, args: Any, kwargs: Any) -> None:
            found.append((name, checked(name, _moments(args[0] if args else kwargs["input"]), least)))
            if flow == "levels":
                raise _Reached

        return hook

    hooks = [part.register_forward_pre_hook(measure(name), with_kwargs=True) for name, part in layers.items()]
    try:
        for part in layers.values():
            part.train(flow == "batch")
        for index, batch in enumerate(batches):
            found.clear()
            with suppress(_Reached):
                _run(module, batch, index)
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


def _run(module: nn.Module, batch: Any, index: int) -> Any:
    """Runs a module on a batch.

    Raises:
        NormfuseError: it does not run on it.
    """
    device = next((one.device for one in (*module.parameters(), *module.buffers())), torch.device("cpu"))

    def tensor(value: Any) -> Any:
        return torch.as_tensor(value).to(device) if is_array(value) else value

    try:
        if isinstance(batch, Mapping):
            return module(**{name: tensor(value) for name, value in batch.items()})
        return module(tensor(batch[0] if isinstance(batch, list | tuple) else batch))
    except NormfuseError:
        raise
    except Exception as error:
        what = " ".join(str(error).split())[:200] or type(error).__name__
        raise NormfuseError(f"batch {index}: the module {type(module).__name__} does not run on it: {what}") from error


def _statistics(part: _BatchNorm) -> Statistics:
    assert part.running_mean is not None
    assert part.running_var is not None
    mean, variance = (one.detach().cpu().double().numpy().copy() for one in (part.running_mean, part.running_var))
    return Statistics(mean, variance)


def _write(name: str, part: _BatchNorm, statistics: Statistics, batches: int) -> None:
    """Writes the statistics into a BatchNorm, rounded once.

    Raises:
        NormfuseError: one overflows its dtype.
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
    if part.num_batches_tracked is not None:
        part.num_batches_tracked.fill_(batches)


def _moved(before: nn.Module, after: nn.Module, batches: Any) -> list[Moved]:
    """How far the outputs move on the first batches."""
    movement = Movement()
    for index, batch in zip(range(COMPARED), batches, strict=False):
        old, new = (outputs_of(_run(one, batch, index)) for one in (before, after))
        for name, array in old.items():
            movement.add(name, array, new[name])
    return movement.moved()


def _counts(module: nn.Module) -> Counts:
    """The size of a module: its leaves are its nodes."""
    leaves = [part for part in module.modules() if not list(part.children())]
    kinds = sorted(type(part).__name__ for part in leaves)
    held: Iterable[Tensor] = [*module.parameters(), *module.buffers()]
    operators = {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}
    return Counts(len(leaves), operators, sum(t.numel() for t in held), sum(t.numel() * t.element_size() for t in held))

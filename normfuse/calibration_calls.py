"""Which BatchNorms of a torch module are called on its batches, how often, and in which order: `Look`.

All of that may depend on the batch. A pass that measures one layer is right only where each batch comes to it once at
most, and to all that is measured before it earlier.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.utils import _pytree as tree

from normfuse.batch_digest import Digest
from normfuse.calibration_passes import Say
from normfuse.calls import is_array, to_array, to_tensor
from normfuse.errors import NormfuseError
from normfuse.report import Refusal
from normfuse.stored import RULE

NO_BATCHES = "there are no batches; give at least one"
ONCE = "the batches can be read only once; give a list"
UNREACHED = "no batch comes to a call of it; F.batch_norm with its tensors is none"


def fewer(before: int, now: int) -> NormfuseError:
    """What is said where a pass has another number of batches than the one before."""
    return NormfuseError(f"one pass had {before} batches, the next {now}; give what can be read again, such as a list")


def require_eager(module: nn.Module) -> None:
    """Makes sure that Python sees the calls of the modules within a module.

    Raises:
        NormfuseError: one was scripted or compiled, or has no weights.
    """
    for name, part in module.named_modules():
        kind = "scripted" if isinstance(part, torch.jit.ScriptModule) else ""
        kind = "compiled" if hasattr(part, "_orig_mod") else kind
        if kind:
            whose = f"its part {name!r}" if name else "the module"
            raise NormfuseError(f"{whose} is {kind}, and does not show what it does; give the one that it was made of")
    if any(one.is_meta for one in (*module.parameters(), *module.buffers())):
        raise NormfuseError("the module is on the device meta, where there are no weights; load them first")


def tracked(module: nn.Module) -> tuple[dict[str, _BatchNorm], list[Refusal]]:
    """The BatchNorms that hold statistics of their own by name, and the others with the reason."""
    named: dict[str, _BatchNorm] = {}
    refusals: list[Refusal] = []
    owners: dict[int, list[str]] = {}
    parts = {name: part for name, part in module.named_modules() if isinstance(part, _BatchNorm)}
    for name, part in parts.items():
        for buffer in (part.running_mean, part.running_var):
            if buffer is not None:
                owners.setdefault(buffer.data_ptr(), []).append(name)
    for name, part in parts.items():
        if part.running_mean is None or part.running_var is None:
            refusals.append(Refusal(RULE, name, "track_running_stats=False: its statistics are those of the batch"))
            continue
        shared = [*owners[part.running_mean.data_ptr()], *owners[part.running_var.data_ptr()]]
        others = [repr(other) for other in dict.fromkeys(shared) if other != name]
        if others:
            reason = f"its statistics are those of {' and '.join(others)} too; give each layer its own tensors"
            refusals.append(Refusal(RULE, name, reason))
        else:
            named[name] = part
    for name, other in module.named_modules():
        if isinstance(other, _InstanceNorm) and other.running_mean is not None:
            refusals.append(Refusal(RULE, name, "it is an InstanceNorm, whose statistics are means over examples"))
    return named, refusals


@dataclass(slots=True)
class Look:
    """What is called on the batches.

    Attributes:
        calls: the most calls of each BatchNorm on one batch.
        orders: in which order they are called for the first time, on one batch or another.
        digest: of the batches.
        batches: how many there are.
    """

    calls: dict[str, int]
    orders: dict[tuple[str, ...], None] = field(default_factory=dict)
    digest: str = ""
    batches: int = 0

    def refusals(self) -> list[Refusal]:
        """Those that cannot have a pass of their own."""
        found = []
        for name, calls in self.calls.items():
            if not calls:
                found.append(Refusal(RULE, name, UNREACHED))
            elif calls > 1:
                reason = f"it is called {calls} times on one batch, of which a pass sees one; the flow `batch` sees all"
                found.append(Refusal(RULE, name, reason))
        return found

    def order(self, names: set[str]) -> list[str]:
        """An order in which all batches come to some BatchNorms.

        Raises:
            NormfuseError: there is none.
        """
        graph: TopologicalSorter[str] = TopologicalSorter()
        for whole in self.orders:
            chain = [name for name in whole if name in names]
            for before, name in zip([None, *chain], chain, strict=False):
                graph.add(name, *([] if before is None else [before]))
        try:
            return list(graph.static_order())
        except CycleError as error:
            first, second, *_ = error.args[1]
            raise NormfuseError(
                f"the batches come to {first!r} and {second!r} in different orders, so that none can be measured "
                "behind the other; take the flow `batch`, or give batches of one kind"
            ) from None


def look_at(module: nn.Module, named: Mapping[str, _BatchNorm], batches: Iterable[Any], say: Say) -> Look:
    """Runs a module on all batches, and sees which BatchNorms are called.

    Raises:
        NormfuseError: it does not run on one, or there is none.
    """
    look, digest = Look(dict.fromkeys(named, 0)), Digest()
    called: list[str] = []

    def see(name: str) -> Callable[..., None]:
        return lambda *_: called.append(name)

    hooks = [part.register_forward_pre_hook(see(name)) for name, part in named.items()]
    index = -1
    try:
        for index, batch in enumerate(batches if named else ()):
            called.clear()
            run(module, batch, index, digest)
            look.orders[tuple(dict.fromkeys(called))] = None
            for name, calls in Counter(called).items():
                look.calls[name] = max(look.calls[name], calls)
            say(f"looking what is called, batch {index + 1}", index + 1, None)
    finally:
        for hook in hooks:
            hook.remove()
    if named and index < 0:
        raise NormfuseError(NO_BATCHES)
    look.digest, look.batches = str(digest), index + 1
    return look


def run(module: nn.Module, batch: Any, index: int, digest: Digest | None = None) -> Any:
    """Runs a module on a batch, of which it gets a copy that it may write to.

    Raises:
        NormfuseError: it does not run on it.
    """
    device = next((one.device for one in (*module.parameters(), *module.buffers())), torch.device("cpu"))
    if isinstance(batch, list | tuple):
        if not batch:
            raise NormfuseError(f"batch {index} is empty; give a tensor, or a list that begins with one")
        batch = batch[0]
    given: tuple[Any, Any] = ((), dict(batch)) if isinstance(batch, Mapping) else ((batch,), {})
    try:
        leaves, spec = tree.tree_flatten(given)
        if digest is not None:
            digest.add({str(place): to_array(leaf) for place, leaf in enumerate(leaves) if is_array(leaf)}, index)
        wanted = _float_of(module)
        own = [_own(leaf, device, wanted) if is_array(leaf) else leaf for leaf in leaves]
        args, kwargs = tree.tree_unflatten(own, spec)
        return module(*args, **kwargs)
    except NormfuseError:
        raise
    except Exception as error:
        what = " ".join(str(error).split())[:200] or type(error).__name__
        raise NormfuseError(f"batch {index}: the module {type(module).__name__} does not run on it: {what}") from error


def _own(leaf: Any, device: torch.device, wanted: torch.dtype | None) -> torch.Tensor:
    """A tensor of an array, with floats rounded as for an ONNX model; a tensor keeps its dtype."""
    if isinstance(leaf, torch.Tensor):
        return leaf.to(device, copy=True)
    found: torch.Tensor = to_tensor(leaf)
    return found.to(device, wanted if found.is_floating_point() else None)


def _float_of(module: nn.Module) -> torch.dtype | None:
    """The dtype of the floats that a module holds; None where there is none, or several."""
    held = {one.dtype for one in (*module.parameters(), *module.buffers()) if one.is_floating_point()}
    return held.pop() if len(held) == 1 else None

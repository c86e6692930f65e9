"""What a forward pass may change besides the statistics that are measured: buffers and random numbers.

Each pass over the data begins with the buffers that the module came with, so that a counter or a running average that
it keeps has no part in what is measured; and none of it is left in the module that comes out. The random numbers of
torch go on, once all is done, where they were.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Buffers:
    """The buffers of a module as they are now, but those of some of its parts."""

    def __init__(self, module: nn.Module, but: Collection[nn.Module] = ()) -> None:
        self._held = [
            (part, name, buffer, buffer.clone())
            for part in module.modules()
            if part not in but
            for name, buffer in part.named_buffers(recurse=False)
        ]

    def restore(self) -> None:
        """Puts them back, also where others were put in their place."""
        for part, name, buffer, content in self._held:
            buffer.copy_(content)
            part.register_buffer(name, buffer, name not in part._non_persistent_buffers_set)


@contextmanager
def kept_random(module: nn.Module) -> Iterator[None]:
    """Within it, torch may draw random numbers; afterwards the generators are as before."""
    with torch.random.fork_rng(devices=_cuda(module)):
        yield


def draws(module: nn.Module, call: Callable[[], Any]) -> tuple[Any, bool]:
    """What a call gives, and whether it draws random numbers, as torch's generators tell."""
    before = _states(module)
    found = call()
    return found, any(not torch.equal(one, other) for one, other in zip(before, _states(module), strict=True))


def _states(module: nn.Module) -> list[Tensor]:
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(index) for index in _cuda(module))]


def _cuda(module: nn.Module) -> list[int]:
    held = (*module.parameters(), *module.buffers())
    return sorted({one.device.index or 0 for one in held if one.device.type == "cuda"})

"""Where a model will run: `Target`, the execution provider and what depends on it."""

import os
from dataclasses import dataclass
from typing import Literal, Self, get_args

from normfuse.errors import NormfuseError

Provider = Literal["portable", "cpu", "cuda"]
CUDA_OPSET = 21
"""ONNX Runtime has InstanceNormalization and MaxPool on CUDA up to this opset; above it they run on the CPU."""

PROVIDERS: tuple[Provider, ...] = get_args(Provider)


def available_threads() -> int:
    """The number of processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True, slots=True)
class Target:
    """The execution provider a model is optimized for.

    Attributes:
        provider: `portable` (standard ONNX operators only), or what ONNX Runtime runs fastest on `cpu` or `cuda`.
        threads: intra-op threads that the session will use.
    """

    provider: Provider = "cpu"
    threads: int = 1

    @classmethod
    def parse(cls, target: "str | Target", threads: int | None = None) -> Self:
        """Reads a target from its name.

        Raises:
            NormfuseError: the name is not one of `PROVIDERS`, or `threads` is not positive.
        """
        if isinstance(target, Target):
            return cls(target.provider, threads or target.threads)
        for provider in PROVIDERS:
            if provider == target:
                if threads is not None and threads < 1:
                    raise NormfuseError(f"threads must be at least 1, not {threads}")
                return cls(provider, threads or available_threads())
        raise NormfuseError(f"unknown target {target!r}; choose one of {', '.join(PROVIDERS)}")

"""Where a model will run: `Target`, the execution provider and what depends on it."""

import os
from dataclasses import dataclass
from numbers import Integral
from typing import Literal, Self, cast, get_args

from normfuse.alike import did_you_mean
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

    def __post_init__(self) -> None:
        """Refuses what is no target.

        Raises:
            NormfuseError: the provider is not one of `PROVIDERS`, or `threads` is no positive number.
        """
        if self.provider not in PROVIDERS:
            raise NormfuseError(f"unknown target {self.provider!r}; {_hint(self.provider)}")
        if isinstance(self.threads, bool) or not isinstance(self.threads, Integral) or self.threads < 1:
            raise NormfuseError(f"threads is {self.threads!r}; give a whole number from 1 on")

    @classmethod
    def parse(cls, target: "str | Target", threads: int | None = None) -> Self:
        """Reads a target from its name.

        Raises:
            NormfuseError: the name is not one of `PROVIDERS`, or `threads` is no positive number.
        """
        if isinstance(target, Target):
            return cls(target.provider, target.threads if threads is None else threads)
        return cls(cast(Provider, target), available_threads() if threads is None else threads)


def _hint(name: object) -> str:
    question = did_you_mean(name, PROVIDERS) if isinstance(name, str) else ""
    return f"choose one of {', '.join(PROVIDERS)}{question and '; '}{question}"

"""Arguments of the Python API, looked at before work starts: what is wrong is one line that tells what may be given.

An argument bears the same name wherever it is taken, and is allowed the same there.
"""

import os
import reprlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np

from normfuse.errors import NormfuseError
from normfuse.target import PROVIDERS, Target

Law = Callable[[Any], bool]


@dataclass(frozen=True, slots=True)
class _Kind:
    """What an argument may be.

    Attributes:
        allows: whether a value is one.
        words: what is one, after "give".
    """

    allows: Law
    words: str


def _is_count(value: Any) -> bool:
    return _is_size(value) and bool(value > 0)


def _is_size(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 0


def _is_time(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and float(value) >= 0


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool | np.bool_)


def _is_path(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, os.PathLike) and isinstance(os.fspath(value), str))


def _are_names(value: Any) -> bool:
    return isinstance(value, Collection) and not isinstance(value, str | bytes) and _all(_is_text, value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _are_shapes(value: Any) -> bool:
    return isinstance(value, Mapping) and _all(_is_text, value) and _all(_is_shape, value.values())


def _is_shape(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        value = value.tolist()
    return _is_size(value) or (isinstance(value, Sequence) and not isinstance(value, str) and _all(_is_size, value))


def _are_inputs(value: Any) -> bool:
    if isinstance(value, Mapping):
        return _all(_is_text, value)
    if _is_path(value):
        return True
    return isinstance(value, Collection) and not isinstance(value, str | bytes) and _all(_are_inputs, value)


def _all(law: Law, values: Iterable[Any]) -> bool:
    return all(law(value) for value in values)


def _optional(law: Law) -> Law:
    return lambda value: value is None or law(value)


def _is_provider(value: Any) -> bool:
    return isinstance(value, str) and value in PROVIDERS


_FLAG = _Kind(_is_flag, "True or False")
_SECONDS = _Kind(_is_time, "seconds, a number from 0 on")
_PROVIDER = "'cpu' or 'cuda'"
_SHAPES = "shapes by input name or sizes by the name of a dimension, such as {'x': (1, 3, 224, 224)} or {'batch': 4}"
_DATA = "the path of an .npz file, arrays by input name such as {'x': array}, or a list of these"
_NAMES = "a list of names, such as ['conv-after']"
_CALLED = _Kind(_optional(callable), "a function, or None")
_PATH = _Kind(_optional(_is_path), "a path, or None")

_KINDS: dict[str, _Kind] = {
    "budget": _SECONDS,
    "checkpoint": _PATH,
    "data": _Kind(_optional(_are_inputs), _DATA),
    "folder": _PATH,
    "freeze": _Kind(_optional(_is_flag), "True, False or None"),
    "ignore": _Kind(_are_names, _NAMES),
    "input_names": _Kind(_are_names, "a list of names"),
    "kwargs": _Kind(_optional(lambda value: isinstance(value, Mapping) and _all(_is_text, value)), "a dict by name"),
    "layers": _FLAG,
    "layout": _FLAG,
    "observers": _Kind(
        lambda value: isinstance(value, Collection) and _all(callable, value), "a list of functions (stage, model)"
    ),
    "opset": _Kind(_optional(_is_count), "a whole number, or None"),
    "optimize": _FLAG,
    "output_names": _Kind(_are_names, "a list of names"),
    "path": _PATH,
    "place": _Kind(_is_path, "a path"),
    "profile": _FLAG,
    "progress": _CALLED,
    "provider": _Kind(_is_provider, _PROVIDER),
    "rounds": _Kind(_is_count, "a whole number from 1 on"),
    "scheduler": _Kind(_optional(_is_text), "an address, 'local', or None"),
    "seconds": _SECONDS,
    "seeds": _Kind(_is_count, "a whole number from 1 on"),
    "select": _Kind(_are_names, _NAMES),
    "shapes": _Kind(_optional(_are_shapes), _SHAPES),
    "target": _Kind(
        lambda value: isinstance(value, str | Target), f"one of {', '.join(map(repr, PROVIDERS))}, or a Target"
    ),
    "tax": _FLAG,
    "threads": _Kind(_optional(_is_count), "a whole number from 1 on, or None for all processors"),
    "training": _FLAG,
    "translations": _Kind(_optional(lambda value: isinstance(value, Mapping)), "a dict by operator, or None"),
    "tune": _Kind(lambda value: _is_flag(value) or hasattr(value, "require"), "True, False or a Tuner"),
    "verify": _FLAG,
    "verify_budget": _SECONDS,
}
"""By the name of the argument."""


def check(**given: Any) -> None:
    """Looks at arguments by their names.

    Raises:
        NormfuseError: one is not what it may be, and what that is.
    """
    for name, value in given.items():
        if not _KINDS[name].allows(value):
            raise NormfuseError(f"{name} is {reprlib.repr(value)}; give {_KINDS[name].words}")

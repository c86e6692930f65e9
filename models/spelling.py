"""`Spelling`: one way to write a form in ONNX, or something that only looks like it."""

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir


@dataclass(frozen=True, slots=True)
class Spelling:
    """One way to write a normalization or an activation.

    Attributes:
        form: what it is one of, such as `LayerNorm`; for a look-alike, what it looks like.
        name: tells it from the others of its form.
        build: makes a model of it, with one float input `x` first and one output.
        meaning: the `Standardize` or activation that must be found; None for a look-alike, where nothing may be found.
    """

    form: str
    name: str
    build: Callable[[], ir.Model]
    meaning: object | None

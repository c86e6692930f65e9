"""`Journal`: what the passes tell of each change before and after they make it, and who may forbid it.

Passes do not prove anything. They name the nodes that a change is about to touch, and what they have done; whoever
listens may cut that part of the graph out on both sides and compare.
"""

from collections.abc import Callable, Collection

import onnx_ir as ir

from normfuse.report import Change

Forbid = Callable[[Change], str | None]
"""Says why a change must not be made, by its rule and its nodes; None or nothing where it may be."""


class Journal:
    """Forbids what it is told to, and looks at nothing.

    Attributes:
        model: the model that is being changed.
    """

    model: ir.Model

    def __init__(self, forbid: Forbid | None = None) -> None:
        """Forbids the changes for which `forbid` has a reason."""
        self._forbid = forbid

    def forbids(self, rule: str, nodes: tuple[str, ...]) -> str:
        """Why a rule must not change these nodes; empty where it may."""
        return "" if self._forbid is None else self._forbid(Change(rule, nodes)) or ""

    def before(self, nodes: Collection[ir.Node]) -> object:
        """Looks at the nodes that a change will remove or modify, before it is made."""
        return None

    def after(self, seen: object, change: Change, opset: int | None = None) -> None:
        """Looks at what a change has made of them.

        Args:
            seen: what `before` returned.
            change: the change.
            opset: the opset that what was written is meant for; that of the model where None.
        """

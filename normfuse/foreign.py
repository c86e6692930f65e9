"""`Foreign`: what takes part in a verification although it is no ONNX model, such as a torch module.

To the rest it is a model whose graph only declares inputs and outputs; who wants it computed asks it for a `Runner`,
and who wants y64 for a `Truth`. These two are also what ONNX models are run by.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol, Self

import numpy as np
import onnx_ir as ir

from normfuse.ports import inputs_of

Array = np.ndarray[Any, Any]


class Runner(Protocol):
    """A model that can be run: `normfuse.runtime.Session`, `normfuse.evaluated.Evaluated`, or a foreign one."""

    def run(self, inputs: Mapping[str, Array], names: Sequence[str] | None = None) -> dict[str, Array]:
        """Runs it once, and gives the outputs, or those of them that are named.

        Raises:
            TargetError: it does not run on these inputs.
        """


class Truth(Protocol):
    """What computes y64: `normfuse.oracle.Oracle`, or a foreign model in float64."""

    def run(
        self, inputs: Mapping[str, Array], names: Collection[str] | None = None, *, deadline: float | None = None
    ) -> dict[str, Array]:
        """Computes the outputs, or the values that are named, as far as it knows them.

        Raises:
            OracleError: it cannot, or not by the deadline.
        """


class Foreign(ir.Model, ABC):
    """A model whose graph only declares what it takes and gives.

    Attributes:
        kinds: the types that it computes in.
        like: an ONNX model with the same inputs, whose graph tells which values they may have.
        example: one set of inputs that it takes, by name; empty where none is known.
        notes: what the user should know of how it is judged.
    """

    def __init__(
        self,
        inputs: Sequence[tuple[str, ir.DataType | None, ir.Shape | None]],
        outputs: Sequence[tuple[str, ir.DataType | None, ir.Shape | None]],
        *,
        title: str,
        kinds: Collection[ir.DataType] = (),
        like: ir.Model | None = None,
    ) -> None:
        """Declares inputs and outputs by name, dtype and shape; what is not known is None."""
        values = [_value(*row) for row in inputs]
        node = ir.Node("normfuse.foreign", title, values, outputs=[_value(*row) for row in outputs])
        graph = ir.Graph(values, node.outputs, nodes=[node], opset_imports={"": 18, "normfuse.foreign": 1}, name=title)
        super().__init__(graph, ir_version=10)
        self.kinds = frozenset(kinds)
        self.like = like
        self.example: Mapping[str, Array] = {}
        self.notes: tuple[str, ...] = ()

    def clone(self, deep_copy: bool = False) -> Self:
        """Itself: nothing in it is ever edited."""
        return self

    @abstractmethod
    def runner(self, name: str) -> Runner:
        """Runs it in its own types.

        Args:
            name: what error messages call it.
        """

    @abstractmethod
    def truth(self, *, widens: bool = True) -> Truth:
        """Runs it in float64.

        Args:
            widens: whether what it casts to a narrower type by itself is float64, too.

        Raises:
            OracleError: it has no float64 form.
        """

    @abstractmethod
    def moved(self) -> "Foreign":
        """The same with its weights moved by one unit in the last place."""


def signature(model: ir.Model) -> tuple[list[tuple[str, ir.DataType | None, ir.Shape | None]], ...]:
    """The inputs and the outputs that a model declares, as `Foreign` takes them."""
    return tuple(
        [(str(value.name), value.dtype, value.shape) for value in values]
        for values in (inputs_of(model), model.graph.outputs)
    )


def _value(name: str, dtype: ir.DataType | None, shape: ir.Shape | None) -> ir.Value:
    return ir.Value(name=name, type=None if dtype is None else ir.TensorType(dtype), shape=shape)

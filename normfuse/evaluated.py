"""`Evaluated`: a model run by the reference evaluator in its own types, where no provider here has its operators."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from normfuse.errors import TargetError
from normfuse.oracle import Oracle, OracleError

Array = np.ndarray[Any, Any]


class Evaluated:
    """What `normfuse.runtime.Session` offers, by onnx's evaluator and `normfuse.kernels` instead of ONNX Runtime.

    Attributes:
        name: what error messages call the model.
        inputs: names of the inputs, in order.
        outputs: names of the outputs, in order.
    """

    def __init__(self, model: ir.Model, name: str) -> None:
        """Takes a model.

        Raises:
            TargetError: it holds an operator that nothing here can run.
        """
        self.name = name
        self.inputs = [str(value.name) for value in model.graph.inputs if not value.is_initializer()]
        self.outputs = [str(value.name) for value in model.graph.outputs]
        stated = {str(value.name): value.dtype for value in model.graph.outputs}
        self._dtypes = {name: dtype for name, dtype in stated.items() if dtype != ir.DataType.UNDEFINED}
        try:
            self._oracle = Oracle(model, upcast=False)
        except OracleError as error:
            raise TargetError(
                f"{name}: neither ONNX Runtime nor the reference evaluator can run it here ({error}); prove it where "
                "its provider is, or leave the proof out"
            ) from error

    def run(self, inputs: Mapping[str, Array], names: Sequence[str] | None = None) -> dict[str, Array]:
        """Runs the model once.

        Args:
            inputs: arrays by input name.
            names: the outputs to compute; all of them by default.

        Raises:
            TargetError: a node could not be run.
        """
        try:
            values = self._oracle.run(inputs, self.outputs if names is None else names)
        except OracleError as error:
            raise TargetError(f"{self.name}: the reference evaluator failed to run it: {error}") from error
        return {name: self._typed(name, value) for name, value in values.items()}

    def _typed(self, name: str, value: Array) -> Array:
        """A value in the type that the model declares: numpy widens here and there."""
        dtype = self._dtypes.get(name)
        return np.asarray(value) if dtype is None else np.asarray(value).astype(dtype.numpy(), copy=False)

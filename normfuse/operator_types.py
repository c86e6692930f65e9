"""Which floats an operator of ONNX takes in an opset: `misfit` finds the first node that is given others.

bfloat16 came late: Conv, LSTM, the pools and most activations have it from opset 22 on. torch writes them in any opset.
Such a file is no valid ONNX, and that no runtime loads it says nothing about kernels.
"""

from dataclasses import dataclass
from functools import cache

import onnx
import onnx.defs
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

_FLOATS = (ir.DataType.BFLOAT16, ir.DataType.FLOAT16, ir.DataType.FLOAT, ir.DataType.DOUBLE)
_DEFAULT = ("", "ai.onnx")


@dataclass(frozen=True, slots=True)
class Misfit:
    """A node that is given floats which its operator does not take.

    Attributes:
        operator: its operator.
        node: its name.
        dtype: what it is given.
        opset: the opset of the model.
        since: the lowest opset in which the operator takes that; None where there is none.
    """

    operator: str
    node: str
    dtype: str
    opset: int
    since: int | None

    def __str__(self) -> str:
        where = f" (node {self.node!r})" if self.node else ""
        return f"opset {self.opset} has no {self.operator} of {self.dtype}{where}"


def misfit(model: ir.Model) -> Misfit | None:
    """The first node of a model that is given floats which its operator does not take, as far as types are known."""
    found = _first(model)
    if found is None and _is_vague(model):
        model = model.clone()
        ShapeInferencePass(check_type=False, strict_mode=False, data_prop=False)(model)
        found = _first(model)
    return found


def _is_vague(model: ir.Model) -> bool:
    """Whether some types are not known, of a model that holds bfloat16: the others hardly ever do not fit."""
    values = [value for node in model.graph.all_nodes() for value in node.outputs]
    known = {value.dtype for value in (*values, *model.graph.inputs, *model.graph.initializers.values())}
    return None in known and ir.DataType.BFLOAT16 in known


def _first(model: ir.Model) -> Misfit | None:
    opset = model.opset_imports.get("", 0)
    for node in model.graph.all_nodes():
        if node.domain not in _DEFAULT or node.op_identifier() in model.functions:
            continue
        for index, value in enumerate(node.inputs):
            if value is None or not isinstance(value.type, ir.TensorType) or value.dtype not in _FLOATS:
                continue
            name = value.type.dtype.name.lower()
            if not _takes(node.op_type, opset, index, name):
                later = range(opset + 1, onnx.defs.onnx_opset_version() + 1)
                since = next((one for one in later if _takes(node.op_type, one, index, name)), None)
                return Misfit(node.op_type, node.name or "", name, opset, since)
    return None


@cache
def _takes(operator: str, opset: int, index: int, dtype: str) -> bool:
    """Whether an operator takes tensors of a type as one of its inputs; what onnx does not know takes anything."""
    try:
        schema = onnx.defs.get_schema(operator, opset, "")
    except onnx.defs.SchemaError:
        return True
    # those of a variadic one are all of the last kind
    return not schema.inputs or f"tensor({dtype})" in schema.inputs[min(index, len(schema.inputs) - 1)].types

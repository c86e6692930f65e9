"""Model-local functions of the domain `normfuse`: what opsets lack, with standard operators of opset 18 as bodies.

A model that calls them runs wherever those operators do. torch's optimizer does not look into them: it leaves a
normalization whole, and does not fold a BatchNormalization in float32.

======================= =====================================================================================
function                what it computes
======================= =====================================================================================
GroupNormalization      γ · (x − μ) / √(Var + ε) + β of x (N, C, *spatial), statistics for each group of channels
RMSNormalization        γ · x / √(E[x²] + ε) over some of the last axes
BatchNormalization      γ · (x − E[x]) / √(Var[x] + ε) + β with stored statistics
BatchStatistics         γ · (x − μ) / √(Var + ε) + β with the statistics of the batch
LayerNormalization      γ · (x − μ) / √(Var + ε) + β over some of the last axes
InstanceNormalization   γ · (x − μ) / √(Var + ε) + β of x (N, C, *spatial), statistics for each channel
======================= =====================================================================================

Those called `Wide…` have their statistics in float32, for an x that is narrower, and those called `Exact…` their ε in
float64, for a float64 x: an attribute of an operator is a float32. There is a LayerNormalization and an
InstanceNormalization for what their operators do not compute so.
"""

import re

import numpy as np
import onnx
import onnx_ir as ir
from onnx.defs import OpSchema
from onnx_ir.passes.common import InlinePass

DOMAIN = "normfuse"

STANDARD = {
    "BatchNormalization": ("BatchNormalization", 9),
    "RMSNormalization": ("RMSNormalization", 23),
    "WideRMSNormalization": ("RMSNormalization", 23),
}
"""The operator of the default domain that computes the same, and from which opset on.

GroupNormalization, there since opset 21, is not among them: it is defined with the variance as E[x²] − E[x]², which
loses it at large means. As ONNX Runtime runs it, at a mean of 1000 its error was 80 to 90 times that of torch.
"""

_ATTRIBUTES = {"axes": OpSchema.AttrType.INTS, "epsilon": OpSchema.AttrType.FLOAT, "num_groups": OpSchema.AttrType.INT}

_GROUP_NORM = """GroupNormalization <num_groups, epsilon> (x, scale, bias) => (y) {
    same = Constant <value_ints: ints = [0]> ()
    rest = Constant <value_ints: ints = [-1]> ()
    axis = Constant <value_ints: ints = [2]> ()
    groups = Constant <value_int: int = @num_groups> ()
    groups_1d = Unsqueeze (groups, same)
    group_shape = Concat <axis: int = 0> (same, groups_1d, rest)
    wide = widen (x)
    grouped = Reshape (wide, group_shape)
    mean = ReduceMean (grouped, axis)
    centred = Sub (grouped, mean)
    square = Mul (centred, centred)
    variance = ReduceMean (square, axis)
    constant = Constant <value_float: float = @epsilon> ()
    epsilon_like = CastLike (constant, variance)
    sum = Add (variance, epsilon_like)
    root = Sqrt (sum)
    normalized = Div (centred, root)
    shape = Shape (x)
    whole = Reshape (normalized, shape)
    narrow = narrow (whole)
    scaled = Mul (narrow, scale)
    y = Add (scaled, bias)
}"""

_RMS_NORM = """RMSNormalization <axes, epsilon> (x, scale) => (y) {
    over = Constant <value_ints: ints = @axes> ()
    wide = widen (x)
    square = Mul (wide, wide)
    mean = ReduceMean (square, over)
    constant = Constant <value_float: float = @epsilon> ()
    epsilon_like = CastLike (constant, mean)
    sum = Add (mean, epsilon_like)
    root = Sqrt (sum)
    normalized = Div (wide, root)
    narrow = narrow (normalized)
    y = Mul (narrow, scale)
}"""

_LAYER_NORM = """LayerNormalization <axes, epsilon> (x, scale, bias) => (y) {
    over = Constant <value_ints: ints = @axes> ()
    mean = ReduceMean (x, over)
    centred = Sub (x, mean)
    square = Mul (centred, centred)
    variance = ReduceMean (square, over)
    constant = Constant <value_float: float = @epsilon> ()
    epsilon_like = CastLike (constant, variance)
    sum = Add (variance, epsilon_like)
    root = Sqrt (sum)
    normalized = Div (centred, root)
    scaled = Mul (normalized, scale)
    y = Add (scaled, bias)
}"""

_INSTANCE_NORM = """InstanceNormalization <epsilon> (x, scale, bias) => (y) {
    wide = widen (x)
    wide_scale = widen (scale)
    wide_bias = widen (bias)
    normalized = InstanceNormalization <epsilon: float = @epsilon> (wide, wide_scale, wide_bias)
    y = narrow (normalized)
}"""

_BATCH_NORM = """BatchNormalization <epsilon> (x, scale, bias, mean, var) => (y) {
    y = BatchNormalization <epsilon: float = @epsilon> (x, scale, bias, mean, var)
}"""

_BATCH_STATISTICS = """BatchStatistics <axes, epsilon> (x, scale, bias) => (y) {
    over = Constant <value_ints: ints = @axes> ()
    wide = widen (x)
    kept = ReduceMean (wide, over)
    centred = Sub (wide, kept)
    square = Mul (centred, centred)
    mean = ReduceMean <keepdims: int = 0> (wide, over)
    variance = ReduceMean <keepdims: int = 0> (square, over)
    wide_scale = widen (scale)
    wide_bias = widen (bias)
    normalized = BatchNormalization <epsilon: float = @epsilon> (wide, wide_scale, wide_bias, mean, variance)
    y = narrow (normalized)
}"""


def _same(body: str) -> str:
    """The statistics in the dtype of x."""
    return re.sub(r"\b(?:widen|narrow) \(", "Identity (", body)


def _wide(body: str) -> str:
    """The statistics in float32, γ and β of the other norms behind the way back."""
    wide = re.sub(r"\bwiden \(", "Cast <to: int = 1> (", body)
    return "Wide" + re.sub(r"\bnarrow \((\w+)\)", r"CastLike (\1, x)", wide)


def _exact(body: str) -> str:
    """ε as a tensor."""
    return "Exact" + _same(body).replace("value_float: float", "value: tensor")


def _parsed(body: str) -> onnx.FunctionProto:
    return onnx.parser.parse_function(f'<opset_import: ["": 18], domain: "{DOMAIN}"> {body}')


FUNCTIONS: dict[str, onnx.FunctionProto] = {
    one.name: one
    for one in map(
        _parsed,
        (
            *(spelled(body) for body in (_GROUP_NORM, _RMS_NORM, _BATCH_STATISTICS) for spelled in (_same, _wide)),
            *(_exact(body) for body in (_GROUP_NORM, _RMS_NORM, _LAYER_NORM)),
            _wide(_INSTANCE_NORM),
            _BATCH_NORM,
        ),
    )
}
"""The functions by name."""


def schema(name: str) -> OpSchema:
    """What a function takes and gives, as an operator: inputs and outputs are tensors of floats."""
    function = FUNCTIONS[name]
    kinds = ["tensor(float16)", "tensor(bfloat16)", "tensor(float)", "tensor(double)"]
    return OpSchema(
        name,
        DOMAIN,
        1,
        inputs=[OpSchema.FormalParameter(one, "T") for one in function.input],
        outputs=[OpSchema.FormalParameter(one, "T") for one in function.output],
        type_constraints=[("T", kinds, "")],
        attributes=[OpSchema.Attribute(one, _kind(one, name), "") for one in function.attribute],
    )


def _kind(attribute: str, function: str) -> OpSchema.AttrType:
    exact = attribute == "epsilon" and function.startswith("Exact")
    return OpSchema.AttrType.TENSOR if exact else _ATTRIBUTES[attribute]


def settle(model: ir.Model) -> None:
    """Gives calls what they call: an operator of the default domain where the opset has it, else a function."""
    opset = model.opset_imports[""]
    for node in [node for node in model.graph.all_nodes() if node.domain == DOMAIN]:
        operator, since = STANDARD.get(node.op_type, ("", 0))
        # these two keep their statistics in float32, whatever they are given
        narrows = operator != "BatchNormalization" and node.outputs[0].dtype == ir.DataType.DOUBLE
        if operator and opset >= since and not narrows:
            node.domain, node.op_type, node.version = "", operator, None
            axes = node.attributes.pop("axes", None)
            if axes is not None:
                node.attributes["axis"] = ir.AttrInt64("axis", axes.as_ints()[0])
        else:
            _along_channels(node)
            function = ir.serde.deserialize_function(FUNCTIONS[node.op_type])
            function.opset_imports[""] = opset
            model.functions[function.identifier()] = function
    if model.functions:
        model.opset_imports[DOMAIN] = 1
    else:
        model.opset_imports.pop(DOMAIN, None)


def _along_channels(node: ir.Node) -> None:
    """γ and β of a GroupNormalization stand along the channels: its body multiplies as numpy does."""
    x = node.inputs[0]
    if not node.op_type.endswith("GroupNormalization") or x is None or x.shape is None or len(x.shape) < 3:
        return
    assert node.graph is not None
    for index in (1, 2):
        value = node.inputs[index]
        assert value is not None
        constant = ir.tensor(np.arange(1, len(x.shape) - 1, dtype=np.int64))
        axes = ir.node("Constant", [], {"value": constant})
        column = ir.node("Unsqueeze", [value, axes.outputs[0]])
        node.graph.insert_before(node, (axes, column))
        node.replace_input_with(index, column.outputs[0])


def inline(model: ir.Model) -> None:
    """Puts the bodies of our functions where they are called."""
    InlinePass(criteria=lambda function: function.domain == DOMAIN)(model)

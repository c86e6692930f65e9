"""An If whose condition is constant: the branch that is never taken leaves no trace."""

import onnx.parser
import pytest

import normfuse

NESTED = """
<ir_version: 8, opset_import: ["" : 17]>
net (bool flag, float[N] x) => (float[N] y) {
    z = Relu(x)
    y = If (condition) <
        then_branch = yes () => (float[N] a) { a = Tanh(z) },
        else_branch = no () => (float[N] b) {
            inner = Exp(z)
            b = If (flag) <
                then_branch = first () => (float[N] c) { c = Neg(inner) },
                else_branch = second () => (float[N] d) { d = Add(inner, z) }
            >
        }
    >
}
"""


@pytest.mark.parametrize(("condition", "expected"), [(True, {"Relu", "Tanh"}), (False, {"Relu", "Exp", "If"})])
def test_values_of_the_other_branch_may_be_read_deeper_within(condition: bool, expected: set[str]) -> None:
    model = onnx.parser.parse_model(NESTED)
    tensor = onnx.helper.make_tensor("condition", onnx.TensorProto.BOOL, [], [condition])
    model.graph.initializer.append(tensor)
    result = normfuse.optimize(model, "cpu", verify=False)
    assert {node.op_type for node in result.model.graph.node} == expected
    onnx.checker.check_model(result.model)

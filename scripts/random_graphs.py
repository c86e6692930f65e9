"""Random models of all that rules look at, as a function of choices: `random_model`.

Affine maps, linear operators, what carries a map along, normalizations and activations (as operators and spelled
out), in subgraphs and functions; of any dtype, opset and dimensions. See `scripts.graphs` for how they grow.
"""

from collections.abc import Sequence

import numpy as np
import onnx

from scripts.graphs import FLOATS, Choices, Dim, Growth, Seeded, Step, Value, one_of
from scripts.graphs_linear import AFFINE, LINEAR
from scripts.graphs_nesting import LOCAL, NESTING, info
from scripts.graphs_norms import ACTIVATIONS, NORMS
from scripts.graphs_places import JOINS, PLACES, PLAIN, cast
from scripts.graphs_rare import INPUTS, RARE
from scripts.graphs_spelled import SPELLED

OPSETS = (17, 18, 13, 21, 11, 20, 22, 23, 9, 14, 15, 23)
"""Opsets of the default domain; LayerNormalization came with 17, GroupNormalization with 18, and so on."""

SHAPES: tuple[tuple[int, ...], ...] = (
    *((1, 4, 5, 5), (2, 4, 4, 4), (1, 8, 4, 6), (2, 6, 1, 5), (3, 4, 3), (2, 5, 8), (1, 6, 6), (2, 6), (4, 4)),
    *((1, 2, 3, 4, 4), (2, 1, 4, 4), (1, 7, 5, 3), (2, 11, 7)),
)
"""Of inputs: images, sequences, rows, volumes; sizes of 1, primes, several samples, as many channels as rows."""

SYMBOLS = (("N",), ("N", "C", "H", "W", "D"), ("N", "C", "S", "S", "S"))
"""Names of dynamic dimensions: the batch, all but the channels, and one name for several."""


def random_model(choices: Choices) -> onnx.ModelProto:
    """Makes a model of 1 to 12 steps."""
    opset = one_of(choices, OPSETS)
    kinds = ["float32"] * 5 + ["float16", "float64", *(["bfloat16"] if opset >= 13 else [])]
    dtype = FLOATS[one_of(choices, kinds)]
    g = Growth(choices, opset, np.random.default_rng(choices.below(2**16)), dtype=dtype)
    inputs = [Value(INPUTS[0], dims(g), dtype)]
    if g.chance(20):
        inputs.append(Value(INPUTS[1], inputs[0].dims, dtype))
    g.values += inputs
    steps: list[Sequence[Step]] = [AFFINE, LINEAR, NORMS, PLACES, ACTIVATIONS, PLAIN, JOINS]
    if g.chance(30):
        steps.append(SPELLED)
    if g.chance(25):
        steps.append(NESTING)
    if g.chance(15) and dtype.name != "float64":
        steps.append((cast,))
    if g.chance(30):
        steps.append(RARE)
    g.walk(steps, inputs[0], 1 + choices.below(12))
    outputs = _outputs(g, {one.name for one in inputs})
    return _model(g, inputs, outputs)


def seeded_model(seed: int) -> onnx.ModelProto:
    """The model of a seed."""
    return random_model(Seeded(seed))


def dims(g: Growth) -> tuple[Dim, ...]:
    """Dimensions of an input, some of them dynamic."""
    shape: tuple[Dim, ...] = one_of(g.choices, SHAPES)
    if g.chance(2):
        return (0, *shape[1:])  # no sample at all: nothing to judge, and nothing that may crash
    if not g.chance(35):
        return shape
    symbols = g.choose(*SYMBOLS)
    return tuple(symbols[axis] if axis < len(symbols) and axis != 1 else dim for axis, dim in enumerate(shape))


def _outputs(g: Growth, given: set[str]) -> list[Value]:
    """The newest value; seldom others that nothing reads, and one that something reads."""
    read = {name for node in g.nodes for name in node.input}
    made = [value for value in g.values if value.name not in given]
    if not made:
        g.values.append(g.add("Identity", [g.values[0].name], g.values[0].dims))
        return g.values[-1:]
    outputs = made[-1:]
    outputs += [value for value in made[:-1] if value.name not in read and g.chance(60)]
    inner = [value for value in made[:-1] if value.name in read]
    if inner and g.chance(20):
        outputs.append(g.choose(*inner))
    return outputs


def _model(g: Growth, inputs: Sequence[Value], outputs: Sequence[Value]) -> onnx.ModelProto:
    graph = onnx.helper.make_graph(
        g.nodes, "random", [info(one) for one in inputs], [info(one) for one in outputs], g.constants
    )
    if g.constants and g.chance(12):
        listed = g.constants if g.chance(50) else g.constants[:1]
        for tensor in listed:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    opsets = [onnx.helper.make_opsetid("", g.opset)]
    if g.functions:
        opsets.append(onnx.helper.make_opsetid(LOCAL, 1))
    version = max(8, onnx.helper.find_min_ir_version_for(opsets[:1]))
    model = onnx.helper.make_model(graph, opset_imports=opsets, functions=g.functions, ir_version=version)
    if g.chance(30):
        model = onnx.shape_inference.infer_shapes(model)
    return model

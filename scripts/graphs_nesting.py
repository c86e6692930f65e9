"""Steps of random graphs: If, Loop and Scan, and model-local functions."""

from collections.abc import Sequence

import numpy as np
import onnx

from scripts.graphs import Growth, Step, Value, need
from scripts.graphs_linear import AFFINE, LINEAR
from scripts.graphs_norms import ACTIVATIONS, NORMS
from scripts.graphs_places import JOINS, PLACES, PLAIN

LOCAL = "local"
"""The domain of model-local functions."""

DEEPEST = 2
"""So deep subgraphs and functions may lie in one another."""


def info(value: Value) -> onnx.ValueInfoProto:
    """The name, dtype and dimensions of a value; symbols of computed sizes are left out."""
    kind = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
    dims = [dim if isinstance(dim, int) or dim.isidentifier() else None for dim in value.dims]
    return onnx.helper.make_tensor_value_info(value.name, kind, dims)


def body(g: Growth, x: Value, *, keep: bool = True) -> Value:
    """One to three steps within, after which dimensions and dtype are as before where they must be."""
    steps: list[Sequence[Step]] = [AFFINE, LINEAR, NORMS, ACTIVATIONS, PLAIN, JOINS, PLACES]
    if g.depth < DEEPEST:
        steps.append(NESTING)
    length = g.choose(1, 2, 3)
    made = g.walk(steps, x, length, dims=keep)
    if made == x or (g.values and all(made.name not in node.output for node in g.nodes)):
        made = g.add("Relu", [made.name], made.dims)
    return made


def subgraph(g: Growth, name: str, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[Value]) -> onnx.GraphProto:
    """The subgraph that a growth has become."""
    return onnx.helper.make_graph(g.nodes, g.name(name), list(inputs), [info(one) for one in outputs], g.constants)


def condition(g: Growth, x: Value) -> str:
    """A bool that depends on x, or the constant true."""
    name = g.name("p")
    if g.chance(30):
        g.nodes.append(onnx.helper.make_node("Constant", [], [name], name=f"n_{name}", value=_true(g.name("true"))))
        return name
    total = g.reduce("ReduceSum", x, range(x.rank), keepdims=False)
    g.nodes.append(onnx.helper.make_node("Greater", [total.name, g.constant(0.1)], [name], name=f"n_{name}"))
    return name


def conditional(g: Growth, x: Value) -> Value:
    """An If whose branches read x from outside."""
    need(g.depth < DEEPEST and g.opset >= 9)
    chosen = condition(g, x)
    graphs = {}
    for key in ("then_branch", "else_branch"):
        inner = g.within()
        graphs[key] = subgraph(inner, key, [], [body(inner, x)])
    return g.add("If", [chosen], x.dims, **graphs)


def loop(g: Growth, x: Value) -> Value:
    """A Loop of two rounds that carries a value of the dimensions of x and reads others from outside."""
    need(g.depth < DEEPEST and g.opset >= 11)
    inner = g.within()
    count, go, on = g.name("i"), g.name("p"), g.name("q")
    state = Value(g.name("v"), x.dims, x.dtype)
    inner.values.append(state)
    made = body(inner, state)
    inner.nodes.append(onnx.helper.make_node("Identity", [go], [on], name=f"n_{on}"))
    inputs = [
        onnx.helper.make_tensor_value_info(count, onnx.TensorProto.INT64, []),
        onnx.helper.make_tensor_value_info(go, onnx.TensorProto.BOOL, []),
        info(state),
    ]
    graph = subgraph(inner, "loop", inputs, [made])
    graph.output.insert(0, onnx.helper.make_tensor_value_info(on, onnx.TensorProto.BOOL, []))
    trips = g.constant(2, np.int64)
    return g.add("Loop", [trips, "", x.name], x.dims, body=graph)


def scan(g: Growth, x: Value) -> Value:
    """A Scan over axis 0, that stacks what it makes of each slice."""
    need(g.depth < DEEPEST and g.opset >= 11 and x.rank >= 3)
    inner = g.within()
    slice_ = Value(g.name("v"), x.dims[1:], x.dtype)
    inner.values.append(slice_)
    made = body(inner, slice_)
    graph = subgraph(inner, "scan", [info(slice_)], [made])
    return g.add("Scan", [x.name], x.dims, body=graph, num_scan_inputs=1)


def function(g: Growth, x: Value) -> Value:
    """A model-local function that is called once, or twice in a row; it may call others."""
    need(g.depth < DEEPEST)
    inner = g.within(inline=True)
    given = Value(g.name("v"), x.dims, x.dtype)
    inner.values.append(given)
    made = body(inner, given)
    name = g.name("function")
    opsets = [onnx.helper.make_opsetid("", g.opset), onnx.helper.make_opsetid(LOCAL, 1)]
    g.functions.append(onnx.helper.make_function(LOCAL, name, [given.name], [made.name], inner.nodes, opsets))
    for _ in range(g.choose(1, 2)):
        x = g.add_any(name, [x.name], x.dims, domain=LOCAL)
    return x


def _true(name: str) -> onnx.TensorProto:
    return onnx.numpy_helper.from_array(np.array(True), name)


NESTING: tuple[Step, ...] = (conditional, loop, scan, function, function)

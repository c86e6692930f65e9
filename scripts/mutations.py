"""Hostile variants of small models: bytes and fields of protobuf messages changed at random, reproducible by seed.

`mutant(kind, seed)` takes one of the models of `corpus`, and changes it by one to four of the laws in `BYTES` or
`FIELDS`.
Messages are walked by their descriptors, so that each field of ONNX is met, whatever it is called.
"""

import random
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnx.parser
from onnx import TensorProto, helper, numpy_helper

INTEGERS = (0, 1, -1, 2, 3, 7, 255, 2**31 - 1, -(2**31), 2**31, 2**40, 2**62, 2**63 - 1, -(2**63))
"""What takes the place of an integer: off by one, too large for 32 bits, negative, with products that overflow."""

TEXTS = ("", "x", "\0", "a\0b", "../up", "/etc/passwd", "é" * 9, "n" * 70_000, "ai.onnx", "%s%n{0}", "Loop", "If")
"""What takes the place of a text."""

WEIGHTS = bytes(range(256)) * 4
"""What lies beside the models as `weights.bin`, where one of them has its numbers."""

_HEAD = '<ir_version: 9, opset_import: ["" : 18, "custom" : 1, "com.microsoft" : 1]> g '

_TEXTS = (
    """(float[n,3,8,8] x) => (float[n,4,8,8] y) <float[4,3,1,1] w, float[4] b, float[4] s = {1.0, -2.0, 0.5, 3.0},
       float[4] m = {0.1, 0.2, 0.3, 0.4}, float[4] v = {1.0, 2.0, 3.0, 4.0}> {
        t = Conv <pads = [0,0,0,0], group = 1> (x, w, b)
        u = BatchNormalization <epsilon = 0.001> (t, s, b, m, v)
        y = Relu(u)
    }""",
    """(float[b,16] x) => (float[b,16] y) <int64[1] axes = {-1}, float eps = {0.00001}, float[16] g, float[16] h,
       float[16,16] w> {
        p = MatMul(x, w)
        m = ReduceMean(p, axes)
        d = Sub(p, m)
        two = Constant <value = float {2.0}> ()
        q = Pow(d, two)
        v = ReduceMean(q, axes)
        e = Add(v, eps)
        s = Sqrt(e)
        n = Div(d, s)
        k = Mul(n, g)
        y = Add(k, h)
    }""",
    """(bool c, float[2,4] x, int64 trip) => (float[2,4] y, float[2,4] z) <float[4] g> {
        u = Mul(x, g)
        y = If(c) <then_branch = g1 () => (float[2,4] a) { a = Add(u, g) },
                   else_branch = g2 () => (float[2,4] e) { f = Relu(u) e = Mul(f, g) }>
        z = Loop(trip, c, u) <body = g3 (int64 i, bool ci, float[2,4] in) => (bool co, float[2,4] out) {
            co = Identity(ci) out = Mul(in, g) }>
    }""",
    """(float[1,8,4,4] x) => (float[1,8,4,4] y) <float[8] s, float[8] b> {
        i = InstanceNormalization <epsilon = 0.0001> (x, s, b)
        l = LRN <size = 3, alpha = 0.1, beta = 0.75, bias = 1.0> (i)
        h = custom.act(l)
        p = MaxPool <kernel_shape = [3,3], pads = [1,1,1,1]> (h)
        y = AveragePool <kernel_shape = [1,1]> (p)
    }
    <domain: "custom", opset_import: ["" : 18]> act <alpha>(a) => (o) {
        c = Constant <value_float: float = @alpha> () n = Sigmoid(a) o = Mul(a, n)
    }""",
    """(float[n,4,6] x) => (float[k,l,m] y, int64[r] z) <int64[1] two = {2}, int64[3] shape = {0,-1,3}, float[4,1] s,
       int64 zero = {0}, int64 lim = {9}, int64 step = {3}> {
        a = Mul(x, s)
        dims = Shape(a)
        t = Transpose <perm = [0,2,1]> (a)
        one = Constant <value_ints = [1]> ()
        q = Slice(dims, one, two)
        r = Concat <axis = 0> (one, q, two)
        z = Range(zero, lim, step)
        c = ConstantOfShape <value = float[1] {1.5}> (two)
        e = Expand(c, two)
        f = Tile(c, two)
        w = Reshape(t, shape)
        o = Add(w, e)
        y = Pad <mode = "constant"> (o, k6)
        k6 = Constant <value = int64[6] {0,0,0,0,0,0}> ()
    }""",
    """(float[1,6,16] x, float[1,6,16] r) => (float[1,6,16] y) <float[16] g, float[16] b, float[16,16] w> {
        l = LayerNormalization <axis = -1, epsilon = 0.00001> (x, g, b)
        q = Einsum <equation = "bij,jk->bik"> (l, w)
        k = com.microsoft.SkipLayerNormalization <epsilon = 0.00001> (q, r, g, b)
        u = Unsqueeze(k, ax)
        ax = Constant <value_ints = [1]> ()
        v = Squeeze(u, ax)
        sp1, sp2 = Split <axis = 2, num_outputs = 2> (v)
        y = Concat <axis = 2> (sp2, sp1)
    }""",
)


@cache
def corpus() -> tuple[onnx.ModelProto, ...]:
    """Small models with convolutions, normalizations in one node and spelled out, subgraphs, functions and shapes."""
    models = [_filled(onnx.parser.parse_model(_HEAD + text), seed) for seed, text in enumerate(_TEXTS)]
    external = _filled(onnx.parser.parse_model(_HEAD + _TEXTS[0]), 9)
    for place, tensor in enumerate(external.graph.initializer):
        tensor.ClearField("float_data")
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="weights.bin")
        tensor.external_data.add(key="offset", value=str(64 * place))
        tensor.external_data.add(key="length", value=str(4 * int(np.prod(tensor.dims))))
    sparse = _filled(onnx.parser.parse_model(_HEAD + _TEXTS[1]), 11)
    values = numpy_helper.from_array(np.array([2.0, -3.0], np.float32), "sp")
    indices = numpy_helper.from_array(np.array([1, 5]), "indices")
    sparse.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [16]))
    sparse.graph.node[-1].input[1] = "sp"
    return (*models, external, sparse)


def _filled(model: onnx.ModelProto, seed: int) -> onnx.ModelProto:
    """Gives numbers to the initializers that the text only declares: those become inputs, so they are moved."""
    rng = np.random.default_rng(seed)
    declared = [
        value for value in model.graph.value_info if value.name not in {t.name for t in model.graph.initializer}
    ]
    for value in declared:
        dims = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        model.graph.initializer.append(
            numpy_helper.from_array(rng.normal(1.0, 0.5, dims).astype(np.float32), value.name)
        )
    return model


def mutant(kind: str, seed: int) -> bytes:
    """One hostile file: a model of the corpus with one to four changes, of its "bytes" or its "fields"."""
    rng = random.Random(f"{kind} {seed}")
    model = onnx.ModelProto()
    model.CopyFrom(rng.choice(corpus()))
    if kind == "bytes":
        data: bytes = model.SerializeToString()
        for _ in range(rng.choice((1, 1, 2, 4))):
            data = rng.choice(BYTES)(rng, data)
        return data
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        for _ in range(20):
            if rng.choice(FIELDS)(rng, model):
                break
    return bytes(model.SerializeToString())


def _flip(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 3))):
        if changed:
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _overwrite(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data) + 1)
    new = rng.choice((b"\xff" * 9 + b"\x01", b"\x00", b"\x7f", rng.randbytes(rng.randrange(1, 9))))
    return data[:at] + new + data[at + len(new) :]


def _cut(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _drop(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + data[at + rng.choice((1, 2, 8, 64)) :]


def _double(rng: random.Random, data: bytes) -> bytes:
    start, end = sorted((rng.randrange(len(data) + 1), rng.randrange(len(data) + 1)))
    return data[:end] + data[start:end] + data[end:]


BYTES: tuple[Callable[[random.Random, bytes], bytes], ...] = (_flip, _flip, _overwrite, _cut, _drop, _double)
"""Laws that change bytes."""


def _messages(message: Any) -> Iterator[Any]:
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for item in value if _is_list(value) else (value,):
                yield from _messages(item)


def _is_list(value: Any) -> bool:
    return hasattr(value, "__len__") and not isinstance(value, str | bytes)


def _number(rng: random.Random, field: Any) -> Any:
    kind = field.cpp_type
    if kind in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
        return rng.choice((0.0, -1.0, 1e30, float("inf"), float("nan"), -0.0, 1e-45))
    bits = 63 if kind in (field.CPPTYPE_INT64, field.CPPTYPE_UINT64) else 31
    signed = kind not in (field.CPPTYPE_UINT64, field.CPPTYPE_UINT32)
    fitting = [n for n in INTEGERS if (-(2**bits) if signed else 0) <= n < 2**bits]
    return rng.choice((*fitting, rng.randrange(32)))


def _scalar(rng: random.Random, field: Any, model: onnx.ModelProto) -> Any:
    if field.cpp_type == field.CPPTYPE_STRING:
        if field.type == field.TYPE_BYTES:
            return rng.choice((b"", b"\xff\x00", rng.randbytes(rng.randrange(40)), b"\0" * 70_000))
        nodes = [name for node in model.graph.node for name in (*node.input, *node.output, node.op_type, node.domain)]
        return rng.choice((*TEXTS, *nodes, *nodes))
    return _number(rng, field)


def _change(rng: random.Random, model: onnx.ModelProto) -> bool:
    """Another value for a field that is set, or a value for one that is not."""
    message = rng.choice(list(_messages(model)))
    fields = [field for field in message.DESCRIPTOR.fields if field.message_type is None]
    present = [field for field, _ in message.ListFields() if field.message_type is None]
    if not fields:
        return False
    field = rng.choice(present if present and rng.random() < 0.8 else fields)
    value = getattr(message, field.name)
    try:
        if not _is_list(value) or isinstance(value, bytes):
            setattr(message, field.name, _scalar(rng, field, model))
        elif len(value) and rng.random() < 0.7:
            value[rng.randrange(len(value))] = _scalar(rng, field, model)
        else:
            value.append(_scalar(rng, field, model))
    except (TypeError, ValueError):  # not every number is a value of an enumeration
        return False
    return True


def _remove(rng: random.Random, model: onnx.ModelProto) -> bool:
    """A field less, or an element of one."""
    message = rng.choice(list(_messages(model)))
    present = message.ListFields()
    if not present:
        return False
    field, value = rng.choice(present)
    if _is_list(value) and rng.random() < 0.8:
        del value[rng.randrange(len(value))]
    else:
        message.ClearField(field.name)
    return True


def _repeat(rng: random.Random, model: onnx.ModelProto) -> bool:
    """An element twice: a node, a name, an initializer, a function, a dimension."""
    message = rng.choice(list(_messages(model)))
    lists = [(field, value) for field, value in message.ListFields() if _is_list(value) and len(value)]
    if not lists:
        return False
    field, value = rng.choice(lists)
    item = value[rng.randrange(len(value))]
    if field.message_type is not None:
        value.add().CopyFrom(item)
    else:
        value.append(item)
    return True


def _splice(rng: random.Random, model: onnx.ModelProto) -> bool:
    """A message in the place of another of its kind: a graph in itself, a node of another model, a foreign type."""
    messages = list(_messages(model))
    target = rng.choice(messages)
    donors = list(_messages(rng.choice((model, *corpus()))))
    fitting = [donor for donor in donors if donor.DESCRIPTOR == target.DESCRIPTOR and donor is not target]
    if not fitting or target is model:
        return False
    copy = type(target)()
    copy.CopyFrom(rng.choice(fitting))
    target.CopyFrom(copy)
    return True


def _shuffle(rng: random.Random, model: onnx.ModelProto) -> bool:
    """The elements of a list in another order."""
    message = rng.choice(list(_messages(model)))
    lists = [(field, value) for field, value in message.ListFields() if _is_list(value) and len(value) > 1]
    if not lists:
        return False
    field, value = rng.choice(lists)
    items = list(value)
    rng.shuffle(items)
    copy = type(message)()
    getattr(copy, field.name).extend(items)
    message.ClearField(field.name)
    getattr(message, field.name).extend(getattr(copy, field.name))
    return True


FIELDS: tuple[Callable[[random.Random, onnx.ModelProto], bool], ...] = (
    _change,
    _change,
    _change,
    _remove,
    _repeat,
    _splice,
    _shuffle,
)
"""Laws that change fields."""

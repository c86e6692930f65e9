"""Bugs planted into the rows of the other stages, opset, prepare and clean, and into the laws of LOWER by hand.

What CleanPass and `freeze` do has no certificates: there the proof of the whole model has to show it.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from normfuse.passes import branches, clean, layout, opset, prepare
from normfuse.target import Target
from scripts import mutants_plants as plants
from scripts.planting import Mutant, Patches, Subject
from tests.parity import build

_Model = tuple[str, dict[str, Any]]

_BRANCHES = (
    "(float[2,4] x) => (float[2,4] y) { y = If (k) <then_branch = one () => (float[2,4] a) { a = Tanh(x) }, "
    "else_branch = two () => (float[2,4] b) { b = Relu(x) }> }"
)
_TURNED = (
    "(float[2,3,4,5] x) => (float[A,B,C,D] y) { r = Transpose<perm=[0,2,3,1]>(x) q = Transpose<perm=[0,3,1,2]>(r)"
    " s = Transpose<perm=[1,2,3,0]>(q) y = Relu(s) }"
)
_RESHAPED: _Model = (
    "(float[2,3,4,5] x) => (float[A,B] y) { r = Reshape(x, one) s = Reshape(r, two) y = Relu(s) }",
    {"one": np.array([2, 12, 5]), "two": np.array([6, 20])},
)
_SIZES: _Model = (
    "(float[N,4,6] x) => (float[N,A,B] y) { d = Shape(x) c = Gather(d, i) k = Concat<axis=0>(z, c, p)"
    " r = Reshape(x, k) y = Softmax(r) }",
    {"i": np.array([2]), "z": np.array([0]), "p": np.array([4])},
)
_WEIGHT: _Model = (
    "(float[N,4,8,8] x) => (float[N,4,6,6] y) { v = Mul(w, s) y = Conv(x, v) }",
    {"w": (4, 4, 3, 3), "s": (4, 1, 1, 1)},
)
_MOVED: _Model = (
    "(float[N,4,8,8] x) => (float[N,4,6,6] y) { v = Transpose<perm=[1,0,2,3]>(w) y = Conv(x, v) }",
    {"w": (4, 4, 3, 3)},
)
_TWO: _Model = ("(float[N,4] x) => (float[N,4] y) { a = Add(x, b) r = Tanh(a) y = Add(r, c) }", {"b": (4,), "c": (4,)})
_LISTED = "(float[N,4] x) => (float[N,4] y) { r = Tanh(x) s = Add(r, b) y = Mul(s, c) }"
_RESIZED = '(float[2,6,4,4] x) => (float[2,6,8,8] y) { y = Resize<mode="linear">(x, s) }'
_GROUPS = "(float[2,6,4,4] x) => (float[2,6,4,4] y) { y = GroupNormalization<num_groups=2>(x, w, c) }"
_HARDMAX = "(float[2,6,4,4] x) => (float[2,6,4,4] y) { y = Hardmax<axis=3>(x) }"


def _built(model: _Model) -> onnx.ModelProto:
    return build(model[0], **model[1])


def _wrong_constant(change: Callable[[Any], Any]) -> Patches:
    found = prepare._replace

    def replaced(graph: Any, value: Any, array: Any, dtype: Any, exact: Any) -> None:
        found(graph, value, change(array), dtype, None if exact is None else change(exact))

    return {(prepare, "_replace"): replaced}


def _wrong_sizes() -> Patches:
    found = prepare.__dict__["shape_constants"]

    def exchanged(graph: Any) -> Iterator[Any]:
        for value, sizes in found(graph):
            yield value, [sizes[0], *sizes[:0:-1]] if isinstance(sizes, list) else sizes

    return {(prepare, "shape_constants"): exchanged}


def _wrong_move() -> Patches:
    found = prepare.__dict__["MOVES"]
    moves = found | {"Transpose": lambda node, array: array.reshape(array.shape[1], -1).T.reshape(array.shape)}
    return {(prepare, "MOVES"): moves}


def _wrong_shape() -> Patches:
    found = layout._shape_of

    def swapped(old: Any, new: Any) -> Any:
        shape = found(old, new)
        return None if shape is None else shape[::-1]

    return {(layout, "_shape_of"): swapped}


def _without_mending(name: str) -> Patches:
    found = opset.__dict__["MENDINGS"]
    return {(opset, "MENDINGS"): tuple(mend for mend in found if mend.__name__ != name)}


def _wrong_order(node: Any, order: int, raised: ir.Graph, places: Any, weights: Any) -> None:
    for new in raised:
        if new.op_type == "Softmax":
            new.attributes["axis"] = ir.AttrInt64("axis", 0)


def _listed() -> onnx.ModelProto:
    """A model whose initializers are all listed as inputs."""
    return build(_LISTED, b=(4,), c=(4,), listed=True)


def _frozen_wrongly() -> Patches:
    found = prepare.PreparePass.freeze_inputs

    def freeze_inputs(self: prepare.PreparePass, model: ir.Model) -> None:
        found(self, model)
        value = model.graph.initializers["b"]
        assert value.const_value is not None
        value.const_value = ir.tensor(np.roll(value.const_value.numpy(), 1), name="b")

    return {(prepare.PreparePass, "freeze_inputs"): freeze_inputs}


STAGES: tuple[tuple[str, str, Callable[[], onnx.ModelProto], int | None, Callable[[], Patches]], ...] = (
    (
        "constant",
        "off by 0.1 %",
        partial(_built, _WEIGHT),
        None,
        lambda: _wrong_constant(lambda a: a * 1.001),
    ),
    (
        "constant",
        "channels rolled",
        partial(_built, _WEIGHT),
        None,
        lambda: _wrong_constant(lambda a: np.roll(a, 1, 0)),
    ),
    ("constant", "moved wrongly", partial(_built, _MOVED), None, _wrong_move),
    ("known-shape", "sizes exchanged", partial(_built, _SIZES), None, _wrong_sizes),
    (
        "known-branch",
        "the branch that is not taken",
        partial(build, _BRANCHES, k=np.array(True)),
        None,
        lambda: {(branches, "_taken"): plants.other_branch},
    ),
    ("layout", "the order inverted", partial(build, _TURNED), None, plants.inverse_order),
    ("layout", "sizes exchanged", partial(_built, _RESHAPED), None, _wrong_shape),
    (
        "clean",
        "weights merged that differ",
        partial(_built, _TWO),
        None,
        lambda: {(clean, "_hold_same"): lambda one, other: True, (clean, "_head"): lambda tensor: b""},
    ),
    (
        "freeze",
        "another constant than the one listed",
        _listed,
        None,
        _frozen_wrongly,
    ),
    (
        "opset",
        "how a Resize takes coordinates",
        partial(build, _RESIZED, opset=10, s=np.array([1, 1, 2, 2], np.float32)),
        18,
        lambda: _without_mending("resize_as_before"),
    ),
    (
        "opset",
        "γ per group taken for γ per channel",
        partial(build, _GROUPS, opset=18, w=(2,), c=(2,)),
        21,
        lambda: _without_mending("group_norm_per_channel"),
    ),
    (
        "opset",
        "another axis",
        partial(build, _HARDMAX.replace("Hardmax", "Softmax"), opset=11),
        13,
        lambda: {(opset, "MENDINGS"): (_wrong_order,)},
    ),
)
"""Row, bug, model, the opset it is raised to, and what is patched."""


def stage_mutants() -> Iterator[Mutant]:
    """The bugs of the stages, one model each."""
    for rule, bug, make, raised, plant in STAGES:
        subject = Subject(rule, bug, make, Target("portable", 1), opset=raised)
        yield Mutant(rule, bug, subject, plant, must=True)


STAGE_ROWS = tuple(row.name for rules in (opset.RULES, prepare.RULES, clean.RULES) for row in rules)

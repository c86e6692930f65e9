"""Reshapes of dynamic shapes in the plainest form that torch's own knowledge of them allows.

torch.export knows each size as a formula of the dynamic dimensions, such as `h - 2`, and computes the shape that a
Reshape is given from the sizes of the inputs. Two sizes with the same formula are equal, so that a Reshape which

    keeps all sizes          is nothing
    only adds sizes of 1     is an Unsqueeze
    only drops sizes of 1    is a Squeeze
    else                     takes sizes from the same place (0), and at most one from what is left (-1)

LIFT can follow these, and what computed the shapes is not needed any more.
"""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

Size = int | str


def simplify_reshapes(model: ir.Model) -> None:
    """Rewrites every Reshape whose shape is computed, where the formulas of its sizes tell how."""
    for node in [node for node in model.graph.all_nodes() if node.op_type == "Reshape" and node.domain == ""]:
        data, shape = node.inputs
        before, after = _sizes(data), _sizes(node.outputs[0])
        if data is None or shape is None or before is None or after is None or _is_constant(shape):
            continue
        if before == after:
            _replace(node, "Identity", [])
        elif (axes := _added(before, after)) is not None:
            _replace(node, "Unsqueeze", axes)
        elif (axes := _added(after, before)) is not None:
            _replace(node, "Squeeze", axes)
        elif (wanted := _plain(before, after)) is not None:
            _replace(node, "Reshape", wanted)


def _is_constant(value: ir.Value) -> bool:
    producer = value.producer()
    return value.const_value is not None or (producer is not None and producer.op_type == "Constant")


def _sizes(value: ir.Value | None) -> tuple[Size, ...] | None:
    """The shape of a value as numbers and formulas; None where one of them is not known, or 0."""
    if value is None or value.shape is None:
        return None
    sizes = [size if isinstance(size, int) else size.value for size in value.shape]
    known = [size for size in sizes if size not in (None, 0)]
    return tuple(size for size in known if size is not None) if len(known) == len(sizes) else None


def _added(few: Sequence[Size], many: Sequence[Size]) -> list[int] | None:
    """The axes at which sizes of 1 were put in; None where something else was done, too."""
    axes: list[int] = []
    place = 0
    for axis, size in enumerate(many):
        if place < len(few) and few[place] == size:
            place += 1
        elif size == 1:
            axes.append(axis)
        else:
            return None
    return axes if place == len(few) and axes else None


def _plain(before: Sequence[Size], after: Sequence[Size]) -> list[int] | None:
    """The shape as a Reshape takes it, with 0 for a size that stays where it is and -1 for one other."""
    wanted: list[int] = []
    for axis, size in enumerate(after):
        if isinstance(size, int):
            wanted.append(size)
        else:
            wanted.append(0 if axis < len(before) and before[axis] == size else -1)
    return wanted if wanted.count(-1) <= 1 else None


def _replace(node: ir.Node, operator: str, constant: Sequence[int]) -> None:
    """Puts another operator where a Reshape stands, with the same data and a constant."""
    data, old = node.inputs[0], node.outputs[0]
    assert node.graph is not None
    new: list[ir.Node] = []
    inputs = [data]
    if operator != "Identity":
        tensor = ir.tensor(np.array(constant, np.int64))
        new.append(ir.node("Constant", [], {"value": tensor}))
        inputs.append(new[0].outputs[0])
    new.append(ir.node(operator, inputs, name=node.name))
    value = new[-1].outputs[0]
    value.type, value.shape = old.type, old.shape
    value.metadata_props.update(old.metadata_props)
    new[-1].metadata_props.update(node.metadata_props)
    node.graph.insert_before(node, new)
    name, old.name = old.name, None
    old.replace_all_uses_with(value, replace_graph_outputs=True)
    value.name = name
    node.graph.remove(node, safe=True)

"""MENDINGS: what onnx's version converter leaves as it was although the operator means something else by then."""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from normfuse.errors import ModelError
from normfuse.passes.access import dims, operator, title
from normfuse.passes.weights import Weights

Places = dict[str, ir.Value]
"""What the names in a model of one node stand for."""


def resize_as_before(node: ir.Node, opset: int, raised: ir.Graph, places: Places, weights: Weights) -> None:
    """Below opset 11, Resize and Upsample take x[⌊i / s⌋]: coordinates are asymmetric, and nearest is floor."""
    for new in _changed(raised, "Resize", opset, 11):
        for name, value in (("coordinate_transformation_mode", "asymmetric"), ("nearest_mode", "floor")):
            new.attributes[name] = ir.AttrString(name, value)


def group_norm_per_channel(node: ir.Node, opset: int, raised: ir.Graph, places: Places, weights: Weights) -> None:
    """Below opset 21, GroupNormalization has γ and β per group; from there on per channel.

    Raises:
        ModelError: γ or β is computed, or the number of channels is not known.
    """
    for new in _changed(raised, "GroupNormalization", opset, 21):
        sizes = dims(node.inputs[0])
        channels = sizes[1] if sizes and len(sizes) > 1 else None
        for index, stem in ((1, "scale"), (2, "bias")):
            old, name = node.inputs[index], new.inputs[index]
            array = weights.array(old)
            if array is None or old is None or old.dtype is None or name is None or not isinstance(channels, int):
                raise ModelError(
                    f"{title(node)} cannot be raised from opset {opset} to one above 20: its scale and bias are per "
                    "group, and not constant or for channels of unknown number; keep the model's opset"
                )
            repeated = np.repeat(array, channels // array.size)
            places[str(name.name)] = weights.new(repeated, old.dtype, f"{node.outputs[0].name}_{stem}", node)


def hardmax_of_one_axis(node: ir.Node, opset: int, raised: ir.Graph, places: Places, weights: Weights) -> None:
    """Below opset 13, Hardmax looks at all axes from its own on; from there on at one.

    Raises:
        ModelError: these are not the same axes.
    """
    for new in _changed(raised, "Hardmax", opset, 13):
        sizes, axis = dims(node.inputs[0]), node.attributes.get_int("axis", 1)
        if operator(node) != "Hardmax" or sizes is None or axis % len(sizes) != len(sizes) - 1:
            raise ModelError(
                f"{title(node)} cannot be raised from opset {opset} to one above 12: there it looks at one axis only; "
                "keep the model's opset"
            )
        new.attributes["axis"] = ir.AttrInt64("axis", -1)


def _changed(raised: ir.Graph, operator: str, before: int, since: int) -> list[ir.Node]:
    """The nodes of a type whose meaning has changed with an opset that lies between the old and the new one."""
    if not before < since <= raised.opset_imports[""]:
        return []
    return [new for new in raised if new.op_type == operator]


MENDINGS: tuple[Callable[[ir.Node, int, ir.Graph, Places, Weights], None], ...] = (
    resize_as_before,
    group_norm_per_channel,
    hardmax_of_one_axis,
)

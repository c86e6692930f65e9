"""The values of two models that bear the same name, and what lies between them.

Passes keep the names of values, and other optimizers mostly do. So a value of one model is looked up in the other by
its name; whether it still means the same is for the numbers to say.
"""

from collections.abc import Collection

import onnx_ir as ir

from normfuse.passes.extent import reads_of
from normfuse.ports import inputs_of


class Values:
    """The values of a model's main graph that depend on its inputs.

    Attributes:
        inputs: names of the inputs that must be fed, in order.
        depth: by name, in the order in which they are computed, the number of nodes on the longest way from an input.
    """

    def __init__(self, model: ir.Model) -> None:
        self.inputs = [str(value.name) for value in inputs_of(model)]
        self._values = {str(value.name): value for value in inputs_of(model)}
        self.depth = dict.fromkeys(self.inputs, 0)
        for node in model.graph:
            before = [self.depth[str(value.name)] for value in reads_of(node) if self._known(value)]
            if not before:
                continue  # it is a constant
            for value in node.outputs:
                if value.name:
                    self._values[value.name] = value
                    self.depth[value.name] = 1 + max(before)

    def _known(self, value: ir.Value) -> bool:
        return self._values.get(str(value.name)) is value

    def __contains__(self, name: object) -> bool:
        return name in self._values

    def operator(self, name: str) -> str:
        """The type of the operator that makes a value; empty for an input."""
        node = self._values[name].producer()
        return "" if node is None else node.op_type

    def behind(self, name: str, stops: Collection[str]) -> tuple[list[str], list[str]]:
        """What a value is computed from.

        Args:
            name: the value.
            stops: values behind which nothing is looked for; inputs always are.

        Returns:
            The stops that it is computed from, and the values that lie between, the value included.
        """
        found, between, pending = dict[str, None](), dict[str, None](), [name]
        while pending:
            current = pending.pop()
            node = self._values[current].producer()
            if current in between or current in found:
                continue
            if node is None or (current in stops and current != name):
                found[current] = None
                continue
            between[current] = None
            pending.extend(str(value.name) for value in reads_of(node) if self._known(value))
        return list(found), list(between)


def matched(reference: Values, candidate: Values) -> list[str]:
    """The names that both models compute something under, in the order of the reference."""
    inputs = {*reference.inputs, *candidate.inputs}
    return [name for name in reference.depth if name in candidate and name not in inputs]

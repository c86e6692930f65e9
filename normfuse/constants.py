"""Which values of a model do not depend on its inputs."""

import onnx_ir as ir


class Constants:
    """Which values do not depend on the model's inputs."""

    def __init__(self) -> None:
        self._known: dict[ir.Value, bool] = {}

    def __contains__(self, value: ir.Value) -> bool:
        pending = [value]
        while pending:
            current = pending[-1]
            producer = current.producer()
            if current in self._known:
                pending.pop()
            elif current.const_value is not None or (producer is not None and producer.op_type == "Constant"):
                self._known[current] = True
            elif producer is None or not producer.inputs:
                self._known[current] = False
            elif unknown := [one for one in producer.inputs if one is not None and one not in self._known]:
                pending.extend(unknown)
            else:
                self._known[current] = all(self._known[one] for one in producer.inputs if one is not None)
        return self._known[value]

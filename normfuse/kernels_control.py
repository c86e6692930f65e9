"""Loop and Scan for the oracle: `CONTROL`, the operators whose bodies it runs again and again.

onnx.reference lays what the rounds of a Loop return one below the other where it should stack them (seven rounds of
1×400 become 7×400, not 7×1×400), and its Scan knows neither directions nor axes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun

from normfuse.kernels_spatial import Array


class _Body(OpRun):
    """An operator with a body that reads values of the graph around it."""

    op_domain = ""
    op_schema = None

    def need_context(self) -> bool:
        """Whether the values of the graph around it are passed: always."""
        return True

    def _round(self, around: Mapping[str, Any], inputs: Sequence[Any], attributes: Any) -> list[Any]:
        """What the body returns; its own inputs hide values of the same name around it."""
        body: Any = self.body  # type: ignore[attr-defined]  # what OpRun makes of the attribute
        named = zip(body.input_names, inputs, strict=True)
        return list(body.run(None, {**around, **dict(named)}, attributes=attributes))


class Loop(_Body):
    """Runs its body while a condition holds: for each round, (states) → (condition, states, what is collected)."""

    def _run(
        self, limit: Any, condition: Any, *states: Any, context: Any = None, attributes: Any = None, **rest: Any
    ) -> tuple[Any, ...]:
        limit = None if limit is None else int(np.asarray(limit).reshape(()))
        alive = True if condition is None else bool(np.asarray(condition).reshape(()))
        current, rounds = list(states), list[Any]()
        while alive and (limit is None or len(rounds) < limit):
            inputs = (np.int64(len(rounds)).reshape(()), np.asarray(True), *current)
            going, *results = self._round(context or {}, inputs, attributes)
            current = results[: len(states)]
            rounds.append(results[len(states) :])
            alive = bool(np.asarray(going).reshape(()))
        if len(self.onnx_node.output) > len(states) and not rounds:
            raise NotImplementedError("a Loop that never runs: the shape of what it collects is unknown")
        return (*current, *(np.stack(collected) for collected in zip(*rounds, strict=True)))


class Scan(_Body):
    """Runs its body along an axis of its inputs: (states, slices) → (states, slices of what is collected)."""

    def _run(self, *inputs: Any, context: Any = None, attributes: Any = None, **rest: Any) -> tuple[Any, ...]:
        if self.run_params["opsets"][""] < 9:
            raise NotImplementedError("Scan below opset 9 runs over batches")
        count = rest["num_scan_inputs"]
        states, scanned = list(inputs[: len(inputs) - count]), inputs[len(inputs) - count :]
        rows = [
            _along(array, axis, backward)
            for array, axis, backward in zip(
                scanned, _each(rest, "input_axes", count), _each(rest, "input_directions", count), strict=True
            )
        ]
        collected: list[Sequence[Any]] = []
        for slices in zip(*rows, strict=True):
            results = self._round(context or {}, (*states, *slices), attributes)
            states, made = results[: len(states)], results[len(states) :]
            collected.append(made)
        outputs = len(self.onnx_node.output) - len(states)
        if outputs and not collected:
            raise NotImplementedError("a Scan that never runs: the shape of what it collects is unknown")
        directions, axes = _each(rest, "output_directions", outputs), _each(rest, "output_axes", outputs)
        columns = list(zip(*collected, strict=True))[:outputs]
        return (
            *states,
            *(
                np.stack(column[::-1] if backward else column, axis=axis)
                for column, axis, backward in zip(columns, axes, directions, strict=True)
            ),
        )


def _each(attributes: Mapping[str, Any], name: str, count: int) -> list[int]:
    """An attribute of Scan with a number for each input or output; zeros where it is not stated."""
    return list(attributes.get(f"scan_{name}") or [0] * count)


def _along(array: Array, axis: int, backward: int) -> Array:
    """The slices of an array along an axis, the last first where it is read backward."""
    rows = np.moveaxis(array, axis, 0)
    return rows[::-1] if backward else rows


CONTROL: tuple[type[OpRun], ...] = (Loop, Scan)
"""The operators with bodies that the oracle runs by itself."""

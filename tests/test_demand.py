"""What is called hopeless is refused when it is asked for; what somebody takes is never called so."""

import numpy as np
import onnx_ir as ir
import pytest

import normfuse
from models.scaling import CHANNELS, FAMILIES, Growing
from normfuse.affine import Affine
from normfuse.passes.access import RefusedError
from normfuse.passes.deal import Need
from normfuse.passes.demand import PASSES, Demand
from normfuse.passes.fold_rules import ABSORB, CARRY
from normfuse.passes.inference import infer_shapes
from normfuse.passes.plan import STEPS, Plan
from normfuse.passes.rule import by_operator
from normfuse.passes.weights import Weights
from scripts.random_graphs import seeded_model

SCALE = Affine.of(1, np.linspace(0.5, 1.5, CHANNELS), 0.0)
SHIFT = Affine.of(1, 1.0, np.linspace(0.5, 1.5, CHANNELS))
ROWS = by_operator(ABSORB + CARRY)


class Stream(Growing):
    """A chain whose last node offers a map to those behind it."""

    def relus(self, x: ir.Value, count: int) -> ir.Value:
        """So many Relu nodes."""
        for _ in range(count):
            x = self.op("Relu", x)
        return x

    def shifted(self, x: ir.Value, count: int) -> ir.Value:
        """So many times x + b, then Relu."""
        for _ in range(count):
            x = self.op("Relu", self.op("Add", x, self.weight(CHANNELS, 1, 1)))
        return x


def judged(writer: Growing, end: ir.Value, affine: Affine) -> tuple[bool, bool]:
    """Whether a map behind the end of a stream is called hopeless, and whether a plan moves it."""
    model = writer.model(writer.op("Softplus", end))
    infer_shapes(model)
    need = Need(model.graph[-1], 0, affine, "after")
    weights = Weights(model)
    hopeless = Demand(ROWS, weights, STEPS).is_hopeless(need)
    try:
        Plan(ROWS, weights).take(need)
    except RefusedError:
        return hopeless, False
    return hopeless, True


HOPELESS, TAKEN = (True, False), (False, True)


class TestIsHopeless:
    def test_at_an_input_of_the_graph(self) -> None:
        writer = Stream()
        assert judged(writer, writer.relus(writer.x, 3), SCALE) == HOPELESS

    def test_too_far_from_a_taker(self) -> None:
        writer = Stream()
        assert judged(writer, writer.relus(writer.conv(writer.x), STEPS), SCALE) == HOPELESS

    def test_not_where_the_last_that_may_be_asked_is_a_taker(self) -> None:
        writer = Stream()
        end = writer.relus(writer.conv(writer.x), STEPS - 1)
        assert judged(writer, end, SCALE) == TAKEN

    def test_sums_with_constants_take_no_scale(self) -> None:
        writer = Stream()
        assert judged(writer, writer.shifted(writer.conv(writer.x), STEPS // 2), SCALE) == HOPELESS

    def test_sums_with_constants_take_a_shift(self) -> None:
        writer = Stream()
        end = writer.op("Add", writer.x, writer.weight(CHANNELS, 1, 1))
        assert judged(writer, end, SHIFT) == TAKEN

    def test_a_sum_with_zero_takes_a_scale(self) -> None:
        writer = Stream()
        end = writer.op("Add", writer.x, writer.constant(np.zeros((CHANNELS, 1, 1))))
        assert judged(writer, end, SCALE) == TAKEN

    def test_a_constant_less_the_data_takes_a_sign(self) -> None:
        writer = Stream()
        end = writer.op("Sub", writer.weight(CHANNELS, 1, 1), writer.x)
        sign = Affine.of(None, -1.0, 0.0)
        assert judged(writer, end, sign) == TAKEN

    def test_a_sum_with_a_constant_takes_a_scale_of_zero(self) -> None:
        writer = Stream()
        end = writer.op("Add", writer.x, writer.weight(CHANNELS, 1, 1))
        nothing = Affine.of(None, 0.0, 0.0)
        assert judged(writer, end, nothing) == TAKEN

    def test_all_branches_of_a_sum_have_to_be_scaled(self) -> None:
        writer = Stream()
        branches = writer.conv(writer.x), writer.op("Softplus", writer.x)
        assert judged(writer, writer.op("Add", *branches), SCALE) == HOPELESS
        writer = Stream()
        branches = writer.conv(writer.x), writer.conv(writer.x)
        assert judged(writer, writer.op("Add", *branches), SCALE) == TAKEN

    def test_where_somebody_else_reads_it(self) -> None:
        writer = Stream()
        x = writer.conv(writer.x)
        writer.op("Softplus", x)
        assert judged(writer, x, SCALE) == HOPELESS

    def test_nothing_is_asked_of_nobody(self) -> None:
        writer = Stream()
        assert judged(writer, writer.x, Affine.identity()) == TAKEN


def test_what_lets_a_map_pass_takes_nothing_in() -> None:
    for operator in PASSES:
        for side in ("after", "before"):
            assert {rule.kind for rule in ROWS[operator, side]} == {"carry"}


@pytest.mark.parametrize("family", ["chain", "mixed", "shifts", "transformer", "random"])
def test_what_is_hopeless_is_refused(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    count, guess = 0, Demand.is_hopeless

    def checked(self: Demand, need: Need) -> bool:
        nonlocal count
        answer = guess(self, need)
        if answer:
            count += 1
            with pytest.raises(RefusedError):
                Plan(self.rows, self.weights).take(need)
        return answer

    monkeypatch.setattr(Demand, "is_hopeless", checked)
    models = [seeded_model(seed) for seed in range(24)] if family == "random" else [FAMILIES[family](140)]
    for model in models:
        normfuse.optimize(model, verify=False)
    assert count

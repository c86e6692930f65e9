"""torch modules in parity tests: against ONNX models and against one another, and left as they are found."""

import copy
import threading
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import pytest

from normfuse.contestants import contestants
from normfuse.errors import NormfuseError
from normfuse.foreign import Foreign
from normfuse.pytest_plugin import _assert_onnx_parity as assert_parity

torch = pytest.importorskip("torch")
nn = torch.nn


pytestmark = pytest.mark.usefixtures("one_thread")


def normed(epsilon: float = 1e-3, seed: int = 0) -> Any:
    """Conv → BatchNorm → GroupNorm → ReLU with statistics that are not the identity."""
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.GroupNorm(2, 8, epsilon), nn.ReLU())
    with torch.no_grad():
        for norm in (module[1], module[2]):
            norm.weight.uniform_(0.5, 2.0)
            norm.bias.normal_()
        module[1].running_mean.normal_()
        module[1].running_var.uniform_(0.2, 3.0)
    return module.eval()


NET = """
<ir_version: 9, opset_import: ["" : 21]>
net (float[N, 3, 7, 5] x) => (float[N, 8, 7, 5] y)
{
    c = Conv <pads = [1, 1, 1, 1]> (x, w, b)
    n = BatchNormalization (c, scale, bias, mean, var)
    g = GroupNormalization <num_groups = 2, epsilon = EPSILON> (n, gamma, beta)
    y = Relu (g)
}
"""


def written(module: Any, epsilon: float = 1e-3) -> onnx.ModelProto:
    """The same as ONNX, by hand."""
    proto = onnx.parser.parse_model(NET.replace("EPSILON", f"{epsilon}"))
    names = ("w", "b", "scale", "bias", "mean", "var", "gamma", "beta")
    tensors = [tensor for tensor in module.state_dict().values() if tensor.ndim]
    for name, tensor in zip(names, tensors, strict=True):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(tensor.numpy(), name))
    return proto


def x(*shape: int) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


class TestAgainstOnnx:
    def test_the_same_passes_both_ways(self) -> None:
        module = normed()
        for pair in ((module, written(module)), (written(module), module)):
            parity = assert_parity(*pair, seeds=1)
            assert parity.judged_by == "oracle"
            assert {shape for output in parity.outputs for shape in output.shapes} == {(1, 8, 7, 5), (3, 8, 7, 5)}

    @pytest.mark.parametrize("wrong", ["epsilon", "running_var", "buffer of the candidate"])
    def test_another_one_fails_both_ways(self, wrong: str) -> None:
        module = normed()
        other = written(module, 2e-3 if wrong == "epsilon" else 1e-3)
        if wrong == "running_var":
            module[1].running_var *= 1.0001
        elif wrong == "buffer of the candidate":
            other.graph.initializer[4].raw_data = (module[1].running_mean.numpy() + np.float32(1e-4)).tobytes()
        for pair in ((module, other), (other, module)):
            with pytest.raises(AssertionError, match="parity FAILED: output 'y'"):
                assert_parity(*pair, seeds=1)

    def test_inputs_are_judged_besides_the_probes(self) -> None:
        module = normed()
        parity = assert_parity(module, written(module), inputs=x(4, 3, 7, 5), seeds=1)
        assert (4, 8, 7, 5) in parity.outputs[0].shapes
        assert len(parity.outputs[0].shapes) > 1


class TestInTrainingMode:
    def test_it_is_judged_in_eval_mode_and_left_as_it_was(self) -> None:
        module = normed().train()
        module[2].eval()
        before = copy.deepcopy(module.state_dict())
        other = written(module)
        parity = assert_parity(module, other, seeds=1)
        assert any("training mode" in note and "eval mode" in note for note in parity.notes)
        assert [part.training for part in module] == [True, True, False, True]
        assert module.training
        after = module.state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before)  # running statistics among them
        assert after["1.num_batches_tracked"] == before["1.num_batches_tracked"]
        assert all(tensor.dtype in (torch.float32, torch.int64) for tensor in after.values())

    def test_a_dropout_draws_nothing(self) -> None:
        module = nn.Sequential(nn.Dropout(0.5), normed()).train()
        assert assert_parity(module, written(module[1]), seeds=1).passed
        with pytest.raises(AssertionError, match="parity FAILED"):
            assert_parity(module, written(module[1], 3e-3), seeds=1)


class Nested(nn.Module):  # type: ignore[misc, name-defined]  # torch may be missing
    """Takes and gives tensors in dicts and tuples, and an option that is none."""

    def __init__(self, swapped: bool = False) -> None:
        super().__init__()
        self.swapped = swapped

    def forward(self, a: Any, pair: Any, *, more: Any, factor: float = 1.0) -> Any:
        left, right = (pair[1], pair[0]) if self.swapped else pair
        return {"z": a * factor + more["u"], "y": (left - right, [left * more["v"]]), "none": None}


class TestNestedArguments:
    def call(self) -> dict[str, Any]:
        more = {"v": x(2, 3) - 4, "u": x(2, 3) * 5}
        return {"a": x(2, 3), "pair": (x(2, 3) + 1, x(2, 3) * 2), "more": more, "factor": 3.0}

    def test_two_modules(self) -> None:
        parity = assert_parity(Nested(), Nested(), inputs=self.call(), seeds=1)
        assert [output.name for output in parity.outputs] == ["z", "y_0", "y_1_0"]
        with pytest.raises(AssertionError, match="parity FAILED: output 'y_0'"):
            assert_parity(Nested(), Nested(swapped=True), inputs=self.call(), seeds=1)

    def test_an_onnx_model_with_the_inputs_of_torch_export(self) -> None:
        text = """
            <ir_version: 9, opset_import: ["" : 18]>
            nested (float[2,3] a, float[2,3] pair_0, float[2,3] pair_1, float[2,3] more_v, float[2,3] more_u)
                => (float[2,3] z, float[2,3] d, float[2,3] p)
            { k = Constant <value_float = 3.0> ()  m = Mul (a, k)  z = Add (m, U)
              d = Sub (pair_0, pair_1)  p = Mul (pair_0, V) }
        """
        right, wrong = (
            onnx.parser.parse_model(text.replace("U", f"more_{u}").replace("V", f"more_{v}"))
            for u, v in (("u", "v"), ("v", "u"))
        )
        assert assert_parity(Nested(), right, inputs=self.call(), seeds=1).passed
        assert assert_parity(right, Nested(), inputs=self.call(), seeds=1).passed
        with pytest.raises(AssertionError, match="parity FAILED: output 'z'"):
            assert_parity(Nested(), wrong, inputs=self.call(), seeds=1)

    def test_modules_need_inputs(self) -> None:
        with pytest.raises(NormfuseError, match=r"nothing says what the torch modules take.*inputs="):
            assert_parity(Nested(), Nested())

    def test_inputs_must_be_as_many_and_in_order(self) -> None:
        proto = onnx.parser.parse_model(
            '<ir_version: 9, opset_import: ["" : 18]> '
            "g (float[2,3] pair_1, float[2,3] pair_0) => (float[2,3] y) { y = Sub (pair_0, pair_1) }"
        )
        with pytest.raises(NormfuseError, match=r"inputs hold 5 arrays \(a, pair_0, .*the model takes 2"):
            assert_parity(Nested(), proto, inputs=self.call())
        proto.graph.input[0].name = proto.graph.node[0].input[1] = "other"

        class Minus(nn.Module):  # type: ignore[misc, name-defined]  # torch may be missing
            def forward(self, pair: Any) -> Any:
                return pair[0] - pair[1]

        with pytest.raises(NormfuseError, match="'pair_0' stands in another place"):
            assert_parity(Minus(), proto, inputs=((x(2, 3), x(2, 3)),))


class Odd(nn.Module):  # type: ignore[misc, name-defined]  # torch may be missing
    def __init__(self, law: Any) -> None:
        super().__init__()
        self.law = law
        self.held = torch.zeros(1)

    def forward(self, x: Any) -> Any:
        return self.law(x, self.held)


LINE = '<ir_version: 9, opset_import: ["" : 18]> g (float[2, 3] x) => (float[2, 3] y) { y = Add (x, x) }'


class TestWhatCannotBeJudged:
    def test_a_random_module(self) -> None:
        module = Odd(lambda x, held: x + torch.rand(1))
        with pytest.raises(NormfuseError, match="another one each time on the same inputs"):
            assert_parity(module, onnx.parser.parse_model(LINE))

    def test_a_module_that_keeps_a_state(self) -> None:
        module = Odd(lambda x, held: x + held.add_(1))
        with pytest.raises(NormfuseError, match="another one each time"):
            assert_parity(module, onnx.parser.parse_model(LINE))
        assert module.held == 0

    def test_a_module_that_cannot_be_copied(self) -> None:
        module = Odd(lambda x, held: x + x)
        module.lock = threading.Lock()
        with pytest.raises(NormfuseError, match=r"Odd cannot be copied.*export it") as caught:
            assert_parity(module, onnx.parser.parse_model(LINE))
        assert len(str(caught.value).splitlines()) == 1

    def test_a_module_whose_parameters_are_not_made_yet(self) -> None:
        with pytest.raises(NormfuseError, match=r"not made yet, such as 'weight'.*run it once"):
            assert_parity(nn.LazyLinear(3), onnx.parser.parse_model(LINE))

    def test_a_module_that_holds_nothing(self) -> None:
        module = nn.Linear(3, 3, device="meta")
        with pytest.raises(NormfuseError, match="torch failed to run it: NotImplementedError"):
            assert_parity(module, onnx.parser.parse_model(LINE))

    def test_a_module_that_does_not_run(self) -> None:
        module = Odd(lambda x, held: x @ x)
        with pytest.raises(NormfuseError, match=r"does not run on inputs of these shapes.*torch failed .*multiplied"):
            assert_parity(module, onnx.parser.parse_model(LINE))

    def test_a_module_that_gives_no_tensor(self) -> None:
        module = Odd(lambda x, held: {"y": "text"})
        with pytest.raises(NormfuseError, match="output 'y' of the torch module is a str"):
            assert_parity(module, onnx.parser.parse_model(LINE))

    def test_another_number_of_outputs_is_a_failure(self) -> None:
        with pytest.raises(AssertionError, match=r"gives 2 outputs .* not 1"):
            assert_parity(onnx.parser.parse_model(LINE), Odd(lambda x, held: (x + x, x)))

    def test_a_module_without_a_float64_form_is_judged_by_noise_and_says_so(self) -> None:
        def law(x: Any, held: Any) -> Any:
            if x.dtype == torch.float64:
                raise RuntimeError("float32 only")
            return x + x

        proto = onnx.parser.parse_model(LINE)
        parity = assert_parity(Odd(law), proto, seeds=1)
        assert parity.judged_by == "noise"
        assert any("does not run in float64: RuntimeError: float32 only" in note for note in parity.notes)
        proto.graph.node[0].op_type = "Sub"
        with pytest.raises(AssertionError, match="parity FAILED: output 'y'"):
            assert_parity(Odd(law), proto, seeds=1)


class Statistics32(nn.Module):  # type: ignore[misc, name-defined]  # torch may be missing
    """An RMSNorm that computes in float32 whatever it is given."""

    def forward(self, x: Any) -> Any:
        wide = x.to(torch.float32)
        return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + torch.tensor(1e-3))).to(x.dtype)


def test_float64_is_float64_also_where_a_module_casts() -> None:
    (module, _), _ = contestants(Statistics32(), Statistics32(), (x(2, 64),))
    assert isinstance(module, Foreign)
    values = x(2, 64).numpy()
    (truth,) = module.truth().run({"x": values}).values()
    wide = values.astype(np.float64)
    expected = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + np.float64(np.float32(1e-3)))
    assert np.abs(truth - expected).max() < 1e-12


class Either(nn.Module):  # type: ignore[misc, name-defined]  # torch may be missing
    """One of two branches, by the sum of its input; the first casts to float32."""

    def forward(self, x: Any) -> Any:
        return torch.cond(x.sum() > 0, lambda x: x.float() * 3, lambda x: x * 5, (x,))


def test_the_branches_of_torch_cond_are_float64_too() -> None:
    (module, _), _ = contestants(Either(), Either(), (x(2, 8),))
    assert isinstance(module, Foreign)
    for values, factor in ((np.abs(x(2, 8).numpy()), 3), (-np.abs(x(2, 8).numpy()), 5)):
        for side in (module.truth(), module.runner("either"), module.truth()):
            (y,) = side.run({"x": values}).values()
            assert np.abs(y - values.astype(np.float64) * factor).max() < (1e-15 if y.dtype == np.float64 else 1e-6)
    (truth,) = module.truth().run({"x": np.asarray([[0.1]], np.float32)}).values()
    assert truth.dtype == np.float64
    with pytest.raises(AssertionError, match="parity FAILED"):
        assert_parity(Odd(lambda x, held: x * 3), Either(), inputs=(x(2, 8),))

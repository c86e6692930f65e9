"""What torch's attention becomes: queries that are shown no key give 0, as torch has it."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

from torch import Tensor, nn  # noqa: E402  # nothing here can run without torch
from torch.nn.functional import scaled_dot_product_attention  # noqa: E402

import normfuse  # noqa: E402
from normfuse.capture import capture  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

LENGTHS = {0: "batch", 1: "length"}


class Attention(nn.Module):
    """Attention of four heads on (N, L, 32); keys and values of fewer heads where `shared`."""

    def __init__(self, shared: int = 1, **settings: Any) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(32, 32), nn.Linear(32, 32 // shared)
        self.v, self.shared, self.settings = nn.Linear(32, 32 // shared), shared, settings

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = (part(x).unflatten(-1, (-1, 8)).transpose(1, 2) for part in (self.q, self.k, self.v))
        y = scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=self.shared > 1, **self.settings)
        return y.transpose(1, 2).contiguous().flatten(2)


class Padded(Attention):
    """Causal attention on sequences padded on the left: the first queries are shown no key."""

    def __init__(self, additive: bool = False, **settings: Any) -> None:
        super().__init__(**settings)
        self.additive = additive

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        assert mask is not None
        places = torch.arange(x.shape[1])
        shown = (places[None, :] <= places[:, None]) & mask[:, None, None, :].bool()
        if self.additive:
            return super().forward(x, torch.zeros_like(shown, dtype=x.dtype).masked_fill(~shown, float("-inf")))
        return super().forward(x, shown)


def exported(module: nn.Module, args: tuple[Tensor, ...], path: Path, opset: int = 20, **settings: Any) -> Counter[str]:
    """Exports a module; its operators. What ONNX Runtime gives is what torch does, NaN nowhere."""
    result = normfuse.export(module.eval(), args, path, opset=opset, verify=False, **settings)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    (y,) = session.run(None, {name: one.numpy() for name, one in zip(names, args, strict=True)})
    np.testing.assert_allclose(y, module(*args).detach().numpy(), rtol=2e-5, atol=2e-6)
    return Counter(node.op_type for node in result.model.graph)


def padding() -> tuple[Tensor, Tensor]:
    mask = torch.ones(2, 6, dtype=torch.int64)
    mask[0, :4], mask[1, 4:] = 0, 0
    return torch.randn(2, 6, 32), mask


@pytest.mark.parametrize("opset", [20, 23])
@pytest.mark.parametrize("additive", [False, True], ids=["boolean", "of floats"])
def test_a_query_that_is_shown_no_key_gives_zero(additive: bool, opset: int, tmp_path: Path) -> None:
    module = Padded(additive)
    x, mask = padding()
    assert not module(x, mask)[0, :4].any()
    found = exported(module, (x, mask), tmp_path / "model.onnx", opset, dynamic_shapes=(LENGTHS, LENGTHS))
    assert found["Attention"] == (opset >= 23)
    assert not found["IsNaN"]


@pytest.mark.parametrize("opset", [20, 23])
def test_heads_share_keys_and_values(opset: int, tmp_path: Path) -> None:
    exported(Padded(shared=2, scale=0.2), padding(), tmp_path / "model.onnx", opset, dynamic_shapes=(LENGTHS, LENGTHS))


@pytest.mark.parametrize("dynamic", [None, (LENGTHS,)], ids=["static", "dynamic"])
def test_causal_attention_is_given_no_mask(dynamic: Any, tmp_path: Path) -> None:
    found = exported(
        Attention(is_causal=True), (torch.randn(2, 6, 32),), tmp_path / "model.onnx", dynamic_shapes=dynamic
    )
    assert not found["Where"]


def test_a_mask_that_is_known_to_show_each_query_a_key_costs_no_choice(tmp_path: Path) -> None:
    class Fixed(Attention):
        def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
            places = torch.arange(x.shape[1])
            return super().forward(x, places[None, :] <= places[:, None])

    assert not exported(Fixed(), (torch.randn(2, 6, 32),), tmp_path / "model.onnx")["Where"]


def test_layers_share_what_is_computed_of_their_mask() -> None:
    class Layers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([Padded(), Padded(), Padded()])

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x, mask)
            return x

    model = capture(Layers().eval(), padding(), {}, dynamic_shapes=(LENGTHS, LENGTHS))
    found = Counter(node.op_type for node in model.graph)
    assert (found["Softmax"], found["ReduceMax"], found["Greater"]) == (3, 1, 1)


@pytest.mark.parametrize("opset", [20, 23])
def test_attention_without_heads(opset: int, tmp_path: Path) -> None:
    class Plain(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return scaled_dot_product_attention(x, 2 * x, x + 1)

    exported(Plain(), (torch.randn(2, 6, 32),), tmp_path / "model.onnx", opset)


class Biased(Attention):
    """A bias that is computed of the data, beside a mask of finite numbers; `hidden` stands in place of the lowest."""

    def __init__(self, hidden: float) -> None:
        super().__init__()
        self.bias, self.hidden = nn.Linear(32, 1), hidden

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        assert mask is not None
        lowest = torch.where(mask[:, None, None, :].bool(), 0.0, self.hidden)
        return super().forward(x, lowest + self.bias(x)[:, None])


@pytest.mark.parametrize("hidden", [-1e9, float("-inf")])
def test_a_bias_that_hides_nothing_costs_no_choice(hidden: float) -> None:
    model = capture(Biased(hidden).eval(), padding(), {}, dynamic_shapes=(LENGTHS, LENGTHS))
    assert Counter(node.op_type for node in model.graph)["ReduceMax"] == (hidden == float("-inf"))


def test_a_mask_of_floats_that_a_caller_gives_may_hide_all(tmp_path: Path) -> None:
    mask = torch.zeros(2, 1, 6, 6)
    mask[0, :, 2], mask[1, :, :, 3] = float("-inf"), float("-inf")
    exported(Attention(), (torch.randn(2, 6, 32), mask), tmp_path / "model.onnx")


class Encoder(nn.Module):
    """torch's own transformer layer, told what is padding: it has a fast path that gives something else there."""

    def __init__(self, attention: bool) -> None:
        super().__init__()
        whole = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 16, batch_first=True), 1)
        self.attention, self.part = attention, nn.MultiheadAttention(16, 2, batch_first=True) if attention else whole

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        if self.attention:
            y: Tensor = self.part(x, x, x, key_padding_mask=padding, need_weights=False)[0]
            return y
        return self.part(x, src_key_padding_mask=padding)  # type: ignore[no-any-return]  # a module's call is Any


@pytest.mark.parametrize("attention", [False, True], ids=["encoder", "attention"])
def test_layers_of_torch_are_proved_by_their_formula(attention: bool) -> None:
    mask = torch.zeros(2, 6, dtype=torch.bool)
    mask[0, 4:], mask[1] = True, True
    result = normfuse.export(Encoder(attention).eval(), (torch.randn(2, 6, 16), mask), verify_budget=2)
    assert result.report.parity is not None
    assert result.report.parity.passed
    assert torch.backends.mha.get_fastpath_enabled()

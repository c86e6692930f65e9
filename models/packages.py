"""Networks of the packages transformers and diffusers, small, with random weights: `PACKAGED` by name.

Nothing is downloaded. The packages are imported where a network is made: `missing` names those that are not installed.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from models.entry import Entry


class FirstOutput(nn.Module):
    """The first of what a network returns."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Tensor) -> Tensor:
        y: Tensor = self.network(*inputs, return_dict=False)[0]
        return y


class Masked(nn.Module):
    """A network that is told that all tokens are there: without a mask it looks for sequences packed into one."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, tokens: Tensor, return_dict: bool) -> Any:
        return self.network(tokens, torch.ones_like(tokens), use_cache=False, return_dict=return_dict)


class Decode(nn.Module):
    """The decoding half of an autoencoder."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.quantized, self.decoder = network.post_quant_conv, network.decoder

    def forward(self, latent: Tensor) -> Tensor:
        y: Tensor = self.decoder(self.quantized(latent))
        return y


def missing() -> tuple[str, ...]:
    """The packages that are not installed."""
    return tuple(name for name in ("transformers", "diffusers") if find_spec(name) is None)


def bert(width: int = 256, depth: int = 4) -> nn.Module:
    """BERT's encoder (Devlin et al., 2018) on token ids."""
    transformers: Any = import_module("transformers")

    heads = width // 64
    config = transformers.BertConfig(
        vocab_size=1000,
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        attn_implementation="eager",
    )
    return FirstOutput(transformers.BertModel(config, add_pooling_layer=False))


def vit(width: int = 192, depth: int = 4) -> nn.Module:
    """Vision transformer (Dosovitskiy et al., 2020) with patches of 16: Tiny is 192 wide and 12 deep."""
    transformers: Any = import_module("transformers")

    config = transformers.ViTConfig(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=width // 64,
        intermediate_size=4 * width,
        num_labels=100,
        attn_implementation="eager",
    )
    return FirstOutput(transformers.ViTForImageClassification(config))


def llama(width: int = 256, depth: int = 4) -> nn.Module:
    """Llama's decoder (Touvron et al., 2023) with grouped queries, on token ids, without a cache."""
    transformers: Any = import_module("transformers")

    config = transformers.LlamaConfig(
        vocab_size=1000,
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=width // 32,
        num_key_value_heads=width // 64,
        intermediate_size=8 * width // 3 // 8 * 8,
        attn_implementation="eager",
    )
    return FirstOutput(Masked(transformers.LlamaModel(config)))


def t5_encoder(width: int = 256, depth: int = 4) -> nn.Module:
    """T5's encoder (Raffel et al., 2019) in its gated form of version 1.1, on token ids."""
    transformers: Any = import_module("transformers")

    config = transformers.T5Config(
        vocab_size=1000,
        d_model=width,
        d_kv=64,
        d_ff=8 * width // 3 // 8 * 8,
        num_layers=depth,
        num_heads=width // 64,
        feed_forward_proj="gated-gelu",
        attn_implementation="eager",
    )
    return FirstOutput(transformers.T5EncoderModel(config))


def eager(network: Any) -> Any:
    """The same with attention in plain products, which every opset has."""
    processors: Any = import_module("diffusers.models.attention_processor")
    for module in network.modules():
        if hasattr(module, "set_processor"):
            module.set_processor(processors.AttnProcessor())
    return network


def unet_condition(width: int = 64) -> nn.Module:
    """The UNet of Stable Diffusion (Rombach et al., 2022) with two levels: sample, time step, text features."""
    diffusers: Any = import_module("diffusers")

    return FirstOutput(
        eager(
            diffusers.UNet2DConditionModel(
                sample_size=32,
                block_out_channels=(width, 2 * width),
                layers_per_block=1,
                down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
                cross_attention_dim=64,
                attention_head_dim=4,
            )
        )
    )


def unet_pixels(width: int = 64) -> nn.Module:
    """The UNet of denoising diffusion (Ho et al., 2020), attention on the lower of two levels: sample, time step."""
    diffusers: Any = import_module("diffusers")

    return FirstOutput(
        eager(
            diffusers.UNet2DModel(
                sample_size=32,
                block_out_channels=(width, 2 * width),
                layers_per_block=1,
                down_block_types=("DownBlock2D", "AttnDownBlock2D"),
                up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            )
        )
    )


def vae_decoder(width: int = 32) -> nn.Module:
    """The decoder of Stable Diffusion's autoencoder with three levels: the image is four times the latent's size."""
    diffusers: Any = import_module("diffusers")

    network = diffusers.AutoencoderKL(
        block_out_channels=(width, 2 * width, 4 * width),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        sample_size=64,
    )
    return Decode(eager(network))


_TOKENS = ((1, 128),)
_CONDITIONED = ((1, 4, 32, 32), (1,), (1, 16, 64))
_NOISY = ((1, 3, 32, 32), (1,))

PACKAGED: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        Entry("bert", bert, _TOKENS, tokens={0: 1000}, package="transformers"),
        Entry("vit", vit, ((1, 3, 224, 224),), package="transformers"),
        Entry("llama", llama, _TOKENS, tokens={0: 1000}, package="transformers"),
        Entry("t5-encoder", t5_encoder, _TOKENS, tokens={0: 1000}, package="transformers"),
        Entry(
            "unet-condition", unet_condition, _CONDITIONED, ({0: "batch"},) * 3, tokens={1: 1000}, package="diffusers"
        ),
        Entry("unet-pixels", unet_pixels, _NOISY, ({0: "batch"},) * 2, tokens={1: 1000}, package="diffusers"),
        Entry("vae-decoder", vae_decoder, ((1, 4, 16, 16),), package="diffusers"),
    )
}
"""Networks by name, sized to be timed."""

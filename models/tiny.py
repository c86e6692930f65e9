"""Networks of the packages transformers and diffusers in tiny configurations, with random weights: `TINY` by name.

Nothing is downloaded. The packages are imported where a network is made: `models.packages.missing` names those that are
not installed.
"""

from functools import partial
from importlib import import_module
from typing import Any

from torch import Tensor, nn

from models.entry import Entry
from models.packages import FirstOutput, bert, eager, llama, vit


class Outputs(nn.Module):
    """Some of what a network returns, by name, with keyword arguments that stay as they are."""

    def __init__(self, network: nn.Module, names: tuple[str, ...], inputs: tuple[str, ...], **settings: Any) -> None:
        super().__init__()
        self.network, self.names, self.inputs, self.settings = network, names, inputs, settings

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        result = self.network(**dict(zip(self.inputs, inputs, strict=True)), **self.settings)
        return tuple(getattr(result, name) for name in self.names)


def t5(width: int = 64, depth: int = 2) -> nn.Module:
    """T5 (Raffel et al., 2019), encoder and decoder, on the tokens of both; the decoder is not shown what comes."""
    transformers: Any = import_module("transformers")

    config = transformers.T5Config(
        vocab_size=100,
        d_model=width,
        d_kv=16,
        d_ff=2 * width,
        num_layers=depth,
        num_heads=width // 16,
        attn_implementation="eager",
        use_cache=False,
    )
    names = ("input_ids", "decoder_input_ids")
    return Outputs(transformers.T5ForConditionalGeneration(config), ("logits",), names, use_cache=False)


def whisper(width: int = 64, depth: int = 2) -> nn.Module:
    """Whisper (Radford et al., 2022) on a spectrogram and tokens."""
    transformers: Any = import_module("transformers")

    config = transformers.WhisperConfig(
        vocab_size=100,
        num_mel_bins=16,
        d_model=width,
        encoder_layers=depth,
        decoder_layers=depth,
        encoder_attention_heads=width // 16,
        decoder_attention_heads=width // 16,
        encoder_ffn_dim=2 * width,
        decoder_ffn_dim=2 * width,
        max_source_positions=32,
        max_target_positions=32,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        attn_implementation="eager",
        use_cache=False,
    )
    names = ("input_features", "decoder_input_ids")
    return Outputs(transformers.WhisperForConditionalGeneration(config), ("logits",), names, use_cache=False)


def detr(width: int = 32) -> nn.Module:
    """DETR (Carion et al., 2020) with a ResNet whose norms are frozen, on images without padding."""
    transformers: Any = import_module("transformers")

    backbone = transformers.ResNetConfig(
        embedding_size=16,
        hidden_sizes=[16, 32],
        depths=[1, 1],
        layer_type="basic",
        out_features=["stage2"],
    )
    config = transformers.DetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=backbone,
        d_model=width,
        encoder_layers=1,
        decoder_layers=1,
        encoder_ffn_dim=2 * width,
        decoder_ffn_dim=2 * width,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        num_queries=8,
        num_labels=5,
        attn_implementation="eager",
    )
    network = transformers.DetrForObjectDetection(config)
    return Outputs(network, ("logits", "pred_boxes"), ("pixel_values",))


def wav2vec2(width: int = 32) -> nn.Module:
    """wav2vec 2.0 (Baevski et al., 2020): GroupNorm over time in the front end, LayerNorm behind, and weight norm."""
    transformers: Any = import_module("transformers")

    config = transformers.Wav2Vec2Config(
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=2 * width,
        conv_dim=(16, 16, 16),
        conv_stride=(5, 2, 2),
        conv_kernel=(10, 3, 2),
        num_feat_extract_layers=3,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
        attn_implementation="eager",
    )
    return Outputs(transformers.Wav2Vec2Model(config), ("last_hidden_state",), ("input_values",))


def autoencoder(width: int = 8) -> nn.Module:
    """Stable Diffusion's autoencoder, from an image to the mean of its latent and back."""
    diffusers: Any = import_module("diffusers")

    network = diffusers.AutoencoderKL(
        block_out_channels=(width, 2 * width),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=16,
    )
    return FirstOutput(eager(network))


def small_unet(width: int = 16) -> nn.Module:
    """The UNet of Stable Diffusion in small."""
    diffusers: Any = import_module("diffusers")

    network = diffusers.UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(width, 2 * width),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    return FirstOutput(eager(network))


def dit(width: int = 32) -> nn.Module:
    """DiT (Peebles and Xie, 2022) on latents, a time step and a class."""
    diffusers: Any = import_module("diffusers")

    network = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=width // 2,
        in_channels=4,
        num_layers=2,
        norm_num_groups=4,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=10,
    )
    return Outputs(eager(network), ("sample",), ("hidden_states", "timestep", "class_labels"))


def gpt2(width: int = 64, depth: int = 2) -> nn.Module:
    """GPT-2 (Radford et al., 2019) on tokens with a mask: padding on the left leaves queries that are shown no key."""
    transformers: Any = import_module("transformers")

    config = transformers.GPT2Config(
        vocab_size=100,
        n_embd=width,
        n_layer=depth,
        n_head=width // 16,
        n_positions=64,
        bos_token_id=1,
        eos_token_id=2,
    )
    network = transformers.GPT2LMHeadModel(config)
    return Outputs(network, ("logits",), ("input_ids", "attention_mask"), use_cache=False)


def gemma(width: int = 64, depth: int = 2) -> nn.Module:
    """Gemma 3 (Kamath et al., 2025): RMSNorm by 1 + γ, before and behind each part and on queries and keys."""
    transformers: Any = import_module("transformers")

    config = transformers.Gemma3TextConfig(
        vocab_size=100,
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=width // 16,
        num_key_value_heads=width // 32,
        head_dim=16,
        intermediate_size=2 * width,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    network = transformers.Gemma3ForCausalLM(config)
    return Outputs(network, ("logits",), ("input_ids", "attention_mask"), use_cache=False)


def convnext(width: int = 8) -> nn.Module:
    """ConvNeXt V2 (Woo et al., 2023): LayerNorm in both layouts, and global response normalization."""
    transformers: Any = import_module("transformers")

    config = transformers.ConvNextV2Config(
        hidden_sizes=[width, 2 * width, 2 * width, 4 * width], depths=[1, 1, 1, 1], num_labels=10
    )
    return Outputs(transformers.ConvNextV2ForImageClassification(config), ("logits",), ("pixel_values",))


def swin(width: int = 16) -> nn.Module:
    """Swin Transformer V2 (Liu et al., 2022): cosine attention by F.normalize, LayerNorm behind each part."""
    transformers: Any = import_module("transformers")

    config = transformers.Swinv2Config(
        image_size=32, patch_size=4, embed_dim=width, depths=[2, 2], num_heads=[2, 4], window_size=4
    )
    return Outputs(transformers.Swinv2Model(config), ("last_hidden_state",), ("pixel_values",))


def sd3(width: int = 32) -> nn.Module:
    """Stable Diffusion 3 (Esser et al., 2024): AdaLN for two streams, RMSNorm on their queries and keys."""
    diffusers: Any = import_module("diffusers")

    network = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=width // 2,
        joint_attention_dim=16,
        caption_projection_dim=width,
        pooled_projection_dim=16,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
    )
    names = ("hidden_states", "encoder_hidden_states", "pooled_projections", "timestep")
    return Outputs(network, ("sample",), names)


_WORDS = ({0: "batch", 1: "length"},)
_MASKED = _WORDS * 2

TINY: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        Entry("tiny-bert", partial(bert, 64, 2), ((2, 12),), _WORDS, tokens={0: 1000}, package="transformers"),
        Entry("tiny-vit", partial(vit, 64, 2), ((2, 3, 224, 224),), package="transformers"),
        Entry("tiny-llama", partial(llama, 64, 2), ((2, 12),), _WORDS, tokens={0: 1000}, package="transformers"),
        Entry("tiny-t5", t5, ((2, 12), (2, 7)), ({0: "batch"},) * 2, tokens={0: 100, 1: 100}, package="transformers"),
        Entry(
            "tiny-whisper", whisper, ((2, 16, 64), (2, 7)), ({0: "batch"},) * 2, tokens={1: 100}, package="transformers"
        ),
        Entry("tiny-detr", detr, ((2, 3, 64, 64),), package="transformers"),
        Entry("tiny-wav2vec2", wav2vec2, ((2, 800),), package="transformers"),
        Entry(
            "tiny-unet",
            small_unet,
            ((2, 4, 16, 16), (2,), (2, 5, 16)),
            ({0: "batch"},) * 3,
            tokens={1: 1000},
            package="diffusers",
        ),
        Entry("tiny-autoencoder", autoencoder, ((2, 3, 16, 16),), package="diffusers"),
        Entry(
            "tiny-dit",
            dit,
            ((2, 4, 8, 8), (2,), (2,)),
            ({0: "batch"},) * 3,
            tokens={1: 1000, 2: 10},
            package="diffusers",
        ),
        Entry("tiny-gpt2", gpt2, ((2, 12),) * 2, _MASKED, tokens={0: 100, 1: 2}, package="transformers"),
        Entry("tiny-gemma3", gemma, ((2, 12),) * 2, _MASKED, tokens={0: 100, 1: 2}, package="transformers"),
        Entry(
            "tiny-convnextv2",
            convnext,
            ((2, 3, 64, 64),),
            ({0: "batch", 2: "height", 3: "width"},),
            package="transformers",
        ),
        Entry("tiny-swinv2", swin, ((2, 3, 32, 32),), package="transformers"),
        Entry(
            "tiny-sd3",
            sd3,
            ((2, 4, 8, 8), (2, 5, 16), (2, 16), (2,)),
            ({0: "batch"}, {0: "batch", 1: "length"}, {0: "batch"}, {0: "batch"}),
            tokens={3: 1000},
            package="diffusers",
        ),
    )
}
"""Networks by name."""

"""Each normalization as people write it in torch, with what must be found in its exports: `NORMALIZATIONS`.

Some of these have no statistics of the input once they are exported, or only look like a normalization: nothing must be
found in them.
"""

from dataclasses import dataclass, replace
from functools import partial

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.affine import instance_norm_net, spectral_norm_net, standardized_net, weight_norm_net
from models.entry import Entry
from normfuse.norm import Standardize


@dataclass(frozen=True, slots=True)
class Normalization:
    """A module to export.

    Attributes:
        entry: the module and its inputs.
        meaning: what must be found, and nothing else; None where nothing may be.
    """

    entry: Entry
    meaning: Standardize | None


class _Parameters(nn.Module):
    """A norm with γ and β of some shape, after `randomize`."""

    def __init__(self, channels: int, behind: int = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.behind = behind

    def affine(self, y: Tensor) -> Tensor:
        """γ · y + β along the axis that stands `behind` axes in front of the last one."""
        shape = [-1, *([1] * self.behind)]
        return self.weight.reshape(shape) * y + self.bias.reshape(shape)


class LayerNorm2d(_Parameters):
    """ConvNeXt's: over the channels of (N, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        spread = (x - mean).pow(2).mean(1, keepdim=True)
        return self.affine((x - mean) / torch.sqrt(spread + 1e-6))


class TurnedLayerNorm(nn.LayerNorm):
    """LayerNorm over the channels of (N, C, H, W) between permutations."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class StdLayerNorm(_Parameters):
    """The annotated Transformer's: the unbiased deviation, ε outside of the root."""

    def forward(self, x: Tensor) -> Tensor:
        return self.affine((x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-6))


class VarMeanNorm(_Parameters):
    """By torch.var_mean and rsqrt, over some axes."""

    def __init__(self, channels: int, axes: tuple[int, ...], behind: int) -> None:
        super().__init__(channels, behind)
        self.axes = axes

    def forward(self, x: Tensor) -> Tensor:
        spread, mean = torch.var_mean(x, self.axes, correction=0, keepdim=True)
        return self.affine((x - mean) * torch.rsqrt(spread + 1e-5))


class HuggingFaceRMSNorm(_Parameters):
    """Llama's: statistics in float32, γ behind the Cast back."""

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.float32)
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * wide.to(x.dtype)


class T5Norm(_Parameters):
    """T5's: only the variance in float32."""

    def forward(self, x: Tensor) -> Tensor:
        spread = x.to(torch.float32).pow(2).mean(-1, keepdim=True)
        return self.weight * (x * torch.rsqrt(spread + 1e-6)).to(self.weight.dtype)


class GemmaNorm(_Parameters):
    """Gemma's: times 1 + γ, in float32."""

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        return (wide * (1.0 + self.weight.float())).type_as(x)


class Half(nn.Module):
    """A module in float16, with float32 inputs and outputs around it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner.half()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(torch.tanh(x.half()))
        return torch.tanh(y).float()


class HeadNorm(nn.Module):
    """A norm of each head of (N, T, heads · width)."""

    def __init__(self, inner: nn.Module, heads: int) -> None:
        super().__init__()
        self.inner, self.heads = inner, heads

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x.reshape(*x.shape[:-1], self.heads, -1))
        return y.flatten(-2)


class AdaIN(nn.Module):
    """Huang and Belongie's code: mean and torch.std of content and style."""

    def statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of each channel."""
        batch, channels = x.shape[:2]
        deviation = (x.reshape(batch, channels, -1).var(dim=2) + 1e-5).sqrt()
        return x.reshape(batch, channels, -1).mean(dim=2).view(batch, channels, 1, 1), deviation.view(
            batch, channels, 1, 1
        )

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        style_mean, style_deviation = self.statistics(style)
        mean, deviation = self.statistics(x)
        normalized = (x - mean.expand(x.shape)) / deviation.expand(x.shape)
        return normalized * style_deviation.expand(x.shape) + style_mean.expand(x.shape)


class StdAdaIN(nn.Module):
    """With torch.std over H and W, ε outside, the style by its statistics."""

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        axes = (2, 3)
        normalized = (x - x.mean(axes, keepdim=True)) / (x.std(axes, keepdim=True) + 1e-5)
        return normalized * style.std(axes, keepdim=True) + style.mean(axes, keepdim=True)


class LinearAdaIN(nn.Module):
    """StarGAN's: γ and β of InstanceNorm by a Linear of a style vector."""

    def __init__(self, channels: int, style: int, affine: bool = False) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm2d(channels, affine=affine)
        self.fc = nn.Linear(style, 2 * channels)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        h = self.fc(style)
        gamma, beta = torch.chunk(h.view(h.size(0), h.size(1), 1, 1), 2, dim=1)
        result: Tensor = (1 + gamma) * self.norm(x) + beta
        return result


class TrickAdaIN(nn.Module):
    """MUNIT's: F.batch_norm of (1, N · C, H, W) in training mode, with γ and β of the style."""

    def __init__(self, channels: int, style: int) -> None:
        super().__init__()
        self.fc = nn.Linear(style, 2 * channels)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        gamma, beta = self.fc(style).chunk(2, 1)
        batch, channels = x.shape[0], x.shape[1]
        rows = x.reshape(1, batch * channels, *x.shape[2:])
        y = functional.batch_norm(rows, None, None, gamma.reshape(-1), beta.reshape(-1), True, 0.1, 1e-5)
        return y.view(batch, channels, *x.shape[2:])


class AdaLayerNorm(nn.Module):
    """DiT's: LayerNorm without γ and β, then x · (1 + scale) + shift of a condition."""

    def __init__(self, channels: int, condition: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, elementwise_affine=False, eps=1e-6)
        self.fc = nn.Linear(condition, 2 * channels)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale = self.fc(functional.silu(condition)).chunk(2, dim=1)
        y: Tensor = self.norm(x)
        result: Tensor = y * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)
        return result


class AdaGroupNorm(nn.Module):
    """Diffusers': F.group_norm, then x · (1 + scale) + shift of a time embedding."""

    def __init__(self, groups: int, channels: int, condition: int) -> None:
        super().__init__()
        self.groups = groups
        self.fc = nn.Linear(condition, 2 * channels)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.fc(condition)[:, :, None, None].chunk(2, dim=1)
        result: Tensor = functional.group_norm(x, self.groups) * (1 + scale) + shift
        return result


class ConditionalNorm(nn.Module):
    """γ and β of a class, by a table; the class is the largest of some scores."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm2d(channels)
        self.table = nn.Embedding(classes, 2 * channels)

    def forward(self, x: Tensor, scores: Tensor) -> Tensor:
        gamma, beta = self.table(scores.argmax(1)).chunk(2, 1)
        result: Tensor = gamma[:, :, None, None] * self.norm(x) + beta[:, :, None, None]
        return result


class SPADE(nn.Module):
    """γ and β for each position, by convolutions of a segmentation map (Park et al., 2019)."""

    def __init__(self, channels: int, labels: int) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm2d(channels)
        self.shared = nn.Sequential(nn.Conv2d(labels, 8, 3, padding=1), nn.ReLU())
        self.gamma = nn.Conv2d(8, channels, 3, padding=1)
        self.beta = nn.Conv2d(8, channels, 3, padding=1)

    def forward(self, x: Tensor, segmentation: Tensor) -> Tensor:
        hidden = self.shared(segmentation)
        result: Tensor = self.norm(x) * (1 + self.gamma(hidden)) + self.beta(hidden)
        return result


class GlobalLayerNorm(_Parameters):
    """Conv-TasNet's: over channels and time of (N, C, T)."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True).mean(2, keepdim=True) if self.behind > 1 else x.mean((1, 2), keepdim=True)
        spread = torch.pow(x - mean, 2).mean((1, 2), keepdim=True)
        return self.weight[:, None] * (x - mean) / torch.pow(spread + 1e-5, 0.5) + self.bias[:, None]


class PixelNorm(nn.Module):
    """ProGAN's: RMSNorm over the channels."""

    def forward(self, x: Tensor) -> Tensor:
        return x / torch.sqrt(torch.mean(x**2, dim=1, keepdim=True) + 1e-5)


class ScaleNorm(nn.Module):
    """g · √C · x / max(‖x‖, ε)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(channels**0.5))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x / torch.norm(x, dim=-1, keepdim=True).clamp(min=1e-5) * self.scale
        return result


class Normalize(nn.Module):
    """F.normalize along an axis."""

    def __init__(self, dim: int, order: float = 2.0) -> None:
        super().__init__()
        self.dim, self.order = dim, order

    def forward(self, x: Tensor) -> Tensor:
        return functional.normalize(x, self.order, self.dim)


class MVN(nn.Module):
    """Mean-variance normalization over H and W, (x − E[x]) / (√(E[x²] − E[x]²) + ε)."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((2, 3), keepdim=True)
        spread = (x * x).mean((2, 3), keepdim=True) - mean * mean
        return (x - mean) / (spread.clamp(min=0.0).sqrt() + 1e-6)


class GRN(nn.Module):
    """ConvNeXt V2's global response normalization, of (N, H, W, C)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, 1, 1, channels) + 0.3)
        self.beta = nn.Parameter(torch.zeros(1, 1, 1, channels) - 0.2)

    def forward(self, x: Tensor) -> Tensor:
        length = torch.norm(x, p=2, dim=(1, 2), keepdim=True)
        ratio = length / (length.mean(dim=-1, keepdim=True) + 1e-6)
        result: Tensor = self.gamma * (x * ratio) + self.beta + x
        return result


class FilterResponse(_Parameters):
    """Filter response normalization with its threshold (Singh and Krishnan, 2020)."""

    def forward(self, x: Tensor) -> Tensor:
        spread = x.pow(2).mean((2, 3), keepdim=True)
        return torch.maximum(self.affine(x * torch.rsqrt(spread + 1e-6)), self.bias[:, None, None])


class EvoNorm(_Parameters):
    """EvoNorm S0: x · σ(v · x) over the deviation of a group (Liu et al., 2020)."""

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        groups = x.reshape(batch, 2, channels // 2, height, width)
        spread = groups.var((2, 3, 4), correction=0, keepdim=True).expand_as(groups).reshape(x.shape)
        return self.affine(x * torch.sigmoid(self.weight[:, None, None] * x) / torch.sqrt(spread + 1e-5))


class ReshapedGroupNorm(_Parameters):
    """GroupNorm by hand: (N, G, −1), mean and variance, and back."""

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        rows = x.view(batch, 2, -1)
        mean, spread = rows.mean(-1, keepdim=True), rows.var(-1, keepdim=True, unbiased=False)
        rows = (rows - mean) / (spread + 1e-5).sqrt()
        return self.affine(rows.view(batch, channels, height, width))


_IMAGE, _SPATIAL = (2, 6, 8, 10), {0: "batch", 2: "height", 3: "width"}
_TOKENS, _SEQUENCE = (2, 5, 16), {0: "batch", 1: "tokens"}
_SIGNAL, _TIME = (2, 6, 20), {0: "batch", 2: "time"}
_VOLUME = (2, 6, 4, 5, 6)
_VOXELS = {0: "batch", 2: "depth", 3: "height", 4: "width"}
_STYLE, _BATCH = (2, 5), {0: "batch"}


def _image(name: str, factory: object, meaning: Standardize | None, shape: tuple[int, ...] = _IMAGE) -> Normalization:
    return _entry(name, factory, meaning, (shape,), (_SPATIAL,))


def _tokens(name: str, factory: object, meaning: Standardize | None) -> Normalization:
    return _entry(name, factory, meaning, (_TOKENS,), (_SEQUENCE,))


def _entry(
    name: str,
    factory: object,
    meaning: Standardize | None,
    shapes: tuple[tuple[int, ...], ...],
    dynamic: tuple[dict[int, str], ...],
) -> Normalization:
    assert callable(factory)
    return Normalization(Entry(name, factory, shapes, dynamic), meaning)


_LAST, _RMS = (2,), Standardize.rms_norm((2,), 1e-6)
_HALF = replace(_RMS, dtype=ir.DataType.FLOAT)
_HEADS = Standardize.rms_norm((3,), 1e-6)  # of (N, T, heads, width)
_IN, _GN = Standardize.instance_norm(4), Standardize.group_norm(4, 2)

NORMALIZATIONS: tuple[Normalization, ...] = (
    _image("batch-norm", partial(nn.BatchNorm2d, 6), None),
    _image("batch-norm-of-the-batch", partial(nn.BatchNorm2d, 6, track_running_stats=False), Standardize.batch_norm(4)),
    _image("instance-norm", partial(nn.InstanceNorm2d, 6, affine=True), _IN),
    _image("instance-norm-plain", partial(nn.InstanceNorm2d, 6), _IN),
    _entry(
        "instance-norm-1d",
        partial(nn.InstanceNorm1d, 6, affine=True),
        Standardize.instance_norm(3),
        (_SIGNAL,),
        (_TIME,),
    ),
    _entry("instance-norm-3d", partial(nn.InstanceNorm3d, 6), Standardize.instance_norm(5), (_VOLUME,), (_VOXELS,)),
    _image("instance-norm-running", instance_norm_net, None, (2, 3, 8, 8)),
    _image("group-norm", partial(nn.GroupNorm, 2, 6), _GN),
    _image("group-norm-plain", partial(nn.GroupNorm, 2, 6, affine=False), _GN),
    _image("group-norm-of-one", partial(nn.GroupNorm, 1, 6), Standardize.layer_norm((1, 2, 3))),
    _image("group-norm-of-each", partial(nn.GroupNorm, 6, 6), _IN),
    _entry("group-norm-1d", partial(nn.GroupNorm, 2, 6), Standardize.group_norm(3, 2), (_SIGNAL,), (_TIME,)),
    _entry("group-norm-3d", partial(nn.GroupNorm, 2, 6), Standardize.group_norm(5, 2), (_VOLUME,), (_VOXELS,)),
    _image("group-norm-reshaped", partial(ReshapedGroupNorm, 6, 2), _GN),
    _image("group-norm-half", lambda: Half(nn.GroupNorm(2, 6)), _GN),
    _tokens("layer-norm", partial(nn.LayerNorm, 16), Standardize.layer_norm(_LAST)),
    _tokens("layer-norm-plain", partial(nn.LayerNorm, 16, elementwise_affine=False), Standardize.layer_norm(_LAST)),
    _entry(
        "layer-norm-of-the-image",
        partial(nn.LayerNorm, _IMAGE[1:]),
        Standardize.layer_norm((1, 2, 3)),
        (_IMAGE,),
        (_BATCH,),
    ),
    _entry(
        "layer-norm-of-planes", partial(nn.LayerNorm, _IMAGE[2:]), Standardize.layer_norm((2, 3)), (_IMAGE,), (_BATCH,)
    ),
    _tokens(
        "layer-norm-half",
        lambda: Half(nn.LayerNorm(16)),
        replace(Standardize.layer_norm(_LAST), dtype=ir.DataType.FLOAT),
    ),
    _tokens(
        "layer-norm-std",
        partial(StdLayerNorm, 16),
        Standardize(_LAST, 1e-6, "outside", ddof=1),
    ),
    _tokens("layer-norm-var-mean", partial(VarMeanNorm, 16, (-1,), 0), Standardize.layer_norm(_LAST)),
    _image("layer-norm-2d", partial(LayerNorm2d, 6, 2), Standardize.layer_norm((1,), 1e-6)),
    _image("layer-norm-turned", partial(TurnedLayerNorm, 6), Standardize.layer_norm((1,))),
    _image("instance-norm-var-mean", partial(VarMeanNorm, 6, (2, 3), 2), _IN),
    _entry(
        "global-layer-norm", partial(GlobalLayerNorm, 6), Standardize.layer_norm((1, 2), 1e-5), (_SIGNAL,), (_TIME,)
    ),
    _entry(
        "global-layer-norm-twice",
        partial(GlobalLayerNorm, 6, 2),
        Standardize.layer_norm((1, 2), 1e-5),
        (_SIGNAL,),
        (_TIME,),
    ),
    _entry("channel-layer-norm", partial(VarMeanNorm, 6, (1,), 1), Standardize.layer_norm((1,)), (_SIGNAL,), (_TIME,)),
    _tokens("head-layer-norm", lambda: HeadNorm(nn.LayerNorm(4), 4), Standardize.layer_norm((3,))),
    _tokens("head-rms-norm", lambda: HeadNorm(nn.RMSNorm(4, 1e-6), 4), _HEADS),
    _tokens("head-rms-norm-by-hand", lambda: HeadNorm(HuggingFaceRMSNorm(4), 4), _HEADS),
    _tokens("rms-norm", partial(nn.RMSNorm, 16, 1e-6), _RMS),
    _tokens("rms-norm-hugging-face", partial(HuggingFaceRMSNorm, 16), _RMS),
    _tokens("rms-norm-t5", partial(T5Norm, 16), _RMS),
    _tokens("rms-norm-gemma", partial(GemmaNorm, 16), _RMS),
    _tokens("rms-norm-hugging-face-half", lambda: Half(HuggingFaceRMSNorm(16)), _HALF),
    _tokens("rms-norm-t5-half", lambda: Half(T5Norm(16)), _HALF),
    _tokens("rms-norm-gemma-half", lambda: Half(GemmaNorm(16)), _RMS),
    _image("pixel-norm", PixelNorm, Standardize.rms_norm((1,), 1e-5)),
    _tokens("scale-norm", partial(ScaleNorm, 16), Standardize.lp_norm(_LAST, 2, 1e-5)),
    _tokens("normalize", partial(Normalize, -1), Standardize.lp_norm(_LAST, 2, 1e-12)),
    _image("normalize-channels", partial(Normalize, 1), Standardize.lp_norm((1,), 2, 1e-12)),
    _image("normalize-absolute", partial(Normalize, 1, 1.0), Standardize.lp_norm((1,), 1, 1e-12)),
    _image("local-response", partial(nn.LocalResponseNorm, 5, alpha=0.3), Standardize.local_response(5, 0.3)),
    _image(
        "local-response-even",
        partial(nn.LocalResponseNorm, 4, alpha=0.3),
        replace(Standardize.local_response(4, 0.3), window=(2, 1)),
    ),
    _image(
        "local-response-half-power",
        partial(nn.LocalResponseNorm, 3, 0.2, 0.6, 2.0),
        Standardize.local_response(3, 0.2, 0.6, 2.0),
    ),
    _entry(
        "local-response-1d",
        partial(nn.LocalResponseNorm, 5, alpha=0.3),
        Standardize.local_response(5, 0.3),
        (_SIGNAL,),
        (_TIME,),
    ),
    _entry(
        "local-response-3d",
        partial(nn.LocalResponseNorm, 5, alpha=0.3),
        Standardize.local_response(5, 0.3),
        (_VOLUME,),
        (_VOXELS,),
    ),
    _entry("adain", AdaIN, Standardize((2, 3), 1e-5, ddof=1), (_IMAGE, _IMAGE), (_SPATIAL, _SPATIAL)),
    _entry("adain-std", StdAdaIN, Standardize((2, 3), 1e-5, "outside", ddof=1), (_IMAGE, _IMAGE), (_SPATIAL, _SPATIAL)),
    _entry("adain-linear", partial(LinearAdaIN, 6, 5), _IN, (_IMAGE, _STYLE), (_SPATIAL, _BATCH)),
    _entry(
        "adain-linear-one",
        partial(LinearAdaIN, 6, 5, True),
        _IN,
        ((1, *_IMAGE[1:]), (1, 5)),
        ({2: "height", 3: "width"}, {}),
    ),
    _entry("adain-trick", partial(TrickAdaIN, 6, 5), _IN, (_IMAGE, _STYLE), (_SPATIAL, _BATCH)),
    _entry(
        "ada-layer-norm",
        partial(AdaLayerNorm, 16, 5),
        Standardize.layer_norm(_LAST, 1e-6),
        (_TOKENS, _STYLE),
        (_SEQUENCE, _BATCH),
    ),
    _entry("ada-group-norm", partial(AdaGroupNorm, 2, 6, 5), _GN, (_IMAGE, _STYLE), (_SPATIAL, _BATCH)),
    _entry("conditional-instance-norm", partial(ConditionalNorm, 6, 5), _IN, (_IMAGE, _STYLE), (_SPATIAL, _BATCH)),
    _entry("spade", partial(SPADE, 6, 3), _IN, (_IMAGE, (2, 3, 8, 10)), (_SPATIAL, _SPATIAL)),
    _image("mvn", MVN, Standardize((2, 3), 1e-6, "outside", cancels=True)),
    _entry("grn", partial(GRN, 10), None, (_IMAGE,), ({0: "batch", 1: "height", 2: "width"},)),
    _image("filter-response", partial(FilterResponse, 6, 2), None),
    _image("evo-norm", partial(EvoNorm, 6, 2), None),
    _image("weight-standardized", standardized_net, None, (2, 3, 8, 8)),
    _image("weight-norm", weight_norm_net, None, (2, 3, 8, 8)),
    _image("spectral-norm", spectral_norm_net, None, (2, 3, 8, 8)),
)
"""Every normalization of torch and of the nets that write their own, small enough to export quickly."""

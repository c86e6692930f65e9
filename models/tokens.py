"""Nets over tokens and rows: BatchNormalization behind and in front of matrix products, and layer scale."""

import torch
from torch import Tensor, nn

from models.convolutional import conv_bn_act


class TokenLinear(nn.Module):
    """Linear without bias, then BatchNorm1d over all tokens: (N, T, C) float32 → flatten → norm → reshape."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs, bias=False)
        self.norm = nn.BatchNorm1d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x)
        return torch.reshape(self.norm(y.flatten(0, 1)), y.shape)


class TokenAttention(nn.Module):
    """Attention of LeViT's kind: keys narrower than values, a learned bias per pair of positions, hard-swish."""

    def __init__(self, channels: int, heads: int, key: int, tokens: int) -> None:
        super().__init__()
        self.heads, self.key = heads, key
        self.project = TokenLinear(channels, heads * 4 * key)
        self.position = nn.Parameter(torch.randn(heads, tokens, tokens) * 0.1)
        self.out = nn.Sequential(nn.Hardswish(), TokenLinear(heads * 2 * key, channels))

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        mixed: Tensor = self.project(x)
        parts = torch.split(mixed.view(batch, tokens, self.heads, -1), [self.key, self.key, 2 * self.key], -1)
        query, key, value = (part.transpose(1, 2) for part in parts)
        weights = (query @ key.transpose(-2, -1) * self.key**-0.5 + self.position).softmax(-1)
        y: Tensor = self.out((weights @ value).transpose(1, 2).reshape(batch, tokens, -1))
        return y


class Residual(nn.Module):
    """x + body(x)."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(x, self.body(x))


class LeViT(nn.Module):
    """LeViT's form: four convolutions to 1/16 of the size, attention and MLP over tokens, BatchNorm1d → Linear.

    Every norm is a BatchNormalization behind a MatMul or Conv, or in front of a Gemm. Input: (N, 3, size, size).
    """

    def __init__(
        self, channels: int = 32, heads: int = 2, key: int = 8, depth: int = 2, size: int = 32, classes: int = 10
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            conv_bn_act(2, 3, channels // 8, stride=2, act=nn.Hardswish()),
            conv_bn_act(2, channels // 8, channels // 4, stride=2, act=nn.Hardswish()),
            conv_bn_act(2, channels // 4, channels // 2, stride=2, act=nn.Hardswish()),
            conv_bn_act(2, channels // 2, channels, stride=2, act=nn.Identity()),
        )
        tokens = (size // 16) ** 2
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(
                    Residual(TokenAttention(channels, heads, key, tokens)),
                    Residual(
                        nn.Sequential(
                            TokenLinear(channels, 2 * channels), nn.Hardswish(), TokenLinear(2 * channels, channels)
                        )
                    ),
                )
                for _ in range(depth)
            )
        )
        self.head = nn.Sequential(nn.BatchNorm1d(channels), nn.Linear(channels, classes))

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.stem(x)
        tokens: Tensor = self.blocks(features.flatten(2).transpose(1, 2))
        y: Tensor = self.head(tokens.mean(1))
        return y


def mlp(inputs: int = 12, width: int = 32, outputs: int = 6) -> nn.Sequential:
    """Rows through linear layers, with BatchNorm1d on the input, between, and on the output."""
    return nn.Sequential(
        nn.BatchNorm1d(inputs),
        nn.Linear(inputs, width),
        nn.BatchNorm1d(width),
        nn.ReLU(),
        nn.Linear(width, outputs, bias=False),
        nn.BatchNorm1d(outputs),
    )


class LayerScaleBlock(nn.Module):
    """ConvNeXt's form: depthwise convolution, LayerNorm, two linear layers, times γ per channel, added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.body = nn.Sequential(
            nn.LayerNorm(channels), nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels)
        )
        self.gamma = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        rows: Tensor = self.body(self.depthwise(x).permute(0, 2, 3, 1))
        return x + (self.gamma * rows).permute(0, 3, 1, 2)


def layer_scale_net(channels: int = 8, depth: int = 2) -> nn.Sequential:
    """A patch embedding and blocks with layer scale."""
    return nn.Sequential(nn.Conv2d(3, channels, 4, 4), *(LayerScaleBlock(channels) for _ in range(depth)))

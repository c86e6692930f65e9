"""Nets that carry a style in InstanceNorm or AdaIN, and ConvNeXt, whose LayerNorm is over the channels."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional


def _reflected(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.ReflectionPad2d(kernel // 2), nn.Conv2d(inputs, outputs, kernel, stride))


class StyleResidual(nn.Module):
    """x + in(conv(relu(in(conv(x)))))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _reflected(channels, channels),
            nn.InstanceNorm2d(channels, affine=True),
            nn.ReLU(),
            _reflected(channels, channels),
            nn.InstanceNorm2d(channels, affine=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(self.body(x), x)


def style_transfer(width: int = 4, depth: int = 1) -> nn.Sequential:
    """Fast style transfer (Johnson et al., 2016) with InstanceNorm (Ulyanov et al., 2016): 32 wide, 5 deep there.

    Reflection padding, two convolutions with stride, residual blocks, two of nearest upsampling → convolution.
    """

    def block(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
        return nn.Sequential(
            _reflected(inputs, outputs, kernel, stride), nn.InstanceNorm2d(outputs, affine=True), nn.ReLU()
        )

    return nn.Sequential(
        block(3, width, 9),
        block(width, 2 * width, 3, 2),
        block(2 * width, 4 * width, 3, 2),
        *(StyleResidual(4 * width) for _ in range(depth)),
        nn.Upsample(scale_factor=2),
        block(4 * width, 2 * width, 3),
        nn.Upsample(scale_factor=2),
        block(2 * width, width, 3),
        _reflected(width, 3, 9),
    )


class StyledDecoder(nn.Module):
    """AdaIN of content by mean and unbiased deviation of style features, and a decoder (Huang and Belongie, 2017).

    y = std(style) · (content − mean(content)) / (std(content) + ε) + mean(style); the decoder mirrors VGG.
    """

    def __init__(self, width: int = 4, depth: int = 1, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.decoder = nn.Sequential(
            _reflected(8 * width, 4 * width),
            nn.ReLU(),
            nn.Upsample(scale_factor=2),
            *(layer for _ in range(depth) for layer in (_reflected(4 * width, 4 * width), nn.ReLU())),
            _reflected(4 * width, 2 * width),
            nn.ReLU(),
            nn.Upsample(scale_factor=2),
            _reflected(2 * width, width),
            nn.ReLU(),
            _reflected(width, 3),
        )

    def forward(self, content: Tensor, style: Tensor) -> Tensor:
        mean, deviation = content.mean((2, 3), keepdim=True), torch.std(content, (2, 3), keepdim=True) + self.epsilon
        wanted = style.mean((2, 3), keepdim=True), torch.std(style, (2, 3), keepdim=True) + self.epsilon
        styled = (content - mean) / deviation * wanted[1] + wanted[0]
        y: Tensor = self.decoder(styled)
        return y


class AdaptiveNorm(nn.Module):
    """(1 + γ) · in(x) + β with γ, β from a linear layer on a style vector, as in StarGAN v2 (Choi et al., 2020)."""

    def __init__(self, channels: int, style: int) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm2d(channels)
        self.affine = nn.Linear(style, 2 * channels)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        scale, bias = torch.chunk(self.affine(style)[:, :, None, None], 2, 1)
        y: Tensor = (1 + scale) * self.norm(x) + bias
        return y


class AdaptiveBlock(nn.Module):
    """(upsampled x + conv(lrelu(adain(conv(upsample(lrelu(adain(x)))))))) / √2."""

    def __init__(self, inputs: int, outputs: int, style: int) -> None:
        super().__init__()
        self.first, self.second = AdaptiveNorm(inputs, style), AdaptiveNorm(outputs, style)
        self.convs = nn.ModuleList(
            (nn.Conv2d(inputs, outputs, 3, padding=1), nn.Conv2d(outputs, outputs, 3, padding=1))
        )
        self.shortcut = nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        y = functional.leaky_relu(self.first(x, style), 0.2)
        y = self.convs[0](functional.interpolate(y, scale_factor=2, mode="nearest"))
        y = self.convs[1](functional.leaky_relu(self.second(y, style), 0.2))
        skip: Tensor = self.shortcut(functional.interpolate(x, scale_factor=2, mode="nearest"))
        return torch.mul(torch.add(y, skip), 0.5**0.5)


class AdaptiveGenerator(nn.Module):
    """The decoding half of StarGAN v2's generator: `depth` blocks that double the size, InstanceNorm, convolution."""

    def __init__(self, width: int = 16, depth: int = 2, style: int = 8) -> None:
        super().__init__()
        widths = [width // 2**index for index in range(depth + 1)]
        self.blocks = nn.ModuleList(AdaptiveBlock(inputs, outputs, style) for inputs, outputs in pairwise(widths))
        self.out = nn.Sequential(
            nn.InstanceNorm2d(widths[-1], affine=True), nn.LeakyReLU(0.2), nn.Conv2d(widths[-1], 3, 1)
        )

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, style)
        y: Tensor = self.out(x)
        return y


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of (N, C, H, W), as arithmetic: γ · (x − u) / √(s + ε) + β."""

    def __init__(self, channels: int, epsilon: float = 1e-6) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt(variance + self.epsilon)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class ConvNeXtBlock(nn.Module):
    """x + γ · conv(gelu(conv(norm(depthwise(x))))), channels first throughout."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 7, padding=3, groups=channels),
            ChannelNorm(channels),
            nn.Conv2d(channels, 4 * channels, 1),
            nn.GELU(),
            nn.Conv2d(4 * channels, channels, 1),
        )
        self.gamma = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(x, self.gamma[:, None, None] * self.body(x))


def convnext(width: int = 8, depths: Sequence[int] = (1, 1), classes: int = 10) -> nn.Sequential:
    """ConvNeXt (Liu et al., 2022) with 1×1 convolutions: Atto has a width of 40 and depths of 2, 2, 6, 2."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 4, 4), ChannelNorm(width)]
    for stage, depth in enumerate(depths):
        channels = width * 2**stage
        if stage:
            layers += [ChannelNorm(channels // 2), nn.Conv2d(channels // 2, channels, 2, 2)]
        layers += [ConvNeXtBlock(channels) for _ in range(depth)]
    head = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, classes))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)

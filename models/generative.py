"""Nets that make images, small: InstanceNorm and AdaIN of styles, StyleGAN's norms, GroupNorm with SiLU of diffusion.

Each is an `Entry`, which makes a module with random statistics that knows its example inputs and dynamic dimensions.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.entry import Entry
from models.styles import StyledDecoder, style_transfer


class AdaINTransfer(nn.Module):
    """Arbitrary style transfer (Huang and Belongie, 2017): an encoder for both images, AdaIN, a decoder."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        channels = (3, width, 2 * width, 4 * width, 8 * width)
        layers: list[nn.Module] = []
        for stage, (inputs, outputs) in enumerate(pairwise(channels)):
            layers += [nn.ReflectionPad2d(1), nn.Conv2d(inputs, outputs, 3), nn.ReLU()]
            layers += [nn.MaxPool2d(2)] * (stage in (0, 1))
        self.encoder = nn.Sequential(*layers)
        self.decoder = StyledDecoder(width)

    def forward(self, content: Tensor, style: Tensor) -> Tensor:
        y: Tensor = self.decoder(self.encoder(content), self.encoder(style))
        return y


class Modulated(nn.Module):
    """StyleGAN2's convolution: weights scaled by the style and demodulated, w / √(Σ w² + ε), one set for each image."""

    def __init__(self, inputs: int, outputs: int, style: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 3, 3))
        self.style = nn.Linear(style, inputs)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        scale = self.style(style)[:, :, None, None]
        y = functional.conv2d(x * scale, self.weight, padding=1)
        squares = (self.weight.square().sum((2, 3))[None] * scale.flatten(1).square()[:, None]).sum(2)
        return y * torch.rsqrt(squares + 1e-8)[:, :, None, None]


class ConditionalNorm(nn.Module):
    """StyleGAN's AdaIN: InstanceNorm whose γ and β are a linear map of the style (Dumoulin et al., 2016)."""

    def __init__(self, channels: int, style: int) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm2d(channels)
        self.style = nn.Linear(style, 2 * channels)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        gamma, beta = self.style(style)[:, :, None, None].chunk(2, 1)
        y: Tensor = self.norm(x) * (1 + gamma) + beta
        return y


class PixelNorm(nn.Module):
    """x / √(E[x²] + ε) over the features (Karras et al., 2017)."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-8)


class StyleGAN(nn.Module):
    """StyleGAN in small: pixel norm and a mapping; a block with conditional InstanceNorm, one with demodulation."""

    def __init__(self, width: int = 8, style: int = 12) -> None:
        super().__init__()
        self.mapping = nn.Sequential(PixelNorm(), nn.Linear(style, style), nn.LeakyReLU(0.2), nn.Linear(style, style))
        self.start = nn.Parameter(torch.randn(1, width, 4, 4))
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.norm = ConditionalNorm(width, style)
        self.second = Modulated(width, width, style)
        self.pixels = PixelNorm()
        self.last = nn.Conv2d(width, 3, 1)

    def forward(self, latent: Tensor) -> Tensor:
        style = self.mapping(latent)
        x = self.start.expand(latent.shape[0], -1, -1, -1)
        x = self.norm(functional.leaky_relu(self.first(x), 0.2), style)
        x = functional.interpolate(x, scale_factor=2.0, mode="nearest")
        x = self.pixels(functional.leaky_relu(self.second(x, style), 0.2))
        y: Tensor = self.last(x)
        return y


class DiffusionBlock(nn.Module):
    """A UNet's residual block: GroupNorm → SiLU → convolution, twice, with the embedding of the time step between."""

    def __init__(self, inputs: int, outputs: int, embedding: int, groups: int = 4) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.GroupNorm(groups, inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1))
        self.time = nn.Sequential(nn.SiLU(), nn.Linear(embedding, outputs))
        self.second = nn.Sequential(nn.GroupNorm(groups, outputs), nn.SiLU(), nn.Conv2d(outputs, outputs, 3, padding=1))
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        y = self.first(x) + self.time(time)[:, :, None, None]
        result: Tensor = self.shortcut(x) + self.second(y)
        return result


class DiffusionUNet(nn.Module):
    """A diffusion UNet (Ho, Jain and Abbeel, 2020) of one level, with attention in the middle."""

    def __init__(self, width: int = 8, embedding: int = 16, groups: int = 4) -> None:
        super().__init__()
        self.enter = nn.Conv2d(3, width, 3, padding=1)
        self.down = DiffusionBlock(width, width, embedding)
        self.shrink = nn.Conv2d(width, 2 * width, 3, 2, 1)
        self.norm = nn.GroupNorm(groups, 2 * width)
        self.qkv, self.out = nn.Conv2d(2 * width, 6 * width, 1), nn.Conv2d(2 * width, 2 * width, 1)
        self.middle = DiffusionBlock(2 * width, 2 * width, embedding)
        self.grow = nn.Conv2d(2 * width, width, 3, padding=1)
        self.up = DiffusionBlock(2 * width, width, embedding)
        self.leave = nn.Sequential(nn.GroupNorm(groups, width), nn.SiLU(), nn.Conv2d(width, 3, 3, padding=1))

    def attended(self, x: Tensor) -> Tensor:
        """x + attention over the positions of its GroupNorm."""
        q, k, v = self.qkv(self.norm(x)).flatten(2).chunk(3, 1)
        weights = torch.softmax(q.transpose(1, 2) @ k * q.shape[1] ** -0.5, -1)
        y: Tensor = x + self.out((v @ weights.transpose(1, 2)).reshape(x.shape))
        return y

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        skip = self.down(self.enter(x), time)
        y = self.middle(self.attended(self.shrink(skip)), time)
        y = self.grow(functional.interpolate(y, scale_factor=2.0, mode="nearest"))
        result: Tensor = self.leave(self.up(torch.cat((y, skip), 1), time))
        return result


fast_style = Entry("fast-style", style_transfer, ((2, 3, 32, 32),), ({0: "batch"},))
adain = Entry("adain-transfer", AdaINTransfer, ((2, 3, 32, 32), (2, 3, 24, 24)), ({0: "batch"}, {0: "batch"}))
stylegan = Entry("stylegan", StyleGAN, ((2, 12),))
unet = Entry("diffusion-unet", DiffusionUNet, ((2, 3, 16, 16), (2, 16)), ({0: "batch"}, {0: "batch"}))

ENTRIES: tuple[Entry, ...] = (fast_style, adain, stylegan, unet)
"""All of them."""

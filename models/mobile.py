"""Mobile nets whose activations are written out, with squeeze-and-excite and affine maps around them.

Their time goes into the layout of the convolutions, which each operator that does not know it breaks.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.affine import LearnableAffine


class HardSwish(nn.Module):
    """x · clip(x + 3, 0, 6) / 6, in four operators."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.clamp(x + 3.0, 0.0, 6.0) / 6.0


class Excite(nn.Module):
    """Squeeze-and-excite: each channel times a hard sigmoid of the means of all channels."""

    def __init__(self, channels: int, reduced: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, reduced, 1)
        self.excite = nn.Conv2d(reduced, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.excite(functional.relu(self.squeeze(x.mean((2, 3), keepdim=True))))
        return x * (torch.clamp(gate + 3.0, 0.0, 6.0) / 6.0)


def _conv(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(outputs)
    )


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution, squeeze-and-excite and projection, with a residual where the shapes allow."""

    def __init__(self, inputs: int, hidden: int, outputs: int, kernel: int, stride: int, excites: bool) -> None:
        super().__init__()
        self.adds = stride == 1 and inputs == outputs
        self.body = nn.Sequential(
            _conv(inputs, hidden),
            HardSwish(),
            _conv(hidden, hidden, kernel, stride, hidden),
            HardSwish(),
            Excite(hidden, hidden // 4) if excites else nn.Identity(),
            _conv(hidden, outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return x + y if self.adds else y


class Means(nn.Module):
    """The mean over height and width."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def mobile_net(width: int = 8, depth: int = 1, classes: int = 10) -> nn.Sequential:
    """MobileNetV3 (Howard et al., 2019) in small: three stages, the last with squeeze-and-excite."""
    blocks: list[nn.Module] = []
    inputs = width
    for stage, kernel in enumerate((3, 3, 5)):
        outputs = width * (stage + 1)
        for index in range(depth + 1):
            blocks.append(InvertedResidual(inputs, 4 * inputs, outputs, kernel, 1 + (index == 0), stage == 2))
            inputs = outputs
    return nn.Sequential(
        _conv(3, width, 3, 2),
        HardSwish(),
        *blocks,
        _conv(inputs, 4 * inputs),
        HardSwish(),
        Means(),
        nn.Linear(4 * inputs, 8 * width),
        HardSwish(),
        nn.Linear(8 * width, classes),
    )


def _light(inputs: int, outputs: int, kernel: int, stride: int, excites: bool) -> nn.Sequential:
    """Depthwise and pointwise convolution, each with an affine map in front of and behind its hard-swish."""

    def half(inputs: int, outputs: int, kernel: int, stride: int, groups: int) -> list[nn.Module]:
        return [_conv(inputs, outputs, kernel, stride, groups), LearnableAffine(), HardSwish(), LearnableAffine()]

    return nn.Sequential(
        *half(inputs, inputs, kernel, stride, inputs),
        Excite(inputs, inputs // 4) if excites else nn.Identity(),
        *half(inputs, outputs, 1, 1, 1),
    )


class TextDetector(nn.Module):
    """Text detection as in PP-OCR: a light backbone, a pyramid of its features, and a map of probabilities."""

    def __init__(self, width: int = 8, depth: int = 1) -> None:
        super().__init__()
        widths = (width, 2 * width, 4 * width)
        self.stem = _conv(3, width, 3, 2)
        self.stages = nn.ModuleList(
            nn.Sequential(
                _light(max(width, outputs // 2), outputs, 3, 2, False),
                *(_light(outputs, outputs, 5 if index == 2 else 3, 1, index == 2) for _ in range(depth)),
            )
            for index, outputs in enumerate(widths)
        )
        self.lateral = nn.ModuleList(nn.Conv2d(channels, width, 1, bias=False) for channels in widths)
        self.head = nn.Sequential(
            _conv(3 * width, width, 3),
            nn.ReLU(),
            nn.ConvTranspose2d(width, width, 2, 2),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.ConvTranspose2d(width, 1, 2, 2),
            nn.Sigmoid(),
        )

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image)
        features: list[Tensor] = []
        for stage, lateral in zip(self.stages, self.lateral, strict=True):
            x = stage(x)
            features.append(lateral(x))
        for index in (1, 0):
            features[index] = features[index] + functional.interpolate(features[index + 1], scale_factor=2.0)
        up = [features[0], *(functional.interpolate(features[index], scale_factor=2.0**index) for index in (1, 2))]
        result: Tensor = self.head(torch.cat(up, 1))
        return result

"""Convolutional nets: where BatchNormalization stands behind, in front of and between convolutions, 1-D to 3-D."""

from typing import Literal

import torch
from torch import Tensor, nn

CONV = (nn.Conv1d, nn.Conv2d)
BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d)


def conv_bn_act(
    rank: Literal[1, 2],
    inputs: int,
    outputs: int,
    kernel: int = 3,
    stride: int = 1,
    groups: int = 1,
    act: nn.Module | None = None,
) -> nn.Sequential:
    """Convolution without bias, BatchNormalization, activation (ReLU where left out)."""
    return nn.Sequential(
        CONV[rank - 1](inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        BATCH_NORM[rank - 1](outputs),
        nn.ReLU() if act is None else act,
    )


class PreActivation(nn.Module):
    """Residual block x + conv(act(bn(conv(act(bn(x)))))); with a stride, the shortcut is a convolution."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.before = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU())
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if stride > 1 else None
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.before(x)
        return torch.add(self.body(y), x if self.shortcut is None else self.shortcut(y))


def preactivation_resnet(width: int = 8, depth: int = 1, classes: int = 10) -> nn.Sequential:
    """Pre-activation ResNet: `depth` identity blocks, one with stride, a last BatchNormalization behind the sum."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1),
        *(PreActivation(width, width) for _ in range(depth)),
        PreActivation(width, 2 * width, stride=2),
        nn.BatchNorm2d(2 * width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * width, classes),
    )


class DenseLayers(nn.Module):
    """Dense block: each layer reads the concatenation of the block's input and all earlier layers' outputs."""

    def __init__(self, inputs: int, growth: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(inputs + index * growth),
                nn.ReLU(),
                nn.Conv2d(inputs + index * growth, 4 * growth, 1, bias=False),
                nn.BatchNorm2d(4 * growth),
                nn.ReLU(),
                nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False),
            )
            for index in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        return torch.cat(features, 1)


def dense_net(width: int = 16, growth: int = 8, depth: int = 2, classes: int = 10) -> nn.Sequential:
    """DenseNet with two blocks of `depth` layers and one transition."""
    middle = (width + depth * growth) // 2
    last = middle + depth * growth
    return nn.Sequential(
        conv_bn_act(2, 3, width, stride=2),
        DenseLayers(width, growth, depth),
        nn.Sequential(
            nn.BatchNorm2d(2 * middle), nn.ReLU(), nn.Conv2d(2 * middle, middle, 1, bias=False), nn.AvgPool2d(2)
        ),
        DenseLayers(middle, growth, depth),
        nn.BatchNorm2d(last),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(last, classes),
    )


class UNet(nn.Module):
    """UNet of two levels whose upsampling is ConvTranspose (grouped on the lower level) → BatchNormalization → ReLU."""

    def __init__(self, width: int = 8, classes: int = 2) -> None:
        super().__init__()
        self.down = nn.ModuleList(
            nn.Sequential(conv_bn_act(2, inputs, outputs), conv_bn_act(2, outputs, outputs))
            for inputs, outputs in ((3, width), (width, 2 * width), (2 * width, 4 * width))
        )
        self.pool = nn.MaxPool2d(2)
        self.up = nn.ModuleList(
            nn.Sequential(
                nn.ConvTranspose2d(2 * outputs, outputs, 2, 2, groups=groups), nn.BatchNorm2d(outputs), nn.ReLU()
            )
            for outputs, groups in ((2 * width, 2), (width, 1))
        )
        self.merge = nn.ModuleList(conv_bn_act(2, 2 * outputs, outputs) for outputs in (2 * width, width))
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for level in self.down:
            x = level(self.pool(x) if skips else x)
            skips.append(x)
        for up, merge, skip in zip(self.up, self.merge, reversed(skips[:-1]), strict=True):
            x = merge(torch.cat((up(x), skip), 1))
        y: Tensor = self.head(x)
        return y


class FrozenBatchNorm(nn.Module):
    """BatchNormalization as arithmetic on buffers, as detection models freeze it: x · γ·rsqrt(σ² + ε) + (β − μ·…)."""

    def __init__(self, channels: int, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.weight: Tensor
        self.bias: Tensor
        self.running_mean: Tensor
        self.running_var: Tensor
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight.reshape(1, -1, 1, 1) * (self.running_var.reshape(1, -1, 1, 1) + self.epsilon).rsqrt()
        return x * scale + (self.bias.reshape(1, -1, 1, 1) - self.running_mean.reshape(1, -1, 1, 1) * scale)


class FrozenBottleneck(nn.Module):
    """Residual bottleneck with frozen norms and a projected shortcut."""

    def __init__(self, inputs: int, middle: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, middle, 1, bias=False),
            FrozenBatchNorm(middle),
            nn.ReLU(),
            nn.Conv2d(middle, middle, 3, stride, 1, bias=False),
            FrozenBatchNorm(middle),
            nn.ReLU(),
            nn.Conv2d(middle, outputs, 1, bias=False),
            FrozenBatchNorm(outputs),
        )
        self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), FrozenBatchNorm(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(torch.add(self.body(x), self.shortcut(x)))


def frozen_resnet(width: int = 8) -> nn.Sequential:
    """A stem and two bottlenecks with frozen norms."""
    return nn.Sequential(
        nn.Conv2d(3, width, 7, 2, 3, bias=False),
        FrozenBatchNorm(width),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
        FrozenBottleneck(width, width, 4 * width),
        FrozenBottleneck(4 * width, width, 4 * width, stride=2),
    )


def conv_net_1d(width: int = 16) -> nn.Sequential:
    """1-D net: strided, depthwise and dilated convolutions, each with a norm."""
    return nn.Sequential(
        conv_bn_act(1, 4, width, kernel=7, stride=2, act=nn.LeakyReLU(0.1)),
        conv_bn_act(1, width, width, groups=width, act=nn.PReLU(width)),
        nn.Conv1d(width, 2 * width, 3, padding=2, dilation=2),
        nn.BatchNorm1d(2 * width),
        nn.AvgPool1d(2),
        nn.Conv1d(2 * width, 8, 1),
    )


def conv_net_3d(width: int = 8) -> nn.Sequential:
    """3-D net: a grouped and a transposed convolution between two plain ones, each with a norm.

    The convolutions have biases: without one, torch's dynamo exporter writes an invalid Conv unless it optimizes.
    """
    return nn.Sequential(
        nn.Conv3d(2, width, 3, padding=1),
        nn.BatchNorm3d(width),
        nn.ReLU(),
        nn.MaxPool3d(2),
        nn.Conv3d(width, 2 * width, 3, padding=1, groups=2),
        nn.BatchNorm3d(2 * width),
        nn.ReLU(),
        nn.ConvTranspose3d(2 * width, width, 2, 2, groups=2, bias=False),
        nn.BatchNorm3d(width),
        nn.ReLU(),
        nn.Conv3d(width, 3, 1),
    )

"""Convolutional classifiers whose norms have statistics of the input: GroupNorm, and LRN from before BatchNorm."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class GroupNormBlock(nn.Module):
    """ResNet's basic block with GroupNorm: relu(x + gn(conv(relu(gn(conv(x)))))), the shortcut projected if it must."""

    def __init__(self, inputs: int, outputs: int, groups: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.GroupNorm(groups, outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.GroupNorm(groups, outputs),
        )
        self.shortcut = (
            nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.GroupNorm(groups, outputs))
            if stride > 1 or inputs != outputs
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(torch.add(self.body(x), self.shortcut(x)))


def group_norm_resnet(
    width: int = 8, depths: Sequence[int] = (1, 1), groups: int = 4, classes: int = 10
) -> nn.Sequential:
    """ResNet with GroupNorm (Wu and He, 2018): ResNet-18 with a width of 64, depths of 2, 2, 2, 2 and 32 groups."""
    layers: list[nn.Module] = []
    inputs = width
    for stage, depth in enumerate(depths):
        for index in range(depth):
            outputs = width * 2**stage
            layers.append(GroupNormBlock(inputs, outputs, groups, 2 if stage and not index else 1))
            inputs = outputs
    return nn.Sequential(
        nn.Conv2d(3, width, 7, 2, 3, bias=False),
        nn.GroupNorm(groups, width),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
        *layers,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(inputs, classes),
    )


def alexnet(width: int = 8, hidden: int = 32, size: int = 64, classes: int = 10) -> nn.Sequential:
    """AlexNet (Krizhevsky et al., 2012): LRN behind the first two convolutions; 96 wide at 227 in the original.

    Its two hidden layers of 4096, most of its weights, have `hidden` features here.
    """
    features = nn.Sequential(
        nn.Conv2d(3, width, 11, 4, 2),
        nn.ReLU(),
        nn.LocalResponseNorm(5, 1e-4, 0.75, 2.0),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(width, 8 * width // 3 // 2 * 2, 5, padding=2, groups=2),
        nn.ReLU(),
        nn.LocalResponseNorm(5, 1e-4, 0.75, 2.0),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(8 * width // 3 // 2 * 2, 4 * width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4 * width, 4 * width, 3, padding=1, groups=2),
        nn.ReLU(),
        nn.Conv2d(4 * width, 8 * width // 3 // 2 * 2, 3, padding=1, groups=2),
        nn.ReLU(),
        *([nn.MaxPool2d(3, 2)] if size > 100 else []),
    )
    with torch.no_grad():
        flat = features(torch.zeros(1, 3, size, size)).numel()
    return nn.Sequential(
        features,
        nn.Flatten(),
        nn.Linear(flat, hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, classes),
    )


def _conv_relu(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2), nn.ReLU())


class Inception(nn.Module):
    """1×1, 1×1 → 3×3, 1×1 → 5×5 and pool → 1×1, concatenated."""

    def __init__(self, inputs: int, widths: Sequence[int]) -> None:
        super().__init__()
        one, before_three, three, before_five, five, pooled = widths
        self.branches = nn.ModuleList(
            (
                _conv_relu(inputs, one, 1),
                nn.Sequential(_conv_relu(inputs, before_three, 1), _conv_relu(before_three, three, 3)),
                nn.Sequential(_conv_relu(inputs, before_five, 1), _conv_relu(before_five, five, 5)),
                nn.Sequential(nn.MaxPool2d(3, 1, 1), _conv_relu(inputs, pooled, 1)),
            )
        )
        self.outputs = one + three + five + pooled

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


INCEPTIONS = (
    ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)),
    (
        (192, 96, 208, 16, 48, 64),
        (160, 112, 224, 24, 64, 64),
        (128, 128, 256, 24, 64, 64),
        (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128),
    ),
    ((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)),
)
"""Widths of GoogLeNet's modules (Szegedy et al., 2015, table 1), by stage."""


def googlenet(
    divisor: int = 16, stages: Sequence[Sequence[Sequence[int]]] = INCEPTIONS[:1], classes: int = 10
) -> nn.Sequential:
    """GoogLeNet with its two LRN, in front of the inception modules; all widths divided by `divisor`."""
    width = 64 // divisor
    layers: list[nn.Module] = [
        _conv_relu(3, width, 7, 2),
        nn.MaxPool2d(3, 2, 1),
        nn.LocalResponseNorm(5, 1e-4, 0.75, 1.0),
        _conv_relu(width, width, 1),
        _conv_relu(width, 3 * width, 3),
        nn.LocalResponseNorm(5, 1e-4, 0.75, 1.0),
    ]
    inputs = 3 * width
    for stage in stages:
        layers.append(nn.MaxPool2d(3, 2, 1))
        for widths in stage:
            module = Inception(inputs, [width // divisor for width in widths])
            layers.append(module)
            inputs = module.outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))

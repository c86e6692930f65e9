"""The convolutional nets that made the norms known, small, for `normfuse export models.cnn:resnet18` and tests.

Each is an `Entry`, which makes a module with random statistics that knows its example inputs and dynamic dimensions.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.convolutional import dense_net, preactivation_resnet
from models.entry import Entry
from models.mobile import mobile_net
from models.normalized import alexnet, googlenet, group_norm_resnet
from models.styles import convnext as convnext_blocks

_BATCHED = ({0: "batch"},)
_SPATIAL = ({0: "batch", 2: "height", 3: "width"},)


def _conv_norm(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs)]


class BasicBlock(nn.Module):
    """relu(x + bn(conv(relu(bn(conv(x)))))); with a stride, the shortcut is a convolution with a norm."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(*_conv_norm(inputs, outputs, stride=stride), nn.ReLU(), *_conv_norm(outputs, outputs))
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else nn.Sequential(*_conv_norm(inputs, outputs, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.body(x) + self.shortcut(x))


def _resnet18(width: int = 8, classes: int = 10) -> nn.Sequential:
    """ResNet-18 (He et al., 2015) with four stages of two blocks; 64 wide there."""
    blocks: list[nn.Module] = []
    inputs = width
    for stage in range(4):
        outputs = width << stage
        blocks += [BasicBlock(inputs, outputs, 1 if stage == 0 else 2), BasicBlock(outputs, outputs)]
        inputs = outputs
    return nn.Sequential(
        *_conv_norm(3, width, 7, 2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(inputs, classes),
    )


class InceptionA(nn.Module):
    """Four branches side by side, each convolution with a norm and ReLU: figure 5 of Szegedy et al., 2015."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()

        def branch(*shapes: tuple[int, int, int]) -> nn.Sequential:
            return nn.Sequential(*(layer for shape in shapes for layer in (*_conv_norm(*shape), nn.ReLU())))

        self.one = branch((inputs, width, 1))
        self.five = branch((inputs, width, 1), (width, width, 5))
        self.three = branch((inputs, width, 1), (width, 2 * width, 3), (2 * width, 2 * width, 3))
        self.pooled = branch((inputs, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        pooled = functional.avg_pool2d(x, 3, 1, 1)
        return torch.cat((self.one(x), self.five(x), self.three(x), self.pooled(pooled)), 1)


def _inception(width: int = 8, classes: int = 10) -> nn.Sequential:
    """Inception-v3 (Szegedy et al., 2015) in small: a stem and two modules."""
    return nn.Sequential(
        *_conv_norm(3, width, 3, 2),
        nn.ReLU(),
        *_conv_norm(width, width),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        InceptionA(width, width),
        InceptionA(5 * width, width),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5 * width, classes),
    )


class BiTConv(nn.Conv2d):
    """Convolution whose weight is standardized over each filter: (w − μ) / √(σ² + ε), at every call."""

    def forward(self, input: Tensor) -> Tensor:
        variance, mean = torch.var_mean(self.weight, (1, 2, 3), keepdim=True, correction=0)
        weight = (self.weight - mean) / torch.sqrt(variance + 1e-10)
        return functional.conv2d(input, weight, self.bias, self.stride, self.padding)


class BiTBlock(nn.Module):
    """Pre-activation bottleneck x + conv(gn(conv(gn(conv(gn(x)))))), the norms with ReLU."""

    def __init__(self, inputs: int, outputs: int, groups: int, stride: int = 1) -> None:
        super().__init__()
        middle = outputs // 4
        self.norm = nn.Sequential(nn.GroupNorm(groups, inputs), nn.ReLU())
        self.shortcut = None if inputs == outputs else BiTConv(inputs, outputs, 1, stride, bias=False)
        self.body = nn.Sequential(
            BiTConv(inputs, middle, 1, bias=False),
            nn.GroupNorm(groups, middle),
            nn.ReLU(),
            BiTConv(middle, middle, 3, stride, 1, bias=False),
            nn.GroupNorm(groups, middle),
            nn.ReLU(),
            BiTConv(middle, outputs, 1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x)
        shortcut = x if self.shortcut is None else self.shortcut(y)
        result: Tensor = self.body(y) + shortcut
        return result


def _bit(width: int = 8, groups: int = 4, classes: int = 10) -> nn.Sequential:
    """Big Transfer's ResNet (Kolesnikov et al., 2019): weight standardization (Qiao et al., 2019) and GroupNorm."""
    return nn.Sequential(
        BiTConv(3, width, 7, 2, 3, bias=False),
        nn.ConstantPad2d(1, 0.0),
        nn.MaxPool2d(3, 2),
        BiTBlock(width, 4 * width, groups),
        BiTBlock(4 * width, 4 * width, groups),
        BiTBlock(4 * width, 8 * width, groups, 2),
        nn.GroupNorm(groups, 8 * width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Conv2d(8 * width, classes, 1),
        nn.Flatten(),
    )


resnet18 = Entry("resnet18", _resnet18, ((2, 3, 64, 64),), _SPATIAL)
inception = Entry("inception", _inception, ((2, 3, 48, 48),), _SPATIAL)
preact_resnet = Entry("preact-resnet", preactivation_resnet, ((2, 3, 32, 32),), _SPATIAL, keeps=2)
densenet = Entry("densenet", dense_net, ((2, 3, 32, 32),), _SPATIAL, keeps=6)
mobilenet = Entry("mobilenet", mobile_net, ((2, 3, 32, 32),), _SPATIAL)
alexnet_lrn = Entry("alexnet-lrn", alexnet, ((2, 3, 64, 64),), _BATCHED)
googlenet_lrn = Entry("googlenet-lrn", googlenet, ((2, 3, 32, 32),), _SPATIAL)
convnext = Entry("convnext-first", convnext_blocks, ((2, 3, 32, 32),), _SPATIAL)
resnet_gn = Entry("resnet-group-norm", group_norm_resnet, ((2, 3, 32, 32),), _SPATIAL, keeps=6)
bit = Entry("bit", _bit, ((2, 3, 48, 48),), _SPATIAL)

ENTRIES: tuple[Entry, ...] = (
    resnet18,
    inception,
    preact_resnet,
    densenet,
    mobilenet,
    alexnet_lrn,
    googlenet_lrn,
    convnext,
    resnet_gn,
    bit,
)
"""All of them."""

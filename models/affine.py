"""Affine maps that are no norm, and norms that are only affine maps: where folding has to look twice."""

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize


class InputNormalization(nn.Module):
    """(x/255 − mean)/std per channel, as written in front of a first layer."""

    def __init__(self) -> None:
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).reshape(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).reshape(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x / 255.0 - self.mean) / self.std


def normalized_input(padding: int = 0, width: int = 8) -> nn.Sequential:
    """Input normalization in front of a convolution, whose zero padding, if any, forbids to move the shift."""
    return nn.Sequential(
        InputNormalization(),
        nn.Conv2d(3, width, 3, 2, padding),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 1),
    )


class LearnableAffine(nn.Module):
    """x · scale + shift with one scale and one shift for the whole tensor, of shape [1]."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.shift = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x + self.shift


def learnable_affine_net(width: int = 8, depth: int = 2) -> nn.Sequential:
    """Depthwise separable net with learnable affine maps before and after each hard-swish (as PP-LCNet, PP-OCR)."""

    def block(inputs: int, outputs: int, kernel: int, groups: int = 1) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False),
            nn.BatchNorm2d(outputs),
            LearnableAffine(),
            nn.Hardswish(),
            LearnableAffine(),
        )

    layers = (nn.Sequential(block(width, width, 3, width), block(width, width, 1)) for _ in range(depth))
    return nn.Sequential(block(3, width, 3), *layers, nn.Conv2d(width, 4, 1))


def instance_norm_net(width: int = 8) -> nn.Sequential:
    """Convolutions with InstanceNorm that keeps running statistics: in eval mode a BatchNormalization in disguise."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1),
        nn.InstanceNorm2d(width, affine=True, track_running_stats=True),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1),
        nn.InstanceNorm2d(width, affine=True, track_running_stats=True),
        nn.ReLU(),
    )


class StandardizedConv(nn.Conv2d):
    """Convolution whose weight has mean 0 and variance 1/fan-in per output channel, times a gain, at every call."""

    def __init__(self, inputs: int, outputs: int, kernel: int, epsilon: float = 1e-5) -> None:
        super().__init__(inputs, outputs, kernel, padding=kernel // 2)
        self.gamma = nn.Parameter(torch.ones(outputs))
        self.epsilon = epsilon

    def forward(self, input: Tensor) -> Tensor:
        variance, mean = torch.var_mean(self.weight, (1, 2, 3), keepdim=True, correction=0)
        weight = (self.weight - mean) / torch.sqrt(variance + self.epsilon) * self.gamma.reshape(-1, 1, 1, 1)
        weight = weight * self.weight[0].numel() ** -0.5
        return functional.conv2d(input, weight, self.bias, self.stride, self.padding)


def standardized_net(width: int = 8) -> nn.Sequential:
    """Weight-standardized convolutions with BatchNormalization."""
    return nn.Sequential(
        StandardizedConv(3, width, 3),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        StandardizedConv(width, 2 * width, 1),
        nn.BatchNorm2d(2 * width),
    )


def weight_norm_net(width: int = 8) -> nn.Sequential:
    """Convolution, transposed convolution and linear layer under weight norm, with BatchNormalization."""
    return nn.Sequential(
        parametrizations.weight_norm(nn.Conv2d(3, width, 3, 2, 1)),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        parametrizations.weight_norm(nn.ConvTranspose2d(width, width, 2, 2)),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        parametrizations.weight_norm(nn.Linear(width, 5)),
        nn.BatchNorm1d(5),
    )


class SpectralNorm(nn.Module):
    """A parametrization: the weight divided by uᵀ W v, its largest singular value by ten power iterations."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.u: Tensor
        self.v: Tensor
        matrix = weight.detach().flatten(1)
        u = torch.ones(len(matrix))
        for _ in range(10):
            v = functional.normalize(u @ matrix, dim=0)
            u = functional.normalize(matrix @ v, dim=0)
        self.register_buffer("u", u)
        self.register_buffer("v", v)

    def forward(self, weight: Tensor) -> Tensor:
        return weight / (self.u * (weight.flatten(1) @ self.v)).sum()


def spectral_norm_net(width: int = 8) -> nn.Sequential:
    """Convolution and linear layer under spectral norm, with BatchNormalization."""
    conv, linear = nn.Conv2d(3, width, 4, 2, 1), nn.Linear(width, 5)
    for layer in (conv, linear):
        parametrize.register_parametrization(layer, "weight", SpectralNorm(layer.weight))
    return nn.Sequential(
        conv,
        nn.BatchNorm2d(width),
        nn.LeakyReLU(0.2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        linear,
        nn.BatchNorm1d(5),
    )

"""`Activation`: a non-linear function of each element, with its float64 reference.

Relu          max(0, x)
Clip          min(max(x, α), β)                Relu6 for α = 0, β = 6
LeakyRelu     max(x, α·x)                      0 < α < 1
HardSigmoid   max(0, min(1, α·x + β))
HardSwish     x · HardSigmoid(x; ⅙, ½)         Howard et al., Searching for MobileNetV3, 2019
Sigmoid       σ(x) = 1 / (1 + exp(−x))
Swish         x · σ(α·x)                       SiLU for α = 1, QuickGelu for α = 1.702
Gelu          x · ½ · (1 + erf(x / √2))        Hendrycks and Gimpel, Gaussian Error Linear Units, 2016
TanhGelu      x · ½ · (1 + tanh(√(2/π) · (x + 0.044715·x³)))
Mish          x · tanh(log(1 + exp(x)))        Misra, Mish: A Self Regularized Non-Monotonic Activation Function, 2019
"""

from dataclasses import dataclass
from math import erf, pi, sqrt
from typing import Literal

import numpy as np

from normfuse.affine import Float64

Kind = Literal["Relu", "Clip", "LeakyRelu", "HardSigmoid", "HardSwish", "Sigmoid", "Swish", "Gelu", "TanhGelu", "Mish"]

TANH_GELU = (sqrt(2.0 / pi), 0.044715 * sqrt(2.0 / pi))
"""The coefficients of x and x³ in the argument of the tanh of a TanhGelu."""

_erf = np.vectorize(erf, otypes=[np.float64])


@dataclass(frozen=True, slots=True)
class Activation:
    """What is computed of each element alone.

    Attributes:
        kind: which function it is.
        alpha: α of the formula above; that within a HardSwish.
        beta: β of the formula above; that within a HardSwish.
        rounded: whether the constants are so far from those of the formula that another spelling would compute
            something else.
    """

    kind: Kind
    alpha: float = 1.0 / 6.0
    beta: float = 0.5
    rounded: bool = False

    @property
    def formula(self) -> str:
        """The formula as one line of text."""
        gate = f"max(0, min(1, {self.alpha:g}·x + {self.beta:g}))"
        within = "x" if self.alpha == 1.0 else f"{self.alpha:g}·x"
        return {
            "Relu": "max(0, x)",
            "Clip": f"min(max(x, {self.alpha:g}), {self.beta:g})",
            "LeakyRelu": f"max(x, {self.alpha:g}·x)",
            "HardSigmoid": gate,
            "HardSwish": f"x · {gate}",
            "Sigmoid": "σ(x)",
            "Swish": f"x · σ({within})",
            "Gelu": "x · ½ · (1 + erf(x / √2))",
            "TanhGelu": "x · ½ · (1 + tanh(√(2/π) · (x + 0.044715·x³)))",
            "Mish": "x · tanh(log(1 + exp(x)))",
        }[self.kind]

    def __call__(self, x: Float64) -> Float64:
        """The reference: x (…) float64 to y of the same shape."""
        match self.kind:
            case "Relu":
                y = np.maximum(x, 0.0)
            case "Clip":
                y = np.clip(x, self.alpha, self.beta)
            case "LeakyRelu":
                y = np.maximum(x, self.alpha * x)
            case "HardSigmoid":
                y = np.clip(self.alpha * x + self.beta, 0.0, 1.0)
            case "HardSwish":
                y = x * np.clip(self.alpha * x + self.beta, 0.0, 1.0)
            case "Sigmoid":
                y = _sigmoid(x)
            case "Swish":
                y = x * _sigmoid(self.alpha * x)
            case "Gelu":
                y = x * 0.5 * (1.0 + _erf(x / sqrt(2.0)))
            case "TanhGelu":
                y = x * 0.5 * (1.0 + np.tanh(TANH_GELU[0] * x + TANH_GELU[1] * x**3))
            case "Mish":
                y = x * np.tanh(np.logaddexp(0.0, x))
        return np.asarray(y, np.float64)


def _sigmoid(x: Float64) -> Float64:
    return np.exp(-np.logaddexp(0.0, -x))

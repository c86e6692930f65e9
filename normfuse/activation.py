"""`Activation`: a non-linear function of each element, with its float64 reference.

HardSigmoid   max(0, min(1, α·x + β))
HardSwish     x · HardSigmoid(x; ⅙, ½)         Howard et al., Searching for MobileNetV3, 2019
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from normfuse.affine import Float64

Kind = Literal["HardSigmoid", "HardSwish"]


@dataclass(frozen=True, slots=True)
class Activation:
    """What is computed of each element alone.

    Attributes:
        kind: which function it is.
        alpha: α of a HardSigmoid; that within a HardSwish.
        beta: β of a HardSigmoid; that within a HardSwish.
    """

    kind: Kind
    alpha: float = 1.0 / 6.0
    beta: float = 0.5

    @property
    def formula(self) -> str:
        """The formula as one line of text."""
        gate = f"max(0, min(1, {self.alpha:g}·x + {self.beta:g}))"
        return gate if self.kind == "HardSigmoid" else f"x · {gate}"

    def __call__(self, x: Float64) -> Float64:
        """The reference: x (…) float64 to y of the same shape."""
        gate = np.clip(self.alpha * x + self.beta, 0.0, 1.0)
        return np.asarray(gate if self.kind == "HardSigmoid" else x * gate)

"""The tables of FOLD: what offers an affine map, who takes it in, who lets it pass.

Adding an operator is adding a row to one of the modules named here, and a test where it applies and where it refuses.
"""

from normfuse.passes.absorb import LINEAR
from normfuse.passes.absorb_affine import AFFINE
from normfuse.passes.carry import CARRY
from normfuse.passes.rule import Rule
from normfuse.passes.sources import BIAS, SOURCES

ABSORB: tuple[Rule, ...] = LINEAR + AFFINE

FOLD_RULES: tuple[Rule, ...] = (*SOURCES, BIAS, *ABSORB, *CARRY)

__all__ = ["ABSORB", "BIAS", "CARRY", "FOLD_RULES", "SOURCES"]

"""Formulas of normalizations and affine maps as a reader wants them: numbers filled in, S in plain words.

γ · (x − E[x]) / √(Var[x] + 1e-05) + β, S: H, W and 8 of 64 channels; per sample
"""

from collections.abc import Sequence

from normfuse.norm import Standardize
from normfuse.passes.access import Dim

AFFINE_FORMULAS = {
    ("Add", 0): "x + b",
    ("Add", 1): "x + b",
    ("Mul", 0): "a · x",
    ("Mul", 1): "a · x",
    ("Sub", 0): "b − x",
    ("Sub", 1): "x − b",
    ("Div", 1): "x / a",
}
"""(operator, which operand is the constant): what it computes. A constant over x is not affine."""

NORM_FORMULAS = {
    "BatchNormalization": "γ · (x − μ) / √(σ² + ε) + β",
    "GroupNorm": "γ · (x − μ_S) / √(Var_S + ε) + β, S: spatial and a group of channels; per sample",
    "GroupNormalization": "γ · (x − μ_S) / √(Var_S + ε) + β, S: spatial and a group of channels; per sample",
    "InstanceNormalization": "γ · (x − μ_S) / √(Var_S + ε) + β, S: spatial; per sample and channel",
    "LRN": "x / (k + α/n · Σ_S x²)^β, S: a window of n channels",
    "LayerNormalization": "γ · (x − μ_S) / √(Var_S + ε) + β, S: the trailing axes; per sample",
    "LpNormalization": "x / ‖x‖_S, S: one axis",
    "MeanVarianceNormalization": "(x − μ_S) / (√Var_S + ε), S: the given axes",
    "RMSNormalization": "γ · x / √(mean_S x² + ε), S: the trailing axes; per sample",
    "SimplifiedLayerNormalization": "γ · x / √(mean_S x² + ε), S: the trailing axes; per sample",
    "SkipGroupNorm": "as GroupNorm, of x + skip + bias",
    "SkipLayerNormalization": "as LayerNormalization, of x + skip + bias",
    "SkipSimplifiedLayerNormalization": "as SimplifiedLayerNormalization, of x + skip + bias",
    "Standardize": "(x − μ_S) / √(Var_S + ε)",
}
"""What an operator computes where its attributes and shapes cannot be read."""

TRAINING_FORMULA = "γ · (x − μ_S) / √(Var_S + ε) + β, S: N and spatial; per channel"


def formula(standardize: Standardize, dims: Sequence[Dim] | None, *, scaled: bool, shifted: bool) -> str:
    """A normalization as one line.

    Args:
        standardize: what it computes before γ and β.
        dims: the dimensions of x, or None where they are not known.
        scaled: whether it has γ.
        shifted: whether it has β.
    """
    core = standardize.formula.rpartition(" over ")[0]
    return f"{'γ · ' if scaled else ''}{core}{' + β' if shifted else ''}, S: {extent(standardize, dims)}"


def extent(standardize: Standardize, dims: Sequence[Dim] | None) -> str:
    """S, the set that shares one mean, and what each has one of: `H, W; per sample and channel`."""
    axes = standardize.axes
    if standardize.window is not None:
        return f"a window of {standardize.size} channels; per sample and position"
    if dims is None:
        return f"axes {', '.join(map(str, axes))}"
    rank = len(dims)
    if standardize.groups is not None:
        rest = tuple(axis for axis in axes if axis != standardize.channel)
        channels = dims[standardize.channel]
        groups = standardize.groups
        size = f"{channels // groups} of {channels}" if isinstance(channels, int) else f"1/{groups} of the"
        among = f"{_named(rest, rank)} and " if rest else ""
        return f"{among}{size} channels; {_per(axes, rank)}"
    if axes == (rank - 1,):
        last = dims[-1]
        return f"the last axis{f' ({last})' if isinstance(last, int) else ''}; per position"
    return f"{_named(axes, rank)}; {_per(axes, rank)}"


def _named(axes: Sequence[int], rank: int) -> str:
    """Axes of (N, C, *spatial) by name; of fewer than three dimensions, by number."""
    names = {1: "C", **{rank - 1 - back: name for back, name in enumerate(("W", "H", "D")) if rank - 1 - back > 1}}
    if rank == 3:
        names[2] = "L"
    if rank < 3 or rank > 5:
        return f"{'axis' if len(axes) == 1 else 'axes'} {', '.join(map(str, axes))}"
    return ", ".join("N" if axis == 0 else names[axis] for axis in axes)


def _per(axes: Sequence[int], rank: int) -> str:
    """What there is one mean for each of: the axes that S leaves."""
    left = [axis for axis in range(rank) if axis not in axes]
    parts = [name for name, axis in (("sample", 0), ("channel", 1)) if axis in left]
    if rank < 3:
        parts = ["row"] if left == [0] else ["column"] if left else []
    elif any(axis > 1 for axis in left):
        parts.append("position")
    return f"per {', '.join(parts[:-1])}{' and ' if len(parts) > 1 else ''}{parts[-1]}" if parts else "one for all"


def details(standardize: Standardize) -> tuple[str, ...]:
    """What a reader should know besides the formula."""
    notes = []
    if standardize.ddof:
        notes.append(f"the variance divides by n − {standardize.ddof}")
    if standardize.place != "inside" and standardize.epsilon:
        notes.append(f"ε stands {'outside of the root' if standardize.place == 'outside' else 'as a lower bound'}")
    if standardize.cancels:
        notes.append("its variance is E[x²] − E[x]², which is wrong at large means")
    if standardize.dtype is not None:
        notes.append(f"its statistics are computed in {standardize.dtype.name.lower()}")
    return tuple(notes)

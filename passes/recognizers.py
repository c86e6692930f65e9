"""The tables of LIFT: each row finds one mathematical form that ends at a node of one of its operators.

A law takes the node and the constants of the model, and returns a `Found`, or None where the form is not there; it
raises `RefusedError` for what comes close and must be left alone.
"""

from normfuse.passes import activations, quotients, surroundings
from normfuse.passes.rule import Rule

FORMS: tuple[Rule, ...] = (
    Rule(
        "standardize",
        "lift",
        ("Div", "Mul"),
        None,
        quotients.quotient,
        "what is divided by a root of its own mean square is a normalization, however it is spelled",
    ),
    Rule(
        "standardize-affine",
        "lift",
        ("Add", "Sub", "Sum"),
        None,
        quotients.combination,
        "x · k + (β − E[x] · k) is γ · (x − E[x]) / √(Var[x] + ε) + β, multiplied out",
    ),
    Rule(
        "batch-statistics",
        "lift",
        ("BatchNormalization",),
        None,
        quotients.batch_statistics,
        "a BatchNormalization that is given the mean and variance of its input normalizes by them",
    ),
)
"""The forms themselves."""

SURROUNDINGS: tuple[Rule, ...] = (
    Rule(
        "reshaped-norm",
        "lift",
        ("Flatten", "Reshape", "Squeeze", "Unsqueeze"),
        None,
        surroundings.reshaped,
        "a Reshape keeps the order of the elements: InstanceNorm of (N, G, -1) is GroupNorm",
    ),
    Rule(
        "transposed-norm",
        "lift",
        ("Transpose",),
        None,
        surroundings.transposed,
        "between a Transpose and its inverse a normalization extends over the permuted axes",
    ),
    Rule(
        "cast-norm",
        "lift",
        ("Cast",),
        None,
        surroundings.widened,
        "between a Cast and one back a normalization has its statistics in the wider dtype",
    ),
)
"""What stands around a form and makes another one of it."""

ACTIVATIONS: tuple[Rule, ...] = (
    Rule(
        "gated-activation",
        "lift",
        ("Clip", "Div", "Max", "Min", "Mul", "Reciprocal", "Relu"),
        None,
        activations.gated,
        "x times a bounded function of x is SiLU, GELU, Mish or HardSwish by that function, in any order",
    ),
    Rule(
        "summed-activation",
        "lift",
        ("Add", "Sub", "Sum"),
        None,
        activations.summed,
        "½·x + ½·x · erf(x / √2) is GELU, multiplied out",
    ),
    Rule(
        "bounded-activation",
        "lift",
        ("Max", "Min", "Relu"),
        None,
        activations.limited,
        "bounds by Min and Max are a Clip, max(x, 0) is a Relu, and max(x, α·x) a LeakyRelu",
    ),
)
"""Activations, looked for from the last node to the first: what is a part of one is no activation of its own."""

RECOGNIZERS: tuple[Rule, ...] = FORMS + SURROUNDINGS + ACTIVATIONS

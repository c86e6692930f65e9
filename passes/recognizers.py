"""The tables of LIFT: each row finds one mathematical form that ends at a node of one of its operators.

A law takes the node and the constants of the model, and returns a `Found`, or None where the form is not there; it
raises `RefusedError` for what comes close and must be left alone.
"""

from normfuse.passes.rule import Rule

FORMS: tuple[Rule, ...] = ()
"""The forms themselves."""

SURROUNDINGS: tuple[Rule, ...] = ()
"""What stands around a form and makes another one of it."""

RECOGNIZERS: tuple[Rule, ...] = FORMS + SURROUNDINGS

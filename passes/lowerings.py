"""LOWERINGS: the table of LOWER, rows by target; the first that fits and suits wins, or with `--tune` the fastest."""

from normfuse.passes.lowering import Lowering

LOWERINGS: tuple[Lowering, ...] = ()

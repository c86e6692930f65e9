"""Bugs planted into the rules, each optimized with, and who notices: `python -m scripts.mutants`.

Each mutant is a bug in a row of a table of rules and a model that exercises it. The model is rewritten with the bug in
place, and each change judged by its certificate as in any run of `optimize`. A mutant is

caught     a certificate fails; the probe family with the largest error is named
harmless   other nodes or weights that compute the same in float64, or the 0.1 % that float16 cannot tell
idle       the result is that without the bug: the scheme has nothing to spoil there
refused    the pass itself gives up
survived   no certificate fails: a hole in the probes

The bugs come from a scheme for each table (mutants_rows.py, mutants_lift.py) and from a list of classics
(mutants_classic.py, mutants_lowerings.py, mutants_stages.py). Exit status 1 where one survives, where a classic is not
caught, or where nothing was caught in a row of a table.
"""

import argparse
import json
import sys
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from itertools import chain
from pathlib import Path

from normfuse.passes.fold_rules import FOLD_RULES
from normfuse.passes.lower_blocks import BLOCKS
from normfuse.passes.lowerings import LOWERINGS
from normfuse.passes.recognizers import RECOGNIZERS
from scripts.mutants_classic import classic_mutants
from scripts.mutants_lift import lift_mutants
from scripts.mutants_lowerings import lowering_mutants
from scripts.mutants_rows import row_mutants
from scripts.mutants_stages import STAGE_ROWS, stage_mutants
from scripts.planting import Examined, Mutant, NoBaselineError, examine

ROWS = tuple(dict.fromkeys([*(row.name for row in (*FOLD_RULES, *LOWERINGS, *BLOCKS, *RECOGNIZERS)), *STAGE_ROWS]))
"""The rows of all tables of rules."""

Found = tuple[Mutant, Examined]


def mutants() -> Iterator[Mutant]:
    """All of them: the classics first."""
    yield from chain(classic_mutants(), lowering_mutants(), stage_mutants(), lift_mutants(), row_mutants())


def rows_without(found: Iterable[Found]) -> list[str]:
    """The rows in which no bug was caught."""
    caught = {mutant.rule for mutant, examined in found if examined.fate == "caught"}
    return [row for row in ROWS if row not in caught]


def failures(found: Iterable[Found]) -> list[Found]:
    """The survivors, and the classics that were not caught."""
    return [
        (mutant, examined)
        for mutant, examined in found
        if examined.fate == "survived" or (mutant.must and examined.fate != "caught")
    ]


def examined_of(chosen: Iterable[Mutant], say: Callable[[str], None]) -> Iterator[Found]:
    """Examines mutants; those of a model that fails without a bug count as survivors."""
    for mutant in chosen:
        say(str(mutant)[:110])
        try:
            yield mutant, examine(mutant, whole=mutant.must)
        except NoBaselineError as error:
            yield mutant, Examined("survived", reason=f"no baseline: {error}")


def classics(found: Iterable[Found]) -> Iterator[str]:
    """A line for each bug of the lists."""
    for mutant, examined in found:
        if mutant.must:
            whole = {True: "yes", False: "no", None: "-"}[examined.whole]
            ratio = f"{examined.ratio:.3g}" if examined.ratio else "-"
            yield (
                f"{mutant.rule:27} {mutant.bug[:56]:57} {examined.fate:9} {examined.family:14} {ratio:>9} {whole:>5}"
            )


def by_row(found: Iterable[Found]) -> Iterator[str]:
    """A line for each row of a table: the bugs of the scheme, and the families that caught them."""
    rows: dict[str, list[Examined]] = defaultdict(list)
    for mutant, examined in found:
        if not mutant.must:
            rows[mutant.rule].append(examined)
    for name, some in rows.items():
        fates = Counter(one.fate for one in some)
        families = Counter(one.family for one in some if one.fate == "caught").most_common(3)
        least = min((one.ratio for one in some if one.fate == "caught" and one.ratio), default=0.0)
        shown = ", ".join(f"{family} {count}" for family, count in families)
        counts = " ".join(f"{fates[fate]:>8}" for fate in ("caught", "survived", "refused", "harmless", "idle"))
        yield f"{name:31} {counts} {least:>9.3g}  {shown}"


def summary(found: list[Found], seconds: float) -> str:
    """The totals, in a few lines."""
    fates = Counter(examined.fate for _, examined in found)
    planted = len(found) - fates["idle"]
    families = Counter(examined.family for _, examined in found if examined.fate == "caught")
    shown = ", ".join(f"{family} {count}" for family, count in families.most_common())
    others = ", ".join(f"{fates[fate]} {fate}" for fate in ("refused", "harmless", "idle"))
    return (
        f"{planted} bugs planted into {len({mutant.rule for mutant, _ in found})} rows: {fates['caught']} caught, "
        f"{fates['survived']} survived; {others}; {seconds:.0f} s\ncaught by: {shown}"
    )


def main() -> int:
    """Plants the bugs."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", metavar="SUBSTRING", help="mutants whose row, bug or model holds this")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="what became of each mutant")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    start = time.perf_counter()
    is_terminal = sys.stderr.isatty()

    def say(text: str) -> None:
        if is_terminal:
            print(f"\r\x1b[K{text}", end="", file=sys.stderr)

    chosen = [mutant for mutant in mutants() if options.only in str(mutant)]
    if not chosen:
        parser.error(f"no mutant holds {options.only!r}")
    found = list(examined_of(chosen, say))
    say("")
    if lines := list(classics(found)):
        print(f"{'row':27} {'bug':57} {'fate':9} {'by':14} {'ratio':>9} whole", *lines, sep="\n", end="\n\n")
    if lines := list(by_row(found)):
        head = " ".join(f"{fate:>8}" for fate in ("caught", "survived", "refused", "harmless", "idle"))
        print(f"{'row, by the scheme':31} {head} {'least':>9}  families", *lines, sep="\n", end="\n\n")
    if options.out is not None:
        options.out.write_text(json.dumps([_record(*one) for one in found], indent=1, ensure_ascii=False) + "\n")
    wrong = failures(found)
    for mutant, examined in wrong:
        print(f"{examined.fate.upper()} {mutant}: {examined.reason}")
    missing = [] if options.only else rows_without(found)
    if missing:
        print(f"no bug was caught in {', '.join(missing)}")
    print(summary(found, time.perf_counter() - start))
    return 1 if wrong or missing else 0


def _record(mutant: Mutant, examined: Examined) -> dict[str, object]:
    """A mutant for the file."""
    target = mutant.subject.target
    model = {"model": mutant.subject.what, "target": target.provider, "threads": target.threads}
    return {"rule": mutant.rule, "bug": mutant.bug, "classic": mutant.must, **model, **asdict(examined)}


if __name__ == "__main__":
    sys.exit(main())

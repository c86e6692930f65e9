"""Planted bugs are caught; `python -m scripts.mutants` plants many more of them."""

import json
from collections.abc import Iterable
from pathlib import Path
from unittest.mock import patch

import pytest

from scripts import mutants as script
from scripts.mutants_classic import classic_mutants
from scripts.mutants_lift import lift_mutants
from scripts.mutants_lowerings import lowering_mutants
from scripts.mutants_rows import row_mutants
from scripts.mutants_stages import stage_mutants
from scripts.planting import Examined, Mutant, NoBaselineError, Subject, examine

CLASSICS = [*classic_mutants(), *lowering_mutants(), *stage_mutants()]


def some(mutants: Iterable[Mutant], bug: str) -> Mutant:
    return next(mutant for mutant in mutants if mutant.bug == bug)


@pytest.mark.parametrize("mutant", CLASSICS, ids=lambda one: f"{one.rule}: {one.bug}")
def test_a_classic_bug_is_caught(mutant: Mutant) -> None:
    examined = examine(mutant, whole=False)
    assert examined.fate == "caught", examined.reason
    assert examined.family


@pytest.mark.parametrize(
    "mutant",
    [
        some(row_mutants(), "shift dropped"),
        some(row_mutants(), "ε ten times larger"),
        some(lift_mutants(), "ε ten times larger"),
    ],
    ids=str,
)
def test_a_bug_of_a_scheme_is_caught(mutant: Mutant) -> None:
    assert examine(mutant, whole=False).fate == "caught"


def test_every_row_of_every_table_has_a_mutant() -> None:
    planted = {mutant.rule for mutant in script.mutants()}
    assert planted == set(script.ROWS)


def test_a_bug_that_changes_nothing_is_idle() -> None:
    mutant = Mutant("arithmetic", "none", CLASSICS[0].subject, dict)
    assert examine(mutant).fate == "idle"


def test_a_survivor_fails_the_script() -> None:
    mutant = CLASSICS[0]
    blind = Examined("survived")
    assert script.failures([(mutant, blind)]) == [(mutant, blind)]
    assert script.failures([(mutant, Examined("idle"))])
    assert not script.failures([(mutant, Examined("caught", "scale 1", 3.0))])
    assert mutant.rule not in script.rows_without([(mutant, Examined("caught"))])
    assert mutant.rule in script.rows_without([(mutant, Examined("idle"))])


def test_a_model_that_fails_without_a_bug_is_no_subject() -> None:
    broken = CLASSICS[0].plant()
    subject = Subject("batch-norm", "broken", CLASSICS[0].subject.make)
    with patch.object(script, "examine", side_effect=NoBaselineError("it fails")):
        ((_, examined),) = script.examined_of([Mutant("batch-norm", "none", subject, lambda: broken)], print)
    assert examined.fate == "survived"


def test_the_script_writes_what_became_of_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with patch("sys.argv", ["mutants", "--only", "ε dropped (ε dropped", "--out", str(tmp_path / "out.json")]):
        assert script.main() == 0
    (record,) = json.loads((tmp_path / "out.json").read_text())
    assert record["fate"] == "caught"
    assert record["whole"] is True
    assert "1 caught, 0 survived" in capsys.readouterr().out

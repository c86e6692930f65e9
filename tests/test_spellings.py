"""A sample of the spellings of `models`: all are found and restored bit for bit, no look-alike is."""

from itertools import islice

import pytest

from models import lookalikes, spellings, spellings_activations, spellings_groups, spellings_sizes
from models.spelling import Spelling
from scripts.spellings import look

STEP = 41
"""Every so many of the thousands of spellings are looked for here; `python -m scripts.spellings` takes them all."""

SAMPLE = [
    *islice(spellings.spellings(), 0, None, STEP),
    *islice(spellings_groups.spellings(), 0, None, 3),
    *{item.form: item for item in spellings_activations.spellings()}.values(),
    *islice(spellings_activations.spellings(), 0, None, 7),
    *islice(spellings_sizes.spellings(), 0, None, 13),
    *list(spellings_sizes.spellings())[-4:],
]
LOOK_ALIKES = [*lookalikes.lookalikes(), *spellings_activations.lookalikes(), *spellings_sizes.lookalikes()]


@pytest.mark.parametrize("spelling", SAMPLE, ids=lambda item: f"{item.form}: {item.name}")
def test_a_spelling_is_found_and_restored(spelling: Spelling) -> None:
    outcome = look(spelling)
    assert outcome.is_right, str(outcome)
    assert outcome.is_exact


@pytest.mark.parametrize("spelling", LOOK_ALIKES, ids=lambda item: f"{item.form}: {item.name}")
def test_a_look_alike_is_left_alone(spelling: Spelling) -> None:
    outcome = look(spelling, run=False)
    assert outcome.meanings == (), str(outcome)


def test_every_form_is_in_the_sample() -> None:
    everything = {
        item.form
        for module in (spellings, spellings_activations, spellings_groups, spellings_sizes)
        for item in module.spellings()
    }
    assert {item.form for item in SAMPLE} == everything

"""ABSORB, linear operators: each takes a map into its weights, behind it and in front of it, or says why not."""

import pytest

from normfuse.passes.absorb import LINEAR
from tests import absorbing_convolutions, absorbing_products
from tests.parity import Case, names

APPLIES = absorbing_convolutions.APPLIES + absorbing_products.APPLIES
REFUSES = absorbing_convolutions.REFUSES + absorbing_products.REFUSES


@pytest.mark.parametrize("item", APPLIES, ids=str)
def test_it_applies(item: Case) -> None:
    item.assert_applies()


@pytest.mark.parametrize("item", REFUSES, ids=str)
def test_it_refuses(item: Case) -> None:
    item.assert_refuses()


def test_every_row_is_tested() -> None:
    rows = {rule.name for rule in LINEAR}
    assert names(APPLIES) == rows
    assert names(REFUSES) == rows

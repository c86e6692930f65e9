"""`through_dims` against NumPy's reshape: the map before the reshape is the map after it."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from normfuse.affine import Affine
from normfuse.passes.access import Dim, RefusedError
from normfuse.passes.reshaping import Extent, through_dims


def distinct(axis: int, size: int) -> Affine:
    """A map whose channels all differ."""
    return Affine.of(axis, np.arange(1.0, size + 1), -np.arange(1.0, size + 1))


def repeated(axis: int, pattern: Sequence[float], inner: int = 1, copies: int = 1) -> Affine:
    vector = np.tile(np.repeat(pattern, inner), copies)
    return Affine.of(axis, vector, 10 * vector)


def numbers(dims: Sequence[Dim]) -> list[int]:
    """Sizes for dimensions: 2 for a symbol, 1 for what is not known."""
    return [2 if isinstance(dim, str) else 1 if dim is None else dim for dim in dims]


def assert_commutes(affine: Affine, here: Sequence[int], there: Sequence[int], moved: Affine) -> None:
    x = np.random.default_rng(0).standard_normal(here)
    np.testing.assert_array_equal(affine(x).reshape(there), moved(x.reshape(there)))


KEPT: dict[str, tuple[Affine, list[Dim], list[Dim]]] = {
    "batch and channels stay": (distinct(1, 3), [2, 3, 4, 5], [2, 3, 20]),
    "spatial axes split": (distinct(1, 3), ["N", 3, 20], ["N", 3, 4, 5]),
    "spatial axes split, unknown batch": (distinct(1, 3), [None, 3, 20], [None, 3, 4, 5]),
    "dynamic space behind": (distinct(1, 3), [2, 3, "H", "W"], [2, 3, None]),
    "dynamic space kept by name": (distinct(1, 3), [None, 3, "H", "W"], [None, 3, "W", "H"]),
    "channels merge with space behind them": (distinct(1, 3), ["N", 3, 2, 2], ["N", 12]),
    "channels merge with the axis in front": (distinct(1, 3), [2, 3, 4], [6, 4]),
    "channels merge with both": (distinct(1, 3), [2, 3, 4], [24]),
    "channels last merge with batch and tokens": (distinct(2, 4), [None, 7, 4], [None, 4]),
    "channels split from what they repeat behind": (repeated(1, [1, 2, 3], inner=4), [2, 12], [2, 3, 2, 2]),
    "channels split from what they repeat in front": (repeated(1, [1, 2, 3], copies=4), [2, 12], [2, 4, 3]),
    "channels split from both": (repeated(1, [1, 2, 3], inner=2, copies=2), [2, 12], [2, 2, 3, 2]),
    "axes of size one come and go": (distinct(1, 3), [2, 3, 1, 4], [1, 2, 1, 3, 4, 1]),
    "groups of channels": (repeated(1, [1, 2], inner=3), ["N", 6, "H", "W"], ["N", 2, 3, "H", "W"]),
    "first axis": (distinct(0, 5), [5, 4], [5, 2, 2]),
    "pairs of channels merge with the axis in front": (repeated(1, [1, 2], inner=2), [3, 4], [6, 2]),
    "steps that span three channels": (repeated(1, [1, 2], inner=3), [4, 6, 2], [8, 2, 3]),
    "size of the batch equals the channels": (distinct(1, 3), [3, 3, 4], [3, 3, 2, 2]),
}


@pytest.mark.parametrize("case", KEPT)
def test_channels_are_found_again(case: str) -> None:
    affine, here, there = KEPT[case]
    source = numbers(here)
    target = numbers(there)
    if None in there:
        target[there.index(None)] = math.prod(source) // math.prod(target)
    assert_commutes(affine, source, target, through_dims(affine, here, there))


LOST: dict[str, tuple[Affine, list[Dim], list[Dim]]] = {
    "the batch disappears among unknown sizes": (distinct(1, 3), [None, 3, None], [None, None]),
    "distinct channels split over two axes": (distinct(1, 6), [2, 6], [2, 2, 3]),
    "channels become rows of another size": (distinct(1, 6), [4, 6], [6, 4]),
    "channels mixed with space": (distinct(1, 3), [2, 3, 4], [2, 4, 3]),
    "symbols that are not the same": (distinct(1, 3), ["N", 3, "H"], ["M", 3, "W"]),
    "merged with an axis of unknown size": (distinct(1, 3), [2, 3, "H"], [2, None]),
    "an empty axis on either side": (distinct(1, 3), [0, 3, 0], [0, 3, 0]),
}


@pytest.mark.parametrize("case", LOST)
def test_channels_that_are_lost_are_refused(case: str) -> None:
    with pytest.raises(RefusedError, match="does not keep the channels on an axis of their own"):
        through_dims(*LOST[case])


def test_one_map_for_all_passes_whatever_the_dimensions() -> None:
    affine = Affine.of(None, 2.0, 3.0)
    assert through_dims(affine, [None, 3], [None]) is affine


def test_a_product_of_dimensions_keeps_its_symbols() -> None:
    assert Extent.of([2, "N", 3, "N"]) == Extent(6, (("N", 2),))
    assert Extent.of([]) == Extent(1, ())
    assert Extent.of([2, None]) is None


@st.composite
def reshapes(draw: st.DrawFn) -> tuple[Affine, list[int], list[int]]:
    """Two factorizations of one number of elements, and a map with a random pattern along an axis of the first."""
    factors = draw(st.lists(st.sampled_from([2, 2, 3]), min_size=1, max_size=5))

    def grouped() -> list[int]:
        dims: list[int] = [1]
        for factor in factors:
            if draw(st.booleans()):
                dims.append(factor)
            else:
                dims[-1] *= factor
        return dims

    here, there = grouped(), grouped()
    axis = draw(st.integers(0, len(here) - 1))
    distinct_values = draw(st.integers(1, 3))
    inner = draw(st.sampled_from([1, 2, 3, 4]))
    scale = 1.0 + (np.arange(here[axis]) // inner) % distinct_values
    return Affine.of(axis, scale, -scale), here, there


@given(reshapes(), st.sets(st.integers(0, 5)), st.sets(st.integers(0, 5)))
def test_what_is_found_commutes_with_the_reshape(
    case: tuple[Affine, list[int], list[int]], hidden_here: set[int], hidden_there: set[int]
) -> None:
    """Also where some sizes are not known: what is found from less knowledge is still right."""
    affine, here, there = case
    known_here: list[Dim] = [None if i in hidden_here and i != affine.axis else dim for i, dim in enumerate(here)]
    known_there: list[Dim] = [None if i in hidden_there else dim for i, dim in enumerate(there)]
    try:
        moved = through_dims(affine, known_here, known_there)
    except RefusedError:
        assert affine.axis is not None
        return
    assert_commutes(affine, here, there, moved)


@given(reshapes())
def test_a_map_is_refused_only_where_none_exists(case: tuple[Affine, list[int], list[int]]) -> None:
    """With all sizes known, a refusal means that no map along one axis does the same."""
    affine, here, there = case
    try:
        through_dims(affine, here, there)
    except RefusedError:
        scales = affine(np.ones(here)).reshape(there) - affine(np.zeros(here)).reshape(there)
        varying = [axis for axis in range(len(there)) if np.any(scales != scales.take([0], axis))]
        assert len(varying) > 1

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from normfuse.affine import Affine

numbers = st.floats(-8, 8).filter(lambda x: x == 0 or abs(x) > 1e-3)


@st.composite
def affines(draw: st.DrawFn, size: int = 3, nonzero: bool = False) -> Affine:
    if draw(st.booleans()):
        return Affine.of(None, draw(numbers) or float(nonzero), draw(numbers))
    scale = np.array(draw(st.lists(numbers, min_size=size, max_size=size)))
    if nonzero:
        scale[scale == 0] = 1.0
    return Affine.of(1, scale, draw(st.lists(numbers, min_size=size, max_size=size)))


X = np.random.default_rng(0).standard_normal((2, 3, 4))


@given(affines(), affines(), affines())
def test_composition_is_associative(f: Affine, g: Affine, h: Affine) -> None:
    np.testing.assert_allclose(f.then(g).then(h)(X), f.then(g.then(h))(X), rtol=1e-12, atol=1e-9)


@given(affines(), affines())
def test_then_applies_the_first_map_first(f: Affine, g: Affine) -> None:
    np.testing.assert_allclose(f.then(g)(X), g(f(X)), rtol=1e-12, atol=1e-9)


@given(affines())
def test_identity_is_neutral(f: Affine) -> None:
    one = Affine.identity()
    for g in (f.then(one), one.then(f)):
        assert g.axis == f.axis
        np.testing.assert_array_equal(g(X), f(X))


@given(affines(nonzero=True))
def test_inverse_undoes(f: Affine) -> None:
    np.testing.assert_allclose(f.then(f.inverse())(X), X, rtol=1e-9, atol=1e-9)


@given(affines(nonzero=True))
def test_a_map_is_its_scaling_and_its_shifting_in_either_order(f: Affine) -> None:
    np.testing.assert_allclose(f.scaling.then(f.shifting)(X), f(X), atol=1e-12)
    np.testing.assert_allclose(f.preshifting.then(f.scaling)(X), f(X), rtol=1e-9, atol=1e-9)


def test_batch_norm_is_the_formula() -> None:
    rng = np.random.default_rng(1)
    gamma, beta, mean, variance = rng.normal(size=3), rng.normal(size=3), rng.normal(size=3), rng.uniform(0.1, 2, 3)
    f = Affine.batch_norm(gamma, beta, mean, variance, 1e-3)
    c = (1, 3, 1)
    expected = gamma.reshape(c) * (X - mean.reshape(c)) / np.sqrt(variance.reshape(c) + 1e-3) + beta.reshape(c)
    np.testing.assert_allclose(f(X), expected, rtol=1e-12)


def test_a_map_that_does_not_vary_has_no_axis() -> None:
    assert Affine.of(1, [2.0, 2.0], [0.5, 0.5]).axis is None
    assert Affine.of(1, [2.0, 2.0], [0.5, 0.6]).axis == 1


def test_zero_scales_have_no_inverse() -> None:
    f = Affine.of(1, [0.0, 1.0], 0.0)
    assert not f.is_invertible
    with pytest.raises(ZeroDivisionError, match="inverse"):
        f.inverse()
    with pytest.raises(ZeroDivisionError, match="shift first"):
        _ = f.preshifting


def test_maps_along_different_axes_do_not_compose() -> None:
    f, g = Affine.of(1, [1.0, 2.0], 0.0), Affine.of(2, [1.0, 2.0], 0.0)
    assert not f.meets(g)
    with pytest.raises(ValueError, match="do not compose"):
        f.then(g)


def test_vectors_must_match() -> None:
    with pytest.raises(ValueError, match="one length"):
        Affine(1, np.ones(2), np.zeros(3))
    with pytest.raises(ValueError, match="one scale"):
        Affine(None, np.ones(2), np.zeros(2))

"""The laws of `Standardize`: the norms are instances of one formula, and special cases of each other."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from normfuse.affine import Float64
from normfuse.norm import Standardize


def sample(*shape: int) -> Float64:
    return np.random.default_rng(len(shape)).normal(0.7, 2.0, shape)


def close(one: Float64, other: Float64) -> bool:
    return bool(np.allclose(one, other, rtol=1e-12, atol=1e-12))


IMAGE, TOKENS = sample(3, 6, 4, 5), sample(3, 7, 16)
TORCH, ROWS = torch.from_numpy(IMAGE), torch.from_numpy(TOKENS)


@pytest.mark.parametrize(
    ("name", "standardize", "x", "expected"),
    [
        ("BatchNorm", Standardize.batch_norm(4), IMAGE, functional.batch_norm(TORCH, None, None, training=True)),
        ("LayerNorm", Standardize.layer_norm((2,)), TOKENS, functional.layer_norm(ROWS, (16,))),
        ("RMSNorm", Standardize.rms_norm((2,), 1e-6), TOKENS, functional.rms_norm(ROWS, (16,), eps=1e-6)),
        ("InstanceNorm", Standardize.instance_norm(4), IMAGE, functional.instance_norm(TORCH)),
        ("GroupNorm", Standardize.group_norm(4, 3), IMAGE, functional.group_norm(TORCH, 3)),
        (
            "LRN",
            Standardize.local_response(5, 0.3, 0.75, 2.0),
            IMAGE,
            functional.local_response_norm(TORCH, 5, 0.3, 0.75, 2.0),
        ),
        ("L2Norm", Standardize.lp_norm((1,), 2, 1e-12), IMAGE, functional.normalize(TORCH, dim=1)),
        ("L1Norm", Standardize.lp_norm((1,), 1, 1e-12), IMAGE, functional.normalize(TORCH, p=1.0, dim=1)),
    ],
)
def test_each_norm_is_an_instance(name: str, standardize: Standardize, x: Float64, expected: torch.Tensor) -> None:
    assert close(standardize(x), expected.numpy())
    assert name in (standardize.name(x.ndim), "LayerNorm")


def test_group_norm_of_one_group_is_layer_norm() -> None:
    assert close(Standardize.group_norm(4, 1)(IMAGE), Standardize.layer_norm((1, 2, 3))(IMAGE))
    assert Standardize.group_norm(4, 1).simplified(6) == Standardize.layer_norm((1, 2, 3))


def test_group_norm_of_single_channels_is_instance_norm() -> None:
    assert close(Standardize.group_norm(4, 6)(IMAGE), Standardize.instance_norm(4)(IMAGE))
    assert Standardize.group_norm(4, 6).simplified(6) == Standardize.instance_norm(4)


def test_layer_norm_of_what_is_centred_is_rms_norm() -> None:
    centred = TOKENS - TOKENS.mean(-1, keepdims=True)
    assert close(Standardize.layer_norm((2,))(centred), Standardize.rms_norm((2,))(centred))


@pytest.mark.parametrize("standardize", [Standardize.layer_norm((2,), 0.0), Standardize.layer_norm((1, 2), 0.0)])
def test_a_shift_and_a_positive_scale_change_nothing(standardize: Standardize) -> None:
    assert close(standardize(3.0 * TOKENS + 11.0), standardize(TOKENS))
    assert close(standardize(-TOKENS), -standardize(TOKENS))


def test_rms_norm_sees_a_shift_but_no_scale() -> None:
    rms = Standardize.rms_norm((2,), 0.0)
    assert close(rms(3.0 * TOKENS), rms(TOKENS))
    assert not close(rms(TOKENS + 1.0), rms(TOKENS))


def test_an_unbiased_variance_is_larger() -> None:
    unbiased = Standardize((2, 3), 0.0, ddof=1)
    assert close(unbiased(IMAGE), Standardize.instance_norm(4, 0.0)(IMAGE) * np.sqrt(19 / 20))


def test_an_epsilon_stands_where_it_says() -> None:
    x = np.asarray([[3.0, -3.0]])
    assert close(Standardize((1,), 0.5)(x), x / np.sqrt(9.5))
    assert close(Standardize((1,), 0.5, "outside")(x), x / 3.5)
    assert close(Standardize((1,), 4.0, "clamp")(x), x / 4.0)


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="increasing"):
        Standardize((2, 1))
    with pytest.raises(ValueError, match="groups"):
        Standardize((2, 3), groups=2)
    with pytest.raises(ValueError, match="cannot be cut"):
        Standardize.group_norm(4, 4)(IMAGE)


def test_the_formula_of_a_mean_deviation_has_no_variance() -> None:
    assert Standardize((1,), 1e-5, order=1, exponent=1.0).formula == "(x − E[x]) / (E[|x − E[x]|] + 1e-05) over axes 1"
    norm = Standardize((1,), 0.0, total=True)
    assert norm.formula == "(x − E[x]) / √Σ[(x − E[x])²] over axes 1"

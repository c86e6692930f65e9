"""Channels that hold the batch, as in an InstanceNorm with running statistics: `calibrate` refuses them."""

from typing import Any

import numpy as np
import pytest

from normfuse.calibration import calibrate
from normfuse.errors import NormfuseError
from tests.parity import batch_norm, build, rng


def case(shapes: tuple[str, str], text: str, copies: int = 1, channels: int = 4, **weights: Any) -> Any:
    """A model of some nodes in front of a BatchNormalization whose statistics are copies of a vector."""
    norm: dict[str, Any] = {name: np.tile(array, copies) for name, array in batch_norm("p", channels).items()}
    return build(
        f"(float[{shapes[0]}] x) => (float[{shapes[1]}] y)"
        f" {{ {text}  y = BatchNormalization(r, p_scale, p_bias, p_mean, p_var) }}",
        **norm,
        **weights,
    )


def batches(*shape: int) -> list[dict[str, Any]]:
    return [{"x": rng(str(index)).normal(1, 2, shape).astype(np.float32)} for index in range(2)]


@pytest.mark.parametrize(
    ("given", "target"),
    [("2,4,3,3", [1, -1, 3, 3]), ("2,4,3,3", [1, 8, 3, 3]), ("N,4,3,3", [1, -1, 3, 3]), ("N,C,H,W", [1, 8, 3, 3])],
)
@pytest.mark.parametrize("between", ["", "r = Relu(q)"])
def test_the_batch_in_the_channels_is_refused(given: str, target: list[int], between: str) -> None:
    text = f"{'q' if between else 'r'} = Reshape(x, shape)  {between}"
    model = case((given, "a,b,c,d"), text, copies=2, shape=np.array(target))
    with pytest.raises(NormfuseError, match=r"'[qr]' before it makes channels of the examples of a batch"):
        calibrate(model, batches(2, 4, 3, 3))


def test_statistics_that_were_never_trained_are_refused_too() -> None:
    """Copies of 0 and 1 tell nothing: the shapes do."""
    model = build(
        "(float[2,4,3,3] x) => (float[1,8,3,3] y)"
        " { r = Reshape(x, shape)  y = BatchNormalization(r, one, zero, zero, one) }",
        shape=np.array([1, -1, 3, 3]),
        one=np.ones(8, np.float32),
        zero=np.zeros(8, np.float32),
    )
    with pytest.raises(NormfuseError, match="makes channels of the examples of a batch"):
        calibrate(model, batches(2, 4, 3, 3))


@pytest.mark.parametrize(
    ("shapes", "target", "shape"),
    [
        (("N,36", "N,4,3,3"), [-1, 4, 3, 3], (2, 36)),
        (("N,36", "N,4,3,3"), [0, 4, 3, 3], (2, 36)),
        (("2,36", "2,4,3,3"), [2, 4, 3, 3], (2, 36)),
        (("N,T,4", "M,4"), [-1, 4], (2, 5, 4)),
        (("1,2,2,3", "1,4,3"), [1, 4, 3], (1, 2, 2, 3)),
        (("4,T", "1,4,T"), [1, 4, -1], (4, 9)),
        (("N,C,H,W", "a,b,c"), [-1, 4, 9], (2, 4, 3, 3)),
    ],
)
def test_other_shapes_are_measured(shapes: tuple[str, str], target: list[int], shape: tuple[int, ...]) -> None:
    given = batches(*shape)
    found = calibrate(case(shapes, "r = Reshape(x, shape)", shape=np.array(target)), given).report.layers[0].new
    wanted = [target[0] or shape[0], *target[1:]]
    seen = [np.moveaxis(batch["x"].reshape(wanted), 1, -1).reshape(-1, 4).astype(np.float64) for batch in given]
    np.testing.assert_allclose(found.mean, np.mean([x.mean(0) for x in seen], 0), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found.variance, np.mean([x.var(0, ddof=1) for x in seen], 0), rtol=1e-6)


@pytest.mark.parametrize("copies", [1, 2])
def test_behind_a_transpose_copies_tell(copies: int) -> None:
    """Several nets that run as one, or the batch: the first axis does not tell."""
    text = "t = Transpose<perm = [1, 0, 2]>(x)  r = Reshape(t, shape)"
    model = case(("2,4,3", "1,8,3"), text, copies, 8 // copies, shape=np.array([1, -1, 3]))
    if copies == 1:
        assert calibrate(model, batches(2, 4, 3)).report.layers[0].new.mean.shape == (8,)
        return
    with pytest.raises(NormfuseError, match="makes channels of the examples of a batch"):
        calibrate(model, batches(2, 4, 3))

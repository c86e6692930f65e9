"""Large weights that are not held: the same numbers bit by bit, and nothing read that is not used."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.large import write_large
from normfuse import pipeline, scaled
from normfuse.model import load, save
from normfuse.passes import weights
from normfuse.passes.weights import fits
from normfuse.scaled import Folded, Scaled, is_mapped, spilled


@st.composite
def products(draw: st.DrawFn) -> tuple[Scaled, np.ndarray[Any, Any]]:
    """A product, and the same computed eagerly."""
    shape = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    base = rng.normal(0.1, 1.0, shape).astype(draw(st.sampled_from([np.float32, np.float16, np.float64])))
    lazy, eager = cast(Any, Scaled(base)), base.astype(np.float64)
    for axis in draw(st.lists(st.integers(0, len(shape) - 1), max_size=3)):
        factor = rng.normal(1.0, 0.5, [size if i == axis else 1 for i, size in enumerate(shape)])
        lazy, eager = factor * lazy, eager * factor
    return lazy, eager


@given(products(), st.integers(1, 9))
def test_a_product_is_what_eager_arithmetic_computes(pair: tuple[Scaled, np.ndarray[Any, Any]], piece: int) -> None:
    lazy, eager = pair
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scaled, "_PIECE", piece)
        assert isinstance(lazy, Scaled)
        assert (lazy.shape, lazy.ndim, lazy.size) == (eager.shape, eager.ndim, eager.size)
        np.testing.assert_array_equal(np.asarray(lazy), eager)
        np.testing.assert_array_equal(lazy.reshape(1, *eager.shape).reshape(eager.shape), eager)
        np.testing.assert_array_equal(lazy.reshape(-1), eager.reshape(-1))
        np.testing.assert_array_equal(lazy + 1.0, eager + 1.0)
        np.testing.assert_array_equal(
            np.tensordot(np.ones(eager.shape[0]), lazy, (0, 0)), np.tensordot(np.ones(eager.shape[0]), eager, (0, 0))
        )
        rounded = Folded(lazy, ir.DataType.FLOAT, "w")
        np.testing.assert_array_equal(rounded.numpy(), eager.astype(np.float32))


@given(products(), st.data())
def test_bounds_hold_the_largest_of_each_channel(
    pair: tuple[Scaled, np.ndarray[Any, Any]], data: st.DataObject
) -> None:
    lazy, eager = pair
    axis = data.draw(st.sampled_from([None, *range(eager.ndim)]))
    peak = np.abs(eager).max(axis=tuple(i for i in range(eager.ndim) if i != axis))
    high, low = lazy.peaks(axis)
    assert np.all(low <= peak * (1 + 1e-12))
    assert np.all(peak <= high * (1 + 1e-12))


@pytest.mark.parametrize("scale", [1.0, 0.0, 1e-30, 1e-45, 1e30, 1e39, np.inf, np.nan, 2.0**-140])
@pytest.mark.parametrize("axis", [0, 1, None])
def test_what_fits_is_judged_as_for_arrays(scale: float, axis: int | None) -> None:
    base = np.random.default_rng(0).normal(0.0, 1.0, (4, 6)).astype(np.float32)
    factor = np.ones((1, 6))
    factor[0, 2] = scale
    with np.errstate(over="ignore", invalid="ignore"):
        lazy = Scaled(base) * factor
        assert fits(lazy, ir.DataType.FLOAT, axis) == fits(np.asarray(lazy), ir.DataType.FLOAT, axis)


def test_a_spilled_array_lies_in_a_file() -> None:
    array = np.random.default_rng(0).normal(2.0, 1.0, (512, 512))
    tensor = Folded(spilled(array), ir.DataType.FLOAT, "w")
    assert is_mapped(ir.Tensor(tensor.array.base))
    np.testing.assert_array_equal(tensor.numpy(), array.astype(np.float32))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("large") / "model.onnx"
    write_large(path, 6 << 20, width=256)
    return path


def test_what_no_fold_touches_is_never_read(large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: set[str] = set()
    for name in ("numpy", "tobytes", "__array__"):
        original = getattr(ir.ExternalTensor, name)

        def spy(tensor: ir.ExternalTensor, *arguments: Any, original: Any = original, **options: Any) -> Any:
            read.add(str(tensor.name))
            return original(tensor, *arguments, **options)

        monkeypatch.setattr(ir.ExternalTensor, name, spy)
    model = load(large)
    external = {str(v.name) for v in model.graph.initializers.values() if isinstance(v.const_value, ir.ExternalTensor)}
    report = pipeline.rewrite(model, select=["batch-norm", "conv-after"])
    folded = {str(v.name) for v in model.graph.initializers.values() if isinstance(v.const_value, Folded)}
    save(model, tmp_path / "out.onnx")
    assert {change.rule for change in report.changes} == {"conv-after"}
    assert folded
    assert external - folded
    assert read == folded


def test_no_product_is_ever_written_out_in_memory(large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole: list[tuple[int, ...]] = []

    def spy(array: Scaled, dtype: Any = None, copy: bool | None = None) -> Any:
        whole.append(array.shape)
        return original(array, dtype, copy)

    original = Scaled.__array__
    monkeypatch.setattr(Scaled, "__array__", spy)
    monkeypatch.setattr(Folded, "_rounded", lambda tensor: whole.append(tensor.array.shape))
    model = load(large)
    report = pipeline.rewrite(model)
    save(model, tmp_path / "out.onnx")
    assert {"conv-after", "matmul-after"} <= {change.rule for change in report.changes}
    assert whole == []


def test_the_file_is_the_same_bit_by_bit_when_everything_is_held(
    large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = []
    for name, limit in (("mapped", scaled.LARGE), ("held", 1 << 50)):
        monkeypatch.setattr(scaled, "LARGE", limit)
        monkeypatch.setattr(weights, "LARGE", limit)
        (tmp_path / name).mkdir()
        path = tmp_path / name / "out.onnx"
        model = load(large)
        pipeline.rewrite(model)
        assert (limit < 1 << 50) == any(isinstance(v.const_value, Folded) for v in model.graph.initializers.values())
        save(model, path)
        contents.append((path.read_bytes(), Path(f"{path}.data").read_bytes()))
    assert contents[0] == contents[1]

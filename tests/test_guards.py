"""What torch.export takes for granted of sizes: files that would be wrong at other sizes are refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

from torch import Tensor, nn  # noqa: E402  # nothing here can run without torch
from torch.export import Dim  # noqa: E402

import normfuse  # noqa: E402
from normfuse.errors import ExportError, NormfuseError  # noqa: E402
from normfuse.limits import KEY, Limit, limits_of  # noqa: E402
from normfuse.model import load  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


class Of(nn.Module):
    """A function of tensors, and a LayerNorm."""

    def __init__(self, law: Callable[..., Any]) -> None:
        super().__init__()
        self.law, self.norm = law, nn.LayerNorm(8)
        self.table = nn.Parameter(torch.randn(32, 8))

    def forward(self, x: Tensor, y: Tensor | None = None, k: int = 1) -> Any:
        return self.law(self, x) if y is None else self.law(self, x, y)


def long(net: Of, x: Tensor) -> Tensor:
    """Another formula above 16."""
    y: Tensor = net.norm(x) if x.shape[1] <= 16 else net.norm(x) * 2
    return y


def table(net: Of, x: Tensor) -> Tensor:
    """A table that ends at 32."""
    y: Tensor = net.norm(x + net.table[: x.shape[1]])
    return y


def same(net: Of, x: Tensor, y: Tensor) -> Tensor:
    z: Tensor = net.norm(x).sum() + y.sum() if x.shape[1] == y.shape[1] else net.norm(x).sum()
    return z


def export(law: Callable[..., Any], *args: Tensor, shapes: Any, **options: Any) -> normfuse.Result:
    torch.manual_seed(0)
    return normfuse.export(Of(law).eval(), args, dynamic_shapes=shapes, **{"verify": False, **options})


def x(*sizes: int) -> Tensor:
    drawn: Tensor = torch.randn(sizes, generator=torch.Generator().manual_seed(1))
    return drawn


class TestRefused:
    @pytest.mark.parametrize("dim", ["length", Dim("length", min=2, max=17)], ids=str)
    def test_a_branch_on_a_length_is_not_written_for_all_lengths(self, dim: Any, tmp_path: Path) -> None:
        message = (
            r"Of computes something else unless length <= 16, such as for length = 17; torch\.export took it for "
            r"granted, .*: leave length out of dynamic_shapes, or make the limit your own with "
            r"torch\.export\.Dim\('length', max=16\) \(--limit length=1\.\.16\)"
        )
        with pytest.raises(ExportError, match=message):
            export(long, x(2, 10, 8), shapes=({1: dim},), path=tmp_path / "model.onnx")
        assert not list(tmp_path.iterdir())

    def test_so_it_is_with_an_example_of_zeros(self) -> None:
        def law(net: Of, x: Tensor) -> Tensor:
            return x if x.shape[1] <= 16 else x * 2

        with pytest.raises(ExportError, match="unless length <= 16"):
            export(law, torch.zeros(2, 10, 8), shapes=({1: "length"},))

    @pytest.mark.parametrize(
        ("law", "sizes", "message"),
        [
            (lambda net, x: net.norm(x) * (2 if x.shape[0] > 4 else 1), (6, 3, 8), r"unless rows >= 5, .*min=5\)"),
            (lambda net, x: net.norm(x) * (2 if x.shape[0] > 1 else 1), (2, 3, 8), r"unless rows >= 2, .*min=2\)"),
            (
                lambda net, x: net.norm(x) * (2 if x.shape[0] == 5 else 1),
                (2, 3, 8),
                "unless rows != 5, such as for rows",
            ),
            (
                lambda net, x: net.norm(x) * (2 if x.shape[0] % 4 else 1),
                (8, 3, 8),
                r"unless \(rows % 4\) == 0, such as",
            ),
            (
                lambda net, x: net.norm(x) * (2 if x.numel() > 99 else 1),
                (2, 3, 8),
                r"unless 8\*rows <= 33, such as for rows = 5",
            ),
            (
                lambda net, x: net.norm(x)[: int(x.shape[0] * 0.5)],
                (4, 3, 8),
                r"unless .*trunc\(0\.5\*float\(rows\)\) == 2",
            ),
        ],
        ids=["more", "more than one", "equal", "divisible", "elements", "rounded"],
    )
    def test_conditions_are_named(self, law: Callable[..., Any], sizes: tuple[int, ...], message: str) -> None:
        with pytest.raises(ExportError, match=message):
            export(law, x(*sizes), shapes=({0: "rows"},))

    def test_two_dimensions_that_torch_took_for_one(self) -> None:
        message = (
            "Of takes 'a' and 'b' of different sizes, too, but torch.export took them for one dimension: give both"
        )
        with pytest.raises(ExportError, match=message):
            export(same, x(2, 5, 8), x(2, 5, 8), shapes=({1: "a"}, {1: "b"}))

    def test_a_size_that_is_stretched_is_not_that_of_the_other(self) -> None:
        with pytest.raises(ExportError, match="took them for one dimension"):
            export(lambda net, x, y: net.norm(x + y), x(2, 5, 8), x(2, 1, 8), shapes=({1: "a"}, {1: "b"}))

    def test_a_relation_of_two_dimensions(self) -> None:
        def law(net: Of, x: Tensor, y: Tensor) -> Tensor:
            return x.sum() + y.sum() if x.shape[1] < y.shape[1] else x.sum()

        with pytest.raises(ExportError, match=r"unless a < b, such as for a = 5, b = 5; .*leave a and b out"):
            export(law, x(2, 5, 8), x(2, 6, 8), shapes=({1: "a"}, {1: "b"}))

    def test_sizes_that_are_just_equal_hide_no_branch(self) -> None:
        def law(net: Of, x: Tensor, y: Tensor) -> Tensor:
            z: Tensor = net.norm(x) * sorted([x.shape[0], y.shape[0]])[0]
            return z

        with pytest.raises(ExportError, match="unless b < a"):
            export(law, x(4, 8), x(3, 8), shapes=({0: "a"}, {0: "b"}))


class TestAccepted:
    @pytest.mark.parametrize(
        ("law", "shapes"),
        [
            (table, ({0: "batch", 1: "length"},)),
            (lambda net, x: net.norm(x).view(-1, 4, 8), ({0: "batch", 1: "length"},)),
            (lambda net, x: net.norm(x)[:, : min(16, x.shape[1])], ({1: "length"},)),
            (lambda net, x: net.norm(x) if x.shape[0] > 1 else net.norm(x) + 0.0, ({0: "batch"},)),
        ],
        ids=["a table ends", "sizes fit", "cut", "both branches are one"],
    )
    def test_what_the_file_needs_no_guard_for(self, law: Callable[..., Any], shapes: Any) -> None:
        result = export(law, x(2, 12, 8), shapes=shapes)
        assert not result.report.notes
        assert KEY not in result.model.metadata_props

    def test_dimensions_that_have_to_be_equal(self) -> None:
        result = export(lambda net, x, y: net.norm(x + y), x(2, 5, 8), x(2, 5, 8), shapes=({1: "a"}, {1: "b"}))
        assert [value.shape for value in result.model.graph.inputs] == [[2, "a", 8], [2, "a", 8]]

    def test_what_the_user_ruled_out_is_kept_in_the_file_and_not_drawn(self, tmp_path: Path) -> None:
        path = tmp_path / "model.onnx"
        shapes = ({0: "batch", 1: Dim("length", min=3, max=16)},)
        result = export(long, x(2, 10, 8), shapes=shapes, path=path, verify=True, verify_budget=1)
        assert result.report.parity is not None
        assert result.report.parity.passed
        assert result.report.parity.probes > 10
        assert result.report.notes == ["length is 3 to 16, as declared: the file says so"]
        assert json.loads(load(path).metadata_props[KEY])["length"]["most"] == 16
        assert limits_of(load(path)) == {"length": Limit(3, 16)}
        wide = x(3, 16, 8)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        torch.manual_seed(0)
        wanted = Of(long).eval()(wide).detach().numpy()
        np.testing.assert_allclose(session.run(None, {"x": wide.numpy()})[0], wanted, rtol=1e-4, atol=1e-5)
        with pytest.raises(NormfuseError, match="dimension 'length' cannot be 20: the model was exported for 3 to 16"):
            normfuse.verify(path, path, shapes={"length": 20})

    def test_a_multiple_that_the_user_declared(self) -> None:
        def law(net: Of, x: Tensor) -> Tensor:
            y: Tensor = net.norm(x) if x.shape[1] % 4 == 0 else net.norm(x) * 2
            return y

        result = export(law, x(2, 8, 8), shapes=({1: 4 * Dim("quarter")},), verify=True, verify_budget=1)
        assert result.report.parity is not None
        assert result.report.parity.passed
        assert result.report.parity.probes > 10
        assert [limit.step for limit in limits_of(result.model).values()] == [4]

    def test_bounds_of_a_hint(self) -> None:
        result = export(long, x(2, 10, 8), shapes=({1: Dim.DYNAMIC(max=16)},))
        (name,) = limits_of(result.model)
        assert result.model.graph.inputs[0].shape == [2, name, 8]

    def test_names_stay_where_an_argument_is_no_tensor(self) -> None:
        torch.manual_seed(0)
        shapes = {"x": {0: "batch"}, "y": {0: "batch"}, "k": None}
        module = Of(lambda net, x, y: net.norm(x) - y).eval()
        result = normfuse.export(module, (x(2, 5, 8), x(2, 5, 8), 3), dynamic_shapes=shapes, verify=False)
        assert result.report.notes == ["written into the file as constants: k = 3"]
        assert [value.shape for value in result.model.graph.inputs] == [["batch", 5, 8], ["batch", 5, 8]]
        assert [value.shape for value in result.model.graph.outputs] == [["batch", 5, 8]]


class TestLimit:
    def test_sizes(self) -> None:
        limit = Limit(3, 21, 4, 1)
        assert [size for size in range(40) if limit.allows(size)] == [5, 9, 13, 17, 21]
        assert [limit.nearest(size) for size in (1, 5, 6, 8, 22, 100)] == [5, 5, 5, 5, 21, 21]
        assert limit.fitted((1, 2, 6, 300)) == (5, 21)
        assert str(limit) == "3 to 21, a multiple of 4 plus 1"
        assert str(Limit(2)) == "at least 2"

    def test_metadata_that_cannot_be_read_says_nothing(self) -> None:
        model = export(table, x(2, 10, 8), shapes=None).model
        for text in ("{", "[]", '{"a": 1}', '{"a": {"least": "2"}}', '{"a": {"other": 2}}'):
            model.metadata_props[KEY] = text
            assert limits_of(model) == {}

"""What ONNX Runtime makes of a model: which nodes run, what a site runs as, and where the blocked layout breaks."""

import platform
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import onnx_ir as ir
import pytest

from normfuse import blocked, executed
from normfuse.errors import NormfuseError, TargetError
from normfuse.inspection import Inspection, inspect
from normfuse.model import load
from normfuse.site import Site

pytest.importorskip("onnxruntime")

HEAD = '<ir_version: 10, opset_import: ["" : 21]>'
CONSTANTS = {"w": (16, 16, 1, 1), "c": (16, 16, 3, 3), "v": (16,), "k": (16, 1, 1), "u": (16, 16)}
X86 = pytest.mark.skipif(platform.machine().lower() not in blocked._X86, reason="blocked kernels are for x86")

HARD_SWISH = """three = Constant <value_float = 3.0> () zero = Constant <value_float = 0.0> ()
    six = Constant <value_float = 6.0> () a = Conv <pads = [1, 1, 1, 1]> (x, c) s = Add (a, three)
    l = Clip (s, zero, six) p = Mul (a, l) d = Div (p, six) y = Conv (d, w)"""


def model(body: str, kind: str = "float[1, 16, 8, 8]") -> onnx.ModelProto:
    """A model of x and y, both of one type, with the constants above where it reads them; nodes as their outputs."""
    proto = onnx.parser.parse_model(f"{HEAD} g ({kind} x) => ({kind} y) {{ {body} }}")
    rng = np.random.default_rng(0)
    read = {name for node in proto.graph.node for name in node.input}
    for node in proto.graph.node:
        node.name = node.output[0]
    for name, shape in CONSTANTS.items():
        if name in read:
            array = rng.uniform(0.5, 2, shape).astype(np.float32)
            proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return proto


def profiled(proto: onnx.ModelProto, **settings: Any) -> tuple[Inspection, dict[str, Site]]:
    found = inspect(proto, threads=1, profile=True, **settings)
    return found, {site.node: site for site in found}


class TestShares:
    def test_a_normalization_that_is_spelled_out_runs_as_the_kernel_it_is_fused_to(self) -> None:
        found, sites = profiled(
            model(
                """last = Constant <value_ints = [-1]> () e = Constant <value_float = 0.001> ()
                two = Constant <value_float = 2.0> () h = MatMul (x, u)
                mu = ReduceMean (h, last) d = Sub (h, mu) p = Pow (d, two) q = ReduceMean (p, last)
                r = Add (q, e) s = Sqrt (r) n = Div (d, s) g = Mul (n, v) b = Add (g, v) y = MatMul (b, u)""",
                "float[N, 5, 16]",
            )
        )
        site = sites["n"]
        assert site.runs_as == ("LayerNormalization",)
        assert (site.name, len(site.nodes)) == ("LayerNorm", 7)
        assert site.share is not None
        assert 0 < site.share < 1
        assert found.profile is not None
        assert found.profile.norms == pytest.approx(site.share)
        assert found.profile.shapes == {"x": (1, 5, 16)}
        assert found.profile.unknown == ()

    def test_an_operator_that_is_expanded_is_found_as_its_parts(self) -> None:
        _, sites = profiled(model("a = Relu (x) n = GroupNormalization <num_groups = 4> (a, v, v) y = Relu (n)"))
        site = sites["n"]
        assert {"ReduceMean", "Sqrt", "Div"} <= set(site.runs_as)
        assert "Relu" not in site.runs_as
        assert site.share is not None
        assert 0 < site.share < 1

    def test_what_is_fused_into_a_convolution_costs_nothing(self) -> None:
        _, sites = profiled(model("a = Conv (x, w) n = BatchNormalization (a, v, v, v, v) y = Softplus (n)"))
        assert (sites["n"].seconds, sites["n"].runs_as) == (0.0, ())
        assert sites["n"].note == "ONNX Runtime fuses it into Conv"

    def test_so_does_what_is_gone_with_the_activation_behind_it(self) -> None:
        _, sites = profiled(model("a = Conv (x, w) n = BatchNormalization (a, v, v, v, v) y = Relu (n)"))
        assert sites["n"].seconds == 0.0
        assert "Conv" in sites["n"].note

    @X86
    def test_a_blocked_batch_norm_is_a_depthwise_convolution(self) -> None:
        _, sites = profiled(
            model("a = Conv (x, w) r = Relu (a) n = BatchNormalization (r, v, v, v, v) y = Conv (n, w)")
        )
        assert sites["n"].runs_as == ("Conv",)
        assert sites["n"].note == "as a depthwise convolution in the blocked layout"

    def test_what_is_fused_with_another_says_so(self) -> None:
        body = "a = MatMul (x, u) s = Add (a, x) n = LayerNormalization (s, v, v) y = MatMul (n, u)"
        _, sites = profiled(model(body, "float[2, 5, 16]"))
        assert sites["n"].runs_as == ("SkipLayerNormalization",)
        assert sites["n"].note == "with the Add in front of it, as SkipLayerNormalization"

    def test_own_inputs_are_used(self) -> None:
        data = {"x": np.ones((3, 5, 16), np.float32)}
        found, _ = profiled(model("n = LayerNormalization (x, v, v) y = Tanh (n)", "float[N, T, 16]"), data=data)
        assert found.profile is not None
        assert found.profile.shapes == {"x": (3, 5, 16)}

    def test_inputs_that_do_not_fit_are_refused(self) -> None:
        proto = model("n = LayerNormalization (x, v, v) y = Tanh (n)", "float[N, T, 16]")
        with pytest.raises(NormfuseError, match="no array for input 'x'"):
            inspect(proto, profile=True, data={"z": np.ones(1)})
        with pytest.raises(TargetError, match="give other shapes"):
            inspect(proto, profile=True, shapes={"x": (1, 2, 3)})

    def test_a_subgraph_counts_once(self) -> None:
        proto = model(
            """t = Constant <value_float = 0.0> () f = ReduceSum <keepdims = 0> (x) c1 = Greater (f, t)
            y = If (c1) <
                then_branch = a () => (float[1, 16, 8, 8] p) { n = InstanceNormalization (x, v, v) p = Tanh (n) },
                else_branch = b () => (float[1, 16, 8, 8] q) { q = InstanceNormalization (x, v, v) }
            >"""
        )
        constant = onnx.numpy_helper.from_array(np.ones(16, np.float32), "v")
        proto.graph.initializer.append(constant)
        found, _ = profiled(proto)
        assert found.profile is not None
        assert 0 < found.profile.norms < 1


class TestFiles:
    def test_nothing_is_left_behind(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        place = tmp_path / "temporary"
        place.mkdir()
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(tempfile, "tempdir", str(place))
        profiled(model(HARD_SWISH), layout=True)
        with pytest.raises(TargetError):
            inspect(model(HARD_SWISH), profile=True, shapes={"x": (1, 2)})
        assert [path.name for path in tmp_path.rglob("*")] == ["temporary"]

    def test_a_profile_that_cannot_be_read_is_an_error(self, tmp_path: Path) -> None:
        class Loaded:
            name = "net"

            def run(self, feed: object) -> None: ...

            def end_profile(self) -> str:
                (tmp_path / "profile.json").write_text("[")
                return str(tmp_path / "profile.json")

        with pytest.raises(TargetError, match="net: the profile of ONNX Runtime cannot be read"):
            executed._profile(Loaded(), {})  # type: ignore[arg-type]  # all that it uses


@X86
class TestLayout:
    def test_what_breaks_it_is_named_with_what_becomes_of_it(self) -> None:
        layout = inspect(model(HARD_SWISH), layout=True).layout
        assert layout is not None
        assert (layout.known, layout.note, layout.convolutions, layout.unblocked) == (True, "", 2, 0)
        (broken, output) = layout.breaks
        assert (broken.node, broken.operator, broken.part_of, broken.reorders) == ("s", "Add", "HardSwish", 1)
        assert broken.fate is not None
        assert (broken.fate.outcome, set(broken.fate.operators)) == ("rewritten", {"HardSigmoid", "Mul"})
        assert (output.operator, output.fate) == ("output of the model", None)
        assert layout.reorders_after is not None
        assert layout.reorders_after < layout.reorders

    def test_an_expanded_operator_is_one_break(self) -> None:
        body = "a = Conv (x, w) n = GroupNormalization <num_groups = 4> (a, v, v) y = Conv (n, w)"
        layout = inspect(model(body), layout=True).layout
        assert layout is not None
        broken = layout.breaks[0]
        assert (broken.node, broken.operator, broken.part_of) == ("n", "GroupNormalization", "GroupNorm")
        assert broken.because == "it has statistics of its input"
        assert [one.operator for one in layout.breaks[1:]] == ["output of the model"]

    @pytest.mark.parametrize(
        ("between", "because"),
        [
            ("two = Constant <value_float = 2.0> () b = Div (a, two)", "an operand is constant"),
            ("m = GlobalMaxPool (a) b = Mul (a, m)", "its operands differ in shape"),
            ("t = Softplus (x) b = Mul (a, t)", "an operand is not in the layout, or differs in shape"),
            ("t = Softplus (x) b = Sub (a, t)", "there is no blocked kernel"),
        ],
    )
    def test_why_arithmetic_leaves_it(self, between: str, because: str) -> None:
        layout = inspect(model(f"a = Conv (x, w) {between} y = Conv (b, w)"), layout=True).layout
        assert layout is not None
        (broken,) = (one for one in layout.breaks if one.node == "b")
        assert broken.because == because

    def test_what_stays_stays(self) -> None:
        layout = inspect(model("a = Conv (x, w) p = Softplus (a) y = Conv (p, w)"), layout=True).layout
        assert layout is not None
        assert layout.breaks[0].because == "there is no blocked kernel for it"
        assert layout.breaks[0].fate is not None
        assert layout.breaks[0].fate.outcome == "stays"

    def test_a_chain_that_stays_blocked_has_no_breaks(self) -> None:
        layout = inspect(model("a = Conv (x, w) r = Relu (a) y = Conv (r, w)"), layout=True).layout
        assert layout is not None
        assert [one.operator for one in layout.breaks] == ["output of the model"]


def test_without_convolutions_there_is_nothing_to_ask() -> None:
    layout = inspect(model("y = Relu (x)"), layout=True).layout
    assert layout == blocked.Layout(True, "the model has no convolutions")


def test_elsewhere_than_on_x86_it_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    layout = inspect(model("y = Conv (x, w)"), layout=True).layout
    assert layout is not None
    assert (layout.known, layout.breaks) == (False, ())
    assert "x86 only, this is arm64" in layout.note


def test_a_model_that_does_not_load_is_said_and_no_error() -> None:
    proto = model("a = Conv (x, w) y = com.microsoft.Unheard (a)")
    proto.opset_import.add(domain="com.microsoft", version=1)
    layout = inspect(proto, layout=True).layout
    assert layout is not None
    assert not layout.known
    assert "Unheard" in layout.note


def test_a_node_is_known_by_the_values_that_it_writes() -> None:
    made = executed.execute(load(model("a = Conv (x, w) n = BatchNormalization (a, v, v, v, v) y = Relu (n)")), "net")
    assert made.writers["y"].operator in ("Conv", "FusedConv", "ReorderOutput")
    assert made.outputs == ("y",)
    assert made.seconds == 0.0
    assert len({kernel.name for kernel in made.kernels}) == len(made.kernels)


def test_the_model_stays_as_it_is() -> None:
    proto = model(HARD_SWISH)
    given = ir.from_proto(proto)
    before = ir.to_proto(given).SerializeToString()
    inspect(given, profile=True, layout=True)
    assert ir.to_proto(given).SerializeToString() == before

import json
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import onnx_ir as ir
import pytest

from normfuse import inspection
from normfuse.fates import Fate
from normfuse.formulas import AFFINE_FORMULAS, NORM_FORMULAS, details, extent, formula
from normfuse.inspection import inspect
from normfuse.norm import Standardize
from normfuse.passes.access import Dim
from normfuse.report import NORMALIZATIONS
from normfuse.site import Site


def parse(text: str, **constants: tuple[int, ...]) -> onnx.ModelProto:
    """A model from ONNX text, with random constants of the shapes given; its nodes are named like their outputs."""
    rng = np.random.default_rng(0)
    model = onnx.parser.parse_model(text)
    for name, shape in constants.items():
        array = rng.uniform(0.5, 2, shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    for node in model.graph.node:
        node.name = node.output[0]
    return model


def sites(text: str, **constants: tuple[int, ...]) -> dict[str, Site]:
    return {site.node: site for site in inspect(parse(text, **constants))}


HEAD = '<ir_version: 8, opset_import: ["" : 17]>'
STATISTICS: dict[str, Any] = {"s": (4,), "b": (4,), "m": (4,), "v": (4,)}


def test_a_foldable_normalization_says_where_it_goes() -> None:
    model = parse(
        HEAD
        + """ g (float[N, 3, 8, 8] x) => (float[N, 2, 6, 6] y) {
            a = Conv <pads = [1, 1, 1, 1]> (x, w1)
            n = BatchNormalization <epsilon = 0.001> (a, s, b, m, v)
            r = Relu (n)
            y = Conv (r, w2)
        }""",
        w1=(4, 3, 3, 3),
        w2=(2, 4, 3, 3),
        **STATISTICS,
    )
    before = model.SerializeToString()
    (site,) = inspect(model)
    fate = Fate("folded", ("a",), (), ("conv-after",))
    assert site == Site(
        node="n",
        operator="BatchNormalization",
        statistics="stored",
        formula=NORM_FORMULAS["BatchNormalization"],
        shape=("N", 4, 8, 8),
        dtype="FLOAT",
        epsilon=float(np.float32(1e-3)),
        behind=("Conv a",),
        before=("Conv y",),
        elements=2 * 4 * 8 * 8,
        outcome="folded",
        into=("a",),
        name="BatchNorm",
        nodes=("n",),
        targets=dict.fromkeys(("portable", "cpu", "cuda"), fate),
    )
    assert model.SerializeToString() == before


def test_what_stays_says_why() -> None:
    (site,) = inspect(
        parse(
            HEAD
            + """ g (float[1, 4, 8, 8] x) => (float[1, 4, 8, 8] y) {
                r = Sigmoid (x)
                n = BatchNormalization (r, s, b, m, v)
                y = Tanh (n)
            }""",
            **STATISTICS,
        )
    )
    assert site.outcome == "stays"
    assert site.reasons
    assert site.behind == site.before == ()


def test_statistics_of_the_batch() -> None:
    found = sites(
        HEAD
        + """ g (float[2, 4, 8, 8] x) => (float[2, 4, 8, 8] y, float[4] rm, float[4] rv) {
            y, rm, rv = BatchNormalization <training_mode = 1> (x, s, b, m, v)
        }""",
        **STATISTICS,
    )
    assert found["y"].statistics == "batch"
    assert found["y"].elements == 3 * 2 * 4 * 8 * 8
    assert found["y"].outcome == "stays"


def test_statistics_of_the_input() -> None:
    found = sites(
        HEAD
        + """ g (float[1, 4, 8, 8] x) => (float[1, 4, 8, 8] y) {
            i = InstanceNormalization (x, s, b)
            l = LRN <size = 3> (i)
            y = LayerNormalization <axis = -1, epsilon = 0.5> (l, k)
        }""",
        s=(4,),
        b=(4,),
        k=(8,),
    )
    assert {name: (site.statistics, site.epsilon) for name, site in found.items()} == {
        "i": ("input", 1e-5),
        "l": ("input", None),
        "y": ("input", 0.5),
    }


@pytest.mark.parametrize(
    ("node", "formula"),
    [
        ("Mul (x, c)", "a · x"),
        ("Mul (c, x)", "a · x"),
        ("Add (c, x)", "x + b"),
        ("Sub (x, c)", "x − b"),
        ("Sub (c, x)", "b − x"),
        ("Div (x, c)", "x / a"),
        ("Div (c, x)", None),
        ("Mul (x, x)", None),
        ("Mul (x, full)", None),
        ("Max (x, c)", None),
    ],
)
def test_affine_maps_in_every_spelling(node: str, formula: str | None) -> None:
    found = sites(
        f"{HEAD} g (float[1, 4, 8, 8] x) => (float[1, 4, 8, 8] y) {{ t = {node} y = Tanh (t) }}",
        c=(4, 1, 1),
        full=(4, 8, 8),
    )
    assert [site.formula for site in found.values()] == ([formula] if formula else [])
    assert all(site.statistics == "constant" and site.epsilon is None for site in found.values())


def test_a_constant_may_stand_behind_others() -> None:
    found = sites(
        HEAD
        + """ g (float[1, 4, 8, 8] x) => (float[1, 4, 8, 8] y) {
            axes = Constant <value_ints = [1, 2]> ()
            c = Unsqueeze (s, axes)
            k = Sqrt (c)
            t = Mul (x, k)
            y = Tanh (t)
        }""",
        s=(4,),
    )
    assert "t" in found
    assert set(found) == {"t"}


def test_integers_and_weights_are_no_affine_maps() -> None:
    found = sites(
        HEAD
        + """ g (float[1, 4] x, int64[4] i) => (float[1, 5] y, int64[4] j) {
            two = Constant <value_int = 2> ()
            j = Mul (i, two)
            w = Mul (v, s)
            y = MatMul (x, w)
        }""",
        v=(4, 5),
        s=(5,),
    )
    assert found == {}


def test_neighbours_are_found_across_branches() -> None:
    found = sites(
        HEAD
        + """ g (float[1, 3, 8, 8] x) => (float[1, 2, 8, 8] y, float[1, 2, 8, 8] z) {
            a = Conv (x, w1)
            b = Conv (x, w1b)
            c = Concat <axis = 1> (a, b)
            t = Mul (c, k)
            r = Relu (t)
            y = Conv (r, w2)
            h = Sigmoid (r)
            z = Conv (h, w3)
        }""",
        w1=(2, 3, 1, 1),
        w1b=(2, 3, 1, 1),
        k=(1, 4, 1, 1),
        w2=(2, 4, 1, 1),
        w3=(2, 4, 1, 1),
    )
    assert found["t"].behind == ("Conv a", "Conv b")
    assert found["t"].before == ("Conv y", "Conv z")


def test_a_subgraph_is_listed() -> None:
    found = sites(
        HEAD
        + """ g (float[1, 4] x, bool flag) => (float[1, 4] y) {
            y = If (flag) <
                then_branch = t () => (float[1, 4] p) { p = Mul (x, k) },
                else_branch = e () => (float[1, 4] q) { q = Neg (x) }
            >
        }""",
        k=(4,),
    )
    assert [site.operator for site in found.values()] == ["Mul"]


SPELLED = (
    HEAD
    + """ g (float[N, 8, 6, 6] x, float[N, 8, 1, 1] t) => (float[N, 8, 6, 6] y) {
        three = Constant <value_ints = [0, 2, -1]> ()
        r = Reshape (x, three)
        i = InstanceNormalization <epsilon = 0.01> (r, ones, zeros)
        four = Shape (x)
        b = Reshape (i, four)
        m = Mul (b, k)
        a = Add (m, t)
        y = Tanh (a)
    }"""
)


def test_a_normalization_that_is_spelled_out_is_one_site() -> None:
    model = parse(SPELLED, k=(8, 1, 1))
    for name, value in (("ones", 1.0), ("zeros", 0.0)):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.full(2, value, np.float32), name))
    site, scale = inspect(model, threads=1)
    assert (site.name, site.operator, site.node, site.statistics) == ("GroupNorm", "GroupNorm", "b", "input")
    assert set(site.nodes) == {"r", "i", "b"}
    assert site.formula == "(x − E[x]) / √(Var[x] + 0.01), S: H, W and 4 of 8 channels; per sample"
    assert (site.shape, site.dtype, site.groups) == (("N", 8, 6, 6), "FLOAT", 2)
    assert site.epsilon == pytest.approx(0.01)
    assert site.is_norm
    assert (scale.node, scale.operator, scale.formula, scale.name) == ("m", "Mul", "a · x", None)


def test_what_becomes_of_it_is_told_for_each_target() -> None:
    found = inspect(
        parse(
            HEAD
            + """ g (float[1, 16, 9, 9] x) => (float[1, 16, 9, 9] y) {
                n = LRN <size = 5, alpha = 0.1, beta = 0.75, bias = 1.0> (x)
                y = Tanh (n)
            }"""
        )
    )
    (site,) = found
    assert list(site.targets) == ["portable", "cpu", "cuda"]
    assert site.targets["cpu"].outcome == site.outcome == "rewritten"
    assert len(site.targets["cpu"].operators) > 1
    assert site.targets["cpu"].rules[0].startswith("lrn-by-")
    assert site.targets["portable"].outcome == site.targets["cuda"].outcome == "stays"
    body = " g (float[1, 16, 9, 9] x) => (float[1, 16, 9, 9] y) { y = LRN <size = 5> (x) }"
    assert inspect(parse(HEAD + body), "cuda")[0].outcome == "stays"
    assert json.loads(json.dumps(found.to_dict()))["sites"][0]["targets"]["cpu"]["outcome"] == "rewritten"


def test_γ_and_β_are_constant_or_computed() -> None:
    found = sites(
        HEAD
        + """ g (float[2, 4, 8] x, float[8] c) => (float[2, 4, 8] y) {
            n = LayerNormalization (x, s, c)
            y = LayerNormalization (n, s)
        }""",
        s=(8,),
    )
    assert [(site.name, site.scale, site.bias) for site in found.values()] == [
        ("LayerNorm", "constant", "computed"),
        ("LayerNorm", "constant", None),
    ]


def test_parts_of_an_activation_are_no_affine_maps() -> None:
    found = sites(
        HEAD
        + """ g (float[1, 4, 8, 8] x) => (float[1, 4, 8, 8] y) {
            three = Constant <value_float = 3.0> ()
            zero = Constant <value_float = 0.0> ()
            six = Constant <value_float = 6.0> ()
            c = Conv (x, w)
            a = Add (c, three)
            l = Clip (a, zero, six)
            m = Mul (c, l)
            d = Div (m, six)
            y = Conv (d, w)
        }""",
        w=(4, 4, 1, 1),
    )
    assert found == {}


@pytest.mark.parametrize(
    ("standardize", "sizes", "says"),
    [
        (Standardize.layer_norm((2,)), (2, 7, 16), "the last axis (16); per position"),
        (Standardize.layer_norm((1,)), (2, "D"), "the last axis; per position"),
        (Standardize.layer_norm((3,)), (1, 7, 7, 16), "the last axis (16); per position"),
        (Standardize.layer_norm((1, 2, 3)), (2, 8, 6, 6), "C, H, W; per sample"),
        (Standardize.layer_norm((1,)), (2, 8, 6, 6), "C; per sample and position"),
        (Standardize.layer_norm((0,)), (2, 8), "axis 0; per column"),
        (Standardize.layer_norm((0, 1)), (2, 8), "axes 0, 1; one for all"),
        (Standardize.layer_norm((3, 4)), (1, 2, 3, 4, 5, 6), "axes 3, 4; per sample, channel and position"),
        (Standardize.instance_norm(4), (2, 8, 6, 6), "H, W; per sample and channel"),
        (Standardize.instance_norm(3), (2, 8, 6), "the last axis (6); per position"),
        (Standardize.instance_norm(5), (2, 8, 4, 6, 6), "D, H, W; per sample and channel"),
        (Standardize.batch_norm(4), (2, 8, 6, 6), "N, H, W; per channel"),
        (Standardize.group_norm(4, 2), ("N", 8, "H", "W"), "H, W and 4 of 8 channels; per sample"),
        (Standardize.group_norm(3, 2), (2, None, 6), "L and 1/2 of the channels; per sample"),
        (Standardize.local_response(5), (2, 8, 6, 6), "a window of 5 channels; per sample and position"),
        (Standardize.layer_norm((2, 3)), None, "axes 2, 3"),
    ],
)
def test_what_shares_a_mean_is_said_in_words(standardize: Standardize, sizes: list[Dim] | None, says: str) -> None:
    assert extent(standardize, sizes) == says
    assert formula(standardize, sizes, scaled=True, shifted=True).endswith(f" + β, S: {says}")


def test_details_tell_what_a_formula_may_hide() -> None:
    assert details(Standardize.layer_norm((1,))) == ()
    unusual = Standardize((1,), 1e-3, "outside", ddof=1, dtype=ir.DataType.FLOAT, cancels=True)
    assert [detail.split()[-1] for detail in details(unusual)] == ["1", "root", "means", "float"]
    assert details(Standardize.lp_norm((1,), epsilon=1e-12)) == ("ε stands as a lower bound",)


def test_nothing_is_logged_about_values_without_a_type(caplog: pytest.LogCaptureFixture) -> None:
    model = parse(HEAD + " g (float[N, 4] x) => (float[N, 4] y) { t = Mul (x, k) y = Tanh (t) }", k=(4,))
    given = ir.from_proto(model)
    given.graph[0].outputs[0].shape = ir.Shape(["N", 4])  # and no type
    inspect(given)
    assert caplog.records == []


def test_every_normalization_has_a_formula() -> None:
    assert set(NORM_FORMULAS) == NORMALIZATIONS
    assert set(inspection.DEFAULT_EPSILON) | inspection.NO_EPSILON <= NORMALIZATIONS
    assert ("Div", 0) not in AFFINE_FORMULAS


def test_a_site_is_ready_for_json() -> None:
    site = Site("n", "Mul", "constant", "a · x", ("N", 4), "FLOAT", None, (), (), 8, "stays", (), ("because",))
    assert site.to_dict()["shape"] == ("N", 4)
    assert site.to_dict()["reasons"] == ("because",)

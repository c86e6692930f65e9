"""ABSORB, linear operators: each takes a map into its weights, behind it and in front of it, or says why not."""

from typing import Any

import numpy as np
import pytest

from normfuse.passes.absorb import LINEAR
from tests.parity import BFLOAT16, Array, Case, batch_norm, build, case, fold, names, ops, refuse, rng

NORM = "n_scale, n_bias, n_mean, n_var"


def conv(what: str, attributes: str, y: str, x: str = "N,4,7,7", expected: str = "Conv", **weights: Any) -> Case:
    """Conv → BatchNormalization."""
    text = f"(float[{x}] x) => (float[{y}] y) {{ c = Conv{attributes}(x, w, b) y = BatchNormalization(c, {NORM}) }}"
    shapes = {"w": (6, 4, 3, 3), "b": (6,)} | weights
    return case("conv-after", what, text, expected, **shapes, **batch_norm("n", shapes["w"][0]))


def into_conv(
    what: str, nodes: str, y: str = "N,6,5,5", x: str = "N,4,7,7", expected: str = "Conv", **weights: Any
) -> Case:
    """Something in front of a Conv with bias."""
    shapes = {"w": (6, 4, 3, 3), "b": (6,)} | weights
    return case("conv-before", what, f"(float[{x}] x) => (float[{y}] y) {{ {nodes} }}", expected, **shapes)


def transposed(
    what: str, attributes: str, y: str, expected: str = "ConvTranspose", bias: str = ", b", **weights: Any
) -> Case:
    """ConvTranspose → BatchNormalization, from 4 to 6 channels."""
    text = (
        f"(float[N,4,5,5] x) => (float[{y}] y) {{ c = ConvTranspose{attributes}(x, w{bias}) "
        f"y = BatchNormalization(c, {NORM}) }}"
    )
    return case(
        "conv-transpose-after", what, text, expected, **({"w": (4, 6, 3, 3), "b": (6,)} | weights), **batch_norm("n", 6)
    )


def into_transposed(what: str, nodes: str, y: str, expected: str = "ConvTranspose", **weights: Any) -> Case:
    shapes = {"w": (4, 6, 3, 3), "b": (6,), "k": (4, 1, 1)} | weights
    return case(
        "conv-transpose-before", what, f"(float[N,4,5,5] x) => (float[{y}] y) {{ {nodes} }}", expected, **shapes
    )


def gemm(what: str, nodes: str, expected: str = "Gemm", x: str = "3,4", y: str = "3,5", **weights: Any) -> Case:
    return case("gemm-after", what, f"(float[{x}] x) => (float[{y}] y) {{ {nodes} }}", expected, **weights)


def into_gemm(what: str, nodes: str, expected: str = "Gemm", x: str = "3,4", y: str = "3,5", **weights: Any) -> Case:
    return case("gemm-before", what, f"(float[{x}] x) => (float[{y}] y) {{ {nodes} }}", expected, **weights)


def product(rule: str, what: str, x: str, y: str, nodes: str, expected: str, **weights: Any) -> Case:
    return case(rule, what, f"(float[{x}] x) => (float[{y}] y) {{ {nodes} }}", expected, **weights)


def tiny(*shape: int) -> Array:
    return np.full(shape, 1e-6, np.float16)


APPLIES = [
    conv("2-D", "", "N,6,5,5"),
    conv("two groups", "<group=2>", "N,6,5,5", w=(6, 2, 3, 3)),
    conv("depthwise", "<group=4>", "N,4,5,5", w=(4, 1, 3, 3), b=(4,)),
    conv("depthwise, two for each", "<group=4>", "N,8,5,5", w=(8, 1, 3, 3), b=(8,)),
    conv("1-D", "", "N,6,5", "N,4,7", w=(6, 4, 3)),
    conv("3-D", "", "N,6,3,3,3", "N,4,5,4,5", w=(6, 4, 3, 2, 3)),
    conv("dilated, with strides and pads", "<dilations=[2,1], strides=[2,2], pads=[1,0,2,1]>", "N,6,3,3"),
    conv("auto_pad SAME_UPPER", '<auto_pad="SAME_UPPER", strides=[2,2]>', "N,6,4,4"),
    conv("auto_pad VALID", '<auto_pad="VALID">', "N,6,5,5"),
    *(
        case(
            "conv-after",
            np.dtype(dtype).name,
            f"({kind}[N,4,7,7] x) => ({kind}[N,6,5,5] y) {{ c = Conv(x, w) y = BatchNormalization(c, {NORM}) }}",
            "Conv",
            dtype=dtype,
            w=(6, 4, 3, 3),
            **batch_norm("n", 6, dtype),
        )
        for kind, dtype in (("float16", np.float16), ("double", np.float64))
    ),
    case(
        "conv-after",
        "bfloat16",
        "(float[N,4,7,7] x) => (float[N,6,5,5] y) { h = Cast<to=16>(x) c = Conv(h, w) "
        f"b = BatchNormalization(c, {NORM}) y = Cast<to=1>(b) }}",
        "Cast Conv Cast",
        opset=22,
        dtype=BFLOAT16,
        w=(6, 4, 3, 3),
        **batch_norm("n", 6, BFLOAT16),
    ),
    into_conv("scale and shift", "a = Mul(x, k) s = Add(a, t) y = Conv(s, w, b)", k=(4, 1, 1), t=(4, 1, 1)),
    into_conv("without bias", "a = Mul(x, k) s = Add(a, t) y = Conv(s, w)", k=(4, 1, 1), t=(4, 1, 1)),
    into_conv("batch norm", f"a = BatchNormalization(x, {NORM}) y = Conv(a, w, b)", **batch_norm("n", 4)),
    into_conv("input normalization", "a = Sub(x, m) s = Div(a, d) y = Conv(s, w, b)", m=(4, 1, 1), d=(1, 4, 1, 1)),
    into_conv("a scalar", "a = Div(x, k) y = Conv(a, w, b)", k=np.float32(255)),
    into_conv("scale in front of padding", "a = Mul(x, k) y = Conv<pads=[1,1,1,1]>(a, w, b)", "N,6,7,7", k=(4, 1, 1)),
    into_conv(
        "scale of a map whose shift meets padding",
        "a = Add(x, t) s = Mul(a, k) y = Conv<pads=[1,1,1,1]>(s, w, b)",
        "N,6,7,7",
        expected="Add Conv",
        k=(4, 1, 1),
        t=(4, 1, 1),
    ),
    into_conv(
        "two groups",
        f"a = BatchNormalization(x, {NORM}) y = Conv<group=2>(a, w, b)",
        w=(6, 2, 3, 3),
        **batch_norm("n", 4),
    ),
    into_conv(
        "depthwise",
        f"a = BatchNormalization(x, {NORM}) y = Conv<group=4>(a, w, b)",
        "N,8,5,5",
        w=(8, 1, 3, 3),
        b=(8,),
        **batch_norm("n", 4),
    ),
    into_conv(
        "1-D",
        f"a = BatchNormalization(x, {NORM}) y = Conv(a, w, b)",
        "N,6,5",
        "N,4,7",
        w=(6, 4, 3),
        **batch_norm("n", 4),
    ),
    into_conv(
        "3-D, dilated, with strides",
        f"a = BatchNormalization(x, {NORM}) y = Conv<dilations=[2,1,1], strides=[1,2,1]>(a, w, b)",
        "N,6,3,3,4",
        "N,4,7,7,5",
        w=(6, 4, 3, 3, 2),
        **batch_norm("n", 4),
    ),
    into_conv(
        "one tap with auto_pad",
        f'a = BatchNormalization(x, {NORM}) y = Conv<auto_pad="SAME_UPPER", strides=[2,2]>(a, w, b)',
        "N,6,4,4",
        w=(6, 4, 1, 1),
        **batch_norm("n", 4),
    ),
    transposed("one group", "", "N,6,7,7"),
    transposed("two groups", "<group=2>", "N,6,7,7", w=(4, 3, 3, 3)),
    transposed("depthwise", "<group=2>", "N,6,7,7", w=(4, 3, 3, 3), bias=""),
    transposed("output_padding", "<strides=[2,2], output_padding=[1,1]>", "N,6,12,12"),
    transposed("strides, pads and dilations", "<strides=[2,2], pads=[1,1,1,1], dilations=[1,2]>", "N,6,9,11"),
    transposed("without bias", "", "N,6,7,7", bias=""),
    into_transposed("scale", "a = Mul(x, k) y = ConvTranspose<strides=[2,2]>(a, w, b)", "N,6,11,11"),
    into_transposed(
        "scale in two groups", "a = Mul(x, k) y = ConvTranspose<group=2>(a, w, b)", "N,6,7,7", w=(4, 3, 3, 3)
    ),
    into_transposed(
        "one tap takes the shift",
        "a = Mul(x, k) s = Sub(a, t) y = ConvTranspose(s, w, b)",
        "N,6,5,5",
        w=(4, 6, 1, 1),
        t=(4, 1, 1),
    ),
    into_transposed(
        "one tap in two groups, without bias",
        "a = Mul(x, k) s = Sub(a, t) y = ConvTranspose<group=2>(s, w)",
        "N,6,5,5",
        w=(4, 3, 1, 1),
        t=(4, 1, 1),
    ),
    *(
        gemm(
            f"alpha, beta, transA={a}, transB={b}, C {list(c)}",
            f"g = Gemm<alpha=0.5, beta=2.0, transA={a}, transB={b}>(x, w, c) m = Mul(g, k) y = Sub(m, t)",
            x="4,3" if a else "3,4",
            w=(5, 4) if b else (4, 5),
            c=c,
            k=(5,),
            t=(1, 5),
        )
        for a, b, c in (
            (0, 0, (5,)),
            (1, 0, (5,)),
            (0, 1, (1, 5)),
            (1, 1, (1,)),
            (0, 0, ()),
            (0, 1, (3, 5)),
            (0, 0, (1, 1)),
        )
    ),
    gemm("C absent", "g = Gemm<alpha=0.5, beta=2.0>(x, w) m = Mul(g, k) y = Sub(m, t)", w=(4, 5), k=(5,), t=(5,)),
    gemm("C absent, scale alone", "g = Gemm(x, w) y = Mul(g, k)", w=(4, 5), k=(5,)),
    gemm("batch norm", f"g = Gemm(x, w, c) y = BatchNormalization(g, {NORM})", w=(4, 5), c=(5,), **batch_norm("n", 5)),
    gemm("constant A", "g = Gemm(w, x) m = Mul(g, k) y = Add(m, t)", x="4,5", w=(3, 4), k=(3, 1), t=(3, 1)),
    gemm(
        "constant A, transposed, C (M, 1)",
        "g = Gemm<transA=1, beta=3.0>(w, x, c) m = Mul(g, k) y = Add(m, t)",
        x="4,5",
        w=(4, 3),
        c=(3, 1),
        k=(3, 1),
        t=(3, 1),
    ),
    gemm("constant A, a scalar", "g = Gemm(w, x) y = Mul(g, k)", x="4,5", w=(3, 4), k=()),
    case(
        "gemm-after",
        "bfloat16",
        "(float[N,4] x) => (float[N,5] y) { h = Cast<to=16>(x) g = Gemm(h, w, c) m = Mul(g, k) y = Cast<to=1>(m) }",
        "Cast Gemm Cast",
        dtype=BFLOAT16,
        w=(4, 5),
        c=(5,),
        k=(5,),
    ),
    *(
        into_gemm(
            f"alpha, beta, transA={a}, transB={b}, C {list(c)}",
            f"m = Mul(x, k) s = Sub(m, t) y = Gemm<alpha=0.5, beta=2.0, transA={a}, transB={b}>(s, w, c)",
            x="4,3" if a else "3,4",
            w=(5, 4) if b else (4, 5),
            c=c,
            k=(4, 1) if a else (4,),
            t=(4, 1) if a else (4,),
        )
        for a, b, c in ((0, 0, (5,)), (1, 0, (1, 5)), (0, 1, ()), (1, 1, (3, 5)), (0, 0, (1,)))
    ),
    into_gemm("C absent", "m = Mul(x, k) s = Sub(t, m) y = Gemm<alpha=0.5, beta=2.0>(s, w)", w=(4, 5), k=(4,), t=(4,)),
    into_gemm(
        "batch norm", f"a = BatchNormalization(x, {NORM}) y = Gemm(a, w, c)", w=(4, 5), c=(5,), **batch_norm("n", 4)
    ),
    into_gemm("constant A", "m = Mul(x, k) s = Add(m, t) y = Gemm(w, s)", x="4,5", w=(3, 4), k=(4, 1), t=(4, 1)),
    into_gemm(
        "constant A, all transposed",
        "m = Mul(x, k) s = Add(m, t) y = Gemm<transA=1, transB=1, alpha=2.0>(w, s, c)",
        x="5,4",
        w=(4, 3),
        c=(3, 1),
        k=(4,),
        t=(4,),
    ),
    product(
        "matmul-after",
        "2-D",
        "N,4",
        "N,5",
        "g = MatMul(x, w) m = Mul(k, g) y = Add(m, t)",
        "Gemm",
        w=(4, 5),
        k=(5,),
        t=(5,),
    ),
    product("matmul-after", "2-D, Add alone", "N,4", "N,5", "g = MatMul(x, w) y = Add(t, g)", "Gemm", w=(4, 5), t=(5,)),
    product(
        "matmul-after", "2-D, a scalar shift", "N,4", "N,5", "g = MatMul(x, w) y = Add(t, g)", "Gemm", w=(4, 5), t=()
    ),
    product(
        "matmul-after", "2-D, scale alone", "N,4", "N,5", "g = MatMul(x, w) y = Div(g, k)", "MatMul", w=(4, 5), k=(5,)
    ),
    product(
        "matmul-after",
        "2-D, batch norm",
        "N,4",
        "N,5",
        f"g = MatMul(x, w) y = BatchNormalization(g, {NORM})",
        "Gemm",
        w=(4, 5),
        **batch_norm("n", 5),
    ),
    product(
        "matmul-after",
        "2-D, weight on the left",
        "4,N",
        "5,N",
        "g = MatMul(w, x) m = Mul(k, g) y = Add(m, t)",
        "Gemm",
        w=(5, 4),
        k=(5, 1),
        t=(5, 1),
    ),
    product(
        "matmul-after",
        "3-D",
        "N,T,4",
        "N,T,5",
        "g = MatMul(x, w) a = Add(g, b) m = Mul(k, a) y = Add(m, t)",
        "MatMul Add",
        w=(4, 5),
        b=(5,),
        k=(5,),
        t=(5,),
    ),
    product(
        "matmul-after",
        "3-D, weight on the left, batch norm",
        "N,4,T",
        "N,5,T",
        f"g = MatMul(w, x) y = BatchNormalization(g, {NORM})",
        "MatMul Add",
        w=(5, 4),
        **batch_norm("n", 5),
    ),
    product(
        "matmul-after",
        "batched weight",
        "N,3,2,4",
        "N,3,2,5",
        "g = MatMul(x, w) y = Mul(g, k)",
        "MatMul",
        w=(3, 4, 5),
        k=(5,),
    ),
    product("matmul-after", "1-D data", "4", "5", "g = MatMul(x, w) y = Mul(g, k)", "MatMul", w=(4, 5), k=(5,)),
    product(
        "matmul-before",
        "2-D",
        "N,4",
        "N,5",
        "m = Mul(x, k) s = Add(m, t) y = MatMul(s, w)",
        "Gemm",
        w=(4, 5),
        k=(4,),
        t=(4,),
    ),
    product(
        "matmul-before", "3-D, scale", "N,T,4", "N,T,5", "m = Mul(x, k) y = MatMul(m, w)", "MatMul", w=(4, 5), k=(4,)
    ),
    product(
        "matmul-before",
        "3-D, shift into a bias",
        "N,T,4",
        "N,T,5",
        "m = Mul(x, k) s = Sub(m, t) g = MatMul(s, w) y = Add(b, g)",
        "MatMul Add",
        w=(4, 5),
        k=(4,),
        t=(4,),
        b=(5,),
    ),
    product(
        "matmul-before",
        "3-D, shift becomes an Add",
        "N,T,4",
        "N,T,5",
        "m = Mul(x, k) s = Sub(m, t) y = MatMul(s, w)",
        "MatMul Add",
        w=(4, 5),
        k=(4,),
        t=(4,),
    ),
    product(
        "matmul-before",
        "3-D, weight on the left",
        "N,4,T",
        "N,5,T",
        f"a = BatchNormalization(x, {NORM}) y = MatMul(w, a)",
        "MatMul Add",
        w=(5, 4),
        **batch_norm("n", 4),
    ),
    product(
        "matmul-before",
        "batched weight",
        "N,3,2,4",
        "N,3,2,5",
        "m = Mul(x, k) y = MatMul(m, w)",
        "MatMul",
        w=(3, 4, 5),
        k=(4,),
    ),
    product(
        "einsum-after",
        "explicit",
        "N,T,4",
        "N,T,5",
        'g = Einsum<equation="bij,jk->bik">(x, w) y = Mul(g, k)',
        "Einsum",
        w=(4, 5),
        k=(5,),
    ),
    product(
        "einsum-after",
        "implicit",
        "N,4",
        "N,5",
        'g = Einsum<equation="ij,jk">(x, w) m = Mul(g, k) y = Add(m, t)',
        "Einsum Add",
        w=(4, 5),
        k=(5,),
        t=(5,),
    ),
    product(
        "einsum-after",
        "constant on the left, out of order",
        "N,4,T",
        "N,5,T",
        f'g = Einsum<equation=" oi, bit -> bot">(w, x) y = BatchNormalization(g, {NORM})',
        "Einsum Add",
        w=(5, 4),
        **batch_norm("n", 5),
    ),
    product(
        "einsum-after",
        "a scalar",
        "N,T,4",
        "T,N,5",
        'g = Einsum<equation="bij,jk->ibk">(x, w) y = Mul(g, k)',
        "Einsum",
        w=(4, 5),
        k=(),
    ),
    product(
        "einsum-before",
        "scale",
        "N,T,4",
        "N,T,5",
        'm = Mul(x, k) y = Einsum<equation="bij,jk->bik">(m, w)',
        "Einsum",
        w=(4, 5),
        k=(4,),
    ),
    product(
        "einsum-before",
        "shift into a bias",
        "N,4,T",
        "N,T,5",
        'm = Mul(x, k) s = Add(m, t) g = Einsum<equation="ok,bkt->bto">(w, s) y = Add(g, b)',
        "Einsum Add",
        w=(5, 4),
        k=(4, 1),
        t=(4, 1),
        b=(5,),
    ),
    *(
        case(
            "gather-after",
            what,
            f"(int64{i} i) => (float[{y}] y) {{ g = Gather<axis={axis}>(table, i) m = Mul(g, k) y = Add(t, m) }}",
            "Gather",
            table=(4, 5),
            k=k,
            t=k,
        )
        for what, i, y, axis, k in (
            ("axis 0", "[N]", "N,5", 0, (5,)),
            ("axis 0, 2-D indices", "[N,T]", "N,T,5", 0, (5,)),
            ("axis 1", "[N]", "4,N", 1, (4, 1)),
            ("axis -1, 2-D indices", "[N,T]", "4,N,T", -1, (4, 1, 1)),
            ("axis 0, one index", "", "5", 0, (5,)),
            ("axis 1, one index", "", "4", 1, (4,)),
            ("a scalar", "[N]", "N,5", 0, ()),
        )
    ),
    product(
        "norm-after",
        "InstanceNormalization",
        "N,4,6",
        "N,4,6",
        f"a = InstanceNormalization(x, s, b) y = BatchNormalization(a, {NORM})",
        "InstanceNormalization",
        s=(4,),
        b=(4,),
        **batch_norm("n", 4),
    ),
    product(
        "norm-after",
        "LayerNormalization",
        "N,3,6",
        "N,3,6",
        "a = LayerNormalization(x, s, b) m = Mul(k, a) y = Sub(m, t)",
        "LayerNormalization",
        s=(6,),
        b=(6,),
        k=(6,),
        t=(6,),
    ),
    product(
        "norm-after",
        "LayerNormalization without bias",
        "N,3,6",
        "N,3,6",
        "a = LayerNormalization(x, s) y = Sub(a, t)",
        "LayerNormalization",
        s=(6,),
        t=(6,),
    ),
    *(
        case(
            "norm-after",
            f"GroupNormalization of opset {opset}",
            "(float[N,4,6] x) => (float[N,4,6] y) <float[N,4,6] a, float[N,4,6] m> "
            "{ a = GroupNormalization<num_groups=2>(x, s, b) m = Mul(k, a) y = Sub(m, t) }",
            "GroupNormalization",
            opset=opset,
            s=(4,),
            b=(4,),
            k=(4, 1),
            t=(4, 1),
        )
        for opset in (21, 23)
    ),
]

HALF = "(float16[N,4,7,7] x) => (float16[N,6,5,5] y)"

REFUSES = [
    case(
        "conv-after",
        "weight computed at run time",
        f"(float[N,4,7,7] x, float[6,4,3,3] w) => (float[N,6,5,5] y) {{ c = Conv(x, w) y = BatchNormalization(c, {NORM}) }}",
        "behind Conv 'c': weight 'w' is an input of the graph",
        **batch_norm("n", 6),
    ),
    case(
        "conv-after",
        "bias computed at run time",
        f"(float[N,4,7,7] x, float[6] v) => (float[N,6,5,5] y) {{ b = Exp(v) c = Conv(x, w, b) y = BatchNormalization(c, {NORM}) }}",
        "behind Conv 'c': its weight is computed at run time",
        w=(6, 4, 3, 3),
        **batch_norm("n", 6),
    ),
    case(
        "conv-after",
        "float16 overflow",
        f"{HALF} {{ c = Conv(x, w) y = Mul(c, k) }}",
        "scale overflows or underflows float16 in Conv 'c'",
        w=np.full((6, 4, 3, 3), 900, np.float16),
        k=np.float16(100),
    ),
    case(
        "conv-after",
        "float16 underflow",
        f"{HALF} {{ c = Conv(x, w) y = Mul(c, k) }}",
        "scale overflows or underflows float16 in Conv 'c'",
        w=tiny(6, 4, 3, 3) * 1000,
        k=tiny(6, 1, 1),
    ),
    case(
        "conv-after",
        "float16 underflow of one channel",
        f"{HALF} {{ c = Conv(x, w) y = BatchNormalization(c, {NORM}) }}",
        "scale overflows or underflows float16 in Conv 'c'",
        dtype=np.float16,
        w=(6, 4, 3, 3),
        **{**batch_norm("n", 6, np.float16), "n_scale": np.float16([1, 1, 1e-6, 1, 1, 1])},
    ),
    case(
        "conv-after",
        "quantized weight",
        "(float[N,4,7,7] x) => (float[N,6,5,5] y) { w = DequantizeLinear(q, scale) c = Conv(x, w) y = Mul(c, k) }",
        "behind Conv 'c': its weight is quantized",
        q=rng("q").integers(-127, 127, (6, 4, 3, 3)).astype(np.int8),
        scale=np.float32(0.02),
        k=(6, 1, 1),
    ),
    into_conv(
        "shift in front of padding",
        "a = Add(x, t) y = Conv<pads=[0,0,0,1]>(a, w, b)",
        "N,6,5,6",
        expected="shift crosses a zero-padded border",
        t=(4, 1, 1),
    ),
    into_conv(
        "shift in front of auto_pad",
        'a = Add(x, t) y = Conv<auto_pad="SAME_LOWER">(a, w, b)',
        "N,6,7,7",
        expected="shift crosses a zero-padded border",
        t=(4, 1, 1),
    ),
    into_conv(
        "along the width",
        "a = Mul(x, k) y = Conv(a, w, b)",
        expected="the map varies along axis 3, the channels are axis 1",
        k=(7,),
    ),
    into_conv(
        "it is the weight",
        "v = Relu(x) a = Mul(v, k) y = Conv(z, a)",
        "4,4,1,1",
        "4,4,7,7",
        expected="it is a weight that is computed at run time",
        z=(4, 4, 7, 7),
        k=(4, 1, 1),
    ),
    case(
        "conv-transpose-after",
        "weight computed at run time",
        f"(float[N,4,5,5] x, float[4,6,3,3] w) => (float[N,6,7,7] y) {{ c = ConvTranspose(x, w) y = BatchNormalization(c, {NORM}) }}",
        "weight 'w' is an input of the graph",
        **batch_norm("n", 6),
    ),
    into_transposed(
        "shift and several taps",
        "a = Add(x, k) y = ConvTranspose(a, w, b)",
        "N,6,7,7",
        "a different number of kernel taps",
    ),
    into_transposed(
        "shift and strides",
        "a = Add(x, k) y = ConvTranspose<strides=[2,2]>(a, w, b)",
        "N,6,9,9",
        "a different number of kernel taps",
        w=(4, 6, 1, 1),
    ),
    into_transposed(
        "shift and output_padding",
        "a = Add(x, k) y = ConvTranspose<strides=[2,1], output_padding=[1,0]>(a, w, b)",
        "N,6,10,5",
        "a different number of kernel taps",
        w=(4, 6, 1, 1),
    ),
    into_transposed(
        "shift and cropping",
        "a = Add(x, k) y = ConvTranspose<pads=[1,1,1,1]>(a, w, b)",
        "N,6,3,3",
        "shift crosses a cropped border",
        w=(4, 6, 1, 1),
    ),
    gemm(
        "weight computed at run time",
        "v = Exp(x) g = Gemm(x, v) y = Mul(g, k)",
        "its weight is computed at run time",
        "4,4",
        "4,4",
        k=(4,),
    ),
    gemm(
        "C computed at run time",
        "v = Exp(x) g = Gemm(x, w, v) y = Mul(g, k)",
        "its weight is computed at run time",
        "4,4",
        "4,4",
        w=(4, 4),
        k=(4,),
    ),
    gemm(
        "C grows",
        "g = Gemm(x, w, c) y = Mul(g, k)",
        "its addend would grow from a vector to a matrix",
        w=(4, 5),
        c=(3, 1),
        k=(5,),
    ),
    gemm(
        "along the rows",
        "g = Gemm(x, w) y = Mul(g, k)",
        "behind Gemm 'g': weight 'x' is an input of the graph",
        "3,4",
        "3,5",
        w=(4, 5),
        k=(3, 1),
    ),
    into_gemm(
        "weight computed at run time",
        "v = Exp(x) m = Mul(x, k) y = Gemm(m, v)",
        "weight is computed at run time",
        "4,4",
        "4,4",
        k=(4,),
    ),
    into_gemm(
        "it is the addend",
        "m = Mul(x, k) y = Gemm(a, w, m)",
        "it is the addend of a Gemm",
        "3,5",
        w=(4, 5),
        a=(3, 4),
        k=(5,),
    ),
    into_gemm(
        "along the rows",
        "m = Mul(x, k) y = Gemm(m, w)",
        "the map varies along axis 0, the channels are axis 1",
        w=(4, 5),
        k=(3, 1),
    ),
    into_gemm(
        "C grows",
        "s = Add(x, t) y = Gemm(s, w, c)",
        "its addend would grow from a vector to a matrix",
        w=(4, 5),
        c=(3, 1),
        t=(4,),
    ),
    product(
        "matmul-after",
        "two computed operands",
        "N,4,4",
        "N,4,4",
        "v = Exp(x) g = MatMul(x, v) y = Mul(g, k)",
        "behind MatMul 'g': its weight is computed at run time",
        k=(4,),
    ),
    product(
        "matmul-after",
        "along the rows",
        "3,4",
        "3,5",
        "g = MatMul(x, w) y = Mul(g, k)",
        "the map varies along axis 0, the channels are axis 1",
        w=(4, 5),
        k=(3, 1),
    ),
    product(
        "matmul-after",
        "a vector",
        "N,4",
        "N",
        "g = MatMul(x, w) y = Mul(g, k)",
        "its weight is a vector",
        w=(4,),
        k=(1,),
    ),
    product(
        "matmul-before",
        "two computed operands",
        "N,4,4",
        "N,4,4",
        "v = Exp(x) m = Mul(v, k) y = MatMul(m, x)",
        "in front of MatMul 'y': weight 'x' is an input of the graph",
        k=(4,),
    ),
    product(
        "matmul-before",
        "along the rows",
        "3,4",
        "3,5",
        "m = Mul(x, k) y = MatMul(m, w)",
        "the map varies along axis 0, the channels are axis 1",
        w=(4, 5),
        k=(3, 1),
    ),
    product(
        "matmul-before",
        "shift and a batched weight",
        "N,3,2,4",
        "N,3,2,5",
        "s = Add(x, t) y = MatMul(s, w)",
        "from batch to batch of its weight",
        w=(3, 4, 5),
        t=(4,),
    ),
    product(
        "matmul-before",
        "shift that only moves",
        "N,T,4",
        "N,T,5",
        "s = Add(x, t) y = MatMul(s, w)",
        "as many nodes as it removes",
        w=(4, 5),
        t=(4,),
    ),
    product(
        "einsum-after",
        "another label",
        "N,3,4",
        "N,3,5",
        'g = Einsum<equation="bij,jk->bik">(x, w) y = Mul(g, k)',
        "its constant operand does not have the channels",
        w=(4, 5),
        k=(3, 1),
    ),
    product(
        "einsum-after",
        "two computed operands",
        "N,4,4",
        "N,4,4",
        'v = Exp(x) g = Einsum<equation="bij,bjk->bik">(x, v) y = Mul(g, k)',
        "its weight is computed at run time",
        k=(4,),
    ),
    product(
        "einsum-after",
        "a trace",
        "4,4",
        "4",
        'g = Einsum<equation="ii,ik->k">(x, w) y = Mul(g, k)',
        "not a product of two plain operands",
        w=(4, 4),
        k=(4,),
    ),
    product(
        "einsum-after",
        "an ellipsis",
        "N,T,4",
        "N,T,5",
        'g = Einsum<equation="...j,jk->...k">(x, w) y = Mul(g, k)',
        "not a product of two plain operands",
        w=(4, 5),
        k=(5,),
    ),
    product(
        "einsum-before",
        "another label",
        "N,3,4",
        "N,3,5",
        'm = Mul(x, k) y = Einsum<equation="bij,jk->bik">(m, w)',
        "its constant operand does not have the channels",
        w=(4, 5),
        k=(3, 1),
    ),
    product(
        "einsum-before",
        "a sum of unknown length",
        "N,T,4",
        "N,5",
        's = Add(x, t) y = Einsum<equation="bij,jk->bk">(s, w)',
        "summed over an axis of unknown size",
        w=(4, 5),
        t=(4,),
    ),
    case(
        "gather-after",
        "along the axis that is looked up",
        "(int64[5] i) => (float[5,4] y) { g = Gather(table, i) y = Mul(g, k) }",
        "along the axis that is looked up",
        table=(6, 4),
        k=(5, 1),
    ),
    case(
        "gather-after",
        "table computed at run time",
        "(float[4,5] x, int64[N] i) => (float[N,5] y) { v = Exp(x) g = Gather(v, i) y = Mul(g, k) }",
        "no rule moves it from behind Exp 'v'",
        k=(5,),
    ),
    case(
        "norm-after",
        "GroupNormalization per group",
        "(float[N,4,6] x) => (float[N,4,6] y) <float[N,4,6] a> "
        "{ a = GroupNormalization<num_groups=2>(x, s, b) y = Mul(k, a) }",
        "per group before opset 21",
        s=(2,),
        b=(2,),
        k=(4, 1),
    ),
    product(
        "norm-after",
        "LayerNormalization over two axes",
        "N,3,6",
        "N,3,6",
        "a = LayerNormalization<axis=-2>(x, s, b) y = Mul(k, a)",
        "varies along more than one axis",
        s=(3, 6),
        b=(3, 6),
        k=(6,),
    ),
    product(
        "norm-after",
        "along another axis",
        "N,3,6",
        "N,3,6",
        "a = LayerNormalization(x, s, b) y = Mul(k, a)",
        "the map varies along axis 1, the channels are axis 2",
        s=(6,),
        b=(6,),
        k=(3, 1),
    ),
]


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

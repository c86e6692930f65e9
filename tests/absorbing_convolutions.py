"""Models for the rows of ABSORB that serve Conv and ConvTranspose."""

from typing import Any

import numpy as np

from tests.parity import BFLOAT16, Array, Case, batch_norm, case, rng

NORM = "n_scale, n_bias, n_mean, n_var"
HALF = "(float16[N,4,7,7] x) => (float16[N,6,5,5] y)"


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
]


REFUSES = [
    case(
        "conv-after",
        "weight computed at run time",
        "(float[N,4,7,7] x, float[6,4,3,3] w) => (float[N,6,5,5] y) "
        f"{{ c = Conv(x, w) y = BatchNormalization(c, {NORM}) }}",
        "behind Conv 'c': operand 'w' is an input of the graph",
        **batch_norm("n", 6),
    ),
    case(
        "conv-after",
        "bias computed at run time",
        "(float[N,4,7,7] x, float[6] v) => (float[N,6,5,5] y) "
        f"{{ b = Exp(v) c = Conv(x, w, b) y = BatchNormalization(c, {NORM}) }}",
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
        **{**batch_norm("n", 6, np.float16), "n_scale": np.array([1, 1, 1e-6, 1, 1, 1], np.float16)},
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
        expected="it is not the data of the operator",
        z=(4, 4, 7, 7),
        k=(4, 1, 1),
    ),
    case(
        "conv-transpose-after",
        "weight computed at run time",
        "(float[N,4,5,5] x, float[4,6,3,3] w) => (float[N,6,7,7] y) "
        f"{{ c = ConvTranspose(x, w) y = BatchNormalization(c, {NORM}) }}",
        "operand 'w' is an input of the graph",
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
]

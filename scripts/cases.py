"""Normalizations as exporters write them, for `python -m scripts.bench lowerings`: what, at which sizes, in torch.

Each is a small model in onnx's text format with random γ and β; sizes are those of networks in use (a diffusion UNet,
AlexNet, style transfer, BERT, ConvNeXt, Llama), small ones among them, where what counts is the number of nodes.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser

GROUPED = "r = Reshape(x, rows) n = InstanceNormalization(r, one, zero) b = Reshape(n, back) g = Mul(b, w)"
CENTRED = "m = ReduceMean<axes=[{axis}]>(x) d = Sub(x, m) q = {square} v = ReduceMean<axes=[{axis}]>(q)"
SQUARED = "q = Mul(x, x) m = ReduceMean<axes=[-1]>(q) a = Add(m, e) r = Sqrt(a)"
WINDOW = (
    "q = Mul(x, x) u = Reshape(q, rows) p = Pad(u, border)"
    " a = AveragePool<kernel_shape=[5,1,1], strides=[1,1,1]>(p) b = Reshape(a, back) k = Mul(b, alpha)"
    " j = Add(k, one) f = Pow(j, beta) y = Div(x, f)"
)
Eager = Callable[[Any, dict[str, Any]], Any]
"""The same in torch: takes the module `torch`, and tensors by name."""


@dataclass(frozen=True, slots=True)
class Case:
    """A normalization as it is exported.

    Attributes:
        name: what the table calls it.
        shape: of x.
        body: the nodes, in onnx's text format, from x to y.
        weights: constants: an array, or the shape of random numbers from 0.5 to 1.5.
        inputs: shapes of further inputs.
        opset: of the default domain.
        dtype: of x, y and the weights, as onnx's text format calls it.
        eager: the same in torch; None where torch has nothing of the kind.
    """

    name: str
    shape: tuple[int, ...]
    body: str
    weights: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, tuple[int, ...]] = field(default_factory=dict)
    opset: int = 17
    dtype: str = "float"
    eager: Eager | None = None

    def inputs_from(self, rng: np.random.Generator) -> dict[str, npt.NDArray[Any]]:
        """Inputs by name, N(½, 2²)."""
        kind = np.float16 if self.dtype == "float16" else np.float32
        return {
            name: rng.normal(0.5, 2, shape).astype(kind) for name, shape in ({"x": self.shape} | self.inputs).items()
        }

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The constants by name."""
        rng = np.random.default_rng(len(self.body))
        kind = np.float16 if self.dtype == "float16" else np.float32
        return {
            name: rng.uniform(0.5, 1.5, one).astype(kind) if isinstance(one, tuple) else np.asarray(one)
            for name, one in self.weights.items()
            if re.search(rf"\b{name}\b", self.body)
        }

    def model(self) -> onnx.ModelProto:
        """The model."""

        def typed(name: str, shape: tuple[int, ...]) -> str:
            return f"{self.dtype}[{','.join(map(str, shape))}] {name}"

        parameters = ", ".join(typed(name, shape) for name, shape in ({"x": self.shape} | self.inputs).items())
        result = typed("y", self.shape)
        head = f'<ir_version: 10, opset_import: ["" : {self.opset}]>'
        model = onnx.parser.parse_model(f"{head} case ({parameters}) => ({result}) {{ {self.body} }}")
        model.graph.initializer.extend(onnx.numpy_helper.from_array(one, name) for name, one in self.arrays().items())
        return model


EPSILON = np.float32(1e-5)


def _title(name: str, shape: tuple[int, ...]) -> str:
    return f"{name} {'×'.join(map(str, shape))}"


def group_norm(shape: tuple[int, ...], groups: int = 32, silu: bool = False, op: bool = False) -> Case:
    """GroupNorm as torch's exporters write it below opset 21, or as one operator; with SiLU behind."""
    channels, tail = shape[1], " s = Sigmoid(h) y = Mul(h, s)"
    per = (channels, 1, 1)
    weights: dict[str, Any] = {"w": (channels,), "c": (channels,)}
    if op:
        body = f"h = GroupNormalization<num_groups={groups}>(x, w, c)"
    else:
        body = f"{GROUPED} h = Add(g, c)"
        weights = {"w": per, "c": per, "rows": np.array([0, groups, -1]), "back": np.array(shape)}
        weights |= {"one": np.ones(groups, np.float32), "zero": np.zeros(groups, np.float32)}

    def eager(torch: Any, at: dict[str, Any]) -> Any:
        y = torch.nn.functional.group_norm(at["x"], groups, at["w"].ravel(), at["c"].ravel())
        return torch.nn.functional.silu(y) if silu else y

    name = f"GroupNorm{' op' if op else ''}{' + SiLU' if silu else ''}"
    body = body + tail if silu else body.replace("h = ", "y = ")
    return Case(_title(name, shape), shape, body, weights, opset=21 if op else 17, eager=eager)


def instance_norm(shape: tuple[int, ...]) -> Case:
    """InstanceNorm as one operator."""
    channels = (shape[1],)
    return Case(
        _title("InstanceNorm op", shape),
        shape,
        "y = InstanceNormalization(x, w, c)",
        {"w": channels, "c": channels},
        eager=lambda torch, at: torch.nn.functional.instance_norm(at["x"], weight=at["w"], bias=at["c"]),
    )


def adain(shape: tuple[int, ...]) -> Case:
    """AdaIN: InstanceNorm, γ and β computed elsewhere."""
    batch, channels = shape[:2]
    return Case(
        _title("AdaIN", shape),
        shape,
        "n = InstanceNormalization(x, one, zero) g = Mul(n, s) y = Add(g, t)",
        {"one": np.ones(channels, np.float32), "zero": np.zeros(channels, np.float32)},
        {"s": (batch, channels, 1, 1), "t": (batch, channels, 1, 1)},
        eager=lambda torch, at: torch.nn.functional.instance_norm(at["x"]) * at["s"] + at["t"],
    )


def local_response(shape: tuple[int, ...], op: bool = False) -> Case:
    """LRN over five channels as torch's exporters write it, or as one operator."""
    batch, channels, *spatial = shape
    weights = {
        "rows": np.array([batch, 1, channels, *spatial]),
        "border": np.array([0, 0, 2, 0, 0, 0, 0, 2, 0, 0]),
        "back": np.array(shape),
        "alpha": np.float32(1e-4),
        "one": np.float32(1.0),
        "beta": np.float32(0.75),
    }
    return Case(
        _title(f"LRN{' op' if op else ''}", shape),
        shape,
        "y = LRN<size=5, alpha=0.0001>(x)" if op else WINDOW,
        {} if op else weights,
        eager=lambda torch, at: torch.nn.functional.local_response_norm(at["x"], 5),
    )


def layer_norm(shape: tuple[int, ...], spelled: str = "", residual: bool = False) -> Case:
    """LayerNorm of the last axis: the operator, or spelled as ONNX Runtime does not fuse it; behind a residual Add."""
    size = (shape[-1],)
    if spelled:
        body = f"{CENTRED.format(axis=-1, square='Mul(d, d)')} a = Add(v, e) o = Sqrt(a) {spelled} y = Add(g, c)"
    else:
        body = "y = LayerNormalization<axis=-1>(x, w, c)"
    if residual:
        body = "z = Add(x, s) y = LayerNormalization<axis=-1>(z, w, c)"

    def eager(torch: Any, at: dict[str, Any]) -> Any:
        x = at["x"] + at["s"] if residual else at["x"]
        return torch.nn.functional.layer_norm(x, size, at["w"], at["c"])

    root = "Reciprocal" if "Reciprocal" in spelled else "Div"
    name = "Add → LayerNorm" if residual else f"LayerNorm by {root}" if spelled else "LayerNorm op"
    inputs = {"s": shape} if residual else {}
    return Case(_title(name, shape), shape, body, {"w": size, "c": size, "e": EPSILON}, inputs, eager=eager)


def channels_first(shape: tuple[int, ...], turned: bool = False) -> Case:
    """LayerNorm over the channels of (N, C, H, W): nine nodes, or LayerNormalization between two Transposes."""
    channels = shape[1]
    if turned:
        there, back = "Transpose<perm=[0,2,3,1]>", "Transpose<perm=[0,3,1,2]>"
        body = f"t = {there}(x) n = LayerNormalization<axis=-1>(t, w, c) y = {back}(n)"
        weights: dict[str, Any] = {"w": (channels,), "c": (channels,)}
    else:
        spelled = CENTRED.format(axis=1, square="Pow(d, two)")
        body = f"{spelled} a = Add(v, e) o = Sqrt(a) n = Div(d, o) g = Mul(n, w) y = Add(g, c)"
        weights = {"w": (channels, 1, 1), "c": (channels, 1, 1), "e": EPSILON, "two": np.float32(2)}

    def eager(torch: Any, at: dict[str, Any]) -> Any:
        w, c = at["w"].ravel(), at["c"].ravel()
        return torch.nn.functional.layer_norm(at["x"].permute(0, 2, 3, 1), (channels,), w, c).permute(0, 3, 1, 2)

    return Case(_title(f"LayerNorm2d{' turned' if turned else ''}", shape), shape, body, weights, eager=eager)


def rms_norm(shape: tuple[int, ...], spelled: str, opset: int = 17, dtype: str = "float") -> Case:
    """RMSNorm as transformers spells it: Llama with Reciprocal, T5 with 1 ÷ Sqrt, in float16 with Casts around."""
    size = (shape[-1],)
    inverse = {"Llama": "i = Reciprocal(r)", "T5": "i = Div(one, r)"}
    weights: dict[str, Any] = {"w": size, "e": EPSILON, "one": np.float32(1)}
    if dtype == "float16":
        inner = SQUARED.replace("Mul(x, x)", "Mul(f, f)")
        body = f"f = Cast<to=1>(x) {inner} {inverse[spelled]} n = Mul(f, i) h = Cast<to=10>(n) y = Mul(w, h)"
    else:
        body = f"{SQUARED} {inverse[spelled]} n = Mul(x, i) y = Mul(w, n)"
    if opset >= 18:  # axes are an input
        body = body.replace("<axes=[-1]>(q)", "(q, last)")
        weights["last"] = np.array([-1])

    def eager(torch: Any, at: dict[str, Any]) -> Any:
        return torch.nn.functional.rms_norm(at["x"], size, at["w"], 1e-5)

    name = f"RMSNorm {spelled}{' float16' if dtype == 'float16' else ''}{' opset 23' if opset == 23 else ''}"
    return Case(_title(name, shape), shape, body, weights, opset=opset, dtype=dtype, eager=eager)


def batch_norm(shape: tuple[int, ...]) -> Case:
    """BatchNorm at inference with nothing around that takes it."""
    weights = dict.fromkeys(("w", "c", "mean", "variance"), (shape[1],))
    return Case(
        _title("BatchNorm op", shape),
        shape,
        "y = BatchNormalization(x, w, c, mean, variance)",
        weights,
        eager=lambda torch, at: torch.nn.functional.batch_norm(at["x"], at["mean"], at["variance"], at["w"], at["c"]),
    )


def cases() -> tuple[Case, ...]:
    """All cases."""
    return (
        group_norm((1, 320, 64, 64), op=True),
        group_norm((1, 320, 64, 64)),
        group_norm((1, 320, 64, 64), silu=True),
        group_norm((1, 320, 64, 64), silu=True, op=True),
        group_norm((1, 1280, 16, 16)),
        group_norm((2, 320, 64, 64)),
        group_norm((2, 320, 64, 64), op=True),
        group_norm((1, 32, 8, 8), groups=8),
        instance_norm((1, 64, 128, 128)),
        instance_norm((2, 64, 128, 128)),
        instance_norm((1, 64, 14, 14)),
        adain((1, 256, 64, 64)),
        adain((2, 256, 64, 64)),
        adain((1, 256, 8, 8)),
        local_response((1, 96, 55, 55), op=True),
        local_response((1, 96, 55, 55)),
        local_response((1, 256, 27, 27), op=True),
        local_response((2, 256, 27, 27)),
        local_response((1, 192, 7, 7)),
        layer_norm((1, 128, 768)),
        layer_norm((1, 128, 768), "i = Reciprocal(o) n = Mul(d, i) g = Mul(n, w)"),
        layer_norm((1, 128, 768), "n = Div(d, o) g = Mul(w, n)"),
        layer_norm((1, 8, 64), "n = Div(d, o) g = Mul(w, n)"),
        layer_norm((1, 128, 768), residual=True),
        channels_first((1, 96, 56, 56)),
        channels_first((1, 96, 56, 56), turned=True),
        channels_first((2, 96, 56, 56)),
        channels_first((1, 384, 14, 14)),
        channels_first((1, 384, 14, 14), turned=True),
        channels_first((1, 768, 7, 7)),
        rms_norm((1, 128, 4096), "Llama"),
        rms_norm((1, 128, 512), "T5"),
        rms_norm((1, 128, 4096), "Llama", opset=23),
        rms_norm((1, 128, 4096), "Llama", dtype="float16"),
        rms_norm((1, 128, 512), "T5", dtype="float16"),
        rms_norm((1, 1, 512), "T5"),
        batch_norm((1, 64, 112, 112)),
    )

"""Convolutions, pools and resizing in float64: the kernels of the oracle that look at space.

x is (N, C, *spatial) everywhere. Each kernel takes the node's `Call` and its inputs and
returns the tuple of its outputs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import ceil, prod
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Outputs = tuple[Array, ...]

_ALL: tuple[Any, ...] = (Ellipsis,)

BLOCK_BYTES = 64 << 20
"""How much of an unrolled input a convolution holds at a time."""


@dataclass(frozen=True, slots=True)
class Call:
    """One node as a kernel sees it.

    Attributes:
        attributes: the attributes that the node states; defaults are the kernel's own.
        opset: the version of the node's domain that the model imports.
        outputs: the number of outputs that the node names.
    """

    attributes: dict[str, Any]
    opset: int
    outputs: int = 1

    def get(self, name: str, default: Any) -> Any:
        """The attribute `name`, or `default` where the node does not state it."""
        value = self.attributes.get(name)
        return default if value is None else value


@dataclass(frozen=True, slots=True)
class Window:
    """A sliding window: all tuples have one entry for each spatial axis."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begin: tuple[int, ...]
    end: tuple[int, ...]
    size: tuple[int, ...]

    @classmethod
    def of(cls, call: Call, spatial: Sequence[int], kernel: Sequence[int]) -> "Window":
        """The window of a convolution or pool over an input of size `spatial`."""
        rank = len(spatial)
        strides = tuple(call.get("strides", (1,) * rank))
        dilations = tuple(call.get("dilations", (1,) * rank))
        pads = tuple(call.get("pads", (0,) * 2 * rank))
        auto_pad = call.get("auto_pad", "NOTSET")
        reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
        if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
            size = tuple(ceil(n / s) for n, s in zip(spatial, strides, strict=True))
            pads = _same_pads(
                auto_pad, [(o - 1) * s + r - n for o, s, r, n in zip(size, strides, reach, spatial, strict=True)]
            )
        elif auto_pad == "VALID":
            pads = (0,) * 2 * rank
        begin, end = pads[:rank], pads[rank:]
        # the runtime truncates: a window larger than the input still stands once, over what there is
        rounded = ceil if call.get("ceil_mode", 0) else int
        size = tuple(
            rounded((n + a + b - r) / s) + 1 for n, a, b, r, s in zip(spatial, begin, end, reach, strides, strict=True)
        )
        # a window that would start in the end padding is dropped
        size = tuple(
            o - 1 if call.get("ceil_mode", 0) and (o - 1) * s >= n + a else o
            for o, s, n, a in zip(size, strides, spatial, begin, strict=True)
        )
        return cls(tuple(kernel), strides, dilations, begin, end, size)

    def pad(self, x: Array, value: float) -> Array:
        """The input with its padding, long enough for the last window."""
        widths = [(0, 0), (0, 0)]
        for n, k, s, d, a, b, o in zip(
            x.shape[2:], self.kernel, self.strides, self.dilations, self.begin, self.end, self.size, strict=True
        ):
            widths.append((a, max(b, (o - 1) * s + (k - 1) * d + 1 - n - a)))
        return np.pad(x, widths, constant_values=value) if any(a or b for a, b in widths) else x

    def taps(self, padded: Array) -> Iterator[Array]:
        """For each place in the kernel what all windows see there, views of shape (N, C, *size)."""
        for place in product(*map(range, self.kernel)):
            yield padded[
                (
                    *_ALL,
                    *(
                        slice(p * d, p * d + (o - 1) * s + 1, s)
                        for p, d, o, s in zip(place, self.dilations, self.size, self.strides, strict=True)
                    ),
                )
            ]


def _same_pads(auto_pad: str, totals: Sequence[int]) -> tuple[int, ...]:
    """Padding at the beginnings, then at the ends, of `totals`; the odd element goes to the end for SAME_UPPER."""
    less = [max(total, 0) // 2 for total in totals]
    more = [max(total, 0) - part for total, part in zip(totals, less, strict=True)]
    return (*less, *more) if auto_pad == "SAME_UPPER" else (*more, *less)


def _channels(vector: Array, rank: int) -> Array:
    return vector.reshape(-1, *(1,) * (rank - 2))


def conv(call: Call, x: Array, weight: Array, bias: Array | None = None) -> Outputs:
    """Convolution as matrix products over blocks of kernel places; weight is (O, C/group, *kernel)."""
    group = call.get("group", 1)
    window = Window.of(call, x.shape[2:], weight.shape[2:])
    padded = window.pad(x, 0.0)
    batch, out, inner, places = x.shape[0], weight.shape[0], weight.shape[1], prod(window.kernel)
    positions = prod(window.size)
    matrix = weight.reshape(group, out // group, inner, places).transpose(0, 1, 3, 2)
    y = np.zeros((batch, group, out // group, positions))
    block = max(1, min(places, BLOCK_BYTES // max(1, batch * x.shape[1] * positions * 8)))
    taps = window.taps(padded)
    for first in range(0, places, block):
        count = min(block, places - first)
        columns = np.empty((batch, group, count, inner, positions))
        for place in range(count):
            columns[:, :, place] = next(taps).reshape(batch, group, inner, positions)
        part = np.ascontiguousarray(matrix[:, :, first : first + count]).reshape(group, out // group, count * inner)
        y += np.matmul(part, columns.reshape(batch, group, count * inner, positions))
    y = y.reshape(batch, out, *window.size)
    return (y if bias is None else y + _channels(bias, x.ndim),)


def conv_transpose(call: Call, x: Array, weight: Array, bias: Array | None = None) -> Outputs:
    """The transpose of a convolution; weight is (C, O/group, *kernel)."""
    group, spatial, kernel = call.get("group", 1), x.shape[2:], weight.shape[2:]
    rank = len(spatial)
    strides = call.get("strides", (1,) * rank)
    dilations = call.get("dilations", (1,) * rank)
    extra = call.get("output_padding", (0,) * rank)
    pads = tuple(call.get("pads", (0,) * 2 * rank))
    auto_pad, wanted = call.get("auto_pad", "NOTSET"), call.get("output_shape", None)
    full = [
        s * (n - 1) + e + (k - 1) * d + 1
        for s, n, e, k, d in zip(strides, spatial, extra, kernel, dilations, strict=True)
    ]
    if wanted is None and auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        wanted = [n * s for n, s in zip(spatial, strides, strict=True)]
    if wanted is not None:
        totals = [f - w for f, w in zip(full, list(wanted)[-rank:], strict=True)]
        # the standard gives the odd element to the beginning unless SAME_UPPER
        pads = _same_pads("SAME_UPPER" if auto_pad == "SAME_UPPER" else "SAME_LOWER", totals)
        full = [max(f, w) for f, w in zip(full, list(wanted)[-rank:], strict=True)]
    elif auto_pad == "VALID":
        pads = (0,) * 2 * rank
    batch, out = x.shape[0], weight.shape[1]
    y = np.zeros((batch, group, out, *full))
    columns = x.reshape(batch, group, -1, prod(spatial))
    matrix = weight.reshape(group, -1, out, *kernel)
    for place in product(*map(range, kernel)):
        part = np.matmul(matrix[(*_ALL, *place)].transpose(0, 2, 1), columns)
        target = tuple(
            slice(p * d, p * d + (n - 1) * s + 1, s)
            for p, d, n, s in zip(place, dilations, spatial, strides, strict=True)
        )
        y[(*_ALL, *target)] += part.reshape(batch, group, out, *spatial)
    y = y.reshape(batch, group * out, *full)
    y = y[(*_ALL, *(slice(a, f - b) for a, b, f in zip(pads[:rank], pads[rank:], full, strict=True)))]
    return (y if bias is None else y + _channels(bias, x.ndim),)


def _total(taps: Iterator[Array]) -> Array:
    total = next(taps).copy()
    for tap in taps:
        total += tap
    return total


def average_pool(call: Call, x: Array) -> Outputs:
    """The mean of each window; padding counts only with count_include_pad, and never past the padding itself."""
    window = Window.of(call, x.shape[2:], call.attributes["kernel_shape"])
    total = _total(window.taps(window.pad(x, 0.0)))
    ones = np.ones((1, 1, *x.shape[2:]))
    if call.get("count_include_pad", 0):
        widths = [(0, 0), (0, 0), *zip(window.begin, window.end, strict=True)]
        ones = np.pad(ones, widths, constant_values=1.0)
        whole = Window(
            window.kernel, window.strides, window.dilations, (0,) * (x.ndim - 2), (0,) * (x.ndim - 2), window.size
        )
        return (total / _total(whole.taps(whole.pad(ones, 0.0))),)
    return (total / _total(window.taps(window.pad(ones, 0.0))),)


def max_pool(call: Call, x: Array) -> Outputs:
    """The largest value of each window and, where asked for, its index in the flattened input."""
    window = Window.of(call, x.shape[2:], call.attributes["kernel_shape"])
    lowest = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
    taps = window.taps(window.pad(x, lowest))
    if call.outputs == 1:
        y = next(taps).copy()
        for tap in taps:
            np.maximum(y, tap, out=y)
        return (y,)
    spatial = x.shape[2:]
    column_major = bool(call.get("storage_order", 0))
    index = np.arange(prod(spatial)).reshape(spatial, order="F" if column_major else "C")[None, None]
    index = index + prod(spatial) * np.arange(x.shape[0] * x.shape[1]).reshape(*x.shape[:2], *(1,) * len(spatial))
    places = np.stack(list(window.taps(window.pad(index, -1))))
    values = np.stack(list(taps))
    best = values.argmax(axis=0)[None]
    return np.take_along_axis(values, best, 0)[0], np.take_along_axis(places, best, 0)[0]


def global_max_pool(call: Call, x: Array) -> Outputs:
    """The largest value over all spatial axes."""
    return (x.max(axis=tuple(range(2, x.ndim)), keepdims=True),)


def gather_elements(call: Call, x: Array, index: Array) -> Outputs:
    """One element of x along an axis for each index; along the other axes x may be longer than the indices."""
    axis = call.get("axis", 0) % x.ndim
    within = tuple(slice(None) if place == axis else slice(size) for place, size in enumerate(index.shape))
    return (np.take_along_axis(x[within], index, axis),)


def one_hot(call: Call, index: Array, depth: Array, values: Array) -> Outputs:
    """values = [off, on]: on where the new axis of `depth` places meets an index; an index beyond it is nowhere."""
    places, axis = int(np.reshape(depth, ())), call.get("axis", -1) % (index.ndim + 1)
    wrapped = np.where(index < 0, index + places, index)
    met = np.expand_dims(wrapped, axis) == np.arange(places).reshape(-1, *(1,) * (index.ndim - axis))
    return (np.where(met, values[1], values[0]),)


def lp_pool(call: Call, x: Array) -> Outputs:
    """(Σ |x|^p)^(1/p) over each window."""
    window, p = Window.of(call, x.shape[2:], call.attributes["kernel_shape"]), call.get("p", 2)
    return (sum(np.abs(tap) ** p for tap in window.taps(window.pad(x, 0.0))) ** (1.0 / p),)


def upsample(call: Call, x: Array, scales: Array | None = None) -> Outputs:
    """Upsample-7 and -9, and Resize-10: asymmetric; nearest takes the floor, or the ceiling when it shrinks."""
    factors = np.asarray(call.attributes["scales"] if scales is None else scales, np.float32)
    if call.get("mode", "nearest") == "nearest":
        options = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "simple", "mode": "nearest"}
    else:
        options = {"coordinate_transformation_mode": "asymmetric", "mode": "linear"}
    return resize(Call(options, 11), x, None, factors)


def resize(
    call: Call, x: Array, roi: Array | None = None, scales: Array | None = None, sizes: Array | None = None
) -> Outputs:
    """Resize: an interpolation matrix for each axis, applied one after the other."""
    if call.opset == 10:
        return upsample(call, x, roi)
    if call.get("antialias", 0):
        raise NotImplementedError("Resize with antialias")
    axes = [axis % x.ndim for axis in call.get("axes", range(x.ndim))]
    if sizes is not None and sizes.size:
        wanted = [int(n) for n in sizes]
        ratios = [np.float32(n) / np.float32(x.shape[axis]) for n, axis in zip(wanted, axes, strict=True)]
        policy = call.get("keep_aspect_ratio_policy", "stretch")
        if policy != "stretch":
            ratio = min(ratios) if policy == "not_larger" else max(ratios)
            ratios = [ratio] * len(axes)
            wanted = [int(np.floor(ratio * x.shape[axis] + np.float32(0.5))) for axis in axes]
    elif scales is not None:
        # sizes follow from the float32 product, as in the runtime
        ratios = [np.float32(scale) for scale in scales]
        wanted = [int(np.floor(ratio * np.float32(x.shape[axis]))) for ratio, axis in zip(ratios, axes, strict=True)]
    else:
        raise ValueError("Resize has neither scales nor sizes")
    y = x
    for place, (axis, size, ratio) in enumerate(zip(axes, wanted, ratios, strict=True)):
        if (
            size == x.shape[axis]
            and ratio == 1
            and call.get("coordinate_transformation_mode", "") != "tf_crop_and_resize"
        ):
            continue
        bounds = (0.0, 1.0) if roi is None or not roi.size else (float(roi[place]), float(roi[place + len(axes)]))
        source = _coordinates(call, x.shape[axis], size, ratio, bounds)
        y = np.moveaxis(_interpolate(call, np.moveaxis(y, axis, -1), source, float(ratio)), -1, axis)
    return (np.ascontiguousarray(y).astype(x.dtype, copy=False),)


def _coordinates(call: Call, length: int, size: int, ratio: Any, roi: tuple[float, float]) -> Array:
    """Where in the input (in elements) each of `size` outputs along an axis lies.

    What is rounded to the nearest element is computed in float32, as the runtime does: 3 / 0.6 must be 5.
    """
    exact: Any = np.float32 if call.get("mode", "nearest") == "nearest" else np.float64
    i: Array = np.arange(size).astype(exact)
    ratio = exact(ratio)
    match call.get("coordinate_transformation_mode", "half_pixel"):
        case "half_pixel":
            return np.asarray((i + 0.5) / ratio - 0.5)
        case "pytorch_half_pixel":
            return np.asarray((i + 0.5) / ratio - 0.5 if size > 1 else np.zeros_like(i))
        case "align_corners":
            return np.asarray(i * (length - 1) / (size - 1) if size > 1 else np.zeros_like(i))
        case "asymmetric":
            return np.asarray(i / ratio)
        case "tf_half_pixel_for_nn":
            return np.asarray((i + 0.5) / ratio)
        case "half_pixel_symmetric":
            return np.asarray(length / 2 * (1 - size / (ratio * length)) + (i + 0.5) / ratio - 0.5)
        case "tf_crop_and_resize":
            first, last = roi
            if size == 1:
                return np.full(1, 0.5 * (first + last) * (length - 1))
            return np.asarray(first * (length - 1) + i * (last - first) * (length - 1) / (size - 1))
        case mode:
            raise NotImplementedError(f"Resize with coordinate_transformation_mode={mode}")


def _interpolate(call: Call, x: Array, source: Array, ratio: float) -> Array:
    """Samples the last axis of x at `source`."""
    length, mode = x.shape[-1], call.get("mode", "nearest")
    if mode == "nearest":
        match call.get("nearest_mode", "round_prefer_floor"):
            case "round_prefer_floor":
                index = np.ceil(source - 0.5)
            case "round_prefer_ceil":
                index = np.floor(source + 0.5)
            case "floor":
                index = np.floor(source)
            case "ceil":
                index = np.ceil(source)
            case _:
                index = np.floor(source) if ratio >= 1 else np.ceil(source)
        y = x[..., np.clip(index, 0, length - 1).astype(np.int64)]
    else:
        base = np.floor(source)
        t = source - base
        if mode == "cubic":
            a = float(call.get("cubic_coeff_a", -0.75))
            offsets, weights = range(-1, 3), _cubic(t, a)
        else:
            offsets, weights = range(2), np.stack([1 - t, t])
        places = np.stack([base + offset for offset in offsets]).astype(np.int64)
        if call.get("exclude_outside", 0):
            weights = np.where((places < 0) | (places >= length), 0.0, weights)
            weights = weights / weights.sum(axis=0)
        matrix = np.zeros((length, source.size))
        columns = np.broadcast_to(np.arange(source.size), places.shape)
        np.add.at(matrix, (np.clip(places, 0, length - 1), columns), weights)
        y = x @ matrix
    if call.get("coordinate_transformation_mode", "") == "tf_crop_and_resize":
        outside = (source < 0) | (source > length - 1)
        y = np.where(outside, float(call.get("extrapolation_value", 0.0)), y)
    return y


def _cubic(t: Array, a: float) -> Array:
    """The four weights of cubic convolution (Keys, 1981) at a fraction t behind the second point."""

    def near(d: Array) -> Array:
        return ((a + 2) * d - (a + 3)) * d * d + 1

    def far(d: Array) -> Array:
        return ((a * d - 5 * a) * d + 8 * a) * d - 4 * a

    return np.stack([far(t + 1), near(t), near(1 - t), far(2 - t)])


def pad(
    call: Call, x: Array, pads: Array | None = None, value: Array | None = None, axes: Array | None = None
) -> Outputs:
    """Pad of all opsets; a negative number crops."""
    amounts = np.asarray(call.attributes["pads"] if pads is None else pads, np.int64).reshape(2, -1).T
    places = range(x.ndim) if axes is None else [int(axis) % x.ndim for axis in axes]
    margins = np.zeros((x.ndim, 2), np.int64)
    margins[list(places)] = amounts
    cropped = x[
        tuple(slice(max(-low, 0), size - max(-high, 0)) for (low, high), size in zip(margins, x.shape, strict=True))
    ]
    mode = str(call.get("mode", "constant"))
    if mode != "constant":
        return (np.pad(cropped, np.maximum(margins, 0), mode=mode),)  # type: ignore[call-overload]  # checked by numpy
    number = call.get("value", 0.0) if value is None or not value.size else value.ravel()[0]
    return (np.pad(cropped, np.maximum(margins, 0), constant_values=number).astype(x.dtype, copy=False),)

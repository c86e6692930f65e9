"""LSTM and GRU in one or two directions, STFT: the kernels of the oracle that look at time, in float64."""

from collections.abc import Callable
from typing import Any

import numpy as np

from normfuse.kernels_spatial import Array, Call, Outputs


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(−x)), which does not overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * x))


_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "sigmoid": sigmoid,
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0.0),
}


def _recurrent(call: Call, x: Array, lengths: Array | None, directions: int, state: list[Array], step: Any) -> Outputs:
    """Runs `step(direction, x_t, state) -> state` over time; returns Y and the last states, (D, N, H) each."""
    time, batch = x.shape[:2]
    valid = np.full(batch, time) if lengths is None else np.asarray(lengths)
    backward = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[call.get("direction", "forward")]
    y = np.zeros((time, directions, *state[0].shape[1:]))
    finals: list[list[Array]] = []
    for direction, flip in enumerate(backward):
        current = [part[direction] for part in state]
        for t in reversed(range(time)) if flip else range(time):
            alive = (t < valid)[:, None]
            current = [
                np.where(alive, new, old) for new, old in zip(step(direction, x[t], current), current, strict=True)
            ]
            y[t, direction] = np.where(alive, current[0], 0.0)
        finals.append(current)
    last = [np.stack(parts) for parts in zip(*finals, strict=True)]
    if call.get("layout", 0):
        y, last = y.transpose(2, 0, 1, 3), [part.swapaxes(0, 1) for part in last]
    return (y, *last)


def _gates(call: Call, defaults: tuple[str, ...], directions: int) -> list[list[Callable[[Array], Array]]]:
    names = [name.lower() for name in call.get("activations", defaults * directions)]
    unknown = sorted(set(names) - set(_ACTIVATIONS))
    if unknown or call.get("clip", 0.0):
        raise NotImplementedError(f"a recurrent layer with {unknown or 'clip'}")
    width = len(defaults)
    return [[_ACTIVATIONS[name] for name in names[d * width : (d + 1) * width]] for d in range(directions)]


def _initial(value: Array | None, shape: tuple[int, ...], layout: int) -> Array:
    if value is None:
        return np.zeros(shape)
    return value.swapaxes(0, 1) if layout else value


def lstm(
    call: Call,
    x: Array,
    weight: Array,
    recurrence: Array,
    bias: Array | None = None,
    lengths: Array | None = None,
    hidden: Array | None = None,
    cell: Array | None = None,
    peephole: Array | None = None,
) -> Outputs:
    """LSTM in one or two directions; gates in the order i, o, f, c."""
    layout = call.get("layout", 0)
    x = x.swapaxes(0, 1) if layout else x
    directions, _, size = recurrence.shape
    acts = _gates(call, ("sigmoid", "tanh", "tanh"), directions)
    bias = np.zeros((directions, 8 * size)) if bias is None else bias
    peephole = np.zeros((directions, 3 * size)) if peephole is None else peephole
    coupled = call.get("input_forget", 0)
    shape = (directions, x.shape[1], size)

    def step(d: int, now: Array, state: list[Array]) -> list[Array]:
        h, c = state
        f_act, g_act, h_act = acts[d]
        p_i, p_o, p_f = np.split(peephole[d], 3)
        both = now @ weight[d].T + h @ recurrence[d].T + bias[d][: 4 * size] + bias[d][4 * size :]
        i, o, f, g = np.split(both, 4, axis=-1)
        i = f_act(i + p_i * c)
        f = 1.0 - i if coupled else f_act(f + p_f * c)
        c = f * c + i * g_act(g)
        return [f_act(o + p_o * c) * h_act(c), c]

    state = [_initial(hidden, shape, layout), _initial(cell, shape, layout)]
    return _recurrent(call, x, lengths, directions, state, step)[: call.outputs]


def gru(
    call: Call,
    x: Array,
    weight: Array,
    recurrence: Array,
    bias: Array | None = None,
    lengths: Array | None = None,
    hidden: Array | None = None,
) -> Outputs:
    """GRU in one or two directions; gates in the order z, r, h."""
    layout = call.get("layout", 0)
    x = x.swapaxes(0, 1) if layout else x
    directions, _, size = recurrence.shape
    acts = _gates(call, ("sigmoid", "tanh"), directions)
    bias = np.zeros((directions, 6 * size)) if bias is None else bias
    behind = call.get("linear_before_reset", 0)

    def step(d: int, now: Array, state: list[Array]) -> list[Array]:
        (h,) = state
        f_act, g_act = acts[d]
        w_b, r_b = np.split(bias[d], 2)
        a_z, a_r, a_h = np.split(now @ weight[d].T + w_b, 3, axis=-1)
        r_z, r_r, r_h = np.split(recurrence[d], 3)
        b_z, b_r, b_h = np.split(r_b, 3)
        z, r = f_act(a_z + h @ r_z.T + b_z), f_act(a_r + h @ r_r.T + b_r)
        new = g_act(a_h + (r * (h @ r_h.T + b_h) if behind else (r * h) @ r_h.T + b_h))
        return [(1.0 - z) * new + z * h]

    state = [_initial(hidden, (directions, x.shape[1], size), layout)]
    return _recurrent(call, x, lengths, directions, state, step)[: call.outputs]


def stft(call: Call, x: Array, step: Array, window: Array | None = None, length: Array | None = None) -> Outputs:
    """STFT: the spectrum of each frame of a signal (N, T), (N, T, 1) or (N, T, 2), as (N, frames, bins, 2)."""
    size = int(np.asarray(length).reshape(())) if length is not None else x.shape[1] if window is None else window.size
    signal = x[..., 0] + 1j * x[..., 1] if x.ndim == 3 and x.shape[2] == 2 else x.reshape(x.shape[:2])
    frames = np.lib.stride_tricks.sliding_window_view(signal, size, axis=1)[:, :: int(np.asarray(step).reshape(()))]
    spectrum = np.fft.fft(frames if window is None else frames * window, axis=-1)
    bins = size // 2 + 1 if call.get("onesided", 1) else size
    return (np.stack([spectrum[..., :bins].real, spectrum[..., :bins].imag], axis=-1),)

"""What `normfuse.calibrate` finds on our own nets: `python -m scripts.calibration [NET …]`.

For each net, exported with its BatchNormalizations kept and calibrated on uneven batches:

- against torch.optim.swa_utils.update_bn with momentum=None: the largest |ΔE[x]|/σ and |ΔVar[x]|/Var[x], σ that of the
  layer's channel with the largest variance, as float32 rounds sums by their largest terms;
- whether three shards that are merged, a calibration that is interrupted and resumed, and a cluster of dask.distributed
  (where it is installed) end in the same bits as one process;
- how far the outputs are from the right ones, ‖y − y_right‖/‖y_right‖ on batches that it has not seen: with statistics
  that were scrambled (permuted and scaled), and repaired from other data than the right ones were estimated from;
- how many BatchNormalizations `optimize` leaves of the result, which passes its proof.

It ends with 1 where update_bn is further off than `LIMIT`, bits differ or a proof fails.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

import normfuse
from models import MODELS
from models.entry import Entry
from models.export import export
from normfuse.batches import Shard, batches_of
from normfuse.calibration import calibrate, concluded
from normfuse.calibration_shards import measure_shard, merge_parts
from normfuse.model import load, serialize
from normfuse.runtime import session

NETS = ("preactivation-resnet", "dense-net", "unet", "mobile-net", "mlp", "conv-1d", "conv-3d")

SIZES = (16, 16, 16, 9)
"""Of the batches, 16 times that where samples have no spatial axes; the last one is smaller."""

LIMIT = 1e-5
"""float32 rounds in each layer, 20 of them one behind the other in the deepest net."""

Array = np.ndarray[Any, Any]
Data = list[dict[str, Array]]


@dataclass(frozen=True, slots=True)
class Row:
    """What was found on one net.

    Attributes:
        name: the net.
        norms: BatchNormalizations that were calibrated.
        passes: one for each depth level.
        mean: the largest |ΔE[x]|/σ against update_bn.
        variance: the largest |ΔVar[x]|/Var[x] against it.
        same: by what else it was run, whether it ended in the same bits.
        scrambled: the error of the outputs with scrambled statistics.
        levels: the error once they were repaired, level by level.
        batch: the same in one pass.
        left: BatchNormalizations in the optimized result.
        proved: whether that passed its proof.
    """

    name: str
    norms: int
    passes: int
    mean: float
    variance: float
    same: dict[str, bool]
    scrambled: float
    levels: float
    batch: float
    left: int
    proved: bool

    @property
    def is_right(self) -> bool:
        """Whether all is as it should be."""
        repaired = max(self.levels, self.batch) < self.scrambled / 2
        return max(self.mean, self.variance) <= LIMIT and all(self.same.values()) and repaired and self.proved


def look(entry: Entry) -> Row:
    """Calibrates one net in every way."""
    model, module = export(entry, dynamic_batch=True), entry.module()
    data = drawn(entry, 0)
    levels = calibrate(model, data)
    mean, variance = _update_bn_distance(model, module, data)
    right: onnx.ModelProto = calibrate(model, [one for seed in (1, 2, 3) for one in drawn(entry, seed)]).model
    scrambled = _scrambled(right)
    by_levels, by_batch = (calibrate(scrambled, data, flow=flow).model for flow in ("levels", "batch"))
    unseen = drawn(entry, 4)
    same = {"shards": levels.model == _by_shards(model, data), "resumed": levels.model == _resumed(model, data)}
    if find_spec("distributed") is not None:
        same["dask"] = levels.model == calibrate(model, data, scheduler="local").model
    optimized = normfuse.optimize(levels.model)
    parity = optimized.report.parity
    return Row(
        entry.name,
        len(levels.report.layers),
        levels.report.passes,
        mean,
        variance,
        same,
        _distance(scrambled, right, unseen),
        _distance(by_levels, right, unseen),
        _distance(by_batch, right, unseen),
        sum(node.op_type == "BatchNormalization" for node in optimized.model.graph.node),
        parity is not None and parity.passed,
    )


def drawn(entry: Entry, seed: int) -> Data:
    """Batches of N(0.5, 1.7²), of one seed."""
    generator = np.random.default_rng(seed)
    sample = entry.shapes[0][1:]
    shapes = [(size if len(sample) > 1 else 16 * size, *sample) for size in SIZES]
    return [{"x0": generator.normal(0.5, 1.7, shape).astype(np.float32)} for shape in shapes]


def _update_bn_distance(model: onnx.ModelProto, module: nn.Module, data: Data) -> tuple[float, float]:
    """How far the statistics of one pass are from those of update_bn: of E[x] in σ, of Var[x] relative."""
    norms = [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    arrays = {one.name: onnx.numpy_helper.to_array(one).tobytes() for one in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    by_mean = {arrays[node.input[3]]: node.name for node in nodes}
    names = [by_mean[_array(part.running_mean).tobytes()] for part in norms]
    found = {layer.name: layer.new for layer in calibrate(model, data, flow="batch").report.layers}
    for part in norms:
        part.momentum = None
    update_bn([torch.from_numpy(batch["x0"]) for batch in data], module.train())
    means, variances = [], []
    for name, part in zip(names, norms, strict=True):
        mean, variance = _array(part.running_mean), _array(part.running_var)
        means.append(np.abs(found[name].mean - mean).max() / np.sqrt(variance.max()))
        variances.append(np.abs(found[name].variance / variance - 1).max())
    return float(max(means)), float(max(variances))


def _array(tensor: Tensor | None) -> Array:
    assert tensor is not None
    array: Array = tensor.numpy()
    return array


def _scrambled(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with the statistics of each layer permuted, and scaled by factors of 0.4 to 2.5."""
    copy, generator = onnx.ModelProto(), np.random.default_rng(5)
    copy.CopyFrom(model)
    names = {name for node in copy.graph.node if node.op_type == "BatchNormalization" for name in node.input[3:5]}
    for tensor in copy.graph.initializer:
        if tensor.name in names:
            array = generator.permutation(onnx.numpy_helper.to_array(tensor))
            scaled = array * np.exp(generator.uniform(-0.9, 0.9, array.shape)).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(scaled, tensor.name))
    return copy


def _distance(model: onnx.ModelProto, right: onnx.ModelProto, data: Data) -> float:
    """‖y − y_right‖/‖y_right‖ over all outputs and batches."""
    first, second = (session(serialize(load(one)), "disabled") for one in (model, right))
    pairs = [(first.run(batch), second.run(batch)) for batch in data]
    off = sum(float(np.sum((one[name] - other[name]) ** 2.0)) for one, other in pairs for name in other)
    size = sum(float(np.sum(other[name] ** 2.0)) for _, other in pairs for name in other)
    return float(np.sqrt(off / size))


def _by_shards(model: onnx.ModelProto, data: Data) -> onnx.ModelProto:
    """The result of three shards for each pass, which go through files."""
    original, after = load(model), None
    with tempfile.TemporaryDirectory() as folder:
        while True:
            parts = []
            for index in (1, 2, 0):
                parts.append(str(Path(folder, f"{index}.npz")))
                measure_shard(original, batches_of(data, original), Shard(index, 3), after=after).save(parts[-1])
            state = merge_parts(original, parts)
            if state.number == state.passes:
                result: onnx.ModelProto = onnx.ModelProto.FromString(serialize(concluded(original, state, [])[1]))
                return result
            after = str(Path(folder, "state.npz"))
            state.save(after)


class _Interrupted:
    """Batches; after so many of all that are read, the user presses Ctrl-C."""

    def __init__(self, data: Data, left: int) -> None:
        self._data, self._left = data, left

    def __iter__(self) -> Iterator[dict[str, Array]]:
        for batch in self._data:
            if not self._left:
                raise KeyboardInterrupt
            self._left -= 1
            yield batch


def _resumed(model: onnx.ModelProto, data: Data) -> onnx.ModelProto:
    """The result of a calibration that is interrupted in its second pass, and again."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "checkpoint.npz")
        for left in (len(data) + 2, 2 * len(data) + 3):
            with suppress(KeyboardInterrupt):
                calibrate(model, _Interrupted(data, left), checkpoint=path)
        result: onnx.ModelProto = calibrate(model, data, checkpoint=path).model
        return result


def main(arguments: Sequence[str] = ()) -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m scripts.calibration", description=__doc__)
    parser.add_argument("nets", nargs="*", help=f"some of {', '.join(NETS)}; all where there are none")
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.nets) - set(NETS)):
        parser.error(f"unknown net {', '.join(unknown)}; choose from {', '.join(NETS)}")
    print(
        "| net | norms, passes | update_bn: ΔE/σ | ΔVar/Var | same bits | scrambled | repaired | in one pass | left |"
    )
    print("| --- | ---: | ---: | ---: | --- | ---: | ---: | ---: | ---: |")
    status = 0
    for name in options.nets or NETS:
        row = look(MODELS[name])
        same = ", ".join(f"{what}{'' if is_same else ': NO'}" for what, is_same in row.same.items())
        left = f"{row.left}{'' if row.proved else ' NO PROOF'}"
        print(
            f"| {row.name} | {row.norms}, {row.passes} | {row.mean:.1e} | {row.variance:.1e} | {same} | "
            f"{row.scrambled:.2%} | {row.levels:.2%} | {row.batch:.2%} | {left} |",
            flush=True,
        )
        status |= not row.is_right
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

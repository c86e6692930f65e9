"""How far a calibration has come, as a value and as a file: `State`.

A file is a .npz archive: a header in JSON, the statistics of the layers that are done, and the exact sums of those that
are being measured. It names the model, the settings and the batches by their SHA-256, and is of use for these alone.

    checkpoint    pass k, some of its batches
    part          pass k, all batches of one shard
    merged        pass k + 1, none of its batches
"""

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from normfuse.batch_digest import Digest
from normfuse.batches import WHOLE, Shard
from normfuse.errors import ModelError, NormfuseError
from normfuse.measuring import FLOWS, Flow
from normfuse.population import ESTIMATORS, Estimator, Moments, Statistics, Sums
from normfuse.report import Refusal
from normfuse.runtime import Array
from normfuse.serialization import SMALLEST_EXTERNAL, to_proto
from normfuse.sparse import SparseTensor
from normfuse.storage import to_bytes, validate_place, write
from normfuse.stored import Stored, find
from normfuse.superaccumulator import DIGITS, Superaccumulator
from normfuse.tensors import constants, in_memory, place

FORMAT = "normfuse calibration 2"

Plan = list[list[Stored]]
"""What is measured in each pass."""


def check_options(estimator: str, flow: str) -> None:
    """Checks that an estimator and a flow are known.

    Raises:
        NormfuseError: one is not.
    """
    for what, chosen, choices in (("estimator", estimator, ESTIMATORS), ("flow", flow, FLOWS)):
        if chosen not in choices:
            raise NormfuseError(f"there is no {what} {chosen!r}; choose one of {', '.join(choices)}")


def planned(model: ir.Model, estimator: str, flow: str) -> tuple[Plan, list[Refusal]]:
    """Which BatchNormalizations are measured in which pass, and who is not measured.

    Raises:
        NormfuseError: there is none to measure, or an option is not known.
    """
    check_options(estimator, flow)
    found, refusals = find(model)
    if not found and refusals:
        more = f" (and {len(refusals) - 1} more)" if len(refusals) > 1 else ""
        raise NormfuseError(
            f"no BatchNormalization can be calibrated: {refusals[0].node!r}: {refusals[0].reason}{more}"
        )
    if not found:
        raise NormfuseError(
            "the model has no BatchNormalization: what is folded into weights, or written as a scale and a shift, "
            "cannot be estimated anew; export it with its BatchNormalizations kept, calibrate that, then optimize it"
        )
    if flow == "batch":
        return [found], refusals
    levels = sorted({stored.level for stored in found})
    return [[stored for stored in found if stored.level == level] for level in levels], refusals


@dataclass(slots=True)
class State:
    """How far a calibration has come.

    Attributes:
        model: SHA-256 of the model.
        estimator: `mean` or `pooled`.
        flow: `levels` or `batch`.
        passes: how many there are.
        number: the pass that is under way, from 0; `passes` where all are done.
        shard: whose batches are measured.
        done: how many of them have been, in this pass.
        complete: whether that was all of them.
        digest: of those, as `Digest` has it.
        content: of those, as `Digest` has it.
        first: digests of all batches in the first pass, by shard.
        before: `content` of all batches in the first pass.
        batches: how many there were in the pass before, all shards together.
        data: the fingerprint of the batches; "" where they have none.
        total: how many there are for all shards, where that is known before they are read; else 0.
        known: the statistics of the passes that are done.
        sums: those of the pass that is under way.
        consistent: False while a batch is being added.
    """

    model: str
    estimator: Estimator
    flow: Flow
    passes: int
    number: int = 0
    shard: Shard = WHOLE
    done: int = 0
    complete: bool = False
    digest: str = field(default_factory=lambda: str(Digest()))
    content: str = field(default_factory=lambda: Digest().content)
    first: tuple[str, ...] = ()
    before: str = ""
    batches: int = 0
    data: str = ""
    total: int = 0
    known: dict[Stored, Statistics] = field(default_factory=dict)
    sums: dict[Stored, Sums] = field(default_factory=dict)
    consistent: bool = True

    def begin(self, level: Sequence[Stored]) -> None:
        """Begins a pass that measures some layers."""
        none = Digest()
        self.done, self.complete, self.digest, self.content = 0, False, str(none), none.content
        self.sums = {stored: Sums(self.estimator, stored.channels) for stored in level}

    def add(self, moments: Mapping[Stored, Moments], digest: Digest) -> None:
        """Adds a batch of the shard, and takes over the digest of all that it has seen."""
        self.consistent = False
        for stored, one in moments.items():
            self.sums[stored].add(one)
        self.done += 1
        self.digest, self.content = str(digest), digest.content
        self.consistent = True

    def save(self, path: str) -> None:
        """Writes the state to a file, whole or not at all.

        Raises:
            NormfuseError: the file cannot be written.
        """
        header = {
            "format": FORMAT,
            "model": self.model,
            "estimator": self.estimator,
            "flow": self.flow,
            "passes": self.passes,
            "number": self.number,
            "shard": [self.shard.index, self.shard.count],
            "done": self.done,
            "complete": self.complete,
            "digest": self.digest,
            "content": self.content,
            "first": self.first,
            "before": self.before,
            "batches": self.batches,
            "data": self.data,
            "total": self.total,
            "known": [stored.index for stored in self.known],
            "sums": {stored.index: [one.batches, one.count] for stored, one in self.sums.items()},
        }
        arrays: dict[str, Array] = {"header": np.frombuffer(json.dumps(header).encode(), np.uint8)}
        for stored, statistics in self.known.items():
            for what in _STATISTICS:
                vector = getattr(statistics, what)
                arrays |= {} if vector is None else {f"{what} {stored.index}": vector}
        for stored, sums in self.sums.items():
            arrays |= {f"{what} {stored.index}": getattr(sums, what).digits for what in _SUMS}
        content = io.BytesIO()
        np.savez_compressed(content, allow_pickle=False, **arrays)
        write([(path, lambda file: file.write(content.getvalue()))])


def load_state(path: str, model: ir.Model, digest: str) -> State:
    """Reads a state that was written for a model.

    Args:
        path: the file.
        model: the model.
        digest: its SHA-256, from `digest_of`.

    Raises:
        NormfuseError: it cannot be read, or belongs to another model or another normfuse.
    """
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = dict(archive)
        header = json.loads(arrays["header"].tobytes())
        if header["format"] != FORMAT:
            raise NormfuseError(f"{path} was written by another version of normfuse; begin anew without it")
        if header["model"] != digest:
            raise NormfuseError(f"{path} belongs to another model; give that, or another file")
        return _state(header, arrays, planned(model, header["estimator"], header["flow"])[0])
    except OSError as error:
        raise NormfuseError(f"cannot read {path}: {error.strerror or error}; check the path") from error
    except (AttributeError, EOFError, IndexError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise NormfuseError(f"{path} holds no state of a calibration; begin anew without it") from error


def _state(header: dict[str, Any], arrays: Mapping[str, Any], plan: Plan) -> State:
    """The state in a file.

    Raises:
        KeyError, TypeError, ValueError: it is none.
    """
    by_index = {stored.index: stored for level in plan for stored in level}
    index, count = header["shard"]
    state = State(
        header["model"],
        header["estimator"],
        header["flow"],
        int(header["passes"]),
        int(header["number"]),
        Shard(int(index), int(count)),
        int(header["done"]),
        bool(header["complete"]),
        str(header["digest"]),
        f"{int(header['content'], 16):064x}",
        tuple(map(str, header["first"])),
        str(header["before"]),
        int(header["batches"]),
        str(header["data"]),
        int(header["total"]),
    )
    if state.passes != len(plan):
        raise ValueError("it has another number of passes")
    for key in header["known"]:
        stored = by_index[key]
        names = [what for what in _STATISTICS if what != "missing" or f"{what} {key}" in arrays]
        vectors = [_checked(arrays[f"{what} {key}"], np.float64, (stored.channels,)) for what in names]
        state.known[stored] = Statistics(*vectors)
    for text, (batches, elements) in header["sums"].items():
        stored = by_index[int(text)]
        sums = Sums(state.estimator, stored.channels, int(batches), int(elements))
        for what in _SUMS:
            digits = _checked(arrays[f"{what} {text}"], np.int64, (stored.channels, DIGITS))
            setattr(sums, what, Superaccumulator(stored.channels, digits))
        state.sums[stored] = sums
    done = [stored for level in plan[: state.number] for stored in level]
    if state.known.keys() != set(done) or state.sums.keys() != set(*plan[state.number : state.number + 1]):
        raise ValueError("it has not the layers of its pass")
    return state


_SUMS = ("first", "second", "third")
_STATISTICS = ("mean", "variance", "missing")


def _checked(array: Any, dtype: Any, shape: tuple[int, ...]) -> Any:
    if array.dtype != dtype or array.shape != shape:
        raise ValueError(f"an array of {array.dtype} {array.shape} where {np.dtype(dtype)} {shape} should be")
    return array


def digest_of(model: ir.Model) -> str:
    """The SHA-256 of a model, wherever its weights lie.

    Raises:
        ModelError: it cannot be written as ONNX.
    """
    found = hashlib.sha256()
    stand_ins: dict[ir.Value, ir.TensorProtocol] = {}
    apart: list[ir.TensorProtocol] = []
    for value, tensor in constants(model):
        if tensor.nbytes >= SMALLEST_EXTERNAL and not isinstance(tensor, SparseTensor | ir.StringTensor):
            stand_ins[value] = place(tensor, "weights", 0)
            apart.append(tensor)
        elif isinstance(tensor, ir.ExternalTensor):
            stand_ins[value] = in_memory(tensor)
    proto = to_bytes(to_proto(model, stand_ins))
    if proto is None:
        raise ModelError("the model is larger than 2 GiB without its weights, more than protobuf can hold; split it")
    found.update(proto)
    for tensor in apart:
        found.update(tensor.tobytes())
    return found.hexdigest()


def require_place(path: str) -> None:
    """Makes sure that a state can be written to a path.

    Raises:
        NormfuseError: it cannot, or that is a model.
    """
    validate_place(path)
    if os.path.splitext(path)[1] == ".onnx":
        raise NormfuseError(f"{path} is the name of a model, and what is written there is none yet; end it with .npz")

"""What ONNX Runtime makes of a model at ORT_ENABLE_ALL, by the file that it writes, and how long each node takes.

Names change on the way. A fused node gets a new name, but writes the value that the last node of those fused wrote; a
node in the blocked layout writes a new value, and its name is that of the old one with `_nchwc` behind (`_bn_nchwc`
where it was a BatchNormalization); the operators of a function body that was expanded have no names. So each node is
known by the values of the model that it writes. To time it, the nodes of the file are given names that are unique, and
it is run at ORT_DISABLE_ALL: the same kernels in the same order.
"""

import json
import os
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import onnx
import onnx_ir as ir

from normfuse.errors import TargetError
from normfuse.runtime import Array, session

if TYPE_CHECKING:
    from normfuse.runtime import Session

BLOCKED = "com.microsoft.nchwc"
"""The domain of operators in the blocked convolution layout."""

_BLOCKED_SUFFIX = "_nchwc"
_SCALES = ("_bn", "_mul")
"""What stands before that suffix where a BatchNormalization or a Mul has become a depthwise convolution."""

_RUNS = 10
_SECONDS = 2.0


@dataclass(eq=False, slots=True)
class Kernel:
    """A node as ONNX Runtime runs it.

    Attributes:
        name: unique.
        operator: its type.
        domain: its domain.
        own: the name that ONNX Runtime left it; that of a node of the model where it was not fused.
        inputs: values it reads.
        outputs: values it writes.
        writes: values of the model that it writes; those of `outputs`, and for blocked nodes the value they stand for.
        inner: whether it stands in a subgraph, whose time is part of that of the node around it.
        scales: whether it is a convolution that only scales and shifts each channel: what a BatchNormalization behind a
            blocked node becomes.
        seconds: per run; None before it was timed.
    """

    name: str
    operator: str
    domain: str
    own: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    writes: tuple[str, ...]
    inner: bool
    scales: bool = False
    seconds: float | None = None


@dataclass(slots=True)
class Executed:
    """A model as ONNX Runtime runs it.

    Attributes:
        kernels: the nodes, those of subgraphs included.
        outputs: the outputs of the graph.
    """

    kernels: list[Kernel]
    outputs: tuple[str, ...]
    writers: dict[str, Kernel] = field(default_factory=dict)
    readers: dict[str, list[Kernel]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        for kernel in self.kernels:
            for value in (*kernel.outputs, *kernel.writes):
                if kernel.operator != "ReorderOutput" or value not in self.writers:
                    self.writers[value] = kernel
            for value in dict.fromkeys(kernel.inputs):
                self.readers[value].append(kernel)

    @property
    def seconds(self) -> float:
        """Seconds that all nodes together take in one run, those in subgraphs as part of the node around them."""
        return sum(kernel.seconds or 0.0 for kernel in self.kernels if not kernel.inner)

    def count(self, operator: str) -> int:
        """How many nodes there are of a type."""
        return sum(kernel.operator == operator for kernel in self.kernels)


def execute(
    model: ir.Model, name: str, *, threads: int | None = None, feed: Mapping[str, Array] | None = None
) -> Executed:
    """Asks ONNX Runtime what it makes of a model, and times each node where inputs are given.

    Args:
        model: the model; its nodes should have names that are unique.
        name: what errors call it.
        threads: intra-op threads; all processors by default.
        feed: inputs to time it with; None leaves the times out.

    Raises:
        TargetError: ONNX Runtime is missing, or cannot load or run the model.
    """
    with tempfile.TemporaryDirectory(prefix="normfuse-") as folder:
        path = os.path.join(folder, "executed.onnx")
        session(_payload(model, folder), "enabled", threads=threads, name=name, written=path)
        proto = onnx.load(path, load_external_data=False)
        kernels = [_kernel(node, index, inner) for index, (node, inner) in enumerate(_nodes(proto.graph))]
        executed = Executed(kernels, tuple(value.name for value in proto.graph.output))
        if feed is not None:
            for kernel, (node, _) in zip(kernels, _nodes(proto.graph), strict=True):
                node.name = kernel.name
            # Initializers that were listed as inputs stay there when ONNX Runtime has used them up.
            fed = [value for value in proto.graph.input if value.name in feed]
            del proto.graph.input[:]
            proto.graph.input.extend(fed)
            with open(path, "wb") as file:
                file.write(proto.SerializeToString())
            prefix = os.path.join(folder, "profile")
            loaded = session(path, "disabled", threads=threads, name=name, proves=False, profile=prefix)
            seconds = _profile(loaded, feed)
            for kernel in kernels:
                kernel.seconds = seconds.get(kernel.name, 0.0)
        return executed


def _payload(model: ir.Model, folder: str) -> str:
    """The model in a file, with its large constants beside it: so no more than it is held in memory."""
    from normfuse.serialization import write_external

    path = os.path.join(folder, "model.onnx")
    write_external(model, path)
    return path


def _nodes(graph: onnx.GraphProto, inner: bool = False) -> Iterator[tuple[onnx.NodeProto, bool]]:
    for node in graph.node:
        yield node, inner
        for attribute in node.attribute:
            for subgraph in (attribute.g, *attribute.graphs):
                yield from _nodes(subgraph, True)


def _kernel(node: onnx.NodeProto, index: int, inner: bool) -> Kernel:
    outputs = tuple(node.output)
    stands_for: tuple[str, ...] = ()
    scales = False
    if node.domain == BLOCKED and node.name.endswith(_BLOCKED_SUFFIX):
        name = node.name.removesuffix(_BLOCKED_SUFFIX)
        scaled = next((name.removesuffix(suffix) for suffix in _SCALES if name.endswith(suffix)), "")
        stands_for = (name, scaled) if scaled else (name,)
        scales = node.op_type == "Conv" and bool(scaled)
    return Kernel(
        f"{node.op_type}#{index}",
        node.op_type,
        node.domain,
        node.name,
        tuple(filter(None, node.input)),
        tuple(filter(None, outputs)),
        stands_for or tuple(filter(None, outputs)),
        inner,
        scales,
    )


def _profile(loaded: "Session", feed: Mapping[str, Array]) -> dict[str, float]:
    """Seconds per run of each node by name; the first run, which finds cold caches, does not count.

    Raises:
        TargetError: the model does not run.
    """
    import time

    runs, start = 0, time.perf_counter()
    while runs < 1 + _RUNS and (runs < 2 or time.perf_counter() - start < _SECONDS):
        loaded.run(feed)
        runs += 1
    path = loaded.end_profile()
    try:
        with open(path, encoding="utf-8") as file:
            events = json.load(file)
    except (OSError, ValueError) as error:
        raise TargetError(f"{loaded.name}: the profile of ONNX Runtime cannot be read: {error}") from error
    begins = sorted(event["ts"] for event in events if event["name"] == "model_run")
    if len(begins) < runs:
        raise TargetError(f"{loaded.name}: the profile of ONNX Runtime holds {len(begins)} of {runs} runs")
    total: Counter[str] = Counter()
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time") and event["ts"] >= begins[1]:
            total[event["name"].removesuffix("_kernel_time")] += event["dur"]
    return {name: microseconds * 1e-6 / (runs - 1) for name, microseconds in total.items()}

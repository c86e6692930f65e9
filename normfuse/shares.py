"""How much of a model's time its normalizations take, in ONNX Runtime at ORT_ENABLE_ALL.

    share = Σ seconds of the nodes it runs as / Σ seconds of all nodes

What a normalization runs as is found by walking back from the node that writes its result to what was computed before
it, over nodes that have no counterpart in the model: so the share of a fused or expanded one is known, too. Where ONNX
Runtime has fused it into a linear operator it costs nothing; where it has fused it with what reads it, that is said.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as ir

from normfuse.executed import Executed, Kernel, execute
from normfuse.fates import nodes_of
from normfuse.inspection import Inspection
from normfuse.probes import typical_inputs
from normfuse.report import NORMALIZATIONS
from normfuse.runtime import session
from normfuse.site import Site

_LINEAR = frozenset(
    {
        "Conv",
        "ConvInteger",
        "ConvTranspose",
        "DynamicQuantizeMatMul",
        "Einsum",
        "FusedConv",
        "FusedGemm",
        "FusedMatMul",
        "Gemm",
        "MatMul",
        "MatMulInteger",
        "MatMulIntegerToFloat",
    }
)
"""Linear operators, those that ONNX Runtime fuses others into among them."""

_REORDERS = ("ReorderInput", "ReorderOutput")
_REACH = 16
"""Operators that may stand between a result that is gone and the one that it was fused into."""


@dataclass(frozen=True, slots=True)
class Profile:
    """How long a model takes.

    Attributes:
        seconds: of all nodes in one run.
        norms: the share of the normalizations, BatchNormalizations among them.
        affines: the share of the affine maps.
        reorders: the share of the nodes that go into the blocked convolution layout and out of it.
        unknown: names of sites whose time cannot be told.
        threads: intra-op threads.
        shapes: the input shapes used, by input name.
    """

    seconds: float
    norms: float
    affines: float
    reorders: float
    unknown: tuple[str, ...]
    threads: int
    shapes: dict[str, tuple[int, ...]]


def measure(
    found: Inspection, model: ir.Model, name: str, threads: int, data: Any, shapes: Mapping[str, Any] | None
) -> Inspection:
    """Times the nodes of a model and tells what each site takes.

    Args:
        found: the sites.
        model: the model that they were found in, whose nodes have the names that they tell.
        name: what errors call it.
        threads: intra-op threads.
        data: inputs of the caller's own, or None.
        shapes: shapes of random inputs, by input name.

    Raises:
        NormfuseError: no inputs can be made.
        TargetError: ONNX Runtime is missing, or cannot load or run the model.
    """
    feed = typical_inputs(model, session(model, threads=threads, name=name), shapes=shapes, data=data)
    executed = execute(model, name, threads=threads, feed=feed)
    origins = {str(value.name): node for node in nodes_of(model) for value in node.outputs if value.name}
    by_name = {str(node.name): node for node in nodes_of(model)}
    total = executed.seconds or 1.0
    parts = [_part(site, executed, origins, by_name) for site in found.sites]
    sites = tuple(
        replace(
            site,
            seconds=part.seconds,
            share=None if part.seconds is None else part.seconds / total,
            runs_as=tuple(kernel.operator for kernel in part.kernels),
            note=part.note,
        )
        for site, part in zip(found.sites, parts, strict=True)
    )

    def share(chosen: Iterable[Kernel]) -> float:
        """Each kernel once: two sites may run as one."""
        return sum(kernel.seconds or 0.0 for kernel in {id(one): one for one in chosen}.values()) / total

    pairs = list(zip(found.sites, parts, strict=True))
    norms = [kernel for site, part in pairs if site.name is not None for kernel in part.kernels]
    known = set(map(id, norms))
    profile = Profile(
        executed.seconds,
        share(norms),
        share(kernel for _, part in pairs for kernel in part.kernels if id(kernel) not in known),
        share(kernel for kernel in executed.kernels if kernel.operator in _REORDERS),
        tuple(site.node for site, part in pairs if part.seconds is None),
        threads,
        {name: array.shape for name, array in feed.items()},
    )
    return Inspection(sites, profile, found.layout)


@dataclass(frozen=True, slots=True)
class _Part:
    """What a site runs as, its seconds (None where they cannot be told), and what is to be said."""

    kernels: tuple[Kernel, ...]
    seconds: float | None
    note: str = ""


def _part(site: Site, executed: Executed, origins: Mapping[str, ir.Node], by_name: Mapping[str, ir.Node]) -> _Part:
    members = set(site.nodes)
    result = str(by_name[site.node].outputs[0].name)
    last = executed.writers.get(result)
    if last is None:
        return _fused_forward(by_name[site.node], executed, is_norm=site.is_norm)
    if last.scales and by_name[site.node].op_type != "Conv":
        return _scaling(last)
    takers = _LINEAR if site.name is not None else _LINEAR | NORMALIZATIONS
    if last.operator in takers and not any(by_name[name].op_type == last.operator for name in members):
        return _Part((), 0.0, f"ONNX Runtime fuses it into {last.operator}")
    region: dict[int, Kernel] = {}
    pending = [last]
    while pending:
        kernel = pending.pop()
        if id(kernel) in region:
            continue
        region[id(kernel)] = kernel
        for value in kernel.inputs:
            before = executed.writers.get(value)
            if before is None:
                continue
            if before.operator in (*_LINEAR, *_REORDERS) and not _is_own(before, origins, members):
                continue
            if all(origins[one].name in members for one in before.writes if one in origins):
                pending.append(before)
    kernels = tuple(kernel for kernel in executed.kernels if id(kernel) in region)
    return _Part(kernels, sum(kernel.seconds or 0.0 for kernel in kernels), _with(last, members, origins))


def _scaling(kernel: Kernel) -> _Part:
    """The part of a BatchNormalization that ONNX Runtime runs in the blocked layout."""
    return _Part((kernel,), kernel.seconds, "as a depthwise convolution in the blocked layout")


def _is_own(kernel: Kernel, origins: Mapping[str, ir.Node], members: set[str]) -> bool:
    """Whether a node is one of the model's that the site is made of."""
    return any(one in origins and origins[one].name in members for one in kernel.writes)


def _with(last: Kernel, members: set[str], origins: Mapping[str, ir.Node]) -> str:
    """What to say of a node that does more than the site."""
    if last.operator.startswith("Skip"):
        return f"with the Add in front of it, as {last.operator}"
    return ""


def _fused_forward(node: ir.Node, executed: Executed, *, is_norm: bool) -> _Part:
    """The part of a site whose result is gone: what has become of it is what writes the next value that is left."""
    pending, seen = [(node, 0)], {node}
    while pending:
        current, distance = pending.pop(0)
        for reader in current.successors():
            written = (str(value.name) for value in reader.outputs)
            writer = next((executed.writers[name] for name in written if name in executed.writers), None)
            if writer is not None:
                if writer.scales:
                    return _scaling(writer)
                if writer.operator in NORMALIZATIONS and is_norm:
                    return _Part((writer,), writer.seconds, f"with what follows it, as {writer.operator}")
                if writer.operator in _LINEAR | NORMALIZATIONS:
                    return _Part((), 0.0, f"ONNX Runtime fuses it into {writer.operator}")
                return _Part((), None, f"ONNX Runtime fuses it into {writer.operator}: its time cannot be told")
            if reader not in seen and distance < _REACH:
                seen.add(reader)
                pending.append((reader, distance + 1))
    return _Part((), None, "ONNX Runtime leaves no node that stands for it")

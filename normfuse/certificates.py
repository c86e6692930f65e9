"""Certificates on file: `write` saves them, `recheck` makes them anew and compares.

The file names both models by their SHA-256, says how the one was made of the other, and holds the certificate of each
change. The parts that were judged are not stored: they follow from the first model, step by step, and whoever checks
goes through the same steps and judges each of them again. What comes out must be the second model, bit for bit.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from normfuse import __version__
from normfuse.errors import NormfuseError
from normfuse.model import load
from normfuse.outline import external_files
from normfuse.passes.lowering import Choice, Chooser, Lowering, NormSite
from normfuse.report import Certificate, Report
from normfuse.schema import SCHEMA_VERSION
from normfuse.storage import parse, read, validate_place, write
from normfuse.target import Target

Path = str | os.PathLike[str]

_FIELDS = ("input", "output", "settings", "left_out", "certificates")

_SETTINGS = {"target", "threads", "opset", "select", "ignore", "freeze", "tuned"}


@dataclass(frozen=True, slots=True)
class Renewed:
    """What became of one certificate when it was made anew.

    Attributes:
        rule: the rule that made the change.
        nodes: names of the nodes that it removed or rewrote.
        outcome: `passed`, `failed`, or `not judged`: then as now, or not reached after steps that went another way.
        reason: why it did not pass, in one line.
        ratios: the worst ratio as it is on file and, where it was judged again, as it is now.
    """

    rule: str
    nodes: tuple[str, ...]
    outcome: Literal["passed", "failed", "not judged"]
    reason: str = ""
    ratios: tuple[float, ...] = ()

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"{self.rule} of {', '.join(self.nodes)}"


@dataclass(frozen=True, slots=True)
class Recheck:
    """What became of certificates when they were made anew.

    Attributes:
        passed: whether all of them hold, and the steps lead from the one model to the other.
        certificates: how many changes were judged again.
        reason: why not, in one line.
        renewed: what became of each certificate of the file, in its order.
        whole: why the steps as a whole do not lead from the one model to the other, or nothing.
    """

    passed: bool
    certificates: int
    reason: str = ""
    renewed: tuple[Renewed, ...] = ()
    whole: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The verdict as JSON-ready values."""
        changes = [
            {"rule": one.rule, "nodes": list(one.nodes), "outcome": one.outcome, "reason": one.reason}
            for one in self.renewed
        ]
        head = {"passed": self.passed, "certificates": self.certificates, "reason": self.reason}
        return {**head, "changes": changes}

    def __str__(self) -> str:
        return f"{self.certificates} made anew, all hold" if self.passed else f"FAILED: {self.reason}"


def save_certificates(path: Path, source: Path, result: Path, report: Report, settings: Mapping[str, Any]) -> None:
    """Writes the certificates of a report.

    Args:
        path: the file, `.json`.
        source: the model as it was.
        result: the file that the result was written to.
        report: what `normfuse.pipeline.prove` returned.
        settings: target, threads, opset, select, ignore, freeze, as they were given to it, and whether it was tuned.

    Raises:
        NormfuseError: the file cannot be written.
    """
    content = {
        "schema_version": SCHEMA_VERSION,
        "normfuse": __version__,
        "input": _described(source),
        "output": _described(result),
        "settings": dict(settings),
        "left_out": [{"rule": rule, "nodes": nodes, "reason": reason} for rule, nodes, reason in report.left_out],
        "certificates": [asdict(certificate) for certificate in report.certificates],
    }
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    validate_place(os.fspath(path))
    write([(os.fspath(path), lambda file: file.write(text.encode()))])


def recheck(path: Path, reference: Path, candidate: Path, *, progress: Callable[[str], None] | None = None) -> Recheck:
    """Makes the certificates of a file anew.

    Args:
        path: what `optimize --certificates` wrote.
        reference: the model as it was.
        candidate: the model that was made of it.
        progress: called with what is being done.

    Returns:
        what became of them; that they do not hold is returned, not raised.

    Raises:
        NormfuseError: a file is missing, or this is no file of certificates.
        ModelError: a model cannot be read.
    """
    from normfuse.certification import Certifier
    from normfuse.pipeline import rewrite

    content, stored = _read(path)
    for file, key, what in ((reference, "input", "made for"), (candidate, "output", "of")):
        if _described(file)["files"] != content[key].get("files"):
            name = content[key].get("name")
            reason = f"{os.fspath(file)} is not the model that they are {what}: {name} has other bytes"
            return Recheck(False, 0, reason, _unreached(stored, reason), reason)
    settings = dict(content["settings"])
    target = Target.parse(settings.pop("target", "cpu"), settings.pop("threads", None))
    choose = _as_recorded(stored) if settings.pop("tuned", False) else None
    left_out = {(one["rule"], tuple(one["nodes"])): str(one["reason"]) for one in content["left_out"]}
    model = load(reference)
    certifier = Certifier(left_out, provider=target.provider, budget=float("inf"), say=progress)
    rewrite(model, target, journal=certifier, choose=choose, **settings)
    return _compared(stored, certifier.certificates, model, candidate, str(content.get("normfuse")))


def _compared(
    stored: Sequence[Certificate], anew: Sequence[Certificate], model: ir.Model, candidate: Path, version: str
) -> Recheck:
    """Whether certificates that were made anew are those of a file, and lead to the same model."""
    other = "" if version == __version__ else f" (they were made by normfuse {version}, this is {__version__})"
    renewed: list[Renewed] = []
    whole = ""
    for old, new in zip(stored, anew, strict=False):
        renewed.append(_renewed(old, new, other))
        if _steps(old) != _steps(new, old.verdict):
            # what follows is judged in another place of the file, or not at all
            whole = f"{renewed[-1].name}: {renewed[-1].reason}"
            break
    else:
        if len(stored) != len(anew):
            whole = f"the steps make {len(anew)} changes, the file has {len(stored)}{other}"
        elif fingerprint(model) != fingerprint(load(candidate)):
            whole = f"the steps do not lead to {os.fspath(candidate)}{other}"
    renewed += _unreached(stored[len(renewed) :], whole)
    reason = next((f"{one.name}: {one.reason}" for one in renewed if one.outcome == "failed"), whole)
    return Recheck(not reason, len(anew), reason, tuple(renewed), whole)


def _renewed(old: Certificate, new: Certificate, other: str) -> Renewed:
    """What became of a certificate; `other` tells of another version that made it."""
    outcome: Literal["passed", "failed", "not judged"] = "failed"
    ratios: tuple[float, ...] = (old.ratio, new.ratio)
    if _steps(old) != _steps(new, old.verdict):
        reason, ratios = f"the steps lead to {new.rule} of {', '.join(new.nodes)}{other}", ratios[:1]
    elif new.verdict == "failed":
        reason = new.reason
    elif old.verdict == "passed" != new.verdict:
        reason = f"could not be judged again: {new.reason}"
    elif old.verdict == "failed":
        reason = f"it failed when it was made: {old.reason}"
    else:
        outcome, reason = new.verdict, new.reason
    return Renewed(old.rule, old.nodes, outcome, reason, ratios)


def _unreached(stored: Sequence[Certificate], why: str) -> tuple[Renewed, ...]:
    return tuple(Renewed(one.rule, one.nodes, "not judged", f"not judged again: {why}", (one.ratio,)) for one in stored)


def _steps(one: Certificate, verdict: str = "") -> tuple[object, ...]:
    """What a certificate says of its change; how its part was cut only where that could be judged."""
    part = (one.before, one.after) if (verdict or one.verdict) != "not judged" else ()
    return one.rule, one.nodes, *part


def _as_recorded(certificates: Sequence[Certificate]) -> Chooser:
    """Chooses among lowerings what certificates say was chosen."""

    def choose(model: ir.Model, site: NormSite, rows: Sequence[Lowering], target: Target) -> Choice:
        chosen = [one.rule for one in certificates if one.nodes[: len(site.names)] == site.names]
        return Choice(tuple(row for row in rows if row.name in chosen) or (None,))

    return choose


def _read(path: Path) -> tuple[dict[str, Any], list[Certificate]]:
    """A file of certificates.

    Raises:
        NormfuseError: it is missing, or is none.
    """
    text = read(os.fspath(path))
    try:
        content = json.loads(text)
        if not all(key in content for key in _FIELDS):
            raise ValueError("fields are missing")
        if content.get("schema_version") != SCHEMA_VERSION:
            raise ValueError(f"its schema_version is {content.get('schema_version')}, not {SCHEMA_VERSION}")
        if not content["settings"].keys() <= _SETTINGS:
            raise ValueError("it has settings that are not known")
        return content, [Certificate.from_dict(fields) for fields in content["certificates"]]
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        hint = "write one with `normfuse optimize --certificates`"
        raise NormfuseError(f"{os.fspath(path)} is no file of certificates: {error}; {hint}") from error


def _described(path: Path) -> dict[str, Any]:
    """The name of a model and the SHA-256 of all its files, those of its external data by their places."""
    path = os.fspath(path)
    folder = os.path.dirname(os.path.abspath(path))
    files = {"": _sha256(path)}
    for file in sorted(external_files(parse(read(path)), folder)):
        files[os.path.relpath(file, folder)] = _sha256(file)
    return {"name": os.path.basename(path), "files": files}


def _sha256(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise NormfuseError(f"cannot read {path}: {error.strerror or error}") from error


def fingerprint(model: ir.Model) -> str:
    """The SHA-256 of what a model computes with: nodes, names, attributes and weights, whatever file they lie in."""
    digest = hashlib.sha256()
    imports = [dict(sorted(model.opset_imports.items()))]
    graphs: list[tuple[Any, ir.Graph | ir.Function]] = [("", model.graph)]
    for key, function in sorted(model.functions.items()):
        imports.append(dict(sorted(function.opset_imports.items())))
        graphs.append((key, function))
    digest.update(repr(imports).encode())
    for key, graph in graphs:
        digest.update(repr(key).encode())
        for part in _parts(graph):
            digest.update(part)
    return digest.hexdigest()


def _parts(graph: ir.Graph | ir.Function) -> Iterator[bytes]:
    yield repr([[value.name, str(value.type), str(value.shape)] for value in graph.inputs]).encode()
    yield repr([value.name for value in graph.outputs]).encode()
    if isinstance(graph, ir.Graph):
        for name, value in sorted(graph.initializers.items()):
            if value.const_value is not None:
                yield from _tensor(name, value.const_value)
    for node in graph:
        ends = [[value and value.name for value in values] for values in (node.inputs, node.outputs)]
        yield repr([node.domain, node.op_type, node.overload, node.name or "", *ends]).encode()
        for name, attribute in sorted(node.attributes.items()):
            yield from _attribute(name, attribute)


def _attribute(name: str, attribute: ir.Attr) -> Iterator[bytes]:
    if attribute.is_ref():
        yield repr([name, attribute.ref_attr_name]).encode()
        return
    match attribute.type:
        case ir.AttributeType.TENSOR:
            yield from _tensor(name, attribute.as_tensor())
        case ir.AttributeType.TENSORS:
            for tensor in attribute.as_tensors():
                yield from _tensor(name, tensor)
        case ir.AttributeType.GRAPH:
            yield name.encode()
            yield from _parts(attribute.as_graph())
        case ir.AttributeType.GRAPHS:
            for graph in attribute.as_graphs():
                yield name.encode()
                yield from _parts(graph)
        case ir.AttributeType.FLOAT | ir.AttributeType.FLOATS:  # they are written in single precision
            yield repr([name, np.asarray(attribute.value, np.float32).tolist()]).encode()
        case ir.AttributeType.INTS | ir.AttributeType.STRINGS:
            yield repr([name, *attribute.value]).encode()
        case _:
            yield repr([name, str(attribute.value)]).encode()


def _tensor(name: str, tensor: ir.TensorProtocol) -> Iterator[bytes]:
    yield repr([name, tensor.dtype.name, [int(size) for size in tensor.shape.numpy()]]).encode()
    if tensor.dtype == ir.DataType.STRING:
        yield repr(tensor.numpy().tolist()).encode()
    else:
        yield tensor.tobytes()

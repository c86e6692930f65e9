"""What must be true of a model that was optimized for a target, whatever the model is: `examine`.

Nothing crashes; the result is valid and loads; inputs and outputs are as they were; names are unique; it computes the
same against the float64 oracle; a second run finds nothing to do; the source is not changed.
"""

import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime  # type: ignore[import-untyped]  # it ships no types

import normfuse
from normfuse.certification import Certifier
from normfuse.contest import Contest, Values
from normfuse.errors import NormfuseError, TargetError
from normfuse.evaluated import Evaluated
from normfuse.judging import Deck, Judgement
from normfuse.metric import PRECISIONS, is_float
from normfuse.model import load
from normfuse.oracle import Oracle
from normfuse.passes.fold import FoldPass
from normfuse.passes.lift import LiftPass
from normfuse.passes.prepare import PreparePass
from normfuse.pipeline import prove, quiet, rewrite
from normfuse.probes import Probe, plan
from normfuse.report import Report
from normfuse.shaken import Shaken
from normfuse.target import Target

MICROSOFT = "com.microsoft"

TARGETS = (Target("portable", 1), Target("cpu", 1), Target("cpu", 4), Target("cuda", 1))
"""Where a model may be meant to run."""


@dataclass(frozen=True, slots=True)
class Examination:
    """What was found.

    Attributes:
        target: what the model was optimized for.
        faults: what is wrong, one line each; the first word says of which kind.
        rules: how often each rule changed something.
        refused: how often each rule refused.
        judged_by: what judged the result; empty where nothing did.
        ratio: of the errors.
        ill_conditioned: why the proof failed, where a rounding of each value of the original explains it: a graph that
            amplifies roundings, such as the normalization of a constant.
        certificates: how many passed, failed or were not judged.
        alarms: those that failed, with the reasons; false ones where nothing else is wrong.
        unjudged: why nothing judged: what runs here has no kernel for the original, or refuses all inputs.
    """

    target: Target
    faults: tuple[str, ...]
    rules: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    judged_by: str = ""
    ratio: float = 0.0
    ill_conditioned: str = ""
    unjudged: str = ""
    certificates: Counter[str] = field(default_factory=Counter)
    alarms: tuple[str, ...] = ()


def examine(model: onnx.ModelProto, target: Target, *, on_runtime: bool) -> Examination:
    """Optimizes a model for a target and looks at all that must be true.

    Args:
        model: a valid model.
        target: where it will run.
        on_runtime: whether ONNX Runtime loads the model on the CPU; else the reference evaluator judges.

    Returns:
        what was found; what is raised is a fault too.
    """
    before = model.SerializeToString(deterministic=True)
    lifting, folding = LiftPass(), FoldPass()
    faults: list[str] = []
    excuse = unjudged = ""
    certificates: Counter[str] = Counter()
    alarms: list[str] = []
    try:
        result = normfuse.optimize(model, target, verify=False)
        with quiet():
            copy = load(model)
            PreparePass()(copy)
            lifting(copy)
            folding(copy)
        where = target.provider if on_runtime else "cuda"  # which is not here: the evaluator stands in
        fault, unjudged = _parity(model, result, where)
        if fault.startswith("parity") and _is_noise(model, result.model, where):
            fault, excuse = "", fault
        faults += [fault] if fault else []
        faults += _structure(model, result.model, target)
        faults += _again(result, target)
        certifier = Certifier({}, provider=where, budget=60.0)
        rewrite(load(model), target, journal=certifier)
        certificates.update(one.verdict for one in certifier.certificates)
        alarms += (f"{rule} {nodes[-1]}: {reason}" for (rule, nodes), reason in certifier.failed.items())
        if alarms and on_runtime:
            faults += _rolled_back(model, target)
    except Exception as error:  # whatever it is, it is what is looked for
        last = traceback.extract_tb(error.__traceback__)[-1]
        said = " ".join(str(error).split())[:300]
        faults.append(f"crash: {type(error).__name__}: {said} ({last.name}, line {last.lineno})")
        return Examination(target, tuple(faults))
    if model.SerializeToString(deterministic=True) != before:
        faults.append("source: the caller's model was changed")
    report: Report = result.report
    parity = report.parity
    return Examination(
        target,
        tuple(faults),
        Counter((*(change.rule for change in (*lifting.changes, *report.changes)), *folding.carried)),
        Counter(refusal.rule for refusal in report.refusals),
        parity.judged_by if parity else "",
        parity.ratio if parity else 0.0,
        excuse,
        unjudged,
        certificates,
        tuple(alarms),
    )


def loads(model: onnx.ModelProto) -> bool:
    """Whether ONNX Runtime has kernels for all of a model on the CPU."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        onnxruntime.InferenceSession(widened(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception:  # ONNX Runtime has an exception for everything
        return False
    return True


def widened(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with a Cast from and to float32 where inputs and outputs are bfloat16: numpy has none."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph, narrow = copy.graph, onnx.TensorProto.BFLOAT16
    initial = {tensor.name for tensor in graph.initializer}
    casts = []
    for ports, to in ((graph.input, narrow), (graph.output, onnx.TensorProto.FLOAT)):
        for port in ports:
            if port.type.tensor_type.elem_type != narrow or port.name in initial:
                continue
            name, port.name = port.name, f"{port.name}_as_float"
            port.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
            ends = (port.name, name) if to == narrow else (name, port.name)
            casts.append(onnx.helper.make_node("Cast", [ends[0]], [ends[1]], name=f"n_{port.name}", to=to))
    nodes = [*(node for node in casts if node.output[0] not in {port.name for port in graph.output}), *graph.node]
    nodes += [node for node in casts if node.output[0] in {port.name for port in graph.output}]
    del graph.node[:]
    graph.node.extend(nodes)
    return copy


def _parity(model: onnx.ModelProto, result: normfuse.Result, provider: str) -> tuple[str, str]:
    """What is wrong with what the result computes, or nothing; and why that could not be judged, or nothing."""
    try:
        parity = normfuse.verify(widened(model), widened(result.model), provider=provider, stand_in=True)
    except NormfuseError as error:
        said = " ".join(str(error).split())[:300]
        own = said.startswith(("the reference:", "the model does not run on", "the model took no sizes"))
        return ("", said) if own else (f"target: {said}", "")
    result.report.parity = parity
    return ("" if parity.passed else f"parity: {parity.reason}"), ""


def _is_noise(model: onnx.ModelProto, optimized: onnx.ModelProto, provider: str) -> bool:
    """Whether the result is as near to the truth as the original is when each of its values is off by a rounding.

    The proof counts roundings of inputs and what the original happens to round. A row that is constant has a variance
    of nothing and an error of nothing there, but the normalization amplifies by 1/√ε what any other order of the same
    operations rounds. Such graphs are told apart here; a wrong formula is not excused, for roundings do not make it.

    Nor do probes count on which the original, run as it is written, overflows a narrow dtype: ONNX Runtime's CPU
    provider keeps what is between most of its float16 nodes in float32, and hides that it does.
    """
    contest = Contest(load(widened(model)), load(widened(optimized)), provider, stand_in=True)
    judgement = Judgement(contest, "noise")
    exact, shaken = Oracle(contest.reference), Shaken(contest.reference, contest.precision.unit)
    names = [*contest.outputs, *(hidden.names[0] for hidden in contest.hidden)]
    for seed in range(2):
        for probe in Deck([], plan(contest.reference, contest.accepts, None)).draw(seed):
            truth = contest.titled(exact.run(probe.inputs, names), 0)
            if contest.precision.unit > PRECISIONS["float32"].unit and overflows(contest, probe, truth):
                continue
            noise = [contest.titled(shaken.run(probe.inputs, names), 0) for _ in range(2)]
            for level in contest.levels:
                candidate = judgement.candidate(probe, level)
                if candidate is None:
                    return False
                reference = contest.run(0, level, probe.inputs)
                judgement.add(level, probe.family, truth, reference, candidate, noise)
            judgement.judged[probe.family] += 1
    return bool(judgement.probes) and (not judgement.failed or judgement.marginal())


def overflows(contest: Contest, probe: Probe, truth: Values) -> bool:
    """Whether the original, each of its values in its own type, is not finite where the truth is."""
    try:
        written = contest.titled(Evaluated(contest.reference, "the original").run(probe.inputs), 0)
    except TargetError:
        return False
    return any(
        bool((np.isfinite(truth[name]) & ~np.isfinite(value.astype(np.float64))).any())
        for name, value in written.items()
        if name in truth and is_float(value) and truth[name].shape == value.shape
    )


def _structure(before: onnx.ModelProto, after: onnx.ModelProto, target: Target) -> Iterator[str]:
    opset = next(one.version for one in before.opset_import if one.domain in ("", "ai.onnx"))
    # operators of ONNX Runtime in the default domain, which onnx's checker does not know: the result loads there
    own = {"SimplifiedLayerNormalization", *(["LayerNormalization"] if opset < 17 else [])}
    if target.provider == "portable" or not any(node.op_type in own for node in _nodes(after)):
        try:
            onnx.checker.check_model(after, full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            yield f"checker: {' '.join(str(error).split())[:300]}"
    initial = {tensor.name for tensor in before.graph.initializer}
    inputs = [[one for one in graph.input if one.name not in initial] for graph in (before.graph, after.graph)]
    if inputs[0] != inputs[1]:
        yield "signature: inputs changed"
    if list(before.graph.output) != list(after.graph.output):
        yield "signature: outputs changed"
    names = Counter(node.name for node in _nodes(after))
    if twice := [name for name, count in names.items() if count > 1 or not name]:
        yield f"names: {twice[:3]} are empty or not unique"
    domains = {one.domain for one in after.opset_import}
    allowed = {one.domain for one in before.opset_import}
    allowed |= {MICROSOFT} if target.provider != "portable" else set()
    if not domains <= allowed or {node.domain for node in _nodes(after)} - domains - {"ai.onnx"}:
        yield f"domains: {sorted(domains)} are imported"
    for node in _nodes(after):
        if node.domain == MICROSOFT and (wrong := _schema_fault(node)):
            yield f"schema: {node.op_type} {node.name!r}: {wrong}"


def _schema_fault(node: onnx.NodeProto) -> str:
    schema = _schemas().get(node.op_type)
    if schema is None:
        return "ONNX Runtime does not define it"
    given = {attribute.name for attribute in node.attribute}
    if not given <= set(schema.attributes):
        return f"it has no attribute {sorted(given - set(schema.attributes))}"
    if missing := {one.name for one in schema.attributes.values() if one.required} - given:
        return f"it lacks {sorted(missing)}"
    if not schema.min_input <= len(node.input) <= schema.max_input or len(node.output) > schema.max_output:
        return f"it has {len(node.input)} inputs and {len(node.output)} outputs"
    return ""


@cache
def _schemas() -> dict[str, Any]:
    from onnxruntime.capi.onnxruntime_pybind11_state import (  # type: ignore[import-untyped]  # it ships no types
        get_all_operator_schema,
    )

    return {schema.name: schema for schema in get_all_operator_schema() if schema.domain == MICROSOFT}


def _rolled_back(model: onnx.ModelProto, target: Target) -> Iterator[str]:
    """What is wrong where changes are left out because their certificates failed."""
    kept, report = prove(load(model), target)
    if not report.left_out:
        yield "certificates: one failed, and nothing was rolled back"
    yield from (f"rolled back: {fault}" for fault in _structure(model, ir.to_proto(kept), target))


def _again(result: normfuse.Result, target: Target) -> Iterator[str]:
    froze = any(change.rule == "freeze" for change in result.report.changes)  # where few are left, all may be listed
    changes = normfuse.optimize(result.model, target, verify=False, freeze=None if froze else False).report.changes
    if changes:
        found = "; ".join(f"{change.rule} {change.nodes[:2]} {change.detail}" for change in changes[:3])
        yield f"idempotence: a second run finds {found}"


def _nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    graphs: list[Any] = [model.graph, *model.functions]
    while graphs:
        for node in graphs.pop().node:
            yield node
            for attribute in node.attribute:
                graphs += [attribute.g] if attribute.HasField("g") else []
                graphs += attribute.graphs

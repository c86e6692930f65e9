"""`export`: from a torch module to an optimized, proved ONNX file in one call.

    module → captured, each normalization one node → optimized for the target → proved against the module in float64
           → written, or nothing is

Nothing of torch is imported before `export` is called.
"""

import inspect
import os
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from os import PathLike
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from normfuse import functions
from normfuse.arguments import check
from normfuse.calls import Given, constants_of
from normfuse.errors import ExportError, NormfuseError, ParityError, TargetError
from normfuse.leftovers import folder_beside
from normfuse.model import check_output, load, save, serialize
from normfuse.pipeline import Result, Settings, check_rules, prove, rewrite
from normfuse.randomness import unprovable
from normfuse.report import Counts, Report
from normfuse.serialization import is_large
from normfuse.storage import destination
from normfuse.target import Target
from normfuse.validation import ONNX_RUNTIME_ONLY

if TYPE_CHECKING:
    import torch

    from normfuse.foreign import Foreign
    from normfuse.guards import Guards
    from normfuse.operator_types import Misfit


def export(
    module: "torch.nn.Module",
    args: Any = (),
    path: str | PathLike[str] | None = None,
    *,
    kwargs: Mapping[str, Any] | None = None,
    target: str | Target = "cpu",
    threads: int | None = None,
    opset: int | None = None,
    dynamic_shapes: Any = None,
    input_names: Sequence[str] = (),
    output_names: Sequence[str] = (),
    training: bool = False,
    translations: Mapping[Any, Callable[..., Any]] | None = None,
    optimize: bool = True,
    verify: bool = True,
    verify_budget: float = 60.0,
    layers: bool = False,
    data: Any = None,
    shapes: Mapping[str, Any] | None = None,
    select: Collection[str] = (),
    ignore: Collection[str] = (),
    progress: Callable[[str], None] | None = None,
) -> Result:
    """Exports a torch module to ONNX with its normalizations kept, optimizes it, and proves and writes the result.

    Args:
        module: the module; it is left as it was.
        args: example inputs for one call: a tuple of positional arguments, or the only one.
        path: where to write the result; nothing is written where it is None, or where the proof fails.
        kwargs: example keyword arguments.
        target: where the model will run: `portable`, `cpu` or `cuda`, or a `Target`.
        threads: intra-op threads that the session will use; those of this machine where None.
        opset: the opset to write, at least 18; where None 20, or the first one after it that has the operators of the
            module in bfloat16.
        dynamic_shapes: which axes of the inputs are dynamic, nested like the arguments: a tuple with one item for each
            positional argument, or a dict by parameter name; for a tensor {axis: name}, where a name is a string or a
            `torch.export.Dim`; None for what is static.
        input_names: names for the inputs of the graph; those of the parameters where empty.
        output_names: names for its outputs.
        training: whether parts that are in training mode are exported so: BatchNorm by the statistics of the batch; its
            running statistics stay as they are. Where the outputs depend on chance then, as behind an active dropout,
            nothing is proved: `report.unproved` says so.
        translations: for `torch.onnx.export(custom_translation_table=…)`; these rows go before ours.
        optimize: whether to optimize for the target; else the file holds what was captured, and functions of the domain
            `normfuse` where the opset has no operator for a normalization.
        verify: whether to compare the result with the module, against its own float64.
        verify_budget: seconds that the float64 may take.
        layers: whether to compare the outputs of the module's parts one by one, too: `report.parts`.
        data: inputs to verify with besides the example, as `normfuse.verify` takes them.
        shapes: shapes to verify with, by input name, or sizes by the name of a dynamic dimension.
        select: names of the rules of FOLD and LOWER to use; all where empty.
        ignore: names of rules or stages not to use.
        progress: called with what is being done.

    Returns:
        the model as `onnx_ir.Model`, and the report.

    Raises:
        ExportError: torch or onnxscript is missing, or torch cannot export the module.
        NormfuseError: an argument is wrong, or nothing can be written there.
        TargetError: ONNX Runtime is missing, or cannot run the model.
        ParityError: the result does not compute what the module computes.
    """
    check(target=target, threads=threads, opset=opset, select=select, ignore=ignore, path=path, kwargs=kwargs)
    check(training=training, optimize=optimize, verify=verify, verify_budget=verify_budget, layers=layers, data=data)
    check(input_names=input_names, output_names=output_names, shapes=shapes, translations=translations)
    check(progress=progress)
    if layers and not verify:
        raise NormfuseError("layers is part of the proof; leave it out, or verify=False")
    where = Target.parse(target, threads)
    check_rules(select, ignore)
    say = progress or (lambda doing: None)
    torch = require_torch()
    if not isinstance(module, torch.nn.Module) or isinstance(module, torch.jit.ScriptModule):
        kind = type(module).__name__
        raise ExportError(f"a {kind} cannot be exported; give the torch.nn.Module it was made from")
    from normfuse.capture import DEFAULT_OPSET, OPSETS, captured_with_guards, check_opset, in_mode
    from normfuse.guards import check_declared
    from normfuse.operator_types import misfit
    from normfuse.trials import judge_guards

    check_opset(opset)
    if path is not None:
        check_output(path, None)
    given = Given.to(module, args if isinstance(args, tuple) else (args,), kwargs or {})
    wanted = opset or DEFAULT_OPSET
    say(f"exporting {type(module).__name__}")
    modes = reminder(module)
    if modes and not training:
        warnings.warn(modes, stacklevel=2)
    shapes_given = nested_shapes(module, given.args, dynamic_shapes)
    check_declared(module, given.args, given.kwargs, shapes_given)
    _check_titles(input_names, output_names)
    with ExitStack() as held:
        held.enter_context(in_mode(module, training))

        def captured_in(number: int) -> "tuple[ir.Model, Guards]":
            return captured_with_guards(
                module,
                given.args,
                given.kwargs,
                opset=number,
                dynamic_shapes=shapes_given,
                input_names=input_names,
                output_names=output_names,
                translations=translations,
            )

        captured, guards = captured_in(min(wanted, OPSETS[-1]))
        lacks = misfit(captured)
        while opset is None and lacks and lacks.since and wanted < lacks.since <= OPSETS[-1]:
            wanted = lacks.since
            say(f"{lacks}: exporting {type(module).__name__} in opset {wanted}")
            captured, guards = captured_in(wanted)
            lacks = misfit(captured)
        _check_types(lacks, wanted, module)
        _check_ports(captured, module, input_names, output_names)
        large = is_large(captured)
        if large and path is not None:
            check_output(path, captured)
            captured = _mapped(captured, os.fspath(path), held)
        notes = [f"written into the file as constants: {fixed}"] if (fixed := constants_of(module, given)) else []
        notes += judge_guards(guards, module, given.args, given.kwargs, captured)
        settings: Settings = {"threads": where.threads, "select": select, "ignore": ignore, "shapes": shapes}
        settings |= {"opset": wanted if wanted > OPSETS[-1] else None}
        reference, unproved = None, ""
        if verify and training and modes and (chance := unprovable(captured)):
            unproved = f"nothing was proved against {type(module).__name__} in training mode: {chance}"
        elif verify:
            from normfuse.modules import torch_module

            reference = torch_module(module, given, like=captured, training=training)
        proves = verify and not unproved
        result = _optimized(captured, where, reference, settings, optimize, proves, verify_budget, data, say)
        result.report.unproved = unproved
        result.report.notes = notes
        if unproved:
            warnings.warn(unproved, stacklevel=2)
        if layers and reference is not None:
            from normfuse.layers import layer_parity

            say("comparing the parts of the module")
            result.report.parts = layer_parity(
                module, given, captured, budget=verify_budget, shapes=shapes, training=training, progress=say
            )
            result.report.notes += _left_out(module, result.report)
        parity = result.report.parity
        if parity is not None and not parity.passed:
            error = ParityError(parity.against("module"), result.report)
            error.add_note("run with verify=False to look at the result")
            raise error
        if path is not None:
            say(f"writing {path}")
            save(result.model, path)
            if large:
                return Result(load(path), result.report)
    return result


def _mapped(captured: ir.Model, path: str, held: ExitStack) -> ir.Model:
    """The same with its weights in a file beside the result, for as long as the export lasts.

    They are read from there where they are needed, so that nothing is held twice beside those of the module.
    """
    folder = held.enter_context(folder_beside(destination(path)))
    file = os.path.join(folder, "captured.onnx")
    save(captured, file)
    return load(file)


def _optimized(
    captured: ir.Model,
    where: Target,
    reference: "Foreign | None",
    settings: Settings,
    optimize: bool,
    verify: bool,
    verify_budget: float,
    data: Any,
    say: Callable[[str], None],
) -> Result:
    """What is captured, made ready for a target and judged."""
    own = [] if reference is None or not reference.example else [reference.example]
    own += [] if data is None else data if isinstance(data, list) else [data]
    if not optimize:
        from normfuse.verification import verify as judge

        report = Report(Counts.of(captured), Counts.of(captured), [], [])
        if reference is not None:
            report.parity = judge(
                reference,
                captured,
                data=own or None,
                budget=verify_budget,
                provider=where.provider,
                stand_in=True,
                shapes=settings.get("shapes"),
                progress=say,
            )
        return Result(captured, report)
    before = Counts.of(captured)
    original = load(captured)
    functions.inline(original)
    if verify:
        model, report = prove(
            original,
            where,
            reference=reference,
            verify_budget=verify_budget,
            data=own or None,
            progress=say,
            **settings,
        )
        _check_loads(original, model, where, report)
    else:
        model, report = original, rewrite(original, where, **settings)
    report.before = before
    return Result(model, report)


def _check_types(lacks: "Misfit | None", opset: int, module: Any) -> None:
    """The operators must take the floats that they are given.

    Raises:
        ExportError: one does not in this opset.
    """
    if lacks is not None and (lacks.since is None or lacks.since > opset):
        advice = f"ask for opset {lacks.since}" if lacks.since else "no opset has: compute that in float32"
        raise ExportError(f"cannot export {type(module).__name__}: {lacks}; {advice}")


def _check_loads(original: ir.Model, model: ir.Model, where: Target, report: Report) -> None:
    """Where the reference evaluator ran a model, ONNX Runtime must not lack kernels that it had before optimizing.

    Raises:
        TargetError: it does, or the result is no valid ONNX.
    """
    from normfuse.runtime import is_installed, is_invalid, session

    notes = () if report.parity is None else report.parity.notes
    if not is_installed() or not any("reference evaluator" in note for note in notes):
        return
    try:
        session(model, "disabled", where.provider, name="the result")
    except TargetError as error:
        if is_invalid(error):
            raise
        _check_valid(model)
        try:
            session(original, "disabled", where.provider, name="the module as it was captured")
        except TargetError:
            return
        raise TargetError(f"{error}; it can before it is optimized: leave that out (--no-optimize)") from error


def _check_valid(model: ir.Model) -> None:
    """What no runtime here loads is at least what ONNX allows.

    Of a model that protobuf cannot hold, or with operators that only ONNX Runtime has in the default domain, nothing is
    asked but whether operators take the floats that they are given.

    Raises:
        TargetError: it is not.
    """
    import onnx

    from normfuse.operator_types import misfit

    if found := misfit(model):
        raise TargetError(f"the result is no valid ONNX: {found}")
    own = ONNX_RUNTIME_ONLY - {"LayerNormalization"}
    if is_large(model) or any(node.op_type in own for node in model.graph.all_nodes()):
        return
    try:
        onnx.checker.check_model(serialize(model), full_check=True)
    except Exception as error:  # a ValidationError or an InferenceError
        raise TargetError(f"the result is no valid ONNX: {' '.join(str(error).split())[:300]}") from error


def require_torch() -> Any:
    """torch, with what its exporter needs.

    Raises:
        ExportError: something of that is missing.
    """
    from importlib.util import find_spec

    absent = [name for name in ("torch", "onnxscript") if find_spec(name) is None]
    if absent:
        raise ExportError(f"export needs {' and '.join(absent)}; run: pip install normfuse[torch]")
    import torch

    return torch


def reminder(module: Any) -> str:
    """What to say about a module some parts of which were left in training mode; nothing where none was."""
    modes = [name for name, part in module.named_modules() if part.training]
    if not modes:
        return ""
    which = "it" if not modes[0] else f"its part {modes[0]!r}"
    return (
        f"{type(module).__name__}: {which} is in training mode; it is exported in eval mode and left as it is "
        "(training=True, or --train, exports it as it is)"
    )


def _left_out(module: Any, report: Report) -> list[str]:
    """Which parts of a module were not compared, as a note; none where all were."""
    judged = {output.name for output in report.parts.outputs} if report.parts is not None else set()
    paths = [path for path, _ in module.named_modules() if path and path not in judged]
    if not paths:
        return []
    named = ", ".join(paths[:5]) + (f" and {len(paths) - 5} more" if len(paths) > 5 else "")
    which = "no part of the module was" if not judged else "parts of the module were not"
    reason = "called more than once or never, or their one output does not stand in the file"
    return [f"{which} compared: {named}: they are {reason}"]


def _check_titles(input_names: Sequence[str], output_names: Sequence[str]) -> None:
    """The names that a user gives are names of one thing each: torch.onnx would number them.

    Raises:
        NormfuseError: one is none, or stands twice.
    """
    names = [*input_names, *output_names]
    for place, name in enumerate(names):
        if not name.strip():
            raise NormfuseError(f"{name!r} is no name for an input or output")
        if name in names[:place]:
            raise NormfuseError(f"input_names and output_names hold {name!r} twice; give each its own")


def _check_ports(model: ir.Model, module: Any, input_names: Sequence[str], output_names: Sequence[str]) -> None:
    """A model has inputs and outputs, and not fewer than there are names for them.

    Raises:
        ExportError: it has none.
        NormfuseError: it has fewer.
    """
    if not model.graph.outputs:
        raise ExportError(f"{type(module).__name__} gives no tensor, so there is nothing to compute; return one")
    for names, values, what in (
        (input_names, model.graph.inputs, "inputs"),
        (output_names, model.graph.outputs, "outputs"),
    ):
        if len(names) > len(values) > 0:
            raise NormfuseError(
                f"{what[:-1]}_names has {len(names)} names ({', '.join(names)}), but {type(module).__name__} has "
                f"{len(values)} {what}"
            )
    if not model.graph.inputs:
        raise ExportError(
            f"{type(module).__name__} has no tensor among its example inputs, so the model would be a constant; give "
            "tensors in args or kwargs"
        )


def nested_shapes(module: Any, args: tuple[Any, ...], dynamic_shapes: Any) -> Any:
    """Dynamic shapes as torch.export wants them for a forward(x, *rest): what goes into rest is a tuple of its own."""
    kinds = [one.kind for one in inspect.signature(module.forward).parameters.values()]
    rest = inspect.Parameter.VAR_POSITIONAL
    if rest in kinds and isinstance(dynamic_shapes, tuple | list) and len(dynamic_shapes) == len(args) > 0:
        place = kinds.index(rest)
        return (*dynamic_shapes[:place], tuple(dynamic_shapes[place:]))
    return dynamic_shapes

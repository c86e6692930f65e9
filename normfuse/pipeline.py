"""The pipeline: load → opset → prepare → LIFT → FOLD → block → LOWER → layout → clean → save; observers between."""

import logging
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import onnx_ir as ir

from normfuse.alike import did_you_mean
from normfuse.arguments import check
from normfuse.errors import NormfuseError, ParityError
from normfuse.model import Source, load, restore_kind
from normfuse.passes import clean, prepare
from normfuse.passes import opset as opsets
from normfuse.passes.clean import CleanPass
from normfuse.passes.fold import FoldPass
from normfuse.passes.fold_rules import FOLD_RULES
from normfuse.passes.journal import Journal
from normfuse.passes.layout import LayoutPass
from normfuse.passes.lift import LiftPass
from normfuse.passes.lower import LowerPass, RestorePass
from normfuse.passes.lower_blocks import BLOCKS, BlockPass
from normfuse.passes.lowering import Chooser, by_table
from normfuse.passes.lowerings import LOWERINGS
from normfuse.passes.prepare import PreparePass
from normfuse.passes.recognizers import RECOGNIZERS
from normfuse.passes.removal import RemoveUnusedPass
from normfuse.passes.rule import Rule
from normfuse.passes.weights import forget_exact
from normfuse.report import Counts, Refusal, Report, unique
from normfuse.signatures import explained
from normfuse.target import Target

if TYPE_CHECKING:
    from normfuse.foreign import Foreign
    from normfuse.tuning import Tuner

Observer = Callable[[str, ir.Model], None]
"""Called after each stage with the stage's name and the model as it is then; it must not change it."""


STAGES = ("lift", "fold", "block", "lower")
"""Stages that can be left out as a whole."""

_ROUNDS = 6
"""What LOWER writes may be folded again, and nodes that `clean` merges have more readers: these stages run until they
write nothing new and `clean` removes nothing, but so often at most."""


@dataclass(frozen=True, slots=True)
class Result:
    """What `optimize` returns.

    Attributes:
        model: the optimized model, of the kind that was given (a path gives an `onnx.ModelProto`).
        report: what was changed, what was not and why, and the proof.
    """

    model: Any
    report: Report


def rules() -> tuple[Rule, ...]:
    """All rules, in the order of the stages."""
    return (*opsets.RULES, *prepare.RULES, *RECOGNIZERS, *FOLD_RULES, *BLOCKS, *LOWERINGS, *clean.RULES)


def optimize(
    source: Source,
    target: str | Target = "cpu",
    *,
    threads: int | None = None,
    opset: int | None = None,
    select: Collection[str] = (),
    ignore: Collection[str] = (),
    freeze: bool | None = None,
    tune: "bool | Tuner" = False,
    verify: bool = True,
    verify_budget: float = 60.0,
    data: Any = None,
    shapes: Mapping[str, Any] | None = None,
    observers: Collection[Observer] = (),
) -> Result:
    """Folds every affine map of a model into its neighbours, and proves that the result computes the same.

    Args:
        source: a path, bytes, an `onnx.ModelProto`, an `onnx_ir.Model` or `torch.onnx.ONNXProgram`; it is not changed.
        target: where the model will run: `portable`, `cpu` or `cuda`, or a `Target`.
        threads: intra-op threads that the session will use; those of this machine where None.
        opset: the opset to raise the model to, by onnx's version converter; that of the model where None.
        select: names of the rules of FOLD and LOWER to use; all where empty.
        ignore: names of rules, or of the stages `STAGES`, not to use.
        freeze: whether initializers that are listed as graph inputs become constants; None does so where the exporter
            listed all of them.
        tune: whether to measure the forms of each normalization on this machine and take the fastest, instead of what
            is known of processors like it; or the `normfuse.tuning.Tuner` that is to do so. What was measured is kept.
        verify: whether to compare the result with the original against a float64 oracle.
        verify_budget: seconds that the oracle may take.
        data: inputs to verify with, as `normfuse.verify` takes them.
        shapes: shapes to verify and to tune with, by input name.
        observers: called after each stage.

    Returns:
        the model and the report.

    Raises:
        ModelError: the model cannot be read or is not valid.
        NormfuseError: a rule is not known, or an argument is wrong.
        TargetError: ONNX Runtime is missing, or cannot run the model.
        ParityError: the result does not compute what the original computes.

    Example:
        >>> import numpy as np, onnx_ir as ir
        >>> x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([2, 3]))
        >>> twice = ir.Value(name="twice", const_value=ir.tensor(np.float32([2.0])))
        >>> first = ir.node("Mul", [x, twice], name="first")
        >>> second = ir.node("Mul", [first.outputs[0], twice], name="second")
        >>> graph = ir.Graph([x], second.outputs, nodes=[first, second], initializers=[twice],
        ...                  opset_imports={"": 18}, name="g")
        >>> result = optimize(ir.Model(graph, ir_version=10), verify=False)
        >>> len(result.model.graph), result.report.changes[0].detail
        (1, '2 nodes became one')
    """
    check(target=target, threads=threads, opset=opset, select=select, ignore=ignore, freeze=freeze, tune=tune)
    check(verify=verify, verify_budget=verify_budget, data=data, shapes=shapes, observers=observers)
    Target.parse(target, threads)
    check_rules(select, ignore)
    settings: Settings = {
        "threads": threads,
        "opset": opset,
        "select": select,
        "ignore": ignore,
        "freeze": freeze,
        "tune": tune,
        "shapes": shapes,
        "observers": observers,
    }
    original = load(source)
    if not verify:
        with explained(lambda: load(source)):
            report = rewrite(original, target, **settings)
        return Result(restore_kind(original, source), report)
    model, report = prove(original, target, verify_budget=verify_budget, data=data, **settings)
    if report.parity is not None and not report.parity.passed:
        error = ParityError(report.parity.against("original"))
        error.add_note("run with verify=False to look at the result")
        raise error
    return Result(restore_kind(model, source), report)


class Settings(TypedDict, total=False):
    """The arguments of `optimize` that say what is rewritten, and how."""

    threads: int | None
    opset: int | None
    select: Collection[str]
    ignore: Collection[str]
    freeze: bool | None
    tune: "bool | Tuner"
    shapes: Mapping[str, Any] | None
    observers: Collection[Observer]


def prove(
    original: ir.Model,
    target: str | Target = "cpu",
    *,
    reference: "Foreign | None" = None,
    verify_budget: float = 60.0,
    data: Any = None,
    progress: Callable[[str], None] | None = None,
    **settings: Unpack[Settings],
) -> tuple[ir.Model, Report]:
    """Rewrites a copy of a model, with a certificate for each change and the proof of the whole.

    A change whose certificate fails is left out, and the model rewritten anew without it.

    Args:
        original: what `normfuse.model.load` returned; it is not changed.
        target: as for `optimize`.
        reference: what the whole is judged against instead of the model, such as the torch module it was made from.
        verify_budget: seconds that the certificates may take, and the proof of the whole again.
        data: as for `optimize`.
        progress: called with what is being done.
        settings: as for `optimize`.

    Returns:
        the result, and the report with the certificates and the parity; one that fails is returned, not raised.

    Raises:
        ParityError: there is no end to the changes that fail, or the outputs are random.
        NormfuseError: as `rewrite` and `normfuse.verify`.
    """
    from normfuse.certificates import fingerprint
    from normfuse.certification import ATTEMPTS, Certifier
    from normfuse.randomness import unprovable
    from normfuse.verification import of_unchanged, verify

    if reason := unprovable(original):
        raise ParityError(f"{reason}; --no-verify leaves the proof out")
    where = Target.parse(target, settings.get("threads")).provider
    failed: dict[tuple[str, tuple[str, ...]], str] = {}
    for _ in range(ATTEMPTS):
        model = original.clone()
        certifier = Certifier(failed, provider=where, budget=verify_budget, say=progress)
        with explained(original.clone):
            report = rewrite(model, target, journal=certifier, **settings)
        if not certifier.failed:
            break
        failed |= certifier.failed
    else:
        (rule, nodes), reason = next(iter(certifier.failed.items()))
        raise ParityError(f"{rule} of {', '.join(nodes)}: {reason}; --ignore {rule} leaves it out")
    report.certificates = certifier.certificates
    report.left_out = [(*key, reason) for key, reason in failed.items()]
    refusals = [Refusal(rule, nodes[-1], reason) for rule, nodes, reason in report.left_out]
    report.refusals = unique([*report.refusals, *refusals])
    with explained(original.clone):
        report.parity = verify(
            original if reference is None else reference,
            model,
            data=data,
            budget=verify_budget,
            provider=where,
            stand_in=True,
            shapes=settings.get("shapes"),
            progress=progress,
        )
    unproved = reference is None and not report.parity.passed and not report.changes
    if unproved and fingerprint(model) == fingerprint(original):
        report.parity = of_unchanged(report.parity)
    return model, report


def rewrite(
    model: ir.Model,
    target: str | Target = "cpu",
    *,
    threads: int | None = None,
    opset: int | None = None,
    select: Collection[str] = (),
    ignore: Collection[str] = (),
    freeze: bool | None = None,
    tune: "bool | Tuner" = False,
    shapes: Mapping[str, Any] | None = None,
    observers: Collection[Observer] = (),
    journal: Journal | None = None,
    choose: Chooser | None = None,
) -> Report:
    """Runs the stages on a model that `normfuse.model.load` returned, in place and without a proof.

    The arguments are those of `optimize`; the journal is told of each change, and may forbid it; `choose` takes the
    place of the table of lowerings.

    Raises:
        NormfuseError: a rule is not known, or an argument is wrong.
        TargetError: it is to be tuned, and ONNX Runtime or the provider is missing.
    """
    check_rules(select, ignore)
    where = Target.parse(target, threads)
    opsets.check_opset(opset, model.opset_imports.get("", 0), where)
    tuner = _tuner(tune, where, shapes)
    before = Counts.of(model)
    typed = _typed_names(model)
    declared = {graph: [(value.type, value.shape) for value in graph.outputs] for graph in model.graphs()}
    journal, choice = journal or Journal(), choose or tuner or by_table
    journal.model = model
    preparing, joining = PreparePass(freeze, ignore, journal), LayoutPass(journal)
    folding = FoldPass(select, ignore, journal)
    raising = None if opset is None else opsets.OpsetPass(opset, journal)
    unselected = [rule.name for rule in (*BLOCKS, *LOWERINGS) if select and rule.name not in select]
    blocking = BlockPass(where, [*ignore, *unselected], journal)
    lifting, lowering = LiftPass(ignore), LowerPass(where, [*ignore, *unselected], choice, journal)
    joint: dict[str, ir.passes.PassBase] = {
        "lift": lifting,
        "fold": folding,
        "block": blocking,
        "lower": RestorePass() if "lower" in ignore else lowering,
        "layout": joining,
    }
    for name in joint.keys() & set(ignore) - {"lower"}:
        del joint[name]

    def run(name: str, stage: ir.passes.PassBase) -> None:
        stage(model)
        for observe in observers:
            observe(name, model)

    with quiet():
        if raising is not None and "opset" not in ignore:
            run("opset", raising)
        run("prepare", preparing)
        first: list[Refusal] = []
        for repeat in range(_ROUNDS):
            RemoveUnusedPass()(model)  # they count as readers
            written = sum(len(stage.changes) for stage in (folding, blocking, lowering, joining))
            for name, stage in joint.items():
                run(name, stage)
            if not repeat:  # what hides an activation in the first round may be folded into it by the next
                first = list(lifting.refusals)
            if written != sum(len(stage.changes) for stage in (folding, blocking, lowering, joining)):
                continue
            left = _count_nodes(model)
            forget_exact(model)  # as in a model that was saved and loaded
            run("clean", CleanPass())
            if _count_nodes(model) == left:
                break
        else:
            forget_exact(model)
            run("clean", CleanPass())
    _forget_types(model, typed)
    for graph in model.graphs():
        for value, (kind, shape) in zip(graph.outputs, declared.get(graph, ()), strict=False):
            value.type, value.shape = kind, shape
    written_anew = (*blocking.changes, *lowering.changes)
    rewritten = {name for change in written_anew for name in (*change.nodes, *change.into)}
    raised = [] if raising is None else raising.changes
    first = [refusal for refusal in first if refusal.node not in rewritten]
    stays = [refusal for refusal in folding.refusals if refusal.node not in rewritten]
    if tuner is not None and tuner is not tune and tuner.cache.warning:
        warnings.warn(tuner.cache.warning, stacklevel=3)
    lost = opsets.lost_kernels(model, where)
    return Report(
        before,
        Counts.of(model),
        [*raised, *preparing.changes, *folding.changes, *blocking.changes, *lowering.changes, *joining.changes],
        unique([*preparing.refusals, *first, *lifting.refusals, *stays, *blocking.refusals, *lowering.refusals, *lost]),
    )


def _tuner(tune: "bool | Tuner", target: Target, shapes: Mapping[str, Any] | None) -> "Tuner | None":
    """What measures, ready for a target.

    Raises:
        TargetError: ONNX Runtime or the provider is missing.
    """
    if not tune:
        return None
    from normfuse.tuning import Tuner

    tuner = tune if isinstance(tune, Tuner) else Tuner(shapes)
    tuner.require(target)
    return tuner


def check_rules(select: Collection[str], ignore: Collection[str]) -> None:
    """Checks names of rules and stages.

    Raises:
        NormfuseError: there is no rule of a name, or it cannot be selected.
    """
    for chosen, known in (
        (select, [rule.name for rule in (*FOLD_RULES, *BLOCKS, *LOWERINGS)]),
        (ignore, [*(rule.name for rule in rules()), *STAGES]),
    ):
        if isinstance(chosen, str):
            raise NormfuseError(f"rules are given as a list of names, such as [{chosen!r}]")
        for name in chosen:
            if name in known:
                continue
            if name in (rule.name for rule in rules()):
                raise NormfuseError(f"rule {name!r} cannot be selected; only rules of FOLD, BLOCKS and LOWER can")
            raise NormfuseError(f"unknown rule {name!r}; {did_you_mean(name, known) or 'see `normfuse explain`'}")


def _typed_names(model: ir.Model) -> set[str]:
    """The values whose types the model states; of those that a subgraph gives out, the subgraph does."""
    return {
        value.name or "" for value in _inner_values(model) if value.type is not None or _has_graphs(value.producer())
    }


def _count_nodes(model: ir.Model) -> int:
    return sum(1 for graph in model.graphs() for _ in graph)


def _has_graphs(node: ir.Node | None) -> bool:
    kinds = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    return node is not None and any(attribute.type in kinds for attribute in node.attributes.values())


def _forget_types(model: ir.Model, typed: set[str]) -> None:
    """Takes back the shapes that were inferred for values which came without."""
    for value in _inner_values(model):
        if value.name not in typed:
            value.type = None
            value.shape = None


def _inner_values(model: ir.Model) -> Iterator[ir.Value]:
    for graph in model.graphs():
        outputs = set(graph.outputs)
        for node in graph:
            yield from (value for value in node.outputs if value not in outputs)


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps the passes of onnx_ir from writing warnings about what they skip."""
    logger = logging.getLogger("onnx_ir")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)

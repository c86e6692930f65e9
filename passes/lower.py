"""LOWER: each normalization in the best form for the target; what no row improves is put back as it was."""

from collections.abc import Collection

import onnx_ir as ir

from normfuse.passes.access import RefusedError, title
from normfuse.passes.emitter import Emitter
from normfuse.passes.journal import Journal
from normfuse.passes.lifted import DOMAIN, inline, lifted, remove_unread, take_over, tidy
from normfuse.passes.likeness import Likeness
from normfuse.passes.lowering import Chooser, Lowering, NormSite, OtherFormError, by_table, grows, site_of
from normfuse.passes.lowerings import LOWERINGS
from normfuse.passes.norms import ONLY_ROUNDING, is_only_rounding, read_norm
from normfuse.passes.weights import Weights
from normfuse.report import Change, Refusal
from normfuse.target import Target

CANCELLING = frozenset({"GroupNorm", "GroupNormalization", "SkipGroupNorm", "SkipLayerNormalization"})
"""Operators whose kernels compute the variance as E[x²] − E[x]²."""

_MOST_PASSED = 4
"""So many nodes in front of a normalization are left out at most: a Transpose, an Add, a Reshape."""


class LowerPass(ir.passes.InPlacePass):
    """Writes normalizations for a target, in the graph and its subgraphs.

    Attributes:
        changes: what was rewritten.
        refusals: what was not, with the reasons.
    """

    def __init__(
        self,
        target: Target,
        ignore: Collection[str] = (),
        choose: Chooser = by_table,
        journal: Journal | None = None,
    ) -> None:
        """Uses the rows for a target, except those that `ignore` names; `choose` says which of them for each site."""
        super().__init__()
        self._journal = journal or Journal()
        self._target = target
        self._choose = choose
        self._rows = tuple(row for row in LOWERINGS if target.provider in row.targets and row.name not in ignore)
        self.changes: list[Change] = []
        self.refusals: list[Refusal] = []

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Lowers every normalization."""
        self.refusals = []
        weights = Weights(model)
        before = len(self.changes)
        for graph in (model.graph, *model.graph.subgraphs()):
            for node in tuple(graph):
                if node.graph is graph:
                    self._lower(model, node, weights)
        restore(model)
        return ir.passes.PassResult(model, len(self.changes) > before)

    def _lower(self, model: ir.Model, node: ir.Node, weights: Weights) -> None:
        try:
            norm = read_norm(node, weights)
            if norm is None:
                return
            site = site_of(norm, weights)
            if 0 in norm.dims:
                raise RefusedError("it normalizes no elements: one of the dimensions is 0")
            if is_only_rounding(norm):
                raise RefusedError(ONLY_ROUNDING)
            site.dtype  # noqa: B018  # raises where it is not known
        except RefusedError as refused:
            self.refusals.append(Refusal("lower", node.name or node.op_type, str(refused)))
            return
        reasons: dict[str, str] = {}
        choice = self._choose(model, site, self._rows, self._target)
        for row in choice.rows:
            if row is None:
                if choice.remark:
                    self.refusals.append(Refusal("lower", site.names[-1], choice.remark))
                return
            emitter = Emitter(weights, str(site.output.name))
            try:
                result = row.law(site, emitter, self._target)
            except RefusedError as refused:
                if not isinstance(refused, OtherFormError):
                    reasons.setdefault(str(refused), row.name)
                emitter.discard()
                continue
            if not emitter.nodes or Likeness(model).alike(result, site.output):
                emitter.discard()
                return
            if grows(site, emitter, self._target):
                reasons[f"it would take {len(emitter.nodes)} nodes, not {len(site.names)}"] = row.name
                emitter.discard()
                continue
            names = (*site.names, *(node.name or node.op_type for node in emitter.consumed))
            forbidden = self._journal.forbids(row.name, names)
            if forbidden:
                reasons[forbidden] = row.name
                emitter.discard()
                continue
            self._commit(model, row, site, emitter, result, choice.remark)
            return
        if lifted(node) is not None and any(lifted(inner) or read_op(inner, weights) for inner in _body(model, node)):
            for inner in inline(model, node):  # what stands within may be served where the whole is not
                self._lower(model, inner, weights)
            return
        if not reasons:
            kind = site.norm.name(site.standardize)
            self.refusals.append(Refusal("lower", site.names[-1], f"no row writes this {kind} in another form"))
        for reason, name in reasons.items():
            self.refusals.append(Refusal("lower", site.names[-1], f"{name}: {reason}"))

    def _commit(
        self, model: ir.Model, row: Lowering, site: NormSite, emitter: Emitter, result: ir.Value, remark: str
    ) -> None:
        detail = f"{site.norm.name(site.standardize)} as {', '.join(node.op_type for node in emitter.nodes)}"
        names = (*site.names, *(node.name or node.op_type for node in emitter.consumed))
        taken = [node for value in emitter.takes if (node := value.producer()) is not None]
        touched = [*site.nodes, *emitter.consumed, *taken, *_passed_over(site, emitter)]
        seen = self._journal.before(list(dict.fromkeys(touched)))
        replace(model, site, emitter, result)
        into = tuple(str(node.name) for node in emitter.nodes)
        if site.standardize.cancels and not CANCELLING & {node.op_type for node in emitter.nodes}:
            detail += "; more accurate: its variance was E[x²] − E[x]², which is wrong at large means"
        if remark:
            detail += f"; {remark}"
        change = Change(row.name, names, into, detail)
        self._journal.after(seen, change)
        self.changes.append(change)


class RestorePass(ir.passes.InPlacePass):
    """Puts everything that was lifted back as it was."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Restores a model."""
        lifts = any(identifier[0] == DOMAIN for identifier in model.functions)
        restore(model)
        return ir.passes.PassResult(model, lifts)


def _body(model: ir.Model, call: ir.Node) -> tuple[ir.Node, ...]:
    """The nodes in a lifted call."""
    return tuple(model.functions[call.op_identifier()])


def _passed_over(site: NormSite, emitter: Emitter) -> list[ir.Node]:
    """The nodes in front of a normalization that what was written does without, as it reads what they read."""
    reads = {value for node in emitter.nodes for value in node.inputs}
    passed: list[ir.Node] = []
    value: ir.Value | None = site.data
    while value is not None and value not in reads and len(passed) < _MOST_PASSED:
        node = value.producer()
        if node is None or not node.inputs:
            return []
        passed.append(node)
        value = node.inputs[0]
    return passed if value in reads else []


def read_op(node: ir.Node, weights: Weights) -> bool:
    """Whether a node is a normalization."""
    try:
        return read_norm(node, weights) is not None
    except RefusedError:
        return False


def replace(model: ir.Model, site: NormSite, emitter: Emitter, result: ir.Value) -> None:
    """Puts what was written in the place of a normalization, the affine nodes behind it, and what it takes besides."""
    output, last = site.output, site.nodes[-1]
    for node in emitter.nodes:
        if node.domain:
            model.opset_imports.setdefault(node.domain, 1)
    emitter.commit(emitter.before or last)
    for old, new in emitter.takes.items():
        take_over(old, new)
    left = remove_unread(model, emitter.consumed)
    if output.uses() or output.is_graph_output():
        take_over(output, result)
    assert not remove_unread(model, [*left, *site.nodes]), "a node that was replaced is still read"


def restore(model: ir.Model) -> None:
    """Puts back as it was whatever is still lifted."""
    for graph in (model.graph, *model.graph.subgraphs()):
        pending = [node for node in graph if node.domain == DOMAIN]
        while pending:
            pending.extend(node for node in inline(model, pending.pop()) if node.domain == DOMAIN)
    tidy(model)


__all__ = ["LowerPass", "RestorePass", "replace", "restore", "title"]

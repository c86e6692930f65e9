"""FOLD: affine maps join the weights of their neighbours.

For each site, a chain of affine nodes that compose to one map y = s · x + t, in this order:

1. the map is the identity: the chain goes;
2. what computes x takes the map, or all readers of y do;
3. the scale goes one way and the shift the other;
4. where that removes a node: one of the two goes, and the other stays as one node;
5. the chain becomes one node.

At last, biases of linear operators that a centred normalization drops are taken away.

The result never has more nodes than before; with as many, it has less work.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import partial

import onnx_ir as ir

from normfuse.affine import Affine
from normfuse.passes.absorb_affine import is_writable, write
from normfuse.passes.access import RefusedError, dims, operator, title
from normfuse.passes.cancelling import check_composing
from normfuse.passes.deal import Need
from normfuse.passes.demand import Demand
from normfuse.passes.fold_rules import ABSORB, BIAS, CARRY, SOURCES
from normfuse.passes.journal import Journal
from normfuse.passes.lifted import DOMAIN
from normfuse.passes.plan import STEPS, Plan
from normfuse.passes.rule import Rule, by_operator
from normfuse.passes.runtime_fusions import kept_for_runtime
from normfuse.passes.sources import Source, read
from normfuse.passes.weights import Weights, mark_functions
from normfuse.report import Change, Refusal

_ROUNDS = 16


@dataclass(frozen=True, slots=True)
class Site:
    """A chain of affine nodes, each the only reader of the one before.

    Attributes:
        sources: the nodes, in the order of the data.
        affine: what they compute together.
    """

    sources: tuple[Source, ...]
    affine: Affine

    @property
    def first(self) -> Source:
        """The node that reads the data."""
        return self.sources[0]

    @property
    def last(self) -> ir.Node:
        """The node whose output the chain computes."""
        return self.sources[-1].node

    @property
    def nodes(self) -> tuple[ir.Node, ...]:
        """The nodes of the chain."""
        return tuple(source.node for source in self.sources)

    def behind(self, affine: Affine) -> Need:
        """A map that what computes the data would have to take."""
        return Need(self.first.node, self.first.index, affine, "after")

    def ahead(self, affine: Affine) -> Need:
        """A map that all readers of the chain would have to take."""
        return Need(self.last, 0, affine, "before")


class FoldPass(ir.passes.InPlacePass):
    """Folds affine maps into their neighbours, in all graphs and model-local functions.

    Attributes:
        changes: what was done.
        refusals: what was not done, with the reasons.
        carried: the names of the rules by which maps passed nodes on their way to those that took them in.
    """

    def __init__(
        self, select: Collection[str] = (), ignore: Collection[str] = (), journal: Journal | None = None
    ) -> None:
        """Uses the rules that `select` names (all where it is empty) except those that `ignore` names."""
        super().__init__()
        self._journal = journal or Journal()

        def chosen(rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
            return tuple(rule for rule in rules if rule.name not in ignore and (not select or rule.name in select))

        self._sources = chosen(SOURCES)
        self._biases = chosen((BIAS,))
        self._rows = by_operator(chosen(ABSORB) + chosen(CARRY))
        self.changes: list[Change] = []
        self.refusals: list[Refusal] = []
        self.carried: list[str] = []

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Folds until nothing changes any more."""
        self.refusals = []
        mark_functions(model)
        weights = Weights(model)
        self._demand = Demand(self._rows, weights, STEPS)
        before = len(self.changes)
        for graph, opset in _graphs(model):
            weights.opset = opset
            for _ in range(_ROUNDS):
                refusals: list[Refusal] = []
                if not self._fold_graph(graph, weights, refusals):
                    break
            self.refusals.extend(refusals)
            self._drop_biases(graph, weights)
        return ir.passes.PassResult(model, len(self.changes) > before)

    def _fold_graph(self, graph: ir.Graph, weights: Weights, refusals: list[Refusal]) -> bool:
        changed = False
        kept = kept_for_runtime(graph)
        seen: set[ir.Node] = set()
        for node in tuple(graph):
            if node.graph is not graph or node in seen:
                continue
            found = read(node, weights, self._sources)
            if found is None:
                continue
            rule = found.rule if isinstance(found, Source) else self._rule_of(node)
            if isinstance(found, str) or node in kept:
                reason = found if isinstance(found, str) else kept[node]
                if isinstance(found, str) or not found.affine.is_identity:
                    refusals.append(Refusal(rule, node.name or node.op_type, reason))
                    continue
            assert isinstance(found, Source)
            site = self._site(found, weights, kept)
            seen.update(site.nodes)
            obstacle = self._fold_site(site, weights)
            if obstacle is None:
                changed = True
            elif obstacle:
                refusals.extend(
                    Refusal(source.rule, source.node.name or source.node.op_type, obstacle) for source in site.sources
                )
        return changed

    def _drop_biases(self, graph: ir.Graph, weights: Weights) -> None:
        """Takes a bias away where all that reads its sum drops shifts."""
        for node in graph:
            for rule in self._biases:
                if operator(node) not in rule.operators:
                    continue
                plan = Plan(self._rows, weights, touched=[node])
                try:
                    found = rule.law(node, weights)
                    if found is None or found[1].is_identity:
                        continue
                    need = Need(node, 0, found[1], "before")
                    self._demand.forget()
                    if self._demand.is_hopeless(need):
                        continue
                    plan.take(need)
                except RefusedError:
                    continue
                if plan.takers and not (plan.changes or plan.rewrites or plan.added):
                    names = tuple(taker.name or taker.op_type for _, taker in plan.takers)
                    change = Change(rule.name, (node.name or node.op_type,), names, "its bias changes nothing")
                    forbidden = self._journal.forbids(change.rule, change.nodes)
                    if forbidden:
                        self.refusals.append(Refusal(rule.name, change.nodes[0], forbidden))
                        continue
                    seen = self._journal.before(plan.touched)
                    node.resize_inputs(2)
                    self._journal.after(seen, change)
                    self.changes.append(change)

    def _rule_of(self, node: ir.Node) -> str:
        return next(rule.name for rule in self._sources if node.op_type in rule.operators)

    def _site(self, source: Source, weights: Weights, kept: dict[ir.Node, str]) -> Site:
        """The chain that starts with a source."""
        chain, affine = [source], source.affine
        while True:
            output = chain[-1].node.outputs[0]
            uses = tuple(output.uses())
            if len(uses) != 1 or output.is_graph_output():
                break
            reader = uses[0].node
            found = read(reader, weights, self._sources) if reader.graph is source.node.graph else None
            if not isinstance(found, Source) or found.index != uses[0].idx or reader in kept:
                break
            if not affine.meets(found.affine) or not _may_compose(source.data, affine, found.affine):
                break
            chain.append(found)
            affine = affine.then(found.affine)
        return Site(tuple(chain), affine)

    def _fold_site(self, site: Site, weights: Weights) -> str | None:
        """Folds a site; returns None when it did, the reason when it could not."""
        affine, count = site.affine, len(site.sources)
        reasons: list[str | Need] = []  # a need stands for why nobody takes it
        if affine.is_identity:
            if not _is_replaceable(site):
                return ""
            obstacle = self._commit(site, Plan(self._rows, weights), None)
            return obstacle or None
        self._demand.forget()
        halves = not affine.keeps_scale and not affine.keeps_origin
        for needs, rest in _strategies(site):
            if any(self._demand.is_hopeless(need) for need in needs):
                if len(needs) == 1 and rest is None:
                    reasons.append(needs[0])
                continue
            plan = Plan(self._rows, weights, touched=list(site.nodes))
            try:
                for need in needs:
                    plan.take(need)
            except RefusedError as refused:
                if len(needs) == 1 and rest is None:
                    reasons.append(str(refused))
                continue
            if rest is None and not _is_replaceable(site):
                reasons.append("it names an output of the graph that nothing else can name")
                continue
            left = plan.added + (rest is not None)
            if left < count or (left == count == 1 and rest is None and halves):
                if rest is not None:
                    if not is_writable(site.first, rest, weights):
                        continue
                    plan.rewrites.append(partial(write, site.first, rest, weights))
                obstacle = self._commit(site, plan, rest)
                if not obstacle:
                    return None
                reasons.append(obstacle)
                continue
            reasons.append("it would take as many nodes as it removes")
        unmerged = self._merge(site, weights)
        if unmerged is None:
            return None
        reasons.extend([unmerged] if unmerged else [])
        if count == 1 and _is_bias_of_product(site):
            return ""
        texts = (self._refusal(site, one, weights) if isinstance(one, Need) else one for one in reasons)
        return "; ".join(dict.fromkeys(texts))

    def _refusal(self, site: Site, need: Need, weights: Weights) -> str:
        """Why nobody takes a map for which there is no hope."""
        try:
            Plan(self._rows, weights, touched=list(site.nodes)).take(need)
        except RefusedError as refused:
            return str(refused)
        return "nobody takes it"

    def _merge(self, site: Site, weights: Weights) -> str | None:
        """Writes a chain as one node where one can hold it; returns None when it did, else what forbids it."""
        if len(site.sources) < 2:
            return ""
        for holder in site.sources:
            if _knows_layout(site, holder) and is_writable(holder, site.affine, weights):
                plan = Plan(self._rows, weights)
                plan.rewrites.append(partial(_write_chain, site, holder, weights))
                change = self._change(site, plan, f"{len(site.sources)} nodes became one", (holder.node,))
                forbidden = self._journal.forbids(change.rule, change.nodes)
                if forbidden:
                    return forbidden
                seen = self._journal.before(site.nodes)
                plan.commit()
                self._journal.after(seen, change)
                self.changes.append(change)
                return None
        return ""

    def _commit(self, site: Site, plan: Plan, rest: Affine | None) -> str:
        """Carries a plan out; returns what forbids it, or nothing when it did."""
        takers = tuple(dict.fromkeys(node for _, node in plan.takers))
        detail = "changes nothing" if not plan.touched else "folded into " + ", ".join(map(title, takers))
        if rest is not None:
            detail = f"{'scale' if rest.keeps_scale else 'shift'} {detail}"
        change = self._change(site, plan, detail, takers)
        forbidden = self._journal.forbids(change.rule, change.nodes)
        if forbidden:
            return forbidden
        seen = self._journal.before(list(dict.fromkeys([*site.nodes, *plan.touched])))
        plan.commit()
        kept = () if rest is None else (site.first.node,)
        source = site.first.data if rest is None else site.first.node.outputs[0]
        _bypass(site, source, kept)
        self._journal.after(seen, change)
        self.changes.append(change)
        self.carried += plan.carriers
        return ""

    def _change(self, site: Site, plan: Plan, detail: str, into: tuple[ir.Node, ...]) -> Change:
        rule = plan.takers[0][0].name if plan.takers else site.first.rule
        names = tuple(node.name or node.op_type for node in site.nodes)
        text = "; ".join((detail, *plan.notes))
        return Change(rule, names, tuple(node.name or node.op_type for node in into), text)


def _may_compose(value: ir.Value, first: Affine, second: Affine) -> bool:
    try:
        check_composing(value, first, second)
    except RefusedError:
        return False
    return True


def _strategies(site: Site) -> Iterator[tuple[tuple[Need, ...], Affine | None]]:
    """Ways to move a map: who takes what, and the half that stays as one node."""
    affine = site.affine
    yield (site.behind(affine),), None
    yield (site.ahead(affine),), None
    if affine.keeps_scale or affine.keeps_origin:
        return
    scaling, shifting = affine.scaling, affine.shifting
    yield (site.behind(scaling), site.ahead(shifting)), None
    if affine.is_invertible:
        yield (site.behind(affine.preshifting), site.ahead(scaling)), None
    if len(site.sources) < 2:
        return
    yield (site.behind(scaling),), shifting
    yield (site.ahead(shifting),), scaling
    if affine.is_invertible:
        yield (site.ahead(scaling),), affine.preshifting
        yield (site.behind(affine.preshifting),), scaling


def _graphs(model: ir.Model) -> Iterator[tuple[ir.Graph, int]]:
    opset = model.opset_imports.get("", 1)
    for graph in (model.graph, *model.graph.subgraphs()):
        yield graph, opset
    for function in model.functions.values():
        if function.domain == DOMAIN:
            continue  # what was lifted is one node
        for graph in (function.graph, *function.subgraphs()):
            yield graph, function.opset_imports.get("", opset)


def _is_replaceable(site: Site) -> bool:
    """Whether the readers of a chain can read its data instead: an output of a graph must be computed in that graph."""
    output, data = site.last.outputs[0], site.first.data
    if not output.is_graph_output():
        return True
    producer = data.producer()
    return producer is not None and producer.graph is site.last.graph and not data.is_graph_output()


def _bypass(site: Site, source: ir.Value, kept: tuple[ir.Node, ...]) -> None:
    """Lets the readers of a chain read another value, and removes the nodes of the chain that are not kept."""
    output = site.last.outputs[0]
    if output is not source:
        if output.is_graph_output():
            name, output.name = output.name, None
            output.replace_all_uses_with(source, replace_graph_outputs=True)
            source.name, source.type = name, output.type
            source.metadata_props.update(output.metadata_props)
            source.doc_string = output.doc_string
        else:
            output.replace_all_uses_with(source)
    graph = site.last.graph
    assert graph is not None
    for node in reversed(site.nodes):
        if node not in kept:
            graph.remove(node, safe=True)


def _knows_layout(site: Site, source: Source) -> bool:
    """Whether the map of a chain can be written with the dimensions that one of its nodes knows."""
    return site.affine.axis is None or dims(source.data) is not None or source.node.op_type == "BatchNormalization"


def _write_chain(site: Site, holder: Source, weights: Weights) -> None:
    data = site.first.data
    holder.node.replace_input_with(holder.index, data)
    write(holder, site.affine, weights)
    _bypass(site, holder.node.outputs[0], (holder.node,))


def _is_bias_of_product(site: Site) -> bool:
    """Whether a site is what a MatMul has for a bias: the form to keep."""
    producer = site.first.data.producer()
    return site.affine.keeps_scale and producer is not None and producer.op_type in ("Einsum", "MatMul")

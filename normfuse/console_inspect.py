"""What `normfuse inspect` found, as text: normalizations, affine maps, their time, and the blocked layout."""

import sys
from collections import defaultdict
from collections.abc import Sequence

from normfuse.blocked import Break, Layout
from normfuse.fates import Fate
from normfuse.inspection import Inspection
from normfuse.shares import Profile
from normfuse.site import Site
from normfuse.tables import few, nameless, percent, print_lines, print_table, shape, short, table

MOST_ROWS = 30
"""Affine maps are listed one by one up to this many, unless all are asked for; else those alike are counted."""

_TRIVIAL = "no better form is known"


def print_inspection(found: Inspection, *, verbose: bool = False) -> None:
    """Prints what a model normalizes, and what would become of it.

    Args:
        found: what `normfuse.inspect` returned.
        verbose: list every affine map, every node and every reason.
    """
    norms = [site for site in found if site.is_norm]
    affines = [site for site in found if not site.is_norm]
    timed = found.profile is not None
    if norms:
        _print_norms(norms, timed, verbose)
    if affines:
        _print_affines(affines, timed, verbose)
    if found.layout is not None and (found.layout.reorders or not found.layout.known):
        _print_layout(found.layout, verbose)
    if found.profile is not None:
        _print_profile(found.profile)
    if not found:
        print_lines("no normalization and no affine map found")
        return
    spelled = sum(len(site.nodes) > 1 for site in norms)
    go = sum(site.outcome != "stays" for site in found)
    print_lines(
        f"{_count(len(norms), 'normalization')} ({spelled} spelled out), {_count(len(affines), 'affine map')}; "
        f"{go} of them go or are rewritten, {len(found) - go} stay"
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _print_norms(norms: Sequence[Site], timed: bool, verbose: bool) -> None:
    """Prints those alike under one head: what they compute and what becomes of them for each target."""
    groups: dict[tuple[object, ...], list[Site]] = defaultdict(list)
    for site in norms:
        ends = tuple((name, _fate(fate, verbose)) for name, fate in site.targets.items())
        groups[site.name, site.operator, site.formula, site.details, site.scale, site.bias, ends].append(site)
    for sites in groups.values():
        first = sites[0]
        spelled = f" ({_count(len(first.nodes), 'node')})" if len(first.nodes) > 1 else f" ({first.operator})"
        print_lines(f"{first.name}{spelled}: {first.formula}")
        for detail in first.details:
            print_lines(f"  {detail}")
        if first.scale or first.bias:
            parts = [f"{name} {kind}" for name, kind in (("γ", first.scale), ("β", first.bias)) if kind]
            print_lines(f"  {', '.join(parts)}" if first.scale != first.bias else f"  γ and β {first.scale}")
        fates = {name: _fate(fate, verbose) for name, fate in first.targets.items()}
        if len(set(fates.values())) == 1:
            fates = {"everywhere": next(iter(fates.values()))}
        for name, fate in fates.items():
            print_lines(f"  {name + ':':<9} {fate}")
        rows = table("  node", "shape", *((">time", "runs as") if timed else ()))
        for site in sites:
            nodes = ", ".join(site.nodes) if verbose else short(site.node)
            rows.add_row(f"  {nodes}", shape(site.shape, site.dtype), *(_time(site) if timed else ()))
        print_table(rows)


def _time(site: Site) -> tuple[str, str]:
    """The share of a site, and what it runs as."""
    operators = list(dict.fromkeys(site.runs_as))
    many = f" ({_count(len(site.runs_as), 'node')})" if len(site.runs_as) > len(operators) else ""
    runs = ", ".join(operators[:4]) + (", …" if len(operators) > 4 else "") + many
    return "?" if site.share is None else percent(site.share), site.note or runs


def _fate(fate: Fate, verbose: bool) -> str:
    match fate.outcome:
        case "folded":
            return f"folded into {few(fate.into)}"
        case "removed":
            return "removed"
        case "rewritten":
            return " → ".join(fate.operators)
        case _:
            reasons = list(dict.fromkeys(_reason(reason) for reason in fate.reasons))
            more = f" (+{len(reasons) - 1})" if len(reasons) > 1 and not verbose else ""
            return "stays: " + ("; ".join(reasons if verbose else reasons[:1]) + more or _TRIVIAL)


def _reason(reason: str) -> str:
    """A reason without the name of the row of LOWERINGS that gave it."""
    name, colon, rest = reason.partition(": ")
    return rest if colon and " " not in name else reason


def _print_affines(affines: Sequence[Site], timed: bool, verbose: bool) -> None:
    times = (">time",) if timed else ()
    if verbose or len(affines) <= MOST_ROWS:
        wide = verbose or not sys.stdout.isatty()
        rows = table("affine map", "operator", "shape", *(("stands",) if wide else ()), *times, "for this target")
        for site in affines:
            stands = f"{few(map(_brief, site.behind))} → · → {few(map(_brief, site.before))}"
            row = (short(site.node), site.operator, shape(site.shape, site.dtype), *((stands,) if wide else ()))
            outcome = _outcome(site, verbose)
            rows.add_row(*row, *(_time(site)[:1] if timed else ()), outcome if wide else nameless(outcome))
        print_table(rows)
        return
    groups: dict[tuple[str, str], list[Site]] = defaultdict(list)
    for site in affines:
        outcome = site.outcome if site.outcome == "folded" else nameless(_outcome(site, verbose))
        groups[site.operator, outcome].append(site)
    rows = table(">affine maps", "operator", "formula", "such as", *times, "for this target")
    for (operator, outcome), sites in sorted(groups.items(), key=lambda item: -len(item[1])):
        known = [site.share for site in sites if site.share is not None]
        share = (percent(sum(known)) if known else "?",) if timed else ()
        rows.add_row(str(len(sites)), operator, sites[0].formula, short(sites[0].node), *share, outcome)
    print_table(rows)
    print_lines("(each of them: --verbose)", "")


def _outcome(site: Site, verbose: bool) -> str:
    match site.outcome:
        case "folded":
            return f"folded into {few(site.into)}"
        case "removed":
            return "removed"
        case "rewritten":
            operators = [fate.operators for fate in site.targets.values() if fate.into == site.into and fate.operators]
            return f"rewritten as {', '.join(operators[0])}" if operators else "rewritten"
        case _:
            more = f" (+{len(site.reasons) - 1})" if len(site.reasons) > 1 and not verbose else ""
            return (
                f"stays: {'; '.join(site.reasons if verbose else site.reasons[:1])}{more}" if site.reasons else "stays"
            )


def _brief(title: str) -> str:
    """Operator and name of a node; the name alone where it begins with the operator."""
    operator, _, name = title.partition(" ")
    return short(name) if name.startswith(operator) else f"{operator} {short(name)}"


def _print_layout(layout: Layout, verbose: bool) -> None:
    if not layout.known:
        print_lines(f"blocked convolution layout: {layout.note}", "")
        return
    after = "" if layout.reorders_after is None else f", {layout.reorders_after} once optimized for cpu"
    print_lines(
        f"blocked convolution layout of ONNX Runtime: {_count(layout.convolutions, 'convolution')} in it, "
        f"{layout.unblocked} not; {_count(layout.reorders, 'reorder')}{after}"
    )
    groups: dict[tuple[str, str, str, str], list[Break]] = defaultdict(list)
    for one in layout.breaks:
        fate = "" if one.fate is None else _fate_in_short(one.fate)
        groups[one.part_of or one.operator, one.because, fate, one.node if verbose else ""].append(one)
    rows = table(">reorders", "broken by", "such as", "because", "for cpu")
    for key, members in sorted(groups.items(), key=lambda item: -sum(one.reorders for one in item[1])):
        count = sum(one.reorders for one in members)
        rows.add_row(f"{count}", key[0], short(members[0].node), key[1], key[2])
    print_table(rows)


def _fate_in_short(fate: Fate) -> str:
    match fate.outcome:
        case "rewritten":
            return " → ".join(fate.operators)
        case "stays":
            return "stays"
        case outcome:
            return outcome


def _print_profile(profile: Profile) -> None:
    sizes = ", ".join(f"{name} {shape(dims)}" for name, dims in profile.shapes.items())
    threads = _count(profile.threads, "thread")
    print_lines(
        f"normalization: {percent(profile.norms)} of the time, other affine maps: {percent(profile.affines)}, "
        f"reorders of the blocked layout: {percent(profile.reorders)}"
    )
    print_lines(f"  of {1e3 * profile.seconds:.2f} ms a run in ONNX Runtime with all optimizations, {threads}, {sizes}")
    if profile.unknown:
        print_lines(f"  the time of {_count(len(profile.unknown), 'site')} cannot be told: {few(profile.unknown)}")
    print_lines("")

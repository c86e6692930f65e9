"""What `normfuse bench` measured, as text."""

from normfuse.bench import BenchTable, Timing
from normfuse.spread import Interval
from normfuse.tables import percent, print_lines, print_table, shape, table


def print_bench(measured: BenchTable) -> None:
    """Prints medians with their intervals, ratios to the first model, and what normalization costs."""
    several = len({timing.threads for timing in measured.timings}) > 1
    heads = ("model", *((">threads",) if several else ()), ">ms", "interval", ">p90", ">ratio", "interval")
    rows = table(*heads)
    for timing in measured.timings:
        count = (str(timing.threads),) if several else ()
        rows.add_row(
            timing.name,
            *count,
            f"{1e3 * timing.median:.3f}",
            _interval(timing.interval, 1e3),
            f"{1e3 * timing.p90:.3f}",
            f"{timing.ratio:.3f}",
            _interval(timing.ratio_interval),
        )
    print_table(rows)
    if any(timing.tax is not None for timing in measured.timings):
        _print_tax(measured, several)
    providers = ", ".join(dict.fromkeys(one for timing in measured.timings for one in timing.providers))
    threads = "" if several else f", {measured.threads} thread{'s' if measured.threads > 1 else ''}"
    sizes = ", ".join(f"{name} {shape(dims)}" for name, dims in measured.shapes.items())
    print_lines(
        f"medians of {measured.rounds} rounds, their {100 * measured.confidence:.0f} % intervals by order statistics, "
        "p90 of single runs; a ratio is that to the first model within a round"
    )
    print_lines(
        f"ONNX Runtime {measured.onnxruntime} with {measured.level} optimizations, {providers}{threads}; {sizes}"
    )


def _interval(bounds: Interval, factor: float = 1.0) -> str:
    low, high = (factor * bound for bound in bounds)
    return f"{low:.3f} … {high:.3f}"


def _print_tax(measured: BenchTable, several: bool) -> None:
    rows = table("normalization costs", *((">threads",) if several else ()), ">at most", "interval", "taken out")
    for timing in measured.timings:
        if timing.tax is not None:
            low, high = timing.tax.interval
            count = (str(timing.threads),) if several else ()
            bounds = f"{percent(low)} … {percent(high)}"
            rows.add_row(timing.name, *count, percent(timing.tax.share), bounds, _removed(timing))
    print_table(rows)
    print_lines(
        "at most: the share of the time that goes without normalizations and scales and shifts by constants; what is "
        "fused across the gap counts, too",
        "",
    )


def _removed(timing: Timing) -> str:
    assert timing.tax is not None
    norms, affines = timing.tax.norms, timing.tax.affines
    return f"{norms} normalization{'' if norms == 1 else 's'}, {affines} affine map{'' if affines == 1 else 's'}"

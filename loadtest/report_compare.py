"""What the report's page says of a comparison of servers: conclusions, goodput, the ratio, stages and latency."""

from collections.abc import Sequence

from loadtest import page
from loadtest.charts import Series, plot
from loadtest.record import Record
from loadtest.report_runs import emulated, latency_plots, stage_plots
from loadtest.saved import Comparison, SavedCompare
from loadtest.search import wilson
from loadtest.stage_figures import MEANINGS
from loadtest.summary import shown_ms
from loadtest.timing import STAGES

RATE = "requests/s"
BEYOND = 1.5
"""An interval without an upper end is drawn so many times as high as the highest value."""
STYLES = {meaning: style for style, meaning in MEANINGS.items()} | {style: style for style in MEANINGS}
"""The class of a stage, by either of its names."""


def compare_sections(name: str, compare: SavedCompare) -> list[str]:
    """A comparison's part of the page."""
    banners = [text for server in compare.servers for text in emulated(server.name, server.engine)]
    sections = [page.heading(f"Comparison: {name}"), *(page.banner(text) for text in banners)]
    sections += [page.paragraph(text, "said") for text in compare.conclusion]
    sections += [page.paragraph(text, "bad") for text in _left_out(compare)]
    sections += [page.paragraph(f"Note: {text}", "soft") for text in compare.notes]
    sections += [page.subheading("Highest rate held"), page.table(capacity_table(compare))]
    sections.append(page.paragraph(_how_held(compare), "soft"))
    for slo in range(len(compare.slos)):
        sections += [page.subheading(f"SLO {slo_text(compare, slo)}"), _slo_plots(compare, slo)]
        sections.append(page.table(slo_table(compare, slo)))
    return [*sections, *_stage_sections(compare), *_latency_sections(compare)]


def markdown_of(name: str, compare: SavedCompare) -> str:
    """The conclusions and tables for a text."""
    lines = [f"**{name}**", ""]
    for server in compare.servers:
        lines += [f"**{text}**\n" for text in emulated(server.name, server.engine)]
    lines += [f"* {text}" for text in (*compare.conclusion, *_left_out(compare))]
    lines += ["", page.markdown(capacity_table(compare))]
    for slo in range(len(compare.slos)):
        lines += [f"SLO {slo_text(compare, slo)}:", "", page.markdown(slo_table(compare, slo))]
    return "\n".join(lines)


def slo_text(compare: SavedCompare, slo: int) -> str:
    """Its objectives."""
    return ", ".join(compare.slos[slo])


def capacity_table(compare: SavedCompare) -> list[list[str]]:
    """A row per SLO and a column per server."""
    rows = [["SLO", *(f"{server.title}, {RATE}" for server in compare.servers)]]
    for slo in range(len(compare.slos)):
        held = _capacities(compare, slo)
        cells = [f"{rate:g}" if (rate := held.get(server.name)) is not None else "none" for server in compare.servers]
        rows.append([slo_text(compare, slo), *cells])
    return rows


def slo_table(compare: SavedCompare, slo: int) -> list[list[str]]:
    """A row per rate: every server's goodput and fraction inside, and the comparisons."""
    servers, comparisons = compare.servers, [one for one in compare.comparisons if one.slo == slo]
    pairs = list(dict.fromkeys((one.a, one.b) for one in comparisons))
    rows = [[RATE, *(f"{server.title}: {what}" for server in servers for what in ("goodput/s", "inside"))]]
    rows[0] += [text for a, b in pairs for text in (f"{a} / {b}", "better")]
    for rate in compare.rates:
        row = [f"{rate:g}"]
        for server in servers:
            goodput, inside, total = _pooled(compare, slo, server.name, rate)
            row += [f"{goodput:.3g}", f"{inside / total:.1%}"] if total else ["-", "-"]
        at_rate = {(one.a, one.b): one for one in comparisons if one.rate == rate}
        for pair in pairs:
            row += _compared(at_rate.get(pair))
        rows.append(row)
    return rows


def chosen_rate(compare: SavedCompare, slo: int) -> float:
    """Where latency is shown: the highest rate that the first two servers both hold, else the lowest tried."""
    held = _capacities(compare, slo)
    both = [held.get(server.name) for server in compare.servers[:2]]
    least = min((rate for rate in both if rate is not None), default=0.0) if None not in both else 0.0
    return max((rate for rate in compare.rates if rate <= least), default=min(compare.rates, default=0.0))


def goodput_by_rate(compare: SavedCompare, slo: int) -> list[Series]:
    """Goodput of each run, a line through their mean, and what it would be if all were inside."""
    series = list[Series]()
    for colour, server in enumerate(compare.servers):
        runs = [(run.rate, run.goodput[slo]) for run in compare.good_runs if run.server == server.name]
        means = [(rate, _pooled(compare, slo, server.name, rate)[0]) for rate in sorted({rate for rate, _ in runs})]
        series.append(Series(name=server.title, points=means, colour=colour))
        series.append(Series(name=server.title, points=runs, colour=colour, is_line=False))
    most = max(compare.rates, default=0.0)
    line = [(0.0, 0.0), (most, most)]
    return [*series, Series(name="all inside", points=line, is_reference=True, is_dashed=True)]


def inside_by_rate(compare: SavedCompare, slo: int) -> list[Series]:
    """The fraction inside with its 95 % interval, and the attainment that is asked for."""
    series = list[Series]()
    for colour, server in enumerate(compare.servers):
        pooled = [(rate, *_pooled(compare, slo, server.name, rate)[1:]) for rate in compare.rates]
        known = [(rate, inside, total) for rate, inside, total in pooled if total]
        points = [(rate, inside / total) for rate, inside, total in known]
        spans = [wilson(inside, total) for _, inside, total in known]
        series.append(Series(name=server.title, points=points, colour=colour, spans=spans))
    line = [(min(compare.rates), compare.attainment), (max(compare.rates), compare.attainment)] if compare.rates else []
    name = f"target {compare.attainment:.0%}"
    return [*series, Series(name=name, points=line, is_reference=True, is_dashed=True)]


def ratio_by_rate(compare: SavedCompare, slo: int) -> list[Series]:
    """The ratio of goodputs with its interval, per pair of servers, and the line where both are equal."""
    series, comparisons = list[Series](), [one for one in compare.comparisons if one.slo == slo]
    titles = {server.name: server.title for server in compare.servers}
    finite = [value for one in comparisons for value in (one.ratio, one.low, one.high) if value is not None]
    beyond = BEYOND * max([1.0, *finite])
    for colour, (a, b) in enumerate(dict.fromkeys((one.a, one.b) for one in comparisons)):
        drawn = [
            ((one.rate, one.ratio), (beyond if one.low is None else one.low, beyond if one.high is None else one.high))
            for one in sorted(comparisons, key=lambda one: one.rate)
            if (one.a, one.b) == (a, b) and one.ratio is not None
        ]
        name = f"{titles.get(a, a)} / {titles.get(b, b)}"
        points, spans = [point for point, _ in drawn], [span for _, span in drawn]
        series.append(Series(name=name, points=points, colour=colour, spans=spans, is_line=False))
    line = [(min(compare.rates), 1.0), (max(compare.rates), 1.0)] if compare.rates else []
    return [*series, Series(name="equal", points=line, is_reference=True, is_dashed=True)]


def _slo_plots(compare: SavedCompare, slo: int) -> str:
    ratio = plot(ratio_by_rate(compare, slo), RATE, "ratio (logarithmic)", is_y_log=True, is_framed=True)
    inside = plot(inside_by_rate(compare, slo), RATE, "fraction inside", is_framed=True)
    return page.plots(
        [
            ("Goodput, each run and the mean", plot(goodput_by_rate(compare, slo), RATE, "goodput, requests/s")),
            ("Requests inside the SLO, with 95 % intervals", inside),
            ("Ratio of goodput, with 95 % intervals", ratio),
        ]
    )


def _stage_sections(compare: SavedCompare) -> list[str]:
    if not compare.stages:
        return [page.paragraph("No server told its stage times.", "soft")]
    times = {(one.server, one.rate, one.stage): one for one in compare.stages}
    named = {one.stage for one in compare.stages}
    known = [*(stage for stage in STAGES if stage in named), *sorted(named.difference(STAGES))]
    means, rows = list[tuple[str, dict[str, float | None]]](), [["mean / p50 / p99, ms", *known]]
    for rate in compare.rates:
        for server in compare.servers:
            found = {stage: times.get((server.name, rate, stage)) for stage in known}
            if not any(found.values()):
                continue
            name = f"{server.title}, {rate:g}/s"
            means.append((name, {STYLES[stage]: one.mean_s for stage, one in found.items() if one and stage in STYLES}))
            cells = [
                " / ".join(shown_ms(value) for value in (one.mean_s, one.p50_s, one.p99_s)) if one else "-"
                for one in found.values()
            ]
            rows.append([name, *cells])
    return [page.subheading("Where the time goes"), stage_plots(means), page.table(rows)]


def _latency_sections(compare: SavedCompare) -> list[str]:
    sections, rates = list[str](), [chosen_rate(compare, slo) for slo in range(len(compare.slos))]
    for rate in dict.fromkeys(rates):
        named = list[tuple[str, Sequence[Record]]]()
        for server in compare.servers:
            runs = [run for run in compare.good_runs if run.server == server.name and run.rate == rate]
            named.append((server.title, [record for run in runs for record in run.requests]))
        held = [slo_text(compare, slo) for slo, chosen in enumerate(rates) if chosen == rate and _is_held(compare, slo)]
        why = f"the highest rate that both hold under {' and under '.join(held)}" if held else "the lowest rate tried"
        sections += [page.subheading(f"Latency at {rate:g} requests/s"), page.paragraph(f"{why[0].upper()}{why[1:]}.")]
        sections.append(latency_plots(named, with_itl=False))
    return sections


def _is_held(compare: SavedCompare, slo: int) -> bool:
    held = _capacities(compare, slo)
    return all(held.get(server.name) is not None for server in compare.servers[:2])


def _capacities(compare: SavedCompare, slo: int) -> dict[str, float | None]:
    return {one.server: one.rate for one in compare.capacity if one.slo == slo}


def _pooled(compare: SavedCompare, slo: int, server: str, rate: float) -> tuple[float, int, int]:
    """Mean goodput, requests inside, and all, over the rounds."""
    runs = [run for run in compare.good_runs if run.server == server and run.rate == rate]
    goodput = sum(run.goodput[slo] for run in runs) / max(1, len(runs))
    return goodput, sum(run.inside[slo] for run in runs), sum(run.total for run in runs)


def _compared(one: Comparison | None) -> list[str]:
    if one is None:
        return ["-", "-"]
    if not one.goodput_a and not one.goodput_b:
        return ["-", _better(one)]
    ratio, low, high = ("∞" if value is None else f"{value:.2f}" for value in (one.ratio, one.low, one.high))
    return [f"{ratio} ({low} to {high})", _better(one)]


def _better(one: Comparison) -> str:
    return {"a": one.a, "b": one.b, "open": "the same" if one.is_same else "too close to call"}[one.verdict]


def _how_held(compare: SavedCompare) -> str:
    return (
        "A rate is held when the whole 95 % interval of the fraction of requests inside the SLO lies at "
        f"{compare.attainment:.0%} or above."
    )


def _left_out(compare: SavedCompare) -> list[str]:
    runs = [(run, f"{run.server} at {run.rate:g} {RATE}, round {run.round}") for run in compare.runs]
    bad = [f"INVALID, left out: {where}: {run.invalid}" for run, where in runs if run.invalid is not None]
    return bad + [f"STOPPED EARLY, left out: {where}: {run.stopped}" for run, where in runs if run.stopped is not None]

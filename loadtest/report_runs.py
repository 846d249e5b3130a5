"""What the report's page says of runs: figures, distributions, courses over time, stages and workers."""

from collections.abc import Sequence

from loadtest import figures, page
from loadtest import stage_figures as stages
from loadtest.bars import stacks, timeline
from loadtest.charts import plot
from loadtest.metrics import measure
from loadtest.record import Record
from loadtest.saved import SavedRun
from loadtest.server import EMULATED
from loadtest.summary import shown_ms

Runs = Sequence[tuple[str, SavedRun]]

UNSTAGED = {"lag": "client's lag", "wait": "until the first token", "stream": "answer"}


def figures_of(runs: Runs) -> list[list[str]]:
    """A row per figure and a column per run."""
    rows = [["", *(name for name, _ in runs)]]
    all_metrics = [measure(run.requests) for _, run in runs]
    rows.append(["complete / failed", *(f"{metrics.completed} / {metrics.failed}" for metrics in all_metrics)])
    rows.append(["requests/s", *(f"{metrics.request_rate:.3g}" for metrics in all_metrics)])
    rows.append(["goodput/s", *(f"{run.request_goodput:.3g}" for _, run in runs)])
    rates = [metrics.total_output_tokens / max(1e-9, metrics.duration_s) for metrics in all_metrics]
    rows.append(["output tokens/s", *(f"{rate:.4g}" for rate in rates)])
    for name in ("ttft", "tpot", "itl", "e2e", "lag"):
        for percent in (50, 99):
            cells = [shown_ms(getattr(metrics, name).percentile(percent)) for metrics in all_metrics]
            rows.append([f"{name.upper()} p{percent}, ms", *cells])
    return rows


def emulated(name: str, engine: object) -> list[str]:
    """A line for the top of the page if the server's engine is none that computes."""
    if not isinstance(engine, str) or not engine.startswith(EMULATED):
        return []
    return [f"EMULATED: {name} computes nothing; its steps last as long as a table says ({engine})"]


def run_sections(runs: Runs) -> list[str]:
    """All of it, the runs over each other; nothing for no runs."""
    if not runs:
        return []
    named = [(name, run.requests) for name, run in runs]
    sections = [page.banner(text) for name, run in runs for text in emulated(name, run.server.get("engine"))]
    sections.append(page.table(figures_of(runs)))
    for name, run in runs:
        bad = [f"{name}: INVALID: {run.invalid}"] if run.invalid else []
        bad += [f"{name}: STOPPED EARLY: {run.stopped}"] if run.stopped else []
        bad += [f"{name}: SLO MISSED {one.objective} (measured {one.shown})" for one in run.slo if not one.met]
        sections += [page.paragraph(text, "bad") for text in bad]
        sections += [page.paragraph(f"{name}: {text}", "soft") for text in run.warnings]
    timelines = [drawn for name, run in runs if (drawn := _timeline(name, run.requests)) is not None]
    sections += [page.heading("Latency"), latency_plots(named), page.heading("Over time"), _time_plots(named)]
    staged = [(name, records) for name, records in named if stages.has_timing(records)]
    sections += _stage_sections(staged) if staged else []
    for name, records in staged:
        sections += _worker_sections(name, records)
    return [*sections, page.heading("Request by request"), page.plots(timelines)]


def latency_plots(named: figures.Named, with_itl: bool = True) -> str:
    """How TTFT and ITL, or else TPOT, are distributed."""
    ttft = figures.distribution(named, lambda record: [record.ttft_s] if record.ttft_s is not None else [])
    shown = [("Time to first token", plot(ttft, "TTFT, ms (logarithmic)", "fraction of answers", is_x_log=True))]
    if with_itl:
        itl = figures.distribution(named, Record.itls_s)
        shown.append(("Time between tokens", plot(itl, "ITL, ms (logarithmic)", "fraction of tokens", is_x_log=True)))
    else:
        tpot = figures.distribution(named, lambda record: [record.tpot_s] if record.tpot_s is not None else [])
        drawn = plot(tpot, "TPOT, ms (logarithmic)", "fraction of answers", is_x_log=True)
        shown.append(("Time per token after the first", drawn))
    return page.plots(shown)


def _time_plots(named: figures.Named) -> str:
    return page.plots(
        [
            ("Time to first token", plot(figures.ttft_over_time(named), "due at, s", "TTFT, ms")),
            ("Time between tokens, p99 and (dashed) p50", plot(figures.itl_over_time(named), "s", "ITL, ms")),
            ("Tokens per second", plot(figures.tokens_over_time(named), "s", "output tokens/s")),
            ("Requests on their way", plot(figures.in_flight_over_time(named), "s", "requests")),
        ]
    )


def stage_plots(means_s: Sequence[tuple[str, dict[str, float | None]]]) -> str:
    """Stacks of mean times, and the same without decode, beside which the other stages can be too short to be seen."""
    parts = list(dict.fromkeys(part for _, means in means_s for part in means))
    drawn = [("Mean time per stage, ms", parts, []), ("The same without decode, ms", parts, ["decode"])]
    return page.plots(
        [
            (
                caption,
                stacks([stages.stack(name, means, without) for name, means in means_s], "ms")
                + page.keys({part: stages.MEANINGS.get(part, part) for part in shown if part not in without}),
            )
            for caption, shown, without in drawn
        ]
    )


def _stage_sections(staged: figures.Named) -> list[str]:
    times = [(name, stages.stage_times(records)) for name, records in staged]
    rows = [["ms", *(f"{name}: {what}" for name, _ in times for what in ("mean", "p50", "p99"))]]
    parts = [part for part in stages.MEANINGS if any(part in summaries for _, summaries in times)]
    for part in parts:
        cells = list[str]()
        for _, summaries in times:
            one = summaries.get(part)
            values = [None, None, None] if one is None else [one.mean, one.percentile(50), one.percentile(99)]
            cells += [shown_ms(value) for value in values]
        rows.append([stages.MEANINGS[part], *cells])
    means = [(name, {part: one.mean for part, one in summaries.items()}) for name, summaries in times]
    said = "Of complete answers. The server tells how long its stages took; what is left is network and client."
    return [page.heading("Where the time goes"), page.paragraph(said, "soft"), stage_plots(means), page.table(rows)]


def _worker_sections(name: str, records: Sequence[Record]) -> list[str]:
    duration_s = measure(records).duration_s
    sections, shown, rows = list[str](), list[tuple[str, str]](), list[list[str]]()
    sides: tuple[tuple[stages.Side, str], ...] = (("prefill", "prefill"), ("decode", "handoff and decode"))
    for side, meaning in sides:
        workers = stages.workers_of(records, side)
        if not workers:
            continue
        left_out = len(workers) - stages.MAX_WORKERS
        caption = f"Requests in {meaning}, by last attempt's worker"
        caption += f": the first {stages.MAX_WORKERS}" if left_out > 0 else ""
        shown.append((caption, plot(stages.occupancy(workers, duration_s), "s", "requests at once")))
        rows += [
            [worker.name, meaning, f"{worker.share(duration_s):.1%}", f"{worker.mean_at_once(duration_s):.3g}"]
            for worker in workers
        ]
    if rows:
        said = (
            "A prefill worker has a request during its prefill, a decode worker from handoff to the last token. A "
            "request that was tried again counts with the workers of its last attempt."
        )
        head = ["worker", "stage", "time with a request", "requests at once, mean"]
        sections = [page.heading(f"Workers: {name}"), page.plots(shown), page.table([head, *rows])]
        sections.append(page.paragraph(said, "soft"))
    return sections


def _timeline(name: str, records: Sequence[Record]) -> tuple[str, str] | None:
    is_staged = stages.has_timing(records)
    bars, num_rows = stages.stage_bars(records) if is_staged else figures.request_bars(records)
    if not bars:
        return None
    used = {bar.style for bar in bars}
    meanings = {style: text for style, text in stages.MEANINGS.items() if style in used} if is_staged else UNSTAGED
    marks = {style: style for style in ("failed", "cancelled", "interrupted") if style in used}
    caption = name + (f", the first {num_rows}" if num_rows < len(records) else "")
    return caption, timeline(bars, num_rows, "s") + page.keys(meanings | marks)

"""`loadtest report FILE…`: one HTML page of saved runs and sweeps, overlaid, and a summary as Markdown."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from loadtest import figures, page
from loadtest.charts import plot, timeline
from loadtest.errors import UsageError
from loadtest.flags import Parser
from loadtest.metrics import measure
from loadtest.record import Record
from loadtest.results import FORMAT as RUN_FORMAT
from loadtest.results import check_writable
from loadtest.search import Goal, Judged
from loadtest.slo import Verdict
from loadtest.summary import shown_ms
from loadtest.sweep import FORMAT as SWEEP_FORMAT


class SavedRun(msgspec.Struct, frozen=True, tag_field="format", tag=RUN_FORMAT):
    """What is read of a run's file."""

    server: dict[str, Any]
    environment: dict[str, Any]
    slo: tuple[Verdict, ...]
    request_goodput: float
    requests: tuple[Record, ...]
    invalid: str | None = None
    stopped: str | None = None
    warnings: tuple[str, ...] = ()


class SavedTrial(msgspec.Struct, frozen=True):
    """What is read of a sweep's trial."""

    rate: float
    request_goodput: float


class SavedSweep(msgspec.Struct, frozen=True, tag_field="format", tag=SWEEP_FORMAT):
    """What is read of a sweep's file."""

    server: dict[str, Any]
    environment: dict[str, Any]
    conclusion: str
    goal: Goal
    slo: tuple[str, ...]
    rates: tuple[Judged, ...]
    trials: tuple[SavedTrial, ...]


def report(argv: Sequence[str]) -> int:
    """The command. Raises UsageError."""
    parser = Parser(prog="loadtest report", allow_abbrev=False, description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="what `run` and `sweep` saved")
    parser.add_argument("--out", type=Path, default=Path("report.html"), metavar="FILE", help="(default: report.html)")
    flags = parser.parse_args(argv)
    check_writable(flags.out)
    saved = [(path.stem, read(path)) for path in flags.files]
    runs = [(name, one) for name, one in saved if isinstance(one, SavedRun)]
    sweeps = [(name, one) for name, one in saved if isinstance(one, SavedSweep)]
    sections = [*_run_sections(runs), *_sweep_sections(sweeps), *_origins(saved)]
    flags.out.write_text(page.page("Load test: " + ", ".join(name for name, _ in saved), sections), "utf-8")
    if runs:
        sys.stdout.write(page.markdown(figures_of(runs)) + "\n")
    for name, sweep in sweeps:
        sys.stdout.write(f"{name}: {sweep.conclusion}\n")
    sys.stdout.write(f"saved {flags.out}\n")
    return 0


def read(path: Path) -> SavedRun | SavedSweep:
    """A saved result. Raises UsageError for anything else."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=SavedRun | SavedSweep)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None
    except msgspec.DecodeError as error:
        raise UsageError(f"{path}: {error}; allowed: what `loadtest run` or `loadtest sweep` saved") from None


def figures_of(runs: Sequence[tuple[str, SavedRun]]) -> list[list[str]]:
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


def _run_sections(runs: Sequence[tuple[str, SavedRun]]) -> list[str]:
    if not runs:
        return []
    named = [(name, run.requests) for name, run in runs]
    sections = [page.table(figures_of(runs))]
    for name, run in runs:
        bad = [f"{name}: INVALID: {run.invalid}"] if run.invalid else []
        bad += [f"{name}: STOPPED EARLY: {run.stopped}"] if run.stopped else []
        bad += [f"{name}: SLO MISSED {one.objective} (measured {one.shown})" for one in run.slo if not one.met]
        sections += [page.paragraph(text, "bad") for text in bad]
        sections += [page.paragraph(f"{name}: {text}", "soft") for text in run.warnings]
    timelines = [drawn for name, run in runs if (drawn := _timeline(name, run)) is not None]
    sections += [page.heading("Latency"), _latency_plots(named), page.heading("Over time"), _time_plots(named)]
    return [*sections, page.heading("Request by request"), page.plots(timelines)]


def _latency_plots(named: figures.Named) -> str:
    ttft = figures.distribution(named, lambda record: [record.ttft_s] if record.ttft_s is not None else [])
    itl = figures.distribution(named, Record.itls_s)
    return page.plots(
        [
            ("Time to first token", plot(ttft, "TTFT, ms (logarithmic)", "fraction of answers", is_x_log=True)),
            ("Time between tokens", plot(itl, "ITL, ms (logarithmic)", "fraction of tokens", is_x_log=True)),
        ]
    )


def _time_plots(named: figures.Named) -> str:
    return page.plots(
        [
            ("Time to first token", plot(figures.ttft_over_time(named), "due at, s", "TTFT, ms")),
            ("Time between tokens, p99 and (dashed) p50", plot(figures.itl_over_time(named), "s", "ITL, ms")),
            ("Tokens per second", plot(figures.tokens_over_time(named), "s", "output tokens/s")),
            ("Requests on their way", plot(figures.in_flight_over_time(named), "s", "requests")),
        ]
    )


def _timeline(name: str, run: SavedRun) -> tuple[str, str] | None:
    bars, num_rows = figures.request_bars(run.requests)
    meanings = {"lag": "client's lag", "wait": "until the first token", "stream": "answer"}
    keys = [f'<span><i class="{style}"></i>{meaning}</span>' for style, meaning in meanings.items()]
    drawn = timeline(bars, num_rows, "s") + f'<p class="legend key">{"".join(keys)}</p>'
    return (name + (f", the first {num_rows}" if num_rows < len(run.requests) else ""), drawn) if bars else None


def _sweep_sections(sweeps: Sequence[tuple[str, SavedSweep]]) -> list[str]:
    if not sweeps:
        return []
    rates = [(name, sweep.rates) for name, sweep in sweeps]
    trials = [(name, [(trial.rate, trial.request_goodput) for trial in sweep.trials]) for name, sweep in sweeps]
    target = sweeps[0][1].goal.attainment
    attained = plot(
        figures.attainment_by_rate(rates, target), "requests/s (logarithmic)", "inside the SLO", is_x_log=True
    )
    goodput = plot(figures.goodput_by_rate(trials), "requests/s", "goodput, requests/s")
    conclusions = [page.paragraph(f"{name}: {sweep.conclusion} (SLO {', '.join(sweep.slo)})") for name, sweep in sweeps]
    shown = page.plots([("Rate against the fraction inside the SLO", attained), ("Rate against goodput", goodput)])
    return [page.heading("How much it holds"), *conclusions, shown]


def _origins(saved: Sequence[tuple[str, SavedRun | SavedSweep]]) -> list[str]:
    parts = [page.heading("Where this comes from")]
    for name, one in saved:
        known = {
            "server": one.server,
            "client": {key: one.environment[key] for key in one.environment if key != "command"},
        }
        lines = [
            f"{name}: {one.environment.get('command', '')}",
            *(f"{key}: {_flat(value)}" for key, value in known.items()),
        ]
        parts.append(page.listing("\n".join(lines)))
    return parts


def _flat(values: dict[str, Any]) -> str:
    return ", ".join(f"{key} {_flat(value) if isinstance(value, dict) else value}" for key, value in values.items())

"""A finished run in a screenful: rates, latencies, objectives, and whatever makes a figure less than it seems."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from loadtest.metrics import Metrics
from loadtest.results import Result
from loadtest.server import engine_line
from loadtest.stages import StageRow, stage_rows
from loadtest.statistics import Summary

_ROWS = (
    ("TTFT", "ttft", "first token"),
    ("TPOT", "tpot", "per token after the first"),
    ("ITL", "itl", "between tokens"),
    ("E2E", "e2e", "whole answer"),
    ("lag", "lag", "due to sent, the client's own"),
)


def print_summary(result: Result, console: Console) -> None:
    """The whole of it."""
    if (engine := engine_line(result.server)) is not None:
        console.print(engine, markup=False, highlight=False)
    for line in _totals(result.metrics):
        console.print(line, highlight=False)
    console.print(_latencies(result.metrics))
    if rows := stage_rows(result.records):
        console.print(_stages(rows))
    for reason, count in result.metrics.errors.items():
        console.print(f"failed {count}x: {reason}", style="red", markup=False, highlight=False)
    for verdict in result.verdicts:
        said = f"SLO {'met   ' if verdict.met else 'MISSED'} {verdict.objective} (measured {verdict.shown})"
        console.print(said, style="green" if verdict.met else "red", markup=False, highlight=False)
    for warning in result.warnings:
        console.print(f"note: {warning}", style="yellow", markup=False, highlight=False)
    if result.stopped is not None:
        console.print(f"STOPPED EARLY: {result.stopped}", style="bold red", markup=False, highlight=False)
    if result.invalid is not None:
        console.print(f"INVALID: {result.invalid}", style="bold red", markup=False, highlight=False)


def _totals(metrics: Metrics) -> list[str]:
    values = metrics.to_json()
    counts = f"{metrics.completed} complete, {metrics.failed} failed"
    counts += f", {metrics.cancelled} cancelled" if metrics.cancelled else ""
    counts += f", {metrics.interrupted} interrupted" if metrics.interrupted else ""
    return [
        f"{counts} in {metrics.duration_s:.2f} s; at most {metrics.max_concurrent_requests} at once",
        f"{values['request_throughput']:.2f} requests/s, goodput {values['request_goodput']:.2f} requests/s, "
        f"{values['output_throughput']:.1f} output tokens/s, {values['total_token_throughput']:.1f} with the prompts",
    ]


def _latencies(metrics: Metrics) -> Table:
    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column("ms")
    for name in ("mean", "p50", "p90", "p95", "p99", "max"):
        table.add_column(name, justify="right")
    table.add_column("", style="dim")
    for title, name, meaning in _ROWS:
        summary: Summary = getattr(metrics, name)
        values = [summary.mean, *(summary.percentile(percent) for percent in (50, 90, 95, 99)), summary.max]
        table.add_row(title, *(shown_ms(value) for value in values), meaning)
    return table


def _stages(rows: Sequence[StageRow]) -> Table:
    table = Table(box=box.SIMPLE, pad_edge=False)
    for name in ("stage, ms", "mean", "p50", "p99"):
        table.add_column(name, justify="left" if name.startswith("stage") else "right")
    for row in rows:
        table.add_row(row.stage, shown_ms(row.mean_s), shown_ms(row.p50_s), shown_ms(row.p99_s))
    return table


def shown_ms(seconds: float | None) -> str:
    """Milliseconds with the digits that matter."""
    if seconds is None:
        return "-"
    ms = seconds * 1e3
    return f"{ms:.2f}" if ms < 100 else f"{ms:.0f}"

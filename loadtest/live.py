"""What is seen while a run lasts: a table on a terminal, a plain line now and then in a log. Goes to standard error.

Drawing costs the processor that also sends, so that it happens once a second, over the newest answers only.
"""

import asyncio
from collections import Counter

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from loadtest.driver import Phase
from loadtest.record import Record
from loadtest.statistics import Summary
from loadtest.summary import shown_ms

DRAW_S = 1.0
LINE_S = 10.0
NEWEST = 500
"""Answers that the percentiles are of."""


async def watch(phase: Phase, name: str, console: Console) -> None:
    """Shows a phase until it is cancelled."""
    if not console.is_terminal:
        while True:
            await asyncio.sleep(LINE_S)
            console.print(plain_line(phase, name), markup=False, highlight=False, soft_wrap=True)
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while True:
            live.update(table(phase, name), refresh=True)
            await asyncio.sleep(DRAW_S)


def plain_line(phase: Phase, name: str) -> str:
    """The state in one line."""
    newest = phase.records[-NEWEST:]
    ttft, itl = _latencies(newest)
    errors = sum(record.outcome == "failed" for record in phase.records)
    return (
        f"{name}: {_elapsed_s(phase):.0f} s, {len(phase.records)}/{phase.total} done, "
        f"{len(phase.client.in_flight)} on their way, {_rate(phase):.2f} requests/s, {_tokens(phase):.0f} tokens/s, "
        f"TTFT p50 {shown_ms(ttft.percentile(50))} p99 {shown_ms(ttft.percentile(99))} ms, "
        f"ITL p99 {shown_ms(itl.percentile(99))} ms, {errors} failed"
    )


def table(phase: Phase, name: str) -> RenderableType:
    """The state as a table."""
    newest, total = phase.records[-NEWEST:], max(1, phase.total)
    ttft, itl = _latencies(newest)
    lag = Summary.of([record.lag_s for record in newest])
    grid = Table.grid(padding=(0, 2))
    grid.add_row(name, ProgressBar(total=total, completed=len(phase.records), width=40))
    grid.add_row("done", f"{len(phase.records)} of {phase.total} in {_elapsed_s(phase):.0f} s")
    grid.add_row("on their way", str(len(phase.client.in_flight)))
    grid.add_row("rate", f"{_rate(phase):.2f} requests/s, {_tokens(phase):.0f} tokens/s")
    for title, sample in (("TTFT", ttft), ("ITL", itl), ("lag", lag)):
        shown = [f"p{percent} {shown_ms(sample.percentile(percent))}" for percent in (50, 90, 99)]
        grid.add_row(title, ", ".join(shown) + " ms")
    reasons = Counter(record.error for record in phase.records if record.outcome == "failed")
    for reason, count in reasons.most_common(3):
        grid.add_row(f"failed {count}x", reason or "")
    return grid


def _latencies(records: list[Record]) -> tuple[Summary, Summary]:
    done = [record for record in records if record.outcome == "ok"]
    ttfts = [ttft_s for record in done if (ttft_s := record.ttft_s) is not None]
    return Summary.of(ttfts), Summary.of([itl_s for record in done[-NEWEST // 10 :] for itl_s in record.itls_s()])


def _elapsed_s(phase: Phase) -> float:
    return 0.0 if phase.started_at is None else asyncio.get_running_loop().time() - phase.started_at


def _rate(phase: Phase) -> float:
    return sum(record.outcome == "ok" for record in phase.records) / max(1e-9, _elapsed_s(phase))


def _tokens(phase: Phase) -> float:
    count = sum(record.output_tokens for record in phase.records)
    return (count + sum(attempt.num_chunks for attempt in phase.client.in_flight)) / max(1e-9, _elapsed_s(phase))

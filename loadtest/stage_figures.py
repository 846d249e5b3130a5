"""What a report shows of the stage times that a server told: each request's spans, means, and how busy workers were.

A server tells how long its stages took, not when. They are placed one after the other from when the request was sent,
so that the way to the server counts into the rest at the end, "network and client".
"""

import math
import re
from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

from loadtest.bars import Bar, Stack
from loadtest.charts import NUM_COLOURS, Series
from loadtest.figures import MAX_ROWS, NUM_BINS
from loadtest.record import Record
from loadtest.statistics import Summary
from loadtest.timing import STAGES

MAX_WORKERS = 2 * NUM_COLOURS
"""Lines of a plot: each colour plain and dashed."""

MEANINGS = {
    "lag": "client's lag",
    "queue": "queue",
    "prefill": "prefill",
    "transfer": "transfer",
    "handoff": "handoff",
    "decode": "decode",
    "rest": "network and client",
    "untold": "no stage times",
}
"""Every part of a request, in order, with the legend's words."""

Side = Literal["prefill", "decode"]
Span = tuple[str, float, float]
"""A part of `MEANINGS`, its begin and its end, s."""


class Worker(msgspec.Struct, frozen=True):
    """A worker and when it had requests: (begin, end) of each, s."""

    name: str
    spans: tuple[tuple[float, float], ...]

    def share(self, duration_s: float) -> float:
        """The part of that time during which it had at least one."""
        busy_s, until_s = 0.0, 0.0
        for begin_s, end_s in sorted(self.spans):
            busy_s += max(0.0, end_s - max(begin_s, until_s))
            until_s = max(until_s, end_s)
        return busy_s / max(1e-9, duration_s)

    def mean_at_once(self, duration_s: float) -> float:
        """How many it had, on average over that time."""
        return math.fsum(end_s - begin_s for begin_s, end_s in self.spans) / max(1e-9, duration_s)


def has_timing(records: Iterable[Record]) -> bool:
    """Whether the server told anything."""
    return any(record.timing is not None for record in records)


def spans_of(record: Record) -> list[Span]:
    """The request's parts, end to end from when it was due until it ended."""
    spans: list[Span] = [("lag", record.scheduled_s, record.sent_s)]
    at_s = record.sent_s
    for stage in STAGES if record.timing is not None else ():
        seconds = record.timing.stage_s(stage) if record.timing is not None else 0.0
        spans.append((stage, at_s, min(record.ended_s, at_s + seconds)))
        at_s = spans[-1][2]
    return [*spans, ("rest" if record.timing is not None else "untold", at_s, record.ended_s)]


def stage_bars(records: Sequence[Record]) -> tuple[list[Bar], int]:
    """A row per request, its parts in their colours, and a mark where it failed."""
    shown = sorted(records, key=lambda record: record.scheduled_s)[:MAX_ROWS]
    bars = list[Bar]()
    for row, record in enumerate(shown):
        bars += [Bar(row, begin_s, end_s, name) for name, begin_s, end_s in spans_of(record) if end_s > begin_s]
        if record.outcome != "ok":
            bars.append(Bar(row, record.ended_s, record.ended_s, record.outcome))
    return bars, len(shown)


def stage_times(records: Sequence[Record]) -> dict[str, Summary]:
    """Per part the seconds of every complete answer that has stage times."""
    spans = [spans_of(record) for record in records if record.outcome == "ok" and record.timing is not None]
    lengths = {
        name: [end_s - begin_s for one in spans for part, begin_s, end_s in one if part == name] for name in MEANINGS
    }
    return {name: Summary.of(values) for name, values in lengths.items() if values}


def stack(name: str, means_s: dict[str, float | None], without: Sequence[str] = ()) -> Stack:
    """Mean times as a row, ms."""
    return Stack(
        name, tuple((part, max(0.0, mean_s or 0.0) * 1e3) for part, mean_s in means_s.items() if part not in without)
    )


def workers_of(records: Sequence[Record], side: Side) -> list[Worker]:
    """Who computed, by name: a prefill worker during prefill, a decode worker from handoff on.

    A request that was tried again counts with the worker of its last attempt.
    """
    spans = dict[str, list[tuple[float, float]]]()
    for record in records:
        timing = record.timing
        name = timing and (timing.prefill_worker if side == "prefill" else timing.decode_worker)
        if not name:
            continue
        parts = {part: (begin_s, end_s) for part, begin_s, end_s in spans_of(record)}
        span = parts["prefill"] if side == "prefill" else (parts["handoff"][0], parts["decode"][1])
        spans.setdefault(name, []).append(span)
    return [Worker(name, tuple(spans[name])) for name in sorted(spans, key=_natural)]


def occupancy(workers: Sequence[Worker], duration_s: float) -> list[Series]:
    """Requests of each worker over time, averaged over slices of it; the first `MAX_WORKERS`."""
    return [
        Series(
            name=worker.name,
            points=_averages(worker.spans, duration_s),
            colour=index % NUM_COLOURS,
            is_dashed=index >= NUM_COLOURS,
        )
        for index, worker in enumerate(workers[:MAX_WORKERS])
    ]


def _averages(spans: Sequence[tuple[float, float]], duration_s: float) -> list[tuple[float, float]]:
    step_s = max(1e-9, duration_s) / NUM_BINS
    totals_s = [0.0] * NUM_BINS
    for begin_s, end_s in spans:
        for index in range(max(0, int(begin_s / step_s)), min(NUM_BINS, int(end_s / step_s) + 1)):
            totals_s[index] += max(0.0, min(end_s, (index + 1) * step_s) - max(begin_s, index * step_s))
    return [((index + 0.5) * step_s, total_s / step_s) for index, total_s in enumerate(totals_s)]


def _natural(name: str) -> list[tuple[int, str]]:
    """`decode.2` before `decode.10`."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]

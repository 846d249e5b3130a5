"""What a report plots: from records of runs and trials of sweeps to series, without any drawing."""

from collections.abc import Callable, Sequence

from loadtest.bars import Bar
from loadtest.charts import Series
from loadtest.record import Record
from loadtest.search import Judged
from loadtest.statistics import Summary

MAX_POINTS = 400
MAX_ROWS = 250
NUM_BINS = 60

Named = Sequence[tuple[str, Sequence[Record]]]
"""Runs with the names that legends give them."""


def distribution(runs: Named, values_s: Callable[[Record], Sequence[float]]) -> list[Series]:
    """The fraction of values that are at most so long, ms."""
    series = list[Series]()
    for colour, (name, records) in enumerate(runs):
        ordered = Summary.of([value_s for record in done(records) for value_s in values_s(record)]).ordered
        picked = range(0, len(ordered), max(1, len(ordered) // MAX_POINTS))
        points = [(ordered[index] * 1e3, (index + 1) / len(ordered)) for index in picked]
        points += [(ordered[-1] * 1e3, 1.0)] if ordered else []
        series.append(Series(name=name, points=points, colour=colour))
    return series


def ttft_over_time(runs: Named) -> list[Series]:
    """One point an answer, at the time it was due: s, ms."""
    series = list[Series]()
    for colour, (name, records) in enumerate(runs):
        points = [
            (record.scheduled_s, ttft_s * 1e3) for record in done(records) if (ttft_s := record.ttft_s) is not None
        ]
        thinned = points[:: max(1, len(points) // (4 * MAX_POINTS))]
        series.append(Series(name=name, points=thinned, colour=colour, is_line=False))
    return series


def itl_over_time(runs: Named) -> list[Series]:
    """The 50th (dashed) and the 99th percentile of ITL in each slice of time: s, ms."""
    series = list[Series]()
    for colour, (name, records) in enumerate(runs):
        times = [
            (at_s, gap_s * 1e3)
            for record in done(records)
            for at_s, gap_s in zip(record.chunk_times_s[1:], record.gaps_s(), strict=True)
        ]
        for percent in (50, 99):
            points = [
                (at_s, Summary.of(values).percentile(percent) or 0.0) for at_s, values in _binned(times) if values
            ]
            series.append(Series(name=name, points=points, colour=colour, is_dashed=percent == 50))
    return series


def tokens_over_time(runs: Named) -> list[Series]:
    """Tokens of answers per second, in slices of time."""
    series = list[Series]()
    for colour, (name, records) in enumerate(runs):
        tokens = [
            (at_s, float(count))
            for record in records
            for at_s, count in zip(record.chunk_times_s, record.chunk_tokens, strict=True)
        ]
        bins = _binned(tokens)
        step_s = bins[1][0] - bins[0][0] if len(bins) > 1 else 1.0
        series.append(Series(name=name, points=[(at_s, sum(values) / step_s) for at_s, values in bins], colour=colour))
    return series


def in_flight_over_time(runs: Named) -> list[Series]:
    """Requests that were sent and had not ended."""
    series = list[Series]()
    for colour, (name, records) in enumerate(runs):
        changes = sorted([(record.sent_s, 1) for record in records] + [(record.ended_s, -1) for record in records])
        points, count = list[tuple[float, float]](), 0
        for at_s, change in changes:
            points.append((at_s, float(count)))
            count += change
            points.append((at_s, float(count)))
        series.append(Series(name=name, points=points[:: max(1, len(points) // (4 * MAX_POINTS))], colour=colour))
    return series


def request_bars(records: Sequence[Record]) -> tuple[list[Bar], int]:
    """Per request: the client's lag, the wait for the first token, the answer, and a mark where it failed."""
    shown = sorted(records, key=lambda record: record.scheduled_s)[:MAX_ROWS]
    bars = list[Bar]()
    for row, record in enumerate(shown):
        first_s = record.chunk_times_s[0] if record.chunk_times_s else record.ended_s
        bars.append(Bar(row, record.scheduled_s, record.sent_s, "lag"))
        bars.append(Bar(row, record.sent_s, first_s, "wait"))
        if record.chunk_times_s:
            bars.append(Bar(row, first_s, record.ended_s, "stream"))
        if record.outcome != "ok":
            bars.append(Bar(row, record.ended_s, record.ended_s, record.outcome))
    return bars, len(shown)


def attainment_by_rate(sweeps: Sequence[tuple[str, Sequence[Judged]]], target: float) -> list[Series]:
    """The fraction inside the SLO, with its interval dashed, and the target."""
    series = list[Series]()
    for colour, (name, rates) in enumerate(sweeps):
        series.append(
            Series(name=name, points=[(one.rate, one.inside / max(1, one.total)) for one in rates], colour=colour)
        )
        for edge in ("low", "high"):
            points = [(one.rate, getattr(one, edge)) for one in rates]
            series.append(Series(name=name, points=points, colour=colour, is_dashed=True))
    every = [one.rate for _, rates in sweeps for one in rates]
    line = [(min(every), target), (max(every), target)] if every else []
    return [*series, Series(name=f"target {target:.0%}", points=line, is_reference=True, is_dashed=True)]


def goodput_by_rate(sweeps: Sequence[tuple[str, Sequence[tuple[float, float]]]]) -> list[Series]:
    """Goodput of every trial against its rate, and what it would be if all were inside."""
    series = [
        Series(name=name, points=sorted(points), colour=colour, is_line=False)
        for colour, (name, points) in enumerate(sweeps)
    ]
    most = max((rate for _, points in sweeps for rate, _ in points), default=0.0)
    return [*series, Series(name="all inside", points=[(0, 0), (most, most)], is_reference=True, is_dashed=True)]


def done(records: Sequence[Record]) -> list[Record]:
    """Complete answers."""
    return [record for record in records if record.outcome == "ok"]


def _binned(values: Sequence[tuple[float, float]]) -> list[tuple[float, list[float]]]:
    """Equal slices of time, each by its middle."""
    lasts_s = max((at_s for at_s, _ in values), default=0.0)
    if lasts_s <= 0:
        return []
    step_s = lasts_s / NUM_BINS
    bins = [((index + 0.5) * step_s, list[float]()) for index in range(NUM_BINS)]
    for at_s, value in values:
        bins[min(NUM_BINS - 1, int(at_s / step_s))][1].append(value)
    return bins

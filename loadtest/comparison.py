"""What runs of the same load on several servers say about them: goodput side by side, a verdict, how much each holds.

Pure: from records to figures. Goodput is counted over the time in which requests were due, which is the same for every
server, so that the slower one's last answers neither help nor harm it: its ratio is that of the requests inside.
"""

import math
from collections.abc import Sequence
from typing import Literal

import msgspec

from loadtest.record import Record
from loadtest.resampling import ratio_interval
from loadtest.search import wilson
from loadtest.slo import Objective, is_inside, request_limits_s
from loadtest.stages import stage_rows

SAME = 0.05
"""Two servers whose whole interval is this close to 1 serve the same."""

CompareVerdict = Literal["a", "b", "open"]
Slos = Sequence[Sequence[Objective]]


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One run to make."""

    server: str
    rate: float
    round: int
    seed: int


class CompareRun(msgspec.Struct, frozen=True, kw_only=True):
    """One load on one server. `goodput` per second and `inside` have one entry per SLO, of `total` counted requests."""

    server: str
    rate: float
    round: int
    seed: int
    invalid: str | None
    stopped: str | None
    duration_s: float
    goodput: tuple[float, ...]
    inside: tuple[int, ...]
    total: int
    requests: tuple[Record, ...]

    @property
    def is_valid(self) -> bool:
        """Whether its figures count."""
        return self.invalid is None and self.stopped is None

    @property
    def window_s(self) -> float:
        """How long requests were due."""
        return max((record.scheduled_s for record in self.requests), default=0.0)


class Compared(msgspec.Struct, frozen=True, kw_only=True):
    """Two servers at one rate by one SLO. Ratio and ends of its 95 % interval are None where they are infinite."""

    slo: int
    rate: float
    a: str
    b: str
    goodput_a: float
    goodput_b: float
    fraction_a: float
    fraction_b: float
    ratio: float | None
    low: float | None
    high: float | None
    verdict: CompareVerdict

    @property
    def is_same(self) -> bool:
        """Whether no difference that matters is left open."""
        return is_same(self.low, self.high)


def is_same(low: float | None, high: float | None) -> bool:
    """Whether a ratio whose interval this is differs from 1 by nothing that matters."""
    return low is not None and high is not None and low >= 1 - SAME and high <= 1 + SAME


class Capacity(msgspec.Struct, frozen=True, kw_only=True):
    """The highest rate tried that a server holds; None when it holds none."""

    slo: int
    server: str
    rate: float | None


class ServerStage(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds that requests spent in one stage."""

    server: str
    rate: float
    stage: str
    mean_s: float
    p50_s: float
    p99_s: float


def run_of(step: Step, records: Sequence[Record], slos: Slos, invalid: str | None, stopped: str | None) -> CompareRun:
    """Of the records of one phase."""
    ordered = tuple(sorted(records, key=lambda record: record.index))
    window_s = max((record.scheduled_s for record in ordered), default=0.0)
    inside = [sum(is_inside(record, request_limits_s(slo)) for record in ordered) for slo in slos]
    return CompareRun(
        server=step.server,
        rate=step.rate,
        round=step.round,
        seed=step.seed,
        invalid=invalid,
        stopped=stopped,
        duration_s=max((record.ended_s for record in ordered), default=0.0),
        goodput=tuple(count / window_s if window_s > 0 else 0.0 for count in inside),
        inside=tuple(inside),
        total=sum(map(_counts, ordered)),
        requests=ordered,
    )


def turns(servers: Sequence[str], round_: int, rate_index: int) -> list[str]:
    """The order in which the servers get one load: forwards, then backwards, and rotated after both.

    Whatever drifts while the runs last (heat, a neighbour, the client) then meets every server alike.
    """
    number = round_ + rate_index
    start = number // 2 % len(servers)
    order = [*servers[start:], *servers[:start]]
    return order[::-1] if number % 2 else order


def compare_all(runs: Sequence[CompareRun], servers: Sequence[str], slos: Slos) -> list[Compared]:
    """Every server but the last against the last, by SLO and rate, where both have valid runs of the same load."""
    found = [
        compare_at(runs, index, slo, rate, server, servers[-1])
        for index, slo in enumerate(slos)
        for server in servers[:-1]
        for rate in rates_of(runs)
    ]
    return [one for one in found if one is not None]


def compare_at(
    runs: Sequence[CompareRun], index: int, slo: Sequence[Objective], rate: float, a: str, b: str
) -> Compared | None:
    """Of the requests that both servers were sent. None when there are none."""
    limits_s = request_limits_s(slo)
    matched = _matched([run for run in runs if run.rate == rate], a, b)
    pairs = [_pairs(run_a, run_b, limits_s) for run_a, run_b in matched]
    total, window_s = sum(map(len, pairs)), sum(run_a.window_s for run_a, _ in matched)
    if not total or not window_s:
        return None
    inside_a = sum(one for run in pairs for one, _ in run)
    inside_b = sum(other for run in pairs for _, other in run)
    interval = ratio_interval(pairs)
    return Compared(
        slo=index,
        rate=rate,
        a=a,
        b=b,
        goodput_a=inside_a / window_s,
        goodput_b=inside_b / window_s,
        fraction_a=inside_a / total,
        fraction_b=inside_b / total,
        ratio=_finite(interval.ratio),
        low=_finite(interval.low),
        high=_finite(interval.high),
        verdict="a" if interval.low > 1 else "b" if interval.high < 1 else "open",
    )


def capacities(runs: Sequence[CompareRun], servers: Sequence[str], slos: Slos, attainment: float) -> list[Capacity]:
    """Of every server by every SLO."""
    return [
        Capacity(slo=index, server=server, rate=_capacity(runs, server, index, attainment))
        for index in range(len(slos))
        for server in servers
    ]


def stages(runs: Sequence[CompareRun], servers: Sequence[str]) -> list[ServerStage]:
    """Of every server at every rate, where it tells them."""
    return [
        ServerStage(server=server, rate=rate, stage=row.stage, mean_s=row.mean_s, p50_s=row.p50_s, p99_s=row.p99_s)
        for rate in rates_of(runs)
        for server in servers
        for row in stage_rows([record for run in _valid(runs, server, rate) for record in run.requests])
    ]


def rates_of(runs: Sequence[CompareRun]) -> list[float]:
    """Those that were tried, ascending."""
    return sorted({run.rate for run in runs})


def _capacity(runs: Sequence[CompareRun], server: str, index: int, attainment: float) -> float | None:
    held = [rate for rate in rates_of(runs) if _low(_valid(runs, server, rate), index) >= attainment]
    return max(held, default=None)


def _low(runs: Sequence[CompareRun], index: int) -> float:
    return wilson(sum(run.inside[index] for run in runs), sum(run.total for run in runs))[0]


def _valid(runs: Sequence[CompareRun], server: str, rate: float) -> list[CompareRun]:
    return [run for run in runs if run.is_valid and run.server == server and run.rate == rate]


def _matched(runs: Sequence[CompareRun], a: str, b: str) -> list[tuple[CompareRun, CompareRun]]:
    """Valid runs of the same load: a round that was repeated has another seed."""
    by_seed = {run.seed: run for run in runs if run.server == b and run.is_valid}
    return [(run, by_seed[run.seed]) for run in runs if run.server == a and run.is_valid and run.seed in by_seed]


def _pairs(a: CompareRun, b: CompareRun, limits_s: dict[str, float]) -> list[tuple[float, float]]:
    """Per request whether it was inside on either server, in the order of arrival; not those that the client left."""
    others = {record.index: record for record in b.requests if _counts(record)}
    return [
        (float(is_inside(record, limits_s)), float(is_inside(others[record.index], limits_s)))
        for record in a.requests
        if _counts(record) and record.index in others
    ]


def _counts(record: Record) -> bool:
    return record.outcome in ("ok", "failed")


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None

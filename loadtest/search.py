"""Which rate to try next, and when the highest stable one is known: a pure function of the trials so far.

Rates double until one is not stable, then the gap to the last stable one is halved, in logarithms, until it is small;
then the stable one is tried again with another seed. A rate is stable only if the lower end of the confidence interval
of the fraction inside the SLO is at the target or above, and if latency does not grow during the trial: a queue that
fills up can look well for as long as a trial lasts. What three trials cannot decide is the knee: it counts as too much.
"""

import math
from collections.abc import Sequence
from statistics import median
from typing import Literal

import msgspec

from loadtest.record import Record

Z_95 = 1.959964
MAX_TRIALS = 3
GROWTH_Z = 2.6
GROWTH_RATIO = 1.1

Verdict = Literal["stable", "too much", "knee", "open"]
Ending = Literal["found", "no limit", "none stable", "out of trials", "client"]


class Goal(msgspec.Struct, frozen=True, kw_only=True):
    """What a rate has to hold, where to look, and how closely."""

    attainment: float = 0.9
    first_rate: float = 1.0
    last_rate: float = 1024.0
    precision: float = 0.05
    max_trials: int = 40


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """One load at one rate: how many requests of how many were inside the SLO."""

    rate: float
    inside: int
    total: int
    is_growing: bool = False
    is_client_late: bool = False


class Judged(msgspec.Struct, frozen=True):
    """A rate's trials taken together, with the 95 % interval of the fraction inside."""

    rate: float
    trials: int
    inside: int
    total: int
    low: float
    high: float
    verdict: Verdict


class Next(msgspec.Struct, frozen=True):
    """A trial to make."""

    rate: float


class Finding(msgspec.Struct, frozen=True):
    """The end: the highest stable rate, and the lowest that is not; each None when there was none."""

    ending: Ending
    stable: Judged | None
    limit: float | None


def decide(trials: Sequence[Trial], goal: Goal) -> Next | Finding:
    """What to do after these trials."""
    judged = judge(trials, goal.attainment)
    limit = min((one.rate for one in judged if one.verdict in ("too much", "knee")), default=None)
    stable = [one for one in judged if one.verdict == "stable" and (limit is None or one.rate < limit)]
    best = max(stable, key=lambda one: one.rate, default=None)
    if trials and trials[-1].is_client_late:
        num_late = sum(trial.is_client_late for trial in trials if trial.rate == trials[-1].rate)
        return Finding("client", best, limit) if num_late >= MAX_TRIALS else Next(trials[-1].rate)
    if len(trials) >= goal.max_trials:
        return Finding("out of trials", best, limit)
    undecided = [one.rate for one in judged if one.verdict == "open" and (limit is None or one.rate < limit)]
    if undecided:
        return Next(undecided[0])
    return _narrow(best, limit, goal)


def _narrow(best: Judged | None, limit: float | None, goal: Goal) -> Next | Finding:
    if best is None and limit is None:
        return Next(goal.first_rate)
    if best is None:
        assert limit is not None
        return Next(limit / 2) if limit > goal.first_rate / 64 else Finding("none stable", None, limit)
    if limit is None and best.rate < goal.last_rate:
        return Next(min(best.rate * 2, goal.last_rate))
    if limit is not None and limit / best.rate > 1 + goal.precision:
        return Next(math.sqrt(best.rate * limit))
    if best.trials < 2:
        return Next(best.rate)
    return Finding("found" if limit is not None else "no limit", best, limit)


def judge(trials: Sequence[Trial], attainment: float) -> list[Judged]:
    """Every rate that was tried, ascending. What a late client measured says nothing about the server."""
    good = [trial for trial in trials if not trial.is_client_late]
    return [
        _judge([trial for trial in good if trial.rate == rate], attainment)
        for rate in sorted({trial.rate for trial in good})
    ]


def _judge(trials: Sequence[Trial], attainment: float) -> Judged:
    inside, total = sum(trial.inside for trial in trials), sum(trial.total for trial in trials)
    low, high = wilson(inside, total)
    num_growing = sum(trial.is_growing for trial in trials)
    verdict: Verdict = "open"
    if high < attainment or num_growing > MAX_TRIALS // 2:
        verdict = "too much"
    elif low >= attainment and (num_growing == 0 or len(trials) >= MAX_TRIALS):
        verdict = "stable"
    elif len(trials) >= MAX_TRIALS:
        verdict = "knee"
    return Judged(trials[0].rate, len(trials), inside, total, low, high, verdict)


def wilson(inside: int, total: int) -> tuple[float, float]:
    """The 95 % confidence interval of a fraction (Wilson 1927)."""
    if total == 0:
        return 0.0, 1.0
    share, weight = inside / total, Z_95**2 / total
    middle = (share + weight / 2) / (1 + weight)
    reach = Z_95 * math.sqrt(share * (1 - share) / total + weight / (4 * total)) / (1 + weight)
    return max(0.0, middle - reach), min(1.0, middle + reach)


def is_hopeless(missed: int, total: int, attainment: float) -> bool:
    """Whether a trial of `total` requests is too much already, even if all others are inside."""
    return wilson(total - missed, total)[1] < attainment


def is_growing(records: Sequence[Record]) -> bool:
    """Whether TTFT or E2E are higher in the last third of a trial than in its middle third; the first fills the server.

    By the Mann-Whitney test, one-sided at 0.5 %, and by a tenth of the median, so that no trifle counts.
    """
    ordered = sorted((record for record in records if record.outcome == "ok"), key=lambda record: record.scheduled_s)
    third = len(ordered) // 3
    middle, last = ordered[third : 2 * third], ordered[2 * third :]
    return third > 3 and (
        _is_higher([record.ttft_s or 0.0 for record in middle], [record.ttft_s or 0.0 for record in last])
        or _is_higher([record.e2e_s or 0.0 for record in middle], [record.e2e_s or 0.0 for record in last])
    )


def _is_higher(before: Sequence[float], after: Sequence[float]) -> bool:
    if median(after) <= GROWTH_RATIO * median(before):
        return False
    return mann_whitney_z(before, after) > GROWTH_Z


def mann_whitney_z(before: Sequence[float], after: Sequence[float]) -> float:
    """How many standard deviations the rank sum of `after` is above what it would be if nothing had changed."""
    wins = sum((late > early) + (late == early) / 2 for late in after for early in before)
    pairs = len(before) * len(after)
    return (wins - pairs / 2) / math.sqrt(pairs * (len(before) + len(after) + 1) / 12)

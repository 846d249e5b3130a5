"""The search for the highest stable rate, on servers whose knee is known."""

import math
import random
from collections.abc import Callable

import pytest
import scipy.stats

from loadtest.search import (
    Finding,
    Goal,
    Next,
    Trial,
    decide,
    is_growing,
    is_hopeless,
    judge,
    mann_whitney_z,
    wilson,
)
from tests.loadtest.test_slo import record

Attempted = Callable[[float, random.Random], Trial]


def search(attempt: Attempted, goal: Goal, seed: int = 0) -> tuple[Finding, list[Trial]]:
    trials, rng = list[Trial](), random.Random(seed)
    while isinstance(step := decide(trials, goal), Next):
        trials.append(attempt(step.rate, rng))
    return step, trials


def with_knee(knee: float, width: float, count: int = 100) -> Attempted:
    """The fraction inside falls from 1 to 0 around the knee, where it is 0.9."""

    def attempt(rate: float, rng: random.Random) -> Trial:
        share = 1 / (1 + math.exp(min((rate / knee - 1) / width, 500.0) - math.log(9)))
        return Trial(rate=rate, inside=sum(rng.random() < share for _ in range(count)), total=count)

    return attempt


@pytest.mark.parametrize("knee", [0.3, 3.3, 40.0])
def test_a_sharp_knee_is_found_within_the_precision(knee: float) -> None:
    finding, trials = search(with_knee(knee, 0.001), Goal(precision=0.05))
    assert finding.ending == "found"
    assert finding.stable is not None
    assert finding.limit is not None
    assert knee / 1.06 < finding.stable.rate < knee < finding.limit <= finding.stable.rate * 1.05
    assert finding.stable.trials >= 2
    assert finding.stable.low >= 0.9
    assert len(trials) <= 25


def test_a_rate_at_the_knee_is_hardly_ever_reported_as_stable() -> None:
    findings = [search(with_knee(5.0, 0.05), Goal(), seed)[0] for seed in range(100)]
    rates = [finding.stable.rate for finding in findings if finding.stable is not None]
    assert len(rates) == 100
    assert sum(rate > 5.0 for rate in rates) <= 5
    assert sorted(rates)[50] > 4.0


def test_a_growing_queue_is_not_stable_however_well_it_looks() -> None:
    def attempt(rate: float, rng: random.Random) -> Trial:
        return Trial(rate=rate, inside=100, total=100, is_growing=rate > 6.0)

    finding, _ = search(attempt, Goal())
    assert finding.stable is not None
    assert 6.0 / 1.06 < finding.stable.rate <= 6.0
    once = [Trial(rate=1.0, inside=100, total=100, is_growing=growing) for growing in (True, False, False)]
    assert [judge(once[:count], 0.9)[0].verdict for count in (1, 2, 3)] == ["open", "open", "stable"]


def test_endings() -> None:
    perfect = search(lambda rate, rng: Trial(rate=rate, inside=50, total=50), Goal(last_rate=10.0))[0]
    assert (perfect.ending, perfect.limit, perfect.stable and perfect.stable.rate) == ("no limit", None, 10.0)
    hopeless, trials = search(lambda rate, rng: Trial(rate=rate, inside=0, total=50), Goal())
    assert (hopeless.ending, hopeless.stable, len(trials)) == ("none stable", None, 7)
    late = search(lambda rate, rng: Trial(rate=rate, inside=50, total=50, is_client_late=rate > 8), Goal())[0]
    assert (late.ending, late.stable and late.stable.rate) == ("client", 8.0)
    short = search(with_knee(3.0, 0.05), Goal(precision=1e-9, max_trials=12))[0]
    assert short.ending == "out of trials"


def test_what_three_trials_cannot_decide_is_the_knee() -> None:
    trials = [Trial(rate=2.0, inside=90, total=100)] * 3
    assert [judge(trials[:count], 0.9)[0].verdict for count in (1, 2, 3)] == ["open", "open", "knee"]
    assert decide([Trial(rate=1.0, inside=100, total=100), *trials], Goal(precision=0.5)) == Next(math.sqrt(2.0))


@pytest.mark.parametrize(("inside", "total"), [(0, 10), (9, 10), (50, 50), (93, 100)])
def test_the_interval_is_wilsons(inside: int, total: int) -> None:
    truth = scipy.stats.binomtest(inside, total).proportion_ci(0.95, "wilson")
    assert wilson(inside, total) == pytest.approx((truth.low, truth.high), abs=1e-6)
    assert wilson(0, 0) == (0.0, 1.0)


def test_hopeless_trials() -> None:
    assert [is_hopeless(missed, 50, 0.9) for missed in (0, 5, 9, 12, 50)] == [False, False, False, True, True]


def test_growth() -> None:
    rng = random.Random(1)
    noise = [rng.uniform(0.9, 1.1) for _ in range(90)]
    steady = [record(0.2 * one, 0.01, scheduled_s=1.0 + 1e-6 * index) for index, one in enumerate(noise)]
    growing = [record(0.2 * one + 0.004 * i, 0.01, scheduled_s=1.0 + 1e-6 * i) for i, one in enumerate(noise)]
    filling = [record(0.2 * one * min(1, i / 20), 0.01, scheduled_s=1.0 + 1e-6 * i) for i, one in enumerate(noise)]
    assert [is_growing(records) for records in (steady, growing, filling, growing[:9])] == [False, True, False, False]
    before, after = noise[:20], [one + 0.05 for one in noise[20:45]]
    truth = scipy.stats.mannwhitneyu(after, before, alternative="greater", method="asymptotic", use_continuity=False)
    assert scipy.stats.norm.sf(mann_whitney_z(before, after)) == pytest.approx(truth.pvalue, rel=1e-6)

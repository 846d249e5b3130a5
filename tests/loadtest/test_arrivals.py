"""Schedules against the distributions they are named for."""

import math

import numpy as np
import pytest
import scipy.stats

from loadtest.arrivals import Ramp, Steady, Trace, schedule
from loadtest.errors import UsageError
from loadtest.request import Request

MANY = [Request(prompt="a", max_tokens=1)] * 4000


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_gaps_are_gamma_distributed_and_the_last_arrival_is_on_time(burstiness: float) -> None:
    times = schedule(Steady(8.0, burstiness), MANY, seed=7)
    assert times[-1] == pytest.approx(len(MANY) / 8.0)
    gaps = np.diff([0.0, *times])
    assert (gaps >= 0).all()
    assert gaps.std() / gaps.mean() == pytest.approx(1 / math.sqrt(burstiness), rel=0.1)
    truth = scipy.stats.gamma(burstiness, scale=1 / (8.0 * burstiness))
    assert scipy.stats.kstest(gaps, truth.cdf).pvalue > 0.01


def test_constant_and_extremely_bursty() -> None:
    assert schedule(Steady(4.0, math.inf), MANY[:4], 0) == [0.25, 0.5, 0.75, 1.0]
    assert schedule(Steady(4.0, 1e-9), MANY[:3], 0)[-1] == pytest.approx(0.75)


def test_a_seed_repeats_a_schedule() -> None:
    assert schedule(Steady(1.0), MANY, 5) == schedule(Steady(1.0), MANY, 5) != schedule(Steady(1.0), MANY, 6)


@pytest.mark.parametrize(("first", "last"), [(2.0, 10.0), (10.0, 2.0), (3.0, 3.0)])
def test_a_ramp_changes_its_rate_linearly_in_time(first: float, last: float) -> None:
    times = np.array(schedule(Ramp(first, last), MANY, seed=2))
    lasts_s = 2 * len(MANY) / (first + last)
    assert times[-1] == pytest.approx(lasts_s)
    counts, edges = np.histogram(times, bins=5, range=(0, lasts_s))
    middles = (edges[:-1] + edges[1:]) / 2
    assert counts / np.diff(edges) == pytest.approx(first + (last - first) * middles / lasts_s, rel=0.15)


def test_a_trace_is_replayed_from_its_first_request_at_any_speed() -> None:
    recorded = [Request(prompt="a", max_tokens=1, at_s=at_s) for at_s in (3.0, 3.5, 7.0)]
    assert schedule(Trace(), recorded, 0) == [0.0, 0.5, 4.0]
    assert schedule(Trace(speed=2.0), recorded, 0) == [0.0, 0.25, 2.0]
    with pytest.raises(UsageError, match="no timestamps"):
        schedule(Trace(), MANY, 0)
    with pytest.raises(UsageError, match="must ascend"):
        schedule(Trace(), recorded * 2, 0)

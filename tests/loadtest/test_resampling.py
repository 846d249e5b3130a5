"""Intervals of a ratio: against cases with known answers, and how often they hold the truth."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats

from loadtest import resampling
from loadtest.resampling import Interval, block_totals, expanded_tail, ratio_interval


def test_blocks_are_contiguous_and_even() -> None:
    pairs = [(float(index), 1.0) for index in range(25)]
    totals = block_totals(pairs)
    assert [count for _, count in totals] == [2, 3, 2, 3, 2, 3, 2, 3, 2, 3]
    assert totals[:2] == [(0 + 1, 2), (2 + 3 + 4, 3)]
    assert block_totals(pairs[:3]) == [(0, 1), (1, 1), (2, 1)]
    assert block_totals([]) == []


def test_equal_servers_are_equal_for_sure() -> None:
    pairs = [(float(index % 3 > 0), float(index % 3 > 0)) for index in range(90)]
    assert ratio_interval([pairs, pairs]) == Interval(1.0, 1.0, 1.0)
    assert ratio_interval([[(1.0, 1.0)] * 40]) == Interval(1.0, 1.0, 1.0)
    assert ratio_interval([[(0.0, 0.0)] * 40]) == Interval(1.0, 1.0, 1.0)


def test_a_constant_ratio_has_no_spread() -> None:
    assert ratio_interval([[(3.0, 2.0)] * 50]) == Interval(1.5, 1.5, 1.5)


def test_nothing_to_divide_by() -> None:
    assert ratio_interval([[(1.0, 0.0)] * 50]) == Interval(math.inf, math.inf, math.inf)
    assert ratio_interval([[(0.0, 1.0)] * 50]) == Interval(0.0, 0.0, 0.0)
    rare = ratio_interval([[(1.0, 0.0), *[(0.0, 0.0)] * 49]])
    assert (rare.ratio, rare.low, rare.high) == (math.inf, 1.0, math.inf)  # one request decides nothing
    assert ratio_interval([[(1.0, 1.0)]]) == Interval(1.0, 0.0, math.inf)
    assert ratio_interval([]) == Interval(1.0, 0.0, math.inf)


def test_the_interval_is_the_normal_one_for_many_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a mean of independent values against a constant, whose standard error is known."""
    monkeypatch.setattr(resampling, "BLOCKS_PER_RUN", 400)
    values = np.random.default_rng(0).normal(1.0, 0.2, 400)
    found = ratio_interval([[(float(value), 1.0) for value in values]])
    reach = 1.96 * values.std(ddof=1) / math.sqrt(400)
    assert found.ratio == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - reach, abs=0.08 * reach)
    assert found.high == pytest.approx(values.mean() + reach, abs=0.08 * reach)


def test_a_seed_gives_the_same_interval() -> None:
    rng = np.random.default_rng(1)
    pairs = [(float(a), float(b)) for a, b in rng.integers(0, 2, (60, 2))]
    assert ratio_interval([pairs], seed=3) == ratio_interval([pairs], seed=3) != ratio_interval([pairs], seed=4)


def test_tails_are_students() -> None:
    for count in (10, 30, 90):
        t = stats.t.ppf(0.975, count - 1)
        assert expanded_tail(count) == pytest.approx(stats.norm.cdf(-t * math.sqrt(count / (count - 1))), rel=0.02)


def _queued(rng: np.random.Generator, count: int) -> list[tuple[float, float]]:
    """Two servers whose requests are inside or not by a load that comes and goes: correlated in time and in pairs.

    P(inside) is Phi(shift) for each, whatever the correlation, since the underlying values are standard normal.
    """
    shared, own = _waves(rng, count, 1)[:, 0], _waves(rng, count, 2)
    latent = math.sqrt(0.5) * shared[:, None] + math.sqrt(0.5) * own
    inside = latent < np.array([1.2, 0.8])
    return [(float(a), float(b)) for a, b in inside]


def _waves(rng: np.random.Generator, count: int, columns: int, memory: float = 0.7) -> np.ndarray:
    waves = rng.normal(size=(count, columns))
    for index in range(1, count):
        waves[index] = memory * waves[index - 1] + math.sqrt(1 - memory**2) * waves[index]
    return waves


def _coverage(rounds: int, count: int, trials: int) -> float:
    truth = stats.norm.cdf(1.2) / stats.norm.cdf(0.8)
    rng = np.random.default_rng(5)
    found = [ratio_interval([_queued(rng, count) for _ in range(rounds)]) for _ in range(trials)]
    return sum(one.low <= truth <= one.high for one in found) / trials


def test_the_interval_holds_the_truth_as_often_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resampling, "SAMPLES", 400)
    assert 0.9 <= _coverage(rounds=3, count=120, trials=200) <= 0.99


def test_single_requests_would_be_too_sure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resampling, "SAMPLES", 200)
    monkeypatch.setattr(resampling, "BLOCKS_PER_RUN", 120)
    assert _coverage(rounds=1, count=120, trials=100) < 0.88


def test_pairs_of_a_short_run_are_blocks_of_their_own() -> None:
    pairs: Sequence[tuple[float, float]] = [(1.0, 1.0), (0.0, 1.0), (1.0, 1.0), (1.0, 1.0)]
    found = ratio_interval([pairs])
    assert found.low < found.ratio == 0.75 < found.high

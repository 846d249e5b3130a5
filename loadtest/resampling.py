"""How sure a ratio of two servers is that were sent the same requests: a paired block bootstrap, pure arithmetic.

The same request on both servers is a pair, so that what is hard about a moment of the load is hard for both. Requests
that arrive one after another wait in the same queue and are alike: runs are therefore cut into blocks of consecutive
arrivals, and whole blocks are drawn with replacement. Drawing single requests would make the interval far too narrow.
Where a queue remembers half a block of requests, an interval of 95 % still holds the truth 92 times in a hundred.
"""

import math
import random
from collections.abc import Sequence
from statistics import NormalDist

import msgspec

from loadtest.statistics import Summary

BLOCKS_PER_RUN = 10
SAMPLES = 2000
TAIL = 0.025
"""On either side of a 95 % interval."""


class Interval(msgspec.Struct, frozen=True):
    """A ratio and its 95 % interval. Infinite where the second server has nothing to divide by."""

    ratio: float
    low: float
    high: float


def ratio_interval(runs: Sequence[Sequence[tuple[float, float]]], seed: int = 0) -> Interval:
    """Of the first server's sum to the second's. Each run is its pairs in the order of arrival.

    The same pairs and seed always give the same interval. Fewer than two blocks say nothing about the spread.
    """
    blocks = [total for run in runs for total in block_totals(run)]
    ratio = _ratio(blocks)
    if len(blocks) < 2:
        return Interval(ratio, 0.0, math.inf)
    rng = random.Random(seed)
    ratios = sorted(_ratio(rng.choices(blocks, k=len(blocks))) for _ in range(SAMPLES))
    tail = expanded_tail(len(blocks))
    return Interval(ratio, _percentile(ratios, tail), _percentile(ratios, 1 - tail))


def block_totals(pairs: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Both servers' sums over each of the blocks that a run is cut into, as even as whole numbers allow."""
    count = min(BLOCKS_PER_RUN, len(pairs))
    cuts = [len(pairs) * index // count for index in range(count + 1)] if count else []
    parts = [pairs[begin:end] for begin, end in zip(cuts, cuts[1:], strict=False)]
    return [(math.fsum(a for a, _ in part), math.fsum(b for _, b in part)) for part in parts]


def expanded_tail(count: int) -> float:
    """The tail of resampled values at which the interval holds what it says for `count` blocks.

    Percentiles of a plain bootstrap are too close together for few blocks: they leave out the factor
    sqrt(n / (n - 1)) and take the normal for Student's distribution (Hesterberg 2015). Student's quantile is the
    normal's by its expansion in 1 / (n - 1).
    """
    z, freedom = NormalDist().inv_cdf(1 - TAIL), count - 1
    t = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    return NormalDist().cdf(-t * math.sqrt(count / freedom))


def _ratio(totals: Sequence[tuple[float, float]]) -> float:
    """Of sums; two servers that both have nothing are alike."""
    a, b = sum(a for a, _ in totals), sum(b for _, b in totals)
    return a / b if b else math.inf if a else 1.0


def _percentile(ordered: Sequence[float], fraction: float) -> float:
    """The nearest one where interpolation would have to cross into infinity."""
    if math.isinf(ordered[-1]):
        return ordered[round((len(ordered) - 1) * fraction)]
    return Summary(tuple(ordered)).percentile(100 * fraction) or 0.0

"""When the requests of an open loop arrive, in seconds after the start: drawn or recorded, never measured.

Gaps follow vLLM's definition: gamma distributed with shape = burstiness (1 is a Poisson process, below 1 comes in
bursts, infinite is constant), and rescaled so that the last of N requests arrives at N / rate. Two runs at one rate
therefore last equally long, whatever the seed.
"""

import math
import random
from collections.abc import Sequence

import msgspec

from loadtest.errors import UsageError
from loadtest.request import Request


class Steady(msgspec.Struct, frozen=True, tag="steady"):
    """One rate in requests per second."""

    rate: float
    burstiness: float = 1.0


class Ramp(msgspec.Struct, frozen=True, tag="ramp"):
    """The rate grows or falls linearly in time, from the first request to the last."""

    first_rate: float
    last_rate: float
    burstiness: float = 1.0


class Trace(msgspec.Struct, frozen=True, tag="trace"):
    """The data set's own timestamps, replayed `speed` times as fast."""

    speed: float = 1.0


Arrivals = Steady | Ramp | Trace


def schedule(arrivals: Arrivals, requests: Sequence[Request], seed: int) -> list[float]:
    """One arrival per request, ascending. Raises UsageError when a trace's requests have no timestamps."""
    match arrivals:
        case Steady(rate, burstiness):
            return [position / rate for position in _positions(len(requests), burstiness, seed)]
        case Ramp(first_rate, last_rate, burstiness):
            positions = _positions(len(requests), burstiness, seed)
            return [_ramp_time_s(position, first_rate, last_rate, len(requests)) for position in positions]
        case Trace(speed):
            return [at_s / speed for at_s in _recorded(requests)]


def _positions(count: int, burstiness: float, seed: int) -> list[float]:
    """The arrivals of a process of one request per second, the last at `count`."""
    if math.isinf(burstiness):
        return [float(index + 1) for index in range(count)]
    rng, total, positions = random.Random(f"arrivals {seed}"), 0.0, list[float]()
    for _ in range(count):
        total += rng.gammavariate(burstiness, 1.0)
        positions.append(total)
    # A tiny burstiness can underflow to gaps of zero altogether.
    return [position * count / total for position in positions] if total > 0 else [float(count)] * count


def _ramp_time_s(position: float, first_rate: float, last_rate: float, count: int) -> float:
    """When `position` requests have arrived: solves first * t + growth * t^2 / 2 = position."""
    growth = (last_rate - first_rate) * (last_rate + first_rate) / (2 * count)
    return 2 * position / (first_rate + math.sqrt(max(first_rate**2 + 2 * growth * position, 0.0)))


def _recorded(requests: Sequence[Request]) -> list[float]:
    times = [request.at_s for request in requests if request.at_s is not None]
    if len(times) != len(requests):
        raise UsageError(
            "--arrivals trace: the data set has no timestamps; allowed: mooncake files, or JSONL with at_s"
        )
    if any(later < earlier for earlier, later in zip(times, times[1:], strict=False)):
        raise UsageError("--arrivals trace: the timestamps must ascend, and the data set can be replayed only once")
    return [at_s - times[0] for at_s in times]

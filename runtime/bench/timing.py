"""Timing a call: medians over repeats with the extremes, because one number hides a busy machine."""

import statistics
import time
from collections.abc import Callable, Sequence

import msgspec


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds of one call over several repeats."""

    median_s: float
    min_s: float
    max_s: float
    repeats: int

    def __str__(self) -> str:
        return f"{self.median_s * 1e3:.2f} ({self.min_s * 1e3:.2f}-{self.max_s * 1e3:.2f})"


def interleaved(calls: Sequence[Callable[[], object]], repeats: int) -> list[Timing]:
    """Times several calls in turns, after one unmeasured turn, so that all see the same disturbances."""
    times: list[list[float]] = [[] for _ in calls]
    for turn in range(repeats + 1):
        for call, seconds in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            if turn:
                seconds.append(time.perf_counter() - start)
    return [
        Timing(median_s=statistics.median(part), min_s=min(part), max_s=max(part), repeats=repeats) for part in times
    ]

"""Whether a newcomer is let into the scheduler's queue, and when one that is not should come back. Pure.

A queue that is short enough for memory may still be too long for the time that a request may wait for its first token.
So the scheduler measures how fast groups end while others wait, and refuses at once what would only time out later.
Times are seconds on the carrier's clock.
"""

import math

from actors.messages import ErrorInfo

PATIENCE = 0.5
"""The share of its time that a newcomer is let in to wait: groups are not alike, and the rate is an estimate.

While anybody waits, nothing is idle, so a shorter queue costs no throughput.
"""

UNKNOWN_RETRY_S = 5
"""What a refused client is told before anything was measured."""

_WINDOW_S = 30.0
_LEAST_S = 0.5
_LEAST_ENDS = 2


class DrainRate:
    """Groups that end per second while others wait, over the last half minute or so of such time.

    Time in which nobody waits does not count, and what ends then neither: it tells what was asked for, not how fast
    the workers are. Older measurements weigh less and less.
    """

    def __init__(self, window_s: float = _WINDOW_S) -> None:
        self._window_s = window_s
        self._waiting = False
        self._at = 0.0
        self._ends = 0.0
        self._time_s = 0.0
        self._seen_ends = 0
        self._seen_s = 0.0

    def waits(self, waiting: bool, now: float) -> None:
        """Somebody waits from now on, or nobody does."""
        self._advance(now)
        self._waiting = waiting

    def ended(self, now: float) -> None:
        """One group has ended and made room, for good: one that is given up to be tried again has not."""
        self._advance(now)
        if self._waiting:
            self._ends += 1
            self._seen_ends += 1

    def per_s(self, now: float) -> float | None:
        """Groups per second; None while too little was seen to tell."""
        self._advance(now)
        if self._seen_ends < _LEAST_ENDS or self._seen_s < _LEAST_S:
            return None
        return self._ends / self._time_s

    def _advance(self, now: float) -> None:
        passed_s, self._at = max(0.0, now - self._at), max(now, self._at)
        if self._waiting:
            kept = math.exp(-passed_s / self._window_s)
            self._ends *= kept
            self._time_s = self._time_s * kept + self._window_s * (1.0 - kept)
            self._seen_s += passed_s


def expected_wait_s(ahead: int, per_s: float | None) -> float | None:
    """Seconds until as many groups and one more have ended; None when nobody knows."""
    if per_s is None:
        return None
    return (ahead + 1) / per_s if per_s > 0 else math.inf


def retry_after_s(ahead: int, per_s: float | None) -> int:
    """Whole seconds, from 1 to 60, until what is ahead now has ended."""
    wait_s = expected_wait_s(ahead, per_s)
    return UNKNOWN_RETRY_S if wait_s is None else math.ceil(min(60.0, max(1.0, wait_s)))


def refusal(
    *, queued: int, ahead: int, is_full: bool, patience_s: float | None, per_s: float | None
) -> ErrorInfo | None:
    """Why a newcomer is refused, None to let it in.

    `queued` groups wait for a place, `ahead` for their first token. `patience_s` is how long the newcomer may wait for
    its own, None for as long as it takes.
    """
    retry = retry_after_s(ahead, per_s)
    if is_full:
        message = f"{queued} requests are waiting, the limit."
        return ErrorInfo(status=429, message=message, code="queue_full", retry_after_s=retry)
    wait_s = expected_wait_s(ahead, per_s)
    if not queued or patience_s is None or wait_s is None or wait_s <= PATIENCE * patience_s:
        return None
    message = (
        f"{queued} requests are waiting, and a further one would wait about {min(wait_s, 3600.0):.1f} s for its first "
        f"token; it may wait {max(0.0, patience_s):.1f} s, of which half is kept in reserve."
    )
    return ErrorInfo(status=429, message=message, code="queue_slow", retry_after_s=retry)

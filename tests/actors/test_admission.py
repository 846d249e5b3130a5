"""Who is let into the queue: a short enough one for its memory, and for the time that the newcomer may wait."""

import math

import pytest

from actors.admission import PATIENCE, UNKNOWN_RETRY_S, DrainRate, expected_wait_s, refusal, retry_after_s
from actors.messages import ErrorInfo


def drained(rate: DrainRate, count: int, every_s: float, start: float = 0.0) -> float:
    """Lets groups end one after another while others wait; returns when the last one did."""
    rate.waits(True, start)
    for number in range(1, count + 1):
        rate.ended(start + number * every_s)
    return start + count * every_s


def refused(*, queued: int = 10, ahead: int = 10, is_full: bool = False, patience_s: float | None = 60.0,
            per_s: float | None = 2.0) -> ErrorInfo | None:  # fmt: skip
    return refusal(queued=queued, ahead=ahead, is_full=is_full, patience_s=patience_s, per_s=per_s)


def test_the_rate_is_that_of_what_ends_while_others_wait() -> None:
    rate = DrainRate()
    assert rate.per_s(0.0) is None
    end = drained(rate, 200, 0.5)
    assert rate.per_s(end) == pytest.approx(2.0, rel=0.02)


@pytest.mark.parametrize("idle_s", [1.0, 600.0, 86400.0])
def test_idle_time_changes_nothing(idle_s: float) -> None:
    rate = DrainRate()
    end = drained(rate, 100, 0.25)
    known = rate.per_s(end)
    rate.waits(False, end)
    assert rate.per_s(end + idle_s) == known
    rate.waits(True, end + idle_s)
    assert rate.per_s(end + idle_s) == known
    drained(rate, 10, 0.25, start=end + idle_s)
    assert rate.per_s(end + idle_s + 2.5) == pytest.approx(4.0, rel=0.02)


def test_what_ends_while_nobody_waits_tells_nothing() -> None:
    """One request a minute is what was asked for, not what the workers can do."""
    rate = DrainRate()
    for minute in range(100):
        rate.ended(60.0 * minute)
    assert rate.per_s(6000.0) is None
    end = drained(rate, 40, 0.1, start=6000.0)
    assert rate.per_s(end) == pytest.approx(10.0, rel=0.02)


def test_nothing_is_known_after_an_instant() -> None:
    rate = DrainRate()
    rate.waits(True, 0.0)
    for _ in range(5):
        rate.ended(0.001)
    assert rate.per_s(0.001) is None, "five at once are not thousands a second"
    assert rate.per_s(1.0) == pytest.approx(5.0, rel=0.05)


def test_the_rate_follows_when_groups_become_longer_or_nothing_ends_any_more() -> None:
    rate = DrainRate()
    end = drained(rate, 1000, 0.1)
    end = drained(rate, 60, 2.0, start=end)
    slow = rate.per_s(end)
    assert slow == pytest.approx(0.5, rel=0.5)
    stuck = rate.per_s(end + 300.0)
    assert stuck is not None
    assert stuck < 0.01


def test_bursts_are_averaged() -> None:
    """Sixteen rows whose answers are equally long end together every four seconds."""
    rate = DrainRate()
    rate.waits(True, 0.0)
    seen = []
    for second in range(4, 200, 4):
        seen.append(rate.per_s(second - 0.01))
        for _ in range(16):
            rate.ended(float(second))
        seen.append(rate.per_s(second + 0.01))
    later = [value for value in seen[20:] if value is not None]
    assert len(later) == len(seen[20:])
    assert 3.0 < min(later) < max(later) < 5.0


def test_the_expected_wait_counts_the_newcomers_own_place() -> None:
    assert expected_wait_s(9, 2.0) == 5.0
    assert expected_wait_s(9, None) is None
    assert expected_wait_s(0, 0.0) == math.inf


def test_retry_after_is_the_time_until_what_is_ahead_has_drained() -> None:
    assert retry_after_s(10, None) == UNKNOWN_RETRY_S
    assert retry_after_s(19, 0.5) == 40
    assert retry_after_s(10_000, 0.5) == 60
    assert retry_after_s(0, 100.0) == 1
    assert retry_after_s(3, 0.0) == 60


def test_a_full_queue_refuses_whoever_comes() -> None:
    error = refused(is_full=True, patience_s=None, per_s=None)
    assert error is not None
    assert (error.status, error.code, error.retry_after_s) == (429, "queue_full", UNKNOWN_RETRY_S)


def test_a_newcomer_that_would_time_out_is_refused_with_the_numbers() -> None:
    patience_s = 10.0
    fits = int(PATIENCE * patience_s * 2.0) - 1
    assert refused(ahead=fits, patience_s=patience_s) is None
    error = refused(ahead=fits + 1, patience_s=patience_s)
    assert error is not None
    assert (error.status, error.code, error.retry_after_s) == (429, "queue_slow", 6)
    assert "10 requests are waiting" in error.message
    assert "about 5.5 s" in error.message
    assert "may wait 10.0 s" in error.message


def test_nobody_is_refused_for_a_wait_without_a_queue_a_deadline_or_a_measurement() -> None:
    assert refused(queued=0, ahead=50, patience_s=0.1) is None
    assert refused(patience_s=None, per_s=0.001) is None
    assert refused(patience_s=0.1, per_s=None) is None


def test_when_nothing_ends_at_all_nobody_new_is_let_in() -> None:
    error = refused(per_s=0.0)
    assert error is not None
    assert error.retry_after_s == 60
    assert "3600" in error.message

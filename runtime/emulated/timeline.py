"""A device that does one thing after another: when each operation ends, and how the host waits for that.

Ends are absolute, so that a sleep that lasts too long delays nothing but the host.
"""

import time


class Clock:
    """Where time comes from; tests bring their own."""

    def now(self) -> float:
        """Seconds on a monotonic clock."""
        return time.perf_counter()

    def sleep_until(self, end: float) -> None:
        """Returns once the clock shows `end`, at once if it does already."""
        while (left_s := end - self.now()) > 0:
            time.sleep(left_s)


class Timeline:
    """The operations of one device, which belongs to one thread."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._end = clock.now()

    @property
    def end(self) -> float:
        """When the device is idle."""
        return self._end

    def add(self, duration_s: float) -> float:
        """Enqueues an operation now: it begins at once, or when the one before it ends. Returns when it ends."""
        self._end = max(self._end, self._clock.now()) + duration_s
        return self._end

    def wait_until(self, end: float) -> None:
        """Blocks the host until an operation's end."""
        self._clock.sleep_until(end)

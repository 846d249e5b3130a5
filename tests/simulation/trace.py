"""The event trace of one simulated run: a hash of everything, and the last events in full."""

from collections import deque
from typing import Any
from zlib import crc32


class Trace:
    """Appends are cheap; text is made only when somebody reads it."""

    def __init__(self, size: int = 400, live: bool = False) -> None:
        self.hash = 0
        self.count = 0
        self._events: deque[tuple[float, str, str, str, Any]] = deque(maxlen=size)
        self._live = live

    def add(self, now: float, kind: str, source: str, target: str, what: Any, encoded: bytes = b"") -> None:
        """One event. `encoded` is the message's bytes, where there is a message."""
        self.count += 1
        self.hash = crc32(encoded, crc32(f"{now!r} {kind} {source} {target}".encode(), self.hash))
        self._events.append((now, kind, source, target, what))
        if self._live:
            print(_line(self._events[-1]))  # noqa: T201

    def text(self, last: int = 60) -> str:
        """The last events, oldest first."""
        return "\n".join(_line(event) for event in list(self._events)[-last:])


def _line(event: tuple[float, str, str, str, Any]) -> str:
    now, kind, source, target, what = event
    arrow = f"{source} -> {target}" if target else source
    body = repr(what)
    return f"{now:10.4f} {kind:<8} {arrow:<24} {body if len(body) <= 220 else body[:217] + '...'}"

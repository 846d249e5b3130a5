"""The event trace of one simulated run: a hash of everything, and the last events in full."""

from collections import deque
from typing import Any
from zlib import crc32

_AROUND = 20
"""Events shown before a marked moment, and as many behind it."""

Event = tuple[float, str, str, str, Any]


class Trace:
    """Appends are cheap; text is made only when somebody reads it."""

    def __init__(self, size: int = 400, live: bool = False) -> None:
        self.hash = 0
        self.count = 0
        self._events: deque[Event] = deque(maxlen=size)
        self._windows: list[list[Event]] = []
        self._still_open = 0
        self._live = live

    def add(self, now: float, kind: str, source: str, target: str, what: Any, encoded: bytes = b"") -> None:
        """One event. `encoded` is the message's bytes, where there is a message."""
        self.count += 1
        self.hash = crc32(encoded, crc32(f"{now!r} {kind} {source} {target}".encode(), self.hash))
        event = (now, kind, source, target, what)
        self._events.append(event)
        if self._still_open:
            self._still_open -= 1
            self._windows[-1].append(event)
        if self._live:
            print(_line(self._events[-1]))  # noqa: T201

    def mark(self, now: float, what: Any) -> None:
        """A planned fault comes to pass: what happens around it is kept."""
        before = list(self._events)[-_AROUND:] if not self._still_open else []
        self._windows.append(before)
        self._still_open = 0
        self.add(now, "FAULT", "*" * 8, "", str(what))
        self._windows[-1].append(self._events[-1])
        self._still_open = _AROUND

    def around_marks(self) -> str:
        """The events around every mark, oldest first."""
        return "\n  ...\n".join("\n".join(map(_line, window)) for window in self._windows)

    def text(self, last: int = 60) -> str:
        """The last events, oldest first."""
        return "\n".join(_line(event) for event in list(self._events)[-last:])


def _line(event: Event) -> str:
    now, kind, source, target, what = event
    arrow = f"{source} -> {target}" if target else source
    body = repr(what)
    return f"{now:10.4f} {kind:<8} {arrow:<24} {body if len(body) <= 220 else body[:217] + '...'}"

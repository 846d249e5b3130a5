"""Finds stop strings in text that arrives in pieces.

Owns the text that could still turn out to be the beginning of a stop string. The result does not depend on
how the text is cut: the match that ends first wins, and of those that end together the longest. Each stop
string is followed by its own Knuth-Morris-Pratt automaton, so the cost is one step per character and stop
string.
"""

from collections.abc import Sequence


class _Follower:
    """How much of one stop string the text's end matches."""

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.matched = 0
        self._fallback = _fallback_table(stop)

    def step(self, char: str) -> bool:
        """Takes the next character; True when the stop string is complete."""
        while self.matched and self.stop[self.matched] != char:
            self.matched = self._fallback[self.matched - 1]
        self.matched += self.stop[self.matched] == char
        return self.matched == len(self.stop)


def _fallback_table(stop: str) -> list[int]:
    """For each prefix of `stop`, the length of its longest proper prefix that is also its suffix."""
    table = [0] * len(stop)
    matched = 0
    for position in range(1, len(stop)):
        while matched and stop[matched] != stop[position]:
            matched = table[matched - 1]
        matched += stop[matched] == stop[position]
        table[position] = matched
    return table


class StopScanner:
    """Scans one choice's text. After a match it releases nothing more; with `include` the match itself is released."""

    def __init__(self, stop: Sequence[str], *, include: bool = False) -> None:
        if not all(stop):
            raise ValueError(f"stop strings must not be empty, got {list(stop)!r}")
        self._followers = [_Follower(text) for text in stop]
        self._include = include
        self._held = ""
        self._match: str | None = None

    def push(self, text: str) -> tuple[str, str | None]:
        """Takes the next text; returns what is certainly released, and the stop string that ended."""
        if self._match is not None:
            return "", self._match
        if not self._followers:
            return text, None
        buffer = self._held + text
        for end, char in enumerate(text, start=len(self._held) + 1):
            complete = [follower.stop for follower in self._followers if follower.step(char)]
            if complete:
                self._match = max(complete, key=len)
                self._held = ""
                return buffer[: end if self._include else end - len(self._match)], self._match
        cut = len(buffer) - max(follower.matched for follower in self._followers)
        self._held = buffer[cut:]
        return buffer[:cut], None

    def flush(self) -> str:
        """Ends the text: what was held back is no stop string."""
        held, self._held = self._held, ""
        return held

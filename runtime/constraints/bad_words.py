"""Which tokens would complete one of a choice's bad words, given what it has generated."""

from collections.abc import Iterable, Sequence


class BadWords:
    """Token sequences of which none may be completed. Immutable.

    A sequence of one token is never allowed; of a longer one only the last token is excluded, behind all the others.
    """

    def __init__(self, words: Iterable[Sequence[int]]) -> None:
        self._last_after: dict[tuple[int, ...], set[int]] = {}
        for word in words:
            self._last_after.setdefault(tuple(word[:-1]), set()).add(word[-1])
        self._lengths = sorted({len(prefix) for prefix in self._last_after})

    @property
    def num_tokens(self) -> int:
        """How many of the last tokens matter."""
        return self._lengths[-1] if self._lengths else 0

    def excluded(self, recent: Sequence[int]) -> set[int]:
        """Tokens that may not follow `recent`, the end of what was generated."""
        found: set[int] = set()
        for length in self._lengths:
            if length <= len(recent):
                found |= self._last_after.get(tuple(recent[len(recent) - length :]), set())
        return found

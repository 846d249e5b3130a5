"""How long a call on a slice may take before the slice counts as hung: a multiple of what such calls have taken.

What a step costs depends on its size, so calls are compared with calls of like size alone. The first of a kind may take
as long as any call: nothing is known of it.
"""

from collections.abc import Hashable

FLOOR_S = 10.0
"""No call is taken for hung before: a busy machine delays short calls by seconds."""

FACTOR = 20.0


def deadline_s(slowest_s: float | None, limit_s: float) -> float:
    """The deadline of a call whose like took at most `slowest_s` so far (None: unknown), never over `limit_s`."""
    return limit_s if slowest_s is None else min(limit_s, max(FLOOR_S, FACTOR * slowest_s))


def size_class(num_tokens: int) -> int:
    """Sizes within a factor of two are alike."""
    return num_tokens.bit_length()


class CallDeadlines:
    """Measured times of one slice's calls. It outlives the slice's workers."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._slowest_s: dict[Hashable, float] = {}

    def of(self, kind: Hashable) -> float:
        """Seconds that the next call of this kind may take."""
        return deadline_s(self._slowest_s.get(kind), self._limit_s)

    def measured(self, kind: Hashable, duration_s: float) -> None:
        """A call of this kind has returned."""
        self._slowest_s[kind] = max(duration_s, self._slowest_s.get(kind, 0.0))

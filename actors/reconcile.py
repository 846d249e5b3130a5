"""Comparing what should be somewhere with what is reported from there. Pure; the actors act on the outcome.

One report in which something is missing proves nothing: the message that brings it may be on its way, or lie unread.
So a thing counts as lost only once it has been missing for a while and whoever should have it has read its inbox since.
"""

from collections.abc import Iterable, Mapping

from actors.messages import Held, Key


def choice_keys(held: Iterable[Held]) -> dict[Key, Key]:
    """Each choice's own key, and the group that it belongs to."""
    return {group.key.sibling(choice): group.key for group in held for choice in group.choices}


class Overdue:
    """Remembers since when things have been out of order."""

    def __init__(self) -> None:
        self._since: dict[Key, tuple[float, int]] = {}

    def note(self, odd: Mapping[Key, int], now: float, grace_s: float) -> tuple[Key, ...]:
        """Takes all that is out of order now and returns what has been so for `grace_s`.

        Each comes with the `reads` of the report that shows it; what is not in `odd` is forgotten.
        """
        self._since = {key: self._since.get(key, (now, reads)) for key, reads in odd.items()}
        return tuple(key for key, (since, reads) in self._since.items() if now - since >= grace_s and odd[key] > reads)

    def __len__(self) -> int:
        return len(self._since)

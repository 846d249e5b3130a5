"""Since when choices have waited for a token that others have overtaken. Pure."""

Choice = tuple[str, int]


class Gaps:
    """Open gaps, oldest first. A gap is the wait for one index: the next one that is missing is another gap."""

    def __init__(self) -> None:
        self._since: dict[Choice, tuple[int, float]] = {}

    def note(self, choice: Choice, expected: int, waits: bool, now: float) -> None:
        """The choice expects this index next, and later tokens wait for it or not."""
        if not waits:
            self._since.pop(choice, None)
        elif self._since.get(choice, (None, 0.0))[0] != expected:
            self._since.pop(choice, None)
            self._since[choice] = (expected, now)

    def take_overdue(self, now: float, timeout_s: float) -> list[Choice]:
        """Removes and returns the choices that have waited for `timeout_s`."""
        overdue = [choice for choice, (_, since) in self._since.items() if since + timeout_s <= now]
        for choice in overdue:
            del self._since[choice]
        return overdue

    def oldest(self) -> float | None:
        """When the first open gap began."""
        return next((since for _, since in self._since.values()), None)

    def __len__(self) -> int:
        return len(self._since)

"""What was cancelled or has ended, remembered for a while, so that a message that arrives late makes no zombie."""

from collections import OrderedDict

from actors.messages import Key

_SWEEP_AT = 256
_RECENT = 4096


class Tombstones:
    """Cancelled choices by key; expired ones go when the number has doubled since the last sweep."""

    def __init__(self) -> None:
        self._until: dict[Key, float] = {}
        self._sweep_at = _SWEEP_AT

    def bury(self, key: Key, choices: tuple[int, ...], deadline: float, now: float) -> None:
        """Remembers these choices of the attempt until `deadline`."""
        for choice in choices:
            self._until[key.sibling(choice)] = deadline
        if len(self._until) >= self._sweep_at:
            self._until = {buried: until for buried, until in self._until.items() if until > now}
            self._sweep_at = max(_SWEEP_AT, 2 * len(self._until))

    def alive(self, key: Key, choices: tuple[int, ...]) -> tuple[int, ...]:
        """The choices that were not cancelled."""
        return tuple(choice for choice in choices if key.sibling(choice) not in self._until)

    def __len__(self) -> int:
        return len(self._until)


class Recent:
    """The last keys that were entered, so that a command that comes twice is obeyed once."""

    def __init__(self) -> None:
        self._keys: OrderedDict[Key, None] = OrderedDict()

    def add(self, key: Key) -> None:
        """Enters a key, and forgets the oldest one when there are many."""
        self._keys[key] = None
        if len(self._keys) > _RECENT:
            self._keys.popitem(last=False)

    def __contains__(self, key: Key) -> bool:
        return key in self._keys

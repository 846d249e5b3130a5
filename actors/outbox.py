"""What was sent and has to be answered: sent again when it is not, and given up after some times. Pure."""

from collections.abc import Hashable
from typing import Generic, TypeVar

from actors.messages import Address, Message

K = TypeVar("K", bound=Hashable)


class Sent(Generic[K]):
    """One message that waits for its answer. It was sent `tries` times and is due again at `due`."""

    def __init__(self, name: K, to: Address, message: Message, due: float) -> None:
        self.name = name
        self.to = to
        self.message = message
        self.tries = 1
        self.due = due


class Outbox(Generic[K]):
    """Unanswered messages by name. The wait doubles with each try: a slow receiver is not taken for a dead one."""

    def __init__(self, resend_s: float, max_resends: int) -> None:
        self._resend_s = resend_s
        self._max_resends = max_resends
        self.waiting: dict[K, Sent[K]] = {}

    def add(self, name: K, to: Address, message: Message, now: float) -> None:
        """The message has been sent for the first time."""
        self.waiting[name] = Sent(name, to, message, now + self._resend_s)

    def remove(self, name: K) -> None:
        """It was answered, or is not wanted any more."""
        self.waiting.pop(name, None)

    def failed(self, name: K, now: float) -> None:
        """It is known to be lost: nothing is gained by waiting."""
        sent = self.waiting.get(name)
        if sent is not None:
            sent.due = now

    def take_due(self, now: float) -> tuple[list[Sent[K]], list[Sent[K]]]:
        """Messages to send again now, and those that were sent often enough, which are removed."""
        again, given_up = list[Sent[K]](), list[Sent[K]]()
        for sent in [sent for sent in self.waiting.values() if sent.due <= now]:
            if sent.tries > self._max_resends:
                del self.waiting[sent.name]
                given_up.append(sent)
                continue
            sent.due = now + self._resend_s * 2**sent.tries
            sent.tries += 1
            again.append(sent)
        return again, given_up

    def next_due(self) -> float | None:
        """When the first one is due."""
        return min((sent.due for sent in self.waiting.values()), default=None)

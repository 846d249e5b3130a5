"""A bounded inbox with classes, as a pure data structure; the carriers add the waiting.

Messages leave in class order (control, cancel, token, work) and by age within a class, so a flood of new work never
delays an acknowledgement or a cancel. Each class has its own bound.
"""

from collections import deque
from collections.abc import Mapping

from actors.messages import MailboxClass, Message, mailbox_class

CLASSES: tuple[MailboxClass, ...] = ("control", "cancel", "token", "work")


class Mailbox:
    """One inbox. `overflowed` tells that a message was once refused for lack of room."""

    def __init__(self, capacity: Mapping[MailboxClass, int]) -> None:
        self._queues: dict[MailboxClass, deque[Message]] = {name: deque() for name in CLASSES}
        self._capacity = dict(capacity)
        self.overflowed = False

    def put(self, message: Message) -> bool:
        """Adds the message; False, and nothing added, when its class is full."""
        name = mailbox_class(message)
        if not self.has_room(message):
            self.overflowed = True
            return False
        self._queues[name].append(message)
        return True

    def has_room(self, message: Message) -> bool:
        """Whether `put` would take the message."""
        name = mailbox_class(message)
        return len(self._queues[name]) < self._capacity[name]

    def take(self) -> Message | None:
        """Removes and returns the first message, or None when there is none."""
        for name in CLASSES:
            if self._queues[name]:
                return self._queues[name].popleft()
        return None

    def __len__(self) -> int:
        return sum(len(queue) for queue in self._queues.values())

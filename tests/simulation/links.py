"""Inboxes and the links between them: bounds, order, lateness, and msgpack on the way."""

from collections import Counter
from collections.abc import Callable, Mapping
from random import Random
from typing import Any

import msgspec

from actors.mailbox import Mailbox
from actors.messages import (
    Address,
    AnyMessage,
    ClientMessage,
    GatewayMessage,
    MailboxClass,
    Message,
    SchedulerMessage,
    TransferMessage,
    WorkerMessage,
    mailbox_class,
)
from tests.simulation.loop import Waiter

ENCODER = msgspec.msgpack.Encoder()
_UNIONS: dict[str, Any] = {
    "gateway": GatewayMessage, "scheduler": SchedulerMessage, "transfer": TransferMessage,
    "client": ClientMessage, "prefill": WorkerMessage, "decode": WorkerMessage, "mixed": WorkerMessage,
}  # fmt: skip
_DECODERS = {name: msgspec.msgpack.Decoder(union) for name, union in _UNIONS.items()}
_ANY_DECODER: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(AnyMessage)


class Inbox:
    """An address's mailbox, the messages on their way to it, and who waits for either side."""

    def __init__(self, address: Address, capacity: Mapping[MailboxClass, int]) -> None:
        self.address = address
        self.capacity = capacity
        self.mailbox = Mailbox(capacity)
        self.decoder = _DECODERS.get(address.split(".")[0].split("/")[0], _ANY_DECODER)
        self.taken_room: Counter[MailboxClass] = Counter()
        self.receivers: list[Waiter] = []
        self.senders: list[Waiter] = []

    def claim(self, message: Message) -> bool:
        """Takes room for a message that is about to travel."""
        kind = mailbox_class(message)
        if self.taken_room[kind] >= self.capacity[kind]:
            return False
        self.taken_room[kind] += 1
        return True

    def take(self) -> Message | None:
        """The next message; its room is free again."""
        message = self.mailbox.take()
        if message is not None:
            self.taken_room[mailbox_class(message)] -= 1
            wake(self.senders)
        return message


class Link:
    """One direction between two actors: how slow it is at worst, and when its last message arrives.

    `overtaken` delivers a message that waits for the next one to pass it.
    """

    def __init__(self, random: Random) -> None:
        self._random = random
        self._max_delay_s = random.choice((0.0, 0.001, 0.01, 0.1))
        self.last_arrival = 0.0
        self.overtaken: Callable[[], None] | None = None

    def draw_delay_s(self) -> float:
        """Mostly short, now and then long."""
        return self._random.random() ** 4 * self._max_delay_s


def wake(waiters: list[Waiter]) -> None:
    """Resolves all waiters and forgets them."""
    for waiter in waiters:
        waiter.resolve()
    waiters.clear()

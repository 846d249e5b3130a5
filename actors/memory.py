"""The in-memory carrier: mailboxes in one event loop, a thread per slice, children in the actor's own scope."""

import time
from collections.abc import Callable, Coroutine, Mapping
from random import Random
from typing import Any, TypeVar, cast

import anyio
from anyio.abc import TaskGroup

from actors.context import Actor, ArrayTable, MailboxFull, NoSuchInbox
from actors.lane import Lane
from actors.mailbox import Mailbox
from actors.messages import Address, KvChunkReady, MailboxClass, Message

T = TypeVar("T")


class Inbox:
    """A mailbox and those who wait at either end of it."""

    def __init__(self, capacity: Mapping[MailboxClass, int]) -> None:
        self.mailbox = Mailbox(capacity)
        self._arrived = anyio.Event()
        self._taken = anyio.Event()

    def put(self, message: Message) -> bool:
        """Adds the message if there is room for it, and wakes the receiver."""
        if not self.mailbox.put(message):
            return False
        self._arrived.set()
        return True

    async def put_when_room(self, message: Message) -> None:
        """Waits for room."""
        while not self.mailbox.has_room(message):
            if self._taken.is_set():
                self._taken = anyio.Event()  # one event for all who wait, or the earlier ones would never wake
            await self._taken.wait()
        self.put(message)

    def take(self) -> Message | None:
        """The next message, or None; wakes senders that wait for room."""
        message = self.mailbox.take()
        if message is not None:
            self._taken.set()
        return message

    async def take_within(self, timeout_s: float | None) -> Message | None:
        """The next message, or None after the time."""
        with anyio.move_on_after(timeout_s):
            while (message := self.take()) is None:
                self._arrived = anyio.Event()
                await self._arrived.wait()
            return message
        return None


class MemoryCarrier:
    """All inboxes, lanes and bulk objects of one process. Lives on one event loop."""

    def __init__(self, seed: int = 0) -> None:
        self.arrays = ArrayTable()
        self.inboxes: dict[Address, Inbox] = {}
        self._lanes: dict[str, Lane] = {}
        self._seed = seed

    def open(self, address: Address, capacity: Mapping[MailboxClass, int]) -> Inbox:
        """Makes an inbox."""
        if address in self.inboxes:
            raise MailboxFull(f"{address} exists already")
        self.inboxes[address] = Inbox(capacity)
        return self.inboxes[address]

    def close(self, address: Address) -> None:
        """Removes an inbox; later posts to it return False."""
        self.inboxes.pop(address, None)

    def bury(self, address: Address) -> None:
        """Removes the inbox of an actor that is not coming back, with the chunks that were on their way to it."""
        inbox = self.inboxes.pop(address, None)
        while inbox is not None and (message := inbox.take()) is not None:
            if isinstance(message, KvChunkReady):
                self.arrays.drop(message.handle)

    def post(self, to: Address, message: Message) -> bool:
        """Adds a message without waiting; False when there is no such inbox or no room."""
        inbox = self.inboxes.get(to)
        return inbox is not None and inbox.put(message)

    async def send(self, to: Address, message: Message) -> None:
        """Adds a message as soon as there is room. Raises NoSuchInbox."""
        inbox = self.inboxes.get(to)
        if inbox is None:
            raise NoSuchInbox(to)
        await inbox.put_when_room(message)

    async def run_in_lane(self, name: str, call: Callable[[], T], timeout_s: float) -> T:
        """Runs a blocking call on the lane's thread, made on first use."""
        lane = self._lanes.get(name)
        if lane is None:
            lane = self._lanes[name] = Lane(name)
        return cast(T, await lane.run(call, timeout_s))

    def close_lanes(self) -> None:
        """Lets all lane threads end."""
        for lane in self._lanes.values():
            lane.close()
        self._lanes.clear()

    async def run_actor(self, address: Address, actor: Actor) -> None:
        """Runs one actor in a scope of its own until it returns, fails or is cancelled."""
        async with anyio.create_task_group() as scope:
            await actor.run(MemoryContext(self, address, scope))
            scope.cancel_scope.cancel()

    def random_for(self, address: Address) -> Random:
        """A seeded source for one actor."""
        return Random(f"{self._seed}/{address}")


class MemoryContext:
    """`actors.context.Context` on the in-memory carrier."""

    def __init__(self, carrier: MemoryCarrier, address: Address, scope: TaskGroup) -> None:
        self._carrier = carrier
        self._scope = scope
        self._inbox = carrier.inboxes[address]
        self.address = address
        self.arrays = carrier.arrays
        self.random = carrier.random_for(address)

    def now(self) -> float:
        """Seconds on the process's monotonic clock."""
        return time.monotonic()

    async def send(self, to: Address, message: Message) -> None:
        """Waits for room. Raises NoSuchInbox."""
        await self._carrier.send(to, message)

    def post(self, to: Address, message: Message) -> bool:
        """Never waits; False when the inbox is gone or full."""
        return self._carrier.post(to, message)

    async def receive(self, timeout_s: float | None = None) -> Message | None:
        """The next message; None when the time passed."""
        return await self._inbox.take_within(timeout_s)

    def receive_nowait(self) -> Message | None:
        """The next message, or None."""
        return self._inbox.take()

    async def sleep(self, duration_s: float) -> None:
        """A timer."""
        await anyio.sleep(duration_s)

    async def run_engine(self, lane: str, call: Callable[[], T], timeout_s: float) -> T:
        """Runs a blocking call on the lane's own thread. Raises EngineTimeout or EngineFailure."""
        return await self._carrier.run_in_lane(lane, call, timeout_s)

    def spawn(self, name: str, body: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Starts a child task in the actor's scope."""
        self._scope.start_soon(body, name=name)

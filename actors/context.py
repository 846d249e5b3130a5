"""The only seam between actors and the world they run in.

An actor's constructor starts nothing; `run(ctx)` is its life. Everything it does to the outside goes through `ctx`, so
that the same code runs on memory streams in one process, in processes of their own, and in the deterministic
simulator. Actor bodies therefore import no anyio, no time and no random (a test enforces it).
"""

from collections.abc import Awaitable, Callable, Coroutine
from random import Random
from typing import Any, Protocol, TypeVar

from actors.messages import Address, Message

T = TypeVar("T")


class MailboxFull(Exception):
    """The receiver's inbox has no room for this class of message."""


class NoSuchInbox(Exception):
    """Nobody has this address (any more)."""


class EngineTimeout(Exception):
    """A slice did not answer in time. Its thread may still be inside the call."""


class EngineFailure(Exception):
    """A call on a slice raised; the cause is chained."""


class ArrayTable:
    """Carrier-owned table of bulk objects that messages name by handle."""

    def __init__(self) -> None:
        self._objects: dict[int, object] = {}
        self._next = 1

    def put(self, value: object) -> int:
        """Stores `value` and returns its handle."""
        handle, self._next = self._next, self._next + 1
        self._objects[handle] = value
        return handle

    def get(self, handle: int) -> Any:
        """The object, or KeyError when it was dropped."""
        return self._objects[handle]

    def take(self, handle: int) -> Any:
        """Takes the object out, or gives None when it is not there (any more)."""
        return self._objects.pop(handle, None)

    def drop(self, handle: int) -> None:
        """Forgets the object; dropping twice is harmless."""
        self._objects.pop(handle, None)

    def __contains__(self, handle: int) -> bool:
        return handle in self._objects

    def __len__(self) -> int:
        return len(self._objects)


class Context(Protocol):
    """What an actor may do. One context belongs to one actor."""

    @property
    def address(self) -> Address:
        """The actor's own inbox."""
        ...

    @property
    def arrays(self) -> ArrayTable:
        """The carrier's array table."""
        ...

    @property
    def random(self) -> Random:
        """A seeded source of this actor's own."""
        ...

    def now(self) -> float:
        """Seconds on the carrier's clock."""
        ...

    async def send(self, to: Address, message: Message) -> None:
        """Sends along the request path: waits for room. Raises NoSuchInbox."""
        ...

    def post(self, to: Address, message: Message) -> bool:
        """Sends back along the path: never waits. False when the inbox is gone or full."""
        ...

    async def receive(self, timeout_s: float | None = None) -> Message | None:
        """The next message by class, then age; None when `timeout_s` passed."""
        ...

    def receive_nowait(self) -> Message | None:
        """The next message, or None when there is none."""
        ...

    async def sleep(self, duration_s: float) -> None:
        """A timer."""
        ...

    async def run_engine(self, lane: str, call: Callable[[], T], timeout_s: float) -> T:
        """Runs a blocking call on the named lane's own thread, in order. Raises EngineTimeout or EngineFailure."""
        ...

    def spawn(self, name: str, body: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Starts a child task in the actor's scope; it dies with the actor, and its error is the actor's."""
        ...


class Actor(Protocol):
    """A life to run on a context."""

    def run(self, ctx: Context) -> Awaitable[None]:
        """Runs until cancelled or broken."""
        ...

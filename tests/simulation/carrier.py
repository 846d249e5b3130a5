"""The deterministic carrier: actors on virtual time, with bounded inboxes, delayed links and slice threads.

It implements `actors.context.Context`. Every message crosses its link as msgpack bytes. Links are FIFO per
pair of sender and receiver, and each message may be late by a seeded virtual delay; room in the receiver's
inbox is taken when the message is sent, as on a memory stream, so the bounds are the real ones. A message that a
planned fault takes away gives its room back.
"""

from collections import Counter, deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from functools import partial
from random import Random
from typing import Any, TypeVar

import msgspec

from actors.context import ArrayTable, EngineFailure, EngineTimeout, NoSuchInbox
from actors.messages import Address, MailboxClass, Message, mailbox_class
from tests.simulation.injector import ON_TIME, Fate, Injector
from tests.simulation.links import ENCODER, Inbox, Link, wake
from tests.simulation.loop import Loop, SimulationError, Task, Waiter
from tests.simulation.trace import Trace

T = TypeVar("T")
Observer = Callable[[Address, Address, Message], None]
Body = Callable[["SimContext"], Awaitable[None]]


class Lane:
    """A slice's thread: calls run one after another, each at a moment of its own inside its service time."""

    def __init__(self, carrier: "Carrier", name: str) -> None:
        self._carrier = carrier
        self._random = Random(f"lane {name} {carrier.seed}")
        self._queue: deque[tuple[Callable[[], Any], Waiter]] = deque()
        self._busy = False
        self.name = name
        self.max_service_s = self._random.choice((0.002, 0.01, 0.05))
        self.held = False
        self.slowness = 1.0
        self._stuck: Callable[[], None] | None = None

    def submit(self, call: Callable[[], Any], waiter: Waiter) -> None:
        """Queues a call; `waiter` gets its value or error."""
        self._queue.append((call, waiter))
        self._next()

    def hold(self, held: bool) -> None:
        """A held lane is a thread that hangs: until let go, what runs does not return and what is queued waits."""
        self.held = held
        if not held and self._stuck is not None:
            stuck, self._stuck = self._stuck, None
            stuck()
        self._next()

    def speed_up(self) -> None:
        """A slow lane is as fast as before."""
        self.slowness = 1.0

    @property
    def backlog(self) -> int:
        """Calls queued or running."""
        return len(self._queue) + self._busy

    def _next(self) -> None:
        if self._busy or self.held or not self._queue:
            return
        self._busy = True
        call, waiter = self._queue.popleft()
        service_s = self._random.uniform(0.0001, self.max_service_s) * self.slowness
        moment_s = self._random.uniform(0.0, service_s)
        self._carrier.loop.after(moment_s, lambda: self._execute(call, waiter, service_s - moment_s))

    def _execute(self, call: Callable[[], Any], waiter: Waiter, rest_s: float) -> None:
        value: Any = None
        error: EngineFailure | None = None
        try:
            value = call()
        except Exception as raised:
            error = EngineFailure(f"{type(raised).__name__}: {raised}")
            error.__cause__ = raised
        self._carrier.trace.add(self._carrier.loop.now, "engine", self.name, "", error or type(value).__name__)
        self._carrier.loop.after(rest_s, lambda: self._complete(waiter, value, error))

    def _complete(self, waiter: Waiter, value: Any, error: BaseException | None) -> None:
        if self.held:
            self._stuck = partial(self._complete, waiter, value, error)
            return
        self._busy = False
        waiter.resolve(value, error)
        self._next()


class Carrier:
    """Owns inboxes, links, lanes and the actors' tasks. `on_death` hears of every actor that ends."""

    def __init__(self, seed: int, live_trace: bool = False) -> None:
        self.seed = seed
        self.loop = Loop(seed, Random(f"jitter {seed}").choice((0.0, 0.02, 0.2)))
        self.trace = Trace(live=live_trace)
        self.arrays = ArrayTable()
        self.inboxes: dict[Address, Inbox] = {}
        self.lanes: dict[str, Lane] = {}
        self.on_death: Callable[[Address, BaseException | None], None] = self._raise_death
        self.sent: Counter[str] = Counter()
        self.refused: list[tuple[Address, Address, Message]] = []
        self.observers: list[Observer] = []
        self.injector = Injector(self)
        self.undecodable = 0
        self._random = Random(f"links {seed}")
        self._links: dict[tuple[Address, Address], Link] = {}
        self._scopes: dict[Address, list[Task]] = {}
        self._starts: Counter[Address] = Counter()

    def start(self, address: Address, body: Body, capacity: Mapping[MailboxClass, int]) -> None:
        """Opens the inbox and starts the actor's life."""
        if address in self._scopes:
            raise SimulationError(f"{address} runs already")
        self.inboxes[address] = Inbox(address, capacity)
        self._starts[address] += 1
        self._scopes[address] = []
        context = SimContext(self, address, Random(f"{address} {self._starts[address]} {self.seed}"))
        self.start_task(address, str(address), _live(body, context), main=True)

    def start_task(self, address: Address, name: str, coro: Coroutine[Any, Any, None], main: bool = False) -> None:
        """A task in the actor's scope. Its error ends the actor; so does the end of its main task."""

        def on_exit(task: Task, error: BaseException | None) -> None:
            scope = self._scopes[address]
            scope.remove(task)
            if error is not None or main:
                self.kill(address)
                self.trace.add(self.loop.now, "exit", address, "", error)
                self.on_death(address, error)

        self._scopes[address].append(self.loop.start(name, coro, on_exit))

    def kill(self, address: Address) -> None:
        """Ends an actor and its children on the spot and closes its inbox. Its engine calls run on."""
        for task in self._scopes.pop(address, []):
            self.loop.kill(task)
        inbox = self.inboxes.pop(address, None)
        if inbox is not None:
            wake(inbox.senders)

    def is_running(self, address: Address) -> bool:
        """Whether the actor lives."""
        return address in self._scopes

    def lane(self, name: str) -> Lane:
        """The lane of this name, made on first use."""
        if name not in self.lanes:
            self.lanes[name] = Lane(self, name)
        return self.lanes[name]

    def transmit(self, source: Address, inbox: Inbox, message: Message) -> None:
        """Puts a message for which room was claimed on its link."""
        fate = self.injector.strike(source, inbox.address, message) or ON_TIME
        if not fate.unsent:
            self._send(source, inbox, message, fate)
        else:
            self._give_room_back(inbox, message)
        if fate.sent is not None:
            fate.sent()

    def _send(self, source: Address, inbox: Inbox, message: Message, fate: Fate) -> None:
        encoded = ENCODER.encode(message)
        self.sent[type(message).__name__] += 1
        for observe in self.observers:
            observe(source, inbox.address, message)
        self.trace.add(self.loop.now, "send", source, inbox.address, message, encoded)
        link = self._links.get((source, inbox.address))
        if link is None:
            link = self._links[source, inbox.address] = Link(self._random)
        arrival = max(self.loop.now + link.draw_delay_s() + fate.late_s, link.last_arrival)
        overtaken, link.overtaken = link.overtaken, None
        if fate.lost:
            self._give_room_back(inbox, message)
        elif fate.overtaken is not None:
            self._let_overtake(link, partial(self._arrive, inbox, encoded, message, fate), fate)
        else:
            self._deliver(link, arrival, partial(self._arrive, inbox, encoded, message, fate))
        if fate.again_s is not None and inbox.claim(message):
            self.loop.after(arrival - self.loop.now + fate.again_s, partial(self._arrive, inbox, encoded, message))
        if overtaken is not None:
            self._deliver(link, arrival, overtaken)

    def _deliver(self, link: Link, arrival: float, arrive: Callable[[], None]) -> None:
        arrival = max(arrival, link.last_arrival)
        if arrival <= self.loop.now:
            arrive()
            return
        link.last_arrival = arrival + 1e-9  # the next one strictly later: equal moments run in a drawn order
        self.loop.after(arrival - self.loop.now, arrive)

    def lose(self, source: Address, inbox: Inbox, message: Message) -> None:
        """A message for which room was claimed does not arrive."""
        self.trace.add(self.loop.now, "dropped", source, inbox.address, message)
        for observe in self.observers:
            observe(source, inbox.address, message)
        self._give_room_back(inbox, message)

    def main_task(self, address: Address) -> Task:
        """The task of the actor's own life."""
        return self._scopes[address][0]

    def _let_overtake(self, link: Link, arrive: Callable[[], None], fate: Fate) -> None:
        """Keeps a message back until the next one of its link has passed, or its time is up."""
        assert fate.overtaken is not None
        arrived = False

        def arrive_once() -> None:
            nonlocal arrived
            if not arrived:
                arrived = True
                arrive()

        def passed() -> None:
            if not arrived:
                note()
            arrive_once()

        note = fate.overtaken
        link.overtaken = passed
        self.loop.after(fate.overtaken_s, arrive_once)

    def _arrive(self, inbox: Inbox, encoded: bytes, sent: Message, fate: Fate | None = None) -> None:
        if fate is not None and fate.garbled:
            self._drop_garbled(inbox, encoded[: len(encoded) // 2], sent)
            return
        message = inbox.decoder.decode(encoded)
        if message != sent:
            raise SimulationError(f"a message changes on its way: {sent!r} becomes {message!r}")
        if self.inboxes.get(inbox.address) is not inbox:
            self.trace.add(self.loop.now, "lost", inbox.address, "", type(message).__name__)
            return
        if not inbox.mailbox.put(message):
            raise SimulationError(f"{inbox.address} has no room for the {type(message).__name__} it promised room to")
        wake(inbox.receivers)
        if fate is not None and fate.arrived is not None:
            fate.arrived(message)

    def _drop_garbled(self, inbox: Inbox, encoded: bytes, sent: Message) -> None:
        try:
            inbox.decoder.decode(encoded)
        except msgspec.DecodeError:
            self.trace.add(self.loop.now, "garbled", inbox.address, "", type(sent).__name__)
            self.undecodable += 1
            self._give_room_back(inbox, sent)
        else:
            raise SimulationError(f"half of a {type(sent).__name__} is taken for a whole one")

    def _give_room_back(self, inbox: Inbox, message: Message) -> None:
        inbox.taken_room[mailbox_class(message)] -= 1
        wake(inbox.senders)

    def _raise_death(self, address: Address, error: BaseException | None) -> None:
        if error is not None or not address.startswith("client/"):
            raise SimulationError(f"{address} ended with {error!r}") from error


class SimContext:
    """`actors.context.Context` of one actor on the simulated carrier."""

    def __init__(self, carrier: Carrier, address: Address, random: Random) -> None:
        self._carrier = carrier
        self._address = address
        self._random = random

    @property
    def address(self) -> Address:
        return self._address

    @property
    def arrays(self) -> ArrayTable:
        return self._carrier.arrays

    @property
    def random(self) -> Random:
        return self._random

    def now(self) -> float:
        return self._carrier.loop.now

    async def send(self, to: Address, message: Message) -> None:
        while True:
            inbox = self._carrier.inboxes.get(to)
            if inbox is None:
                raise NoSuchInbox(to)
            if inbox.claim(message):
                self._carrier.transmit(self._address, inbox, message)
                return
            waiter = Waiter(self._carrier.loop)
            inbox.senders.append(waiter)
            await waiter.wait()

    def post(self, to: Address, message: Message) -> bool:
        inbox = self._carrier.inboxes.get(to)
        if inbox is None or not inbox.claim(message):
            self._carrier.trace.add(self.now(), "refused", self._address, to, message)
            self._carrier.refused.append((self._address, to, message))
            return False
        self._carrier.transmit(self._address, inbox, message)
        return True

    async def receive(self, timeout_s: float | None = None) -> Message | None:
        inbox = self._carrier.inboxes[self._address]
        deadline = None if timeout_s is None else self.now() + timeout_s
        while True:
            self._carrier.injector.before_wait(self._address)
            message = inbox.take()
            if message is not None:
                self._carrier.injector.taken(self._address, message)
                return message
            if deadline is not None and self.now() >= deadline:
                return None
            await self._wait_for_message(inbox, deadline)

    async def _wait_for_message(self, inbox: Inbox, deadline: float | None) -> None:
        waiter = Waiter(self._carrier.loop)
        inbox.receivers.append(waiter)
        timer = None
        if deadline is not None:
            timer = self._carrier.loop.after(deadline - self.now(), waiter.resolve, background=True)
        try:
            await waiter.wait()
        finally:
            if timer is not None:
                timer.cancel()
            if waiter in inbox.receivers:
                inbox.receivers.remove(waiter)

    def receive_nowait(self) -> Message | None:
        self._carrier.injector.before_wait(self._address)
        message = self._carrier.inboxes[self._address].take()
        if message is not None:
            self._carrier.injector.taken(self._address, message)
        return message

    async def sleep(self, duration_s: float) -> None:
        self._carrier.injector.before_wait(self._address)
        waiter = Waiter(self._carrier.loop)
        self._carrier.loop.after(max(0.0, duration_s), waiter.resolve, background=True)
        await waiter.wait()

    async def run_engine(self, lane: str, call: Callable[[], T], timeout_s: float) -> T:
        self._carrier.injector.before_wait(self._address)
        waiter = Waiter(self._carrier.loop)
        too_late = EngineTimeout(f"{lane} did not answer in {timeout_s} s")
        timer = self._carrier.loop.after(timeout_s, lambda: waiter.resolve(error=too_late), background=True)
        self._carrier.lane(lane).submit(call, waiter)
        try:
            result: T = await waiter.wait()
        finally:
            timer.cancel()
        return result

    def spawn(self, name: str, body: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._carrier.start_task(self._address, f"{self._address}:{name}", body())


async def _live(body: Body, context: "SimContext") -> None:
    await body(context)

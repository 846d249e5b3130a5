"""Carries out planned faults on the simulated carrier: on a message's way, in an actor's body, on a slice's lane.

An actor dies of an exception inside its body, at a call on its context, so that its supervisor takes over as it would
for any error. `Mortal` marks which part of an actor's life that is: a supervisor itself is never struck.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from actors.context import Actor, Context
from actors.messages import Address, KvChunkReady, Message
from tests.simulation.faults import SLOWNESS, Boundary, Fault, can_strike, is_struck, role_of
from tests.simulation.loop import Task

if TYPE_CHECKING:
    from tests.simulation.carrier import Carrier, Lane


class PlantedDeath(Exception):
    """A planned fault ends this actor's life here."""


class Fate(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes of one message on its link.

    `unsent`: its sender dies before it has sent it. `lost`: it never arrives. `garbled`: it arrives as bytes that do
    not decode. `late_s`: it and all behind it are late. `overtaken_s`: it waits so long at most for the next message of
    its link to pass it. `again_s`: a copy arrives so much later. `sent` and `arrived` are called when that has
    happened; `arrived` gets the message as it lies in the inbox.
    """

    unsent: bool = False
    lost: bool = False
    garbled: bool = False
    late_s: float = 0.0
    overtaken_s: float = 0.0
    again_s: float | None = None
    sent: Callable[[], None] | None = None
    arrived: Callable[[Message], None] | None = None
    overtaken: Callable[[], None] | None = None


ON_TIME = Fate()
"""What becomes of a message that is left in peace."""


class Struck(msgspec.Struct, frozen=True):
    """A fault that came to pass, and the boundary that it came to pass at."""

    fault: Fault
    boundary: Boundary
    at_s: float


class _Life:
    """An actor's body while it runs. `doomed` kills it at its next wait."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.doomed: Callable[[], None] | None = None
        self.last_message: tuple[Message, Callable[[], None]] | None = None


class Mortal:
    """An actor whose body can be killed."""

    def __init__(self, actor: Actor, injector: "Injector") -> None:
        self.actor = actor
        self._injector = injector

    async def run(self, ctx: Context) -> None:
        """The actor's own life."""
        self._injector.born(ctx.address)
        try:
            await self.actor.run(ctx)
        finally:
            self._injector.ended(ctx.address)


class Injector:
    """The faults of one run. `struck` are those that came to pass; `quiet_at` is when the last of them is over.

    `alter` changes the chunk that a message brings, where checksums are compared; else it is the message that arrives
    as bytes which do not decode.
    """

    def __init__(self, carrier: "Carrier", faults: Sequence[Fault] = ()) -> None:
        self._carrier = carrier
        self._waiting = [(fault, [0]) for fault in faults]
        self._lives: dict[Address, _Life] = {}
        self.struck: list[Struck] = []
        self.quiet_at = 0.0
        self.alter: Callable[[KvChunkReady], None] | None = None
        self.deaths: set[Address] = set()

    # --- lives

    def born(self, address: Address) -> None:
        """An actor's body begins, in the running task."""
        task = self._carrier.loop.running
        assert task is not None
        self._lives[address] = _Life(task)

    def ended(self, address: Address) -> None:
        """It has returned or raised."""
        self._lives.pop(address, None)

    def before_wait(self, address: Address) -> None:
        """Called at every wait of the actor, where a doomed body dies."""
        life = self._lives.get(address)
        if life is not None and life.doomed is not None and life.task is self._carrier.loop.running:
            life.doomed()

    def taken(self, address: Address, message: Message) -> None:
        """The actor has taken this message from its inbox."""
        life = self._lives.get(address)
        if life is not None and life.last_message is not None and life.last_message[0] is message:
            life.doomed, life.last_message = life.last_message[1], None

    # --- messages

    def strike(self, source: Address, target: Address, message: Message) -> Fate | None:
        """What becomes of a message that is about to travel; None leaves it in peace."""
        if not self._waiting:
            return None
        boundary = Boundary.of(source, target, message)
        if not is_struck(boundary):
            return None
        fate = None
        for entry in list(self._waiting):
            fault, seen = entry
            if not fault.boundary.matches(boundary):
                continue
            seen[0] += 1
            if seen[0] == fault.occurrence:
                self._waiting.remove(entry)
                if fate is None and can_strike(msgspec.structs.replace(fault, boundary=boundary)):
                    fate = self._fate(fault, boundary, source, target, message)
        return fate

    def _fate(
        self, fault: Fault, boundary: Boundary, source: Address, target: Address, message: Message
    ) -> Fate | None:
        note = partial(self._note, fault, boundary)
        match fault.kind:
            case "drop":
                note()
                return Fate(lost=True)
            case "corrupt":
                note()
                if self.alter is None or not isinstance(message, KvChunkReady):
                    return Fate(garbled=True)
                self.alter(message)
                return None
            case "delay":
                note()
                return Fate(late_s=fault.for_s)
            case "duplicate":
                note()
                return Fate(again_s=fault.for_s)
            case "reorder":
                return Fate(overtaken_s=fault.for_s, overtaken=note)
            case "kill":
                return self._deadly(fault, source, target, note)
            case "hang" | "slow":
                note()
                self._disturb(fault, source if fault.side == "sender" else target)
                return None

    def _note(self, fault: Fault, boundary: Boundary) -> None:
        now = self._carrier.loop.now
        self.struck.append(Struck(fault, boundary, now))
        self.quiet_at = max(self.quiet_at, now + fault.for_s)
        self._carrier.trace.mark(now, fault)

    def _deadly(self, fault: Fault, source: Address, target: Address, note: Callable[[], None]) -> Fate | None:
        """Before: the sender has not sent it, or the receiver dies with it unread. After: it has been dealt with."""
        if (source if fault.side == "sender" else target) not in self._lives:
            return None  # its supervisor is at work
        if fault.side == "sender":
            return Fate(unsent=fault.when == "before", sent=partial(self._kill, source, fault, note))
        if fault.when == "before":
            return Fate(arrived=lambda message: self._kill(target, fault, note))
        return Fate(arrived=lambda message: self._kill_behind(target, message, fault, note))

    def _kill(self, address: Address, fault: Fault, note: Callable[[], None]) -> None:
        """Raises where the body is: in the call that it makes now, or in the wait that it is suspended at."""
        life = self._lives.get(address)
        if life is None or life.doomed is not None:
            return
        if life.task is self._carrier.loop.running:
            self._die(address, fault, note)
        waiter = life.task.waiting
        if waiter is not None and not waiter.resolved:
            self._obituary(address, note)
            waiter.resolve(error=PlantedDeath(f"{fault}"))
        else:
            life.doomed = partial(self._die, address, fault, note)

    def _kill_behind(self, address: Address, message: Message, fault: Fault, note: Callable[[], None]) -> None:
        life = self._lives.get(address)
        if life is not None:
            life.last_message = (message, partial(self._die, address, fault, note))

    def _die(self, address: Address, fault: Fault, note: Callable[[], None]) -> None:
        self._obituary(address, note)
        raise PlantedDeath(f"{fault}")

    def _obituary(self, address: Address, note: Callable[[], None]) -> None:
        self.ended(address)
        self.deaths.add(address)
        note()

    # --- lanes

    def _disturb(self, fault: Fault, victim: Address) -> None:
        for lane in self._lanes(victim):
            if fault.kind == "hang":
                lane.hold(True)
                self._carrier.loop.after(fault.for_s, partial(lane.hold, False))
            else:
                lane.slowness = SLOWNESS
                self._carrier.loop.after(fault.for_s, lane.speed_up)

    def _lanes(self, victim: Address) -> "list[Lane]":
        if role_of(victim) == "transfer":
            return [lane for name, lane in self._carrier.lanes.items() if name.startswith("transfer/")]
        return [self._carrier.lane(victim)]

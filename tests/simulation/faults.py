"""Planned faults: what goes wrong, at which message, for how long. Pure data and drawing; `injector` carries them out.

A fault strikes one message: the `occurrence`-th of its type that a sender of this role sends to a receiver of that
role. A run is the same as the undisturbed one up to there, so its occurrences can be counted in the undisturbed run.
"""

from collections.abc import Iterator, Mapping
from random import Random
from typing import Literal, get_args

import msgspec

from actors import messages
from actors.messages import Address, AnyMessage, Message

Kind = Literal["kill", "hang", "slow", "drop", "delay", "duplicate", "reorder", "corrupt"]
Side = Literal["sender", "receiver"]
When = Literal["before", "after"]

KINDS: tuple[Kind, ...] = get_args(Kind)
SIDED: frozenset[Kind] = frozenset({"kill", "hang", "slow"})
"""Kinds that strike an actor or its slice; the others strike the message itself."""

SLOWNESS = 50.0
"""How many times as long a slow slice's calls take."""

_SIDES: tuple[Side, ...] = get_args(Side)
_MOMENTS: tuple[When, ...] = get_args(When)

ANY = "*"

_LASTS_S: Mapping[Kind, tuple[float, ...]] = {
    "kill": (0.0,),
    "hang": (45.0, 1.5),
    "slow": (4.0, 20.0),
    "drop": (0.0,),
    "delay": (2.5, 0.3, 12.0),
    "duplicate": (0.05, 0.0, 1.0, 6.0),
    "reorder": (1.5, 5.0),
    "corrupt": (0.0,),
}
"""How long a fault lasts, in seconds; the first is what a sweep takes."""


class Boundary(msgspec.Struct, frozen=True, order=True):
    """A message type between two roles. In a fault, `*` stands for any."""

    message: str
    sender: str
    receiver: str

    @classmethod
    def of(cls, source: Address, target: Address, message: Message) -> "Boundary":
        """Where this message crosses."""
        return cls(type(message).__name__, role_of(source), role_of(target))

    def matches(self, other: "Boundary") -> bool:
        """Whether the other boundary is one of these."""
        pairs = ((self.message, other.message), (self.sender, other.sender), (self.receiver, other.receiver))
        return all(mine in (ANY, its) for mine, its in pairs)


class Fault(msgspec.Struct, frozen=True):
    """One fault. `side` and `when` are for kinds that strike an actor: who, and before or after the message."""

    kind: Kind
    boundary: Boundary
    occurrence: int
    for_s: float = 0.0
    side: Side = "receiver"
    when: When = "after"

    def __str__(self) -> str:
        where = self.boundary
        parts = [self.kind, where.message, where.sender, where.receiver, str(self.occurrence), f"{self.for_s:g}"]
        return ":".join([*parts, self.side, self.when] if self.kind in SIDED else parts)

    @property
    def victim(self) -> str:
        """The role of the actor that it strikes."""
        return self.boundary.sender if self.side == "sender" else self.boundary.receiver


def parse_fault(text: str) -> Fault:
    """The fault that reads like this. Raises ValueError, or msgspec's, when none does."""
    kind, message, sender, receiver, occurrence, for_s, *rest = text.split(":")
    names = ("side", "when")[: len(rest)]
    fields = {"kind": kind, "boundary": Boundary(message, sender, receiver), **dict(zip(names, rest, strict=True))}
    return msgspec.convert({**fields, "occurrence": int(occurrence), "for_s": float(for_s)}, Fault)


def role_of(address: Address) -> str:
    """`decode` of `decode.1`, `client` of `client/r0`."""
    return address.split(".")[0].split("/")[0]


def is_struck(boundary: Boundary) -> bool:
    """Whether faults strike here. A client is the HTTP edge: one process with the gateway, they die together."""
    return "client" not in (boundary.sender, boundary.receiver)


# --- what can be applied where


ACTORS = ("gateway", "scheduler", "transfer", "prefill", "decode", "mixed")
_WITH_LANES = ("transfer", "prefill", "decode", "mixed")
_OF_SUPERVISORS = ("WorkerDown",)


def can_strike(fault: Fault) -> bool:
    """Whether the fault means anything where it is planned."""
    if not is_struck(fault.boundary):
        return False
    if fault.kind == "kill":
        if fault.side == "sender" and fault.boundary.message in _OF_SUPERVISORS:
            return False
        return fault.victim != "gateway"
    return fault.kind not in SIDED or fault.victim in _WITH_LANES


def faults_at(boundary: Boundary, occurrence: int) -> Iterator[Fault]:
    """Every fault that can be applied to this message."""
    for kind in KINDS:
        lasts_s = _LASTS_S[kind][0]
        sides: tuple[Side, ...] = _SIDES if kind in SIDED else ("receiver",)
        moments: tuple[When, ...] = _MOMENTS if kind == "kill" else ("after",)
        for side in sides:
            for when in moments:
                fault = Fault(kind, boundary, occurrence, lasts_s, side, when)
                if can_strike(fault):
                    yield fault


def occurrences(count: int) -> tuple[int, ...]:
    """The first, a middle and the last of so many."""
    return tuple(sorted({1, (count + 1) // 2, count}))


def plan_sweep(counts: Mapping[Boundary, int]) -> list[Fault]:
    """Every fault at the first, a middle and the last message of every boundary."""
    return [
        fault
        for boundary in sorted(counts)
        for occurrence in occurrences(counts[boundary])
        for fault in faults_at(boundary, occurrence)
    ]


# --- at random


def message_types() -> tuple[type[Message], ...]:
    """Every message that actors exchange."""
    return get_args(AnyMessage)


def _drawable() -> list[str]:
    asked = {
        messages.Submit, messages.Disconnect, messages.Drain, messages.GetStatus, messages.AskDrain,
        messages.ForgetPrefixes,
    }  # fmt: skip
    clients = {*get_args(messages.ClientMessage), *asked}
    return sorted(kind.__name__ for kind in message_types() if kind not in clients)


_OF_RECOVERY = ("WorkerDown", "WorkerDown", "WorkerUp", "Preempted", "SchedulerReport")
"""What is said when an actor has died."""


def draw_faults(random: Random, max_message: int, *, deadly: bool = False) -> tuple[Fault, ...]:
    """One to three faults. Half of them strike any message up to the `max_message`-th, the others one of a type.

    Where somebody dies, of a fault or, if `deadly`, of something else, what is said of it is struck as often as not.
    """
    faults = [_draw_fault(random, max_message) for _ in range(random.choice((1, 1, 2, 3)))]
    deadly = deadly or any(fault.kind in ("kill", "hang") for fault in faults)
    if deadly and random.random() < 0.5:
        faults = [*faults[:2], _draw_fault(random, max_message, random.choice(_OF_RECOVERY))]
    return tuple(faults)


def _draw_fault(random: Random, max_message: int, message: str | None = None) -> Fault:
    boundary, occurrence = Boundary(ANY, ANY, ANY), random.randint(1, max_message)
    if message is not None or random.random() < 0.5:
        boundary = Boundary(message or random.choice(_drawable()), ANY, ANY)
        occurrence = random.choice((1, 1, 2, 3, random.randint(1, 20)))
    kind = random.choice(KINDS)
    for_s = round(random.choice(_LASTS_S[kind]) * random.uniform(0.5, 1.5), 3)
    return Fault(kind, boundary, occurrence, for_s, random.choice(_SIDES), random.choice(_MOMENTS))

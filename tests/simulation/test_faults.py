"""Planned faults: how they are named and planned, and what each does to a message, an actor or a slice."""

from collections.abc import Callable, Coroutine
from random import Random
from typing import Any

import pytest

from actors.messages import Address, Cancel, Key
from tests.simulation.carrier import Carrier, SimContext
from tests.simulation.coverage import Coverage, excuse
from tests.simulation.faults import (
    KINDS,
    Boundary,
    Fault,
    When,
    can_strike,
    draw_faults,
    faults_at,
    occurrences,
    parse_fault,
    plan_sweep,
)
from tests.simulation.injector import Injector, Mortal, PlantedDeath, Struck

A, B = Address("prefill.0"), Address("decode.0")
EDGE = Boundary("Cancel", "prefill", "decode")
ROOM = {"control": 9, "cancel": 3, "token": 9, "work": 9}
Life = Callable[[SimContext], Coroutine[Any, Any, None]]


def cancel(number: int) -> Cancel:
    return Cancel(key=Key("r", 0, number), choices=(0,), deadline=0.0, whole=True)


class Body:
    """An actor made of one function."""

    def __init__(self, life: Life) -> None:
        self._life = life

    async def run(self, ctx: Any) -> None:
        await self._life(ctx)


class Pair:
    """`prefill.0` sends cancels to `decode.0`; `got` is what arrives and when, `ended` how each life ended."""

    def __init__(self, *faults: Fault, count: int = 5, seed: int = 1, mortal: bool = True) -> None:
        self.carrier = Carrier(seed)
        self.injector = self.carrier.injector = Injector(self.carrier, faults)
        self.got: list[tuple[float, int]] = []
        self.ended: dict[Address, BaseException | None] = {}
        self.sent = 0
        self._count = count
        self.carrier.on_death = self.ended.__setitem__
        self.carrier.start(B, Mortal(Body(self._receive), self.injector).run, ROOM)  # type: ignore[arg-type]
        sender = Body(self._send)
        self.carrier.start(A, Mortal(sender, self.injector).run if mortal else sender.run, ROOM)  # type: ignore[arg-type]

    def run(self, until: Callable[[], bool] | None = None) -> "Pair":
        """Runs until this holds, or the sender is done and nothing more happens."""
        loop = self.carrier.loop
        loop.run_until(until or (lambda: A in self.ended and loop.is_idle()), 1000.0, 10_000)
        return self

    @property
    def numbers(self) -> list[int]:
        """What arrived, in order."""
        return [number for _, number in self.got]

    async def _send(self, ctx: SimContext) -> None:
        await ctx.sleep(0.01)
        for number in range(self._count):
            await ctx.send(B, cancel(number))
            self.sent += 1

    async def _receive(self, ctx: SimContext) -> None:
        while True:
            message = await ctx.receive()
            assert isinstance(message, Cancel)
            self.got.append((ctx.now(), message.key.attempt))


def kill(side: str, when: str, occurrence: int = 2) -> Fault:
    return parse_fault(f"kill:Cancel:prefill:decode:{occurrence}:0:{side}:{when}")


# --- names and plans


def test_a_fault_reads_back_from_its_name() -> None:
    for fault in faults_at(Boundary("MoveChunk", "prefill", "transfer"), 3):
        assert parse_fault(str(fault)) == fault


@pytest.mark.parametrize("text", ["kill", "melt:Admit:*:*:1:0", "drop:Admit:*:*:first:0", "kill:Admit:*:*:1:0:left"])
def test_a_name_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_fault(text)


@pytest.mark.parametrize(("count", "places"), [(1, (1,)), (2, (1, 2)), (3, (1, 2, 3)), (9, (1, 5, 9))])
def test_a_sweep_strikes_at_the_first_a_middle_and_the_last(count: int, places: tuple[int, ...]) -> None:
    assert occurrences(count) == places
    drops = [fault for fault in plan_sweep({EDGE: count}) if fault.kind == "drop"]
    assert tuple(fault.occurrence for fault in drops) == places


def test_every_kind_strikes_between_workers_and_only_what_it_can_elsewhere() -> None:
    assert {fault.kind for fault in faults_at(EDGE, 1)} == set(KINDS)
    admits = list(faults_at(Boundary("Admit", "gateway", "scheduler"), 1))
    assert {fault.kind for fault in admits} == set(KINDS) - {"hang", "slow"}
    assert {fault.victim for fault in admits if fault.kind == "kill"} == {"scheduler"}
    assert not list(faults_at(Boundary("Delta", "gateway", "client"), 1))


def test_drawn_faults_are_the_same_every_time_and_cover_every_kind() -> None:
    drawn = [draw_faults(Random(seed), 100) for seed in range(200)]
    assert drawn == [draw_faults(Random(seed), 100) for seed in range(200)]
    assert {fault.kind for faults in drawn for fault in faults} == set(KINDS)
    assert {len(faults) for faults in drawn} == {1, 2, 3}


# --- on a message's way


@pytest.mark.parametrize(("kind", "undecodable"), [("drop", 0), ("corrupt", 1)])
def test_a_lost_message_gives_its_room_back(kind: str, undecodable: int) -> None:
    faults = [parse_fault(f"{kind}:Cancel:*:decode:{number}:0") for number in (2, 3)]
    pair = Pair(*faults, count=8).run()
    assert pair.numbers == [0, 3, 4, 5, 6, 7]
    assert not any(pair.carrier.inboxes[B].taken_room.values())
    assert pair.carrier.undecodable == undecodable * 2


def test_a_delayed_message_holds_up_what_follows_it() -> None:
    pair = Pair(parse_fault("delay:*:*:*:2:5")).run()
    assert pair.numbers == [0, 1, 2, 3, 4]
    assert pair.got[0][0] < 1.0 < 5.0 <= pair.got[1][0] <= pair.got[4][0]


def test_a_duplicate_arrives_once_more() -> None:
    pair = Pair(parse_fault("duplicate:*:*:*:2:4")).run()
    assert pair.numbers == [0, 1, 2, 3, 4, 1]
    assert not any(pair.carrier.inboxes[B].taken_room.values())


def test_a_reordered_message_is_passed_by_the_next_one() -> None:
    assert Pair(parse_fault("reorder:*:*:*:2:9")).run().numbers == [0, 2, 1, 3, 4]


def test_a_message_that_nothing_follows_is_only_late_and_does_not_count_as_reordered() -> None:
    pair = Pair(parse_fault("reorder:*:*:*:5:9")).run()
    assert pair.numbers == [0, 1, 2, 3, 4]
    assert not pair.injector.struck


# --- in an actor's body


@pytest.mark.parametrize(("when", "arrived"), [("before", [0]), ("after", [0, 1])])
def test_a_sender_dies_before_or_after_it_has_sent(when: str, arrived: list[int]) -> None:
    pair = Pair(kill("sender", when)).run()
    assert isinstance(pair.ended[A], PlantedDeath)
    assert (pair.numbers, pair.sent) == (arrived, 1)
    assert not any(pair.carrier.inboxes[B].taken_room.values())


@pytest.mark.parametrize(("when", "arrived"), [("before", [0]), ("after", [0, 1])])
@pytest.mark.parametrize("seed", range(5))
def test_a_receiver_dies_with_the_message_unread_or_dealt_with(when: str, arrived: list[int], seed: int) -> None:
    pair = Pair(kill("receiver", when), count=2, seed=seed).run()
    assert isinstance(pair.ended[B], PlantedDeath)
    assert pair.numbers == arrived or (when == "before" and not pair.numbers)  # the first one may lie there, too
    assert [entry.boundary for entry in pair.injector.struck] == [EDGE]


def test_a_child_tasks_message_kills_the_body_and_not_the_child() -> None:
    carrier = Carrier(0)
    injector = carrier.injector = Injector(carrier, [kill("sender", "after", 1)])
    died: list[str] = []

    async def child(ctx: SimContext) -> None:
        await ctx.send(B, cancel(0))
        await ctx.sleep(1.0)
        died.append("nobody but the body")

    async def supervisor(ctx: Any) -> None:
        try:
            await Mortal(Body(body), injector).run(ctx)
        except PlantedDeath:
            died.append("body")
        await ctx.sleep(5.0)

    async def body(ctx: SimContext) -> None:
        ctx.spawn("child", lambda: child(ctx))
        await ctx.receive()

    async def receiver(ctx: SimContext) -> None:
        await ctx.receive()

    carrier.on_death = lambda address, error: None
    carrier.start(B, receiver, ROOM)  # type: ignore[arg-type]
    carrier.start(A, supervisor, ROOM)  # type: ignore[arg-type]
    carrier.loop.run_until(lambda: len(died) == 2, 10.0, 1000)
    assert died == ["body", "nobody but the body"]


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_supervisor_is_not_killed(when: When) -> None:
    pair = Pair(Fault("kill", EDGE, 2, 0.0, "sender", when), mortal=False)
    assert pair.run().numbers == [0, 1, 2, 3, 4]
    assert not pair.injector.struck


# --- on a lane


@pytest.mark.parametrize(("kind", "least_s"), [("hang", 5.0), ("slow", 0.005)])
def test_a_lane_hangs_or_is_slow_for_a_while(kind: str, least_s: float) -> None:
    pair = Pair(parse_fault(f"{kind}:Cancel:*:*:1:5:receiver:after"))
    lane, lasted_s = pair.carrier.lane(B), list[float]()

    async def call(ctx: SimContext) -> None:
        while not pair.injector.struck:
            await ctx.sleep(0.001)
        for _ in range(2):
            began_s = ctx.now()
            await ctx.run_engine(B, lambda: None, 600.0)
            lasted_s.append(ctx.now() - began_s)
            await ctx.sleep(6.0)

    pair.carrier.start(Address("mixed.0"), call, ROOM)  # type: ignore[arg-type]
    pair.run(lambda: Address("mixed.0") in pair.ended)
    assert lasted_s[0] >= least_s
    assert lasted_s[1] <= lane.max_service_s
    assert (lane.held, lane.slowness) == (False, 1.0)


# --- coverage


def test_the_table_names_what_was_struck_what_was_not_and_what_cannot_be() -> None:
    fault = parse_fault("drop:Admit:gateway:scheduler:1:0")
    coverage = Coverage([Struck(fault, fault.boundary, 0.0)] * 3)
    (row,) = [line for line in coverage.table(("drop", "hang")).splitlines() if line.startswith("Admit")]
    assert row.split() == ["Admit", "3", "-"]
    empty = coverage.empty_cells(("drop", "hang"))
    assert ("drop", "Admit") not in empty
    assert ("hang", "Admit") not in empty
    assert ("drop", "Reserve") in empty
    assert excuse("hang", "Admit")
    assert not coverage.misplaced_excuses()


def test_an_excuse_that_does_not_hold_is_noticed() -> None:
    fault = parse_fault("hang:Admit:gateway:scheduler:1:0:receiver:after")
    assert Coverage([Struck(fault, fault.boundary, 0.0)]).misplaced_excuses() == [("hang", "Admit")]
    assert not can_strike(fault)

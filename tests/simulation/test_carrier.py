"""The deterministic carrier: order, bounds, time, engine lanes, death and deadlock."""

from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from actors.context import EngineFailure, EngineTimeout, NoSuchInbox
from actors.messages import Address, Disconnect, Drain, Message
from tests.simulation.carrier import Carrier, SimContext
from tests.simulation.loop import Deadlock, OutOfTime, SimulationError

ROOM = {"control": 4, "cancel": 4, "token": 4, "work": 4}
A, B = Address("a"), Address("b")
Life = Callable[[SimContext], Coroutine[Any, Any, None]]


def run(seed: int, **lives: Life) -> Carrier:
    """Runs actors until all have ended."""
    carrier = Carrier(seed)
    ended: list[Address] = []

    def on_death(address: Address, error: BaseException | None) -> None:
        ended.append(address)
        if error is not None:
            raise error

    carrier.on_death = on_death
    for name, life in lives.items():
        carrier.start(Address(name), life, ROOM)  # type: ignore[arg-type]
    carrier.loop.run_until(lambda: len(ended) == len(lives), 1000.0, 10_000)
    return carrier


def disconnect(number: int) -> Disconnect:
    return Disconnect(request=str(number))


@pytest.mark.parametrize("seed", range(20))
def test_a_pair_keeps_its_order_and_send_waits_for_room(seed: int) -> None:
    got: list[str] = []

    async def send(ctx: SimContext) -> None:
        for number in range(20):
            await ctx.send(B, disconnect(number))

    async def receive(ctx: SimContext) -> None:
        while len(got) < 20:
            message = await ctx.receive()
            assert isinstance(message, Disconnect)
            got.append(message.request)
            await ctx.sleep(0.001)

    run(seed, a=send, b=receive)
    assert got == [str(number) for number in range(20)]


def test_post_never_waits_and_counts_messages_under_way() -> None:
    accepted: list[bool] = []

    async def post(ctx: SimContext) -> None:
        accepted.extend(ctx.post(B, disconnect(number)) for number in range(6))
        accepted.append(ctx.post(B, Drain(reply_to=A)))
        accepted.append(ctx.post(Address("nobody"), disconnect(0)))
        with pytest.raises(NoSuchInbox):
            await ctx.send(Address("nobody"), disconnect(0))

    async def wait(ctx: SimContext) -> None:
        await ctx.sleep(1.0)

    carrier = run(1, a=post, b=wait)
    assert accepted == [True] * 4 + [False] * 2 + [True, False]
    assert len(carrier.refused) == 3


def test_control_overtakes_and_receive_times_out() -> None:
    got: list[Message | None] = []

    async def post(ctx: SimContext) -> None:
        ctx.post(B, disconnect(1))
        ctx.post(B, Drain(reply_to=A))

    async def receive(ctx: SimContext) -> None:
        await ctx.sleep(5.0)
        got.extend([ctx.receive_nowait(), await ctx.receive(1.0)])
        before = ctx.now()
        got.append(await ctx.receive(2.0))
        assert ctx.now() >= before + 2.0

    run(3, a=post, b=receive)
    assert got == [Drain(reply_to=A), disconnect(1), None]


def test_a_lane_runs_calls_in_order_and_reports_errors_and_lateness() -> None:
    calls: list[str] = []

    def fail() -> None:
        raise ValueError("no")

    async def drive(ctx: SimContext) -> None:
        with pytest.raises(EngineTimeout):
            await ctx.run_engine("slice", lambda: calls.append("late"), 1e-6)
        with pytest.raises(EngineFailure, match="ValueError: no"):
            await ctx.run_engine("slice", fail, 10.0)
        await ctx.run_engine("slice", lambda: calls.append("on time"), 10.0)

    run(1, a=drive)
    assert calls == ["late", "on time"]


def test_a_held_lane_hangs_until_it_is_let_go() -> None:
    carrier = Carrier(0)
    seen: list[str] = []

    async def drive(ctx: SimContext) -> None:
        carrier.lane("slice").hold(True)
        with pytest.raises(EngineTimeout):
            await ctx.run_engine("slice", lambda: seen.append("hung call"), 5.0)
        assert not seen
        carrier.lane("slice").hold(False)
        await ctx.run_engine("slice", lambda: seen.append("next call"), 5.0)
        seen.append("end")

    carrier.on_death = lambda address, error: None
    carrier.start(A, drive, ROOM)  # type: ignore[arg-type]
    carrier.loop.run_until(lambda: "end" in seen, 100.0, 1000)
    assert seen == ["hung call", "next call", "end"]


def test_killing_an_actor_runs_its_cleanup_and_ends_its_children() -> None:
    carrier = Carrier(0)
    seen: list[str] = []

    async def child(ctx: SimContext) -> None:
        try:
            await ctx.sleep(100.0)
        finally:
            seen.append("child")

    async def parent(ctx: SimContext) -> None:
        ctx.spawn("child", lambda: child(ctx))
        try:
            await ctx.receive()
        finally:
            seen.append("parent")

    carrier.start(A, parent, ROOM)  # type: ignore[arg-type]
    carrier.loop.run_until(carrier.loop.is_idle, 10.0, 100)
    carrier.kill(A)
    assert sorted(seen) == ["child", "parent"]
    assert not carrier.is_running(A)
    carrier.start(A, parent, ROOM)  # type: ignore[arg-type]
    carrier.kill(A)


def test_an_error_of_a_child_is_the_actors() -> None:
    async def child() -> None:
        raise RuntimeError("child")

    async def parent(ctx: SimContext) -> None:
        ctx.spawn("child", child)
        await ctx.receive()

    carrier = Carrier(0)
    carrier.start(A, parent, ROOM)  # type: ignore[arg-type]
    with pytest.raises(SimulationError, match="a ended with RuntimeError"):
        carrier.loop.run_until(lambda: False, 10.0, 100)
    assert not carrier.is_running(A)


def test_a_deadlock_and_a_livelock_are_told_apart_and_say_who_waits() -> None:
    async def wait(ctx: SimContext) -> None:
        await ctx.receive()

    async def spin(ctx: SimContext) -> None:
        while True:
            await ctx.sleep(0.1)

    for life, error in ((wait, Deadlock), (spin, OutOfTime)):
        carrier = Carrier(0)
        carrier.start(A, life, ROOM)  # type: ignore[arg-type]
        with pytest.raises(error, match="a at "):
            carrier.loop.run_until(lambda: False, 10.0, 1000)
        carrier.kill(A)

"""The in-memory carrier: waiting for room, time-outs, lanes, and inboxes that are gone."""

import threading

import anyio
import pytest

from actors.context import EngineFailure, EngineTimeout, MailboxFull, NoSuchInbox
from actors.memory import MemoryCarrier
from actors.messages import Address, Disconnect, Key, KvChunkReady

pytestmark = pytest.mark.anyio
BOX = Address("box")
ROOM = {"control": 1, "cancel": 1, "token": 1, "work": 1}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def carrier() -> MemoryCarrier:
    made = MemoryCarrier()
    made.open(BOX, ROOM)  # type: ignore[arg-type]
    return made


async def test_all_who_wait_for_room_get_it(carrier: MemoryCarrier) -> None:
    sent: list[str] = []

    async def send(name: str) -> None:
        await carrier.send(BOX, Disconnect(request=name))
        sent.append(name)

    async with anyio.create_task_group() as group:
        for name in ("a", "b", "c", "d"):
            group.start_soon(send, name)
        await anyio.wait_all_tasks_blocked()
        assert len(sent) == 1
        taken = [await carrier.inboxes[BOX].take_within(5) for _ in range(4)]
    assert sorted(message.request for message in taken if isinstance(message, Disconnect)) == ["a", "b", "c", "d"]


async def test_posts_never_wait(carrier: MemoryCarrier) -> None:
    assert carrier.post(BOX, Disconnect(request="a"))
    assert not carrier.post(BOX, Disconnect(request="b"))
    assert not carrier.post(Address("nobody"), Disconnect(request="c"))
    with pytest.raises(NoSuchInbox, match="nobody"):
        await carrier.send(Address("nobody"), Disconnect(request="d"))
    with pytest.raises(MailboxFull, match="box"):
        carrier.open(BOX, ROOM)  # type: ignore[arg-type]


async def test_a_buried_inbox_gives_its_chunks_up(carrier: MemoryCarrier) -> None:
    handle = carrier.arrays.put(object())
    ready = KvChunkReady(
        key=Key("r", 0, 1), sequence=0, token_start=0, token_end=1, handle=handle,
        sender=Address("prefill.0"), moved_at=0.0,
    )  # fmt: skip
    carrier.post(BOX, ready)
    carrier.bury(BOX)
    assert len(carrier.arrays) == 0
    assert not carrier.post(BOX, ready)


async def test_receive_gives_up_after_its_time(carrier: MemoryCarrier) -> None:
    assert await carrier.inboxes[BOX].take_within(0.0) is None


async def test_a_lane_runs_calls_in_order_on_its_own_thread(carrier: MemoryCarrier) -> None:
    order: list[tuple[int, str]] = []

    async def call(number: int) -> None:
        name = await carrier.run_in_lane("slice", lambda: threading.current_thread().name, 10)
        order.append((number, name))

    async with anyio.create_task_group() as group:
        for number in range(5):
            group.start_soon(call, number)
    assert order == [(number, "slice") for number in range(5)]
    carrier.close_lanes()


async def test_what_a_call_raises_is_an_engine_failure_with_its_cause(carrier: MemoryCarrier) -> None:
    with pytest.raises(EngineFailure, match="ZeroDivisionError") as failure:
        await carrier.run_in_lane("slice", lambda: 1 // 0, 10)
    assert isinstance(failure.value.__cause__, ZeroDivisionError)
    carrier.close_lanes()


async def test_a_call_that_hangs_costs_its_caller_the_time_limit_only(carrier: MemoryCarrier) -> None:
    release = threading.Event()
    with pytest.raises(EngineTimeout, match=r"within 0\.05 s"):
        await carrier.run_in_lane("slice", release.wait, 0.05)
    release.set()
    assert await carrier.run_in_lane("slice", lambda: "next", 10) == "next"
    carrier.close_lanes()

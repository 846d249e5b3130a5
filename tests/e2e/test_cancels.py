"""Clients that leave at random moments, over real sockets: nothing of their requests stays behind."""

import asyncio
import threading
from pathlib import Path
from random import Random

import anyio
import pytest
from anyio.lowlevel import checkpoint

from api.model import ApiSettings
from tests.chaos.overload import step_table
from tests.chaos.wire import Reply, ask, completion
from tests.e2e.live import REST_LIMIT_S, Live, emulated, live_server

pytestmark = pytest.mark.anyio
NUM_REQUESTS = 300
AT_ONCE = 24
PATIENT = 0.3
"""Share of clients that stay to the end."""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def one(live: Live, index: int, random: Random) -> Reply:
    """A request of one to three choices; the client leaves before it is sent, in the queue, in prefill, or later."""
    prompt = "".join(random.choices("0123456789+-*/= ", k=random.randint(1, 200)))
    body = completion(live.name, prompt, random.randint(1, 40), index, n=random.choice((1, 1, 2, 3)))
    leave_after_s = None if random.random() < PATIENT else random.choice((0.0, 0.001, 0.01, 0.05, 0.2))
    return await ask(live.port, body, leave_after_s)


@pytest.mark.parametrize("topology", ["prefill=2,decode=2", "mixed=1"])
async def test_clients_that_leave_leave_nothing_behind(topology: str, tmp_path: Path) -> None:
    random = Random(f"cancels {topology}")
    table = emulated(tmp_path, step_table(0.001, 8))
    others = set(threading.enumerate())
    sizes = ("--max-running-requests=8", "--num-pages=120", "--decode-reserve-tokens=4")
    async with live_server(table, f"--topology={topology}", *sizes) as live:
        await one(live, 0, Random(0))
        tasks = len(asyncio.all_tasks())
        gate = asyncio.Semaphore(AT_ONCE)

        async def gated(index: int) -> Reply:
            async with gate:
                return await one(live, index, random)

        replies = await asyncio.gather(*(gated(index) for index in range(NUM_REQUESTS)))
        left = sum(reply.lost == "left" for reply in replies)
        assert left > NUM_REQUESTS / 4
        assert all(reply.completed for reply in replies if reply.lost != "left")
        await live.until_rest()
        with anyio.fail_after(REST_LIMIT_S):
            while len(asyncio.all_tasks()) > tasks:
                await checkpoint()
        threads = [thread.name for thread in threading.enumerate() if thread not in others]
        lanes = [name for name in threads if not name.startswith("AnyIO")]
        assert len(lanes) == len(set(lanes)), "each slice and each pair's lane has its one thread"
        assert len(threads) - len(lanes) <= ApiSettings().tokenizer_threads

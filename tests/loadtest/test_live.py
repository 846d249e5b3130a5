"""The view while a run lasts, in the middle of one."""

import asyncio
import io

from rich.console import Console

from loadtest.client import Client, prepare
from loadtest.driver import Phase, Plan
from loadtest.live import plain_line, table, watch
from tests.loadtest.loads import requests, target
from tests.loadtest.stub import Body, Step, Stub, answer, plain
from tests.loadtest.virtual import run_virtual


def script(number: int, body: Body) -> list[Step]:
    return plain(500, {"error": "boom"}) if number == 3 else answer(body, 0.5, [0.1] * 9)


async def _watched(console: Console) -> tuple[str, str]:
    """A run of 20 requests, one a second; what is seen in its 10th second."""
    to, seen = target(), list[str]()
    plan = Plan(arrivals_s=tuple(float(index) for index in range(20)))
    phase = Phase(Client(to.address, to.limits), [prepare(to, request) for request in requests(20, 10)], plan)

    def look() -> None:
        view = Console(width=100, file=io.StringIO(), force_terminal=False)
        view.print(table(phase, "measured"))
        seen.extend([plain_line(phase, "measured"), view.file.getvalue()])  # type: ignore[attr-defined]

    asyncio.get_running_loop().call_later(9.75, look)
    watcher = asyncio.create_task(watch(phase, "measured", console))
    await phase.run()
    watcher.cancel()
    await asyncio.wait((watcher,))
    return seen[0], seen[1]


def test_a_log_gets_plain_lines_and_a_view_shows_rates_and_errors() -> None:
    log = Console(file=io.StringIO(), width=40)
    line, view = run_virtual(_watched(log), Stub(script))
    assert line == (
        "measured: 10 s, 9/20 done, 1 on their way, 0.82 requests/s, 9 tokens/s, "
        "TTFT p50 500 p99 500 ms, ITL p99 100 ms, 1 failed"
    )
    assert "9 of 20 in 10 s" in view
    assert "0.82 requests/s" in view
    assert "failed 1x     HTTP 500: boom" in view
    lines = log.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert [text.split(",")[0] for text in lines] == ["measured: 10 s", "measured: 20 s"]


def test_a_terminal_is_drawn_on() -> None:
    terminal = Console(file=io.StringIO(), width=80, force_terminal=True)
    run_virtual(_watched(terminal), Stub(script))
    assert "on their way" in terminal.file.getvalue()  # type: ignore[attr-defined]

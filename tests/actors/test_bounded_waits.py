"""Actors wait for their next message, a timer or a call with a deadline, and for nothing else.

Two checks. One reads the source of everything that runs on a context: each `await` has to be of a kind that is bounded,
or a call of another coroutine that is read as well. The other watches simulated runs: whatever a task is suspended at,
and for how long.
"""

import ast
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
import pytest

from actors.context import Context
from actors.messages import GATEWAY, TRANSFER, AbortGroup, Key
from actors.scheduler import SchedulerActor
from actors.slice_calls import SliceCalls
from actors.transfer import TransferActor
from runtime.topology import parse_topology
from tests.simulation import harness
from tests.simulation.harness import SimulationFailure, run_workload
from tests.simulation.loop import Waiter
from tests.simulation.system import SimSystem
from tests.simulation.wait_watch import WaitWatch
from tests.simulation.workload import Workload, draw_workload
from tests.test_imports import CARRIERS, ROOT, modules

PROTOCOLS = (Path("actors/context.py"), Path("actors/client.py"))
"""What they declare is written elsewhere."""

BODIES = [path for path in modules("actors") if path not in CARRIERS and path not in PROTOCOLS]
SUSPENDING = (ast.AsyncFor, ast.AsyncWith)


def coroutines(sources: Mapping[Path, str]) -> set[str]:
    """Names of everything that is declared `async def` in these sources: each is read by itself."""
    trees = [ast.parse(source) for source in sources.values()]
    return {node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.AsyncFunctionDef)}


def unbounded_waits(sources: Mapping[Path, str]) -> list[str]:
    """Places that may wait without a bound: the module, the line and what is awaited."""
    own = coroutines(sources)
    return [f"{path}:{line}: {what}" for path, source in sources.items() for line, what in _unbounded(source, own)]


def _unbounded(source: str, own: set[str]) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, SUSPENDING) or (isinstance(node, ast.comprehension) and node.is_async):
            line = node.lineno if isinstance(node, SUSPENDING) else node.target.lineno
            yield line, type(node).__name__
        elif isinstance(node, ast.Await) and not _is_bounded(node.value, own):
            yield node.lineno, ast.unparse(node.value)


def _is_bounded(awaited: ast.expr, own: set[str]) -> bool:
    if not isinstance(awaited, ast.Call) or not isinstance(awaited.func, ast.Attribute):
        return False
    called, owner = awaited.func.attr, awaited.func.value
    if isinstance(owner, ast.Name) and owner.id == "ctx":
        return called in ("receive", "sleep") or (called == "run_engine" and _has_timeout(awaited))
    root = owner
    while isinstance(root, ast.Attribute):
        root = root.value
    return isinstance(root, ast.Name) and root.id == "self" and called in own


def _has_timeout(call: ast.Call) -> bool:
    """`run_engine(lane, call, timeout_s)`; a constant has to be a number."""
    named = [keyword.value for keyword in call.keywords if keyword.arg == "timeout_s"]
    given = [*call.args[2:3], *named]
    if not given or isinstance(given[0], ast.Starred):
        return False
    return not isinstance(given[0], ast.Constant) or isinstance(given[0].value, int | float)


def test_every_await_of_an_actor_is_bounded() -> None:
    sources = {path: (ROOT / path).read_text() for path in BODIES}
    assert {"run", "land", "_move", "_recover", "call", "_beat"} <= coroutines(sources)
    assert unbounded_waits(sources) == []


@pytest.mark.parametrize(
    "body",
    [
        "await self._event.wait()",
        "await asyncio.sleep(1)",
        "await ctx.send(GATEWAY, message)",
        "await ctx.run_engine(lane, call)",
        "await ctx.run_engine(lane, call, None)",
        "await ctx.run_engine(lane, call, timeout_s=None)",
        "await self._future",
        "await answer",
        "await self._lock.acquire()",
        "async with self._lock: pass",
        "async for message in self._inbox: pass",
        "found = [x async for x in self._inbox]",
        "await other(ctx)",
    ],
)
def test_a_planted_unbounded_wait_is_read(body: str) -> None:
    source = f"class A:\n    async def run(self, ctx):\n        {body}\n"
    assert len(unbounded_waits({Path("actors/a.py"): source})) == 1


@pytest.mark.parametrize(
    "body",
    [
        "await ctx.receive()",
        "await ctx.receive(timeout_s)",
        "await ctx.sleep(1.0)",
        "await ctx.run_engine(lane, call, self._timeout_s)",
        "await ctx.run_engine(lane, call, timeout_s=2.0)",
        "await self._slice.run(ctx)",
    ],
)
def test_bounded_waits_are_let_through(body: str) -> None:
    source = f"class A:\n    async def run(self, ctx):\n        {body}\n"
    assert unbounded_waits({Path("actors/a.py"): source}) == []


# --- simulated runs

SHORT_S = 3.0
"""A call on a slice may take this long in these runs."""

HANG_S = (0.05, 9.0)


@pytest.fixture
def watches(monkeypatch: pytest.MonkeyPatch) -> list[WaitWatch]:
    """Watches of the systems that are built during the test."""
    found = list[WaitWatch]()

    class Watched(SimSystem):
        def __init__(self, workload: Workload, live_trace: bool = False) -> None:
            super().__init__(workload, live_trace)
            found.append(WaitWatch(self.carrier))

    monkeypatch.setattr(harness, "SimSystem", Watched)
    return found


def hanging(seed: int) -> Workload:
    """A seed's traffic, and one slice that hangs for longer than any call may take."""
    drawn = draw_workload(seed)
    first = parse_topology(drawn.topology).slices[0].name
    return msgspec.structs.replace(drawn, hangs={first: HANG_S}, step_timeout_s=SHORT_S, replay="")


@pytest.mark.parametrize("seed", range(6))
def test_no_task_waits_for_anything_but_messages_timers_and_calls_with_deadlines(
    seed: int, watches: list[WaitWatch]
) -> None:
    run_workload(draw_workload(seed))
    run_workload(hanging(seed))
    for watch in watches:
        assert watch.seen >= {"message", "timer", "call"}
        assert watch.longest_s("call") <= HANG_S[1]
    workers = {name for name in watches[1].tasks if name.startswith(("prefill.", "decode.", "mixed."))}
    assert workers


@pytest.mark.parametrize("seed", [1, 2])
def test_a_worker_does_not_wait_longer_for_a_slice_that_hangs_than_a_call_may_take(
    seed: int, watches: list[WaitWatch], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The calls of a worker's life; only its supervisor waits for the slice to come back."""
    lives = list[tuple[float, float]]()
    call = SliceCalls.call

    async def timed(self: SliceCalls, ctx: Context, kind: object, work: object) -> object:
        begun = ctx.now()
        try:
            return await call(self, ctx, kind, work)  # type: ignore[arg-type]
        finally:
            lives.append((begun, ctx.now()))

    monkeypatch.setattr(SliceCalls, "call", timed)
    run_workload(hanging(seed))
    assert max(end - begun for begun, end in lives) <= SHORT_S + 0.1
    assert max(end - begun for begun, end in lives) > 1.0, "nothing hung"


def wait_for_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scheduler waits for something that only it could bring about."""
    original = SchedulerActor.run

    async def run(self: SchedulerActor, ctx: Context) -> None:
        await Waiter(ctx._carrier.loop).wait()  # type: ignore[attr-defined]
        await original(self, ctx)

    monkeypatch.setattr(SchedulerActor, "run", run)


def wait_for_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scheduler fills an inbox and waits until somebody reads there."""
    original = SchedulerActor.run

    async def run(self: SchedulerActor, ctx: Context) -> None:
        abort = AbortGroup(key=Key("x", 0, 1), choices=(0,), deadline=0.0)
        while ctx.post(ctx.address, abort):
            pass
        await ctx.send(ctx.address, abort)
        await original(self, ctx)

    monkeypatch.setattr(SchedulerActor, "run", run)


def call_without_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slice may take for ever."""

    async def call(self: SliceCalls, ctx: Context, kind: object, work: object) -> object:
        return await ctx.run_engine(self._lane, work, math.inf)  # type: ignore[arg-type]

    monkeypatch.setattr(SliceCalls, "call", call)


def call_with_a_deadline_far_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """A move may take a day."""
    monkeypatch.setattr(TransferActor.__init__, "__defaults__", (86400.0,))


@pytest.mark.parametrize(
    "plant",
    [wait_for_an_answer, wait_for_room, call_without_a_deadline, call_with_a_deadline_far_away],
    ids=lambda plant: plant.__name__,
)
def test_a_planted_unbounded_wait_is_seen(
    plant: object, watches: list[WaitWatch], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert callable(plant)
    plant(monkeypatch)
    workload = msgspec.structs.replace(draw_workload(0), topology="prefill=1,decode=1")
    with pytest.raises(SimulationFailure, match="waits (for|with)"):
        run_workload(workload)


def test_the_watch_knows_whose_waits_it_sees(watches: list[WaitWatch]) -> None:
    run_workload(msgspec.structs.replace(draw_workload(0), topology="prefill=1,decode=1"))
    assert {GATEWAY, TRANSFER, "scheduler", "prefill.0", "decode.0"} <= set(watches[0].tasks)

"""Watches what the tasks of a simulated system are suspended at, and for how long.

A task may wait for its next message and for a timer as long as it likes, and for a call on a lane no longer than the
deadline that it gave, which must be one. Nothing else may be waited for: not for room in an inbox, not for each other.
Clients are no part of the system and wait as they please.
"""

from types import FrameType
from typing import Any

from tests.simulation.carrier import Carrier, SimContext
from tests.simulation.loop import Task, Waiter

MAX_DEADLINE_S = 600.0
"""The first call of a kind may take this long (`WorkerOptions.step_timeout_s`); no deadline is later."""

_EVERY_S = 0.02
_KINDS = {
    SimContext._wait_for_message.__code__: "message",
    SimContext.sleep.__code__: "timer",
    SimContext.run_engine.__code__: "call",
    SimContext.send.__code__: "room",
}


class WaitWatch:
    """Looks at every task of the carrier, over and over again.

    `seen` are the kinds of waits, `tasks` the names of who waited. Raises AssertionError inside the run.
    """

    def __init__(self, carrier: Carrier) -> None:
        self._carrier = carrier
        self._since: dict[Task, tuple[Waiter, float]] = {}
        self._longest_s: dict[str, float] = {}
        self.tasks: set[str] = set()
        self._look()

    @property
    def seen(self) -> set[str]:
        """Kinds of waits."""
        return set(self._longest_s)

    def longest_s(self, kind: str) -> float:
        """The longest wait of this kind, as exact as looking now and then is."""
        return self._longest_s.get(kind, 0.0)

    def _look(self) -> None:
        loop = self._carrier.loop
        for task in loop.tasks:
            waiter = task.waiting
            if waiter is None or waiter.resolved or task.name.startswith("client/"):
                continue
            before = self._since.get(task)
            since = before[1] if before is not None and before[0] is waiter else loop.now
            self._since[task] = (waiter, since)
            self._check(task, loop.now - since)
        self._since = {task: since for task, since in self._since.items() if not task.done}
        loop.after(_EVERY_S, self._look, background=True)

    def _check(self, task: Task, waited_s: float) -> None:
        frame = _innermost(task)
        kind = _KINDS.get(frame.f_code)
        assert kind is not None, f"a task waits for nothing that it may wait for: {task.where()}"
        assert kind != "room", f"a task waits for room in an inbox: {task.where()}"
        if kind == "call":
            limit_s = frame.f_locals["timeout_s"]
            assert limit_s <= MAX_DEADLINE_S, f"a task waits with a deadline of {limit_s} s: {task.where()}"
            assert waited_s <= limit_s + _EVERY_S, f"a task waits for {waited_s} s, not {limit_s}: {task.where()}"
        self.tasks.add(task.name)
        self._longest_s[kind] = max(waited_s, self._longest_s.get(kind, 0.0))


def _innermost(task: Task) -> FrameType:
    """The frame of the coroutine that yielded the waiter."""
    inner: Any = task.coro
    while getattr(inner.cr_await, "cr_frame", None) is not None:
        inner = inner.cr_await
    frame: FrameType = inner.cr_frame
    return frame

"""The simulator's event loop: coroutines, a virtual clock and a seeded choice of who runs next.

Nothing here knows actors. A task is a coroutine that suspends only on a `Waiter`; the loop resumes one ready
task at a time, drawn by the seed, and moves the clock only when nobody is ready. So a seed fixes the whole
run.
"""

import heapq
from collections.abc import Callable, Coroutine, Generator
from random import Random
from types import coroutine
from typing import Any


class SimulationError(Exception):
    """The simulated system broke a rule of the simulation itself."""


class Deadlock(SimulationError):
    """Nobody is ready, no timer is set, and what was waited for has not come."""


class OutOfTime(SimulationError):
    """The run used up its steps or its virtual time before what was waited for came."""


class Waiter:
    """A one-shot wake-up. Resolving it twice, or after its task is gone, does nothing."""

    __slots__ = ("error", "loop", "resolved", "task", "value")

    def __init__(self, loop: "Loop") -> None:
        self.loop = loop
        self.task: Task | None = None
        self.resolved = False
        self.value: Any = None
        self.error: BaseException | None = None

    def resolve(self, value: Any = None, error: BaseException | None = None) -> None:
        """Wakes the task that waits, now or as soon as it does."""
        if self.resolved:
            return
        self.resolved, self.value, self.error = True, value, error
        if self.task is not None:
            self.loop.make_ready(self.task)

    @coroutine
    def wait(self) -> Generator["Waiter", None, Any]:
        """Suspends the running task until the waiter is resolved."""
        yield self
        if self.error is not None:
            raise self.error
        return self.value


class Task:
    """One coroutine. `on_exit` gets the error that ended it, or None."""

    __slots__ = ("coro", "done", "name", "on_exit", "waiting")

    def __init__(
        self,
        name: str,
        coro: Coroutine[Any, Any, None],
        on_exit: Callable[["Task", BaseException | None], None],
    ) -> None:
        self.name = name
        self.coro = coro
        self.on_exit = on_exit
        self.done = False
        self.waiting: Waiter | None = None

    def where(self) -> str:
        """The line of the innermost frame that the task is suspended at, for error messages."""
        inner: Any = self.coro
        place = "not started"
        while getattr(inner, "cr_frame", None) is not None:
            frame = inner.cr_frame
            place = f"{frame.f_code.co_qualname}:{frame.f_lineno}"
            inner = inner.cr_await
        return f"{self.name} at {place}"


class Timer:
    """A callback at a moment; cancelled ones are skipped."""

    __slots__ = ("action", "background")

    def __init__(self, action: Callable[[], None] | None, background: bool) -> None:
        self.action = action
        self.background = background

    def cancel(self) -> None:
        """The action will not run."""
        self.action = None


class Loop:
    """Ready tasks, timers and the clock. `jitter` is the chance that a woken task runs only a while later."""

    def __init__(self, seed: int, jitter: float) -> None:
        self.random = Random(f"loop {seed}")
        self.now = 0.0
        self.steps = 0
        self.on_step: Callable[[], None] | None = None
        self.running: Task | None = None
        self.tasks: dict[Task, None] = {}
        self._jitter = jitter
        self._ready: list[Task] = []
        self._timers: list[tuple[float, float, int, Timer]] = []
        self._sequence = 0

    def start(
        self,
        name: str,
        coro: Coroutine[Any, Any, None],
        on_exit: Callable[[Task, BaseException | None], None],
    ) -> Task:
        """A new task, ready to run."""
        task = Task(name, coro, on_exit)
        self.tasks[task] = None
        self._ready.append(task)
        return task

    def kill(self, task: Task) -> None:
        """Closes the coroutine where it stands; its `finally` blocks run now and may not wait."""
        if task.done:
            return
        self._finish(task)
        task.coro.close()

    def make_ready(self, task: Task) -> None:
        """Queues the task, perhaps after a hiccup."""
        if self.random.random() < self._jitter:
            self.after(self.random.uniform(0.0, 0.02), lambda: self._ready.append(task))
        else:
            self._ready.append(task)

    def after(self, delay_s: float, action: Callable[[], None], background: bool = False) -> Timer:
        """Calls `action` in `delay_s`. Equal moments run in an order drawn by the seed.

        A background timer is a wait that may never be needed (a deadline): alone it is no progress.
        """
        timer = Timer(action, background)
        self._sequence += 1
        heapq.heappush(self._timers, (self.now + delay_s, self.random.random(), self._sequence, timer))
        return timer

    def run_until(self, done: Callable[[], bool], max_time_s: float, max_steps: int) -> None:
        """Runs until `done()`. Raises Deadlock or OutOfTime when that cannot or does not happen."""
        last_step = self.steps + max_steps
        while not done():
            if self.steps >= last_step:
                raise OutOfTime(f"{max_steps} steps taken at {self.now:.3f} s\n{self._waiting_text()}")
            if self._ready:
                self._step()
            elif not self._advance(max_time_s):
                raise Deadlock(f"nobody can run at {self.now:.3f} s\n{self._waiting_text()}")
            if self.on_step is not None:
                self.on_step()

    def is_idle(self) -> bool:
        """Whether only background timers are left."""
        return not self._ready and all(timer.action is None or timer.background for _, _, _, timer in self._timers)

    def _step(self) -> None:
        self.steps += 1
        position = self.random.randrange(len(self._ready))
        self._ready[position], self._ready[-1] = self._ready[-1], self._ready[position]
        task = self._ready.pop()
        if task.done:
            return
        self.running = task
        try:
            waiter = task.coro.send(None)
        except StopIteration:
            self._finish(task)
            task.on_exit(task, None)
        except Exception as error:
            self._finish(task)
            task.on_exit(task, error)
        else:
            if not isinstance(waiter, Waiter):
                raise SimulationError(f"{task.name} awaits {waiter!r}: only the context may be awaited")
            waiter.task, task.waiting = task, waiter
            if waiter.resolved:
                self.make_ready(task)
        finally:
            self.running = None

    def _advance(self, max_time_s: float) -> bool:
        while self._timers:
            moment, _, _, timer = heapq.heappop(self._timers)
            if timer.action is None:
                continue
            if moment > max_time_s:
                raise OutOfTime(f"nothing happens before {moment:.3f} s\n{self._waiting_text()}")
            self.now = moment
            action, timer.action = timer.action, None
            action()
            return True
        return False

    def _finish(self, task: Task) -> None:
        task.done = True
        self.tasks.pop(task, None)

    def _waiting_text(self) -> str:
        return "\n".join(f"  {task.where()}" for task in self.tasks)

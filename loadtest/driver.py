"""Sends a phase's requests when they are due, and gathers their records.

An open loop sends by the schedule, whatever the server does: latency then includes the queueing that real users would
see. A closed loop keeps so many requests on their way, and sends one when another ends. Warm-up is a phase of its own.
"""

import asyncio
import math
import random
from collections.abc import Callable, Sequence

import msgspec

from loadtest.attempt import Prepared
from loadtest.client import Client
from loadtest.record import Record

MAX_REFUSED = 20
GONE_S = 5.0
"""So many requests in a row over so long that find no server end a phase: it does not just start again."""

TICK_S = 0.01


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Arrivals of an open loop, or the concurrency of a closed one; and which requests the client leaves, and when."""

    arrivals_s: tuple[float, ...] | None = None
    concurrency: int = 1
    duration_s: float | None = None
    cancel_fraction: float = 0.0
    cancel_after_s: float = 1.0
    seed: int = 0

    def cancelled(self, count: int) -> frozenset[int]:
        """The requests that are cancelled unless they are done before: the fraction, to the nearest whole number."""
        rng = random.Random(f"cancellations {self.seed}")
        return frozenset(rng.sample(range(count), round(count * self.cancel_fraction)))


class Phase:
    """One pass over the requests. `records` and `client.in_flight` can be watched while it runs."""

    def __init__(
        self,
        client: Client,
        requests: Sequence[Prepared],
        plan: Plan,
        stop_if: Callable[[Record], str | None] | None = None,
    ) -> None:
        """`stop_if` is asked after every record for a reason to stop."""
        self.client, self.plan, self._stop_if = client, plan, stop_if
        self.records = list[Record]()
        self.tick_lags_s = list[float]()
        self.stopped: str | None = None
        self.started_at: float | None = None
        self._requests, self._cancelled = requests, plan.cancelled(len(requests))
        self._next = self._num_refused = 0
        self._refused_since_s = 0.0
        self._pacer: asyncio.Task[None] | None = None
        self._tasks = list[asyncio.Task[None]]()

    @property
    def total(self) -> int:
        """How many requests there are."""
        return len(self._requests)

    async def run(self) -> list[Record]:
        """The records of all that were sent, in the order of their index. Ends early when `stop` is called."""
        loop = asyncio.get_running_loop()
        self.started_at = loop.time()
        ticks = loop.create_task(self._tick(loop))
        try:
            if self.plan.arrivals_s is not None:
                self._pacer = loop.create_task(self._pace(loop, self.started_at, self.plan.arrivals_s))
                await asyncio.wait((self._pacer,))
            else:
                for _ in range(min(self.plan.concurrency, self.total)):
                    self._tasks.append(loop.create_task(self._send_in_turn(loop, self.started_at)))
            await asyncio.gather(*self._tasks)
        finally:
            ticks.cancel()
        return sorted(self.records, key=lambda record: record.index)

    def stop(self, reason: str) -> None:
        """Sends nothing more and ends what is on its way."""
        if self.stopped is None:
            self.stopped = reason
            self.client.interrupt()
            if self._pacer is not None:
                self._pacer.cancel()

    async def _pace(self, loop: asyncio.AbstractEventLoop, started_at: float, arrivals_s: tuple[float, ...]) -> None:
        for index, arrival_s in enumerate(arrivals_s):
            due_at = started_at + arrival_s
            if due_at > loop.time():
                await asyncio.sleep(due_at - loop.time())
            self._tasks.append(loop.create_task(self._send(index, started_at, due_at)))

    async def _send_in_turn(self, loop: asyncio.AbstractEventLoop, started_at: float) -> None:
        ends_at = math.inf if self.plan.duration_s is None else started_at + self.plan.duration_s
        while self._next < self.total and self.stopped is None and loop.time() < ends_at:
            self._next += 1
            await self._send(self._next - 1, started_at, None)

    async def _send(self, index: int, started_at: float, due_at: float | None) -> None:
        if self.stopped is not None:
            return
        cancel_s = self.plan.cancel_after_s if index in self._cancelled else None
        record = await self.client.ask(index, self._requests[index], started_at, due_at, cancel_s)
        self.records.append(record)
        if self._stop_if is not None and (reason := self._stop_if(record)) is not None:
            self.stop(reason)
        self._watch_refusals(record)

    def _watch_refusals(self, record: Record) -> None:
        if record.error is None or not record.error.startswith("cannot connect"):
            self._num_refused = 0
            return
        self._refused_since_s = record.ended_s if self._num_refused == 0 else self._refused_since_s
        self._num_refused += 1
        if self._num_refused >= MAX_REFUSED and record.ended_s - self._refused_since_s >= GONE_S:
            self.stop(f"the server is gone: {record.error}")

    async def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        """Measures how late this process wakes up, which shows a busy client in a closed loop too."""
        while True:
            due_at = loop.time() + TICK_S
            await asyncio.sleep(TICK_S)
            self.tick_lags_s.append(loop.time() - due_at)

"""What actors tell of their work to whoever counts it: plain calls that return at once and change nothing.

Each is made on the carrier's own thread, at most a few times per step. Durations are seconds on the carrier's clock.
What happens to a single request is told to its client (`Completed.timings`) and not here.
"""

from collections import deque
from typing import Literal, Protocol

import msgspec

from actors.messages import Address
from actors.turn import Turn

StepPhase = Literal["prefill", "decode", "mixed"]
RecoveryCause = Literal["taken back", "lost", "gap"]


class StepRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One forward pass: how long the slice was busy with it, its decode rows and its prompt tokens."""

    phase: StepPhase
    duration_s: float
    rows: int
    prefill_tokens: int


class WorkerLoad(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker holds now. Pages add up to `used + cached + free`; choices that `run` decode, `leases` do not yet.

    Used pages belong to running work or are on their way back from it.
    """

    used_pages: int
    cached_pages: int
    free_pages: int
    running: int
    leases: int
    prefills: int
    queued_prefill_tokens: int


class Telemetry(Protocol):
    """Who counts. See the module."""

    def queued(self, waiting: int, placed: int) -> None:
        """The scheduler's groups now: those that wait for a place, and those that have one."""
        ...

    def admitted(self, *, again: bool) -> None:
        """A group was let in; `again` when it is another attempt."""
        ...

    def recovered(self, cause: RecoveryCause) -> None:
        """The gateway began another attempt at a choice."""
        ...

    def died(self, actor: Address, *, final: bool) -> None:
        """A life of an actor ended with an error; another follows unless it was the last one."""
        ...

    def moved(self, source: Address, target: Address, num_tokens: int, duration_s: float) -> None:
        """A chunk of KV was copied from slice to slice."""
        ...

    def move_failed(self, source: Address, target: Address) -> None:
        """A copy of a chunk failed."""
        ...

    def stepped(self, worker: Address, step: StepRecord) -> None:
        """A worker has read the results of a step."""
        ...

    def looked_up(self, worker: Address, num_tokens: int, cached_tokens: int) -> None:
        """A worker's prefix cache was asked for a prompt and had the KV of its first `cached_tokens` tokens."""
        ...

    def preempted(self, worker: Address, num_choices: int) -> None:
        """A worker gave up choices because its pool was exhausted."""
        ...

    def holds(self, worker: Address, load: WorkerLoad) -> None:
        """What the worker holds has been changed by a turn."""
        ...


class NoTelemetry:
    """Counts nothing."""

    def queued(self, waiting: int, placed: int) -> None:
        """Nothing."""

    def admitted(self, *, again: bool) -> None:
        """Nothing."""

    def recovered(self, cause: RecoveryCause) -> None:
        """Nothing."""

    def died(self, actor: Address, *, final: bool) -> None:
        """Nothing."""

    def moved(self, source: Address, target: Address, num_tokens: int, duration_s: float) -> None:
        """Nothing."""

    def move_failed(self, source: Address, target: Address) -> None:
        """Nothing."""

    def stepped(self, worker: Address, step: StepRecord) -> None:
        """Nothing."""

    def looked_up(self, worker: Address, num_tokens: int, cached_tokens: int) -> None:
        """Nothing."""

    def preempted(self, worker: Address, num_choices: int) -> None:
        """Nothing."""

    def holds(self, worker: Address, load: WorkerLoad) -> None:
        """Nothing."""


NO_TELEMETRY = NoTelemetry()


class StepMeter:
    """Times the steps of one life of a worker. Steps are read in the order in which they are enqueued.

    One is enqueued while another runs, so a step begins for the slice when the one before it has been read.
    """

    def __init__(self, worker: Address, telemetry: Telemetry) -> None:
        self._worker = worker
        self._telemetry = telemetry
        self._under_way: deque[tuple[float, StepPhase, int, int]] = deque()
        self._last_read = float("-inf")

    def began(self, turn: Turn, now: float) -> None:
        """The turn is about to be enqueued."""
        step = turn.step
        if step is not None:
            tokens = sum(len(segment.tokens) for segment in step.prefill)
            phase: StepPhase = "decode" if not step.prefill else "mixed" if step.decode else "prefill"
            self._under_way.append((now, phase, len(step.decode), tokens))

    def read(self, now: float) -> None:
        """The results of the oldest step are there."""
        began, phase, rows, tokens = self._under_way.popleft()
        duration_s = now - max(began, self._last_read)
        self._last_read = now
        record = StepRecord(phase=phase, duration_s=duration_s, rows=rows, prefill_tokens=tokens)
        self._telemetry.stepped(self._worker, record)

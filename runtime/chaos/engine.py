"""An engine that fails on order. Everything that is not ordered passes through, in the same calls."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from runtime.chaos.campaign import Chaos
from runtime.engine import Engine, EngineSpec, KvChunk, RowState, Sampled, Scored, Step, StepHandle


class ChaosError(RuntimeError):
    """A failure that somebody ordered; its text is the part of the spec."""


class ChaosEngine:
    """`Engine` around another one, whose further attributes it shows too. Belongs to one thread, as they all do."""

    def __init__(self, name: str, engine: Engine, chaos: Chaos) -> None:
        self._name = name
        self._engine = engine
        self._chaos = chaos
        self._fails: dict[int, str] = {}
        self._started: dict[int, float] = {}
        self._last_end = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    @property
    def spec(self) -> EngineSpec:
        """The engine's fixed sizes."""
        return self._engine.spec

    @property
    def fence(self) -> int:
        """Number of the most recently enqueued device operation of any kind."""
        return self._engine.fence

    def set_rows(self, rows: Sequence[RowState]) -> None:
        """Passes through."""
        self._engine.set_rows(rows)

    def dispatch(self, step: Step) -> StepHandle:
        """Crashes and hangs before the step is enqueued; out of memory is what its `fetch` will say."""
        campaign, out_of_memory = self._chaos.campaign, ""
        for strike in campaign.due(self._name, len(step.prefill)) if campaign is not None else ():
            assert campaign is not None
            if strike.kind == "crash":
                raise ChaosError(strike.text)
            if strike.kind == "hang":
                campaign.over.wait(strike.duration_s)
            elif strike.kind == "oom":
                out_of_memory = strike.text
        started = time.monotonic()
        handle = self._engine.dispatch(step)
        self._started[handle.fence] = started
        if out_of_memory:
            self._fails[handle.fence] = f"RESOURCE_EXHAUSTED: out of memory while running a step: {out_of_memory}"
        return handle

    def fetch(self, handle: StepHandle) -> tuple[Sampled, ...]:
        """Waits for the step, and for as much more as it is slowed down."""
        sampled = self._engine.fetch(handle)
        began = max(self._started.pop(handle.fence, 0.0), self._last_end)
        campaign = self._chaos.campaign
        slowness = campaign.slowness(self._name) if campaign is not None else None
        if campaign is not None and slowness is not None:
            campaign.hit(slowness)
            campaign.over.wait((time.monotonic() - began) * (slowness.factor - 1.0))
        self._last_end = time.monotonic()
        if handle.fence in self._fails:
            raise ChaosError(self._fails.pop(handle.fence))
        return sampled

    def sample(self, handle: StepHandle, masks: Mapping[int, bytes]) -> StepHandle:
        """Passes through; what was ordered of the step goes on with the handle that is fetched."""
        sampling = self._engine.sample(handle, masks)
        if handle.fence in self._started:
            self._started[sampling.fence] = self._started.pop(handle.fence)
        if handle.fence in self._fails:
            self._fails[sampling.fence] = self._fails.pop(handle.fence)
        return sampling

    def fetch_scores(self, handle: StepHandle) -> tuple[tuple[Scored, ...], ...]:
        """Passes through."""
        return self._engine.fetch_scores(handle)

    def gather(self, pages: Sequence[int]) -> KvChunk:
        """Passes through."""
        return self._engine.gather(pages)

    def insert(self, chunk: KvChunk, source: Sequence[int], pages: Sequence[int]) -> None:
        """Passes through."""
        self._engine.insert(chunk, source, pages)

    def checksum(self, chunk: KvChunk) -> tuple[int, ...]:
        """Passes through."""
        return self._engine.checksum(chunk)

    def wait(self) -> int:
        """Passes through."""
        return self._engine.wait()

    def reset(self) -> None:
        """Passes through; what was ordered of a step in flight is gone with it."""
        self._fails.clear()
        self._started.clear()
        self._engine.reset()

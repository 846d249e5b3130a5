"""`Engine` on a slice that is not there: nothing is computed, and every operation lasts as long as a table says.

Stands where `runtime.jax_engine` stands and is called in the same way: `dispatch`, `gather`, `insert` and `set_rows`
enqueue work on the slice's timeline and return at once, `fetch` and `wait` sleep until it is done. Sizes are rounded up
to the buckets that a real engine of the role would have compiled. Writing row state takes no time.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

import msgspec

from runtime.buckets import ACCELERATOR, CPU, Buckets, fit, fit_mixed, plan_buckets
from runtime.emulated.draws import Draws
from runtime.emulated.table import StepShape, StepTable, shape_of
from runtime.emulated.timeline import Clock, Timeline
from runtime.engine import EngineSpec, KvChunk, RowState, Sampled, Scored, Step, StepHandle
from runtime.topology import Role


class EmulatedChunk(NamedTuple):
    """Gathered KV that is not there: how many tokens its arrays would hold, and when they are complete."""

    num_tokens: int
    ready: float


class _Row(msgspec.Struct):
    """A row as decode steps advance it: tokens that it holds, and the index of the token that it samples next."""

    state: RowState
    length: int
    index: int


class _Payload(NamedTuple):
    """When a step ends, what comes out of it, and the decode rows that are to be sampled yet."""

    end: float
    sampled: tuple[Sampled, ...]
    scores: tuple[tuple[Scored, ...], ...] = ()
    deferred: tuple[int, ...] = ()


class EmulatedEngine:
    """See the module. Belongs to one thread, as every engine does."""

    def __init__(self, spec: EngineSpec, table: StepTable, draws: Draws, *, role: Role, clock: Clock) -> None:
        self._spec = spec
        self._table = table
        self._draws = draws
        self._timeline = Timeline(clock)
        self._buckets = plan_buckets(
            role,
            chunk_tokens=spec.chunk_tokens,
            num_rows=spec.num_rows,
            page_size=spec.page_size,
            grain=CPU if table.platform == "cpu" else ACCELERATOR,
        )
        self._rows: dict[int, _Row] = {}
        self._fence = 0

    @property
    def spec(self) -> EngineSpec:
        """The engine's fixed sizes."""
        return self._spec

    @property
    def fence(self) -> int:
        """Number of the most recently enqueued device operation of any kind; 0 before the first."""
        return self._fence

    def set_rows(self, rows: Sequence[RowState]) -> None:
        """Takes over row state, ordered after every earlier dispatch."""
        for row in rows:
            self._rows[row.row] = _Row(row, row.length, len(row.output))
        self._fence += 1

    def dispatch(self, step: Step) -> StepHandle:
        """Enqueues a step; its tokens are known, but nobody gets them before it ends. A deferred one takes as long:
        sampling is part of the time that the table has.

        Raises ValueError if the step is larger than the engine's sizes or not of its role.
        """
        if len(step.prefill) > self._spec.max_prefill_segments:
            raise ValueError(f"{len(step.prefill)} prefill segments, at most {self._spec.max_prefill_segments}")
        shape = shape_of(step, {row: self._rows[row].length for row in step.decode})
        end = self._timeline.add(self._table.step_s(in_buckets(shape, self._buckets)))
        self._fence += 1
        sampled = [self._sample_own(row) for segment in step.prefill for row in segment.sample_rows]
        for row in step.decode:
            self._rows[row].length += 1
        if not step.deferred:
            sampled += [self._sample_own(row) for row in step.decode]
        scores = tuple(self._draws.score(segment) for segment in step.prefill if segment.score is not None)
        payload = _Payload(end, tuple(sampled), scores, step.decode if step.deferred else ())
        return StepHandle(fence=self._fence, payload=payload)

    def sample(self, handle: StepHandle, masks: Mapping[int, bytes]) -> StepHandle:
        """Draws for a deferred step's decode rows, which takes no further time; returns the handle to fetch."""
        payload: _Payload = handle.payload
        sampled = [self._sample(row, masks.get(row)) for row in payload.deferred]
        self._fence += 1
        payload = payload._replace(sampled=(*payload.sampled, *sampled), deferred=())
        return StepHandle(fence=self._fence, payload=payload)

    def fetch(self, handle: StepHandle) -> tuple[Sampled, ...]:
        """Blocks until the step is done. Order: sample rows of each prefill segment, then decode rows."""
        payload: _Payload = handle.payload
        assert not payload.deferred, "a deferred step is fetched by the handle that sample returns"
        self._timeline.wait_until(payload.end)
        return payload.sampled

    def fetch_scores(self, handle: StepHandle) -> tuple[tuple[Scored, ...], ...]:
        """Blocks until the step is done; one tuple for each of its segments with `score`, in their order."""
        payload: _Payload = handle.payload
        self._timeline.wait_until(payload.end)
        return payload.scores

    def gather(self, pages: Sequence[int]) -> KvChunk:
        """Enqueues a copy of the pages; a chunk has the size of its bucket, as a real one does."""
        num_tokens = fit(self._buckets.gather, len(pages)) * self._spec.page_size
        end = self._timeline.add(self._table.gather.of(num_tokens))
        self._fence += 1
        return cast(KvChunk, EmulatedChunk(num_tokens, end))

    def insert(self, chunk: KvChunk, source: Sequence[int], pages: Sequence[int]) -> None:
        """Enqueues writing pages of the chunk, in as many programs of the chunk's size as that takes."""
        num_tokens = cast(EmulatedChunk, chunk).num_tokens
        times = -(-len(pages) * self._spec.page_size // num_tokens)
        self._timeline.add(times * self._table.insert.of(num_tokens))
        self._fence += 1

    def checksum(self, chunk: KvChunk) -> tuple[int, ...]:
        """Always the same: there is nothing that could differ, and what it would take is not in the table."""
        return (0,)

    def wait(self) -> int:
        """Blocks until all enqueued work is done; returns the highest fence handed out so far."""
        self._timeline.wait_until(self._timeline.end)
        return self._fence

    def reset(self) -> None:
        """Forgets all rows."""
        self._rows.clear()

    def _sample_own(self, row: int) -> Sampled:
        """A sample that is not deferred."""
        return self._sample(row, self._rows[row].state.mask)

    def _sample(self, row: int, mask: bytes | None) -> Sampled:
        """Of the tokens in `mask`, or in the request's if there is none."""
        entry = self._rows[row]
        sampling = entry.state.sampling
        allowed = sampling.allowed_mask if mask is None else mask
        sampled = self._draws.draw(row, sampling, entry.state.choice, entry.index, allowed)
        entry.index += 1
        return sampled


def in_buckets(shape: StepShape, buckets: Buckets) -> StepShape:
    """The step as a role with these programs runs it. Raises ValueError if none of them holds it."""
    if shape.tokens and shape.rows:
        tokens, rows = fit_mixed(buckets.mixed, shape.tokens, shape.rows)
    elif shape.rows or not (shape.tokens or buckets.prefill):
        tokens, rows = 0, fit(buckets.decode, shape.rows)
    else:
        tokens, rows = fit(buckets.prefill, shape.tokens), 0
    return msgspec.structs.replace(shape, tokens=tokens, rows=rows)

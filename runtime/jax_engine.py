"""One slice's engine on jax: pool, rows and weights on its devices, and the calls of the `Engine` contract.

Every call packs what the host has to say into one vector and enqueues one compiled program; a prompt's end, and decode
rows whose masks come later, take a second one. Programs pass pool and rows on donated, so there is one copy of each and
their order on the device is the order of the calls. The host reads nothing back but sampled tokens and logprobs, in
`fetch` and `fetch_scores`.

A slice of several devices runs each program on all of them. On a CPU, whose virtual devices share one thread pool,
programs that wait for each other's devices are bounded: see `_Depth`.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import jax
import numpy as np

from kernels.implementations import Implementation
from runtime import compat
from runtime.buckets import Buckets, fit, fit_mixed
from runtime.compile_cache import compilations
from runtime.device_state import DeviceRows, RowWriter
from runtime.engine import (
    SENTINEL_PAGE,
    EngineSpec,
    KvChunk,
    PageWrite,
    PrefillSegment,
    RowState,
    Sampled,
    Scored,
    Step,
    StepHandle,
)
from runtime.engine_programs import INIT, build_programs, engine_parts, step_key
from runtime.kv_checksum import by_model_head
from runtime.kv_heads import KvHeads
from runtime.model_config import ModelConfig
from runtime.placement import Placement
from runtime.programs import Key, Programs, Progress
from runtime.sampler import mask_words
from runtime.step_config import AttentionOps
from runtime.step_inputs import StepLayout, pack_masks, pack_sample, scored_spans
from runtime.step_results import Draw, any_wanted, read_samples, read_scores, start_copies, start_copy
from runtime.steps import Passed, Pool
from runtime.topology import Role

_T = TypeVar("_T")


class _Payload(NamedTuple):
    """What is left to read of a step: samples in order, the rows that are to be sampled from `passed`, and the scored
    segments with their spans in `passed.scores`.
    """

    passed: Passed
    draws: tuple[Draw, ...]
    deferred: tuple[int, ...] = ()
    scored: tuple[tuple[PrefillSegment, int, int], ...] = ()


MAX_PROGRAMS_IN_FLIGHT = 2
"""Programs with collectives that one CPU slice queues. Unbounded, queues of several slices take all threads of the pool
for programs whose other devices have none left, and XLA ends the process after 40 s.
"""


class _Depth:
    """Programs with collectives that are under way; `enter` before the next waits for the oldest of too many."""

    def __init__(self, most: int | None) -> None:
        self._most = most
        self._results: deque[Any] = deque()

    def enter(self) -> None:
        """Blocks until there is room for one more. Raises what the device raised."""
        if self._most is not None and len(self._results) >= self._most:
            compat.block_until_ready(self._results.popleft())

    def add(self, result: Any) -> None:
        """`result` is an array that the program made and that nobody donates."""
        if self._most is not None:
            self._results.append(result)

    def clear(self) -> None:
        """Forgets all, after an error."""
        self._results.clear()


class JaxEngine:
    """`Engine` on one slice. `params` may be shared with other engines on the same devices; they are never donated.

    `chunk_heads` is how many kv heads of a device travel together (`runtime.kv_reshard`): by default all of them, and
    less where slices of unequal TP exchange chunks. `kernels` is the implementation of everything that touches the
    pool (`runtime.attention_backend`); `attention` replaces what it computes attention with, for benchmarks. With
    `checksums` there are programs for `checksum`, which is refused without.

    The constructor makes the empty state; `warm_up` makes the programs. Without it each compiles at its first use.
    """

    def __init__(
        self,
        model: ModelConfig,
        params: Any,
        spec: EngineSpec,
        *,
        role: Role,
        devices: Sequence[jax.Device],
        use_sort: bool = False,
        kernels: Implementation = "xla",
        attention: AttentionOps | None = None,
        chunk_heads: int | None = None,
        checksums: bool = False,
    ) -> None:
        self._spec = spec
        self._params = params
        self._parts = engine_parts(
            model,
            params,
            spec,
            role=role,
            devices=devices,
            use_sort=use_sort,
            kernels=kernels,
            attention=attention,
            chunk_heads=chunk_heads,
            checksums=checksums,
        )
        self._kv_heads = KvHeads(model.num_kv_heads, self._parts.placement.tp)
        self._placement, self._buckets = self._parts.placement, self._parts.buckets
        is_bounded = devices[0].platform == "cpu" and self._placement.shared_mesh is not None
        self._depth = _Depth(MAX_PROGRAMS_IN_FLIGHT if is_bounded else None)
        self._writer = RowWriter(spec.num_rows, self._parts.table_width, spec.vocab_size)
        self._wide_zeros = {n: self._placement.put(self._writer.wide_zeros(n)) for n in self._buckets.set_rows}
        self._mask_words = mask_words(spec.vocab_size)
        self._no_masks = {n: self._placement.put(pack_masks((), n, self._mask_words)) for n in self._buckets.sample}
        self._programs = build_programs(self._parts, self._writer)
        self._wanted: list[int | None] = [None] * (spec.num_rows + 1)
        self._replaced: dict[int, bytes] = {}
        self._fence = 0
        self._pool: Pool = []
        self._rows: DeviceRows
        self._last_chunk: KvChunk | None = None
        self._compiles_when_warm = 0
        with compilations.warming_up():
            self.reset()

    @property
    def spec(self) -> EngineSpec:
        """The engine's fixed sizes."""
        return self._spec

    @property
    def fence(self) -> int:
        """Number of the most recently enqueued device operation of any kind; 0 before the first."""
        return self._fence

    @property
    def buckets(self) -> Buckets:
        """The sizes that this engine has programs for."""
        return self._buckets

    @property
    def programs(self) -> Programs:
        """The compiled programs, for analyses."""
        return self._programs

    @property
    def placement(self) -> Placement:
        """Where this slice's arrays live; a mover needs `placement.chunk`."""
        return self._placement

    def compiles_since_warm_up(self) -> int:
        """Compilations of the whole process since this engine was warm, other engines' warm-ups not counted."""
        return compilations.count - self._compiles_when_warm

    def warm_up(self, progress: Progress = lambda label, done, total: None) -> None:
        """Compiles every program and runs each (on a CPU the smallest of each kind), then empties the state."""
        with compilations.warming_up():
            self._programs.compile_all(progress)
            self._run_programs()
            self.wait()
            self.reset()
        self._compiles_when_warm = compilations.count

    def set_rows(self, rows: Sequence[RowState]) -> None:
        """Writes row state on the device, ordered after every earlier dispatch."""
        plain: list[RowState] = []
        for row in rows:
            self._wanted[row.row] = row.sampling.logprobs
            self._keep_replaced(row)
            wide = self._writer.wide(row)
            if wide is None:
                plain.append(row)
            else:
                self._write_rows([row], 1, self._placement.put(wide))
        for group in _groups(plain, self._buckets.set_rows[-1]):
            bucket = fit(self._buckets.set_rows, len(group))
            self._write_rows(group, bucket, self._wide_zeros[bucket])

    def dispatch(self, step: Step) -> StepHandle:
        """Enqueues one forward pass and its sampling; never waits for the device, but where `_Depth` says so.

        Raises ValueError if the step is larger than the engine's sizes or not of its role.
        """
        layout = self._layout(step)
        deltas = self._write_tables(step.table, layout.num_deltas)
        wanted = tuple(self._wanted[row] for row in step.decode)
        packed = layout.pack(step.prefill, step.decode, deltas, any_wanted(wanted), step.deferred)
        passed = self._forward(layout, packed)
        draws = [] if passed.last_hidden is None else self._sample_prefill(step.prefill, passed.last_hidden)
        if step.decode and not step.deferred and passed.drawn is not None:
            draws.append(Draw(passed.drawn, step.decode, wanted))
        for draw in draws:
            start_copy(draw)
        scored = tuple(scored_spans(step.prefill))
        if scored and passed.scores is not None:
            start_copies(passed.scores)
        payload = _Payload(passed, tuple(draws), step.decode if step.deferred else (), scored)
        return StepHandle(fence=self._fence, payload=payload)

    def sample(self, handle: StepHandle, masks: Mapping[int, bytes]) -> StepHandle:
        """Enqueues the sampling of a deferred step's decode rows and returns the handle to fetch; never waits.

        Raises ValueError for a mask that is not as long as the vocabulary.
        """
        payload: _Payload = handle.payload
        draws = list(payload.draws)
        hidden = payload.passed.hidden
        for group in _groups(tuple(enumerate(payload.deferred)), self._buckets.sample[-1]):
            assert hidden is not None
            given = tuple(masks.get(row, self._replaced.get(row)) for _, row in group)
            draws.append(self._sample(group, hidden, given))
            start_copy(draws[-1])
        return StepHandle(fence=self._fence, payload=payload._replace(draws=tuple(draws), deferred=()))

    def fetch(self, handle: StepHandle) -> tuple[Sampled, ...]:
        """Blocks until the step is done. Order: sample rows of each prefill segment, then decode rows."""
        payload: _Payload = handle.payload
        assert not payload.deferred, "a deferred step is fetched by the handle that sample returns"
        compat.block_until_ready(payload.passed.last_hidden)
        return tuple(sampled for draw in payload.draws for sampled in read_samples(draw))

    def fetch_scores(self, handle: StepHandle) -> tuple[tuple[Scored, ...], ...]:
        """Blocks until the step is done; one tuple for each of its segments with `score`, in their order."""
        payload: _Payload = handle.payload
        if not payload.scored or payload.passed.scores is None:
            return ()
        arrays = [np.asarray(array) for array in payload.passed.scores]
        return tuple(read_scores(arrays, *span) for span in payload.scored)

    def gather(self, pages: Sequence[int]) -> KvChunk:
        """Enqueues a copy of the pages of all layers; the pages may be rewritten by anything dispatched later."""
        bucket = fit(self._buckets.gather, len(pages))
        index = self._placement.put(_padded(pages, bucket))
        self._last_chunk = self._programs[Key("gather", bucket)](self._pool, index)
        self._fence += 1
        return cast(KvChunk, self._last_chunk)

    def insert(self, chunk: KvChunk, source: Sequence[int], pages: Sequence[int]) -> None:
        """Enqueues writing page `source[i]` of the chunk to pool page `pages[i]`; the chunk lives on this slice."""
        arrays = cast(tuple[jax.Array, ...], chunk)
        bucket = arrays[0].shape[1]
        program = self._programs[Key("insert", bucket)]
        for part in _groups(list(zip(source, pages, strict=True)), bucket):
            index = np.stack([_padded([pair[side] for pair in part], bucket) for side in (0, 1)])
            self._pool = program(self._pool, arrays, self._placement.put(index))
        self._fence += 1

    def checksum(self, chunk: KvChunk) -> tuple[int, ...]:
        """Blocks until the chunk is complete; one number for each of its pages and each kv head of the model."""
        arrays = cast(tuple[jax.Array, ...], chunk)
        sums = self._programs[Key("checksum", arrays[0].shape[1])](arrays)
        return by_model_head([np.asarray(part) for part in sums], self._kv_heads)

    def wait(self) -> int:
        """Blocks until all enqueued work is done; returns the highest fence handed out so far."""
        compat.block_until_ready((self._pool, self._rows, self._last_chunk))
        return self._fence

    def reset(self) -> None:
        """Rebuilds pool and rows empty after a failed step. Weights and compiled programs stay."""
        self._depth.clear()
        self._pool, self._last_chunk = [], None
        self._rows = None  # type: ignore[assignment]  # the old state is freed before the new one is made
        self._pool, self._rows = self._programs[INIT]()
        self._wanted = [None] * (self._spec.num_rows + 1)
        self._replaced = {}

    def _keep_replaced(self, row: RowState) -> None:
        """The device's mask of a row with `mask` is for samples that are not deferred; for others its request's counts,
        which the host has to bring along again.
        """
        self._replaced.pop(row.row, None)
        if row.mask is not None:
            everything = b"\xff" * (4 * self._mask_words)
            self._replaced[row.row] = row.sampling.allowed_mask or everything

    def _layout(self, step: Step) -> StepLayout:
        """The smallest program that holds the step."""
        num_tokens = sum(len(segment.tokens) for segment in step.prefill)
        num_decode = len(step.decode)
        if len(step.prefill) > self._spec.max_prefill_segments:
            raise ValueError(f"{len(step.prefill)} prefill segments, at most {self._spec.max_prefill_segments}")
        if num_tokens and num_decode:
            return self._parts.layout(*fit_mixed(self._buckets.mixed, num_tokens, num_decode))
        if num_tokens or not self._buckets.decode:
            return self._parts.layout(fit(self._buckets.prefill, num_tokens), 0)
        return self._parts.layout(0, fit(self._buckets.decode, num_decode))

    def _write_tables(self, deltas: Sequence[PageWrite], most: int) -> Sequence[PageWrite]:
        """Writes all deltas but the last `most`, which ride in the step itself. More are rare: they cost a step."""
        layout = self._layout(Step())
        while len(deltas) > most:
            count = min(layout.num_deltas, len(deltas) - most)
            self._forward(layout, layout.pack(deltas=deltas[:count]))
            deltas = deltas[count:]
        return deltas

    def _forward(self, layout: StepLayout, packed: np.ndarray) -> Passed:
        program = self._programs[step_key(layout.num_tokens, layout.num_decode)]
        self._depth.enter()
        passed: Passed
        self._pool, self._rows, passed = program(self._params, self._pool, self._rows, self._placement.put(packed))
        self._depth.add(passed.last_hidden if passed.drawn is None else passed.drawn.tokens)
        self._fence += 1
        return passed

    def _sample_prefill(self, prefill: Sequence[PrefillSegment], last_hidden: jax.Array) -> list[Draw]:
        pairs = [(index, row) for index, segment in enumerate(prefill) for row in segment.sample_rows]
        return [self._sample(group, last_hidden) for group in _groups(pairs, self._buckets.sample[-1])]

    def _sample(self, pairs: Sequence[tuple[int, int]], hidden: jax.Array, masks: Sequence[bytes | None] = ()) -> Draw:
        """Samples row r from hidden state h for each pair (h, r), with a mask for each pair that has one."""
        rows = tuple(row for _, row in pairs)
        wanted = tuple(self._wanted[row] for row in rows)
        bucket = fit(self._buckets.sample, len(pairs))
        is_given = [mask is not None for mask in masks]
        packed = pack_sample(pairs, bucket, self._spec.num_rows, any_wanted(wanted), is_given)
        words = self._no_masks[bucket]
        if any(is_given):
            words = self._placement.put(pack_masks(masks, bucket, self._mask_words))
        self._depth.enter()
        self._rows, drawn = self._programs[Key("sample", bucket)](
            self._params, self._rows, hidden, self._placement.put(packed), words
        )
        self._depth.add(drawn.tokens)
        self._fence += 1
        return Draw(drawn, rows, wanted)

    def _write_rows(self, rows: Sequence[RowState], bucket: int, wide: dict[str, jax.Array]) -> None:
        packed = self._placement.put(self._writer.pack(rows, bucket))
        self._rows = self._programs[Key("set_rows", bucket)](self._rows, packed, wide)
        self._fence += 1

    def _run_programs(self) -> None:
        """Runs programs on the sentinel row and page."""
        buckets, most = self._buckets, 1 if self._placement.devices[0].platform == "cpu" else None
        steps = [(t, 0) for t in buckets.prefill[:most]] + [(0, b) for b in buckets.decode[:most]]
        hidden = None
        for num_tokens, num_decode in [*steps, *buckets.mixed[:most]]:
            layout = self._parts.layout(num_tokens, num_decode)
            passed = self._forward(layout, layout.pack())
            hidden = passed.last_hidden if passed.hidden is None else passed.hidden
        if hidden is not None:
            for bucket in buckets.sample[:most]:
                self._sample([(0, self._spec.num_rows)] * bucket, hidden)
        for bucket in buckets.set_rows[:most]:
            self._write_rows([], bucket, self._wide_zeros[bucket])
        for bucket in buckets.gather[:most]:
            self.gather([SENTINEL_PAGE] * bucket)
        for bucket in buckets.insert[:most]:
            zeros = tuple(np.zeros(part.shape, part.dtype) for part in self._parts.chunk(bucket))
            chunk = KvChunk(jax.device_put(zeros, self._placement.chunk))
            self.insert(chunk, [0] * bucket, [SENTINEL_PAGE] * bucket)
            if self._parts.checksums:
                self.checksum(chunk)


def _groups(items: Sequence[_T], size: int) -> list[Sequence[_T]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _padded(values: Sequence[int], size: int) -> np.ndarray:
    """int32[size], filled up with page 0."""
    padded = np.full(size, SENTINEL_PAGE, np.int32)
    padded[: len(values)] = values
    return padded

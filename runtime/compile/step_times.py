"""From compiled programs and figures of kernels to a step-time table. Pure; every time in it is an estimate.

A step's program is walked once for each start or context of the grid, with the kernels' times at that place, so that
what the compiler overlaps with them overlaps here too.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from runtime.buckets import ACCELERATOR, Buckets, plan_buckets
from runtime.compile.kernel_figures import KernelFigures
from runtime.compile.step_program import StepProgram
from runtime.compile.walk import KernelTime, Walked, walk
from runtime.emulated.table import DecodeTimes, Linear, MixedTimes, PrefillTimes, StepTable
from runtime.model_config import ModelConfig
from runtime.programs import Key
from runtime.step_sampling import SCORE_BLOCK
from runtime.topology import Role

MIXED_START = 0
MIXED_CONTEXT = 1024
_STARTS = (0, 2048, 8192, 32768)
_CONTEXTS = (128, 512, 1024, 4096, 8192, 32768)


class Grid(msgspec.Struct, frozen=True, kw_only=True):
    """Which steps the table has: buckets as the roles compile them, and the places between which it is linear."""

    buckets: Buckets
    starts: tuple[int, ...]
    contexts: tuple[int, ...]

    @property
    def mixed_context(self) -> int:
        """Where the mixed steps are."""
        return max(context for context in self.contexts if context <= max(MIXED_CONTEXT, self.contexts[0]))


class Slice(msgspec.Struct, frozen=True, kw_only=True):
    """What else a table says of a slice: whose times they are, what it holds, and the link to the next slice."""

    model: str
    how: str
    max_context_tokens: int
    kv_bytes_per_token: int
    pool_tokens: int
    link_bytes_per_s: float
    link_latency_s: float


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """One step: what the walk says, and the least that its operations and bytes can take."""

    walked: Walked
    roofline_s: float

    @property
    def step_s(self) -> float:
        """What the table says: never less than the roofline."""
        return max(self.walked.step_s, self.roofline_s)

    @property
    def ratio(self) -> float:
        """Over the roofline."""
        return self.step_s / self.roofline_s


class Estimates(msgspec.Struct, frozen=True, kw_only=True):
    """All steps of a grid, one row for each size; `sample_s` is sampling the first tokens of ended prompts."""

    grid: Grid
    prefill: tuple[tuple[Estimate, ...], ...]
    decode: tuple[tuple[Estimate, ...], ...]
    mixed: tuple[tuple[Estimate, ...], ...]
    sample: tuple[tuple[int, Estimate], ...]


class _Place(NamedTuple):
    """A step: prompt tokens after a start, and rows with a context."""

    tokens: int = 0
    start: int = 0
    rows: int = 0
    context: int = 0


def plan_grid(*, chunk_tokens: int, num_rows: int, page_size: int, max_context_tokens: int) -> Grid:
    """The buckets of all roles together; starts and contexts as far as the longest sequence goes."""
    roles: Sequence[Role] = ("prefill", "decode", "mixed")
    parts = [
        plan_buckets(role, chunk_tokens=chunk_tokens, num_rows=num_rows, page_size=page_size, grain=ACCELERATOR)
        for role in roles
    ]
    buckets = Buckets(
        prefill=tuple(sorted({size for part in parts for size in part.prefill})),
        decode=tuple(sorted({size for part in parts for size in part.decode})),
        mixed=parts[-1].mixed,
        sample=parts[-1].sample,
    )
    last_start, last_context = max(max_context_tokens - buckets.prefill[-1], 0), max(max_context_tokens - 1, 1)
    return Grid(
        buckets=buckets,
        starts=tuple(sorted({start for start in _STARTS if start < last_start} | {last_start})),
        contexts=tuple(sorted({context for context in _CONTEXTS if context < last_context} | {last_context})),
    )


def estimate(
    grid: Grid, programs: Mapping[Key, StepProgram], kernels: KernelFigures, config: ModelConfig, kv_bytes: int
) -> Estimates:
    """Times of all steps of the grid; `kv_bytes` are those of a token in all layers.

    Raises ValueError for a program with a kernel of which nothing is known, KeyError for a program that is not there.
    """
    estimator = _Estimator(programs, kernels, config, kv_bytes)
    buckets = grid.buckets
    context = grid.mixed_context
    tokens, rows = _mixed_axes(buckets)
    return Estimates(
        grid=grid,
        prefill=tuple(
            tuple(estimator.at(Key("prefill", size), _Place(tokens=size, start=start)) for start in grid.starts)
            for size in buckets.prefill
        ),
        decode=tuple(
            tuple(estimator.at(Key("decode", size), _Place(rows=size, context=context)) for context in grid.contexts)
            for size in buckets.decode
        ),
        mixed=tuple(
            tuple(estimator.at(Key("mixed", t, b), _Place(t, MIXED_START, b, context)) for b in rows) for t in tokens
        ),
        sample=tuple((size, estimator.at(Key("sample", size), _Place())) for size in buckets.sample),
    )


class _Estimator:
    def __init__(
        self, programs: Mapping[Key, StepProgram], kernels: KernelFigures, config: ModelConfig, kv_bytes: int
    ) -> None:
        self._programs = programs
        self._kernels = kernels
        self._config = config
        self._kv_bytes = kv_bytes

    def at(self, key: Key, place: _Place) -> Estimate:
        program = self._programs[key]
        times: dict[str, KernelTime] = self._kernels.of_step(**place._asdict())
        return Estimate(
            walked=walk(program.module, self._kernels.rates, times), roofline_s=self._roofline_s(program, place, key)
        )

    def _roofline_s(self, program: StepProgram, place: _Place, key: Key) -> float:
        """Weights and the KV attended to are read once, new KV is written once."""
        config = self._config
        tokens, start, rows, context = place
        attended = tokens * start + tokens * (tokens + 1) // 2 + rows * (context + 1)
        flop = (
            max(program.flop - self._score_flop(tokens), 0)
            + 4 * attended * config.num_heads * config.head_dim * config.num_layers
        )
        read = (start + tokens if tokens else 0) + rows * (context + 1)
        # Of the embedding only the tokens' rows are read. It is also the output matrix where both are tied.
        looked_up = key.kind != "sample" and not config.tie_word_embeddings
        embedding = config.vocab_size * config.hidden_size * self._itemsize if looked_up else 0
        # A prefill step has the output matrix only for prompts that are scored.
        head = embedding if key.kind == "prefill" else 0
        num_bytes = program.weights_bytes - embedding - head + (read + tokens + rows) * self._kv_bytes
        return self._kernels.rates.roofline_s(flop, num_bytes)

    def _score_flop(self, tokens: int) -> int:
        """What XLA counts for the one block of prompt tokens that a step with prompts would score."""
        return 2 * min(tokens, SCORE_BLOCK) * self._config.hidden_size * self._config.vocab_size

    @property
    def _itemsize(self) -> int:
        return 4 if self._config.dtype == "float32" else 2


def make_table(found: Estimates, kernels: KernelFigures, part: Slice, config: ModelConfig) -> StepTable:
    """The table. Gathering and inserting cost a page more than the tokens fill, since pages move whole."""
    tokens, rows = _mixed_axes(found.grid.buckets)
    return StepTable(
        model=part.model,
        dtype=config.dtype,
        platform="tpu",
        source="estimated",
        how=part.how,
        max_context_tokens=part.max_context_tokens,
        kv_bytes_per_token=part.kv_bytes_per_token,
        pool_tokens=part.pool_tokens,
        prefill=PrefillTimes(
            tokens=found.grid.buckets.prefill, starts=found.grid.starts, step_s=_seconds(found.prefill)
        ),
        decode=DecodeTimes(rows=found.grid.buckets.decode, contexts=found.grid.contexts, step_s=_seconds(found.decode)),
        mixed=MixedTimes(
            start=MIXED_START,
            context=found.grid.mixed_context,
            tokens=tokens,
            rows=rows,
            step_s=_seconds(found.mixed),
        ),
        gather=_by_page(kernels.gather, kernels.page_size),
        insert=_by_page(kernels.scatter, kernels.page_size),
        transfer=Linear(fixed_s=part.link_latency_s, per_token_s=part.kv_bytes_per_token / part.link_bytes_per_s),
    )


def _mixed_axes(buckets: Buckets) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(sorted({t for t, _ in buckets.mixed})), tuple(sorted({b for _, b in buckets.mixed}))


def _seconds(rows: Sequence[Sequence[Estimate]]) -> tuple[tuple[float, ...], ...]:
    """To the tenth of a microsecond: the estimates are no better."""
    return tuple(tuple(round(each.step_s, 7) for each in row) for row in rows)


def _by_page(page: KernelTime, page_size: int) -> Linear:
    page_s = max(page.issue_s, page.memory_s)
    return Linear(fixed_s=page_s, per_token_s=page_s / page_size)

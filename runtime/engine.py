"""The engine's contract: what a worker actor may ask of one slice, whether a real one or the simulator's fake.

An engine owns a slice's weights, its paged KV pool and its *rows*. A row is the device-side state of one sequence:
its page-table row, its length, its last token and everything the sampler needs. Row and page numbers are handed out
by the worker; the engine never chooses one. Page 0 is the sentinel: padding and overrun writes land there and nobody
reads them. All calls run on the slice's own thread, in order; `dispatch`, `gather`, `insert` and `set_rows` only
enqueue device work, `fetch` and `wait` block.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NewType, Protocol

import msgspec
import numpy as np

from runtime.sampling_params import SamplingParams

SENTINEL_PAGE = 0

KvChunk = NewType("KvChunk", object)
"""Gathered KV of some pages, `[L, pages, K, 2, page, H]` (padded to a page bucket); opaque to actors."""


class EngineSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Fixed sizes of one engine. `num_pages` counts the sentinel; rows are numbered 0..num_rows-1."""

    page_size: int
    num_pages: int
    num_rows: int
    max_context_tokens: int
    vocab_size: int
    chunk_tokens: int
    max_prefill_segments: int
    page_bytes: int

    @property
    def usable_pages(self) -> int:
        """Pages that sequences may own."""
        return self.num_pages - 1

    def pages_for(self, num_tokens: int) -> int:
        """Pages that hold `num_tokens` tokens."""
        return -(-num_tokens // self.page_size)


class RowState(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a row starts from; writing it replaces whatever the row held.

    `prompt` is the prompt as the client sent it and `output` the tokens accepted so far: both feed the penalties, and
    `len(output)` is the index of the next token to sample. `length` tokens have (or, for a row that a prefill of the
    same step sequence fills, will have) KV in `pages`. `last_token` is fed by the next decode step; it is ignored for
    a row that is first sampled by a prefill segment. `mask` is a packed bit mask (see `SamplingParams`) that takes the
    place of `sampling.allowed_mask` in samples that are not deferred.
    """

    row: int
    sampling: SamplingParams
    choice: int
    prompt: tuple[int, ...]
    output: tuple[int, ...]
    pages: tuple[int, ...]
    length: int
    last_token: int
    mask: bytes | None = None


class PrefillSegment(msgspec.Struct, frozen=True, kw_only=True):
    """A chunk of one prompt: `tokens` go to positions `start..start+len(tokens)-1`, KV to `pages`.

    `pages` covers positions 0..start+len(tokens)-1. `sample_rows` is empty unless this chunk ends the prompt; then
    each listed row samples its next token from the chunk's last position. With `score`, the number of alternatives, the
    prompt's own tokens get logprobs (`fetch_scores`): those behind the chunk's tokens, the last of which is
    `next_token`, None where the prompt ends.
    """

    tokens: tuple[int, ...]
    start: int
    pages: tuple[int, ...]
    sample_rows: tuple[int, ...] = ()
    score: int | None = None
    next_token: int | None = None


class PageWrite(msgspec.Struct, frozen=True, array_like=True):
    """One page-table delta: `page` becomes column `column` of `row`'s page-table row."""

    row: int
    column: int
    page: int


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One forward pass: prefill segments and decode rows together (either may be empty).

    Each decode row feeds its last token, writes one KV entry and samples one token. `table` is applied first. A row
    may not appear twice. With `deferred` decode rows are not sampled yet: that is `Engine.sample`'s, which has to be
    called before anything else but `gather`, `insert` and what blocks.
    """

    prefill: tuple[PrefillSegment, ...] = ()
    decode: tuple[int, ...] = ()
    table: tuple[PageWrite, ...] = ()
    deferred: bool = False


class Sampled(msgspec.Struct, frozen=True, kw_only=True):
    """One sampled token; logprobs are log-softmax of the raw float32 logits, present when the row asked for them.

    `top` holds (token id, logprob) pairs, best first, as many as the row asked for.
    """

    row: int
    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Scored(msgspec.Struct, frozen=True, array_like=True):
    """One token of a prompt with its logprob behind the tokens before it, and the likeliest tokens there."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class StepHandle(msgspec.Struct, frozen=True, kw_only=True):
    """A dispatched step. Once it is fetched, every operation up to `fence` is done; `payload` is the engine's own."""

    fence: int
    payload: Any


class Engine(Protocol):
    """One slice. Errors of device work surface in `fetch` and `wait`; after one, only `reset` may be called."""

    @property
    def spec(self) -> EngineSpec:
        """The engine's fixed sizes."""
        ...

    @property
    def fence(self) -> int:
        """Number of the most recently enqueued device operation of any kind; 0 before the first."""
        ...

    def set_rows(self, rows: Sequence[RowState]) -> None:
        """Writes row state on the device, ordered after every earlier dispatch."""
        ...

    def dispatch(self, step: Step) -> StepHandle:
        """Enqueues one forward pass and its sampling; never waits for the device."""
        ...

    def fetch(self, handle: StepHandle) -> tuple[Sampled, ...]:
        """Blocks until the step is done. Order: sample rows of each prefill segment, then decode rows."""
        ...

    def sample(self, handle: StepHandle, masks: Mapping[int, bytes]) -> StepHandle:
        """Enqueues the sampling of a deferred step's decode rows and returns the handle to fetch; never waits.

        `masks` are packed bit masks by row, which take the place of the rows' own; other rows keep theirs. The step's
        forward pass runs while the host computes them.
        """
        ...

    def fetch_scores(self, handle: StepHandle) -> tuple[tuple[Scored, ...], ...]:
        """Blocks until the step is done; one tuple for each of its segments with `score`, in their order."""
        ...

    def gather(self, pages: Sequence[int]) -> KvChunk:
        """Enqueues a copy of the pages of all layers; the pages may be rewritten by anything dispatched later."""
        ...

    def insert(self, chunk: KvChunk, source: Sequence[int], pages: Sequence[int]) -> None:
        """Enqueues writing page `source[i]` of the chunk to pool page `pages[i]`; the chunk lives on this slice."""
        ...

    def checksum(self, chunk: KvChunk) -> tuple[int, ...]:
        """Blocks until the chunk is complete; one number for each of its pages and each kv head of the model.

        They are the same on every slice that holds the chunk, however its heads lie on the devices. Only with
        `--verify-kv`.
        """
        ...

    def wait(self) -> int:
        """Blocks until all enqueued work is done; returns the highest fence handed out so far."""
        ...

    def reset(self) -> None:
        """Rebuilds pool and rows empty after a failed step. Weights and compiled programs stay."""
        ...


class ChunkVanished(Exception):
    """The mover stands for a way on which chunks vanish: this one will not arrive, and nobody is to be told."""


class KvMover(Protocol):
    """Moves a chunk onto another engine's slice; runs in the transfer actor's threads."""

    def move(self, chunk: KvChunk, target: str) -> KvChunk:
        """Returns the chunk on slice `target`, after the copy is done. The source chunk is left alone.

        Raises ChunkVanished, or whatever made the copy fail.
        """
        ...


def as_int32(tokens: Sequence[int]) -> np.ndarray:
    """Token ids as a fresh int32 array."""
    return np.asarray(tokens, dtype=np.int32)

"""Chunked prefill attention as a Pallas TPU kernel.

The work is a list of *query blocks*, each at most `query_tokens` tokens of one sequence and the query heads of
`kv_heads` kv heads; a block walks the pages of its own context. The G query heads of a kv head are rows of one matrix
(row = token * G + head of the group), so a block's scores for a kv head are one product [rows, H] x [H, keys].

A query block takes the blocks of `key_tokens` keys in two loops:

* The *masked* ones first: those on the causal diagonal, at the ragged end and at the window's lower edge, with the
  usual online softmax (Milakov and Gimelshein, 2018). They leave in `peak` the highest score that each row has seen,
  its own key's at least.
* The *unmasked* ones, the bulk of a long context, keep that peak as the softmax's reference. Softmax does not depend on
  it, so a score needs no maximum, no reduction and no rescaling on its way from one matrix product to the other, and
  never goes to memory. What could go wrong is overflow, where a row's later weights are 2 ** 64 times those of its
  masked blocks. That shows in the row's sum, looked at once at the end of the query block; such a query block is
  computed again, all of it in the masked loop, for about twice the time.

Pages, queries and page-table rows come by DMA: pages double-buffered, always one block of keys ahead, across query
blocks, sequences and passes over the kv heads.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels.checks import require
from kernels.chunked_prefill.tuning import MIN_KEY_TOKENS, QUERY_TOKEN_MULTIPLE, PrefillConfig, PrefillKey, choose
from kernels.kv_pool import PoolDims, pool_dims
from kernels.softmax import MASKED

LANES = 128
LANE_BITS = 7
ROW_CHUNK = 512
"""Rows whose scores are computed together: one stream through the matrix unit against the same keys."""
NATIVE_ROWS = 8
"""Rows of the largest native tile in HBM."""
KEY_STEP = 256
"""Keys whose scores are computed together: the width of the matrix unit."""
PREPARED_ROWS = 512
"""About as many rows of queries or results are laid out anew at a time."""
SUM_LIMIT = 2.0**64
"""A row with a sum of exponentials beyond this is too far above its reference. It leaves room for the products with
values of any sane size."""
MAX_ROWS = 4096
"""Rows of a query block for one kv head: below that a row's token is found without a division."""
VMEM_SLACK_BYTES = 12 << 20
"""For what the compiler keeps beside the scratch."""
LOG2_E = math.log2(math.e)


class Layout(NamedTuple):
    """Static sizes of a call: G query heads per kv head; rows of q that form a tile in HBM, `[.., pack, width]`; lanes
    of a row; sequences; flat tokens.
    """

    pool: PoolDims
    group: int
    pack: int
    width: int
    num_sequences: int
    num_tokens: int


class Block(NamedTuple):
    """A query block, scalars: pass over the kv heads, sequence, first flat token, slot of its page-table row."""

    part: jax.Array
    sequence: jax.Array
    token: jax.Array
    row_slot: jax.Array


class Source(NamedTuple):
    """Which pages to fetch, scalars: block number `block` of the keys, by the page-table row in `row_slot`, for the kv
    heads of pass `part`; columns outside first..last have no live keys.
    """

    part: jax.Array
    row_slot: jax.Array
    block: jax.Array
    first_column: jax.Array
    last_column: jax.Array


class Walk(NamedTuple):
    """The blocks of keys of a query block, scalars: [low, end) in units of key_tokens, of which [full_low, full_high)
    need no mask; `position` of the block's first query, `num_tokens`, and keys [begin, stop) that it sees at all.
    """

    num_tokens: jax.Array
    position: jax.Array
    begin: jax.Array
    stop: jax.Array
    low: jax.Array
    full_low: jax.Array
    full_high: jax.Array
    end: jax.Array

    @property
    def num_masked(self) -> jax.Array:
        """Visits of the masked loop, which come first."""
        return (self.end - self.full_high) + (self.full_low - self.low)

    @property
    def num_visits(self) -> jax.Array:
        """Visits of both loops."""
        return self.end - self.low

    def visited(self, visit: jax.Array | int) -> jax.Array:
        """Which block of keys comes at `visit`: the diagonal, the window's lower edge, the unmasked ones."""
        above = self.end - self.full_high
        edge = self.full_low - self.low
        masked = jnp.where(visit < above, self.full_high + visit, self.low + visit - above)
        return jnp.where(visit < above + edge, masked, self.full_low + visit - above - edge)

    def all_masked(self) -> "Walk":
        """The same keys, without relying on a reference."""
        return self._replace(full_low=self.low, full_high=self.low)


class Progress(NamedTuple):
    """Between query blocks, scalars: the next one, the slot that its first pages go to, whether they have been sent
    for, and how many tokens of the last one's result are on their way to HBM.
    """

    block: Block
    kv_slot: jax.Array
    is_sent: jax.Array
    o_pending: jax.Array


class Attempt(NamedTuple):
    """Of computing one query block, scalars: how it walks, what `Progress` says, whether it failed once, whether it is
    done.
    """

    walk: Walk
    kv_slot: jax.Array
    is_sent: jax.Array
    o_pending: jax.Array
    is_second: jax.Array
    is_done: jax.Array


def piece_tokens(query_tokens: int, group: int) -> int:
    """Tokens whose queries or results are laid out anew at a time; divides `query_tokens`."""
    fitting = [size for size in (32, 64, 128, 256, 512) if size * group <= PREPARED_ROWS]
    return max([16, *(size for size in fitting if query_tokens % size == 0)])


def chunks(total: int, size: int) -> list[tuple[int, int]]:
    """(start, length) of pieces of at most `size`."""
    return [(start, min(size, total - start)) for start in range(0, total, size)]


def prefill_kernel(
    # Scalar prefetch
    cu_q_lens: Any,  # int32[R + 1]
    context_lens: Any,  # int32[R]
    # Inputs in HBM
    q_hbm: Any,  # [T, K, G / pack, pack, H]
    kv_hbm: Any,  # a layer's pool
    table_hbm: Any,  # int32[R, W / 128, 128]
    # Output in HBM
    o_hbm: Any,  # like q_hbm
    # Scratch
    q_in: Any,  # [kv_heads, query_tokens, G / pack, pack, H]
    o_out: Any,  # like q_in
    kv: Any,  # [2, kv_heads, 2, key_tokens, H] or side by side
    rows: Any,  # SMEM int32[2, W / 128, 128]
    q: Any,  # [kv_heads, rows, H] as multiplied
    peak: Any,  # float32[kv_heads, rows, 128], the same in all lanes
    total: Any,  # float32[kv_heads, rows, 128], sums over every 128th key
    weighted: Any,  # float32[kv_heads, rows, H]
    ahead: Any,  # int32[rows, 128]: token of the row in its block, less the lane
    q_sem: Any,
    o_sem: Any,
    kv_sems: Any,
    row_sems: Any,
    *,
    layout: Layout,
    config: PrefillConfig,
    scale: float,
    sliding_window: int | None,
    soft_cap: float | None,
) -> None:
    """See the module's text."""
    pool, group = layout.pool, layout.group
    page_size, key_tokens, num_heads = pool.page_size, config.key_tokens, config.kv_heads
    num_parts = pool.num_kv_heads // num_heads
    num_rows = config.query_tokens * group
    pages_per_block = key_tokens // page_size
    key_step = min(KEY_STEP, key_tokens)
    prepared_tokens = piece_tokens(config.query_tokens, group)
    num_live = cu_q_lens[layout.num_sequences]
    precision = lax.Precision.HIGHEST if q.dtype == jnp.float32 else None

    def sequence_of(token: jax.Array, sequence: jax.Array | int) -> jax.Array:
        """The sequence at or after `sequence` that has flat token `token` (one of them has)."""
        found: jax.Array = lax.while_loop(lambda r: cu_q_lens[r + 1] <= token, lambda r: r + 1, jnp.int32(sequence))
        return found

    def block_from(part: jax.Array, token: jax.Array, block: Block) -> Block:
        """The query block at flat token `token`, after `block`; one past the last token is the next pass's first."""
        wraps = token >= num_live
        token = jnp.where(wraps, 0, token)
        sequence = sequence_of(token, jnp.where(wraps, 0, block.sequence))
        part = part + wraps.astype(jnp.int32)
        moved = (sequence != block.sequence) | wraps
        return Block(part, sequence, token, jnp.where(moved, 1 - block.row_slot, block.row_slot))

    def walk_of(block: Block) -> Walk:
        left = cu_q_lens[block.sequence + 1] - block.token
        num_tokens = jnp.minimum(left, config.query_tokens)
        position = context_lens[block.sequence] - left
        stop = position + num_tokens
        begin = full_low = jnp.int32(0)
        if sliding_window is not None:
            begin = jnp.maximum(position - (sliding_window - 1), 0)
            full_low = pl.cdiv(jnp.maximum(stop - sliding_window, 0), key_tokens)
        low, full_high, end = lax.div(begin, key_tokens), lax.div(position, key_tokens), pl.cdiv(stop, key_tokens)
        none = full_high <= full_low
        full_low, full_high = jnp.where(none, low, full_low), jnp.where(none, low, full_high)
        return Walk(num_tokens, position, begin, stop, low, full_low, full_high, end)

    def row_copy(block: Block) -> Any:
        slot = block.row_slot
        return pltpu.make_async_copy(table_hbm.at[block.sequence], rows.at[slot], row_sems.at[slot])

    def q_copies(block: Block, num_tokens: jax.Array) -> list[Any]:
        at = pl.ds(block.token, num_tokens)
        heads = [(q_hbm.at[at, block.part * num_heads + k], q_in.at[k, pl.ds(0, num_tokens)]) for k in range(num_heads)]
        return [pltpu.make_async_copy(source, target, q_sem) for source, target in heads]

    def o_copies(part: jax.Array, token: jax.Array, num_tokens: jax.Array) -> list[Any]:
        at = pl.ds(token, num_tokens)
        heads = [(o_out.at[k, pl.ds(0, num_tokens)], o_hbm.at[at, part * num_heads + k]) for k in range(num_heads)]
        return [pltpu.make_async_copy(source, target, o_sem) for source, target in heads]

    def source_of(block: Block, walk: Walk, index: jax.Array) -> Source:
        first, last = lax.div(walk.begin, page_size), lax.div(walk.stop - 1, page_size)
        return Source(block.part, block.row_slot, index, first, last)

    def start_pages(source: Source, slot: jax.Array) -> None:
        """One DMA per page. Columns without live keys repeat the nearest that has some."""
        heads = pl.ds(source.part * num_heads, num_heads)
        before_tokens = (slice(None),) * (1 if pool.side_by_side else 2)
        for j in range(pages_per_block):
            column = jnp.clip(source.block * pages_per_block + j, source.first_column, source.last_column)
            page = rows[source.row_slot, column >> LANE_BITS, column & (LANES - 1)]
            target = kv.at[(slot, *before_tokens, pl.ds(j * page_size, page_size))]
            pltpu.make_async_copy(kv_hbm.at[page, heads], target, kv_sems.at[slot]).start()

    def wait_pages(slot: jax.Array) -> None:
        whole: Any = kv.at[slot]
        copy: Any = pltpu.make_async_copy(whole, whole, kv_sems.at[slot])
        copy.wait()  # for all pages at once

    def load_keys(slot: jax.Array, k: int, at: Any) -> tuple[jax.Array, jax.Array]:
        """Keys and values, each [key_step, H]; side by side both are the same 128 lanes."""
        if pool.side_by_side:
            both = kv[slot, k, at]
            return both, both
        return kv[slot, k, 0, at], kv[slot, k, 1, at]

    def scores_of(k: int, at: Any, key: jax.Array) -> jax.Array:
        """float32 [rows, keys], in powers of two."""
        product = lax.dot_general(
            q[k, at], key, (((1,), (1,)), ((), ())), precision=precision, preferred_element_type=jnp.float32
        )
        if soft_cap is None:
            return product * (scale * LOG2_E)
        return jnp.tanh(product * (scale / soft_cap)) * (soft_cap * LOG2_E)

    def times_values(weights: jax.Array, value: jax.Array) -> jax.Array:
        return jnp.dot(weights.astype(value.dtype), value, precision=precision, preferred_element_type=jnp.float32)

    def by_lanes(x: jax.Array) -> list[jax.Array]:
        return [x[:, at : at + LANES] for at in range(0, x.shape[1], LANES)]

    def attend_masked(slot: jax.Array, index: jax.Array, walk: Walk) -> None:
        """Merges the live keys of block `index`, in `slot`, with an online softmax, `key_step` keys at a time."""
        block_key = index * key_tokens

        def merge_step(step: jax.Array, _: None) -> None:
            at = pl.ds(pl.multiple_of(step * key_step, key_step), key_step)
            first_key = block_key + step * key_step
            for k in range(num_heads):
                key, value = load_keys(slot, k, at)
                keys = first_key + lax.broadcasted_iota(jnp.int32, value.shape, 0)
                live = (keys >= walk.begin) & (keys < walk.stop)
                key, value = (jnp.where(live, x, jnp.zeros_like(x)) for x in (key, value))
                for start, size in chunks(num_rows, ROW_CHUNK):
                    merge_rows(k, pl.ds(start, size), key, value, first_key - walk.position)

        def merge_rows(k: int, at: Any, key: jax.Array, value: jax.Array, offset: jax.Array) -> None:
            masked = []
            for j, score in enumerate(by_lanes(scores_of(k, at, key))):
                distance = offset + j * LANES  # of lane 0's key from the block's first query
                seen = ahead[at] >= distance
                if sliding_window is not None:
                    seen &= ahead[at] < distance + sliding_window
                masked.append(jnp.where(seen, score, MASKED))
            highest = functools.reduce(jnp.maximum, masked).max(axis=1, keepdims=True)
            before = peak[k, at]
            after = jnp.maximum(before, highest)
            decay = jnp.exp2(before - after)
            weights = [jnp.exp2(score - after) for score in masked]
            peak[k, at] = after
            total[k, at] = total[k, at] * decay + functools.reduce(jnp.add, weights)
            product = times_values(jnp.concatenate(weights, axis=1), value)
            for j in range(0, layout.width, LANES):
                lanes = pl.ds(j, LANES)
                weighted[k, at, lanes] = weighted[k, at, lanes] * decay + product[:, j : j + LANES]

        first = lax.div(jnp.maximum(walk.begin - block_key, 0), key_step)
        lax.fori_loop(first, pl.cdiv(jnp.minimum(walk.stop - block_key, key_tokens), key_step), merge_step, None)

    def attend_unmasked(slot: jax.Array) -> None:
        """Merges all keys of the block in `slot`, with the peaks of the masked blocks as reference."""
        for k in range(num_heads):
            for start, size in chunks(key_tokens, key_step):
                key, value = load_keys(slot, k, pl.ds(start, size))
                for row, length in chunks(num_rows, ROW_CHUNK):
                    at = pl.ds(row, length)
                    reference = peak[k, at]
                    weights = [jnp.exp2(score - reference) for score in by_lanes(scores_of(k, at, key))]
                    total[k, at] += functools.reduce(jnp.add, weights)
                    weighted[k, at] += times_values(jnp.concatenate(weights, axis=1), value)

    def prepared(index: jax.Array) -> tuple[Any, Any]:
        """Tokens and rows of piece `index` of the queries or results that are laid out anew at a time."""
        token = pl.multiple_of(index * prepared_tokens, prepared_tokens)
        row = pl.multiple_of(token * group, prepared_tokens * group)
        return pl.ds(token, prepared_tokens), pl.ds(row, prepared_tokens * group)

    def prepare_queries(walk: Walk) -> None:
        """Lays the block's queries out as rows, zeros past its end, and makes their sums empty."""

        def clear(token: jax.Array, _: None) -> None:
            q_in[:, pl.ds(token, 1)] = jnp.zeros((num_heads, 1, *q_in.shape[2:]), q_in.dtype)

        def lay_out(index: jax.Array, _: None) -> None:
            tokens, at = prepared(index)
            for k in range(num_heads):
                q[k, at] = q_in[k, tokens].reshape(prepared_tokens * group, layout.width).astype(q.dtype)
                empty(k, at)

        lax.fori_loop(walk.num_tokens, config.query_tokens, clear, None)
        lax.fori_loop(0, config.query_tokens // prepared_tokens, lay_out, None)

    def empty(k: int, at: Any) -> None:
        """Makes rows `at` ones that have seen no key."""
        peak[k, at] = jnp.full((at.size, LANES), MASKED, jnp.float32)
        total[k, at] = jnp.zeros((at.size, LANES), jnp.float32)
        weighted[k, at] = jnp.zeros((at.size, layout.width), jnp.float32)

    def number_rows() -> None:
        """Fills `ahead`, once for all blocks."""
        row = lax.broadcasted_iota(jnp.int32, (num_rows, LANES), 0)
        token = (row * -(-(1 << 16) // group)) >> 16  # row // group, exact below MAX_ROWS
        ahead[...] = token - lax.broadcasted_iota(jnp.int32, (num_rows, LANES), 1)

    def finish() -> jax.Array:
        """Writes the block's result to `o_out`; False if a row is too far above its reference to be trusted."""

        def lay_out(index: jax.Array, highest: jax.Array) -> jax.Array:
            tokens, at = prepared(index)
            for k in range(num_heads):
                sums = total[k, at].sum(axis=1, keepdims=True)  # at least 1, from the peak
                out = weighted[k, at] * (1 / sums)
                o_out[k, tokens] = out.astype(o_out.dtype).reshape(prepared_tokens, *o_out.shape[2:])
                highest = jnp.maximum(highest, jnp.max(total[k, at], axis=0, keepdims=True))
            return highest

        nothing = jnp.zeros((1, LANES), jnp.float32)
        highest = lax.fori_loop(0, config.query_tokens // prepared_tokens, lay_out, nothing)
        return jnp.max(highest) < SUM_LIMIT

    def run_block(state: Progress) -> Progress:
        """Computes a query block. On the way the next one's queries, table row and first pages are sent for."""
        block = state.block
        walk = walk_of(block)
        following = block_from(block.part, block.token + walk.num_tokens, block)
        exists = following.part < num_parts
        following_walk = walk_of(following)
        moves = exists & (following.row_slot != block.row_slot)

        @pl.when(moves)
        def _() -> None:
            row_copy(following).start()

        for copy in q_copies(block, walk.num_tokens):
            copy.wait()
        prepare_queries(walk)

        @pl.when(exists)
        def _() -> None:
            for copy in q_copies(following, following_walk.num_tokens):
                copy.start()

        def visits(attend: Any, state: Attempt, first: jax.Array, end: jax.Array, slot: jax.Array) -> jax.Array:
            """Visits first..end-1 of the walk, whose pages go to `slot` and its twin in turn; before each, the pages of
            the one after it are sent for, be it the next query block's first.
            """
            walk = state.walk

            def visit(number: jax.Array, slot: jax.Array) -> jax.Array:
                last = number + 1 == walk.num_visits

                @pl.when(last & moves & jnp.logical_not(state.is_second))
                def _() -> None:
                    row_copy(following).wait()

                @pl.when(jnp.logical_not(last) | exists)
                def _() -> None:
                    own = source_of(block, walk, walk.visited(number + 1))
                    other = source_of(following, following_walk, following_walk.visited(0))
                    start_pages(Source(*(jnp.where(last, b, a) for a, b in zip(own, other, strict=True))), 1 - slot)

                wait_pages(slot)
                attend(slot, walk.visited(number))
                return 1 - slot

            end_slot: jax.Array = lax.fori_loop(first, end, visit, slot)
            return end_slot

        def attempt(state: Attempt) -> Attempt:
            walk, slot = state.walk, state.kv_slot

            @pl.when(jnp.logical_not(state.is_sent))
            def _() -> None:
                start_pages(source_of(block, walk, walk.visited(0)), slot)

            @pl.when(state.is_second)
            def start_over() -> None:
                for k in range(num_heads):
                    empty(k, pl.ds(0, num_rows))

            zero = jnp.int32(0)
            slot = visits(lambda s, b: attend_masked(s, b, walk), state, zero, walk.num_masked, slot)
            slot = visits(lambda s, _: attend_unmasked(s), state, walk.num_masked, walk.num_visits, slot)
            wait_output(state.o_pending)
            again = jnp.logical_not(finish()) & (walk.num_masked < walk.num_visits)

            @pl.when(again & exists)
            def drop_pages() -> None:
                wait_pages(slot)  # the next query block's; they come again

            return Attempt(walk.all_masked(), slot, no, zero, is_second=yes, is_done=jnp.logical_not(again))

        no, yes = jnp.bool_(False), jnp.bool_(True)
        first = Attempt(walk, state.kv_slot, state.is_sent, state.o_pending, is_second=no, is_done=no)
        final: Attempt = lax.while_loop(lambda a: jnp.logical_not(a.is_done), attempt, first)
        for copy in o_copies(block.part, block.token, walk.num_tokens):
            copy.start()
        return Progress(following, final.kv_slot, is_sent=yes, o_pending=walk.num_tokens)

    def wait_output(num_tokens: jax.Array) -> None:
        """Waits until `o_out`, of which `num_tokens` tokens were sent, may be written again."""

        @pl.when(num_tokens > 0)
        def _() -> None:
            for copy in o_copies(jnp.int32(0), jnp.int32(0), num_tokens):
                copy.wait()

    def run_blocks() -> None:
        number_rows()
        first = Block(jnp.int32(0), sequence_of(jnp.int32(0), 0), jnp.int32(0), jnp.int32(0))
        walk = walk_of(first)
        row_copy(first).start()
        for copy in q_copies(first, walk.num_tokens):
            copy.start()
        row_copy(first).wait()
        start = Progress(first, jnp.int32(0), is_sent=jnp.bool_(False), o_pending=jnp.int32(0))
        final: Progress = lax.while_loop(lambda state: state.block.part < num_parts, run_block, start)
        wait_output(final.o_pending)

    def clear_padding() -> None:
        """Zeros for the tokens that belong to no sequence."""
        o_out[...] = jnp.zeros_like(o_out)
        num_padding = layout.num_tokens - num_live

        def clear(index: jax.Array, _: None) -> None:
            token = index * config.query_tokens
            size = jnp.minimum(num_padding - token, config.query_tokens)
            for part in range(num_parts):
                copies = o_copies(jnp.int32(part), num_live + token, size)
                for copy in copies:
                    copy.start()
                for copy in copies:
                    copy.wait()

        lax.fori_loop(0, pl.cdiv(num_padding, config.query_tokens), clear, None)

    pl.when(num_live > 0)(run_blocks)
    pl.when(num_live < layout.num_tokens)(clear_padding)


def scratch_shapes(layout: Layout, config: PrefillConfig, table_rows: int, q_dtype: Any, dtype: Any) -> list[Any]:
    """The kernel's scratch, in its order; q and o travel as `q_dtype`, the pool holds `dtype`."""
    pool, heads = layout.pool, config.kv_heads
    rows = config.query_tokens * layout.group
    tiles = (heads, config.query_tokens, layout.group // layout.pack, layout.pack, layout.width)
    keys = (2, heads, *(() if pool.side_by_side else (2,)), config.key_tokens, layout.width)
    return [
        pltpu.VMEM(tiles, q_dtype),
        pltpu.VMEM(tiles, q_dtype),
        pltpu.VMEM(keys, dtype),
        pltpu.SMEM((2, table_rows, LANES), jnp.int32),
        pltpu.VMEM((heads, rows, layout.width), dtype),
        pltpu.VMEM((heads, rows, LANES), jnp.float32),
        pltpu.VMEM((heads, rows, LANES), jnp.float32),
        pltpu.VMEM((heads, rows, layout.width), jnp.float32),
        pltpu.VMEM((rows, LANES), jnp.int32),
        pltpu.SemaphoreType.DMA,
        pltpu.SemaphoreType.DMA,
        pltpu.SemaphoreType.DMA((2,)),
        pltpu.SemaphoreType.DMA((2,)),
    ]


def vmem_bytes(scratch: list[Any]) -> int:
    """VMEM of the scratch and of what the compiler keeps beside it."""
    arrays = [s for s in scratch if getattr(s, "memory_space", None) == pltpu.VMEM]
    total: int = sum(math.prod(s.shape) * jnp.dtype(s.dtype).itemsize for s in arrays)
    return total + VMEM_SLACK_BYTES


def check_config(config: PrefillConfig, group: int, pool: PoolDims) -> None:
    """Refuses block sizes that the kernel cannot use."""
    rows = config.query_tokens * group
    require(
        config.query_tokens % QUERY_TOKEN_MULTIPLE == 0 and 0 < rows <= MAX_ROWS,
        f"{config} needs query_tokens that are a multiple of {QUERY_TOKEN_MULTIPLE} and, times the {group} query heads "
        f"of a kv head, at most {MAX_ROWS}",
    )
    smallest = max(pool.page_size, MIN_KEY_TOKENS)
    power_of_two = config.key_tokens.bit_count() == 1
    require(power_of_two and config.key_tokens >= smallest, f"{config} needs key_tokens of 2 ** n, at least {smallest}")
    require(
        config.kv_heads > 0 and pool.num_kv_heads % config.kv_heads == 0,
        f"{config} needs kv_heads that divide the {pool.num_kv_heads} kv heads",
    )


def chunked_prefill(
    q: jax.Array,
    kv_pages: jax.Array,
    page_table: jax.Array,
    cu_q_lens: jax.Array,
    context_lens: jax.Array,
    *,
    scale: float,
    sliding_window: int | None,
    soft_cap: float | None,
    interpret: Any = False,
    config: PrefillConfig | None = None,
) -> jax.Array:
    """See `kernels.chunked_prefill.chunked_prefill`; `config` None takes the tuning table's.

    `interpret` is what `pallas_call` takes. A uint16 pool must have been reinterpreted as bfloat16. In `jax.shard_map`
    (each device with its own kv heads and their query heads) it needs check_vma=False, as any pallas_call that does
    not name the mesh's axes.

    q and o are read and written in tiles of a group's heads that any token can start. Where the device's heads are a
    multiple of 8 and the group is too, or the head dim is 128 and the group even, that is how XLA keeps q; otherwise a
    call copies q and o (to VMEM if they fit): in float32 for an odd group, to 128 lanes for head dim 64.
    """
    num_tokens, num_heads, head_dim = q.shape
    pool = pool_dims(kv_pages.shape)
    group = num_heads // pool.num_kv_heads
    if config is None:
        key = PrefillKey(group, pool.num_kv_heads, head_dim, q.dtype.itemsize)
        config = choose(key, num_tokens, pool.page_size, page_table.shape[1])
    check_config(config, group, pool)
    # The heads of a group come and go in native tiles of `pack` rows, so that a DMA may start at any token. bfloat16
    # rows come in pairs, so the rows of an odd group come as float32.
    pack = math.gcd(group, NATIVE_ROWS)
    q_dtype = jnp.dtype(jnp.float32) if pack == 1 else q.dtype
    width = max(head_dim, LANES)
    layout = Layout(pool, group, pack, width, cu_q_lens.shape[0] - 1, num_tokens)
    tiles = (num_tokens, pool.num_kv_heads, group // pack, pack, width)
    q_tiles = jnp.pad(q.astype(q_dtype), ((0, 0), (0, 0), (0, width - head_dim))).reshape(tiles)
    columns = -(-page_table.shape[1] // LANES) * LANES
    table = jnp.pad(page_table, ((0, 0), (0, columns - page_table.shape[1])))
    table = table.reshape(page_table.shape[0], columns // LANES, LANES)
    scratch = scratch_shapes(layout, config, columns // LANES, q_dtype, kv_pages.dtype)
    anywhere = pl.BlockSpec(memory_space=pl.ANY)
    struct: Any = jax.ShapeDtypeStruct
    out: jax.Array = pl.pallas_call(
        functools.partial(
            prefill_kernel,
            layout=layout,
            config=config,
            scale=scale,
            sliding_window=sliding_window,
            soft_cap=soft_cap,
        ),
        out_shape=struct(tiles, q_dtype),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(1,),
            in_specs=[anywhere, anywhere, anywhere],
            out_specs=anywhere,
            scratch_shapes=scratch,
        ),
        compiler_params=pltpu.CompilerParams(vmem_limit_bytes=vmem_bytes(scratch), disable_bounds_checks=True),
        interpret=interpret,
        name="chunked_prefill",
    )(cu_q_lens, context_lens, q_tiles, kv_pages, table)
    # Side by side the values are the upper lanes of the product.
    return out.reshape(num_tokens, num_heads, width)[..., width - head_dim :].astype(q.dtype)

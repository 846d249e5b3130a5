"""Paged decode attention as a Pallas TPU kernel.

Decode reads every live page once and does little with it, so the kernel's aim is that the memory never waits. One
program walks over the blocks (a few pages each) of all sequences as if they were one list. While it attends to a block,
the pages of the next one, which may belong to another sequence, are on their way into the other half of the buffer.
Here b0 has three blocks, b2 is empty, b3 has two, b1 and b4 have one:

    attended to              | b0.0 | b0.1 | b0.2 | b1.0 | b3.0 | b3.1 | b4.0
    pages on their way       | b0.1 | b0.2 | b1.0 | b3.0 | b3.1 | b4.0 |
    table row on its way     | b3                 | b4   |

* The page table stays where it is. A sequence's row comes to scalar memory two sequences ahead, as far as its context
  goes, so that scalar memory holds three rows however large the batch is.
* Only pages with a live position are fetched. If a block has dead positions, zeros are stored over their values, for a
  weight of 0 does not hide a NaN; their scores become -inf.
* The pool is head-major, so a page is one contiguous copy, and keys and values of a head are whole tiles.
* Keys and values are what is pushed into the matrix units, the few queries stream through: pushing is what bounds the
  inner loop. Exponentials are base 2.
* Queries and results pass through VMEM some sequences at a time, by Pallas' own pipeline.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.typing import DTypeLike

from kernels.kv_pool import pool_dims
from kernels.paged_decode.tuning import DecodeConfig, choose_config
from kernels.softmax import MASKED

LANES = 128
LOG2_E = math.log2(math.e)
VMEM_SLACK_BYTES = 4 << 20
CLEARED_TOKENS = 128
"""Dead values are cleared in parts of about this size."""
SCORES_AHEAD = 2
"""Heads whose scores are under way before a head's values are needed: the matrix units work while one head's softmax
goes through its steps."""
TABLE_SLOTS = 3
SLOT, TABLE_SLOT, NEXT_ROW, CURSOR_SIZE = range(4)
"""What passes from one sequence to the next, in scalar memory: the half of the page buffer that its first block comes
into, the part of the table buffer with its row, and the sequence after it."""


class Blocks(NamedTuple):
    """A sequence's blocks, start..end-1, its live positions, low..length-1, and its row's place in the table buffer."""

    start: Any
    end: Any
    low: Any
    length: Any
    table: Any


class Statics(NamedTuple):
    """What is fixed when the kernel is traced."""

    num_rows: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    page_size: int
    side_by_side: bool
    pages_per_block: int
    rows_per_step: int
    table_width: int
    scale: float
    window: int | None
    soft_cap: float | None

    @property
    def block_tokens(self) -> int:
        """Positions of one block."""
        return self.pages_per_block * self.page_size

    @property
    def group(self) -> int:
        """Query heads of one kv head."""
        return self.num_heads // self.num_kv_heads

    def keys(self, page: Any, head: int) -> tuple[Any, ...]:
        """Index of the keys of `page` (a number or slice) and head in a block of pages."""
        return (page, head) if self.side_by_side else (page, head, 0)

    def values(self, page: Any, head: int) -> tuple[Any, ...]:
        """The same for the values."""
        return (page, head) if self.side_by_side else (page, head, 1)


def _divide(dividend: Any, divisor: int) -> Any:
    """Quotient of a number that is not negative, without the instructions that a sign would cost."""
    if divisor & (divisor - 1) == 0:
        return lax.shift_right_logical(dividend, jnp.int32(divisor.bit_length() - 1))
    return lax.div(dividend, jnp.int32(divisor))


def _ceil_divide(dividend: Any, divisor: int) -> Any:
    return _divide(dividend + (divisor - 1), divisor)


def _spread(column: jax.Array, width: int) -> jax.Array:
    """A column that fills the lanes, `[G, LANES]`, as `[G, width]`."""
    return jnp.tile(column, (1, width // LANES)) if width % LANES == 0 else column[:, :1]


def _product(left: jax.Array, right: jax.Array, contract: tuple[int, int]) -> jax.Array:
    """A product over one axis of each with a float32 result; float32 operands are multiplied as float32."""
    precision = lax.Precision.HIGHEST if right.dtype == jnp.float32 else None
    axes = (((contract[0],), (contract[1],)), ((), ()))
    out: jax.Array = lax.dot_general(left, right, axes, precision=precision, preferred_element_type=jnp.float32)
    return out


def _kernel(
    # Prefetched scalars
    context_lens: Any,  # int32[B]
    # Inputs
    q_ref: Any,  # [rows_per_step, N, H]
    kv_hbm: Any,  # the pool
    table_hbm: Any,  # int32[B, table_width]
    # Output
    out_ref: Any,  # [rows_per_step, N, H]
    # Scratch: the running softmax, float32, and what is in flight
    peak_ref: Any,  # [K, G, LANES], every lane the same
    total_ref: Any,  # [K, G, LANES], every lane the same
    weighted_ref: Any,  # [K, G, width of a page's rows]
    kv_buffer: Any,  # [2, pages_per_block, ...page]
    table_buffer: Any,  # int32[TABLE_SLOTS * table_width], scalar memory: there a flat index is the cheapest
    cursor: Any,  # int32[CURSOR_SIZE], scalar memory
    kv_semaphores: Any,  # one for each half of kv_buffer
    table_semaphores: Any,  # one for each row in table_buffer
    *,
    s: Statics,
) -> None:
    """One grid step: `rows_per_step` sequences. The block in flight passes from one step to the next."""
    step_row = pl.program_id(0) * s.rows_per_step

    def next_live(row: Any) -> Any:
        """The first sequence from `row` on that is not empty, or the number of sequences."""

        def is_empty(row: Any) -> Any:
            return (row < s.num_rows) & (context_lens[jnp.minimum(row, s.num_rows - 1)] == 0)

        return lax.while_loop(is_empty, lambda row: row + 1, row)

    def blocks_of(length: Any, table_slot: Any) -> Blocks:
        low = 0 if s.window is None else jnp.maximum(length - s.window, 0)
        start = 0 if s.window is None else _divide(low, s.block_tokens)
        return Blocks(start, _ceil_divide(length, s.block_tokens), low, length, table_slot * s.table_width)

    def blocks_if_any(row: Any, table_slot: Any) -> Blocks:
        """The same for a sequence that there may not be: it has no blocks."""
        length = context_lens[jnp.minimum(row, s.num_rows - 1)]
        return blocks_of(jnp.where(row < s.num_rows, length, 0), table_slot)

    def table_copy(row: Any, slot: Any) -> Any:
        """Brings the columns of a sequence's context, rounded up to a row of lanes."""
        size = _ceil_divide(context_lens[row], s.page_size * LANES) * LANES
        size = pl.multiple_of(size, LANES)
        target = table_buffer.at[pl.ds(pl.multiple_of(slot * s.table_width, LANES), size)]
        return pltpu.make_async_copy(table_hbm.at[row, pl.ds(0, size)], target, table_semaphores.at[slot])

    def start_table(row: Any, slot: Any) -> None:
        @pl.when(row < s.num_rows)
        def _() -> None:
            table_copy(row, slot).start()

    def wait_table(row: Any, slot: Any) -> None:
        @pl.when(row < s.num_rows)
        def _() -> None:
            table_copy(row, slot).wait()

    def live_range(blocks: Blocks, block: Any) -> tuple[Any, Any]:
        """Live positions of a block: from the first, up to the second; they may reach beyond it."""
        return blocks.low - block * s.block_tokens, blocks.length - block * s.block_tokens

    def live_pages(low: Any, high: Any) -> tuple[Any, Any]:
        """Pages of a block that hold its positions low..high-1."""
        first = 0 if s.window is None else _divide(jnp.maximum(low, 0), s.page_size)
        return first, jnp.minimum(_ceil_divide(high, s.page_size), s.pages_per_block)

    def start_block(slot: Any, table: Any, low: Any, high: Any) -> None:
        """Sends for the pages of a block that hold its positions low..high-1; they are listed at `table`."""
        first, end = live_pages(low, high)
        # All are read before the first copy starts, which the compiler would not move a read across.
        pages = [table_buffer[table + j] for j in range(s.pages_per_block)]
        for j, page in enumerate(pages):

            @pl.when(j < end if s.window is None else (j < end) & (j >= first))
            def _(j: int = j, page: Any = page) -> None:
                pltpu.make_async_copy(kv_hbm.at[page], kv_buffer.at[slot, j], kv_semaphores.at[slot]).start()

    def wait_block(slot: Any, low: Any, high: Any) -> None:
        """Waits for what `start_block` has sent for: once, for as many bytes."""
        first, end = live_pages(low, high)
        arriving = kv_buffer.at[slot, pl.ds(0, end - first)]
        copy: Any = pltpu.make_async_copy(arriving, arriving, kv_semaphores.at[slot])
        copy.wait()

    def clear_dead_values(slot: Any, low: Any, high: Any) -> None:
        """Stores zeros over the values of a block outside its positions low..high-1."""
        pages = min(s.pages_per_block, 1 << max(CLEARED_TOKENS // s.page_size, 1).bit_length() - 1)
        shape = (pages, s.page_size, kv_buffer.shape[-1])
        page, row = (lax.broadcasted_iota(jnp.int32, shape, axis) for axis in (0, 1))

        def clear(part: Any, _: None) -> None:
            position = (part * pages + page) * s.page_size + row
            live = position < high if s.window is None else (position >= low) & (position < high)
            for head in range(s.num_kv_heads):
                at = (slot, *s.values(pl.ds(part * pages, pages), head))
                values = kv_buffer[at]
                kv_buffer[at] = jnp.where(live, values, jnp.zeros_like(values))

        size = pages * s.page_size
        first: Any = _divide(jnp.minimum(high, s.block_tokens), size)
        end: Any = s.block_tokens // size
        if s.window is not None:  # live parts between dead ones are stored as they are
            end = jnp.where(high < s.block_tokens, end, _ceil_divide(jnp.maximum(low, 0), size))
            first = jnp.where(low > 0, 0, first)
        lax.fori_loop(first, end, clear, None)

    def attend_block(block: Any, slot: Any, q: list[jax.Array], mine: Blocks, after: Blocks) -> None:
        """Merges one block, which is on its way into `slot`, into the state and sends for the one after it."""
        is_last = block + 1 == mine.end
        following = jnp.where(is_last, after.start, block + 1)
        table = jnp.where(is_last, after.table, mine.table) + following * s.pages_per_block
        owner = Blocks(*(jnp.where(is_last, theirs, ours) for theirs, ours in zip(after, mine, strict=True)))
        start_block(1 - slot, table, *live_range(owner, following))
        low, high = live_range(mine, block)
        wait_block(slot, low, high)

        @pl.when(high < s.block_tokens if s.window is None else (high < s.block_tokens) | (low > 0))
        def _() -> None:
            clear_dead_values(slot, low, high)

        position = lax.broadcasted_iota(jnp.int32, (s.group, s.block_tokens), 1)
        live = position < high if s.window is None else (position >= low) & (position < high)

        def load(index: tuple[Any, ...]) -> jax.Array:
            array: jax.Array = kv_buffer[(slot, *index)]
            return array.reshape(s.block_tokens, array.shape[-1])

        def scores_of(head: int) -> jax.Array:
            scores = _product(q[head], load(s.keys(slice(None), head)), (1, 1))
            if s.soft_cap is None:
                scores *= s.scale * LOG2_E
            else:
                scores = jnp.tanh(scores * (s.scale / s.soft_cap)) * (s.soft_cap * LOG2_E)
            return jnp.where(live, scores, -jnp.inf)

        def merge(head: int, scores: jax.Array) -> None:
            values = load(s.values(slice(None), head))
            old_peak = peak_ref[head]
            peak = jnp.maximum(old_peak, scores.max(axis=1, keepdims=True))
            weights = jnp.exp2(scores - _spread(peak, s.block_tokens))
            decay = jnp.exp2(old_peak - peak)
            peak_ref[head] = peak
            total_ref[head] = total_ref[head] * decay + weights.sum(axis=1, keepdims=True)
            partial = _product(weights.astype(values.dtype), values, (1, 0))
            weighted_ref[head] = weighted_ref[head] * _spread(decay, values.shape[1]) + partial

        scores = [scores_of(head) for head in range(min(SCORES_AHEAD, s.num_kv_heads))]
        for head in range(s.num_kv_heads):
            if head + SCORES_AHEAD < s.num_kv_heads:
                scores.append(scores_of(head + SCORES_AHEAD))
            merge(head, scores[head])

    def attend_row(index: Any) -> None:
        """Attention of the step's sequence `index`, which is not empty."""
        slot, table_slot, next_row = cursor[SLOT], cursor[TABLE_SLOT], cursor[NEXT_ROW]
        mine = blocks_of(context_lens[step_row + index], table_slot)
        next_slot = jnp.where(table_slot == TABLE_SLOTS - 1, 0, table_slot + 1)
        after = blocks_if_any(next_row, next_slot)
        row_after = next_live(next_row + 1)
        start_table(row_after, jnp.where(next_slot == TABLE_SLOTS - 1, 0, next_slot + 1))
        wait_table(next_row, next_slot)
        cursor[SLOT] = lax.bitwise_xor(slot, (mine.end - mine.start) & 1)
        cursor[TABLE_SLOT] = next_slot
        cursor[NEXT_ROW] = row_after

        q = [q_ref[index, pl.ds(head * s.group, s.group)] for head in range(s.num_kv_heads)]
        if s.side_by_side:  # zeros meet the values, so that the product is with the keys alone
            q = [jnp.concatenate([x, jnp.zeros_like(x)], axis=1) for x in q]
        peak_ref[...] = jnp.full(peak_ref.shape, MASKED)
        total_ref[...] = jnp.zeros(total_ref.shape)
        weighted_ref[...] = jnp.zeros(weighted_ref.shape)

        def block_step(block: Any, _: None) -> None:
            attend_block(block, lax.bitwise_xor(slot, (block - mine.start) & 1), q, mine, after)

        lax.fori_loop(mine.start, mine.end, block_step, None)
        for head in range(s.num_kv_heads):
            total = _spread(total_ref[head], weighted_ref.shape[2])
            out = weighted_ref[head] / jnp.where(total == 0, 1, total)
            out = out[:, s.head_dim :] if s.side_by_side else out
            out_ref[index, pl.ds(head * s.group, s.group)] = out.astype(out_ref.dtype)

    def row_step(index: Any, _: None) -> None:
        # Empty sequences keep these zeros: a store is cheaper than a branch.
        out_ref[index] = jnp.zeros(out_ref.shape[1:], out_ref.dtype)

        @pl.when(context_lens[step_row + index] > 0)
        def not_empty() -> None:
            attend_row(index)

    @pl.when(pl.program_id(0) == 0)
    def first_fetch() -> None:
        row = next_live(0)
        row_after = next_live(row + 1)
        cursor[SLOT], cursor[TABLE_SLOT], cursor[NEXT_ROW] = 0, 0, row_after
        start_table(row, 0)
        start_table(row_after, 1)
        wait_table(row, 0)
        blocks = blocks_if_any(row, 0)
        start_block(0, blocks.start * s.pages_per_block, *live_range(blocks, blocks.start))

    lax.fori_loop(0, jnp.minimum(s.rows_per_step, s.num_rows - step_row), row_step, None)


def _vmem_bytes(shape: tuple[int, ...], dtype: DTypeLike) -> int:
    """What an array takes in VMEM, where the last two axes are padded to tiles."""
    itemsize = jnp.dtype(dtype).itemsize
    sublanes = 32 // itemsize
    padded = (*shape[:-2], -(-shape[-2] // sublanes) * sublanes, -(-shape[-1] // LANES) * LANES)
    return math.prod(padded) * itemsize


def paged_decode(
    q: jax.Array,
    kv_pages: jax.Array,
    page_table: jax.Array,
    context_lens: jax.Array,
    *,
    scale: float,
    sliding_window: int | None = None,
    soft_cap: float | None = None,
    interpret: pltpu.InterpretParams | bool = False,
    config: DecodeConfig | None = None,
) -> jax.Array:
    """See `kernels.paged_decode.paged_decode`, which has checked the arguments; the pool has q's type.

    `interpret` is that of `pl.pallas_call`; `config` overrides the tuning table.
    """
    num_rows, num_heads, head_dim = q.shape
    pool = pool_dims(kv_pages.shape)
    config = config or choose_config(pool, num_heads, kv_pages.dtype, page_table.shape[1])
    padding = -page_table.shape[1] % LANES
    table = jnp.pad(page_table, ((0, 0), (0, padding)))
    s = Statics(
        num_rows=num_rows,
        num_heads=num_heads,
        num_kv_heads=pool.num_kv_heads,
        head_dim=head_dim,
        page_size=pool.page_size,
        side_by_side=pool.side_by_side,
        pages_per_block=config.pages_per_block,
        rows_per_step=min(config.rows_per_step, num_rows),
        table_width=table.shape[1],
        scale=scale,
        window=sliding_window,
        soft_cap=soft_cap,
    )
    rows_shape = (s.rows_per_step, num_heads, head_dim)
    state_shape = (pool.num_kv_heads, s.group)
    buffer_shape = (2, s.pages_per_block, *kv_pages.shape[1:])
    vmem_bytes = _vmem_bytes(buffer_shape, kv_pages.dtype) + 4 * _vmem_bytes(rows_shape, q.dtype)
    vmem_bytes += 3 * _vmem_bytes((*state_shape, kv_pages.shape[-1]), jnp.float32) + VMEM_SLACK_BYTES
    rows_spec = pl.BlockSpec(rows_shape, lambda step, _: (step, 0, 0))
    in_hbm = pl.BlockSpec(memory_space=pl.ANY)
    struct: Any = jax.ShapeDtypeStruct
    out: jax.Array = pl.pallas_call(
        functools.partial(_kernel, s=s),
        out_shape=struct(q.shape, q.dtype),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(pl.cdiv(num_rows, s.rows_per_step),),
            in_specs=[rows_spec, in_hbm, in_hbm],
            out_specs=rows_spec,
            scratch_shapes=[
                pltpu.VMEM((*state_shape, LANES), jnp.float32),
                pltpu.VMEM((*state_shape, LANES), jnp.float32),
                pltpu.VMEM((*state_shape, kv_pages.shape[-1]), jnp.float32),
                pltpu.VMEM(buffer_shape, kv_pages.dtype),
                pltpu.SMEM((TABLE_SLOTS * s.table_width,), jnp.int32),
                pltpu.SMEM((CURSOR_SIZE,), jnp.int32),
                pltpu.SemaphoreType.DMA((2,)),
                pltpu.SemaphoreType.DMA((TABLE_SLOTS,)),
            ],
        ),
        compiler_params=pltpu.CompilerParams(vmem_limit_bytes=vmem_bytes, disable_bounds_checks=True),
        interpret=interpret,
        name="paged_decode",
    )(context_lens, q, kv_pages, table)
    return out

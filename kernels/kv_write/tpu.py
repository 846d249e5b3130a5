"""Writing new keys and values into their pages on a TPU, in place.

Rows of a 16-bit page come in pairs that share their 32-bit words, so a single new row means to read its pair, replace
a half of each word, and write it back. `kernels.kv_write.runs` lists what is to be done: runs that fill a whole span
of a page, which is written without being read, and runs that fill a group of rows or a part of one.

    XLA      K, V [T, K, H] -> words [planes, T, 128] and slots -> list of runs
    words    HBM -> VMEM, in chunks
    span     words, shifted and sorted into row pairs -> VMEM -> page
    group    page -> VMEM, words put over it -> page: batch b + 1 is read and b - 1 written while b is changed

A word holds one lane of two channels (a head's key in the lower half, its value in the upper), because the tokens'
rows lie anywhere relative to the page's, and only 32-bit rows can be loaded from any row on. The kernel sorts the
halves into the page's row pairs with integer shifts, which leave every bit as it was.

Why nothing is read before what was written to it has arrived, and no two writes race:
* Slots differ, the sentinel page's apart, which is never touched. So runs have no rows in common, and a span that is
  filled whole shares rows with no group that has a run.
* Two runs for one group would meet in it: each writes the other's rows back as it read them. The list names such a
  group once among the first runs, so that all of these may be under way together.
* Batch b + 1 is read into the buffers of b - 2, whose writes were waited for when b - 1 had been changed.
* Further runs of a group come when every write before them has been waited for, one run at a time: read, wait, change,
  write, wait. They are rare: one sequence's tokens would have to come from two places of a step.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels.checks import LANES
from kernels.implementations import Implementation, interpret_mode
from kernels.kv_pool import PoolDims, pool_dims, to_storage
from kernels.kv_write.runs import COUNT_BITS, FIRST_BITS, PART_BITS, Chunks, Runs, find_runs
from kernels.kv_write.tuning import Blocks, pick_blocks

MARGIN = 16
"""Rows around the words, so that a group's tile may begin before the first token and end after the last."""
SPAN_BUFFERS = 4
BATCHES = 3
UNROLL = 4
TILE_ROWS = 16
"""Rows of a span that are put at a time: they fill a register."""

Ref = Any
"""A Pallas reference, or a part of one; jax does not type them."""


class Layout(NamedTuple):
    """Pages as the kernel sees them, `[P, channels, page, width]`; `packed` says that two rows share their words."""

    channels: int
    width: int
    packed: bool

    @property
    def planes(self) -> int:
        """Word arrays `[T, 128]`: one per channel, or pair of channels, and 128 lanes."""
        return -(-self.channels // (1 + self.packed)) * (self.width // LANES)

    def parts(self, plane: int) -> list[tuple[int, Any]]:
        """Channels and lanes that a plane holds, lower half first."""
        across = self.width // LANES
        first, lanes = plane // across * (1 + self.packed), pl.ds(plane % across * LANES, LANES)
        return [(channel, lanes) for channel in range(first, min(first + 1 + self.packed, self.channels))]


def write_kv(
    kv_pages: jax.Array,
    k: jax.Array,
    v: jax.Array,
    slots: jax.Array,
    *,
    implementation: Implementation,
    blocks: Blocks | None = None,
) -> jax.Array:
    """See `kernels.kv_write.write_kv`; `blocks` overrides the tuning."""
    pool = pool_dims(kv_pages.shape)
    num_tokens = slots.shape[0]
    layout = _layout(pool, kv_pages)
    itemsize = kv_pages.dtype.itemsize
    blocks = blocks or pick_blocks(num_tokens, pool.page_size, itemsize, 4 * LANES * layout.planes)
    pages = kv_pages.reshape(pool.num_pages, layout.channels, pool.page_size, layout.width)
    num_calls = pl.cdiv(num_tokens, blocks.call_tokens)
    step = pl.cdiv(num_tokens, num_calls)
    for start in range(0, num_tokens, step):
        part = slice(start, start + step)
        words, runs = _words(kv_pages, k[part], v[part]), find_runs(slots[part], pool.page_size, blocks)
        pages = _call(pages, words, runs, layout, blocks, implementation)
    return pages.reshape(kv_pages.shape)


def _layout(pool: PoolDims, kv_pages: jax.Array) -> Layout:
    channels = pool.num_kv_heads * (1 if pool.side_by_side else 2)
    return Layout(channels, kv_pages.shape[-1], kv_pages.dtype.itemsize == 2)


def _words(kv_pages: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """New keys and values as 32-bit words, `uint32[planes, T, 128]` (see `Layout`), T padded to whole chunks."""
    num_tokens = k.shape[0]
    k, v = to_storage(k, kv_pages.dtype), to_storage(v, kv_pages.dtype)
    side_by_side, packed = kv_pages.ndim == 4, kv_pages.dtype.itemsize == 2
    rows = jnp.concatenate([k, v], axis=2) if side_by_side else jnp.stack([k, v], axis=2)
    if packed:
        if side_by_side:
            rows = jnp.pad(rows, ((0, 0), (0, rows.shape[1] % 2), (0, 0)))
        halves = (rows[:, ::2], rows[:, 1::2]) if side_by_side else (k, v)
        lower, upper = (lax.bitcast_convert_type(x, jnp.uint16).astype(jnp.uint32) for x in halves)
        words = lower | upper << 16
    else:
        words = lax.bitcast_convert_type(rows, jnp.uint32)
    words = words.reshape(num_tokens, -1, LANES).swapaxes(0, 1)
    chunks = Chunks.of(num_tokens)
    return jnp.pad(words, ((0, 0), (0, chunks.number * chunks.tokens - num_tokens), (0, 0)))


class _Scratch(NamedTuple):
    words: Ref
    groups: Ref
    spans: Ref
    words_in: Ref
    groups_in: Ref
    groups_out: Ref
    spans_out: Ref

    @classmethod
    def of(cls, layout: Layout, blocks: Blocks, num_tokens: int, dtype: jnp.dtype) -> "_Scratch":
        channels, semaphores = layout.channels, pltpu.SemaphoreType.DMA
        return cls(
            words=pltpu.VMEM((layout.planes, MARGIN + num_tokens + MARGIN, LANES), jnp.uint32),
            groups=pltpu.VMEM((BATCHES, blocks.batch_runs, channels, blocks.group_rows, layout.width), dtype),
            spans=pltpu.VMEM((SPAN_BUFFERS, channels, blocks.span_rows, layout.width), dtype),
            words_in=semaphores((Chunks.of(num_tokens).number,)),
            groups_in=semaphores((BATCHES,)),
            groups_out=semaphores((BATCHES,)),
            spans_out=semaphores((SPAN_BUFFERS,)),
        )

    def limit_bytes(self) -> int:
        """What the buffers take, and as much as a quarter and 4 MiB more for padding and the compiler's own use."""
        buffers = (self.words, self.groups, self.spans)
        taken: int = sum(math.prod(buffer.shape) * jnp.dtype(buffer.dtype).itemsize for buffer in buffers)
        return taken + taken // 4 + (4 << 20)


def _call(
    pages: jax.Array, words: jax.Array, runs: Runs, layout: Layout, blocks: Blocks, implementation: Implementation
) -> jax.Array:
    anywhere, struct = pl.BlockSpec(memory_space=pl.ANY), cast("Any", jax.ShapeDtypeStruct)
    scratch = _Scratch.of(layout, blocks, words.shape[1], pages.dtype)
    written: jax.Array = pl.pallas_call(
        functools.partial(_kernel, layout=layout, blocks=blocks),
        out_shape=struct(pages.shape, pages.dtype),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(1,),
            in_specs=[anywhere, anywhere],
            out_specs=anywhere,
            scratch_shapes=list(scratch),
        ),
        input_output_aliases={4: 0},
        compiler_params=pltpu.CompilerParams(disable_bounds_checks=True, vmem_limit_bytes=scratch.limit_bytes()),
        interpret=interpret_mode(implementation),
        name="kv_write",
    )(*runs, words, pages)
    return written


def _kernel(
    ends: Ref,
    entries: Ref,
    targets: Ref,
    words_hbm: Ref,
    unused: Ref,  # the pool as it comes in: `pages` under another name
    pages: Ref,
    words: Ref,
    groups: Ref,
    spans: Ref,
    words_in: Ref,
    groups_in: Ref,
    groups_out: Ref,
    spans_out: Ref,
    *,
    layout: Layout,
    blocks: Blocks,
) -> None:
    chunks = Chunks.of(words_hbm.shape[1])
    end_of_first, end_of_groups = ends[0], ends[1]
    batch_runs, group_rows, span_rows = blocks.batch_runs, blocks.group_rows, blocks.span_rows

    def rows_of(run: jax.Array, rows: int) -> Ref:
        target = targets[run]
        start = pl.multiple_of((target & (1 << PART_BITS) - 1) * rows, rows)
        return pages.at[target >> PART_BITS, :, pl.ds(start, rows)]

    def words_copy(chunk: jax.Array) -> Any:
        start = pl.multiple_of(chunk * chunks.tokens, 8)
        target = words.at[:, pl.ds(MARGIN + start, chunks.tokens)]
        return pltpu.make_async_copy(words_hbm.at[:, pl.ds(start, chunks.tokens)], target, words_in.at[chunk])

    def put(target: Ref, row: jax.Array, mask: jax.Array | None = None) -> None:
        """Puts the words from `row` on over `target [channels, rows, width]`, where the mask has ones."""
        for plane in range(layout.planes):
            tiles = _tiles(words.at[plane], row, target.shape[1], layout.packed)
            for tile, (channel, lanes) in zip(tiles, layout.parts(plane), strict=False):
                if mask is not None:
                    old = pltpu.bitcast(target[channel, :, lanes], jnp.uint32)
                    tile = (tile & mask) | (old & ~mask)
                target[channel, :, lanes] = pltpu.bitcast(tile, target.dtype)

    def put_group(run: jax.Array, group: Ref) -> None:
        entry = entries[run]
        count, place = entry & (1 << COUNT_BITS) - 1, entry >> COUNT_BITS
        token, first = place >> FIRST_BITS, place & (1 << FIRST_BITS) - 1
        put(group, MARGIN + token - first, _row_mask(group_rows, first, first + count, layout.packed))

    def read(run: jax.Array, slot: jax.Array | int, place: jax.Array | int) -> Any:
        return pltpu.make_async_copy(rows_of(run, group_rows), groups.at[slot, place], groups_in.at[slot])

    def write(run: jax.Array, slot: jax.Array | int, place: jax.Array | int) -> Any:
        return pltpu.make_async_copy(groups.at[slot, place], rows_of(run, group_rows), groups_out.at[slot])

    def runs_in(batch: jax.Array) -> jax.Array:
        return jnp.clip(end_of_first - batch * batch_runs, 0, batch_runs)

    def read_batch(batch: jax.Array) -> None:
        slot = lax.rem(batch, BATCHES)
        _each(runs_in(batch), batch_runs, lambda place: read(batch * batch_runs + place, slot, place).start())

    def wait_for(batch: jax.Array, semaphores: Ref) -> None:
        """Waits for the copies of all runs of the batch."""
        slot = lax.rem(batch, BATCHES)
        count = runs_in(batch)

        @pl.when(count == batch_runs)
        def _() -> None:
            _wait_for(groups.at[slot], semaphores.at[slot])

        @pl.when(count < batch_runs)
        def _() -> None:
            lax.fori_loop(0, count, lambda i, carry: _wait_for(groups.at[slot, 0], semaphores.at[slot]), None)

    def write_batch(batch: jax.Array, carry: None) -> None:
        slot = lax.rem(batch, BATCHES)
        read_batch(batch + 1)
        wait_for(batch, groups_in)

        def change(place: jax.Array) -> None:
            run = batch * batch_runs + place
            put_group(run, groups.at[slot, place])
            write(run, slot, place).start()

        _each(runs_in(batch), batch_runs, change)

        @pl.when(batch > 0)
        def _() -> None:
            wait_for(batch - 1, groups_out)

    def write_again(run: jax.Array, carry: None) -> None:
        read(run, 0, 0).start()
        read(run, 0, 0).wait()
        put_group(run, groups.at[0, 0])
        write(run, 0, 0).start()
        write(run, 0, 0).wait()

    def span_copy(run: jax.Array) -> Any:
        slot = lax.rem(run - end_of_groups, SPAN_BUFFERS)
        return pltpu.make_async_copy(spans.at[slot], rows_of(run, span_rows), spans_out.at[slot])

    def write_span(run: jax.Array, carry: None) -> None:
        slot, rows = lax.rem(run - end_of_groups, SPAN_BUFFERS), min(TILE_ROWS, span_rows)
        token = entries[run] >> COUNT_BITS + FIRST_BITS

        @pl.when(run >= end_of_groups + SPAN_BUFFERS)
        def _() -> None:
            span_copy(run - SPAN_BUFFERS).wait()

        for start in range(0, span_rows, rows):
            put(spans.at[slot, :, pl.ds(start, rows)], MARGIN + token + start)
        span_copy(run).start()

    def write_spans(chunk: jax.Array, carry: None) -> None:
        words_copy(chunk).wait()
        lax.fori_loop(ends[1 + chunk], ends[2 + chunk], write_span, None)

    lax.fori_loop(0, chunks.number, lambda chunk, carry: words_copy(chunk).start(), None)
    read_batch(jnp.int32(0))
    lax.fori_loop(0, chunks.number, write_spans, None)
    num_batches = pl.cdiv(end_of_first, batch_runs)
    lax.fori_loop(0, num_batches, write_batch, None)

    @pl.when(num_batches > 0)
    def _() -> None:
        wait_for(num_batches - 1, groups_out)

    lax.fori_loop(end_of_first, end_of_groups, write_again, None)
    end_of_spans = ends[1 + chunks.number]
    unwaited = jnp.maximum(end_of_groups, end_of_spans - SPAN_BUFFERS)
    lax.fori_loop(unwaited, end_of_spans, lambda run, carry: span_copy(run).wait(), None)


def _each(count: jax.Array, most: int, body: Callable[[jax.Array], None]) -> None:
    """`body(i)` for i below `count`, unrolled where that is `most`."""

    def step(i: jax.Array, carry: None) -> None:
        body(i)

    @pl.when(count == most)
    def _() -> None:
        lax.fori_loop(0, most, step, None, unroll=UNROLL)

    @pl.when(count < most)
    def _() -> None:
        lax.fori_loop(0, count, step, None)


def _wait_for(buffers: Ref, semaphore: Ref) -> None:
    """Waits until as many bytes as `buffers` holds have moved."""
    copy: Any = pltpu.make_async_copy(buffers, buffers, semaphore)
    copy.wait()


def _tiles(words: Ref, row: jax.Array, rows: int, packed: bool) -> list[jax.Array]:
    """The rows of one plane from `row` on as a page stores them, in 32-bit words: of one channel or of two."""
    if not packed:
        return [words[pl.ds(row, rows)]]
    pairs = rows // 2
    stride = 2 if pairs > 1 else 1
    even, odd = words[pl.ds(row, pairs, stride=stride)], words[pl.ds(row + 1, pairs, stride=stride)]
    upper = jnp.uint32(0xFFFF0000)
    return [(even & ~upper) | odd << 16, even >> 16 | (odd & upper)]


def _row_mask(rows: int, begin: jax.Array, end: jax.Array, packed: bool) -> jax.Array:
    """Words `uint32[rows (/ 2), 128]`: ones where a word, or a half of it, belongs to rows begin..end-1."""
    index = lax.broadcasted_iota(jnp.int32, (rows // (1 + packed), LANES), 0)

    def bits(row: jax.Array, ones: int) -> jax.Array:
        return jnp.where((row >= begin) & (row < end), jnp.uint32(ones), jnp.uint32(0))

    if not packed:
        return bits(index, 0xFFFFFFFF)
    return bits(2 * index, 0xFFFF) | bits(2 * index + 1, 0xFFFF0000)

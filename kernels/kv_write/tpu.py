"""Writing new keys and values into their pages on a TPU, in place.

Rows of a 16-bit page come in pairs that share their 32-bit words, so a single new row means to read its pair, replace
a half of each word, and write it back. `kernels.kv_write.runs` lists what is to be done: runs that fill a whole span
of a page, which is written without being read, and runs that fill a group or a part of one.

    XLA      K, V [T, K, H] --> words [J, T, 128]; slots --> list of runs
    HBM      words of block b + 1 --> VMEM      while block b is at work
    span     words, shifted and unpacked in VMEM --> page
    group    page --> VMEM (16 runs ahead), words put over it --> page (16 runs behind)

New rows are packed by two channels to a word (a head's key in the lower half, its value in the upper), because the
tokens' rows lie anywhere relative to the page's, and only 32-bit rows can be loaded from any row on. The kernel sorts
the halves into the page's row pairs with integer shifts, which leave every bit as it was.

Why no group is read before what was written to it has arrived. Runs go through a ring of `reads_ahead + writes_behind`
buffers in list order. Before the read of run r starts, the write of run r - ring, whose buffer it takes, has been
waited for, and so have all before that one. Of the ring - 1 runs between, none has the same group, or the list says
AGAIN; such a run is read in its own turn only, when all writes before it have been waited for. So a read never meets
a write of its group that is under way or still to come from an earlier run, and two writes to a group are never under
way together. Runs that fill a group or span share it with no other, as slots differ. The sentinel page, where they may
not, is never touched.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels.checks import LANES
from kernels.implementations import Implementation, interpret_mode
from kernels.kv_pool import pool_dims, to_storage
from kernels.kv_write.runs import AGAIN, COUNT_BITS, FILLED, FIRST_BITS, MODE_BITS, PART_BITS, PARTLY, find_runs
from kernels.kv_write.tuning import Blocks, pick_blocks

MARGIN = 16
"""Rows before a block's words, so that a group's tile may begin before its first token."""
SPAN_BUFFERS = 4

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

    def parts(self, plane: int) -> list[tuple[int, pl.Slice]]:
        """Channels and lanes that a plane holds, lower half first."""
        across = self.width // LANES
        lanes = pl.ds(plane % across * LANES, LANES)
        first = plane // across * (1 + self.packed)
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
    num_tokens, itemsize = slots.shape[0], kv_pages.dtype.itemsize
    blocks = blocks or pick_blocks(num_tokens, pool.page_size, itemsize)
    num_blocks = pl.cdiv(num_tokens, blocks.block_tokens)
    tail = num_blocks * blocks.block_tokens - num_tokens
    words = jnp.pad(_words(kv_pages, k, v), ((0, 0), (MARGIN, tail + blocks.span_rows), (0, 0)))
    runs = find_runs(jnp.pad(slots, (0, tail)), pool.page_size, blocks)
    channels = pool.num_kv_heads * (1 if pool.side_by_side else 2)
    layout = Layout(channels, kv_pages.shape[-1], itemsize == 2)
    pages = kv_pages.reshape(pool.num_pages, channels, pool.page_size, layout.width)
    anywhere = pl.BlockSpec(memory_space=pl.ANY)
    scratch = _Scratch.of(layout, blocks, kv_pages.dtype)
    written: jax.Array = pl.pallas_call(
        functools.partial(_kernel, layout=layout, blocks=blocks, num_blocks=num_blocks),
        out_shape=jax.ShapeDtypeStruct(pages.shape, pages.dtype),
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
    return written.reshape(kv_pages.shape)


class _Scratch(NamedTuple):
    words: Ref
    groups: Ref
    spans: Ref
    words_in: Ref
    groups_in: Ref
    groups_out: Ref
    spans_out: Ref

    @classmethod
    def of(cls, layout: Layout, blocks: Blocks, dtype: jnp.dtype) -> "_Scratch":
        ring, semaphores = blocks.reads_ahead + blocks.writes_behind, pltpu.SemaphoreType.DMA
        rows = MARGIN + blocks.block_tokens + blocks.span_rows
        return cls(
            words=pltpu.VMEM((2, layout.planes, rows, LANES), jnp.uint32),
            groups=pltpu.VMEM((ring, layout.channels, blocks.group_rows, layout.width), dtype),
            spans=pltpu.VMEM((SPAN_BUFFERS, layout.channels, blocks.span_rows, layout.width), dtype),
            words_in=semaphores((2,)),
            groups_in=semaphores((ring,)),
            groups_out=semaphores((ring,)),
            spans_out=semaphores((SPAN_BUFFERS,)),
        )

    def limit_bytes(self) -> int:
        """Twice what the buffers take, for padded tiles and the compiler's own use."""
        buffers = (self.words, self.groups, self.spans)
        return 2 * sum(x.inner_aval.size * x.inner_aval.dtype.itemsize for x in buffers) + (4 << 20)


def _words(kv_pages: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """New keys and values as 32-bit words, `uint32[planes, T, 128]` (see `Layout`)."""
    num_tokens = k.shape[0]
    k, v = to_storage(k, kv_pages.dtype), to_storage(v, kv_pages.dtype)
    if kv_pages.ndim == 4:
        rows = jnp.concatenate([k, v], axis=2)
        rows = jnp.pad(rows, ((0, 0), (0, rows.shape[1] % 2), (0, 0)))
        halves = (rows[:, ::2], rows[:, 1::2])
    else:
        rows = jnp.stack([k, v], axis=2).reshape(num_tokens, -1, k.shape[2])
        halves = (k, v)
    if kv_pages.dtype.itemsize == 2:
        lower, upper = (lax.bitcast_convert_type(x, jnp.uint16).astype(jnp.uint32) for x in halves)
        words = lower | upper << 16
    else:
        words = lax.bitcast_convert_type(rows, jnp.uint32)
    return words.reshape(num_tokens, -1, LANES).swapaxes(0, 1)


def _kernel(
    bounds: Ref,
    entries: Ref,
    targets: Ref,
    words_hbm: Ref,
    _: Ref,
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
    num_blocks: int,
) -> None:
    ring = blocks.reads_ahead + blocks.writes_behind
    num_groups = bounds[num_blocks]
    first_span, end_of_spans = bounds[num_blocks + 1], bounds[2 * num_blocks + 1]
    word_rows = blocks.group_rows // (1 + layout.packed)

    def rows_of(run: jax.Array, rows: int) -> Ref:
        target = targets[run]
        start = pl.multiple_of((target & (1 << PART_BITS) - 1) * rows, rows)
        return pages.at[target >> PART_BITS, :, pl.ds(start, rows)]

    def words_copy(block: jax.Array) -> Any:
        start = pl.multiple_of(block * blocks.block_tokens, 8)
        source = words_hbm.at[:, pl.ds(start, words.shape[2])]
        return pltpu.make_async_copy(source, words.at[lax.rem(block, 2)], words_in.at[lax.rem(block, 2)])

    def read(run: jax.Array) -> Any:
        slot = lax.rem(run, ring)
        return pltpu.make_async_copy(rows_of(run, blocks.group_rows), groups.at[slot], groups_in.at[slot])

    def write(run: jax.Array) -> Any:
        slot = lax.rem(run, ring)
        return pltpu.make_async_copy(groups.at[slot], rows_of(run, blocks.group_rows), groups_out.at[slot])

    def write_span(run: jax.Array) -> Any:
        slot = lax.rem(run - first_span, SPAN_BUFFERS)
        return pltpu.make_async_copy(spans.at[slot], rows_of(run, blocks.span_rows), spans_out.at[slot])

    def mode_of(run: jax.Array) -> jax.Array:
        return entries[run] & (1 << MODE_BITS) - 1

    def read_early(run: jax.Array) -> None:
        @pl.when(run < num_groups)
        def _() -> None:
            @pl.when(mode_of(run) == PARTLY)
            def _() -> None:
                read(run).start()

    def put(target: Ref, block: jax.Array, row: jax.Array, rows: int, mask: jax.Array | None) -> None:
        """Puts the words of `rows` tokens from `row` of the block on into `target [channels, rows, width]`."""
        for plane in range(layout.planes):
            tiles = _tiles(words.at[lax.rem(block, 2), plane], row, rows, layout.packed)
            for tile, (channel, lanes) in zip(tiles, layout.parts(plane), strict=False):
                if mask is not None:
                    old = pltpu.bitcast(target[channel, :, lanes], jnp.uint32)
                    tile = (tile & mask) | (old & ~mask)
                target[channel, :, lanes] = pltpu.bitcast(tile, target.dtype)

    def group(run: jax.Array, block: jax.Array, complete: jax.Array) -> jax.Array:
        """Run `run`; `complete` runs are known to have been written. Returns that number after this run."""
        reused = run + blocks.reads_ahead - ring

        @pl.when(reused >= complete)
        def _() -> None:
            write(reused).wait()

        read_early(run + blocks.reads_ahead)
        mode = mode_of(run)

        @pl.when(mode == AGAIN)
        def _() -> None:
            lax.fori_loop(jnp.maximum(complete, reused + 1), run, lambda r, _: write(r).wait(), None)
            read(run).start()

        @pl.when(mode != FILLED)
        def _() -> None:
            read(run).wait()

        entry = entries[run] >> MODE_BITS
        count, first = entry & (1 << COUNT_BITS) - 1, entry >> COUNT_BITS & (1 << FIRST_BITS) - 1
        token = entry >> COUNT_BITS + FIRST_BITS
        mask = _row_mask(word_rows, first, first + count, layout.packed)
        row = MARGIN + token - block * blocks.block_tokens - first
        put(groups.at[lax.rem(run, ring)], block, row, blocks.group_rows, mask)
        write(run).start()
        return jnp.where(mode == AGAIN, run, complete)

    def span(run: jax.Array, block: jax.Array) -> None:
        @pl.when(run - first_span >= SPAN_BUFFERS)
        def _() -> None:
            write_span(run - SPAN_BUFFERS).wait()

        token = entries[run] >> MODE_BITS + COUNT_BITS + FIRST_BITS
        row = MARGIN + token - block * blocks.block_tokens
        slot, rows = lax.rem(run - first_span, SPAN_BUFFERS), min(16, blocks.span_rows)
        for start in range(0, blocks.span_rows, rows):
            put(spans.at[slot, :, pl.ds(start, rows)], block, row + start, rows, None)
        write_span(run).start()

    def work(block: jax.Array, complete: jax.Array) -> jax.Array:
        words_copy(block).wait()

        @pl.when(block + 1 < num_blocks)
        def _() -> None:
            words_copy(block + 1).start()

        at = num_blocks + 1 + block
        lax.fori_loop(bounds[at], bounds[at + 1], lambda run, _: span(run, block), None)
        return lax.fori_loop(bounds[block], bounds[block + 1], lambda run, n: group(run, block, n), complete)

    words_copy(0).start()
    lax.fori_loop(0, blocks.reads_ahead, lambda run, _: read_early(run), None)
    complete = lax.fori_loop(0, num_blocks, work, 0)
    left = jnp.maximum(complete, num_groups + blocks.reads_ahead - ring)
    lax.fori_loop(left, num_groups, lambda run, _: write(run).wait(), None)
    spans_left = jnp.maximum(first_span, end_of_spans - SPAN_BUFFERS)
    lax.fori_loop(spans_left, end_of_spans, lambda run, _: write_span(run).wait(), None)


def _tiles(words: Ref, row: jax.Array, rows: int, packed: bool) -> list[jax.Array]:
    """The rows of one plane from `row` on as a page stores them, in 32-bit words: of one channel or of two."""
    if not packed:
        return [words[pl.ds(row, rows)]]
    pairs = rows // 2
    stride = 2 if pairs > 1 else 1
    even, odd = words[pl.ds(row, pairs, stride=stride)], words[pl.ds(row + 1, pairs, stride=stride)]
    upper = jnp.uint32(0xFFFF0000)
    return [(even & ~upper) | odd << 16, even >> 16 | (odd & upper)]


def _row_mask(word_rows: int, begin: jax.Array, end: jax.Array, packed: bool) -> jax.Array:
    """`uint32[word_rows, 128]`: ones where a word, or a half of it, belongs to rows begin..end-1 of the group."""
    index = lax.broadcasted_iota(jnp.int32, (word_rows, LANES), 0)

    def bits(row: jax.Array, ones: int) -> jax.Array:
        return jnp.where((row >= begin) & (row < end), jnp.uint32(ones), jnp.uint32(0))

    if not packed:
        return bits(index, 0xFFFFFFFF)
    return bits(2 * index, 0xFFFF) | bits(2 * index + 1, 0xFFFF0000)

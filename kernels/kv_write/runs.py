"""Which rows of which pages a step's tokens fill: the work list of the TPU kernel, computed by XLA.

A page's rows are cut into *spans* of `span_rows` and these into *groups* of `group_rows` (`kernels.kv_write.tuning`).
A run is a stretch of consecutive tokens for consecutive rows of one span or group: a span that is filled whole is one
run, what is left of the tokens makes runs of at most one group each. Tokens for the sentinel page make none, since
nobody reads it.

The list depends on the slots alone, which are the same in all layers of a step: XLA computes it once.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from kernels.kv_pool import SENTINEL_PAGE
from kernels.kv_write.tuning import Blocks

FILLED, PARTLY, AGAIN = 0, 1, 2
"""Modes of a run: all rows of its group are new; some are, so the others must be read first; and the same where one of
the runs shortly before writes to that group too, so that it must not be read too early."""

MODE_BITS, COUNT_BITS, FIRST_BITS, PART_BITS = 2, 5, 4, 8
MAX_TOKENS = 1 << 16
MAX_PARTS = 1 << PART_BITS
"""Most groups of a page."""


class Runs(NamedTuple):
    """Groups' runs first, then spans', each in token order.

    bounds: int32[2 * (num_blocks + 1)]. Entries bounds[b] to bounds[b + 1] are the groups' runs that start in token
        block b; the second half says the same of the spans.
    entries: int32[T], token << 11 | first row << 7 | rows << 2 | mode.
    targets: int32[T], page << 8 | number of the group or span in the page.
    """

    bounds: jax.Array
    entries: jax.Array
    targets: jax.Array


def find_runs(slots: jax.Array, page_size: int, blocks: Blocks) -> Runs:
    """The runs of `slots` int32[T], T a multiple of `blocks.block_tokens`."""
    token = jnp.arange(slots.shape[0], dtype=jnp.int32)
    group_rows, span_rows = blocks.group_rows, blocks.span_rows
    live = slots // page_size != SENTINEL_PAGE
    follows = jnp.pad(slots[1:] == slots[:-1] + 1, (1, 0))
    spans = live & (slots % span_rows == 0) & _whole(follows, span_rows)
    begun = jnp.cumsum(spans)
    in_span = begun != _later(begun, -span_rows)
    starts = ~follows | (slots % group_rows == 0)
    groups = live & starts & ~in_span

    first, count = slots % group_rows, jnp.ones_like(slots)
    more = jnp.ones_like(starts)
    for ahead in range(1, group_rows):
        more &= ~_later(starts, ahead, fill=True)
        count += more
    mode = jnp.where(count == group_rows, FILLED, PARTLY)
    details = ((first << COUNT_BITS) | count) << MODE_BITS | mode
    rows = jnp.where(spans, span_rows, group_rows)
    target = slots // page_size << PART_BITS | slots % page_size // rows

    num_tokens = slots.shape[0]
    order = jnp.where(groups, token, jnp.where(spans, token + num_tokens, 2 * num_tokens))
    order, details, targets = lax.sort((order, details, target), num_keys=1)
    again = (details & 3 == PARTLY) & _repeats(targets, order < num_tokens, blocks.reads_ahead + blocks.writes_behind)
    entries = (order % num_tokens) << (FIRST_BITS + COUNT_BITS + MODE_BITS) | details + again
    num_groups = jnp.sum(groups, dtype=jnp.int32)
    bounds = jnp.concatenate([_bounds(groups, blocks), num_groups + _bounds(spans, blocks)])
    return Runs(bounds, entries, targets)


def _later(values: jax.Array, distance: int, fill: bool | int = 0) -> jax.Array:
    """`values[t + distance]` at t, `fill` where there is none."""
    after = max(distance, 0)
    padded = jnp.pad(values, (max(-distance, 0), after), constant_values=fill)
    return padded[after : after + values.shape[0]]


def _whole(follows: jax.Array, rows: int) -> jax.Array:
    """Whether the `rows - 1` tokens after each follow on."""
    breaks = jnp.cumsum(~follows)
    return breaks == _later(breaks, rows - 1, fill=-1)


def _repeats(targets: jax.Array, is_group: jax.Array, window: int) -> jax.Array:
    """Whether one of the `window - 1` groups before has the same target."""
    named = jnp.where(is_group, targets, -1 - jnp.arange(targets.shape[0], dtype=jnp.int32))
    found = jnp.zeros_like(is_group)
    for distance in range(1, min(window, targets.shape[0])):
        found |= named == _later(named, -distance, fill=jnp.iinfo(jnp.int32).min)
    return found


def _bounds(starts: jax.Array, blocks: Blocks) -> jax.Array:
    """Runs that start before each block, and in all: int32[num_blocks + 1]."""
    per_block = jnp.sum(starts.reshape(-1, blocks.block_tokens), axis=1, dtype=jnp.int32)
    return jnp.pad(jnp.cumsum(per_block, dtype=jnp.int32), (1, 0))

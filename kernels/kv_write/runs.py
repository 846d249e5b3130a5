"""Which rows of which pages a step's tokens fill: the work list of the TPU kernel, computed by XLA.

A page's rows are cut into *spans* of `span_rows` and these into *groups* of `group_rows` (`kernels.kv_write.tuning`).
A run is a stretch of consecutive tokens for consecutive rows of one span or group. A span that is filled whole is one
run; the tokens that are left make runs of at most one group each. Tokens for the sentinel page make none, since
nobody reads it.

The list depends on the slots alone, which are the same in all layers of a step: XLA computes it once.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from kernels.kv_pool import SENTINEL_PAGE
from kernels.kv_write.tuning import Blocks

MAX_CHUNK_TOKENS = 512
COUNT_BITS, FIRST_BITS, PART_BITS = 5, 4, 8
LAST = 2**31 - 1


class Chunks(NamedTuple):
    """Tokens whose words come to VMEM by one copy; spans are listed by the chunk that completes them."""

    number: int
    tokens: int

    @classmethod
    def of(cls, num_tokens: int) -> "Chunks":
        """The fewest equal chunks of whole 8-row tiles that hold `num_tokens` tokens."""
        number = -(-num_tokens // MAX_CHUNK_TOKENS)
        return cls(number, -(-num_tokens // (8 * number)) * 8)


class Runs(NamedTuple):
    """Runs of three kinds, one after another: one run of each group, in page order; further runs of the same groups,
    from tokens elsewhere in the step; spans, in token order.

    ends: int32[2 + num_chunks]: end of the first kind, of the second, and of the spans that chunks 0..c complete.
    entries: int32[T], token << 9 | first row in the group << 5 | number of rows.
    targets: int32[T], page << 8 | number of the group or span in the page.
    """

    ends: jax.Array
    entries: jax.Array
    targets: jax.Array


def find_runs(slots: jax.Array, page_size: int, blocks: Blocks) -> Runs:
    """The runs of `slots` int32[T]."""
    num_tokens, group_rows, span_rows = slots.shape[0], blocks.group_rows, blocks.span_rows
    token = jnp.arange(num_tokens, dtype=jnp.int32)
    live = slots // page_size != SENTINEL_PAGE
    follows = jnp.pad(slots[1:] == slots[:-1] + 1, (1, 0))
    spans = live & (slots % span_rows == 0) & _followed_by(follows, span_rows - 1)
    spans_begun = jnp.cumsum(spans, dtype=jnp.int32)
    in_span = spans_begun != _shifted(spans_begun, -span_rows)
    starts = ~follows | (slots % group_rows == 0)
    groups = live & starts & ~in_span
    target = (slots // page_size << PART_BITS) | slots % page_size // jnp.where(spans, span_rows, group_rows)
    entry = (token << FIRST_BITS | slots % group_rows) << COUNT_BITS | _run_lengths(starts, group_rows)

    # By target first, so that runs of one group are neighbours; spans and what is no run come behind all groups.
    behind = LAST - num_tokens + token
    key, entries, targets = _sorted(jnp.where(groups, target, behind - num_tokens * spans), entry, target)
    num_groups = jnp.sum(groups, dtype=jnp.int32)
    is_group = token < num_groups
    again = is_group & (key == _shifted(key, -1, fill=-1))
    _, entries, targets = _sorted(token + num_tokens * jnp.where(is_group, again, 2), entries, targets)

    chunks = Chunks.of(num_tokens)
    chunk = jnp.where(spans, (token + span_rows - 1) // chunks.tokens, chunks.number)
    complete = jnp.sum(chunk[None, :] <= jnp.arange(chunks.number)[:, None], axis=1, dtype=jnp.int32)
    group_ends = jnp.stack([num_groups - jnp.sum(again, dtype=jnp.int32), num_groups])
    return Runs(jnp.concatenate([group_ends, num_groups + complete]), entries, targets)


def _shifted(values: jax.Array, distance: int, fill: bool | int = 0) -> jax.Array:
    """`values[t + distance]` at t, `fill` where there is none."""
    after = max(distance, 0)
    padded = jnp.pad(values, (max(-distance, 0), after), constant_values=fill)
    return padded[after : after + values.shape[0]]


def _followed_by(follows: jax.Array, count: int) -> jax.Array:
    """Whether each of the `count` tokens after this one follows on its predecessor."""
    breaks = jnp.cumsum(~follows, dtype=jnp.int32)
    return breaks == _shifted(breaks, count, fill=-1)


def _run_lengths(starts: jax.Array, most: int) -> jax.Array:
    """Tokens from this one to before the next start, at most `most`."""
    goes_on = jnp.ones_like(starts)
    length = jnp.ones(starts.shape, jnp.int32)
    for ahead in range(1, most):
        goes_on &= ~_shifted(starts, ahead, fill=True)
        length += goes_on
    return length


def _sorted(*columns: jax.Array) -> tuple[jax.Array, ...]:
    """The columns in the order of the first."""
    ordered: tuple[jax.Array, ...] = lax.sort(columns, num_keys=1, is_stable=False)
    return ordered

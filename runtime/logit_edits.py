"""What a request may change about its logits before temperature: penalties, bias, masks."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_LARGEST = float(np.finfo(np.float32).max)


def finite_or_excluded(logits: jax.Array) -> jax.Array:
    """NaN becomes -inf and +inf the largest float32, so that later steps meet neither."""
    return jnp.where(jnp.isnan(logits), -jnp.inf, jnp.minimum(logits, _LARGEST))


def penalize(
    logits: jax.Array,
    counts: jax.Array,
    prompt_mask: jax.Array,
    presence: jax.Array,
    frequency: jax.Array,
    repetition: jax.Array,
) -> jax.Array:
    """Repetition penalty, then frequency and presence penalty; float32[B, V].

    `counts` int32[B, V] counts output tokens, `prompt_mask` uint32[B, W] has the prompt's. Repetition is
    CTRL's (Keskar et al. 2019) as transformers' `RepetitionPenaltyLogitsProcessor` has it: over prompt and
    output, positive logits are divided and negative ones multiplied. The other two are OpenAI's, over the
    output alone. All three float32[B].
    """
    is_seen = (counts > 0) | unpack(prompt_mask, logits.shape[1])
    factor = repetition[:, None]
    repeated = jnp.where(is_seen, jnp.where(logits > 0, logits / factor, logits * factor), logits)
    by_count = frequency[:, None] * counts.astype(jnp.float32)
    by_presence = jnp.where(counts > 0, presence[:, None], 0.0)
    return repeated - by_count - by_presence


def add_bias(logits: jax.Array, ids: jax.Array, values: jax.Array) -> jax.Array:
    """Adds `values` float32[B, N] at `ids` int32[B, N]; negative ids are padding, equal ids add up.

    Row by row: as one scatter over all rows, XLA's TPU compiler takes six times as long and a copy of the logits.
    """
    ids = _or_dropped(ids, logits)

    def add(row: jax.Array, edited: jax.Array) -> jax.Array:
        biased = edited[row].at[ids[row]].add(values[row], mode="drop")
        return lax.dynamic_update_slice_in_dim(edited, biased[None], row, 0)

    biased_rows: jax.Array = lax.fori_loop(0, logits.shape[0], add, logits)
    return biased_rows


def allow(logits: jax.Array, mask: jax.Array, is_used: jax.Array) -> jax.Array:
    """Excludes what the packed `mask` uint32[B, W] does not allow, in rows with `is_used` bool[B].

    A row that would lose every token is left as it was.
    """
    is_allowed = unpack(mask, logits.shape[1]) | ~is_used[:, None]
    return _unless_empty(jnp.where(is_allowed, logits, -jnp.inf), logits)


def forbid(logits: jax.Array, ids: jax.Array, is_used: jax.Array) -> jax.Array:
    """Excludes `ids` int32[B, N] (negative ones are padding) in rows with `is_used` bool[B].

    A row that would lose every token is left as it was.
    """
    used_ids = jnp.where(is_used[:, None], ids, -1)
    excluded = logits.at[_row_column(ids), _or_dropped(used_ids, logits)].set(-jnp.inf, mode="drop")
    return _unless_empty(excluded, logits)


def unpack(mask: jax.Array, vocab_size: int) -> jax.Array:
    """bool[B, V] of a packed mask uint32[B, W]: bit v%32 of word v//32."""
    bits = (mask[:, :, None] >> jnp.arange(32, dtype=jnp.uint32)) & 1
    return bits.reshape(mask.shape[0], -1)[:, :vocab_size] == 1


def _unless_empty(edited: jax.Array, before: jax.Array) -> jax.Array:
    has_token = jnp.max(edited, axis=1, keepdims=True) > -jnp.inf
    return jnp.where(has_token, edited, before)


def _row_column(ids: jax.Array) -> jax.Array:
    """int32[B, 1] row numbers that broadcast against `ids`."""
    return jnp.arange(ids.shape[0], dtype=jnp.int32)[:, None]


def _or_dropped(ids: jax.Array, logits: jax.Array) -> jax.Array:
    """Padding becomes V, which a scatter with `mode="drop"` ignores (a negative index would count from the
    end)."""
    return jnp.where(ids < 0, logits.shape[1], ids)

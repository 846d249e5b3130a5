"""Where top-k and top-p cut: the smallest logit that survives, per row, exactly and usually without a full
sort.

Both cuts keep a set of the form {v: logit[v] >= t}. So tokens tied with the last survivor all survive,
whatever their order, and a full sort and a search for t give the same set. They may differ only where a
cumulative mass equals p within float32 rounding (about 1e-6 relative), because sums are taken in different
orders.

Sort-free: `lax.top_k` gives each row's CANDIDATES largest logits, which nearly always contain both cuts. For
the rows where they do not, t is found by bisection over the order-preserving uint32 image of float32: at most
32 rounds of counting (top-k) or summing mass (top-p), ending at one exact bit pattern, with no tolerance. How
a row is resolved depends on the row alone, never on its neighbours.
"""

from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

CANDIDATES = 128
"""Logits looked at first. On a CPU 128 of 151,936 cost a fifth more than 20; a full sort costs 100 times more."""

_SIGN = np.uint32(1 << 31)


def smallest_kept(
    logits: jax.Array, temperature: jax.Array, top_k: jax.Array, top_p: jax.Array, *, use_sort: bool = False
) -> jax.Array:
    """The smallest logit that top-k, then top-p keeps; float32[B], -inf where both are off.

    `logits` float32[B, V] before temperature (which does not change their order), without NaN and +inf; -inf
    marks tokens excluded already. `temperature` float32[B] is at least the smallest normal float32. `top_k`
    int32[B] is off outside 1..V-1. `top_p` float32[B] is off from 1 on; it counts mass renormalised over the
    survivors of top-k. The largest logit always survives.
    """
    vocab_size = logits.shape[1]
    if use_sort:
        ordered = -lax.sort(-logits)
    else:
        ordered, _ = lax.top_k(logits, min(CANDIDATES, vocab_size))
    by_count = _top_k_cut(logits, ordered, top_k)
    cuts_mass = top_p < 1.0
    by_mass = lax.cond(
        jnp.any(cuts_mass),
        lambda: _top_p_cut(logits, ordered, temperature, top_p, by_count),
        lambda: jnp.full_like(by_count, -jnp.inf),
    )
    return jnp.where(cuts_mass, jnp.maximum(by_count, by_mass), by_count)


def _top_k_cut(logits: jax.Array, ordered: jax.Array, top_k: jax.Array) -> jax.Array:
    """The k-th largest logit, float32[B]; -inf where top-k is off. `ordered` float32[B, C] descends."""
    num_ordered, vocab_size = ordered.shape[1], logits.shape[1]
    is_on = (top_k > 0) & (top_k < vocab_size)
    cut = _pick(ordered, top_k - 1)
    if num_ordered < vocab_size:
        beyond = is_on & (top_k > num_ordered)

        def search() -> jax.Array:
            low, high = jnp.min(logits, axis=1), jnp.where(beyond, ordered[:, -1], jnp.min(logits, axis=1))
            return jnp.where(beyond, _largest_reaching(logits, 1.0, top_k.astype(jnp.float32), low, high), cut)

        cut = lax.cond(jnp.any(beyond), search, lambda: cut)
    return jnp.where(is_on, cut, -jnp.inf)


def _top_p_cut(
    logits: jax.Array, ordered: jax.Array, temperature: jax.Array, top_p: jax.Array, by_count: jax.Array
) -> jax.Array:
    """The largest t whose set {logit >= t} holds `top_p` of the mass at or above `by_count`, float32[B]."""
    num_ordered, vocab_size = ordered.shape[1], logits.shape[1]
    top = ordered[:, :1]

    def mass(values: jax.Array) -> jax.Array:
        weights = jnp.exp((values - top) / temperature[:, None])
        return jnp.where(values >= by_count[:, None], weights, 0.0)

    target = top_p * jnp.sum(mass(logits), axis=1)
    before = jnp.sum(jnp.cumsum(mass(ordered), axis=1) < target[:, None], axis=1)
    cut = _pick(ordered, before)
    if num_ordered == vocab_size:
        return cut
    last = ordered[:, -1]
    beyond = (top_p < 1.0) & (before >= num_ordered) & (last >= by_count)

    def search() -> jax.Array:
        low = jnp.maximum(jnp.min(logits, axis=1), by_count)
        found = _largest_reaching(logits, mass(logits), target, low, jnp.where(beyond, last, low))
        return jnp.where(beyond, found, cut)

    return cast(jax.Array, lax.cond(jnp.any(beyond), search, lambda: cut))


def _largest_reaching(
    logits: jax.Array, weights: jax.Array | float, target: jax.Array, low: jax.Array, high: jax.Array
) -> jax.Array:
    """The largest t in `low..high` with sum of weights over {logit >= t} at least `target`; float32[B].

    `weights` float32[B, V], or 1 to count tokens, exact in float32 below 2^24 of them (an integer sum takes XLA's
    CPU code twice as long). `low` is taken to reach the target.
    """
    image = float_to_ordered(logits)

    def narrow(bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        width = high - low
        middle = low + (width >> 1) + (width & 1)
        reached = jnp.sum(jnp.where(image >= middle[:, None], weights, 0.0), axis=1)
        is_enough = (reached >= target) & (width > 0)
        return jnp.where(is_enough, middle, low), jnp.where(is_enough | (width == 0), high, middle - 1)

    bounds = (float_to_ordered(low), float_to_ordered(high))
    return ordered_to_float(lax.while_loop(lambda bounds: jnp.any(bounds[0] < bounds[1]), narrow, bounds)[0])


def float_to_ordered(values: jax.Array) -> jax.Array:
    """Maps float32 to uint32 so that order is kept: negative numbers are complemented, others get the top bit."""
    bits = lax.bitcast_convert_type(values, jnp.uint32)
    return jnp.where(bits >= _SIGN, ~bits, bits | _SIGN)


def ordered_to_float(image: jax.Array) -> jax.Array:
    """Inverse of `float_to_ordered`."""
    bits = jnp.where(image >= _SIGN, image ^ _SIGN, ~image)
    return lax.bitcast_convert_type(bits, jnp.float32)


def _pick(ordered: jax.Array, position: jax.Array) -> jax.Array:
    """`ordered[b, position[b]]`, positions clipped to the row."""
    column = jnp.clip(position, 0, ordered.shape[1] - 1)
    return jnp.take_along_axis(ordered, column[:, None], axis=1)[:, 0]

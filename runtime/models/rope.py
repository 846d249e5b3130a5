"""Rotary position embedding (Su et al. 2021) in Hugging Face's layout: dimension i is paired with i + H/2."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Rotation(NamedTuple):
    """Cosine and sine of every token's angles, float32 `[T, 1, H/2]`."""

    cos: jax.Array
    sin: jax.Array


def rotation(positions: jax.Array, head_dim: int, theta: float) -> Rotation:
    """The rotation of tokens at `positions int32[T]`; angle i is position * theta**(-2i/H)."""
    exponents = jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim
    angles = positions.astype(jnp.float32)[:, None, None] * (1.0 / theta**exponents)
    return Rotation(jnp.cos(angles), jnp.sin(angles))


def rotate(x: jax.Array, by: Rotation) -> jax.Array:
    """`x float32[T, heads, H]` rotated by its position; float32."""
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * by.cos - second * by.sin, second * by.cos + first * by.sin], axis=-1)

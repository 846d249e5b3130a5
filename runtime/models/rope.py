"""Rotary position embedding (Su et al. 2021) in Hugging Face's layout: dimension i is paired with i + H/2."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from runtime.model_parts import RopeScaling


class Rotation(NamedTuple):
    """Cosine and sine of every token's angles, float32 `[T, 1, H/2]`."""

    cos: jax.Array
    sin: jax.Array


def rotation(positions: jax.Array, head_dim: int, theta: float, scaling: RopeScaling | None = None) -> Rotation:
    """The rotation of tokens at `positions int32[T]`; angle i is position * theta**(-2i/H), stretched by `scaling`."""
    exponents = jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim
    frequencies = 1.0 / theta**exponents
    if scaling is not None:
        frequencies = _stretched(frequencies, scaling)
    angles = positions.astype(jnp.float32)[:, None, None] * frequencies
    return Rotation(jnp.cos(angles), jnp.sin(angles))


def rotate(x: jax.Array, by: Rotation) -> jax.Array:
    """`x float32[T, heads, H]` rotated by its position; float32."""
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * by.cos - second * by.sin, second * by.cos + first * by.sin], axis=-1)


def _stretched(frequencies: jax.Array, scaling: RopeScaling) -> jax.Array:
    """Llama 3.1's angular frequencies, float32 `[H/2]`: divided by `factor` where wavelengths are long.

    With r = original tokens / wavelength, the share of the unstretched frequency rises linearly from 0 at
    r = low_freq_factor to 1 at r = high_freq_factor (Meta's reference implementation of Llama 3.1).
    """
    turns = scaling.original_tokens * frequencies / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
    return frequencies * kept + frequencies / scaling.factor * (1.0 - kept)

"""The arithmetic that both attention references share: products with float32 sums and the running softmax.

Online softmax: Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018). State is the
running maximum, the running sum of exponentials and the running weighted sum of values, all float32.
"""

import jax
import jax.numpy as jnp
from jax import lax

MASKED = -1e30
"""Score of a masked key. Finite, so that a row without live keys gives exp(0) * 0 and not NaN."""


def product(equation: str, left: jax.Array, right: jax.Array) -> jax.Array:
    """An einsum with a float32 result; float32 operands are multiplied as float32 on every backend."""
    precision = lax.Precision.HIGHEST if right.dtype == jnp.float32 else None
    left = left.astype(right.dtype)
    return jnp.einsum(equation, left, right, precision=precision, preferred_element_type=jnp.float32)


def cap(scores: jax.Array, soft_cap: float | None) -> jax.Array:
    """Scores squeezed into (-soft_cap, soft_cap) by a scaled tanh (Gemma 2, section 2)."""
    return scores if soft_cap is None else soft_cap * jnp.tanh(scores / soft_cap)


def normalized(weighted: jax.Array, total: jax.Array) -> jax.Array:
    """`weighted[..., H] / total[...]`, and zero where nothing was summed."""
    return weighted / jnp.where(total == 0, 1, total)[..., None]

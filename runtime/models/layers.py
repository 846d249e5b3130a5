"""The arithmetic of one decoder layer, on plain arrays.

Letters: T tokens, D model, F ffw, N query heads, K kv heads, H head dim, V vocabulary; E is any output width.
Weights are stored (out, in) as in the checkpoint: on a CPU the transposed product is three times faster. q,
k and v, and gate and up, stay separate matrices: fused into one each, a layer of the 1.5B shape took the
same time on a CPU (bfloat16, 4 to 256 rows, quartiles within 2%), and separate ones shard by head without
reordering.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

MIN_ROWS = 4
"""Rows that a product is padded to. XLA:CPU reads weights nearly ten times slower for a single row."""

FEW_ROWS = 64
"""Rows up to which a CPU takes the weights as the left operand of a product. Milliseconds for eight [8960, 1536] on two
cores, activations first and weights first: bfloat16 4 rows 14.6 and 13.7, 16 rows 21 and 14, 64 rows 56 and 43, 128
rows 81 and 85; float32 4 rows 31 and 13, 64 rows 94 and 72, 256 rows 341 and 389.
"""


def project(x: jax.Array, weight: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    """`x [T, D]` times `weight [E, D]` transposed, plus `bias [E]`: float32 `[T, E]`.

    Sums are float32; float32 operands are multiplied as float32 on every backend.
    """
    num_tokens = x.shape[0]
    if num_tokens < MIN_ROWS:
        x = jnp.pad(x, ((0, MIN_ROWS - num_tokens), (0, 0)))
    y = (_product_of_few if num_tokens <= FEW_ROWS else _product)(x, weight)[:num_tokens]
    return y if bias is None else y + bias.astype(jnp.float32)


def _product(left: jax.Array, right: jax.Array) -> jax.Array:
    """`left [A, D]` times `right [B, D]` transposed, float32 `[A, B]`."""
    return lax.dot_general(
        left,
        right,
        (((1,), (1,)), ((), ())),
        precision=lax.Precision.HIGHEST if left.dtype == jnp.float32 else None,
        preferred_element_type=jnp.float32,
    )


@jax.jit
def _product_of_few(x: jax.Array, weight: jax.Array) -> jax.Array:
    """`_product` for at most `FEW_ROWS` rows. Jitted so that equal layers are traced once."""

    def weights_first(x: jax.Array, weight: jax.Array) -> jax.Array:
        # Without the barrier XLA sees through the transposition and puts the operands back.
        barrier: Any = lax.optimization_barrier
        transposed: jax.Array = barrier(_product(weight, x)).T
        return transposed

    y: jax.Array = lax.platform_dependent(x, weight, cpu=weights_first, default=_product)
    return y


def rms_norm(x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    """`x [T, D]` scaled to unit mean square, times `weight [D]`; computed in float32, of x's type."""
    x32 = x.astype(jnp.float32)
    scale = lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + eps)
    return (x32 * scale * weight.astype(jnp.float32)).astype(x.dtype)


def gated_mlp(x: jax.Array, weights: dict[str, Any]) -> jax.Array:
    """SwiGLU (Shazeer 2020) of `x [T, D]`: float32 `[T, D]`.

    `weights` are nested dicts: `{gate,up}_proj.weight [F, D]` and `down_proj.weight [D, F]`, with biases `[F]` and
    `[D]` in some families.
    """

    def linear(values: jax.Array, name: str) -> jax.Array:
        return project(values, weights[name]["weight"], weights[name].get("bias"))

    inner = jax.nn.silu(linear(x, "gate_proj")) * linear(x, "up_proj")
    return linear(inner.astype(x.dtype), "down_proj")

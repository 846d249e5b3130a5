"""A decode step's matrix products and nothing else: how fast the compiler can do what a step cannot do without.

Read bandwidth is the roof that the hardware sets; these products are the one that the compiler's own kernels set. They
are plain `dot_general` on the engine's weights, in both operand orders, of which the faster counts; nothing is shared
with the engine's forward pass.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from runtime.bench.timing import Timing, interleaved
from runtime.model_config import ModelConfig

MIN_ROWS = 4
"""Fewer rows are padded, as the engine does: a single row takes ten times as long on a CPU."""


def time_products(model: ModelConfig, params: Any, batch: int, repeats: int) -> Timing:
    """All matrices of one decode step times `batch` rows, each once; the faster operand order by its median."""
    matrices = [leaf for layer in params["layers"] for leaf in jax.tree.leaves(layer) if leaf.ndim == 2]
    head = params["embed_tokens" if model.tie_word_embeddings else "lm_head"]["weight"]
    matrices.append(head)
    widths = sorted({matrix.shape[1] for matrix in matrices})
    rows = max(batch, MIN_ROWS)
    inputs = {width: jax.device_put(jnp.full((rows, width), 0.5, head.dtype), head.sharding) for width in widths}
    calls = [_call(jax.jit(order), inputs, matrices) for order in (_activations_first, _weights_first)]
    return min(interleaved(calls, repeats), key=lambda timing: timing.median_s)


def _call(multiply: Any, inputs: dict[int, jax.Array], matrices: list[jax.Array]) -> Callable[[], object]:
    return lambda: multiply(inputs, matrices).block_until_ready()


def _product(left: jax.Array, right: jax.Array) -> jax.Array:
    """`left [A, D]` times `right [B, D]` transposed, float32 `[A, B]`, kept whole by a barrier."""
    contract = (((1,), (1,)), ((), ()))
    precision = jax.lax.Precision.HIGHEST if left.dtype == jnp.float32 else None
    product = jax.lax.dot_general(left, right, contract, precision=precision, preferred_element_type=jnp.float32)
    barrier: Any = jax.lax.optimization_barrier
    kept: jax.Array = barrier(product)
    return kept


def _activations_first(inputs: dict[int, jax.Array], matrices: list[jax.Array]) -> jax.Array:
    return jnp.stack([_product(inputs[matrix.shape[1]], matrix)[0, 0] for matrix in matrices])


def _weights_first(inputs: dict[int, jax.Array], matrices: list[jax.Array]) -> jax.Array:
    return jnp.stack([_product(matrix, inputs[matrix.shape[1]])[0, 0] for matrix in matrices])

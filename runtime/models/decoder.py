"""The decoder's forward pass: pure functions of parameters, tokens and the paged KV.

One function serves prefill, decode and both at once: it sees a flat axis of T tokens with their positions,
and how they attend to each other and to the past is the caller's function. The engine jits it with the pool
donated.

Letters: T tokens, D model, N query heads, K kv heads, H head dim, L layers, V vocabulary, P pages, S sampled
rows.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from runtime.model_config import ModelConfig
from runtime.models.layers import gated_mlp, project, rms_norm
from runtime.models.moe import sparse_mlp
from runtime.models.parameters import Params
from runtime.models.rope import Rotation, rotate, rotation

Attend = Callable[[jax.Array, jax.Array, jax.Array, jax.Array, int | None], tuple[jax.Array, jax.Array]]
"""(layer's kv_pages `[P, K, 2, page, H]`, q `[T, N, H]`, k `[T, K, H]`, v `[T, K, H]`, window) -> (kv_pages
with k and v written, attention's output `[T, N, H]`). q and k are rotated already; scores are to be scaled by
H**-0.5; a token sees itself and the `window - 1` tokens before it, or all if it is None.
"""


def forward(
    params: Params,
    config: ModelConfig,
    tokens: jax.Array,
    positions: jax.Array,
    kv_pages: Sequence[jax.Array],
    attend: Attend,
    mesh: Mesh | None = None,
) -> tuple[jax.Array, list[jax.Array]]:
    """Runs all layers over T tokens.

    Args:
        params: the tree of `parameters.abstract_params`, float32 or bfloat16. What is multiplied with it has its
            type; the residual stream is float32, as rounding it after every block costs accuracy and saves nothing.
        config: the model's shape; static.
        tokens: `int32[T]`, below the vocabulary size.
        positions: `int32[T]`, each token's position in its own sequence.
        kv_pages: L arrays, passed to `attend` layer by layer; donate them to the enclosing jit.
        attend: writes a layer's new keys and values and attends; see `Attend`.
        mesh: the slice's devices when they are several and `params` is split over them, else None; static.

    Returns:
        The hidden states after the final norm, `[T, D]` of the parameters' type, and the L new pools.
    """
    with jax.named_scope("embed"):
        x = params["embed_tokens"]["weight"][tokens].astype(jnp.float32)
    turn = rotation(positions, config.head_dim, config.rope_theta, config.rope_scaling)
    new_pages = []
    for index, (layer, pages) in enumerate(zip(params["layers"], kv_pages, strict=True)):
        with jax.named_scope("attention"):
            added, pages = _attention(layer, config, x, turn, pages, attend, config.window(index))
            x = x + added
        with jax.named_scope("mlp"):
            x = x + _mlp(layer, config, index, x, mesh)
        new_pages.append(pages)
    with jax.named_scope("final_norm"):
        return _normed(x, params["norm"], config), new_pages


def logits(params: Params, config: ModelConfig, hidden: jax.Array) -> jax.Array:
    """Scores of the vocabulary, `float32[S, V]`, for `hidden [S, D]` as `forward` returns it."""
    head = params["embed_tokens"] if config.tie_word_embeddings else params["lm_head"]
    with jax.named_scope("logits"):
        return project(hidden, head["weight"])


def _attention(
    layer: Params,
    config: ModelConfig,
    x: jax.Array,
    turn: Rotation,
    pages: jax.Array,
    attend: Attend,
    window: int | None,
) -> tuple[jax.Array, jax.Array]:
    """What the attention block adds to `x float32[T, D]`, float32 `[T, D]`, and the layer's new pages."""
    weights = layer["self_attn"]
    normed = _normed(x, layer["input_layernorm"], config)

    def heads(name: str) -> jax.Array:
        projected = project(normed, weights[name]["weight"], weights[name].get("bias"))
        return projected.reshape(x.shape[0], -1, config.head_dim)

    def rotated(name: str, norm: str) -> jax.Array:
        values = heads(name)
        if config.qk_norm:
            values = rms_norm(values, weights[norm]["weight"], config.rms_norm_eps)
        return rotate(values, turn).astype(normed.dtype)

    q, k, v = rotated("q_proj", "q_norm"), rotated("k_proj", "k_norm"), heads("v_proj").astype(normed.dtype)
    pages, attended = attend(pages, q, k, v, window)
    merged = attended.reshape(x.shape[0], config.num_heads * config.head_dim)
    return project(merged, weights["o_proj"]["weight"], weights["o_proj"].get("bias")), pages


def _mlp(layer: Params, config: ModelConfig, index: int, x: jax.Array, mesh: Mesh | None) -> jax.Array:
    """What layer `index`'s feed-forward block adds to `x float32[T, D]`, float32 `[T, D]`."""
    normed = _normed(x, layer["post_attention_layernorm"], config)
    if config.experts is not None and config.is_sparse(index):
        return sparse_mlp(normed, layer["mlp"], config.experts, mesh)
    return gated_mlp(normed, layer["mlp"])


def _normed(x: jax.Array, norm: Params, config: ModelConfig) -> jax.Array:
    """`x float32[T, D]` normed, of the parameters' type: what a block multiplies."""
    return rms_norm(x, norm["weight"], config.rms_norm_eps).astype(norm["weight"].dtype)

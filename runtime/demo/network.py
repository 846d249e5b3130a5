"""The Qwen2 forward pass of the demo model's training and evaluation, small and self-contained.

Parameters are a flat dict under their Hugging Face names, weights stored (out, in). Matrix products take bfloat16
operands and add up in float32; norms, softmax and rotary angles are float32; the residual stream is rounded to
bfloat16 where a bfloat16 server rounds it. With ``dtype=float32`` nothing is rounded. Serving does not use this file.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Params = dict[str, jax.Array]
Cache = list[tuple[jax.Array, jax.Array]]


@dataclass(frozen=True)
class Shape:
    """The sizes of the network, under their names in ``config.json``."""

    vocab_size: int = 512
    hidden_size: int = 192
    intermediate_size: int = 512
    num_hidden_layers: int = 4
    num_attention_heads: int = 6
    num_key_value_heads: int = 2
    head_dim: int = 32
    max_position_embeddings: int = 4096
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6


def hf_config(shape: Shape, eos_ids: list[int], pad_id: int) -> dict[str, Any]:
    """``config.json`` with the names of transformers 4 and of transformers 5."""
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        **asdict(shape),
        "attention_dropout": 0.0,
        "bos_token_id": None,
        "dtype": "bfloat16",
        "eos_token_id": eos_ids,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "layer_types": ["full_attention"] * shape.num_hidden_layers,
        "max_window_layers": shape.num_hidden_layers,
        "pad_token_id": pad_id,
        "rope_parameters": {"rope_theta": shape.rope_theta, "rope_type": "default"},
        "rope_scaling": None,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
    }


def init_params(shape: Shape, seed: int) -> Params:
    """Random float32 parameters; the output projections of a layer start smaller."""
    rng = np.random.default_rng(seed)

    def normal(rows: int, columns: int, scale: float) -> jax.Array:
        return jnp.asarray(rng.normal(0.0, scale, (rows, columns)).astype(np.float32))

    d, f = shape.hidden_size, shape.intermediate_size
    q, kv = shape.num_attention_heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim
    scale, out_scale = d**-0.5, d**-0.5 / (2 * shape.num_hidden_layers) ** 0.5
    params: Params = {"model.embed_tokens.weight": normal(shape.vocab_size, d, 0.05), "model.norm.weight": jnp.ones(d)}
    for layer in range(shape.num_hidden_layers):
        name = f"model.layers.{layer}."
        params[name + "input_layernorm.weight"] = jnp.ones(d)
        params[name + "post_attention_layernorm.weight"] = jnp.ones(d)
        for part, rows in (("q", q), ("k", kv), ("v", kv)):
            params[f"{name}self_attn.{part}_proj.weight"] = normal(rows, d, scale)
            params[f"{name}self_attn.{part}_proj.bias"] = jnp.zeros(rows)
        params[name + "self_attn.o_proj.weight"] = normal(d, q, out_scale)
        params[name + "mlp.gate_proj.weight"] = normal(f, d, scale)
        params[name + "mlp.up_proj.weight"] = normal(f, d, scale)
        params[name + "mlp.down_proj.weight"] = normal(d, f, out_scale * (d / f) ** 0.5)
    return params


def _linear(x: jax.Array, weight: jax.Array, dtype: Any) -> jax.Array:
    """float32[..., out] from x[..., in] and weight[out, in], both rounded to ``dtype`` first."""
    contract = (((x.ndim - 1,), (1,)), ((), ()))
    return lax.dot_general(x.astype(dtype), weight.astype(dtype), contract, preferred_element_type=jnp.float32)


def _norm(x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    return x * lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps) * weight


def _rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotary embedding of x[B, T, N, H] with cos and sin [B, T, 1, H/2]; halves are paired as in Qwen2."""
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def forward(
    params: Params,
    shape: Shape,
    tokens: jax.Array,
    positions: jax.Array,
    mask: jax.Array,
    cache: Cache | None = None,
    write_at: jax.Array | int = 0,
    dtype: Any = jnp.bfloat16,
) -> tuple[jax.Array, Cache]:
    """Logits float32[B, T, V] of tokens int32[B, T].

    ``mask`` bool[B, T, S] says which keys a query sees. Without a cache the keys are those of this call (S = T);
    with one, int k and v [B, S, K, H] are written at column ``write_at`` first and the new cache is returned.
    """
    B, T = tokens.shape
    N, K, H = shape.num_attention_heads, shape.num_key_value_heads, shape.head_dim
    frequencies = shape.rope_theta ** -(jnp.arange(0, H, 2, dtype=jnp.float32) / H)
    angles = positions.astype(jnp.float32)[..., None, None] * frequencies
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    bias_BTS = jnp.where(mask, 0.0, -1e9)[:, None, None]
    new_cache: Cache = []

    def rounded(value: jax.Array) -> jax.Array:
        return value.astype(dtype).astype(jnp.float32)

    x = rounded(params["model.embed_tokens.weight"][tokens])
    for layer in range(shape.num_hidden_layers):
        name = f"model.layers.{layer}."
        h = _norm(x, params[name + "input_layernorm.weight"], shape.rms_norm_eps)
        q, k, v = (
            _linear(h, params[f"{name}self_attn.{part}_proj.weight"], dtype) + params[f"{name}self_attn.{part}_proj.bias"]
            for part in "qkv"
        )
        q = _rotate(q.reshape(B, T, N, H), cos, sin).astype(dtype).reshape(B, T, K, N // K, H)
        k = _rotate(k.reshape(B, T, K, H), cos, sin).astype(dtype)
        v = v.reshape(B, T, K, H).astype(dtype)
        if cache is not None:
            k = lax.dynamic_update_slice_in_dim(cache[layer][0], k, write_at, axis=1)
            v = lax.dynamic_update_slice_in_dim(cache[layer][1], v, write_at, axis=1)
        new_cache.append((k, v))
        scores = jnp.einsum("BTKGH,BSKH->BKGTS", q, k, preferred_element_type=jnp.float32) * H**-0.5
        attention = jax.nn.softmax(scores + bias_BTS, axis=-1).astype(dtype)
        mixed = jnp.einsum("BKGTS,BSKH->BTKGH", attention, v, preferred_element_type=jnp.float32)
        x = rounded(x + _linear(mixed.reshape(B, T, N * H), params[name + "self_attn.o_proj.weight"], dtype))
        h = _norm(x, params[name + "post_attention_layernorm.weight"], shape.rms_norm_eps)
        gate = _linear(h, params[name + "mlp.gate_proj.weight"], dtype)
        up = _linear(h, params[name + "mlp.up_proj.weight"], dtype)
        x = rounded(x + _linear(jax.nn.silu(gate) * up, params[name + "mlp.down_proj.weight"], dtype))
    h = _norm(x, params["model.norm.weight"], shape.rms_norm_eps)
    return _linear(h, params["model.embed_tokens.weight"], dtype), new_cache

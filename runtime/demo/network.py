"""The Qwen2 forward pass of the demo model's training and evaluation, small and self-contained.

Parameters are a flat dict under their Hugging Face names, weights stored (out, in). All arithmetic is float32; with
``rounded=True`` weights, activations, keys, values and the residual stream are rounded to bfloat16 where bfloat16
servers round them, if not all of them everywhere (products of bfloat16 values added up in float32). Serving does not
use this file.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Params = dict[str, jax.Array]
Cache = list[tuple[jax.Array, jax.Array]]  # per layer: keys and values [B, S, K, H]


@dataclass(frozen=True)
class Shape:
    """The sizes of the network, under their names in ``config.json``."""

    vocab_size: int = 512
    hidden_size: int = 128
    intermediate_size: int = 384
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
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


def _linear(x: jax.Array, weight: jax.Array) -> jax.Array:
    """float32[..., out] from x[..., in] and weight[out, in]."""
    return lax.dot_general(x, weight, (((x.ndim - 1,), (1,)), ((), ())), preferred_element_type=jnp.float32)


def _norm(x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    return x * lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps) * weight


def _rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotary embedding of x[B, T, N, H] with cos and sin [B, T, 1, H/2]; halves are paired as in Qwen2."""
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def _attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """Attention output [B, T, K, G, H] of q[B, T, K, G, H], k and v [B, S, K, H], mask bool[B, T, S]."""
    bias = jnp.where(mask, 0.0, -1e9)
    scale = q.shape[-1] ** -0.5
    if q.shape[1] == 1:
        scores = jnp.einsum("BTKGH,BSKH->BKGTS", q, k) * scale + bias[:, None, None]
        return jnp.einsum("BKGTS,BSKH->BTKGH", jax.nn.softmax(scores, axis=-1), v)

    def one_row(row: tuple[jax.Array, jax.Array, jax.Array, jax.Array]) -> jax.Array:
        # Plain two-dimensional products: on CPUs XLA runs them several times faster than batched ones.
        q, k, v, bias = row
        T, K, G, H = q.shape
        heads = []
        for head in range(K):
            q_GTH = q[:, head].transpose(1, 0, 2).reshape(G * T, H)
            scores = (q_GTH @ k[:, head].T).reshape(G, T, -1) * scale + bias
            weights = jax.nn.softmax(scores, axis=-1).reshape(G * T, -1)
            heads.append((weights @ v[:, head]).reshape(G, T, H))
        return jnp.stack(heads).transpose(2, 0, 1, 3)

    mixed: jax.Array = lax.map(one_row, (q, k, v, bias))
    return mixed


def forward(
    params: Params,
    shape: Shape,
    tokens: jax.Array,
    positions: jax.Array,
    mask: jax.Array,
    cache: Cache | None = None,
    write_at: jax.Array | int = 0,
    rounded: bool = True,
) -> tuple[jax.Array, Cache]:
    """Logits float32[B, T, V] of tokens int32[B, T].

    ``mask`` bool[B, T, S] says which keys a query sees. Without a cache the keys are those of this call (S = T);
    with one, its keys and values [B, S, K, H] take the new ones from column ``write_at`` on. The new cache is returned.
    """
    B, T = tokens.shape
    N, K, H = shape.num_attention_heads, shape.num_key_value_heads, shape.head_dim
    frequencies = shape.rope_theta ** -(jnp.arange(0, H, 2, dtype=jnp.float32) / H)
    angles = positions.astype(jnp.float32)[..., None, None] * frequencies
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    new_cache: Cache = []

    def bf16(value: jax.Array) -> jax.Array:
        return lax.reduce_precision(value, exponent_bits=8, mantissa_bits=7) if rounded else value

    def weight(name: str) -> jax.Array:
        return bf16(params[name + ".weight"])

    x = weight("model.embed_tokens")[tokens]
    for layer in range(shape.num_hidden_layers):
        name = f"model.layers.{layer}."
        h = bf16(_norm(x, weight(name + "input_layernorm"), shape.rms_norm_eps))
        q, k, v = (
            bf16(_linear(h, weight(f"{name}self_attn.{part}_proj")) + bf16(params[f"{name}self_attn.{part}_proj.bias"]))
            for part in "qkv"
        )
        q = bf16(_rotate(q.reshape(B, T, N, H), cos, sin)).reshape(B, T, K, N // K, H)
        k = bf16(_rotate(k.reshape(B, T, K, H), cos, sin))
        v = v.reshape(B, T, K, H)
        if cache is not None:
            k = lax.dynamic_update_slice_in_dim(cache[layer][0], k, write_at, axis=1)
            v = lax.dynamic_update_slice_in_dim(cache[layer][1], v, write_at, axis=1)
        new_cache.append((k, v))
        mixed = bf16(_attend(q, k, v, mask)).reshape(B, T, N * H)
        x = bf16(x + bf16(_linear(mixed, weight(name + "self_attn.o_proj"))))
        h = bf16(_norm(x, weight(name + "post_attention_layernorm"), shape.rms_norm_eps))
        gate, up = bf16(_linear(h, weight(name + "mlp.gate_proj"))), bf16(_linear(h, weight(name + "mlp.up_proj")))
        x = bf16(x + bf16(_linear(bf16(jax.nn.silu(gate) * up), weight(name + "mlp.down_proj"))))
    h = bf16(_norm(x, weight("model.norm"), shape.rms_norm_eps))
    return _linear(h, weight("model.embed_tokens")), new_cache

"""The decoder's parameters, described with flax.nnx and named as in the checkpoint.

The modules hold shapes and nothing else: `abstract_params` evaluates them without allocating, the loader
fills the tree, and the forward pass takes it as a plain pytree of dicts and a list. An nnx path is the
checkpoint's key without its "model." prefix, so there is no table of names.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from runtime.model_config import ModelConfig
from runtime.model_parts import Experts

Params = dict[str, Any]
"""Nested dicts of arrays by checkpoint name; `layers` is a list of L such dicts."""


class Module(nnx.Module):  # type: ignore[misc]  # flax has no types for us
    """Base of all modules here."""


class Weight(Module):
    """One `weight` of any shape: an embedding `[V, D]`, a norm `[D]`, the matrices of all experts `[E, F, D]`."""

    def __init__(self, *shape: int, dtype: DTypeLike) -> None:
        self.weight = nnx.Param(jnp.zeros(shape, dtype))


class Linear(Module):
    """`weight [out, in]` and, in some families, `bias [out]`."""

    def __init__(self, num_out: int, num_in: int, *, bias: bool = False, dtype: DTypeLike) -> None:
        self.weight = nnx.Param(jnp.zeros((num_out, num_in), dtype))
        if bias:
            self.bias = nnx.Param(jnp.zeros(num_out, dtype))


class Attention(Module):
    """Projections to N query and K kv heads of H dimensions, and back; in some families each head is normed."""

    def __init__(self, config: ModelConfig, dtype: DTypeLike) -> None:
        model, bias = config.hidden_size, config.qkv_bias
        queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.q_proj = Linear(queries, model, bias=bias, dtype=dtype)
        self.k_proj = Linear(keys, model, bias=bias, dtype=dtype)
        self.v_proj = Linear(keys, model, bias=bias, dtype=dtype)
        self.o_proj = Linear(model, queries, bias=config.o_bias, dtype=dtype)
        if config.qk_norm:
            self.q_norm = Weight(config.head_dim, dtype=dtype)
            self.k_norm = Weight(config.head_dim, dtype=dtype)


class Mlp(Module):
    """The gated feed-forward block."""

    def __init__(self, config: ModelConfig, dtype: DTypeLike) -> None:
        model, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = Linear(inner, model, bias=bias, dtype=dtype)
        self.up_proj = Linear(inner, model, bias=bias, dtype=dtype)
        self.down_proj = Linear(model, inner, bias=bias, dtype=dtype)


class ExpertStack(Module):
    """The gated feed-forward blocks of all E experts, one array per projection."""

    def __init__(self, num_experts: int, model: int, inner: int, dtype: DTypeLike) -> None:
        self.gate_proj = Weight(num_experts, inner, model, dtype=dtype)
        self.up_proj = Weight(num_experts, inner, model, dtype=dtype)
        self.down_proj = Weight(num_experts, model, inner, dtype=dtype)


class SparseMlp(Module):
    """A router over E experts, `gate [E, D]`, and the experts."""

    def __init__(self, experts: Experts, model: int, dtype: DTypeLike) -> None:
        self.gate = Weight(experts.num_experts, model, dtype=dtype)
        self.experts = ExpertStack(experts.num_experts, model, experts.intermediate_size, dtype)


class Layer(Module):
    """Decoder layer `index`."""

    def __init__(self, config: ModelConfig, index: int, dtype: DTypeLike) -> None:
        self.input_layernorm = Weight(config.hidden_size, dtype=dtype)
        self.self_attn = Attention(config, dtype)
        self.post_attention_layernorm = Weight(config.hidden_size, dtype=dtype)
        if config.experts is not None and config.is_sparse(index):
            self.mlp: Module = SparseMlp(config.experts, config.hidden_size, dtype)
        else:
            self.mlp = Mlp(config, dtype)


class Decoder(Module):
    """The complete model. A tied output matrix is the embedding and has no parameter of its own."""

    def __init__(self, config: ModelConfig, dtype: DTypeLike) -> None:
        self.embed_tokens = Weight(config.vocab_size, config.hidden_size, dtype=dtype)
        self.layers = nnx.List([Layer(config, index, dtype) for index in range(config.num_layers)])
        self.norm = Weight(config.hidden_size, dtype=dtype)
        if not config.tie_word_embeddings:
            self.lm_head = Weight(config.vocab_size, config.hidden_size, dtype=dtype)


def abstract_params(config: ModelConfig, dtype: DTypeLike) -> Params:
    """The parameter tree with a `jax.ShapeDtypeStruct` at every leaf; allocates nothing."""
    _, state = nnx.split(nnx.eval_shape(lambda: Decoder(config, dtype)))
    tree: Params = nnx.to_pure_dict(state)
    return tree | {"layers": [tree["layers"][index] for index in range(config.num_layers)]}


def checkpoint_names(tree: Params) -> Params:
    """A tree of the same structure with each leaf's name in a Hugging Face checkpoint."""

    def name(path: tuple[Any, ...], leaf: Any) -> str:
        key = jax.tree_util.keystr(path, simple=True, separator=".")
        return key if key.startswith("lm_head.") else f"model.{key}"

    names: Params = jax.tree_util.tree_map_with_path(name, tree)
    return names

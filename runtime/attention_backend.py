"""Which implementation of the kernels a slice uses: what was asked for, and what platform and model allow.

The same one computes attention, writes KV and packs pages, because it decides how the pool is laid out. Nothing falls
back unseen: `auto` on a TPU takes plain JAX for a model that the kernels do not cover, and the reason is shown.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from kernels.chunked_prefill import chunked_prefill
from kernels.implementations import Implementation
from kernels.kv_pack import gather_pages, scatter_pages
from kernels.kv_pool import PoolDims
from kernels.kv_write import write_kv
from kernels.paged_decode import paged_decode
from runtime.errors import UsageError
from runtime.kv_cache import pool_shape
from runtime.kv_heads import KvHeads
from runtime.model_config import ModelConfig
from runtime.settings import AttentionBackend, Platform

_struct: Any = jax.ShapeDtypeStruct


def choose_backend(
    asked: AttentionBackend, platform: Platform, model: ModelConfig, page_size: int, tp: int
) -> tuple[Implementation, str]:
    """The implementation for slices of `tp` devices, and why that one where it was ours to choose ("" otherwise).

    Raises UsageError when kernels are asked for that do not cover the model.
    """
    if asked == "xla" or (asked == "auto" and platform != "tpu"):
        return "xla", ""
    kernels: Implementation = "pallas" if asked == "auto" else asked
    refusal = kernel_refusal(model, page_size, tp, kernels)
    if refusal is None:
        return kernels, ""
    if asked == "auto":
        return "xla", f"the kernels do not cover this model: {refusal}"
    raise UsageError(f"--attention-backend {asked}: {refusal}; allowed for this model: xla")


def kernel_refusal(model: ModelConfig, page_size: int, tp: int, kernels: Implementation) -> str | None:
    """What the kernels' own checks say against this model's shapes, None if nothing; nothing is compiled."""
    pool = pool_shape(model, page_size, "tpu", kernels=True)
    dims = PoolDims(2, KvHeads(model.num_kv_heads, tp).local, page_size, model.head_dim, pool.side_by_side)
    dtype = jnp.dtype(model.dtype)
    kv = _struct(dims.shape, dtype)
    q = _struct((8, model.num_heads // tp, model.head_dim), dtype)
    new = _struct((8, dims.num_kv_heads, model.head_dim), dtype)
    pages, chunk = _ints(1), _struct((1, 1, *dims.shape[1:]), dtype)
    calls: list[tuple[Callable[..., Any], dict[str, Any], tuple[Any, ...]]] = [
        (write_kv, {}, (kv, new, new, _ints(8))),
        (gather_pages, {}, ([kv], pages)),
        (scatter_pages, {}, ([kv], chunk, pages, pages)),
    ]
    for window in dict.fromkeys(model.windows or (None,)):
        options = {"scale": 1.0, "sliding_window": window}
        calls += [
            (paged_decode, options, (q, kv, _ints(8, 1), _ints(8))),
            (chunked_prefill, options, (q, kv, _ints(1, 1), _ints(2), pages)),
        ]
    for op, options, args in calls:
        try:
            jax.eval_shape(partial(op, implementation=kernels, **options), *args)
        except ValueError as error:
            return " ".join(str(error).split())
    return None


def _ints(*shape: int) -> jax.ShapeDtypeStruct:
    ints: jax.ShapeDtypeStruct = _struct(shape, jnp.int32)
    return ints

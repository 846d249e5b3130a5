"""What every step function of an engine shares, and how it attends: static arguments, set once for each engine."""

from typing import NamedTuple, Protocol

import jax
from jax.sharding import Mesh

from kernels.chunked_prefill import chunked_prefill
from kernels.implementations import Implementation
from kernels.kv_write import write_kv
from kernels.paged_decode import paged_decode
from runtime.model_config import ModelConfig


class AttentionOps(Protocol):
    """Writing KV and the two attention kernels; the benchmark swaps the latter for a passthrough. Hashable."""

    def write(self, kv_pages: jax.Array, k: jax.Array, v: jax.Array, slots: jax.Array) -> jax.Array:
        """`kernels.kv_write`."""
        ...

    def prefill(
        self,
        q: jax.Array,
        kv_pages: jax.Array,
        page_table: jax.Array,
        cu_q_lens: jax.Array,
        context_lens: jax.Array,
        *,
        scale: float,
        sliding_window: int | None = None,
    ) -> jax.Array:
        """`kernels.chunked_prefill`."""
        ...

    def decode(
        self,
        q: jax.Array,
        kv_pages: jax.Array,
        page_table: jax.Array,
        context_lens: jax.Array,
        *,
        scale: float,
        sliding_window: int | None = None,
    ) -> jax.Array:
        """`kernels.paged_decode`."""
        ...


class PagedAttention(NamedTuple):
    """The real thing, computed by one implementation."""

    implementation: Implementation = "xla"

    def write(self, kv_pages: jax.Array, k: jax.Array, v: jax.Array, slots: jax.Array) -> jax.Array:
        """`kernels.kv_write`."""
        return write_kv(kv_pages, k, v, slots, implementation=self.implementation)

    def prefill(
        self,
        q: jax.Array,
        kv_pages: jax.Array,
        page_table: jax.Array,
        cu_q_lens: jax.Array,
        context_lens: jax.Array,
        *,
        scale: float,
        sliding_window: int | None = None,
    ) -> jax.Array:
        """`kernels.chunked_prefill`."""
        return chunked_prefill(
            q,
            kv_pages,
            page_table,
            cu_q_lens,
            context_lens,
            scale=scale,
            sliding_window=sliding_window,
            implementation=self.implementation,
        )

    def decode(
        self,
        q: jax.Array,
        kv_pages: jax.Array,
        page_table: jax.Array,
        context_lens: jax.Array,
        *,
        scale: float,
        sliding_window: int | None = None,
    ) -> jax.Array:
        """`kernels.paged_decode`."""
        return paged_decode(
            q,
            kv_pages,
            page_table,
            context_lens,
            scale=scale,
            sliding_window=sliding_window,
            implementation=self.implementation,
        )


PAGED_ATTENTION = PagedAttention()
"""In plain JAX."""


class StepConfig(NamedTuple):
    """What every step function of one engine shares; static."""

    model: ModelConfig
    page_size: int
    use_sort: bool
    attention: AttentionOps
    mesh: Mesh | None = None  # of the slice's devices, None for one device

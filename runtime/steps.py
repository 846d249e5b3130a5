"""The traced step functions of an engine: everything that a slice ever runs on its device, and nothing else.

A forward pass carries T prefill tokens and B decode rows at once; either may be absent, which makes prefill, decode
and mixed programs the same function. Decode rows are sampled inside the pass. A prompt's end is sampled by
`sample_step` from the hidden states that the pass returns, so that prefill chunks in the middle of a prompt never touch
the output matrix.

Nothing here reads the host. The token that a row samples goes into `DeviceRows.last_tokens`, where the next step
finds it, so that steps may be dispatched before anybody saw what came out of the previous one.

On a slice of several devices activations are on all of them. Attention runs on each device's own heads; matrices are
split (`runtime.models.sharding`), and XLA sums the partial products; logits are collected before they are sampled.
"""

import functools
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from kernels.chunked_prefill import chunked_prefill
from kernels.implementations import Implementation
from kernels.kv_write import write_kv
from kernels.paged_decode import paged_decode
from runtime import compat, sampler
from runtime.device_state import DeviceRows
from runtime.engine import SENTINEL_PAGE
from runtime.model_config import ModelConfig
from runtime.models import decoder
from runtime.placement import EVERYWHERE, HEADS_SPEC, LOGITS_SPEC, POOL_SPEC
from runtime.sampling_params import MAX_LOGPROBS
from runtime.step_inputs import StepLayout

Pool = list[jax.Array]


class Drawn(NamedTuple):
    """What n rows sampled. The logprobs are zeros unless the step asked for them."""

    tokens: jax.Array  # int32[n]
    logprob: jax.Array  # float32[n]
    top_logprobs: jax.Array  # float32[n, MAX_LOGPROBS]
    top_ids: jax.Array  # int32[n, MAX_LOGPROBS]


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


class Batch(NamedTuple):
    """The tokens of one forward pass, prefill first, and where their KV goes."""

    tokens: jax.Array  # int32[T + B]
    positions: jax.Array  # int32[T + B]
    slots: jax.Array  # int32[T + B], page * page_size + offset


def forward_step(
    params: Any, pool: Pool, rows: DeviceRows, packed: jax.Array, *, config: StepConfig, layout: StepLayout
) -> tuple[Pool, DeviceRows, jax.Array | None, Drawn | None]:
    """One forward pass. `pool` and `rows` are donated; `packed` int32[layout.size].

    Returns pool, rows, the last hidden state of each prefill segment `[R, D]` (None without prefill) and what the
    decode rows drew (None without decode).
    """
    inputs = layout.unpack(packed)
    row, column, page = inputs["deltas"]
    rows = rows._replace(tables=rows.tables.at[row, column].set(page, mode="promise_in_bounds"))
    batch = _concat(
        _prefill_batch(inputs, layout, config.page_size) if layout.num_tokens else None,
        _decode_batch(inputs, rows, config.page_size) if layout.num_decode else None,
    )
    attend = _attention(inputs, rows, batch, config, layout)
    hidden, pool = decoder.forward(params, config.model, batch.tokens, batch.positions, pool, attend, mesh=config.mesh)
    hidden = _on_all_devices(hidden, config.mesh)
    last_hidden = None
    if layout.num_tokens:
        last_hidden = hidden[jnp.maximum(inputs["cu_q_lens"][1:] - 1, 0)]
    if not layout.num_decode:
        return pool, rows, last_hidden, None
    decode = inputs["rows"]
    lengths = rows.lengths.at[decode].add(1, mode="promise_in_bounds").at[rows.sentinel].set(0)
    rows, drawn = _draw(
        params,
        rows._replace(lengths=lengths),
        hidden[layout.num_tokens :],
        decode,
        inputs["want_logprobs"][0] != 0,
        config,
    )
    return pool, rows, last_hidden, drawn


def sample_step(
    params: Any, rows: DeviceRows, last_hidden: jax.Array, packed: jax.Array, *, config: StepConfig
) -> tuple[DeviceRows, Drawn]:
    """Samples rows that a prompt's last chunk feeds. `rows` is donated.

    `last_hidden` [R, D] comes from `forward_step`; `packed` int32[2, S + 1] holds a flag for logprobs and a zero in its
    first column, then segment numbers over row numbers.
    """
    segments, targets = packed[0, 1:], packed[1, 1:]
    return _draw(params, rows, last_hidden[segments], targets, packed[0, 0] != 0, config)


def _draw(
    params: Any,
    rows: DeviceRows,
    hidden: jax.Array,
    targets: jax.Array,
    want_logprobs: jax.Array,
    config: StepConfig,
) -> tuple[DeviceRows, Drawn]:
    """Samples row `targets[i]` from `hidden[i]` and advances it."""
    logits = _logits(params, hidden, config)
    tokens = sampler.sample(logits, rows.sampler, targets, use_sort=config.use_sort)
    drawn = Drawn(tokens, *_logprobs(logits, tokens, want_logprobs))
    last_tokens = rows.last_tokens.at[targets].set(tokens, mode="promise_in_bounds")
    advanced = sampler.advance(rows.sampler, targets, tokens)
    return rows._replace(last_tokens=last_tokens, sampler=advanced), drawn


def _logprobs(logits: jax.Array, tokens: jax.Array, wanted: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    shape = (tokens.shape[0], MAX_LOGPROBS)

    def nothing() -> tuple[jax.Array, jax.Array, jax.Array]:
        return jnp.zeros(shape[0], jnp.float32), jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.int32)

    chosen, values, ids = jax.lax.cond(wanted, lambda: sampler.logprobs(logits, tokens, MAX_LOGPROBS), nothing)
    return chosen, values, ids


def _prefill_batch(inputs: dict[str, jax.Array], layout: StepLayout, page_size: int) -> Batch:
    """Tokens beyond the last segment belong to no one: position 0, page 0."""
    cu_q_lens, tables = inputs["cu_q_lens"], inputs["tables"]
    index = jnp.arange(layout.num_tokens, dtype=jnp.int32)
    segment = jnp.sum(index[:, None] >= cu_q_lens[None, 1:], axis=1, dtype=jnp.int32)
    is_real = segment < layout.num_segments
    segment = jnp.minimum(segment, layout.num_segments - 1)
    positions = jnp.where(is_real, inputs["starts"][segment] + index - cu_q_lens[segment], 0)
    slots = _slots(tables, segment, positions, page_size)
    return Batch(inputs["tokens"], positions, jnp.where(is_real, slots, SENTINEL_PAGE))


def _decode_batch(inputs: dict[str, jax.Array], rows: DeviceRows, page_size: int) -> Batch:
    targets = inputs["rows"]
    positions = rows.lengths[targets]
    return Batch(rows.last_tokens[targets], positions, _slots(rows.tables, targets, positions, page_size))


def _slots(tables: jax.Array, row: jax.Array, positions: jax.Array, page_size: int) -> jax.Array:
    """Where the KV of `positions` goes; past the end of the table, as pages that nobody owns, to the sentinel."""
    width = tables.shape[1]
    column = positions // page_size
    page = tables[row, jnp.minimum(column, width - 1)]
    return jnp.where(column < width, page, SENTINEL_PAGE) * page_size + positions % page_size


def _concat(prefill: Batch | None, decode: Batch | None) -> Batch:
    parts = [part for part in (prefill, decode) if part is not None]
    return Batch(*(jnp.concatenate(field) for field in zip(*parts, strict=True)))


def _logits(params: Any, hidden: jax.Array, config: StepConfig) -> jax.Array:
    """Logits float32[S, V] of hidden states [S, D], on every device."""
    logits = decoder.logits(params, config.model, hidden)
    mesh = config.mesh
    if mesh is not None and config.model.vocab_size % mesh.size == 0:
        # Said of the product itself, or XLA would rather collect the head than the logits.
        logits = compat.constrain(logits, NamedSharding(mesh, LOGITS_SPEC))
    return _on_all_devices(logits, mesh)


def _on_all_devices(values: jax.Array, mesh: Mesh | None) -> jax.Array:
    everywhere: jax.Array = values if mesh is None else compat.constrain(values, NamedSharding(mesh, EVERYWHERE))
    return everywhere


class AttentionInputs(NamedTuple):
    """Where a step's tokens and sequences are; the same for all layers and heads. None where a phase is absent."""

    slots: jax.Array  # int32[T + B]
    tables: jax.Array | None  # int32[R, W], of the prefill segments
    cu_q_lens: jax.Array | None  # int32[R + 1]
    prefill_lens: jax.Array | None  # int32[R]
    decode_tables: jax.Array | None  # int32[B, W]
    decode_lens: jax.Array | None  # int32[B]


def _attention(
    inputs: dict[str, jax.Array], rows: DeviceRows, batch: Batch, config: StepConfig, layout: StepLayout
) -> decoder.Attend:
    """The `attend` of `decoder.forward`."""
    num_tokens, decodes = layout.num_tokens, layout.num_decode > 0
    most = layout.table_width * config.page_size
    lens = jnp.minimum(batch.positions[num_tokens:] + 1, most)
    where = AttentionInputs(
        slots=batch.slots,
        tables=inputs["tables"] if num_tokens else None,
        cu_q_lens=inputs["cu_q_lens"] if num_tokens else None,
        prefill_lens=inputs["starts"] + jnp.diff(inputs["cu_q_lens"]) if num_tokens else None,
        decode_tables=rows.tables[inputs["rows"]] if decodes else None,
        decode_lens=jnp.where(inputs["rows"] == layout.sentinel_row, 0, lens) if decodes else None,
    )
    return attend_per_head(where, config.model.head_dim**-0.5, config.attention, config.mesh)


def attend_per_head(where: AttentionInputs, scale: float, attention: AttentionOps, mesh: Mesh | None) -> decoder.Attend:
    """Writes a layer's new KV, then attends to all of it: each device on its own kv heads and their query heads."""

    def attend(
        kv: jax.Array, q: jax.Array, k: jax.Array, v: jax.Array, window: int | None = None
    ) -> tuple[jax.Array, jax.Array]:
        def on_heads(
            kv: jax.Array, q: jax.Array, k: jax.Array, v: jax.Array, where: AttentionInputs
        ) -> tuple[jax.Array, jax.Array]:
            pair: tuple[jax.Array, jax.Array] = _attend(
                kv, q, k, v, where, scale=scale, attention=attention, window=window
            )
            return pair

        if mesh is None:
            return on_heads(kv, q, k, v, where)
        specs = (POOL_SPEC, HEADS_SPEC, HEADS_SPEC, HEADS_SPEC, EVERYWHERE)
        attended: tuple[jax.Array, jax.Array] = compat.over_shards(on_heads, mesh, specs, (POOL_SPEC, HEADS_SPEC))(
            kv, q, k, v, where
        )
        return attended

    return attend


@functools.partial(jax.jit, static_argnames=("scale", "attention", "window"))
def _attend(
    kv: jax.Array,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    where: AttentionInputs,
    *,
    scale: float,
    attention: AttentionOps,
    window: int | None,
) -> tuple[jax.Array, jax.Array]:
    """One layer's write and attention. A function of its own to jax, so that it is traced and lowered once for all
    layers that look alike; XLA inlines it.
    """
    kv = attention.write(kv, k, v, where.slots)
    num_decode = 0 if where.decode_lens is None else where.decode_lens.shape[0]
    num_tokens = q.shape[0] - num_decode
    outputs = []
    if where.tables is not None and where.cu_q_lens is not None and where.prefill_lens is not None:
        outputs.append(
            attention.prefill(
                q[:num_tokens],
                kv,
                where.tables,
                where.cu_q_lens,
                where.prefill_lens,
                scale=scale,
                sliding_window=window,
            )
        )
    if where.decode_tables is not None and where.decode_lens is not None:
        outputs.append(
            attention.decode(
                q[num_tokens:], kv, where.decode_tables, where.decode_lens, scale=scale, sliding_window=window
            )
        )
    return kv, jnp.concatenate(outputs) if len(outputs) > 1 else outputs[0]

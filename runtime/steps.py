"""The traced step functions of an engine: everything that a slice ever runs on its device, and nothing else.

A forward pass carries T prefill tokens and B decode rows at once; either may be absent, which makes prefill, decode
and mixed programs the same function. Decode rows are sampled inside the pass, unless that is deferred. A prompt's end,
and a deferred row, is sampled by `step_sampling.sample_step` from the hidden states that the pass returns, so that
prefill chunks in the middle of a prompt never touch the output matrix, but where the prompt itself is to be scored.

Nothing here reads the host. The token that a row samples goes into `DeviceRows.last_tokens`, where the next step
finds it, so that steps may be dispatched before anybody saw what came out of the previous one.

On a slice of several devices activations are on all of them. Attention runs on each device's own heads; matrices are
split (`runtime.models.sharding`), and XLA sums the partial products; logits are collected before they are sampled.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from runtime import compat
from runtime.device_state import DeviceRows
from runtime.engine import SENTINEL_PAGE
from runtime.models import decoder
from runtime.placement import EVERYWHERE, HEADS_SPEC, POOL_SPEC
from runtime.step_config import AttentionOps, StepConfig
from runtime.step_inputs import StepLayout
from runtime.step_sampling import Drawn, Scores, draw_unless, on_all_devices, score

Pool = list[jax.Array]


class Batch(NamedTuple):
    """The tokens of one forward pass, prefill first, and where their KV goes."""

    tokens: jax.Array  # int32[T + B]
    positions: jax.Array  # int32[T + B]
    slots: jax.Array  # int32[T + B], page * page_size + offset


class Passed(NamedTuple):
    """What a forward pass gives beside the state; the former two are None without prefill, the others without decode.

    Hidden states are padded to `layout.num_hidden` rows, so that any pass feeds any sampling program.
    """

    last_hidden: jax.Array | None = None  # [N, D], of each prefill segment's last token
    scores: Scores | None = None  # of the prefill tokens
    hidden: jax.Array | None = None  # [N, D], of the decode rows
    drawn: Drawn | None = None  # by the decode rows, zeros if that is deferred


def forward_step(
    params: Any, pool: Pool, rows: DeviceRows, packed: jax.Array, *, config: StepConfig, layout: StepLayout
) -> tuple[Pool, DeviceRows, Passed]:
    """One forward pass. `pool` and `rows` are donated; `packed` int32[layout.size]."""
    inputs = layout.unpack(packed)
    row, column, page = inputs["deltas"]
    rows = rows._replace(tables=rows.tables.at[row, column].set(page, mode="promise_in_bounds"))
    batch = _concat(
        _prefill_batch(inputs, layout, config.page_size) if layout.num_tokens else None,
        _decode_batch(inputs, rows, config.page_size) if layout.num_decode else None,
    )
    attend = _attention(inputs, rows, batch, config, layout)
    hidden, pool = decoder.forward(params, config.model, batch.tokens, batch.positions, pool, attend, mesh=config.mesh)
    hidden = on_all_devices(hidden, config)
    passed = Passed()
    if layout.num_tokens:
        last_hidden = hidden[jnp.maximum(inputs["cu_q_lens"][1:] - 1, 0)]
        scores = score(params, hidden, _next_tokens(inputs, layout), inputs["score_span"], config)
        passed = passed._replace(last_hidden=_padded(last_hidden, layout.num_hidden), scores=scores)
    if layout.num_decode:
        decode, hidden = inputs["rows"], hidden[layout.num_tokens :]
        lengths = rows.lengths.at[decode].add(1, mode="promise_in_bounds").at[rows.sentinel].set(0)
        is_deferred, want_logprobs = inputs["is_deferred"][0] != 0, inputs["want_logprobs"][0] != 0
        rows = rows._replace(lengths=lengths)
        rows, drawn = draw_unless(is_deferred, params, rows, hidden, decode, want_logprobs, config)
        passed = passed._replace(hidden=_padded(hidden, layout.num_hidden), drawn=drawn)
    return pool, rows, passed


def _padded(hidden: jax.Array, num_rows: int) -> jax.Array:
    return jnp.pad(hidden, ((0, num_rows - hidden.shape[0]), (0, 0)))


def _segments(inputs: dict[str, jax.Array], layout: StepLayout) -> jax.Array:
    """Each prefill token's segment, int32[T]; `layout.num_segments` for tokens that belong to no one."""
    index = jnp.arange(layout.num_tokens, dtype=jnp.int32)
    return jnp.sum(index[:, None] >= inputs["cu_q_lens"][None, 1:], axis=1, dtype=jnp.int32)


def _next_tokens(inputs: dict[str, jax.Array], layout: StepLayout) -> jax.Array:
    """What follows each prefill token in its prompt, int32[T]; the last of a segment is told by the host."""
    segment = jnp.minimum(_segments(inputs, layout), layout.num_segments - 1)
    is_last = jnp.arange(1, layout.num_tokens + 1) == inputs["cu_q_lens"][segment + 1]
    return jnp.where(is_last, inputs["next_tokens"][segment], jnp.roll(inputs["tokens"], -1))


def _prefill_batch(inputs: dict[str, jax.Array], layout: StepLayout, page_size: int) -> Batch:
    """Tokens beyond the last segment belong to no one: position 0, page 0."""
    cu_q_lens, tables = inputs["cu_q_lens"], inputs["tables"]
    index = jnp.arange(layout.num_tokens, dtype=jnp.int32)
    segment = _segments(inputs, layout)
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

"""From hidden states to tokens and logprobs, traced: what decode rows and prompts' ends sample, and prompts' scores.

A fused step draws its decode rows inside the forward pass. `sample_step` is a program of its own that draws any rows
from hidden states that a pass returned: those that a prompt's last chunk feeds, and the decode rows of a deferred step,
whose masks the host computed while that pass ran. A pass with scored segments takes the logprobs of the prompt's own
tokens, block by block, so that there are never logits of a whole chunk.

Every conditional here and in the sampler has in its false branch what a step does of which nobody asked anything
special: the time estimates of `runtime.compile` count on it.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding

from runtime import compat, sampler
from runtime.device_state import DeviceRows
from runtime.models import decoder
from runtime.placement import EVERYWHERE, LOGITS_SPEC
from runtime.sampler import Masks
from runtime.sampling_params import MAX_LOGPROBS
from runtime.step_config import StepConfig

SCORE_BLOCK = 64
"""Rows of a prompt that are scored at once: their logits, float32, are 39 MB with 151,936 tokens."""


class Drawn(NamedTuple):
    """What n rows sampled. The logprobs are zeros unless the step asked for them."""

    tokens: jax.Array  # int32[n]
    logprob: jax.Array  # float32[n]
    top_logprobs: jax.Array  # float32[n, MAX_LOGPROBS]
    top_ids: jax.Array  # int32[n, MAX_LOGPROBS]


class Scores(NamedTuple):
    """Logprobs of the tokens that follow T prefill tokens. Zeros outside the blocks that the step asked for."""

    logprob: jax.Array  # float32[T]
    top_logprobs: jax.Array  # float32[T, MAX_LOGPROBS]
    top_ids: jax.Array  # int32[T, MAX_LOGPROBS]


def sample_step(
    params: Any, rows: DeviceRows, hidden: jax.Array, packed: jax.Array, masks: jax.Array, *, config: StepConfig
) -> tuple[DeviceRows, Drawn]:
    """Samples rows from hidden states of an earlier pass. `rows` is donated.

    `hidden` [N, D] comes from `forward_step`, of prompts' ends or of decode rows; `packed` int32[3, S + 1] holds a flag
    for logprobs and zeros in its first column, then places in `hidden` over row numbers over whether the row's mask is
    that of `masks` uint32[S, W] instead of its own.
    """
    places, targets, is_given = packed[:, 1:]
    return draw(params, rows, hidden[places], targets, packed[0, 0] != 0, config, masks=Masks(masks, is_given != 0))


def draw(
    params: Any,
    rows: DeviceRows,
    hidden: jax.Array,
    targets: jax.Array,
    want_logprobs: jax.Array,
    config: StepConfig,
    *,
    masks: Masks | None = None,
) -> tuple[DeviceRows, Drawn]:
    """Samples row `targets[i]` from `hidden[i]` and advances it."""
    drawn = _drawn(params, rows, hidden, targets, want_logprobs, config, masks)
    return _advanced(rows, targets, drawn.tokens), drawn


def draw_unless(
    is_deferred: jax.Array,
    params: Any,
    rows: DeviceRows,
    hidden: jax.Array,
    targets: jax.Array,
    want_logprobs: jax.Array,
    config: StepConfig,
) -> tuple[DeviceRows, Drawn]:
    """`draw`, or with the flag zeros, at no cost and without a row advancing.

    What is as wide as the vocabulary does not pass through the conditional, or it would be copied: where nothing is
    drawn the sentinel row advances instead.
    """

    def nothing() -> Drawn:
        shapes = jax.eval_shape(lambda: _drawn(params, rows, hidden, targets, want_logprobs, config, None))
        return Drawn(*(jnp.zeros(leaf.shape, leaf.dtype) for leaf in shapes))

    def drawn_now() -> Drawn:
        return _drawn(params, rows, hidden, targets, want_logprobs, config, None)

    drawn = lax.cond(is_deferred, nothing, drawn_now)
    return _advanced(rows, jnp.where(is_deferred, rows.sentinel, targets), drawn.tokens), drawn


def score(params: Any, hidden: jax.Array, targets: jax.Array, span: jax.Array, config: StepConfig) -> Scores:
    """Logprobs of `targets` int32[T] behind the first T of `hidden` [T or more, D], and of the likeliest tokens there.

    Only blocks that begin in `span`, int32[2]: first row and the one behind the last; none if it is empty.
    """
    num_rows = targets.shape[0]
    block = min(SCORE_BLOCK, num_rows)

    def nothing() -> Scores:
        top = (num_rows, MAX_LOGPROBS)
        return Scores(jnp.zeros(num_rows, jnp.float32), jnp.zeros(top, jnp.float32), jnp.zeros(top, jnp.int32))

    def one_block(index: jax.Array, scores: Scores) -> Scores:
        # The last block reaches back into the one before, whose rows get what they have.
        start = jnp.minimum(span[0] + index * block, num_rows - block)
        logits = _logits(params, lax.dynamic_slice_in_dim(hidden, start, block), config)
        found = sampler.logprobs(logits, lax.dynamic_slice_in_dim(targets, start, block), MAX_LOGPROBS)
        update = lax.dynamic_update_slice_in_dim
        return Scores(*(update(whole, part, start, 0) for whole, part in zip(scores, found, strict=True)))

    def all_blocks() -> Scores:
        num_blocks = (span[1] - span[0] + block - 1) // block
        scores: Scores = lax.fori_loop(0, num_blocks, one_block, nothing())
        return scores

    scores: Scores = lax.cond(span[1] > span[0], all_blocks, nothing)
    return scores


def on_all_devices(values: jax.Array, config: StepConfig) -> jax.Array:
    """The values, whole on every device of the slice."""
    mesh = config.mesh
    everywhere: jax.Array = values if mesh is None else compat.constrain(values, NamedSharding(mesh, EVERYWHERE))
    return everywhere


def _drawn(
    params: Any,
    rows: DeviceRows,
    hidden: jax.Array,
    targets: jax.Array,
    want_logprobs: jax.Array,
    config: StepConfig,
    masks: Masks | None,
) -> Drawn:
    logits = _logits(params, hidden, config)
    tokens = sampler.sample(logits, rows.sampler, targets, masks=masks, use_sort=config.use_sort)
    return Drawn(tokens, *_logprobs(logits, tokens, want_logprobs))


def _advanced(rows: DeviceRows, targets: jax.Array, tokens: jax.Array) -> DeviceRows:
    last_tokens = rows.last_tokens.at[targets].set(tokens, mode="promise_in_bounds")
    return rows._replace(last_tokens=last_tokens, sampler=sampler.advance(rows.sampler, targets, tokens))


def _logprobs(logits: jax.Array, tokens: jax.Array, wanted: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    shape = (tokens.shape[0], MAX_LOGPROBS)

    def nothing() -> tuple[jax.Array, jax.Array, jax.Array]:
        return jnp.zeros(shape[0], jnp.float32), jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.int32)

    chosen, values, ids = jax.lax.cond(wanted, lambda: sampler.logprobs(logits, tokens, MAX_LOGPROBS), nothing)
    return chosen, values, ids


def _logits(params: Any, hidden: jax.Array, config: StepConfig) -> jax.Array:
    """Logits float32[S, V] of hidden states [S, D], on every device."""
    logits = decoder.logits(params, config.model, hidden)
    mesh = config.mesh
    if mesh is not None and config.model.vocab_size % mesh.size == 0:
        # Said of the product itself, or XLA would rather collect the head than the logits.
        logits = compat.constrain(logits, NamedSharding(mesh, LOGITS_SPEC))
    return on_all_devices(logits, config)

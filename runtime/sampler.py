"""The sampler: from raw logits and per-row state on the device to tokens and logprobs. Pure jax, jitted by
steps.

Order of application, per row: repetition penalty, frequency and presence penalty; logit bias; allowed mask;
stop ids masked while `index < min_tokens`; temperature; top-k; top-p; min-p. Temperature 0 takes the most
likely token of the logits as edited up to the masks, of equals the one with the lowest id.

State lives in `SamplerRows` of R rows; a step samples B of them. What is cheap is gathered always, what is V
wide only inside `lax.cond` branches, so a feature that no row of the batch uses costs nothing.

Corner cases, all without a crash and with a token inside the vocabulary:
* Ties at a top-k or top-p cut are all kept (see `truncation`).
* If every token is excluded, the masking of stop ids is dropped first, then the allowed mask. The API lets
  neither happen.
* A NaN logit counts as excluded and +inf as the largest float32; a row of NaN only gives token 0.
* The sentinel row (R-1), which padding rows point at, is never read by anyone: its index and counts may hold
  anything.
"""

from collections.abc import Callable
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import lax

from runtime import logit_edits, sampler_noise
from runtime.logit_edits import finite_or_excluded
from runtime.sampling_params import MAX_LOGIT_BIAS, MAX_LOGPROBS, MAX_STOP_IDS
from runtime.truncation import smallest_kept

_ARGMAX_BLOCK = 128


class SamplerRows(NamedTuple):
    """Everything the sampler knows of R rows. W = ceil(V/32); masks are packed, bit v%32 of word v//32 is
    token v.

    The same tuple with numpy leaves and without the leading axis is one row's value
    (`sampler_rows.row_values`).
    """

    temperature: jax.Array  # float32[R], 0 is greedy
    top_k: jax.Array  # int32[R], off outside 1..V-1
    top_p: jax.Array  # float32[R], off from 1 on
    min_p: jax.Array  # float32[R], off at 0; relative to the likeliest token
    presence: jax.Array  # float32[R], subtracted once from tokens of the output
    frequency: jax.Array  # float32[R], subtracted once per occurrence in the output
    repetition: jax.Array  # float32[R], factor on tokens of prompt and output, off at 1
    bias_ids: jax.Array  # int32[R, MAX_LOGIT_BIAS], filled from the left, -1 pads
    bias_values: jax.Array  # float32[R, MAX_LOGIT_BIAS]
    mask: jax.Array  # uint32[R, W], tokens allowed
    use_mask: jax.Array  # bool[R]
    stop_ids: jax.Array  # int32[R, MAX_STOP_IDS], filled from the left, -1 pads
    min_tokens: jax.Array  # int32[R], stop ids are masked before this output index
    seed: jax.Array  # uint32[R, 2], low and high half
    choice: jax.Array  # int32[R]
    index: jax.Array  # type: ignore[assignment]  # (hides tuple.index) int32[R], output index of the token to sample next
    prompt_mask: jax.Array  # uint32[R, W], tokens that occur in the prompt
    counts: jax.Array  # int32[R, V], occurrences in the output so far


class Masks(NamedTuple):
    """Packed masks that come with B sampled rows, and whether a row's is to take the place of its own."""

    words: jax.Array  # uint32[B, W]
    is_given: jax.Array  # bool[B]


def mask_words(vocab_size: int) -> int:
    """32-bit words of a packed mask over the vocabulary."""
    return -(-vocab_size // 32)


def empty_rows(num_rows: int, vocab_size: int) -> SamplerRows:
    """Greedy rows without any feature; every leaf has a buffer of its own, so the whole may be donated."""
    words = mask_words(vocab_size)
    return SamplerRows(
        temperature=jnp.zeros(num_rows, jnp.float32),
        top_k=jnp.zeros(num_rows, jnp.int32),
        top_p=jnp.ones(num_rows, jnp.float32),
        min_p=jnp.zeros(num_rows, jnp.float32),
        presence=jnp.zeros(num_rows, jnp.float32),
        frequency=jnp.zeros(num_rows, jnp.float32),
        repetition=jnp.ones(num_rows, jnp.float32),
        bias_ids=jnp.full((num_rows, MAX_LOGIT_BIAS), -1, jnp.int32),
        bias_values=jnp.zeros((num_rows, MAX_LOGIT_BIAS), jnp.float32),
        mask=jnp.zeros((num_rows, words), jnp.uint32),
        use_mask=jnp.zeros(num_rows, jnp.bool_),
        stop_ids=jnp.full((num_rows, MAX_STOP_IDS), -1, jnp.int32),
        min_tokens=jnp.zeros(num_rows, jnp.int32),
        seed=jnp.zeros((num_rows, 2), jnp.uint32),
        choice=jnp.zeros(num_rows, jnp.int32),
        index=jnp.zeros(num_rows, jnp.int32),
        prompt_mask=jnp.zeros((num_rows, words), jnp.uint32),
        counts=jnp.zeros((num_rows, vocab_size), jnp.int32),
    )


def process(logits: jax.Array, rows: SamplerRows, *, use_sort: bool = False) -> jax.Array:
    """Logits whose softmax is what row b samples from, float32[B, V], -inf where excluded.

    `logits` float32[B, V], raw; `rows` holds the same B rows. Sampled rows are shifted so that their largest
    is 0; rows of temperature 0 come back with penalties, bias and masks only.
    """
    every = jnp.arange(logits.shape[0], dtype=jnp.int32)
    edited = _edit(logits, rows, every)
    return _any_sampled(rows, every, lambda: _truncate(edited, rows, every, use_sort), lambda: edited)


def sample(
    logits: jax.Array, state: SamplerRows, rows: jax.Array, *, masks: Masks | None = None, use_sort: bool = False
) -> jax.Array:
    """The next token of each listed row, int32[B].

    `logits` float32[B, V], raw; `state` R rows, read only; `rows` int32[B], row b of the batch being
    `state[rows[b]]`; `masks` are the batch's own, if any come with it. Gumbel-max: the argmax of processed
    logits plus noise that depends on the row's (seed, choice, index) alone.
    """
    edited = _edit(logits, state, rows, masks)

    def perturbed() -> jax.Array:
        processed = _truncate(edited, state, rows, use_sort)
        key = sampler_noise.row_keys(state.seed[rows], state.choice[rows], state.index[rows])
        scale = (state.temperature[rows] > 0.0).astype(jnp.float32)
        return _argmax(processed + scale[:, None] * sampler_noise.gumbel(key, logits.shape[1]))

    return _any_sampled(state, rows, perturbed, lambda: _argmax(edited))


def advance(state: SamplerRows, rows: jax.Array, tokens: jax.Array) -> SamplerRows:
    """The state after `rows` int32[B] produced `tokens` int32[B]; in place where `state` is donated.

    A row listed several times (the sentinel row) advances as often.
    """
    return state._replace(
        index=state.index.at[rows].add(1, mode="promise_in_bounds"),
        counts=state.counts.at[rows, tokens].add(1, mode="promise_in_bounds"),
    )


def logprobs(logits: jax.Array, tokens: jax.Array, k: int = MAX_LOGPROBS) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Log-softmax of the raw logits at `tokens` and at the k largest.

    `logits` float32[B, V], `tokens` int32[B]. Returns float32[B], float32[B, k] descending and int32[B, k]
    token ids, of equals the lowest first; beyond the vocabulary's size -inf and -1. A NaN logit counts as
    -inf.
    """
    logits = finite_or_excluded(logits)
    num_top = min(k, logits.shape[1])
    values, ids = lax.top_k(logits, num_top)
    top = _largest(logits)
    norm = top + jnp.log(jnp.maximum(jnp.sum(jnp.exp(logits - top), axis=1, keepdims=True), 1.0))
    chosen = jnp.take_along_axis(logits, tokens[:, None], axis=1) - norm
    pad = ((0, 0), (0, k - num_top))
    return (
        chosen[:, 0],
        jnp.pad(values - norm, pad, constant_values=-jnp.inf),
        jnp.pad(ids.astype(jnp.int32), pad, constant_values=-1),
    )


def _edit(logits: jax.Array, state: SamplerRows, rows: jax.Array, masks: Masks | None = None) -> jax.Array:
    """Penalties, bias and masks, each only if a row uses it. Without NaN and +inf; float32[B, V]."""
    presence, frequency, repetition = state.presence[rows], state.frequency[rows], state.repetition[rows]
    is_penalized = (presence != 0.0) | (frequency != 0.0) | (repetition != 1.0)
    is_biased = state.bias_ids[:, 0][rows] >= 0
    is_masked = state.use_mask[rows] if masks is None else state.use_mask[rows] | masks.is_given
    is_early = (state.index[rows] < state.min_tokens[rows]) & (state.stop_ids[:, 0][rows] >= 0)

    def penalize(x: jax.Array) -> jax.Array:
        counts, prompt_mask = _rows_of(state.counts, rows), state.prompt_mask[rows]
        return logit_edits.penalize(x, counts, prompt_mask, presence, frequency, repetition)

    def allow(x: jax.Array) -> jax.Array:
        words = state.mask[rows]
        if masks is not None:
            words = jnp.where(masks.is_given[:, None], masks.words, words)
        return logit_edits.allow(x, words, is_masked)

    def bias(x: jax.Array) -> jax.Array:
        return logit_edits.add_bias(x, state.bias_ids[rows], state.bias_values[rows])

    def edit(x: jax.Array) -> jax.Array:
        x = _if_any(is_penalized, penalize, x)
        x = _if_any(is_biased, bias, x)
        x = _if_any(is_masked, allow, x)
        return _if_any(is_early, lambda x: logit_edits.forbid(x, state.stop_ids[rows], is_early), x)

    return _if_any(is_penalized | is_biased | is_masked | is_early, edit, finite_or_excluded(logits))


def _rows_of(wide: jax.Array, rows: jax.Array) -> jax.Array:
    """`wide[rows]`, copied row by row: as one gather of rows as long as a vocabulary, XLA's TPU compiler takes twenty
    times as long and needs the result twice.
    """

    def copy(index: jax.Array, taken: jax.Array) -> jax.Array:
        row = lax.dynamic_slice_in_dim(wide, rows[index], 1)
        return lax.dynamic_update_slice_in_dim(taken, row, index, 0)

    empty = jnp.zeros((rows.shape[0], *wide.shape[1:]), wide.dtype)
    copied: jax.Array = lax.fori_loop(0, rows.shape[0], copy, empty)
    return copied


def _truncate(edited: jax.Array, state: SamplerRows, rows: jax.Array, use_sort: bool) -> jax.Array:
    """Temperature, top-k, top-p and min-p in rows with a temperature, others as they are; float32[B, V]."""
    temperature = state.temperature[rows]
    is_sampled = temperature > 0.0
    divisor = jnp.where(is_sampled, temperature, 1.0)
    top_k = jnp.where(is_sampled, state.top_k[rows], 0)
    top_p = jnp.where(is_sampled, state.top_p[rows], 1.0)
    is_cut = ((top_k > 0) & (top_k < edited.shape[1])) | (top_p < 1.0)
    cut = lax.cond(
        jnp.any(is_cut),
        lambda: smallest_kept(edited, divisor, top_k, top_p, use_sort=use_sort),
        lambda: jnp.full_like(divisor, -jnp.inf),
    )
    top = _largest(edited)[:, 0]
    cut = jnp.maximum(cut, jnp.where(is_sampled, top + divisor * jnp.log(state.min_p[rows]), -jnp.inf))
    shift = jnp.where(is_sampled, top, 0.0)
    return jnp.where(edited >= cut[:, None], (edited - shift[:, None]) / divisor[:, None], -jnp.inf)


def _any_sampled(
    state: SamplerRows, rows: jax.Array, sampled: Callable[[], jax.Array], greedy: Callable[[], jax.Array]
) -> jax.Array:
    return cast(jax.Array, lax.cond(jnp.any(state.temperature[rows] > 0.0), sampled, greedy))


def _if_any(uses: jax.Array, edit: Callable[[jax.Array], jax.Array], logits: jax.Array) -> jax.Array:
    return cast(jax.Array, lax.cond(jnp.any(uses), edit, lambda x: x, logits))


def _largest(logits: jax.Array) -> jax.Array:
    """The largest logit of each row, float32[B, 1]; 0 for a row of -inf only."""
    top = jnp.max(logits, axis=1, keepdims=True)
    return jnp.where(top > -jnp.inf, top, 0.0)


def _argmax(scores: jax.Array) -> jax.Array:
    """First position of each row's maximum, int32[B]; `scores` float32[B, V] without NaN.

    In two levels, the maxima of blocks being a plain reduction: XLA's CPU code for an argmax over the whole row is not
    vectorised (16 rows of 151,936 tokens: 5.4 against 0.2 ms).
    """
    num_rows, vocab_size = scores.shape
    padding = -vocab_size % _ARGMAX_BLOCK
    blocks = jnp.pad(scores, ((0, 0), (0, padding)), constant_values=-jnp.inf).reshape(num_rows, -1, _ARGMAX_BLOCK)
    block = jnp.argmax(jnp.max(blocks, axis=2), axis=1).astype(jnp.int32)
    inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    return block * _ARGMAX_BLOCK + jnp.argmax(inside, axis=1).astype(jnp.int32)

"""From a request's sampling parameters to the values of one device row. Host side, numpy only."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from runtime.sampler import SamplerRows, mask_words
from runtime.sampling_params import MAX_LOGIT_BIAS, MAX_STOP_IDS, SamplingParams

_SMALLEST_NORMAL = float(np.finfo(np.float32).tiny)
_LARGEST_INT = 2**31 - 1


def row_values(
    sampling: SamplingParams,
    choice: int,
    prompt: Sequence[int],
    output: Sequence[int],
    vocab_size: int,
    *,
    mask: bytes | None = None,
) -> SamplerRows:
    """One row's state as numpy arrays, shaped like a `SamplerRows` without its leading axis.

    `output` holds the tokens accepted so far: it gives the penalty counts, and its length is the index of the
    next token, so a recovered sequence goes on with the draws that it would have made. A temperature too
    small for a normal float32 is greedy; negative seeds count in two's complement. `mask` takes the place of
    `sampling.allowed_mask`. Raises ValueError for what
    does not fit a row.
    """
    mask_name, allowed = ("allowed_mask", sampling.allowed_mask) if mask is None else ("mask", mask)
    values: dict[str, Any] = {
        "temperature": np.float32(sampling.temperature if sampling.temperature >= _SMALLEST_NORMAL else 0.0),
        "top_k": np.int32(sampling.top_k if 0 < sampling.top_k < vocab_size else 0),
        "top_p": np.float32(sampling.top_p),
        "min_p": np.float32(sampling.min_p),
        "presence": np.float32(sampling.presence_penalty),
        "frequency": np.float32(sampling.frequency_penalty),
        "repetition": np.float32(sampling.repetition_penalty),
        "bias_ids": _padded("logit_bias", [t for t, _ in sampling.logit_bias], MAX_LOGIT_BIAS, vocab_size),
        "bias_values": _bias_values(sampling),
        "mask": _mask(mask_name, allowed, vocab_size),
        "use_mask": np.bool_(allowed is not None),
        "stop_ids": _padded("stop_token_ids", sampling.stop_token_ids, MAX_STOP_IDS, vocab_size),
        "min_tokens": np.int32(min(sampling.min_tokens, _LARGEST_INT)),
        "seed": np.array([sampling.seed & 0xFFFFFFFF, (sampling.seed >> 32) & 0xFFFFFFFF], np.uint32),
        "choice": np.int32(choice),
        "index": np.int32(len(output)),
        "prompt_mask": pack_tokens(_token_ids("prompt", prompt, vocab_size), vocab_size),
        "counts": _counts(output, vocab_size),
    }
    return SamplerRows(**values)


def pack_tokens(tokens: np.ndarray, vocab_size: int) -> np.ndarray:
    """Packed mask uint32[W] in which the listed token ids are set: bit v%32 of word v//32."""
    bits = np.zeros(mask_words(vocab_size) * 32, np.bool_)
    bits[tokens] = True
    return np.packbits(bits, bitorder="little").view("<u4").astype(np.uint32)


def _counts(output: Sequence[int], vocab_size: int) -> np.ndarray:
    return np.bincount(_token_ids("output", output, vocab_size), minlength=vocab_size).astype(np.int32)


def _token_ids(name: str, tokens: Sequence[int], vocab_size: int) -> np.ndarray:
    ids = np.asarray(tokens, dtype=np.int64)
    outside = ids[(ids < 0) | (ids >= vocab_size)]
    if outside.size:
        raise ValueError(f"{name} has token id {outside[0]}; allowed are 0 to {vocab_size - 1}")
    return ids


def _padded(name: str, tokens: Sequence[int], size: int, vocab_size: int) -> np.ndarray:
    if len(tokens) > size:
        raise ValueError(f"{name} has {len(tokens)} entries; at most {size} are allowed")
    ids = _token_ids(name, tokens, vocab_size)
    return np.pad(ids.astype(np.int32), (0, size - ids.size), constant_values=-1)


def _bias_values(sampling: SamplingParams) -> np.ndarray:
    values = np.zeros(MAX_LOGIT_BIAS, np.float32)
    values[: len(sampling.logit_bias)] = [value for _, value in sampling.logit_bias]
    return values


def _mask(name: str, mask: bytes | None, vocab_size: int) -> np.ndarray:
    words = mask_words(vocab_size)
    if mask is None:
        return np.zeros(words, np.uint32)
    if len(mask) != 4 * words:
        raise ValueError(f"{name} has {len(mask)} bytes; {vocab_size} tokens take {4 * words}")
    return np.frombuffer(mask, "<u4").astype(np.uint32)

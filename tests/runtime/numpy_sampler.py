"""The sampler's semantics once more, in float64 and for one row: written from the definitions, with explicit sorting.

Shares nothing with the code under test. Where a set hangs on rounding, `Truth.margin` says how closely.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from runtime.sampling_params import SamplingParams


class Truth(NamedTuple):
    """`probabilities` float64[V], 0 where excluded; `margin` is the least distance of a mass from a cut."""

    probabilities: np.ndarray
    is_kept: np.ndarray
    margin: float


def distribution(logits: np.ndarray, sampling: SamplingParams, prompt: Sequence[int], output: Sequence[int]) -> Truth:
    """The distribution that the next token of a row with this prompt and output is drawn from."""
    scores = edited(logits, sampling, prompt, output)
    if sampling.temperature == 0:
        chosen = int(np.flatnonzero(scores == scores.max())[0])
        return Truth(np.eye(len(scores))[chosen], scores > -np.inf, np.inf)
    scores = scores / sampling.temperature
    if 0 < sampling.top_k < len(scores):
        kth = sorted(scores, reverse=True)[sampling.top_k - 1]
        scores = np.where(scores >= kth, scores, -np.inf)
    probabilities = softmax(scores)
    is_kept, margin = scores > -np.inf, np.inf
    if sampling.top_p < 1:
        is_inside, margin = nucleus(probabilities, sampling.top_p)
        is_kept &= is_inside
    if sampling.min_p > 0:
        ratio = probabilities / probabilities.max()
        others = ratio[ratio < 1]
        margin = min([margin, *np.abs(others - sampling.min_p)])
        is_kept &= ratio >= sampling.min_p
    probabilities = np.where(is_kept, probabilities, 0)
    return Truth(probabilities / probabilities.sum(), is_kept, margin)


def edited(logits: np.ndarray, sampling: SamplingParams, prompt: Sequence[int], output: Sequence[int]) -> np.ndarray:
    """Logits after penalties, bias and masks, float64[V]."""
    scores = logits.astype(np.float64)
    for token in {*prompt, *output}:
        factor = sampling.repetition_penalty
        scores[token] = scores[token] / factor if scores[token] > 0 else scores[token] * factor
    for token, count in Counter(output).items():
        scores[token] -= sampling.frequency_penalty * count + sampling.presence_penalty
    for token, value in sampling.logit_bias:
        scores[token] += value
    if sampling.allowed_mask is not None:
        bits = int.from_bytes(sampling.allowed_mask, "little")
        for token in range(len(scores)):
            if not (bits >> token) & 1:
                scores[token] = -np.inf
    if len(output) < sampling.min_tokens:
        stopless = scores.copy()
        stopless[list(sampling.stop_token_ids)] = -np.inf
        if stopless.max() > -np.inf:
            scores = stopless
    return scores


def nucleus(probabilities: np.ndarray, top_p: float) -> tuple[np.ndarray, float]:
    """Which tokens top-p keeps, ties of the last included, and how near to `top_p` a running mass comes."""
    mass, margin, last = 0.0, np.inf, 0.0
    for value, group in sorted(Counter(probabilities.tolist()).items(), reverse=True):
        last = value
        mass += value * group
        margin = min(margin, abs(mass - top_p))
        if mass >= top_p:
            break
    return probabilities >= last, margin


def softmax(scores: np.ndarray) -> np.ndarray:
    """float64[V]; at least one score is finite."""
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()

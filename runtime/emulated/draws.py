"""The tokens that an emulated slice "samples": a pure function of seed, choice and index in the answer.

So an answer is the same whichever slices it passes, and goes on as it began after a preemption or a failure.
"""

from collections.abc import Iterable, Sequence
from itertools import islice
from math import log

import numpy as np

from runtime.engine import PrefillSegment, Sampled, Scored
from runtime.sampling_params import SamplingParams
from runtime.tokens import Tokenizer

_MASK = (1 << 64) - 1


def drawable_ids(tokenizer: Tokenizer, vocab_size: int) -> tuple[int, ...]:
    """Ids of the model that stand for some text of their own, so that every token shows up in a stream at once.

    Special tokens and pieces of a character are left out; if nothing else is there, all of the model's ids are drawn.
    """
    ids = [token for token in range(min(vocab_size, tokenizer.vocab_size)) if token not in tokenizer.special_ids]
    return tuple(token for token in ids if _is_text(tokenizer.piece(token))) or tuple(range(vocab_size))


def _is_text(piece: bytes) -> bool:
    try:
        return bool(piece.decode())
    except UnicodeDecodeError:
        return False


class Draws:
    """Uniform draws from some ids, without the tokens that would stop the request. Immutable."""

    def __init__(self, ids: Iterable[int]) -> None:
        self._ids = tuple(ids)
        self._known = frozenset(self._ids)

    def draw(
        self, row: int, sampling: SamplingParams, choice: int, index: int, allowed: bytes | None = None
    ) -> Sampled:
        """Token `index` of a choice's answer, with log-probabilities if the request wants them.

        `allowed` is a packed bit mask. Where it leaves none of the ids, any other that it allows is drawn.
        """
        ids: Sequence[int] = self._ids
        stops = self._stops(sampling)
        if allowed is not None:
            ids, stops = self._allowed(allowed, stops), frozenset()
        token = _token(ids, sampling.seed, choice, index, stops)
        if sampling.logprobs is None:
            return Sampled(row=row, token=token)
        logprob = -log(len(ids) - len(stops))
        return Sampled(row=row, token=token, logprob=logprob, top=_top(ids, sampling.logprobs, logprob, stops))

    def score(self, segment: PrefillSegment) -> tuple[Scored, ...]:
        """What a segment with `score` gets: every token of the prompt is as likely as any other."""
        assert segment.score is not None
        following = (*segment.tokens[1:], *(() if segment.next_token is None else (segment.next_token,)))
        logprob = -log(len(self._ids))
        top = _top(self._ids, segment.score, logprob, frozenset())
        return tuple(Scored(token, logprob, top) for token in following)

    def _stops(self, sampling: SamplingParams) -> frozenset[int]:
        """Which of the ids may not be drawn; none, if there would be no other."""
        stops = self._known.intersection(sampling.stop_token_ids)
        return stops if len(stops) < len(self._ids) else frozenset()

    def _allowed(self, mask: bytes, stops: frozenset[int]) -> Sequence[int]:
        """The ids that a mask allows and that stop nothing; if there are none, whatever it allows."""
        tokens = np.flatnonzero(np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little")).tolist()
        return [token for token in tokens if token in self._known and token not in stops] or tokens or self._ids


def _token(ids: Sequence[int], seed: int, choice: int, index: int, stops: frozenset[int]) -> int:
    state = mixed(seed, choice, index)
    while (token := ids[state % len(ids)]) in stops:
        state = mixed(state)
    return token


def _top(ids: Sequence[int], count: int, logprob: float, stops: frozenset[int]) -> tuple[tuple[int, float], ...]:
    """All are equally likely: the first ones stand for the best."""
    return tuple((token, logprob) for token in islice((token for token in ids if token not in stops), count))


def mixed(*values: int) -> int:
    """64 bits that depend on every bit of the values and on their order (the finalizer of SplitMix64)."""
    state = 0
    for value in values:
        state = (state + value + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state

"""The tokens that an emulated slice "samples": a pure function of seed, choice and index in the answer.

So an answer is the same whichever slices it passes, and goes on as it began after a preemption or a failure.
"""

from collections.abc import Iterable
from math import log

from runtime.engine import Sampled
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

    def draw(self, row: int, sampling: SamplingParams, choice: int, index: int) -> Sampled:
        """Token `index` of a choice's answer, with log-probabilities if the request wants them."""
        stops = self._stops(sampling)
        token = self._token(sampling.seed, choice, index, stops)
        if sampling.logprobs is None:
            return Sampled(row=row, token=token)
        logprob = -log(len(self._ids) - len(stops))
        return Sampled(row=row, token=token, logprob=logprob, top=self._top(sampling.logprobs, logprob, stops))

    def _stops(self, sampling: SamplingParams) -> frozenset[int]:
        """Which of the ids may not be drawn; none, if there would be no other."""
        stops = self._known.intersection(sampling.stop_token_ids)
        return stops if len(stops) < len(self._ids) else frozenset()

    def _token(self, seed: int, choice: int, index: int, stops: frozenset[int]) -> int:
        state = mixed(seed, choice, index)
        while (token := self._ids[state % len(self._ids)]) in stops:
            state = mixed(state)
        return token

    def _top(self, count: int, logprob: float, stops: frozenset[int]) -> tuple[tuple[int, float], ...]:
        """All are equally likely: the first ones stand for the best."""
        best = (token for token in self._ids if token not in stops)
        return tuple((token, logprob) for token, _ in zip(best, range(count), strict=False))


def mixed(*values: int) -> int:
    """64 bits that depend on every bit of the values and on their order (the finalizer of SplitMix64)."""
    state = 0
    for value in values:
        state = (state + value + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state

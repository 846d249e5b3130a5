"""What the fake engine answers: tokens as a pure function of everything that a real sampler depends on.

The same function serves the engine, which feeds it what it *read from pages*, and `expected.expected_choice`, which
computes the undisturbed answer from the request alone. So any wrong prefix, seed, choice, index, prompt
length, penalty count, mask or stop set gives another token.
"""

from collections.abc import Sequence

import msgspec

from actors.messages import TokenRecord
from runtime.engine import Scored
from runtime.sampling_params import SamplingParams
from runtime.stop_strings import StopScanner
from runtime.text_stream import TextOptions

VOCAB_SIZE = 64
END_OF_TEXT = 1
_STOP_ODDS = 24
_LETTERS = "abcdefgh"
_MASK = (1 << 64) - 1


def mix(state: int, value: int) -> int:
    """Folds an integer of any size into a 64-bit state."""
    while True:
        state = ((state ^ (value & _MASK)) * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019) & _MASK
        state ^= state >> 29
        value >>= 64
        if value in (0, -1):
            return state


def fingerprint(tokens: Sequence[int], state: int = 0) -> int:
    """Identity of a prefix: chained, so `fingerprint(a + b) == fingerprint(b, fingerprint(a))`."""
    for token in tokens:  # `mix` of a small number, written out: most of a simulation's time goes here
        state = ((state ^ (token + 1)) * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019) & _MASK
        state ^= state >> 29
    return state


def bag(tokens: Sequence[int]) -> int:
    """Identity of a multiset of tokens: what penalty counts depend on."""
    return sum(mix(77, token) for token in tokens) & _MASK


def token_text(token: int) -> str:
    """Text of a token: one to three letters of a small alphabet, so that stop strings are hit."""
    return _LETTERS[token % 8] + (_LETTERS[token // 8] * (token % 3))


class TokenRule:
    """The fake sampler of one request."""

    def __init__(self, params: SamplingParams) -> None:
        self.params = params
        self._own = self._candidates(params.allowed_mask)
        shape = (
            params.temperature,
            params.top_k,
            params.top_p,
            params.min_p,
            params.logit_bias,
            params.allowed_mask,
        )
        penalties = (params.presence_penalty, params.frequency_penalty, params.repetition_penalty)
        self._salt = mix(fingerprint(msgspec.json.encode((shape, penalties))), params.seed)

    def _candidates(self, mask: bytes | None) -> tuple[list[int], list[int]]:
        """Tokens that may be chosen: those that go on, and those that end the choice."""
        bias = dict(self.params.logit_bias)
        forced = [token for token, value in bias.items() if value >= 50]
        allowed = [token for token in forced or range(VOCAB_SIZE) if bias.get(token, 0.0) > -50]
        if mask is not None:
            allowed = [token for token in allowed if mask[token // 8] >> token % 8 & 1]
        stops = set(self.params.stop_token_ids)
        return [token for token in allowed if token not in stops], [token for token in allowed if token in stops]

    def choose(
        self,
        prefix: int,
        choice: int,
        index: int,
        prompt_len: int,
        bags: tuple[int, int],
        mask: bytes | None = None,
    ) -> TokenRecord:
        """The token after the prefix with this fingerprint; `bags` are those of prompt and output.

        A mask takes the place of the request's own.
        """
        plain, stops = self._own if mask is None else self._candidates(mask)
        state = mix(mix(mix(mix(self._salt, prefix), choice), index), prompt_len)
        if self.params.has_penalties:
            state = mix(mix(state, bags[0]), bags[1])
        may_stop = bool(stops) and index >= self.params.min_tokens
        if may_stop and (state >> 8) % _STOP_ODDS == 0 or not plain:
            token = stops[(state >> 24) % len(stops)]
        else:
            token = plain[(state >> 24) % len(plain)]
        return self._record(token, state)

    def _record(self, token: int, state: int) -> TokenRecord:
        if self.params.logprobs is None:
            return TokenRecord(token)
        top = tuple(((token + rank) % VOCAB_SIZE, -float(rank)) for rank in range(self.params.logprobs))
        return TokenRecord(token, -float(state % 1000) / 64, top)


def score(prefix: int, token: int, count: int) -> Scored:
    """The logprob of a prompt's token behind the prefix with this fingerprint, with so many alternatives."""
    state = mix(prefix, token)
    top = tuple(((token + rank) % VOCAB_SIZE, -float(rank) / 2) for rank in range(count))
    return Scored(token, -float(state % 1000) / 32, top)


class FakeText:
    """`actors.ledger.TextStream` over `token_text` and the real stop scanner.

    Text of the first `min_tokens` tokens is not scanned.
    """

    def __init__(self, options: TextOptions) -> None:
        self._scanner = StopScanner(options.stop, include=options.include_stop)
        self._include_stop = options.include_stop
        self._unscanned = options.min_tokens

    def push(self, token: int) -> tuple[str, str | None]:
        self._unscanned -= 1
        if self._unscanned >= 0:
            return token_text(token), None
        return self._scanner.push(token_text(token))

    def end(self, token: int) -> str:
        return self.finish() + (token_text(token) if self._include_stop else "")

    def finish(self) -> str:
        return self._scanner.flush()

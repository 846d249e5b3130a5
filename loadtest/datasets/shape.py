"""The lengths that data sets are asked for."""

import random

import msgspec

LOWEST_TOKEN = 10
HIGHEST_TOKEN = 250
"""Ids that every vocabulary has and that are hardly ever special."""


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens in and out, and how prompts share their beginnings.

    A length is drawn evenly from `tokens * (1 - spread)` to `tokens * (1 + spread)`. None leaves it to the file.
    """

    input_tokens: int = 256
    output_tokens: int | None = None
    spread: float = 0.0
    prefix_tokens: int = 1024
    groups: int = 8
    zipf: float = 1.0
    lowest_token: int = LOWEST_TOKEN
    highest_token: int = HIGHEST_TOKEN

    DEFAULT_OUTPUT_TOKENS = 64

    def draw_length(self, rng: random.Random, tokens: int) -> int:
        """One length, at least 1."""
        reach = int(tokens * self.spread)
        return max(1, rng.randint(tokens - reach, tokens + reach))

    def draw_output(self, rng: random.Random) -> int:
        """An answer's length."""
        return self.draw_length(rng, self.output_tokens or self.DEFAULT_OUTPUT_TOKENS)

    def draw_ids(self, rng: random.Random, count: int) -> tuple[int, ...]:
        """Token ids, each as likely as the next."""
        return tuple(rng.choices(range(self.lowest_token, self.highest_token + 1), k=count))

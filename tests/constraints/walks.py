"""Answers without a model: a seeded draw among the tokens that a mask allows, which leans towards the answer's end."""

from collections.abc import Sequence
from random import Random

import msgspec

from runtime.constraints import Constraint, Constraints
from runtime.sampling_params import SamplingParams
from runtime.tokens import Tokenizer

CLOSING = frozenset(b'"]}')
CLOSING_WEIGHT = 8.0
"""How much likelier than others a token is that begins with a closing quote, bracket or brace, or ends the answer.

It is multiplied by the square root of the number of tokens allowed, for in a string there are hundreds of others.
"""


class Walk(msgspec.Struct, frozen=True):
    """A finished walk; `tokens` hold the stop id where one was drawn."""

    tokens: list[int]
    is_complete: bool


def allowed(mask: bytes | None, vocab_size: int) -> list[int]:
    """The tokens of a mask, read bit by bit and without numpy."""
    if mask is None:
        return list(range(vocab_size))
    assert len(mask) == 4 * -(-vocab_size // 32)
    bits = int.from_bytes(mask, "little")
    assert bits >> vocab_size == 0
    return [token for token in range(vocab_size) if bits >> token & 1]


def weights(tokens: Sequence[int], tokenizer: Tokenizer, stop: Sequence[int]) -> list[float]:
    """A token that closes, or ends, is likelier than others; so is a digit or letter than white space."""
    found = []
    for token in tokens:
        piece = tokenizer.piece(token)
        closes = token in stop or bool(piece) and piece[0] in CLOSING
        found.append(CLOSING_WEIGHT * len(tokens) ** 0.5 if closes else 0.2 if piece.isspace() else 1.0)
    return found


def walk(constraints: Constraints, params: SamplingParams, tokenizer: Tokenizer, vocab_size: int, seed: int) -> Walk:
    """Draws until the constraint is complete, a stop id is drawn, or `max_tokens` are there."""
    random = Random(seed)
    constraint: Constraint = constraints.begin(params, ())
    tokens: list[int] = []
    while not constraint.is_complete and len(tokens) < params.max_tokens:
        [mask] = constraints.masks([constraint])
        choices = allowed(mask, vocab_size)
        token = random.choices(choices, weights(choices, tokenizer, params.stop_token_ids))[0]
        constraint.advance(token)
        tokens.append(token)
    return Walk(tokens, constraint.is_complete)

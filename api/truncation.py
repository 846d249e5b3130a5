"""Cuts prompts to the length that a client allows (`truncate_prompt_tokens`): the end of a prompt is kept."""

from collections.abc import Sequence

from api.checks import shown
from api.model import ServedModel
from runtime.errors import RequestError
from runtime.tokens import Tokenizer

WHOLE_CONTEXT = -1


def resolve_cut(asked: int | None, answer_tokens: int | None, model: ServedModel) -> int | None:
    """Most tokens that a prompt may keep, None for all; -1 is what leaves room for the answer that was asked for."""
    limit = model.max_total_tokens
    if asked is None:
        return None
    if asked == WHOLE_CONTEXT:
        return max(1, limit - max(1, answer_tokens or 1))
    if not 1 <= asked <= limit:
        raise RequestError(
            f"truncate_prompt_tokens: must be {WHOLE_CONTEXT} or between 1 and {limit}, got {shown(asked)}",
            param="truncate_prompt_tokens",
        )
    return asked


def cut_tokens(tokens: Sequence[int], cut: int | None, num_fixed: int = 0) -> Sequence[int]:
    """At most `cut` tokens: the first `num_fixed`, where there is room for more than them, and the last."""
    if cut is None or len(tokens) <= cut:
        return tokens
    num_fixed = num_fixed if num_fixed < cut else 0
    return [*tokens[:num_fixed], *tokens[len(tokens) - cut + num_fixed :]]


def num_added(tokenizer: Tokenizer, tokens: Sequence[int], text: str) -> int:
    """How many special tokens at the beginning are the tokenizer's own addition to the text that it encoded."""
    count = 0
    while count < len(tokens) and tokens[count] in tokenizer.special_ids:
        if text.startswith(tokenizer.piece(tokens[count]).decode(errors="replace")):
            break
        count += 1
    return count

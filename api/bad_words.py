"""`bad_words`: texts that may not appear in the answer, as the token sequences that would spell them."""

from collections.abc import Sequence

from api.model import ServedModel
from runtime.errors import RequestError

MAX_BAD_WORDS = 256
MAX_BAD_WORD_CHARS = 512


def bad_word_tokens(words: Sequence[str], model: ServedModel) -> tuple[tuple[int, ...], ...]:
    """Each word as the tokenizer spells it at a text's beginning and behind a space; other spellings stay possible."""
    if len(words) > MAX_BAD_WORDS:
        raise RequestError(f"bad_words: at most {MAX_BAD_WORDS} words, got {len(words)}", param="bad_words")
    found: dict[tuple[int, ...], None] = {}
    for word in words:
        bare = word.lstrip()
        if not bare or len(word) > MAX_BAD_WORD_CHARS:
            raise RequestError(
                f"bad_words: a word must have 1 to {MAX_BAD_WORD_CHARS} characters that are not all white space,"
                f" got {len(word)}",
                param="bad_words",
            )
        for text in (bare, f" {bare}"):
            found[tuple(model.tokenizer.encode(text))] = None
    return tuple(tokens for tokens in found if tokens)

"""The model's vocabulary as llguidance reads it: the bytes of every id."""

from runtime.tokens import Tokenizer

_END = b"\xff<end>"


class Vocabulary:
    """What llguidance's `TokenizerWrapper` wraps. Immutable.

    The id `vocab_size`, one more than the model has, stands for the end; only masks know of it. Added tokens that are
    not special are text like any other; special ones are found by name or id only.
    """

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = vocab_size
        self.tokens = [tokenizer.piece(token) for token in range(vocab_size)] + [_END]
        self.special_token_ids = [*(token for token in tokenizer.special_ids if token < vocab_size), vocab_size]

    def __call__(self, text: str) -> list[int]:
        """The tokens of `text`. llguidance wants to have this; masks do not need it (see `grammars`)."""
        return self._tokenizer.encode(text)

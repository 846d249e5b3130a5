"""The model's vocabulary as llguidance reads it: bytes by id, and how the model would spell a text.

llguidance asks for a spelling where a grammar leaves one text only: the model then gets the tokens that it was trained
on. A spelling has to give back exactly the bytes, with no special token among them and no space before the first.
"""

from runtime.tokens import Tokenizer

_BEFORE = "\n"
_END = b"\xff<end>"


class Vocabulary:
    """What llguidance's `TokenizerWrapper` wraps. Immutable.

    The id `vocab_size`, one more than the model has, stands for the end; only masks know of it.
    """

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._special = frozenset(tokenizer.special_ids)
        self.eos_token_id = vocab_size
        self.tokens = [tokenizer.piece(token) for token in range(vocab_size)] + [_END]
        self.special_token_ids = [*(token for token in self._special if token < vocab_size), vocab_size]
        self._by_piece = {
            piece: token for token, piece in enumerate(self.tokens[:-1]) if piece and token not in self._special
        }
        self._longest = max(map(len, self._by_piece), default=1)

    def __call__(self, text: str) -> list[int]:
        """The tokens of `text`: the tokenizer's own, also as it spells it inside of a text, else the longest pieces."""
        data = text.encode()
        for before in ("", _BEFORE):
            tokens = self._tokenizer.encode(before + text)
            spelt = self._without(before.encode(), tokens)
            if spelt is not None and self._bytes(spelt) == data and not self._special.intersection(spelt):
                return spelt
        return self._greedy(data)

    def _without(self, before: bytes, tokens: list[int]) -> list[int] | None:
        """The tokens behind the one that ends with `before`; None if there is no such token."""
        if not before:
            return tokens
        for index, token in enumerate(tokens):
            if self._bytes([token]).endswith(before):
                return tokens[index + 1 :]
        return None

    def _bytes(self, tokens: list[int]) -> bytes:
        return b"".join(self.tokens[token] if token < self.eos_token_id else _END for token in tokens)

    def _greedy(self, data: bytes) -> list[int]:
        found: list[int] = []
        start = 0
        while start < len(data):
            for length in range(min(self._longest, len(data) - start), 0, -1):
                token = self._by_piece.get(data[start : start + length])
                if token is not None:
                    found.append(token)
                    start += length
                    break
            else:
                return found  # no token has this byte: llguidance takes what there is
        return found

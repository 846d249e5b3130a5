"""Turns one choice's tokens back into text while they arrive.

Owns what is held back: the bytes of a character whose last byte has not come yet. Tokens to skip give no
text. The pieces that `push` and `flush` return, joined, are the tokenizer's `decode` of all the tokens, less the text
of those that went before them; each push looks at a bounded number of tokens. The gateway replays tokens through it,
so it keeps no state but what tokens put there.
"""

import codecs
from collections.abc import Callable, Container, Sequence
from typing import Protocol

REPLACEMENT = "\ufffd"
MAX_HELD_TOKENS = 16
"""Tokens that may wait for a character to become complete: bytes that take longer are no character."""

CONTEXT_TOKENS = 16
"""How many tokens before a text may matter to it: a character's bytes, and the word before its space."""


class IncrementalDetokenizer(Protocol):
    """Text of one choice, piece by piece."""

    def push(self, token: int) -> str:
        """Takes the next token and returns the text that is now certain."""
        ...

    def flush(self) -> str:
        """Ends the text: returns what was held back, incomplete characters as U+FFFD."""
        ...


class ByteDetokenizer:
    """For byte-level vocabularies: each token is a fixed run of bytes, and text is their UTF-8 decoding."""

    def __init__(self, piece: Callable[[int], bytes], skipped: Container[int]) -> None:
        self._piece = piece
        self._skipped = skipped
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """Takes the next token and returns the text that is now certain."""
        return "" if token in self._skipped else self._decoder.decode(self._piece(token))

    def flush(self) -> str:
        """Ends the text: an incomplete character becomes U+FFFD."""
        return self._decoder.decode(b"", final=True)


class WindowDetokenizer:
    """For every other decoder: decodes a window of tokens and returns by how much its text has grown.

    The window is the tokens released last, at first the end of `context`, which give the decoder its left context (it
    strips the space of a first token only), and the tokens held since. A decoder that turns a whole run of bytes into
    U+FFFD because of its last byte cannot be undone: there the pieces keep the characters that were already out.
    """

    def __init__(
        self, decode: Callable[[list[int]], str], skipped: Container[int], context: Sequence[int] = ()
    ) -> None:
        self._decode = decode
        self._skipped = skipped
        self._window = [token for token in context[-CONTEXT_TOKENS:] if token not in skipped]
        self._context_text = decode(self._window)
        if self._context_text.endswith(REPLACEMENT):  # what would complete the character is not this text's own
            self._window, self._context_text = [], ""
        self._num_context = len(self._window)

    def push(self, token: int) -> str:
        """Takes the next token and returns the text that is now certain."""
        if token in self._skipped:
            return ""
        self._window.append(token)
        text = self._decode(self._window)
        incomplete = text.endswith(REPLACEMENT) or len(text) <= len(self._context_text)
        if incomplete and len(self._window) - self._num_context < MAX_HELD_TOKENS:
            return ""
        return self._release(text)

    def flush(self) -> str:
        """Ends the text: returns what was held back."""
        return self._release(self._decode(self._window))

    def _release(self, text: str) -> str:
        released = text[len(self._context_text) :]
        self._window = self._window[self._num_context :]
        self._num_context = len(self._window)
        self._context_text = self._decode(self._window)
        return released

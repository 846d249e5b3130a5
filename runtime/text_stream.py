"""The text of one choice: tokens in, text that may go to the client out.

Joins the detokenizer and the stop scanner. The gateway keeps one per choice and rebuilds it by replaying
tokens. The token that ends a choice by its id goes to `end` instead of `push`.
"""

import msgspec

from runtime.stop_strings import StopScanner
from runtime.tokens import Tokenizer


class TextOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a request's tokens become text.

    Text of the first `min_tokens` tokens is not searched for `stop` strings. With `include_stop` what has stopped the
    choice belongs to its text. Special tokens give no text, but those in `shown_ids`, or all without
    `skip_special_tokens`. The text goes on behind the tokens of `context`, the last ones of the prompt.
    """

    stop: tuple[str, ...] = ()
    min_tokens: int = 0
    include_stop: bool = False
    skip_special_tokens: bool = True
    shown_ids: tuple[int, ...] = ()
    context: tuple[int, ...] = ()


class TextStream:
    """Holds back incomplete characters and text that could begin a stop string."""

    def __init__(self, tokenizer: Tokenizer, options: TextOptions) -> None:
        self._detokenizer = tokenizer.detokenizer(
            skip_special_tokens=options.skip_special_tokens, shown_ids=options.shown_ids, context=options.context
        )
        self._scanner = StopScanner(options.stop, include=options.include_stop)
        self._include_stop = options.include_stop
        self._unscanned_tokens = options.min_tokens

    def push(self, token: int) -> tuple[str, str | None]:
        """Returns the released text and the matched stop string; after a match nothing more is released."""
        text = self._detokenizer.push(token)
        if self._unscanned_tokens > 0:
            self._unscanned_tokens -= 1
            return text, None
        return self._scanner.push(text)

    def end(self, token: int) -> str:
        """Returns the last text of a choice that `token` has ended by its id; only with `include_stop` it adds its own.

        A special token has text only if it is one that is shown.
        """
        if not self._include_stop:
            return self.finish()
        return self._scanner.flush() + self._detokenizer.push(token) + self._detokenizer.flush()

    def finish(self) -> str:
        """Returns what was held back, when the choice ends by length."""
        text, match = self._scanner.push(self._detokenizer.flush())
        return text if match is not None else text + self._scanner.flush()

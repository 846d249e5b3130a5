"""Logprobs in OpenAI's two shapes.

The engine gives ids and numbers; here they become token texts. A token that is not whole UTF-8 by itself is
shown as `bytes:\\xe2\\x80`, so that two different tokens never look the same. JSON has no infinity: -9999
stands for it.
"""

from collections.abc import Sequence
from typing import Any

from actors.messages import TokenRecord
from runtime.detokenize import IncrementalDetokenizer
from runtime.tokens import Tokenizer

LOWEST_LOGPROB = -9999.0


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """How a token is shown."""
    piece = tokenizer.piece(token)
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def _finite(logprob: float | None) -> float:
    return LOWEST_LOGPROB if logprob is None or not logprob > LOWEST_LOGPROB else logprob


def _entry(tokenizer: Tokenizer, token: int, logprob: float | None) -> dict[str, Any]:
    return {
        "token": token_text(tokenizer, token),
        "logprob": _finite(logprob),
        "bytes": list(tokenizer.piece(token)),
    }


def chat_logprobs(tokenizer: Tokenizer, records: Sequence[TokenRecord]) -> dict[str, Any]:
    """The chat shape, for the tokens of one choice or of one chunk."""
    content = [
        {
            **_entry(tokenizer, record.token, record.logprob),
            "top_logprobs": [_entry(tokenizer, token, logprob) for token, logprob in record.top],
        }
        for record in records
    ]
    return {"content": content, "refusal": None}


class LegacyLogprobs:
    """The completions shape of one choice; knows how far its text has come, for `text_offset`."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._detokenizer: IncrementalDetokenizer = tokenizer.detokenizer()
        self._offset = 0

    def render(self, records: Sequence[TokenRecord]) -> dict[str, Any]:
        """The shape for the choice's next tokens; offsets count characters from the start of its text."""
        offsets = []
        for record in records:
            offsets.append(self._offset)
            self._offset += len(self._detokenizer.push(record.token))
        return {
            "tokens": [token_text(self._tokenizer, record.token) for record in records],
            "token_logprobs": [_finite(record.logprob) for record in records],
            "top_logprobs": [self._top(record) for record in records],
            "text_offset": offsets,
        }

    def _top(self, record: TokenRecord) -> dict[str, float]:
        """Alternatives by text; the chosen token is always among them, with the very same number."""
        top = {token_text(self._tokenizer, token): _finite(logprob) for token, logprob in record.top}
        top[token_text(self._tokenizer, record.token)] = _finite(record.logprob)
        return top

"""Logprobs in the shapes that clients read: OpenAI's two for answers, and vLLM's for prompts.

The engine gives ids and numbers; here they become token texts. A token that is not whole UTF-8 by itself is
shown as `bytes:\\xe2\\x80`, so that two different tokens never look the same; where the client prefers, every token is
shown as `token_id:7`. JSON has no infinity: -9999 stands for it.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from actors.messages import TokenRecord
from runtime.tokens import Tokenizer

LOWEST_LOGPROB = -9999.0


class TokenNames(msgspec.Struct, frozen=True):
    """How tokens are shown."""

    tokenizer: Tokenizer
    as_ids: bool = False

    def name(self, token: int) -> str:
        """The token's text or its id, as the client wants it."""
        return f"token_id:{token}" if self.as_ids else token_text(self.tokenizer, token)


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """How a token is shown by its text."""
    piece = tokenizer.piece(token)
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def finite(logprob: float | None) -> float:
    """The logprob as JSON can hold it."""
    return LOWEST_LOGPROB if logprob is None or not logprob > LOWEST_LOGPROB else logprob


def _entry(names: TokenNames, token: int, logprob: float | None) -> dict[str, Any]:
    return {
        "token": names.name(token),
        "logprob": finite(logprob),
        "bytes": list(names.tokenizer.piece(token)),
    }


def chat_logprobs(tokenizer: Tokenizer, records: Sequence[TokenRecord], *, as_ids: bool = False) -> dict[str, Any]:
    """The chat shape, for the tokens of one choice or of one chunk."""
    names = TokenNames(tokenizer, as_ids)
    content = [
        {
            **_entry(names, record.token, record.logprob),
            "top_logprobs": [_entry(names, token, logprob) for token, logprob in record.top],
        }
        for record in records
    ]
    return {"content": content, "refusal": None}


def prompt_logprobs(tokenizer: Tokenizer, records: Sequence[TokenRecord], num_top: int) -> list[Any]:
    """vLLM's shape for a prompt of one token more than there are records: nothing comes before its first token.

    A rank is known where the token is among the likeliest that the engine has told of.
    """
    return [None, *(_ranked(tokenizer, record, num_top) for record in records)]


def _ranked(tokenizer: Tokenizer, record: TokenRecord, num_top: int) -> dict[str, Any]:
    ranks = {token: rank for rank, (token, _) in enumerate(record.top, start=1)}
    shown = {record.token: record.logprob} | dict(record.top[:num_top])
    return {
        str(token): {
            "logprob": finite(logprob),
            "rank": ranks.get(token),
            "decoded_token": token_text(tokenizer, token),
        }
        for token, logprob in shown.items()
    }

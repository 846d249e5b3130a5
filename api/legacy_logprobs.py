"""Logprobs in the shape of OpenAI's older endpoint: four lists, of which one counts characters of the text.

With `echo` the lists begin with the prompt's tokens, the first of which has no logprob.
"""

from collections.abc import Sequence
from typing import Any

from actors.messages import TokenRecord
from api.logprobs import TokenNames, finite
from api.truncation import num_added
from api.validate import Echo
from runtime.text_stream import TextOptions


class LegacyLogprobs:
    """The shape of one choice; knows how far its text has come, for `text_offset`."""

    def __init__(self, names: TokenNames, num_top: int, text: TextOptions) -> None:
        self._names = names
        self._num_top = num_top
        self._text = text
        self._detokenizer = names.tokenizer.detokenizer(
            skip_special_tokens=text.skip_special_tokens, shown_ids=text.shown_ids, context=text.context
        )
        self._offset = 0

    def render_prompt(self, tokens: Sequence[int], records: Sequence[TokenRecord], echo: Echo) -> dict[str, Any]:
        """The shape for the prompt, which goes before anything else."""
        assert len(records) == len(tokens) - 1, (len(records), len(tokens))
        self._offset = len(echo.text)
        return {
            "tokens": [self._names.name(token) for token in tokens],
            "token_logprobs": [None, *(finite(record.logprob) for record in records)],
            "top_logprobs": [None, *(self._top(record) for record in records)],
            "text_offset": self._prompt_offsets(tokens, echo),
        }

    def render(self, records: Sequence[TokenRecord]) -> dict[str, Any]:
        """The shape for the choice's next tokens; offsets count characters from the start of its text."""
        offsets = []
        for record in records:
            offsets.append(self._offset)
            self._offset += len(self._detokenizer.push(record.token))
        return {
            "tokens": [self._names.name(record.token) for record in records],
            "token_logprobs": [finite(record.logprob) for record in records],
            "top_logprobs": [self._top(record) for record in records],
            "text_offset": offsets,
        }

    def _prompt_offsets(self, tokens: Sequence[int], echo: Echo) -> list[int]:
        """Where each token begins, as far as the text has it.

        A client's own text spells its special tokens out, but not those that the tokenizer has put before it.
        """
        tokenizer, options = self._names.tokenizer, self._text
        hidden = num_added(tokenizer, tokens, echo.text) if echo.is_clients else 0
        detokenizer = tokenizer.detokenizer(
            skip_special_tokens=options.skip_special_tokens and not echo.is_clients, shown_ids=options.shown_ids
        )
        offsets, offset = [], 0
        for position, token in enumerate(tokens):
            offsets.append(min(offset, len(echo.text)))
            offset += len(detokenizer.push(token)) if position >= hidden else 0
        return offsets

    def _top(self, record: TokenRecord) -> dict[str, float]:
        """Alternatives by name; the token itself is always among them, with the very same number."""
        top = {self._names.name(token): finite(logprob) for token, logprob in record.top[: self._num_top]}
        top[self._names.name(record.token)] = finite(record.logprob)
        return top


def joined(*parts: dict[str, Any]) -> dict[str, Any]:
    """Shapes of one choice, one after the other."""
    return {key: [value for part in parts for value in part[key]] for key in parts[0]}

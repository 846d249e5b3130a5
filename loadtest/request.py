"""One request as a data set describes it, before it has a model, an address or a time."""

from typing import Literal

import msgspec

Api = Literal["completions", "chat"]
"""The two routes that stream text."""


class Message(msgspec.Struct, frozen=True):
    """One turn of a chat."""

    role: str
    content: str


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """A prompt (text or token ids) or a chat, and how many tokens to answer with.

    `prompt_tokens` is the prompt's exact length where it is known, and is compared with the server's usage. `at_s` is
    the arrival after the start of a recorded trace. `exact_output` asks the server to ignore its end token, so that
    the answer's length is `max_tokens`.
    """

    max_tokens: int
    prompt: str | tuple[int, ...] | None = None
    messages: tuple[Message, ...] | None = None
    prompt_tokens: int | None = None
    at_s: float | None = None
    exact_output: bool = False

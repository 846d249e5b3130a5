"""Server-sent events of an OpenAI stream: from bytes, cut anywhere, to what each chunk says.

A chunk carries a token when it has text, reasoning or a tool call. The role-only chunk with which chats begin carries
none, and taking it for the first token would hide the whole prefill.
"""

from typing import Any

import msgspec

from loadtest.timing import Timing

DONE = b"[DONE]"
MAX_EVENT_BYTES = 4 << 20


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class Usage(msgspec.Struct):
    """The server's token counts."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _PromptDetails | None = None


class Delta(msgspec.Struct):
    """What a chat's chunk adds."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[msgspec.Raw] | None = None


class Choice(msgspec.Struct):
    """The first choice is the only one that is asked for."""

    text: str | None = None
    delta: Delta | None = None
    finish_reason: str | None = None


class StreamChunk(msgspec.Struct):
    """What is read of a chunk; further fields are ignored."""

    choices: list[Choice] = []
    usage: Usage | None = None
    runtime_timing: Any = None
    error: Any = None

    @property
    def finish_reason(self) -> str | None:
        """Of the first choice."""
        return self.choices[0].finish_reason if self.choices else None

    def has_token(self) -> bool:
        """Whether a token came with it. A completion's chunk may hold half a character, and so no text yet."""
        if not self.choices:
            return False
        choice = self.choices[0]
        delta = choice.delta
        if delta is None:
            return bool(choice.text) or (choice.text is not None and choice.finish_reason is None)
        return bool(delta.content or delta.reasoning_content or delta.reasoning or delta.tool_calls)


decode_chunk = msgspec.json.Decoder(StreamChunk).decode


class _Timings(msgspec.Struct):
    choices: list[Timing]


def read_timing(told: Any) -> Timing:
    """The first choice's stages. Raises ValueError when they are not there, or not what `Timing` says."""
    choices = msgspec.convert(told, _Timings).choices
    if not choices:
        raise ValueError("no choices")
    return choices[0]


class EventBuffer:
    """The `data:` lines of a stream, whole. Comments and other fields are left out."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The payloads that `data` completes. Raises ValueError when an event grows beyond MAX_EVENT_BYTES."""
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        if len(self._rest) > MAX_EVENT_BYTES:
            raise ValueError(f"an event of more than {MAX_EVENT_BYTES} bytes")
        return [line[5:].strip() for line in lines if line.startswith(b"data:")]


class _ErrorBody(msgspec.Struct):
    message: str | None = None


class _ErrorAnswer(msgspec.Struct):
    error: _ErrorBody | str | None = None
    message: str | None = None
    detail: str | None = None


def error_message(body: bytes) -> str:
    """The message in an error's JSON, in any of the usual places, or else the beginning of its text."""
    try:
        answer = msgspec.json.decode(body, type=_ErrorAnswer)
    except msgspec.DecodeError:
        return short_text(body)
    error = answer.error
    found = error.message if isinstance(error, _ErrorBody) else error
    return short_text((found or answer.message or answer.detail or "").encode()) or short_text(body)


def short_text(body: bytes, limit: int = 200) -> str:
    """One line of at most `limit` characters, safe for a terminal."""
    text = " ".join(body[: 4 * limit].decode("utf-8", "replace").split())
    text = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
    return text if len(text) <= limit else text[: limit - 1] + "…"

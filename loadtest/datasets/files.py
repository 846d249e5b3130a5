"""Prompts and chats from files: JSONL, and ShareGPT's list of conversations.

The client has no tokenizer: an answer is as long as the line or `--output-tokens` says at most, and ends earlier when
the model ends it.
"""

import random
from collections.abc import Iterator
from pathlib import Path

import msgspec

from loadtest.datasets.shape import Shape
from loadtest.errors import UsageError
from loadtest.request import Message, Request


class _Line(msgspec.Struct, frozen=True):
    """One line of JSONL; further fields are ignored."""

    prompt: str | tuple[int, ...] | None = None
    messages: tuple[Message, ...] | None = None
    max_tokens: int | None = None
    output_tokens: int | None = None
    at_s: float | None = None


class _Turn(msgspec.Struct, frozen=True):
    """ShareGPT names the speaker in one of two ways."""

    value: str
    speaker: str = msgspec.field(default="", name="from")


class _Conversation(msgspec.Struct, frozen=True):
    conversations: tuple[_Turn, ...] = ()


def read_lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """Every line that is not blank, with the place to name in a message. Raises UsageError when there is none."""
    empty = True
    for number, line in enumerate(read_bytes(path).splitlines(), 1):
        if line.strip():
            empty = False
            yield f"{path}:{number}", line
    if empty:
        raise UsageError(f"{path}: the data set is empty")


def read_bytes(path: Path) -> bytes:
    """The file. Raises UsageError when it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None


def read_jsonl(path: Path, shape: Shape, seed: str) -> list[Request]:
    """Objects with `prompt` (text or token ids) or `messages`, and optionally `max_tokens` and `at_s`."""
    rng = random.Random(f"jsonl {seed}")
    return [_from_line(place, line, shape, rng) for place, line in read_lines(path)]


def _from_line(place: str, line: bytes, shape: Shape, rng: random.Random) -> Request:
    try:
        read = msgspec.json.decode(line, type=_Line)
    except msgspec.DecodeError as error:
        raise UsageError(f"{place}: {error}") from None
    if bool(read.prompt) == bool(read.messages):
        raise UsageError(f"{place}: allowed: a line with either 'prompt' or 'messages', not empty")
    max_tokens = read.max_tokens or read.output_tokens or shape.draw_output(rng)
    if max_tokens < 1:
        raise UsageError(f"{place}: max_tokens {max_tokens}: allowed: 1 and above")
    return Request(
        prompt=read.prompt,
        messages=read.messages,
        prompt_tokens=len(read.prompt) if isinstance(read.prompt, tuple) else None,
        max_tokens=max_tokens,
        at_s=read.at_s,
    )


def read_sharegpt(path: Path, shape: Shape, seed: str) -> list[Request]:
    """The first thing that a person says in every conversation that has an answer, in a shuffled order."""
    try:
        conversations = msgspec.json.decode(read_bytes(path), type=list[_Conversation])
    except msgspec.DecodeError as error:
        raise UsageError(f"{path}: {error}; allowed: a JSON list of objects with 'conversations'") from None
    rng = random.Random(f"sharegpt {seed}")
    firsts = [talk.conversations[0].value for talk in conversations if _is_usable(talk.conversations)]
    if not firsts:
        raise UsageError(f"{path}: the data set is empty: no conversation begins with a person and is answered")
    rng.shuffle(firsts)
    return [Request(messages=(Message("user", text),), max_tokens=shape.draw_output(rng)) for text in firsts]


def _is_usable(turns: tuple[_Turn, ...]) -> bool:
    return len(turns) >= 2 and turns[0].speaker in ("human", "user") and bool(turns[0].value.strip())

"""What a model's text is made of, and the contract of the parsers that find it.

A parser belongs to one choice, stands between the text that the gateway releases and the answer's shape, and gives
the same parts, joined, however the text was cut. No character is lost: what is no reasoning and no call is content.
"""

from typing import Protocol

import msgspec


class Reasoning(msgspec.Struct, frozen=True):
    """A piece of what the model thought."""

    text: str


class Content(msgspec.Struct, frozen=True):
    """A piece of the answer itself."""

    text: str


class CallBegan(msgspec.Struct, frozen=True):
    """The choice's call number `index` (from 0) is of the function `name`; `id` names the call."""

    index: int
    id: str
    name: str


class CallArguments(msgspec.Struct, frozen=True):
    """A further piece of a call's arguments, which are JSON text."""

    index: int
    text: str


Part = Reasoning | Content | CallBegan | CallArguments


class OutputParser(Protocol):
    """Finds the parts of one choice's text."""

    @property
    def is_reasoning(self) -> bool | None:
        """Whether the text so far ends in reasoning, its tags included; None while that is open."""
        ...

    def push(self, text: str) -> list[Part]:
        """Takes the next piece; what could still become a marker is held back."""
        ...

    def finish(self) -> list[Part]:
        """Releases what was held back, for the text has ended."""
        ...


class ContentParser:
    """The parser of a model whose text has no other parts: all of it is content."""

    is_reasoning: bool | None = False

    def push(self, text: str) -> list[Part]:
        """The text as it is."""
        return [Content(text)] if text else []

    def finish(self) -> list[Part]:
        """Nothing: no text is ever held back."""
        return []

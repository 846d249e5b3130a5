"""The parts of an answer, until the parsers bring their own."""

from typing import Protocol

from msgspec import Struct


class Reasoning(Struct, frozen=True):
    """Text that the model thought."""

    text: str


class Content(Struct, frozen=True):
    """Text for the reader."""

    text: str


class CallBegan(Struct, frozen=True):
    """A call's name is known."""

    index: int
    id: str
    name: str


class CallArguments(Struct, frozen=True):
    """A further piece of the call's JSON text."""

    index: int
    text: str


Part = Reasoning | Content | CallBegan | CallArguments


class OutputParser(Protocol):
    """Text in, parts out."""

    def push(self, text: str) -> list[Part]:
        """The parts that are complete with this text."""
        ...

    def finish(self) -> list[Part]:
        """What was held back."""
        ...


class PlainParser:
    """All is content."""

    def push(self, text: str) -> list[Part]:
        """The text as it is."""
        return [Content(text)] if text else []

    def finish(self) -> list[Part]:
        """Nothing is held back."""
        return []

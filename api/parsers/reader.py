"""The frame of a parser that is written as a generator: read on, and wait where the text so far does not decide.

What is unread stays in one buffer. A reader looks at it, takes from its front, and yields when it needs more; at the
text's end it decides with what is there. As no decision depends on where a piece ended, neither do the parts. A
possible call is an attempt: until the call begins, what was taken is kept, so that a failed one becomes content.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Sequence
from typing import TypeVar

import msgspec

from api.parsers.parts import CallArguments, Content, Part, Reasoning

Result = TypeVar("Result")
Reading = Generator[None, None, Result]
"""A step of a parser: yields while more text is needed."""

MAX_STRING_CHARS = 4096
"""Longest key or name, as JSON text; what is longer is neither."""

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_SPACE = " \t\r\n"


class Reader(ABC):
    """Buffer, end and parts of one choice's text. A parser implements `_read`."""

    is_reasoning: bool | None = False

    def __init__(self) -> None:
        self._text = ""
        self._ended = False
        self._parts: list[Part] = []
        self._lead = ""
        self._kept: list[str] | None = None
        self._reading = self._read()
        next(self._reading, None)

    def push(self, text: str) -> list[Part]:
        """Takes the next piece."""
        self._text += text
        return self._go_on()

    def finish(self) -> list[Part]:
        """Takes the text's end."""
        self._ended = True
        return self._go_on()

    @abstractmethod
    def _read(self) -> Reading[None]:
        """The parser itself: reads to the text's end."""

    def _go_on(self) -> list[Part]:
        next(self._reading, None)
        parts, self._parts = self._parts, []
        return joined(parts)

    def _emit(self, part: Part) -> None:
        self._parts.append(part)

    def _take(self, count: int) -> str:
        taken, self._text = self._text[:count], self._text[count:]
        if self._kept is not None:
            self._kept.append(taken)
        return taken

    def _attempt(self, lead: str) -> None:
        """What is taken from here on is kept; `lead` has been taken before and is content if the attempt fails."""
        self._lead, self._kept = lead, []

    def _succeed(self) -> None:
        self._kept = None

    def _fail(self) -> None:
        """The lead is content, and what was taken since is unread again."""
        if self._lead:
            self._emit(Content(self._lead))
        self._text = "".join(self._kept or ()) + self._text
        self._kept = None

    def _skip_space(self) -> Reading[str]:
        """Takes white space up to the next character that is none."""
        skipped: list[str] = []
        while True:
            skipped.append(self._take(len(self._text) - len(self._text.lstrip(_SPACE))))
            if self._text or self._ended:
                return "".join(skipped)
            yield

    def _peek(self) -> Reading[str]:
        """The next character, or nothing at the end."""
        while not self._text and not self._ended:
            yield
        return self._text[:1]

    def _expect(self, literal: str) -> Reading[bool]:
        """Takes `literal` if it comes next."""
        while not self._ended and len(self._text) < len(literal) and literal.startswith(self._text):
            yield
        if not self._text.startswith(literal):
            return False
        self._take(len(literal))
        return True

    def _string(self) -> Reading[str | None]:
        """Takes a JSON string and returns its value; None for what is none."""
        if (yield from self._peek()) != '"':
            return None
        while (match := _STRING.match(self._text[:MAX_STRING_CHARS])) is None:
            if self._ended or len(self._text) >= MAX_STRING_CHARS:
                return None
            yield
        try:
            return msgspec.json.decode(self._take(match.end()), type=str)
        except msgspec.DecodeError:
            return None

    def _until(self, markers: Sequence[str], kind: type[Content] | type[Reasoning]) -> Reading[str | None]:
        """Emits text up to the first marker; returns it with the white space before it, or None at the end.

        Held back are what could begin a marker, and white space, which belongs to a marker that follows.
        """
        while True:
            found = min(((at, marker) for marker in markers if (at := self._text.find(marker)) >= 0), default=None)
            if found is not None:
                at, marker = found
                text = self._take(at + len(marker))
                shown = text[:at].rstrip(_SPACE)
                self._show(kind, shown)
                return text[len(shown) :]
            if self._ended:
                self._show(kind, self._take(len(self._text)))
                return None
            free = self._text[: len(self._text) - longest_beginning(self._text, markers)].rstrip(_SPACE)
            self._show(kind, self._take(len(free)))
            yield

    def _show(self, kind: type[Content] | type[Reasoning], text: str) -> None:
        if text:
            self._emit(kind(text))


def longest_beginning(text: str, markers: Iterable[str]) -> int:
    """The length of the longest end of `text` that is a proper beginning of one of `markers`."""
    longest = 0
    for marker in markers:
        for size in range(min(len(marker) - 1, len(text)), longest, -1):
            if text.endswith(marker[:size]):
                longest = size
                break
    return longest


def joined(parts: Iterable[Part]) -> list[Part]:
    """The parts with neighbours of one kind (and one call) joined."""
    result: list[Part] = []
    for part in parts:
        match (result[-1] if result else None), part:
            case Content(before), Content(text):
                result[-1] = Content(before + text)
            case Reasoning(before), Reasoning(text):
                result[-1] = Reasoning(before + text)
            case CallArguments(index, before), CallArguments(same, text) if index == same:
                result[-1] = CallArguments(index, before + text)
            case _:
                result.append(part)
    return result

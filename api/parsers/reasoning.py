"""Reasoning that a model writes before its answer, between `<think>` and `</think>`, or up to `</think>` alone where
the prompt has opened the block. What follows goes to the parser of the answer.
"""

from api.parsers.parts import OutputParser, Reasoning
from api.parsers.reader import Reader, Reading

BEGIN, END = "<think>", "</think>"


class ReasoningParser(Reader):
    """One block at the text's beginning is reasoning; later tags are text like any other.

    White space next to the tags belongs to them. Without a closing tag all of the text is reasoning.
    """

    def __init__(self, inner: OutputParser, *, begins_inside: bool) -> None:
        self._inner = inner
        self._begins_inside = begins_inside
        self.is_reasoning = None
        super().__init__()

    def _read(self) -> Reading[None]:
        space = yield from self._skip_space()
        if (yield from self._expect(BEGIN)) or self._begins_inside:
            self.is_reasoning = True
            yield from self._skip_space()
            if (yield from self._until((END,), Reasoning)) is not None:
                self.is_reasoning = False
            yield from self._skip_space()
        else:
            self.is_reasoning = False
            self._pass_on(space)
        while not self._ended:
            self._pass_on(self._take(len(self._text)))
            yield
        self._pass_on(self._take(len(self._text)))
        self._parts.extend(self._inner.finish())

    def _pass_on(self, text: str) -> None:
        if text:
            self._parts.extend(self._inner.push(text))

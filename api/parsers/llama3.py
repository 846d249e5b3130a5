"""The form of Llama 3: bare objects `{"name": ..., "parameters": {...}}`, several with `; ` between them.

Where `<|python_tag|>` stands before them they may come behind text; without it they are all of the answer. As any
JSON answer could look like a call, only the functions that were offered are called.
"""

from api.parsers.calls import CallReader
from api.parsers.parts import Content
from api.parsers.reader import Reading

BEGIN = "<|python_tag|>"
SEPARATOR = ";"


class Llama3Parser(CallReader):
    """Calls at the text's beginning or behind the tag; the rest is content."""

    def _read(self) -> Reading[None]:
        lead: str | None = yield from self._skip_space()
        while lead is not None:
            yield from self._calls(lead)
            lead = yield from self._until((BEGIN,), Content)

    def _calls(self, lead: str) -> Reading[None]:
        self._attempt(lead)
        yield from self._skip_space()
        while (yield from self._object_call()):
            self._attempt("")
            yield from self._skip_space()
            if not self._text:
                self._succeed()
                return
            if not (yield from self._expect(SEPARATOR)):
                self._fail()
                return
            yield from self._skip_space()

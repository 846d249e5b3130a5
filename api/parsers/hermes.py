"""The form of Hermes and Qwen: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, once per call."""

from api.parsers.calls import CallReader
from api.parsers.parts import Content
from api.parsers.reader import Reading

BEGIN, END = "<tool_call>", "</tool_call>"


class HermesParser(CallReader):
    """Text around calls is content; white space next to a call belongs to it."""

    def _read(self) -> Reading[None]:
        while (lead := (yield from self._until((BEGIN,), Content))) is not None:
            self._attempt(lead)
            yield from self._skip_space()
            if not (yield from self._object_call()):
                continue
            yield from self._skip_space()
            yield from self._expect(END)
            yield from self._skip_space()

"""The forms of DeepSeek: V3 and R1 name the kind and fence the arguments, V3.1 does neither.

<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME
```json
{...}
```<｜tool▁call▁end｜><｜tool▁calls▁end｜>

<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>NAME<｜tool▁sep｜>{...}<｜tool▁call▁end｜><｜tool▁calls▁end｜>
"""

from api.parsers.calls import CallReader
from api.parsers.parts import Content
from api.parsers.reader import Reading

CALLS_BEGIN, CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
BEGIN, SEPARATOR, END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
FENCE_BEGIN, FENCE_END = "```json", "```"
MAX_FIELD_CHARS = 256


class DeepSeekParser(CallReader):
    """Text around calls is content; white space next to a call belongs to it."""

    def _read(self) -> Reading[None]:
        while (lead := (yield from self._until((CALLS_BEGIN, BEGIN), Content))) is not None:
            self._attempt(lead)
            if not lead.endswith(BEGIN):
                yield from self._skip_space()
                if not (yield from self._expect(BEGIN)):
                    self._fail()
                    continue
            while (yield from self._call()):
                yield from self._skip_space()
                if (yield from self._expect(CALLS_END)):
                    yield from self._skip_space()
                    break
                if not (yield from self._expect(BEGIN)):
                    break
                self._attempt(BEGIN)

    def _call(self) -> Reading[bool]:
        """Takes one call behind its begin marker."""
        name = yield from self._field(SEPARATOR)
        fenced = False
        if name is not None:
            yield from self._skip_space()
            if (yield from self._peek()) != "{":
                name = yield from self._field("\n")
                yield from self._skip_space()
                fenced = yield from self._expect(FENCE_BEGIN)
                yield from self._skip_space()
        if name is None or not self._is_name(name) or (yield from self._peek()) != "{":
            self._fail()
            return False
        self._begin(name)
        yield from self._arguments()
        yield from self._skip_space()
        if fenced and (yield from self._expect(FENCE_END)):
            yield from self._skip_space()
        yield from self._expect(END)
        return True

    def _field(self, end: str) -> Reading[str | None]:
        """Takes text up to `end`, and `end`; None when there is none in reach."""
        while (at := self._text.find(end, 0, MAX_FIELD_CHARS)) < 0:
            if self._ended or len(self._text) >= MAX_FIELD_CHARS:
                return None
            yield
        field = self._take(at)
        self._take(len(end))
        return field.strip()

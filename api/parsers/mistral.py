"""The forms of Mistral: `[TOOL_CALLS][{"name": ..., "arguments": {...}}, ...]`, and the newer one, once per call,
`[TOOL_CALLS]name[ARGS]{...}`, which may have `[CALL_ID]id` behind the name.
"""

from api.parsers.calls import NAME, CallReader
from api.parsers.parts import Content
from api.parsers.reader import Reading

BEGIN, ARGS, CALL_ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"
MAX_NAME_CHARS = 128


class MistralParser(CallReader):
    """Text around calls is content; white space next to a call belongs to it."""

    def _read(self) -> Reading[None]:
        while (lead := (yield from self._until((BEGIN,), Content))) is not None:
            self._attempt(lead)
            yield from self._skip_space()
            following = yield from self._peek()
            if following == "[":
                whole = yield from self._list()
            elif following == "{":
                whole = yield from self._object_call()
            else:
                whole = yield from self._named_call()
            if whole:
                yield from self._skip_space()

    def _list(self) -> Reading[bool]:
        """Takes the objects of a list; False when one is no call, which is left for content with what follows."""
        yield from self._expect("[")
        yield from self._skip_space()
        while (yield from self._object_call()):
            yield from self._skip_space()
            if not (yield from self._expect(",")):
                yield from self._expect("]")
                return True
            self._attempt(",")
            yield from self._skip_space()
        return False

    def _named_call(self) -> Reading[bool]:
        """Takes a name and an object; False for anything else."""
        name = yield from self._word()
        if name is not None and (yield from self._expect(CALL_ID)):
            yield from self._word()
        if name is not None:
            yield from self._expect(ARGS)
            yield from self._skip_space()
            if self._is_name(name) and (yield from self._peek()) == "{":
                self._begin(name)
                yield from self._arguments()
                return True
        self._fail()
        return False

    def _word(self) -> Reading[str | None]:
        """Takes what can be a name, up to the next character that cannot belong to one."""
        while True:
            match = NAME.match(self._text)
            size = match.end() if match else 0
            if size >= MAX_NAME_CHARS:
                return None
            if size < len(self._text) or self._ended:
                return self._take(size) or None
            yield

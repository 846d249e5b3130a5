"""What the tool parsers share: calls with running numbers, and the object that most models write a call as."""

import re
from collections.abc import Callable, Collection
from typing import Any

import msgspec

from api.parsers.json_scan import ValueScan
from api.parsers.parts import CallArguments, CallBegan
from api.parsers.reader import Reader, Reading

ARGUMENT_KEYS = ("arguments", "parameters")
NAME = re.compile(r'[^\s"{}<>\[\]]{1,128}')
"""What can be a function's name, also one that was not offered: the client tells the model so."""

MakeId = Callable[[], str]


class CallReader(Reader):
    """A reader that finds calls. `make_id` names each; with `names` a call of any other function is none."""

    def __init__(self, make_id: MakeId, names: Collection[str] | None = None) -> None:
        self._make_id = make_id
        self._names = names
        self._num_calls = 0
        super().__init__()

    def _is_name(self, name: str | None) -> bool:
        return name is not None and NAME.fullmatch(name) is not None and (self._names is None or name in self._names)

    def _begin(self, name: str) -> None:
        """The attempt has become a call."""
        self._succeed()
        self._emit(CallBegan(self._num_calls, self._make_id(), name))
        self._num_calls += 1

    def _argue(self, text: str) -> None:
        if text:
            self._emit(CallArguments(self._num_calls - 1, text))

    def _object_call(self) -> Reading[bool]:
        """Takes `{"name": ..., "arguments": {...}}`, in any order; False (and failed) when no call has begun.

        What breaks off later is left for content.
        """
        began = yield from _ObjectCall(self).read()
        if not began:
            self._fail()
        return began

    def _value(self, take: Callable[[str], None]) -> Reading[bool]:
        """Takes a JSON value, piece by piece; False when none comes or it breaks off."""
        scan = ValueScan((yield from self._peek()))
        if not scan.is_value:
            return False
        while (end := scan.end(self._text)) is None:
            take(self._take(len(self._text)))
            if self._ended:
                return False
            yield
        take(self._take(end))
        return True

    def _arguments(self) -> Reading[None]:
        """Takes the begun call's arguments: an object as it comes, another value once it is whole."""
        if (yield from self._peek()) == "{":
            yield from self._value(self._argue)
            return
        pieces: list[str] = []
        yield from self._value(pieces.append)
        self._argue(as_arguments("".join(pieces)))


class _ObjectCall:
    """Reads one call's object for a reader."""

    def __init__(self, reader: CallReader) -> None:
        self._reader = reader
        self._name: str | None = None
        self._early: str | None = None
        self._began = False

    def read(self) -> Reading[bool]:
        reader = self._reader
        if not (yield from reader._expect("{")):
            return False
        while True:
            yield from reader._skip_space()
            if (yield from reader._expect("}")):
                break
            if not (yield from self._member()):
                return self._began
            yield from reader._skip_space()
            if not (yield from reader._expect(",")):
                if not (yield from reader._expect("}")):
                    return self._began
                break
        if not self._began and self._name is not None:
            self._start(self._name)
            reader._argue("{}")
        return self._began

    def _member(self) -> Reading[bool]:
        """Takes a key and its value; False for what is no member of a call."""
        reader = self._reader
        key = yield from reader._string()
        if key is None:
            return False
        yield from reader._skip_space()
        if not (yield from reader._expect(":")):
            return False
        yield from reader._skip_space()
        if key == "name" and self._name is None:
            return (yield from self._named())
        if key in ARGUMENT_KEYS and not self._began and self._early is None:
            return (yield from self._argued())
        return (yield from reader._value(_drop))

    def _named(self) -> Reading[bool]:
        name = yield from self._reader._string()
        if name is None or not self._reader._is_name(name):
            return False
        self._name = name
        if self._early is not None:
            self._start(name)
            self._reader._argue(as_arguments(self._early))
        return True

    def _argued(self) -> Reading[bool]:
        if self._name is not None:
            self._start(self._name)
            yield from self._reader._arguments()
            return True
        pieces: list[str] = []
        whole = yield from self._reader._value(pieces.append)
        self._early = "".join(pieces)
        return whole

    def _start(self, name: str) -> None:
        self._reader._begin(name)
        self._began = True


def as_arguments(text: str) -> str:
    """Arguments that are no object as the JSON text of one, where they mean one: null, or an object's text."""
    value = _decoded(text)
    if value is None:
        return "{}" if text.strip() in ("", "null") else text
    return value if isinstance(value, str) and isinstance(_decoded(value), dict) else text


def _decoded(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return None


def _drop(text: str) -> None:
    pass

"""Finds where a JSON value ends, piece by piece, without building it. Pure.

It follows strings and brackets only: a value that is wrong inside still ends where its brackets close, and is passed
on as the model wrote it.
"""

import re

_OUTSIDE = re.compile(r'["{}\[\]]')
_INSIDE = re.compile(r'["\\]')
_SCALAR = re.compile(r"[-+.\w]*")


class ValueScan:
    """The end of one value. `first` is its first character; `is_value` tells whether a value can begin so."""

    def __init__(self, first: str) -> None:
        self._is_scalar = first not in ("{", "[", '"')
        self.is_value = not self._is_scalar or bool(_SCALAR.fullmatch(first) and first)
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self._closed = False

    def end(self, text: str) -> int | None:
        """Takes the next piece of the value; returns where in the piece it ends, None when it goes on."""
        if self._is_scalar:
            match = _SCALAR.match(text)
            size = match.end() if match else 0
            return size if size < len(text) else None
        at = 0
        while at < len(text):
            at = self._in_text(text, at) if self._in_string else self._in_structure(text, at)
            if self._closed:
                return at
        return None

    def _in_text(self, text: str, at: int) -> int:
        if self._escaped:
            self._escaped = False
            return at + 1
        match = _INSIDE.search(text, at)
        if match is None:
            return len(text)
        if match[0] == "\\":
            self._escaped = True
        else:
            self._in_string = False
            self._closed = self._depth == 0
        return match.end()

    def _in_structure(self, text: str, at: int) -> int:
        match = _OUTSIDE.search(text, at)
        if match is None:
            return len(text)
        if match[0] == '"':
            self._in_string = True
        elif match[0] in "{[":
            self._depth += 1
        else:
            self._depth -= 1
            self._closed = self._depth == 0
        return match.end()

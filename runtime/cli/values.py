"""What a setting's value may be, whether it is written after a flag or in a TOML file. Pure; no I/O.

Each kind says in words what it allows. Whoever reads a value puts the setting's name and what was given in front.
"""

import re
from collections.abc import Callable
from math import isfinite
from typing import Any

import msgspec

_WHOLE = re.compile(r"[+-]?[0-9]{1,20}")
_KEY = re.compile(r"[!-~]+")
_ORIGIN = re.compile(r"\*|https?://[A-Za-z0-9._-]+(:[0-9]{1,5})?|https?://\[[0-9A-Fa-f:.]+\](:[0-9]{1,5})?")
_URL = re.compile(r"https?://[!-~]+")


class Refused(ValueError):
    """The value is not allowed."""


class Value(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of value. Both readers raise Refused; `toml` takes what a TOML parser makes of the file."""

    allowed: str
    text: Callable[[str], Any]
    toml: Callable[[Any], Any]


def integer(low: int, high: int, *, unit: str = "", also: int | None = None) -> Value:
    """A whole number within bounds, both included; or the one number beside them that has a meaning of its own."""
    besides = "" if also is None else f", or {also}"
    allowed = f"a whole number{unit and f' of {unit}'} from {low} to {high}{besides}"
    return _whole(allowed, lambda value: low <= value <= high or value == also)


def power_of_two(low: int, high: int) -> Value:
    """A power of two within bounds, both included."""
    return _whole(
        f"a power of two from {low} to {high}", lambda value: low <= value <= high and not value & (value - 1)
    )


def number(low: float, high: float, *, unit: str = "") -> Value:
    """A finite number above `low` and at most `high`."""
    allowed = f"a number{unit and f' of {unit}'} above {low:g} and at most {high:g}"

    def check(value: float) -> float:
        if not isfinite(value) or not low < value <= high:
            raise Refused
        return value

    def from_text(given: str) -> float:
        try:
            return check(float(given))
        except ValueError:
            raise Refused from None

    def from_toml(given: Any) -> float:
        if isinstance(given, bool) or not isinstance(given, int | float):
            raise Refused
        return check(float(given)) if abs(given) <= high else _refuse()

    return Value(allowed=allowed, text=from_text, toml=from_toml)


def one_of(*choices: str) -> Value:
    """One of a few words."""
    return _words(", ".join(choices), lambda given: given in choices)


def text(allowed: str = "a text of at least one character") -> Value:
    """Any text but an empty one; a NUL character, which a file can hold, no operating system takes in a name."""
    return _words(allowed, lambda given: bool(given.strip()) and "\0" not in given)


def keys() -> Value:
    """One key after a flag, which may be repeated; one or a list of them in a file. Both become a tuple.

    A key travels in an HTTP header: one with blanks or beyond ASCII could never match.
    """
    return _several("printable ASCII characters without blanks", lambda given: _KEY.fullmatch(given) is not None)


def origins() -> Value:
    """Like keys, but each is a web page's origin as browsers send it, or the star."""
    return _several(
        "http://HOST[:PORT] or https://HOST[:PORT] without a path, or *", lambda given: _ORIGIN.fullmatch(given)
    )


def url() -> Value:
    """An address of the web."""
    return _words("a URL that begins with http:// or https://", lambda given: _URL.fullmatch(given) is not None)


def _several(allowed: str, holds: Callable[[str], object]) -> Value:
    one = _words(allowed, holds)

    def from_toml(given: Any) -> tuple[str, ...]:
        return tuple(one.toml(part) for part in (given if isinstance(given, list) else [given]))

    return Value(allowed=f"{allowed}; in a file also a list", text=lambda given: (one.text(given),), toml=from_toml)


def key() -> Value:
    """One key, or `@FILE`: a file that holds it, so that no list of processes shows it."""
    allowed = "printable ASCII characters without blanks, or @FILE with them in it"
    return _words(
        allowed, lambda given: "\0" not in given and (given[1:].strip() if given[:1] == "@" else _KEY.fullmatch(given))
    )


def switch() -> Value:
    """On when the flag is there; true or false in a file."""

    def from_toml(given: Any) -> bool:
        return given if isinstance(given, bool) else _refuse()

    return Value(
        allowed="no value after the flag, true or false in a file", text=lambda given: _refuse(), toml=from_toml
    )


def _whole(allowed: str, holds: Callable[[int], bool]) -> Value:
    def check(value: int) -> int:
        return value if holds(value) else _refuse()

    def from_text(given: str) -> int:
        return check(int(given)) if _WHOLE.fullmatch(given.strip()) else _refuse()

    def from_toml(given: Any) -> int:
        return check(given) if isinstance(given, int) and not isinstance(given, bool) else _refuse()

    return Value(allowed=allowed, text=from_text, toml=from_toml)


def _words(allowed: str, holds: Callable[[str], object]) -> Value:
    def check(given: Any) -> str:
        return given if isinstance(given, str) and holds(given) else _refuse()

    return Value(allowed=allowed, text=check, toml=check)


def _refuse() -> Any:
    raise Refused

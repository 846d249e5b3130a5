"""How the text after a flag becomes a value. Each complaint says what was given and what is allowed."""

from argparse import ArgumentTypeError
from collections.abc import Callable
from math import isfinite


def integer(low: int, high: int, *, unit: str = "") -> Callable[[str], int]:
    """A whole number within bounds, both included."""
    allowed = f"a whole number{unit and f' of {unit}'} from {low} to {high}"

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise ArgumentTypeError(complaint(text, allowed)) from None
        if not low <= value <= high:
            raise ArgumentTypeError(complaint(text, allowed))
        return value

    return parse


def power_of_two(low: int, high: int) -> Callable[[str], int]:
    """A power of two within bounds, both included."""
    allowed = f"a power of two from {low} to {high}"
    bounded = integer(low, high)

    def parse(text: str) -> int:
        try:
            value = bounded(text)
        except ArgumentTypeError:
            raise ArgumentTypeError(complaint(text, allowed)) from None
        if value & (value - 1):
            raise ArgumentTypeError(complaint(text, allowed))
        return value

    return parse


def number(low: float, high: float, *, unit: str = "") -> Callable[[str], float]:
    """A finite number above `low` and at most `high`."""
    allowed = f"a number{unit and f' of {unit}'} above {low:g} and at most {high:g}"

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise ArgumentTypeError(complaint(text, allowed)) from None
        if not isfinite(value) or not low < value <= high:
            raise ArgumentTypeError(complaint(text, allowed))
        return value

    return parse


def one_of(*choices: str) -> Callable[[str], str]:
    """One of a few words."""

    def parse(text: str) -> str:
        if text not in choices:
            raise ArgumentTypeError(complaint(text, ", ".join(choices)))
        return text

    return parse


def text(allowed: str = "a text of at least one character") -> Callable[[str], str]:
    """Any text but an empty one."""

    def parse(given: str) -> str:
        if not given.strip():
            raise ArgumentTypeError(complaint(given, allowed))
        return given

    return parse


def complaint(given: str, allowed: str) -> str:
    """The second half of a refusal; the flag's name goes in front."""
    return f"{given!r}: allowed: {allowed}"

"""Durations, fractions and counts as people write them on a command line. Every mistake names the text and what is
allowed.
"""

import math

from loadtest.errors import UsageError

_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def parse_duration_s(text: str) -> float:
    """Seconds of `500ms`, `10s`, `1.5m`. The unit has to be there: a bare number could be either."""
    for unit in sorted(_SECONDS, key=len, reverse=True):
        if text.endswith(unit):
            value = _number(text.removesuffix(unit))
            if value is not None and value >= 0:
                return value * _SECONDS[unit]
            break
    raise UsageError(f"{text!r}: allowed: a duration with its unit, such as 500ms, 10s or 2m")


def parse_fraction(text: str) -> float:
    """`0.05` or `5%`, from 0 to 1."""
    value = _number(text.removesuffix("%"))
    if value is not None:
        value = value / 100 if text.endswith("%") else value
        if 0 <= value <= 1:
            return value
    raise UsageError(f"{text!r}: allowed: a fraction from 0 to 1, such as 0.05 or 5%")


def parse_positive(text: str) -> float:
    """A number above zero; `inf` is one."""
    value = math.inf if text == "inf" else _number(text)
    if value is None or value <= 0:
        raise UsageError(f"{text!r}: allowed: a number above 0, or inf")
    return value


def parse_count(text: str, least: int = 1) -> int:
    """A whole number that is at least `least`."""
    if not (text.isascii() and text.isdecimal()) or len(text) > 9 or int(text) < least:
        raise UsageError(f"{text!r}: allowed: a whole number from {least} to 999999999")
    return int(text)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None

"""Checks of single values, with one wording: the field, what is allowed, what came."""

from collections.abc import Sequence

from runtime.errors import RequestError

_SHOWN = 2**64


def in_range(param: str, value: float | None, low: float, high: float, default: float) -> float:
    """`value`, or the default for None; refuses what is outside `low..high`."""
    if value is None:
        return default
    if not low <= value <= high:
        raise RequestError(f"{param}: must be between {low:g} and {high:g}, got {value:g}", param=param)
    return value


def whole_in_range(param: str, value: int | None, low: int, high: int, default: int) -> int:
    """Like `in_range`, for integers of any size."""
    if value is None:
        return default
    if not low <= value <= high:
        raise RequestError(f"{param}: must be between {low} and {high}, got {shown(value)}", param=param)
    return value


def shown(value: int) -> str:
    """A client's integer for a message: Python refuses to print huge ones, and nobody wants to read them."""
    return str(value) if -_SHOWN < value < _SHOWN else "a number beyond 64 bits"


def check_token_ids(param: str, tokens: Sequence[int], vocab_size: int) -> None:
    """Refuses ids outside the model's vocabulary, naming the lowest or else the highest."""
    if not tokens:
        return
    lowest, highest = min(tokens), max(tokens)
    if lowest < 0 or highest >= vocab_size:
        token = lowest if lowest < 0 else highest
        raise RequestError(
            f"{param}: token id {shown(token)} is not in the vocabulary of {vocab_size} tokens", param=param
        )

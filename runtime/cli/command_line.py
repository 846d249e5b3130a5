"""Reads arguments of `runtime up` and its relatives into values by flag: `--flag value`, `--flag=value`, or a switch.

Where a flag is given twice the last one holds, so that a longer command can overrule a shorter one; keys add up.
"""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from runtime.cli.flag import Flag
from runtime.cli.flag_table import BY_NAME
from runtime.cli.values import Refused
from runtime.errors import UsageError


def read_command_line(
    arguments: Sequence[str], by_name: Mapping[str, Flag] = BY_NAME, command: str = "up"
) -> dict[Flag, Any]:
    """The value of every flag that is given, of those that `command` has. Raises UsageError for any other, and for a
    bad value.
    """
    given: dict[Flag, Any] = {}
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        flag = by_name.get(name)
        if flag is None:
            raise UsageError(_unknown(word, rest, by_name, f"`runtime {command} --help`"))
        if flag.is_switch:
            if equals:
                raise flag.refuse(flag.label, value, "no value")
            given[flag] = True
            continue
        if not equals:
            value = _following(flag, rest)
        given[flag] = _both(given.get(flag), _read(flag, value))
    return given


def _following(flag: Flag, rest: list[str]) -> str:
    """The word after a flag. A value that begins with two dashes has to be written behind an equals sign."""
    if not rest or rest[0].startswith("--"):
        raise UsageError(f"{flag.label}: no value given; allowed: {flag.value.allowed}")
    return rest.pop(0)


def _read(flag: Flag, value: str) -> Any:
    try:
        return flag.value.text(value)
    except Refused:
        raise flag.refuse(flag.label, value) from None


def _both(earlier: Any, value: Any) -> Any:
    return earlier + value if isinstance(earlier, tuple) else value


def _unknown(word: str, rest: Sequence[str], by_name: Mapping[str, Flag], help_command: str) -> str:
    if not word.startswith("-"):
        return f"unexpected argument {word!r}; allowed: flags, see {help_command}"
    name, _, value = word.partition("=")
    if not value and rest and not rest[0].startswith("-"):
        value = rest[0]
    near = get_close_matches(name, by_name, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    secret = bool(near) and by_name[near[0]].is_secret
    shown = f"{name} {value!r}" if value and not secret else name
    return f"unknown flag {shown}: {hint}allowed: the flags that {help_command} lists"

"""From the arguments of `runtime up` to its settings: command line over configuration file over defaults.

Neither jax nor the server is imported for it, so help and mistakes come at once.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from runtime.cli.command_line import read_command_line
from runtime.cli.config_file import read_config_file
from runtime.cli.flag import Flag
from runtime.cli.flag_table import BY_NAME
from runtime.cli.help_text import help_text
from runtime.settings import Settings

_CONFIG, _PRINT = BY_NAME["--config"], BY_NAME["--print-config"]


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """Settings, and for those that were given, by field: where ("flag --port", "file up.toml")."""

    settings: Settings
    origins: Mapping[str, str]
    prints: bool = False


def parse_up(arguments: Sequence[str]) -> Settings | None:
    """Settings to serve with, or None when the flags asked for something to be printed, which is then done.

    Raises UsageError.
    """
    if "-h" in arguments or "--help" in arguments:
        sys.stdout.write(help_text())
        return None
    options = read_options(arguments)
    if options.prints:
        from runtime.cli.print_config import config_in_force

        sys.stdout.write(config_in_force(options))
        return None
    return options.settings


def read_options(arguments: Sequence[str]) -> Options:
    """What flags and file say together. Raises UsageError."""
    return _options(read_command_line(arguments))


def read_options_and(others: Sequence[Flag], arguments: Sequence[str], command: str) -> tuple[Options, dict[Flag, Any]]:
    """What flags and file say together, and the values of `others`, which only `command` has. Raises UsageError."""
    by_name = dict(BY_NAME) | {name: flag for flag in others for name in flag.names}
    flags = read_command_line(arguments, by_name, command)
    own = {flag: flags.pop(flag) for flag in others if flag in flags}
    return _options(flags), own


def _options(flags: dict[Flag, Any]) -> Options:
    prints = bool(flags.pop(_PRINT, False))
    path = flags.pop(_CONFIG, None)
    in_file = {} if path is None else read_config_file(Path(path))
    values = _by_field(in_file) | _by_field(flags)
    origins = {flag.field: f"file {path}" for flag in in_file if flag.field} | {
        flag.field: f"flag {flag.name}" for flag in flags if flag.field
    }
    return Options(settings=Settings(**values), origins=origins, prints=prints)


def _by_field(given: Mapping[Flag, Any]) -> dict[str, Any]:
    return {flag.field: value for flag, value in given.items() if flag.field is not None}

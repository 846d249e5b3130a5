"""Reads the settings of a TOML file into values by flag. Keys are flag names without dashes in front; inside, `-` and
`_` are the same. A path in it is relative to where the command is run, as it would be after a flag.
"""

import tomllib
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from runtime.cli.flag import Flag
from runtime.cli.flag_table import SETTINGS_FLAGS
from runtime.cli.values import Refused
from runtime.errors import UsageError

_BY_KEY = {name.lstrip("-"): flag for flag in SETTINGS_FLAGS for name in flag.names}


def read_config_file(path: Path) -> dict[Flag, Any]:
    """The value of every setting in the file. Raises UsageError that names file, key, value and what is allowed."""
    given: dict[Flag, Any] = {}
    keys: dict[Flag, str] = {}
    for key, value in _content(path).items():
        flag = _BY_KEY.get(key.replace("_", "-"))
        if flag is None:
            raise UsageError(_unknown(path, key, value))
        if flag in given:
            raise UsageError(f"{path}: {keys[flag]} and {key} are the same setting; allowed: one of them")
        keys[flag] = key
        try:
            given[flag] = flag.value.toml(value)
        except Refused:
            raise flag.refuse(f"{path}: {key}", value) from None
    return given


def _content(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.expanduser().read_bytes().decode())
    except (OSError, RuntimeError) as error:  # the latter for ~ of a user that there is not
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"--config {str(path)!r}: {reason}; allowed: a readable TOML file") from None
    except ValueError as error:  # not UTF-8, or not TOML
        reason = " ".join(str(error).split())
        raise UsageError(f"--config {str(path)!r}: {reason}; allowed: a TOML file in UTF-8") from None


def _unknown(path: Path, key: str, value: Any) -> str:
    near = get_close_matches(key.replace("_", "-"), _BY_KEY, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    secret = bool(near) and _BY_KEY[near[0]].is_secret
    shown = "a table" if isinstance(value, dict) else "not shown" if secret else repr(value)[:200]
    return (
        f"{path}: unknown key {key!r} ({shown}): {hint}"
        "allowed: the flags that `runtime up --help` lists, without dashes in front"
    )

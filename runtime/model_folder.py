"""Reading the JSON files of a model folder with errors that name file, key, value and what is allowed.

Used once per start, by the model's config and its weights. Every failure is a UsageError of one line.
"""

import json
from pathlib import Path
from typing import Any

from runtime.errors import UsageError


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises UsageError if the file is missing, not JSON or not an object."""
    if not path.parent.is_dir():
        raise UsageError(f"model folder {path.parent} does not exist or is not a folder")
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UsageError(f"model folder {path.parent} has no {path.name}") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"{path} is not JSON: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UsageError(f"{path} holds a JSON {type(content).__name__}; it must be an object")
    return content


class JsonObject:
    """Typed access to the keys of one JSON file. A null counts as missing."""

    def __init__(self, path: Path, content: dict[str, Any]) -> None:
        self._path = path
        self._content = content

    def get(self, key: str) -> Any:
        """The raw value, or None."""
        return self._content.get(key)

    def refuse(self, key: str, allowed: str, value: Any = None) -> UsageError:
        """The error for a bad value of `key`; `value` if it is not simply what the key holds."""
        shown = self.get(key) if value is None else value
        return UsageError(f"{self._path}: {key} is {shown!r}; {allowed}")

    def count(self, key: str, default: int | None = None, *, minimum: int = 1) -> int:
        """An integer from `minimum` on. Raises UsageError; also if the key is missing and there is no default."""
        value = self._present(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
            raise self.refuse(key, "it must be a positive integer" if minimum else "it must be an integer, 0 or more")
        return value

    def positive(self, key: str, default: float | None = None) -> float:
        """A finite number above zero. Raises UsageError; also if the key is missing without default."""
        value = self._present(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
            raise self.refuse(key, "it must be a number above 0")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """A boolean."""
        value = self._present(key, default)
        if not isinstance(value, bool):
            raise self.refuse(key, "it must be true or false")
        return value

    def token_ids(self, key: str) -> tuple[int, ...]:
        """A token id or a list of them; empty if missing."""
        value = self.get(key)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(token, int) and not isinstance(token, bool) and token >= 0 for token in ids):
            raise self.refuse(key, "it must be a token id or a list of token ids")
        return tuple(ids)

    def section(self, key: str) -> "JsonObject | None":
        """A nested object, or None if missing."""
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.refuse(key, "it must be an object or null")
        return JsonObject(self._path, value)

    def _present(self, key: str, default: Any) -> Any:
        value = self.get(key)
        if value is not None:
            return value
        if default is None:
            raise UsageError(f"{self._path}: {key} is missing")
        return default

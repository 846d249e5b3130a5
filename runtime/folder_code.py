"""Which code of its own a model folder names, in the `auto_map` of its descriptions. Nothing is run here."""

from pathlib import Path
from typing import Any

from runtime.model_folder import read_json

TOKENIZER_CONFIG = "tokenizer_config.json"


def tokenizer_code(folder: Path) -> str | None:
    """The class that the tokenizer's config asks for, if any. Raises UsageError if the file is not JSON."""
    named = _auto_map(folder / TOKENIZER_CONFIG)
    if isinstance(named, dict):
        named = named.get("AutoTokenizer")
    if isinstance(named, list):  # a slow and a fast one, either of which may be null
        named = next((name for name in reversed(named) if name), None)
    return str(named) if named else None


def model_code(folder: Path) -> str | None:
    """The classes that config.json names, if any. Raises UsageError if the file is not JSON."""
    named = _auto_map(folder / "config.json")
    return ", ".join(map(str, named.values())) if isinstance(named, dict) and named else None


def _auto_map(path: Path) -> Any:
    return read_json(path).get("auto_map") if path.is_file() else None

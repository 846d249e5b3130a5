"""A small step-time table whose every time can be worked out by hand."""

from copy import deepcopy
from typing import Any

import msgspec

from runtime.emulated.table import StepTable

DOCUMENT: dict[str, Any] = {
    "format": "runtime-step-times/1",
    "model": "tiny",
    "dtype": "float32",
    "platform": "cpu",
    "source": "estimated",
    "how": "by hand",
    "max_context_tokens": 400,
    "kv_bytes_per_token": 100,
    "pool_tokens": 4096,
    "prefill": {"tokens": [32, 64], "starts": [0, 100], "step_s": [[0.3, 0.4], [0.6, 0.8]]},
    "decode": {"rows": [4, 8], "contexts": [100, 300], "step_s": [[0.1, 0.3], [0.1, 0.5]]},
    "mixed": {"start": 0, "context": 100, "tokens": [32, 64], "rows": [4, 8], "step_s": [[0.38, 0.4], [0.7, 0.9]]},
    "gather": {"fixed_s": 0.01, "per_token_s": 0.001},
    "insert": {"fixed_s": 0.02, "per_token_s": 0.001},
    "transfer": {"fixed_s": 0.03, "per_token_s": 0.002},
}


def table() -> StepTable:
    """The table."""
    return msgspec.convert(DOCUMENT, StepTable)


def with_value(part: str, field: str, value: object) -> dict[str, Any]:
    """The document with one value that is another."""
    document = deepcopy(DOCUMENT)
    document[part][field] = value
    return document


def fast(factor: float = 1e-3) -> dict[str, Any]:
    """The document with times so short that a test need not wait."""
    document: dict[str, Any] = msgspec.to_builtins(table().stretched(factor))
    return document

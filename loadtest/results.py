"""A run's result as a file: vLLM's keys and per-request arrays, every request's record, and how to make it again."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from loadtest.environment import Environment
from loadtest.errors import UsageError
from loadtest.metrics import Metrics
from loadtest.record import Record
from loadtest.slo import Verdict

FORMAT = "loadtest-run/1"


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that is known after a run. `lag_limit_s` is the client's allowed lateness; `invalid` says why not."""

    setup: dict[str, Any]
    environment: Environment
    server: dict[str, Any]
    metrics: Metrics
    verdicts: tuple[Verdict, ...]
    records: tuple[Record, ...]
    warmup: tuple[Record, ...]
    tick_lag_p99_s: float
    lag_limit_s: float
    invalid: str | None
    stopped: str | None
    warnings: tuple[str, ...]

    @property
    def is_met(self) -> bool:
        """Whether every objective was met."""
        return all(verdict.met for verdict in self.verdicts)


def to_json(result: Result) -> dict[str, Any]:
    """The file's content."""
    values: dict[str, Any] = {"format": FORMAT, "date": result.environment.date}
    values |= result.metrics.to_json()
    values |= {name: getattr(result, name) for name in ("setup", "environment", "server", "invalid", "stopped")}
    values |= {"warnings": result.warnings, "slo": result.verdicts, "errors_by_reason": result.metrics.errors}
    values |= {"tick_lag_p99_ms": result.tick_lag_p99_s * 1e3, "lag_limit_ms": result.lag_limit_s * 1e3}
    values |= {
        "usage_missing": result.metrics.usage_missing,
        "usage_unequal_to_chunks": result.metrics.usage_unequal,
        "prompt_tokens_unequal": result.metrics.prompt_unequal,
        "output_tokens_unequal": result.metrics.output_unequal,
    }
    return values | _arrays(result.records) | {"requests": result.records, "warmup_requests": result.warmup}


def _arrays(records: Sequence[Record]) -> dict[str, Any]:
    """vLLM's arrays, seconds; a request without tokens has a TTFT of 0, as there."""
    return {
        "start_times": [record.scheduled_s for record in records],
        "input_lens": [record.input_tokens for record in records],
        "output_lens": [record.output_tokens for record in records],
        "ttfts": [round(record.ttft_s or 0.0, 7) for record in records],
        "itls": [[round(itl_s, 7) for itl_s in record.itls_s()] for record in records],
        "errors": [record.error or "" for record in records],
    }


def check_writable(path: Path, flag: str = "--out") -> None:
    """Raises UsageError now, rather than after an hour's run."""
    folder = path.parent
    if path.is_dir() or not folder.is_dir() or not os.access(path if path.exists() else folder, os.W_OK):
        raise UsageError(f"{flag} {str(path)!r}: allowed: a file in a folder that exists and can be written to")


def save(values: dict[str, Any], path: Path) -> None:
    """Writes the file as a whole: a reader sees the old one or the new one."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(msgspec.json.encode(values) + b"\n")
    partial.replace(path)

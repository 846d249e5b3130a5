"""Log lines: everything that the process logs, ours, uvicorn's and other libraries', written in one form by structlog.

A line has its time, level, logger and message, what was bound to the context (the request's id), and what the call
brought along as `extra`. In text that is one line for people; in JSON one object a line. Stack traces are written
without the values of variables, which may be a client's.
"""

import logging
import sys
from collections.abc import MutableMapping
from typing import Any, Literal, TextIO

import orjson
import structlog

LogFormat = Literal["text", "json"]

_OWN = ("timestamp", "level", "logger", "event", "exception", "stack")
_QUIET = ("httpx", "httpcore", "opentelemetry", "jax", "filelock", "huggingface_hub")
"""Libraries whose news are not ours: they are heard from warnings on."""


def configure_logging(level: str, form: str, stream: TextIO | None = None) -> None:
    """Sends all log records of at least `level` to `stream` (standard error), in that form. The last call holds.

    A library that gave its loggers handlers of their own, or kept their records from the root, loses both.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setLevel(level.upper())
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[
                structlog.contextvars.merge_contextvars,
                structlog.stdlib.add_log_level,
                structlog.stdlib.add_logger_name,
                structlog.stdlib.ExtraAdder(),
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                structlog.processors.format_exc_info,
            ],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _json if form == "json" else _text],
        )
    )
    root = logging.getLogger()
    for logger in (root, *(known for known in root.manager.loggerDict.values() if isinstance(known, logging.Logger))):
        for other in logger.handlers[:]:
            logger.removeHandler(other)
        logger.propagate, logger.disabled = True, False
    root.addHandler(handler)
    root.setLevel(level.upper())
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(root.level, logging.WARNING))


def _json(logger: Any, method: str, event: MutableMapping[str, Any]) -> str:
    first = {name: event.pop(name) for name in _OWN if name in event}
    return orjson.dumps(first | dict(event), default=str, option=orjson.OPT_NON_STR_KEYS).decode()


def _text(logger: Any, method: str, event: MutableMapping[str, Any]) -> str:
    """`TIME LEVEL logger: message key=value ...`, and a stack trace in the lines behind it."""
    own = {name: event.pop(name, "") for name in _OWN}
    more = "".join(f" {name}={_shown(value)}" for name, value in sorted(event.items()))
    trace = "".join(f"\n{own[name]}" for name in ("exception", "stack") if own[name])
    return f"{own['timestamp']} {own['level'].upper()} {own['logger']}: {own['event']}{more}{trace}"


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else str(value)
    return text if text.isprintable() and text and not set(text) & set(" ='\"") else repr(text)

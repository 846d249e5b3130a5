"""Errors as clients see them: OpenAI's JSON object with an HTTP status, or late inside a stream.

Everything that goes wrong with a request becomes an `ErrorInfo`: refusals of this edge (`RequestError`),
failures that the gateway reports, and the server's own faults, of which clients learn nothing but that they
happened.
"""

from http import HTTPStatus
from typing import Any

import orjson
from starlette.types import Send

from actors.messages import ErrorInfo
from runtime.errors import RequestError

INTERNAL_ERROR = ErrorInfo(status=500, message="the server failed to answer this request", code="internal_error")

DEADLINE_EXCEEDED = "deadline_exceeded"
"""The code of a request that was not complete within its `timeout_s`."""

_TYPES = {
    401: "authentication_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
}


def error_type(status: int) -> str:
    """OpenAI's coarse name of a status."""
    return _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")


def from_request_error(error: RequestError) -> ErrorInfo:
    """A refusal of this edge."""
    return ErrorInfo(status=error.status, message=error.message, code=error.code or "invalid_value", param=error.param)


def error_body(error: ErrorInfo) -> dict[str, Any]:
    """OpenAI's error object; all four keys are always there."""
    return {
        "error": {
            "message": error.message,
            "type": error_type(error.status),
            "param": error.param,
            "code": error.code,
        }
    }


def error_headers(error: ErrorInfo) -> dict[str, str]:
    """An error's own headers. A connection whose request never came to its end is closed after it.

    OpenAI's clients try again after every 5xx unless they are told not to; a request whose time is over has none left.
    """
    headers: dict[str, str] = {}
    if error.status == HTTPStatus.UNAUTHORIZED:
        headers["www-authenticate"] = "Bearer"
    if error.retry_after_s is not None:
        headers["retry-after"] = str(error.retry_after_s)
    if error.code == DEADLINE_EXCEEDED:
        headers["x-should-retry"] = "false"
    if error.status == HTTPStatus.REQUEST_TIMEOUT:
        headers["connection"] = "close"
    return headers


async def send_json(
    send: Send, content: object, *, status: int = 200, headers: tuple[tuple[bytes, bytes], ...] = ()
) -> None:
    """Sends a whole JSON response."""
    body = orjson.dumps(content)
    own = ((b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": [*own, *headers]})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def send_error(send: Send, error: ErrorInfo) -> None:
    """Sends an error as a whole response."""
    headers = tuple((name.encode(), value.encode()) for name, value in error_headers(error).items())
    await send_json(send, error_body(error), status=error.status, headers=headers)

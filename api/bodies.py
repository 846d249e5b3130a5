"""The bodies of requests: how they are read, and small ones decoded by a type and refused by the field's name."""

import re
from typing import TypeVar

import anyio
import msgspec
from starlette.types import Receive

from api.model import ApiSettings
from runtime.errors import RequestError

T = TypeVar("T")
_PATH = re.compile(r" - at `\$\.?([^`]*)`$")
_OWN_FIELD = re.compile(r"(?:missing required|contains unknown) field `([^`]*)`$")


async def read_body(receive: Receive, max_bytes: int, timeout_s: float) -> bytes | None:
    """The request's body, or None when the client went away before its end."""
    with anyio.move_on_after(timeout_s):
        return await _read_parts(receive, max_bytes)
    raise RequestError(f"the body did not arrive within {timeout_s:g} seconds", status=408, code="request_timeout")


async def _read_parts(receive: Receive, max_bytes: int) -> bytes | None:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        part = message.get("body", b"")
        size += len(part)
        if size > max_bytes:
            raise RequestError(f"the body is larger than {max_bytes} bytes", status=413, code="request_too_large")
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


async def read_small(receive: Receive, settings: ApiSettings) -> bytes:
    """The request's body. Raises RequestError when it is too large, late, or cut off."""
    data = await read_body(receive, settings.max_body_bytes, settings.body_timeout_s)
    if data is None:
        raise RequestError("the client went away before the end of its body", code="incomplete_body")
    return data


def decode_small(data: bytes, kind: type[T]) -> T:
    """The body as `kind`. Raises RequestError that names the field."""
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        found = _PATH.search(str(error))
        reason = _PATH.sub("", str(error))
        param = found[1].replace("[...]", "") if found else _own_field(reason)
        message = f"{param or 'the body'}: {reason[:1].lower()}{reason[1:]}"
        raise RequestError(message, param=param or None, code="invalid_type") from error
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise RequestError(f"the body is not valid JSON: {error}", code="invalid_json") from error


def _own_field(reason: str) -> str:
    """The field of the body itself that is missing, or too many."""
    found = _OWN_FIELD.search(reason)
    return found[1] if found else ""

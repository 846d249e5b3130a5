"""Small JSON bodies of routes that generate nothing: decoded by a type, refused by the field's name."""

import re
from typing import TypeVar

import msgspec
from starlette.types import Receive

from api.generate import read_body
from api.model import ApiSettings
from runtime.errors import RequestError

T = TypeVar("T")
_PATH = re.compile(r" - at `\$\.?([^`]*)`$")
_OWN_FIELD = re.compile(r"(?:missing required|contains unknown) field `([^`]*)`$")


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

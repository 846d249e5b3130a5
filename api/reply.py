"""JSON responses of routes that answer at once."""

import orjson
from starlette.responses import Response


def json_response(content: object, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A whole JSON response."""
    return Response(orjson.dumps(content), status, headers, media_type="application/json")

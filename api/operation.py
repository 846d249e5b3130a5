"""How a route describes itself: what it takes, what it answers, and with which statuses it may fail.

A route's module states an `Operation` for each of its methods, `api.openapi` collects them into `/openapi.json`.
"""

from typing import Any, Literal

import msgspec

Method = Literal["get", "post", "delete"]


class Parameter(msgspec.Struct, frozen=True, kw_only=True):
    """A value in the path, the query or the headers; `schema` is JSON Schema."""

    name: str
    place: Literal["path", "query", "header"]
    meaning: str
    schema: dict[str, Any] = msgspec.field(default_factory=lambda: {"type": "string"})
    required: bool = False


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One method of one path, the latter with its parameters in braces.

    `body` and `answer` are types that msgspec can describe; without an `answer` the content is `media_type`'s own.
    `events` is the type of the JSON in each server-sent event, where the route can stream. `errors` are the statuses
    of its own failures: those that every route may have are added. `open` routes need no key, `admin` ones need the
    operator's. `statuses` are those that come with `answer`.
    """

    path: str
    method: Method
    id: str
    summary: str
    body: type | None = None
    body_required: bool = True
    answer: Any = None
    media_type: str = "application/json"
    events: Any = None
    statuses: tuple[int, ...] = (200,)
    errors: tuple[int, ...] = ()
    parameters: tuple[Parameter, ...] = ()
    open: bool = False
    admin: bool = False


TIMING = Parameter(
    name="x-runtime-timing",
    place="header",
    meaning="1 asks for the stage times of each choice, in the body or in the stream's last chunk.",
    schema={"type": "string", "enum": ["0", "1"]},
)

GENERATION_ERRORS = (400, 404, 408, 413, 429, 503, 504)
"""What a route that runs the model may fail with."""

BODY_ERRORS = (400, 408, 413)
"""What a route that reads a body may fail with."""

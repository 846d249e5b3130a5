"""All operations of the HTTP surface, in the order of the documentation."""

from typing import Any

from api.admin import ChaosBody, DrainBody
from api.openapi_answers import (
    CachesReset,
    Campaign,
    ChatCompletion,
    ChatCompletionChunk,
    Completion,
    CompletionChunk,
    Deleted,
    Health,
    InputItems,
    Live,
    Load,
    Model,
    ModelList,
    Profile,
    ResponseEvent,
    Text,
    TokenizerInfo,
    Tokens,
    Version,
    Worker,
    Workers,
)
from api.operation import BODY_ERRORS, GENERATION_ERRORS, TIMING, Operation, Parameter
from api.responses.objects import ResponseObject
from api.responses.routes import DEFAULT_PAGE, MAX_PAGE
from api.responses.schema import ResponsesBody
from api.schema import ChatBody, CompletionBody
from api.tokenize import DetokenizeBody, TokenizeBody

_MODEL_NAME = Parameter(name="name", place="path", meaning="A served name; it may contain slashes.")
_WORKER_NAME = Parameter(name="name", place="path", meaning="A worker's name, such as decode.0.")

GENERATION = (
    Operation(
        path="/v1/chat/completions",
        method="post",
        id="chat",
        summary="Answers a conversation.",
        body=ChatBody,
        answer=ChatCompletion,
        events=ChatCompletionChunk,
        errors=GENERATION_ERRORS,
        parameters=(TIMING,),
    ),
    Operation(
        path="/v1/completions",
        method="post",
        id="completions",
        summary="Goes on from one or several prompts.",
        body=CompletionBody,
        answer=Completion,
        events=CompletionChunk,
        errors=GENERATION_ERRORS,
        parameters=(TIMING,),
    ),
)

_RESPONSE = Parameter(name="id", place="path", meaning="The id of a response that is kept.")
_BOOLEAN = {"type": "string", "enum": ["true", "false"]}

RESPONSES = (
    Operation(
        path="/v1/responses",
        method="post",
        id="responses",
        summary="Makes a response; one that is kept can be continued and shown again.",
        body=ResponsesBody,
        answer=ResponseObject,
        events=ResponseEvent,
        errors=GENERATION_ERRORS,
        parameters=(TIMING,),
    ),
    Operation(
        path="/v1/responses/{id}",
        method="get",
        id="response",
        summary="Shows a response, or sends the events of a background one.",
        answer=ResponseObject,
        events=ResponseEvent,
        errors=(400, 404),
        parameters=(
            _RESPONSE,
            Parameter(name="stream", place="query", meaning="Sends the events.", schema=_BOOLEAN),
            Parameter(
                name="starting_after",
                place="query",
                meaning="Number of the last event that is not wanted; only with `stream`.",
                schema={"type": "integer", "minimum": 0, "maximum": 2**31 - 1},
            ),
        ),
    ),
    Operation(
        path="/v1/responses/{id}",
        method="delete",
        id="delete_response",
        summary="Drops a response; one that is running is cancelled.",
        answer=Deleted,
        errors=(404,),
        parameters=(_RESPONSE,),
    ),
    Operation(
        path="/v1/responses/{id}/cancel",
        method="post",
        id="cancel_response",
        summary="Stops a background response.",
        answer=ResponseObject,
        errors=(400, 404),
        parameters=(_RESPONSE,),
    ),
    Operation(
        path="/v1/responses/{id}/input_items",
        method="get",
        id="input_items",
        summary="The items that a response was made from.",
        answer=InputItems,
        errors=(400, 404),
        parameters=(
            _RESPONSE,
            Parameter(
                name="limit",
                place="query",
                meaning="Most items of a page.",
                schema={"type": "integer", "minimum": 1, "maximum": MAX_PAGE, "default": DEFAULT_PAGE},
            ),
            Parameter(
                name="order",
                place="query",
                meaning="`desc` begins with the last.",
                schema={"type": "string", "enum": ["asc", "desc"], "default": "desc"},
            ),
            Parameter(name="after", place="query", meaning="The id of the item before the page."),
        ),
    ),
)

_RESETS = ("/reset_prefix_cache", "/flush_cache")


def _probe(path: str, summary: str, answer: type, statuses: tuple[int, ...] = (200,)) -> Operation:
    """What watches a server asks."""
    return Operation(path=path, method="get", id=path[1:], summary=summary, answer=answer, statuses=statuses, open=True)


def _order(path: str, summary: str, answer: type, *errors: int) -> Operation:
    """An order without parameters."""
    return Operation(
        path=path, method="post", id=path[1:], summary=summary, answer=answer, errors=(*BODY_ERRORS, *errors)
    )


SERVER = (
    Operation(path="/v1/models", method="get", id="models", summary="The names that are served.", answer=ModelList),
    Operation(
        path="/v1/models/{name}",
        method="get",
        id="model",
        summary="One served name.",
        answer=Model,
        errors=(404,),
        parameters=(_MODEL_NAME,),
    ),
    Operation(
        path="/tokenize",
        method="post",
        id="tokenize",
        summary="The tokens of a text, or of messages with all that a chat has beside them.",
        body=TokenizeBody,
        answer=Tokens,
        errors=(*BODY_ERRORS, 404),
    ),
    Operation(
        path="/detokenize",
        method="post",
        id="detokenize",
        summary="The text of tokens.",
        body=DetokenizeBody,
        answer=Text,
        errors=(*BODY_ERRORS, 404),
    ),
    Operation(
        path="/tokenizer_info",
        method="get",
        id="tokenizer_info",
        summary="Special tokens, chat template and sizes.",
        answer=TokenizerInfo,
    ),
    _probe("/health", "Whether the server is well: 200 when ready or degraded, 503 otherwise.", Health, (200, 503)),
    _probe("/ready", "Whether requests are taken: 200 or 503.", Health, (200, 503)),
    _probe("/live", "Whether the process answers.", Live),
    Operation(
        path="/metrics",
        method="get",
        id="metrics",
        summary="Counters, gauges and histograms for Prometheus.",
        media_type="text/plain",
        open=True,
    ),
    Operation(path="/load", method="get", id="load", summary="What runs and waits, and where.", answer=Load),
    Operation(path="/version", method="get", id="version", summary="Versions.", answer=Version),
    Operation(
        path="/server_info",
        method="get",
        id="server_info",
        summary="What the server was started with.",
        answer=dict[str, Any],
    ),
    *(_order(path, "Forgets all cached prefixes.", CachesReset, 404, 503) for path in _RESETS),
    _order("/start_profile", "Begins a profile of the device.", Profile),
    _order("/stop_profile", "Ends and writes it.", Profile),
    Operation(path="/openapi.json", method="get", id="openapi", summary="This document.", answer=dict[str, Any]),
)

ADMIN = (
    Operation(path="/admin/workers", method="get", id="workers", summary="All workers.", answer=Workers, admin=True),
    Operation(
        path="/admin/workers/{name}/drain",
        method="post",
        id="drain",
        summary="Takes a worker out of service once its work is done or moved.",
        body=DrainBody,
        body_required=False,
        answer=dict[str, Worker],
        statuses=(202,),
        errors=(*BODY_ERRORS, 404, 409, 503),
        parameters=(_WORKER_NAME,),
        admin=True,
    ),
    Operation(
        path="/admin/workers/{name}/resume",
        method="post",
        id="resume",
        summary="Takes a drained worker back.",
        answer=dict[str, Worker],
        statuses=(202,),
        errors=(404, 409, 503),
        parameters=(_WORKER_NAME,),
        admin=True,
    ),
    Operation(
        path="/admin/chaos",
        method="get",
        id="chaos",
        summary="The failures that are on order.",
        answer=Campaign,
        errors=(404,),
        admin=True,
    ),
    Operation(
        path="/admin/chaos",
        method="post",
        id="begin_chaos",
        summary="Orders failures.",
        body=ChaosBody,
        answer=Campaign,
        errors=(*BODY_ERRORS, 404),
        admin=True,
    ),
    Operation(
        path="/admin/chaos",
        method="delete",
        id="end_chaos",
        summary="Ends the failures on order.",
        answer=Campaign,
        errors=(404,),
        admin=True,
    ),
)

OPERATIONS = (*GENERATION, *RESPONSES, *SERVER, *ADMIN)

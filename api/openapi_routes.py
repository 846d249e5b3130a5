"""All operations of the HTTP surface, in the order of the documentation."""

from typing import Any

from api.admin import ChaosBody, DrainBody
from api.openapi_answers import (
    Campaign,
    ChatCompletion,
    ChatCompletionChunk,
    Completion,
    CompletionChunk,
    Health,
    Model,
    ModelList,
    Version,
    Worker,
    Workers,
)
from api.operation import BODY_ERRORS, GENERATION_ERRORS, TIMING, Operation, Parameter
from api.schema import ChatBody, CompletionBody

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
        path="/health",
        method="get",
        id="health",
        summary="Whether requests are taken: 200 when ready or degraded, 503 otherwise.",
        answer=Health,
        statuses=(200, 503),
        open=True,
    ),
    Operation(path="/version", method="get", id="version", summary="Versions.", answer=Version),
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

OPERATIONS = (*GENERATION, *SERVER, *ADMIN)

"""The Starlette application: which path goes where.

The composition root builds it once the model folder is read and serves it while the engine warms up:
`/health` tells when requests are taken.
"""

from collections.abc import Callable
from http import HTTPStatus

import anyio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from actors.client import EngineClient
from actors.messages import ErrorInfo
from api.admin import Admin, admin_routes
from api.admission import Admission
from api.chat import ChatAnswer, prepare_chat
from api.completions import CompletionAnswer, prepare_completion
from api.edge import Edge, LastResort
from api.errors import error_body, error_headers, from_request_error
from api.generate import GenerateEndpoint
from api.keys import Keys
from api.metrics import Metrics
from api.model import ApiSettings, Readiness, ServedModel
from api.models import model_entry, model_list
from api.observation import ObservedClient
from api.openapi import openapi_route
from api.operations import Operations, operations_routes
from api.reply import json_response
from api.responses.routes import response_routes
from api.tokenize import tokenizer_routes
from api.validate import check_model
from runtime.errors import RequestError


def create_app(
    model: ServedModel,
    client: EngineClient,
    readiness: Callable[[], Readiness],
    settings: ApiSettings | None = None,
    admin: Admin | None = None,
    operations: Operations | None = None,
) -> Starlette:
    """The HTTP surface of one served model; with `admin`, the operator's as well."""
    settings = settings or ApiSettings()
    operations = operations or Operations(metrics=Metrics())
    client = ObservedClient(client, operations.metrics)
    limiter = anyio.CapacityLimiter(settings.tokenizer_threads)
    admission = Admission(readiness, settings, limiter)
    chat = GenerateEndpoint(model, client, settings, admission, prepare_chat, ChatAnswer)
    completions = GenerateEndpoint(model, client, settings, admission, prepare_completion, CompletionAnswer)

    async def list_models(request: Request) -> Response:
        return json_response(model_list(model))

    async def get_model(request: Request) -> Response:
        name = check_model(request.path_params["name"], model)
        return json_response(model_entry(model, name))

    return Starlette(
        routes=[
            Route("/v1/chat/completions", chat, methods=["POST"], name="chat"),
            Route("/v1/completions", completions, methods=["POST"], name="completions"),
            *response_routes(model, client, settings, admission),
            Route("/v1/models", list_models),
            Route("/v1/models/{name:path}", get_model),
            openapi_route(needs_key=bool(settings.api_keys)),
            *tokenizer_routes(model, settings, limiter),
            *operations_routes(operations, readiness, settings, model.engine),
            *(admin_routes(admin) if admin is not None else []),
        ],
        middleware=_middleware(settings, operations),
        exception_handlers={HTTPException: _http_error, RequestError: _request_error},
    )


def _middleware(settings: ApiSettings, operations: Operations) -> list[Middleware]:
    """From the outside inwards. A browser asks without a key whether it may send one: that comes before the keys."""
    layers = [Middleware(Edge, metrics=operations.metrics, tracing=operations.tracing)]
    if settings.cors_origins:
        layers.append(
            Middleware(
                CORSMiddleware,
                allow_origins=settings.cors_origins,
                allow_methods=("GET", "POST", "DELETE"),
                allow_headers=("*",),
                expose_headers=("x-request-id", "retry-after", "x-should-retry"),
            )
        )
    return [*layers, Middleware(LastResort), Middleware(Keys, api_keys=settings.api_keys)]


async def _http_error(request: Request, error: Exception) -> Response:
    """Unknown paths and methods, in the shape of every other error."""
    assert isinstance(error, HTTPException)
    code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
    message = f"{request.method} {request.url.path}: {code.replace('_', ' ')}"
    content = error_body(ErrorInfo(status=error.status_code, message=message, code=code))
    return json_response(content, status=error.status_code, headers=dict(error.headers or {}))


async def _request_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    info = from_request_error(error)
    return json_response(error_body(info), status=info.status, headers=error_headers(info))

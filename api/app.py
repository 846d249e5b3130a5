"""The Starlette application: which path goes where.

The composition root builds it once the model folder is read and serves it while the engine warms up:
`/health` tells when requests are taken.
"""

from collections.abc import Callable
from http import HTTPStatus

import anyio
import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from actors.client import EngineClient
from actors.messages import ErrorInfo
from api.admin import Admin, admin_routes
from api.chat import ChatAnswer, prepare_chat
from api.completions import CompletionAnswer, prepare_completion
from api.edge import Edge
from api.errors import error_body, from_request_error
from api.generate import GenerateEndpoint
from api.health import health_body
from api.model import ApiSettings, Readiness, ServedModel
from api.models import model_entry, model_list
from api.openapi import openapi_route
from api.responses.routes import response_routes
from api.validate import check_model
from runtime import __version__
from runtime.errors import RequestError


def create_app(
    model: ServedModel,
    client: EngineClient,
    readiness: Callable[[], Readiness],
    settings: ApiSettings | None = None,
    admin: Admin | None = None,
) -> Starlette:
    """The HTTP surface of one served model; with `admin`, the operator's as well."""
    settings = settings or ApiSettings()
    limiter = anyio.CapacityLimiter(settings.tokenizer_threads)
    chat = GenerateEndpoint(model, client, readiness, settings, limiter, prepare_chat, ChatAnswer)
    completions = GenerateEndpoint(model, client, readiness, settings, limiter, prepare_completion, CompletionAnswer)

    async def list_models(request: Request) -> Response:
        return json_response(model_list(model))

    async def get_model(request: Request) -> Response:
        name = check_model(request.path_params["name"], model)
        return json_response(model_entry(model, name))

    async def health(request: Request) -> Response:
        state = readiness()
        return json_response(health_body(state), status=200 if state.is_well else 503)

    async def version(request: Request) -> Response:
        return json_response({"version": __version__, "engine": model.engine})

    return Starlette(
        routes=[
            Route("/v1/chat/completions", chat, methods=["POST"], name="chat"),
            Route("/v1/completions", completions, methods=["POST"], name="completions"),
            *response_routes(model, client, readiness, settings, limiter),
            Route("/v1/models", list_models),
            Route("/v1/models/{name:path}", get_model),
            Route("/health", health),
            Route("/version", version),
            openapi_route(needs_key=bool(settings.api_keys)),
            *(admin_routes(admin) if admin is not None else []),
        ],
        middleware=[Middleware(Edge, api_keys=settings.api_keys)],
        exception_handlers={HTTPException: _http_error, RequestError: _request_error},
    )


def json_response(content: object, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A whole JSON response."""
    return Response(orjson.dumps(content), status, headers, media_type="application/json")


async def _http_error(request: Request, error: Exception) -> Response:
    """Unknown paths and methods, in the shape of every other error."""
    assert isinstance(error, HTTPException)
    code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
    message = f"{request.method} {request.url.path}: {code.replace('_', ' ')}"
    content = error_body(ErrorInfo(status=error.status_code, message=message, code=code))
    return json_response(content, status=error.status_code, headers=dict(error.headers or {}))


async def _request_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return json_response(error_body(from_request_error(error)), status=error.status)

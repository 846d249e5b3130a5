"""`/tokenize`, `/detokenize` and `/tokenizer_info`: the served tokenizer, for clients that have none of their own.

Messages become exactly the tokens that `/v1/chat/completions` would make of the same body. A long text is tokenized in
a thread, as prompts are.
"""

from functools import partial
from typing import Any

import anyio
import anyio.to_thread
import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from api.bodies import decode_small, read_small
from api.chat import prepare_chat
from api.checks import check_token_ids
from api.model import ApiSettings, ServedModel
from api.reply import json_response
from api.validate import check_model
from runtime.errors import RequestError


class TokenizeBody(msgspec.Struct, kw_only=True):
    """Body of `/tokenize`: a text, or messages with whatever `/v1/chat/completions` takes beside them."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Any] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeBody(msgspec.Struct, kw_only=True):
    """Body of `/detokenize`."""

    tokens: list[int]
    model: str | None = None


def tokenize(data: bytes, model: ServedModel, settings: ApiSettings) -> dict[str, Any]:
    """The answer of `/tokenize`. Runs in a worker thread. Raises RequestError."""
    body = decode_small(data, TokenizeBody)
    check_model(body.model, model)
    tokens = _tokens(body, data, model, settings)
    strings = [model.tokenizer.token_string(token) for token in tokens] if body.return_token_strs else None
    return {
        "count": len(tokens),
        "max_model_len": model.max_context_tokens,
        "tokens": tokens,
        "token_strs": strings,
    }


def _tokens(body: TokenizeBody, data: bytes, model: ServedModel, settings: ApiSettings) -> list[int]:
    if (body.prompt is None) == (body.messages is None):
        raise RequestError("prompt: either prompt or messages must be given, not both", param="prompt")
    if body.prompt is not None:
        return model.tokenizer.encode(body.prompt, add_special_tokens=body.add_special_tokens is not False)
    if body.add_special_tokens:
        raise RequestError(
            "add_special_tokens: with messages, special tokens are those that the chat template writes",
            param="add_special_tokens",
        )
    return list(prepare_chat(data, model, settings).requests[0].prompt)


def detokenize(data: bytes, model: ServedModel) -> dict[str, Any]:
    """The answer of `/detokenize`, special tokens by their names. Runs in a worker thread. Raises RequestError."""
    body = decode_small(data, DetokenizeBody)
    check_model(body.model, model)
    check_token_ids("tokens", body.tokens, model.vocab_size)
    return {"prompt": model.tokenizer.decode(body.tokens, skip_special_tokens=False)}


def tokenizer_info(model: ServedModel) -> dict[str, Any]:
    """The answer of `/tokenizer_info`."""
    return model.tokenizer.info() | {"vocab_size": model.vocab_size, "max_model_len": model.max_context_tokens}


def tokenizer_routes(model: ServedModel, settings: ApiSettings, limiter: anyio.CapacityLimiter) -> list[BaseRoute]:
    """The three routes."""

    async def post_tokenize(request: Request) -> Response:
        data = await read_small(request.receive, settings)
        return json_response(await anyio.to_thread.run_sync(partial(tokenize, data, model, settings), limiter=limiter))

    async def post_detokenize(request: Request) -> Response:
        data = await read_small(request.receive, settings)
        return json_response(await anyio.to_thread.run_sync(partial(detokenize, data, model), limiter=limiter))

    async def get_info(request: Request) -> Response:
        return json_response(tokenizer_info(model))

    return [
        Route("/tokenize", post_tokenize, methods=["POST"]),
        Route("/detokenize", post_detokenize, methods=["POST"]),
        Route("/tokenizer_info", get_info),
    ]

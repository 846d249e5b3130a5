"""The server's own first request: what it asks, and what becomes of a refusal or of no answer."""

import asyncio
import json
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from runtime.cli.warm_up import warm_up
from runtime.plan import make_plan
from runtime.settings import Settings


class Edge:
    """In place of the application; remembers what it was asked."""

    def __init__(self, response: Response) -> None:
        self.requests: list[tuple[dict[str, Any], str | None]] = []
        self._response = response
        self.app = Starlette(routes=[Route("/v1/completions", self._answer, methods=["POST"])])

    async def _answer(self, request: Request) -> Response:
        self.requests.append((json.loads(await request.body()), request.headers.get("authorization")))
        return self._response


def warmed_up(edge: Edge, **settings: Any) -> str | None:
    return asyncio.run(warm_up(edge.app, make_plan(Settings(device="cpu", **settings))))


def test_it_asks_for_a_token_of_prefill_and_one_of_decode_with_a_seed_of_its_own() -> None:
    edge = Edge(JSONResponse({}))
    assert warmed_up(edge) is None
    ((body, key),) = edge.requests
    assert body == {"model": "runtime-demo", "prompt": [0], "max_tokens": 2, "ignore_eos": True, "seed": 0}
    assert key is None


def test_it_sends_the_servers_key_and_stays_within_the_context() -> None:
    edge = Edge(JSONResponse({}))
    assert warmed_up(edge, api_keys=("first", "second"), context_length=2, served_model_name="mine") is None
    ((body, key),) = edge.requests
    assert (body["model"], body["max_tokens"], key) == ("mine", 1, "Bearer first")


@pytest.mark.parametrize(
    ("response", "told"),
    [
        (JSONResponse({"error": {"message": "no worker is left"}}, 503), "503: no worker is left"),
        (PlainTextResponse("oh", 500), "500: oh"),
        (JSONResponse(["oh"], 400), '400: ["oh"]'),
    ],
)
def test_a_failure_is_told_with_its_reason(response: Response, told: str) -> None:
    assert warmed_up(Edge(response)) == f"the warm-up request got {told}"

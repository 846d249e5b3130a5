from collections.abc import AsyncIterator

import httpx
import pytest

from actors.client import ClientEvent, GenerateRequest
from api.app import create_app
from api.model import ApiSettings, Readiness, ServedModel
from runtime import __version__
from tests.api.conftest import Server, chat
from tests.api.fake_client import FakeClient, failed

pytestmark = pytest.mark.anyio
CHAT = "/v1/chat/completions"


async def test_models(http: httpx.AsyncClient) -> None:
    listed = (await http.get("/v1/models")).json()
    assert listed["object"] == "list"
    assert [entry["id"] for entry in listed["data"]] == ["tiny", "org/tiny-alias"]
    assert listed["data"][0] == {
        "id": "tiny", "object": "model", "created": 1_700_000_000, "owned_by": "runtime",
        "root": "tiny", "max_model_len": 256,
    }  # fmt: skip


async def test_one_model(http: httpx.AsyncClient) -> None:
    assert (await http.get("/v1/models/org/tiny-alias")).json()["id"] == "org/tiny-alias"
    missing = await http.get("/v1/models/gpt-9")
    assert missing.status_code == 404
    assert missing.json()["error"]["code"] == "model_not_found"


async def test_version(http: httpx.AsyncClient) -> None:
    assert (await http.get("/version")).json() == {"version": __version__, "engine": "jax"}


@pytest.mark.parametrize("state", ["starting", "draining"])
async def test_while_not_ready(http: httpx.AsyncClient, server: Server, client: FakeClient, state: str) -> None:
    assert (await http.get("/health")).status_code == 200
    server.readiness = Readiness(state=state, detail="compiling 3 of 12")
    health = await http.get("/health")
    assert health.status_code == 503
    assert health.json() == {"status": state, "detail": "compiling 3 of 12"}
    refused = await http.post(CHAT, json=chat())
    assert refused.status_code == 503
    assert "retry-after" in refused.headers
    assert refused.json()["error"]["code"] == f"server_{state}"
    assert client.requests == []


async def test_failures_of_the_engine_keep_their_status(http: httpx.AsyncClient, client: FakeClient) -> None:
    async def script(request: GenerateRequest) -> AsyncIterator[ClientEvent]:
        yield failed(request, status=429, retry_after_s=3)

    client.script = script
    response = await http.post(CHAT, json=chat())
    assert (response.status_code, response.headers["retry-after"]) == (429, "3")
    assert response.json()["error"] == {
        "message": "the queue is full", "type": "rate_limit_error", "param": None, "code": "queue_full",
    }  # fmt: skip


async def test_faults_of_the_server_tell_no_details(http: httpx.AsyncClient, client: FakeClient) -> None:
    async def script(request: GenerateRequest) -> AsyncIterator[ClientEvent]:
        raise ZeroDivisionError("secret")
        yield failed(request)

    client.script = script
    response = await http.post(CHAT, json=chat())
    assert response.status_code == 500
    assert response.json()["error"]["type"] == "server_error"
    assert "secret" not in response.text


async def test_faults_of_the_edge_itself_are_json(http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def explode() -> list[str]:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr("api.app.model_list", lambda model: explode())
    response = await http.get("/v1/models")
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "internal_error"
    assert response.headers["x-request-id"]


@pytest.mark.parametrize(("method", "path", "status"), [("GET", CHAT, 405), ("GET", "/v1/nothing", 404)])
async def test_unknown_routes_answer_in_the_same_shape(
    http: httpx.AsyncClient, method: str, path: str, status: int
) -> None:
    response = await http.request(method, path)
    assert response.status_code == status
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/v1/nothing"])
async def test_request_ids(http: httpx.AsyncClient, path: str) -> None:
    own = await http.get(path, headers={"x-request-id": "abc-1:2.3_4"})
    assert own.headers["x-request-id"] == "abc-1:2.3_4"
    first, second = [(await http.get(path)).headers["x-request-id"] for _ in range(2)]
    assert first != second


@pytest.mark.parametrize("sent", ["a b", "x" * 200, "é".encode().decode("latin-1"), "a;b"])
async def test_strange_request_ids_are_replaced(http: httpx.AsyncClient, sent: str) -> None:
    answer = await http.get("/health", headers={"x-request-id": sent.encode("latin-1")})
    assert answer.headers["x-request-id"] != sent


async def test_without_keys_any_header_is_ignored(http: httpx.AsyncClient) -> None:
    for header in ("Bearer ", "Bearer x", "nonsense"):
        response = await http.post(CHAT, json=chat(), headers={"authorization": header})
        assert response.status_code == 200


async def test_keys(model: ServedModel, client: FakeClient) -> None:
    settings = ApiSettings(api_keys=("one", "zwei-\u00fc"))
    app = create_app(model, client, lambda: Readiness(state="ready"), settings)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as http:
        for header in (None, "Bearer", "Bearer ", "Bearer two", "Basic one", "one", "Bearer onee"):
            headers = {} if header is None else {"authorization": header}
            response = await http.post(CHAT, json=chat(), headers=headers)
            assert response.status_code == 401
            assert response.json()["error"]["code"] == "invalid_api_key"
        assert client.requests == []
        for key in settings.api_keys:
            headers = {"authorization": f"Bearer {key}".encode()}
            assert (await http.post(CHAT, json=chat(), headers=headers)).status_code == 200
        assert (await http.get("/health")).status_code == 200

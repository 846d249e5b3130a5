"""What is answered on the port before there is an application."""

import httpx
import pytest

from runtime.cli.server import Front

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.parametrize(
    ("path", "status", "state"),
    [("/live", 200, "live"), ("/ready", 503, "starting"), ("/health", 503, "starting"), ("/v1/models", 503, None)],
)
async def test_the_process_lives_and_is_not_ready_while_it_loads(path: str, status: int, state: str | None) -> None:
    transport = httpx.ASGITransport(Front())
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        answer = await http.get(path, headers={"x-request-id": "mine"})
        assert (answer.status_code, answer.json().get("status")) == (status, state)
        assert answer.headers["x-request-id"] == "mine"
        if state is None:
            assert (answer.json()["error"]["code"], answer.headers["retry-after"]) == ("starting", "5")

"""The operator's routes: who is let in, what they order, and what they answer."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from actors.messages import Address, DrainAnswer, WorkerStatus
from actors.worker_board import WorkerBoard
from api.admin import Admin
from api.app import create_app
from api.model import ApiSettings, Readiness, ServedModel
from runtime.chaos.campaign import UNNOTICED, Chaos
from runtime.topology import parse_topology
from tests.api.fake_client import FakeClient

pytestmark = pytest.mark.anyio

TOPOLOGY = parse_topology("prefill=1,decode=2")
KEY = "open-sesame"


class Workers:
    """Answers as the gateway does, with a board of its own."""

    def __init__(self) -> None:
        self.board = WorkerBoard({Address(part.name): part.role for part in TOPOLOGY.slices})
        for status in self.board.statuses():
            self.board.up(status.name, 1)
        self.timeouts: list[float] = []
        self.answers = True

    def statuses(self) -> tuple[WorkerStatus, ...]:
        return self.board.statuses()

    async def drain_worker(self, worker: Address, timeout_s: float) -> DrainAnswer | None:
        self.timeouts.append(timeout_s)
        error = self.board.drain(worker, timeout_s)
        return DrainAnswer(worker=self.board.status(worker), error=error) if self.answers else None

    async def resume_worker(self, worker: Address) -> DrainAnswer | None:
        error = self.board.resume(worker)
        return DrainAnswer(worker=self.board.status(worker), error=error)


@pytest.fixture
def workers() -> Workers:
    return Workers()


@pytest.fixture
def chaos() -> Chaos:
    return Chaos(TOPOLOGY, seed=1)


Connect = Callable[..., Any]


@pytest.fixture
def connect(model: ServedModel, client: FakeClient, workers: Workers, chaos: Chaos) -> Connect:
    @asynccontextmanager
    async def open_client(
        *, address: str = "127.0.0.1", key: str | None = KEY, on: bool = True, api_keys: tuple[str, ...] = ()
    ) -> AsyncIterator[httpx.AsyncClient]:
        admin = Admin(key=KEY, client=workers, workers=workers.statuses, chaos=chaos) if on else None
        app = create_app(model, client, lambda: Readiness(state="ready"), ApiSettings(api_keys=api_keys), admin)
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        transport = httpx.ASGITransport(app, client=(address, 1234))
        async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers) as http:
            yield http

    return open_client


@pytest.fixture
async def http(connect: Connect, anyio_backend: str) -> AsyncIterator[httpx.AsyncClient]:
    async with connect() as session:
        yield session


# --- who is let in

ROUTES = [
    ("GET", "/admin/workers"),
    ("POST", "/admin/workers/decode.0/drain"),
    ("POST", "/admin/workers/decode.0/resume"),
    ("GET", "/admin/chaos"),
    ("DELETE", "/admin/chaos"),
    ("GET", "/admin/nothing"),
]


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize("api_keys", [(), ("client-key",)])
async def test_without_an_admin_key_there_is_nothing(
    connect: Connect, method: str, path: str, api_keys: tuple[str, ...]
) -> None:
    async with connect(on=False, api_keys=api_keys) as http:
        response = await http.request(method, path)
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "not_found"


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_other_machines_are_kept_out_whatever_they_send(connect: Connect, method: str, path: str) -> None:
    for address in ("192.0.2.7", "::ffff:192.0.2.7", "2001:db8::1", "testclient", "127.0.0.1.example.org"):
        async with connect(address=address) as http:
            response = await http.request(method, path)
        assert (response.status_code, response.json()["error"]["code"]) == (403, "not_local")


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.9.1", "::1", "::ffff:127.0.0.1"])
async def test_this_machine_is_let_in_with_the_key(connect: Connect, address: str) -> None:
    async with connect(address=address) as http:
        assert (await http.get("/admin/workers")).status_code == 200


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_the_key_is_needed(connect: Connect, workers: Workers, method: str, path: str) -> None:
    for key in (None, "", "open", KEY + "x", "client-key"):
        async with connect(key=key, api_keys=("client-key",)) as http:
            response = await http.request(method, path)
            assert (response.status_code, response.json()["error"]["code"]) == (401, "invalid_admin_key")
            basic = await http.request(method, path, headers={"authorization": f"Basic {KEY}"})
            assert basic.status_code == 401
    assert workers.timeouts == []


async def test_the_admin_key_is_no_client_key_and_needs_none(connect: Connect) -> None:
    async with connect(api_keys=("client-key",)) as http:
        assert (await http.get("/admin/workers")).status_code == 200
        assert (await http.get("/v1/models")).status_code == 401


# --- workers


async def test_all_workers_are_listed(http: httpx.AsyncClient, workers: Workers) -> None:
    workers.board.down(Address("decode.1"), 1, "it broke", final=False)
    workers.board.corrupt(Address("decode.0"))
    assert (await http.get("/admin/workers")).json() == {
        "workers": {
            "prefill.0": {"role": "prefill", "state": "up", "corrupt_chunks": 0},
            "decode.0": {"role": "decode", "state": "up", "corrupt_chunks": 1},
            "decode.1": {"role": "decode", "state": "down", "reason": "it broke", "corrupt_chunks": 0},
        }
    }


async def test_a_worker_is_drained_and_taken_back(http: httpx.AsyncClient, workers: Workers) -> None:
    drained = await http.post("/admin/workers/decode.0/drain")
    assert drained.status_code == 202
    assert drained.json()["decode.0"]["state"] == "draining"
    again = await http.post("/admin/workers/decode.0/drain", json={"timeout_s": 1.5})
    assert again.status_code == 202
    assert workers.timeouts == [30.0, 1.5]
    resumed = await http.post("/admin/workers/decode.0/resume")
    assert (resumed.status_code, resumed.json()["decode.0"]["state"]) == (202, "up")


async def test_refusals_say_why(http: httpx.AsyncClient) -> None:
    last = await http.post("/admin/workers/prefill.0/drain")
    assert (last.status_code, last.json()["error"]["code"]) == (409, "last_worker")
    assert "Without prefill.0" in last.json()["error"]["message"]
    unknown = await http.post("/admin/workers/decode.7/drain")
    assert unknown.status_code == 404
    assert "there are prefill.0, decode.0, decode.1" in unknown.json()["error"]["message"]


@pytest.mark.parametrize(
    "body", ['{"timeout_s": 0}', '{"timeout_s": -1}', '{"timeout_s": "5"}', '{"timeout": 5}', "[]", "{", "1e999"]
)
async def test_a_bad_body_is_refused(http: httpx.AsyncClient, workers: Workers, body: str) -> None:
    response = await http.post("/admin/workers/decode.0/drain", content=body)
    assert response.status_code == 400
    named = {"timeout_s", "timeout"} & {part for part in body.split('"')}
    assert {response.json()["error"]["param"]} == (named or {None})
    assert workers.timeouts == []


async def test_a_gateway_that_does_not_answer_is_a_503(http: httpx.AsyncClient, workers: Workers) -> None:
    workers.answers = False
    assert (await http.post("/admin/workers/decode.0/drain")).status_code == 503


# --- chaos


async def test_chaos_is_ordered_seen_and_ended(http: httpx.AsyncClient, chaos: Chaos) -> None:
    assert (await http.get("/admin/chaos")).json() == {"on": False}
    spec = "decode.0:crash@step=5,transfer:drop=0.5"
    expected = {"on": True, "spec": spec, "hits": {"decode.0:crash@step=5": 0, "transfer:drop=0.5": 0}}
    begun = await http.post("/admin/chaos", json={"spec": spec})
    assert (begun.status_code, begun.json()) == (200, expected)
    assert (await http.get("/admin/chaos")).json() == expected
    ended = await http.delete("/admin/chaos")
    assert ended.json() == expected | {"on": False}
    assert chaos.campaign is None
    assert (await http.delete("/admin/chaos")).json() == {"on": False}


async def test_corruption_that_nobody_checks_comes_with_a_warning(http: httpx.AsyncClient) -> None:
    assert (await http.post("/admin/chaos", json={"spec": "transfer:corrupt=0.1"})).json()["warning"] == UNNOTICED


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"spec": "decode.0:crash"}, "spec 'decode.0:crash': allowed: crash@step=N or crash@chunk=N"),
        ({"spec": "decode.9:slow=2"}, "no worker 'decode.9'"),
        ({"spec": 5}, "spec: expected `str`, got `int`"),
        ({}, "spec: object missing required field `spec`"),
    ],
)
async def test_an_order_that_is_not_understood_changes_nothing(
    http: httpx.AsyncClient, chaos: Chaos, body: Any, message: str
) -> None:
    campaign = chaos.begin("decode.0:slow=2")
    response = await http.post("/admin/chaos", content=json.dumps(body))
    assert response.status_code == 400
    assert message in response.json()["error"]["message"]
    assert chaos.campaign is campaign

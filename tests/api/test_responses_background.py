"""Responses that run without their clients, and what is kept for those that come back."""

from collections.abc import AsyncIterator
from typing import Any

import anyio
import httpx
import pytest
from starlette.applications import Starlette

from actors.client import ClientEvent, GenerateRequest
from api.app import create_app
from api.model import ApiSettings, Readiness, ServedModel
from tests.api.exchange import exchange
from tests.api.fake_client import FakeClient, completed, failed, nothing
from tests.api.response_events import check_events, check_response, parse_stream
from tests.api.test_responses import URL, ask

pytestmark = pytest.mark.anyio


class Gate:
    """A script that stops after `first` tokens until it is opened."""

    def __init__(self, client: FakeClient, first: int) -> None:
        self._client = client
        self._first = first
        self.reached = anyio.Event()
        self.open = anyio.Event()

    async def script(self, request: GenerateRequest) -> AsyncIterator[ClientEvent]:
        deltas = self._client.deltas(request, 0)
        for delta in deltas[: self._first]:
            yield delta
        self.reached.set()
        await self.open.wait()
        for delta in deltas[self._first :]:
            yield delta
        yield completed(request, len(deltas))


@pytest.fixture
def gate(client: FakeClient) -> Gate:
    gate = Gate(client, first=3)
    client.script = gate.script
    return gate


async def until_over(http: httpx.AsyncClient, client: FakeClient, response_id: str) -> dict[str, Any]:
    await client.wait_until(lambda: response_id in client.ended)
    while (found := (await http.get(f"{URL}/{response_id}")).json())["status"] in ("queued", "in_progress"):
        await anyio.lowlevel.checkpoint()
    return dict(found)


async def test_it_is_polled(http: httpx.AsyncClient, client: FakeClient, gate: Gate) -> None:
    begun = (await http.post(URL, json=ask(background=True))).json()
    check_response(begun)
    assert (begun["status"], begun["background"], begun["output"]) == ("queued", True, [])
    assert "usage" not in begun
    await gate.reached.wait()
    polled = (await http.get(f"{URL}/{begun['id']}")).json()
    assert polled["status"] == "in_progress"
    gate.open.set()
    over = await until_over(http, client, begun["id"])
    check_response(over)
    assert over["status"] == "completed"
    assert over["output"][0]["content"][0]["text"] == client.texts[0]


async def test_it_goes_on_without_its_client(
    app: Starlette, http: httpx.AsyncClient, client: FakeClient, gate: Gate
) -> None:
    async with exchange(app, URL, **ask(background=True, stream=True)) as one:
        await one.start()
        created = parse_stream((await one._next())["body"])[0]
        await gate.reached.wait()
        one.disconnect()
        await one.wait()
    assert client.ended == {}
    gate.open.set()
    over = await until_over(http, client, created["response"]["id"])
    assert over["status"] == "completed"


async def test_its_events_are_read_again(
    app: Starlette, http: httpx.AsyncClient, client: FakeClient, gate: Gate
) -> None:
    """From any number on, while it runs and after."""
    async with anyio.create_task_group() as tasks:
        answers: list[bytes] = []

        async def read(path: str) -> None:
            answers.append((await http.get(path)).content)

        async with exchange(app, URL, **ask(background=True, stream=True)) as one:
            await one.start()
            first = parse_stream((await one._next())["body"])[0]
            one.disconnect()
            await one.wait()
        path = f"{URL}/{first['response']['id']}?stream=true"
        await gate.reached.wait()
        tasks.start_soon(read, path)
        tasks.start_soon(read, f"{path}&starting_after=4")
        gate.open.set()
    whole, tail = sorted(answers, key=len, reverse=True)
    events = parse_stream(whole)
    assert check_events(events)["status"] == "completed"
    assert parse_stream(tail) == events[5:]
    assert (await http.get(path)).content == whole
    assert (await http.get(f"{path}&starting_after=4")).content == tail


async def test_a_cancel_stops_it_where_it_is(http: httpx.AsyncClient, client: FakeClient, gate: Gate) -> None:
    begun = (await http.post(URL, json=ask(background=True))).json()
    await gate.reached.wait()
    path = f"{URL}/{begun['id']}"
    cancelled = (await http.post(f"{path}/cancel")).json()
    check_response(cancelled)
    assert cancelled["status"] == "cancelled"
    assert client.ended == {begun["id"]: "aborted"}
    (item,) = cancelled["output"]
    assert item["status"] == "incomplete"
    assert item["content"][0]["text"]
    assert client.texts[0].startswith(item["content"][0]["text"])
    assert (await http.get(path)).json() == cancelled
    assert (await http.post(f"{path}/cancel")).json() == cancelled


async def test_a_cancel_while_it_waits(app: Starlette, http: httpx.AsyncClient, client: FakeClient) -> None:
    client.script = nothing
    async with exchange(app, URL, **ask(background=True, stream=True)) as one:
        await one.start()
        events = parse_stream((await one._next())["body"])
        await client.wait_until(lambda: bool(client.requests))
        response_id = events[0]["response"]["id"]
        cancelled = (await http.post(f"{URL}/{response_id}/cancel")).json()
        rest = b"".join([message["body"] async for message in bodies(one)])
    last = check_events(events + parse_stream(rest))
    assert last == cancelled
    assert (last["status"], last["output"]) == ("cancelled", [])


async def bodies(one: Any) -> AsyncIterator[Any]:
    while True:
        message = await one._next()
        yield message
        if not message["more_body"]:
            return


async def test_a_refused_one_has_failed(http: httpx.AsyncClient, client: FakeClient) -> None:
    async def refuse(request: GenerateRequest) -> AsyncIterator[ClientEvent]:
        yield failed(request)

    client.script = refuse
    begun = (await http.post(URL, json=ask(background=True))).json()
    over = await until_over(http, client, begun["id"])
    check_response(over)
    assert over["status"] == "failed"
    assert over["error"] == {"code": "rate_limit_exceeded", "message": "the queue is full"}
    answer = await http.post(URL, json=ask(previous_response_id=begun["id"]))
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "previous_response_id")


async def test_a_running_one_cannot_be_continued(http: httpx.AsyncClient, gate: Gate) -> None:
    begun = (await http.post(URL, json=ask(background=True))).json()
    answer = await http.post(URL, json=ask(previous_response_id=begun["id"]))
    assert answer.status_code == 400
    assert "in progress" in answer.json()["error"]["message"]
    gate.open.set()


async def test_only_a_background_response_is_cancelled(http: httpx.AsyncClient) -> None:
    done = (await http.post(URL, json=ask())).json()
    answer = await http.post(f"{URL}/{done['id']}/cancel")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "id")


async def test_a_deleted_response_is_gone(http: httpx.AsyncClient, client: FakeClient) -> None:
    done = (await http.post(URL, json=ask())).json()
    path = f"{URL}/{done['id']}"
    assert (await http.get(path)).json() == done
    deleted = await http.delete(path)
    assert deleted.json() == {"id": done["id"], "object": "response", "deleted": True}
    for answer in (await http.get(path), await http.delete(path), await http.get(f"{path}/input_items")):
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "response_not_found")


async def test_a_running_one_is_deleted(http: httpx.AsyncClient, client: FakeClient, gate: Gate) -> None:
    begun = (await http.post(URL, json=ask(background=True))).json()
    await gate.reached.wait()
    assert (await http.delete(f"{URL}/{begun['id']}")).status_code == 200
    assert client.ended == {begun["id"]: "aborted"}
    assert (await http.get(f"{URL}/{begun['id']}")).status_code == 404


async def test_input_items(http: httpx.AsyncClient, client: FakeClient) -> None:
    call = {"type": "function_call", "id": "fc_7", "call_id": "1", "name": "add", "arguments": "{}"}
    result = {"type": "function_call_output", "call_id": "1", "output": "95"}
    first = (await http.post(URL, json={"input": [{"role": "user", "content": "Hello"}, call, result]})).json()
    second = (await http.post(URL, json=ask(input="More.", previous_response_id=first["id"]))).json()
    path = f"{URL}/{second['id']}/input_items"
    page = (await http.get(path, params={"order": "asc"})).json()
    kinds = ["message", "function_call", "function_call_output", "message", "message"]
    assert [item["type"] for item in page["data"]] == kinds
    assert page["data"][1] == call | {"status": "completed"}
    assert page["data"][3] == first["output"][0]
    assert page["data"][4]["content"] == [{"type": "input_text", "text": "More."}]
    ids = [item["id"] for item in page["data"]]
    assert len(set(ids)) == 5
    assert (page["object"], page["has_more"], page["first_id"], page["last_id"]) == ("list", False, ids[0], ids[-1])
    part = (await http.get(path, params={"limit": 2, "after": ids[4]})).json()
    assert [item["id"] for item in part["data"]] == [ids[3], ids[2]]
    assert part["has_more"] is True


def small(model: ServedModel, client: FakeClient, **limits: Any) -> httpx.AsyncClient:
    app = create_app(model, client, lambda: Readiness(state="ready"), ApiSettings(**limits))
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test")


async def test_the_oldest_go_first(model: ServedModel, client: FakeClient) -> None:
    async with small(model, client, response_store_size=2) as http:
        ids = [(await http.post(URL, json=ask())).json()["id"] for _ in range(3)]
        assert [(await http.get(f"{URL}/{one}")).status_code for one in ids] == [404, 200, 200]


async def test_nothing_is_kept(model: ServedModel, client: FakeClient) -> None:
    async with small(model, client, response_store_size=0) as http:
        answer = (await http.post(URL, json=ask())).json()
        assert answer["store"] is False
        assert (await http.get(f"{URL}/{answer['id']}")).status_code == 404
        refused = await http.post(URL, json=ask(background=True))
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "background")


async def test_the_background_is_bounded(model: ServedModel, client: FakeClient) -> None:
    client.script = nothing
    async with small(model, client, response_store_size=1) as http:
        begun = (await http.post(URL, json=ask(background=True))).json()
        refused = await http.post(URL, json=ask(background=True))
        assert (refused.status_code, refused.json()["error"]["param"]) == (429, "background")
        await http.post(f"{URL}/{begun['id']}/cancel")
        assert (await http.post(URL, json=ask(background=True))).status_code == 200

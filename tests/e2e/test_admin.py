"""Health, drains and ordered failures of a whole server over HTTP, on emulated slices: nothing has to be compiled."""

import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from runtime.cli.console import Report
from runtime.cli.flags import parse_up
from runtime.composition import Service, load, service
from runtime.errors import UsageError
from runtime.plan import make_plan
from tests.e2e.server import server_process
from tests.runtime.command import refusal
from tests.runtime.step_times import fast

pytestmark = pytest.mark.anyio

KEY = "open-sesame"
LIMIT_S = 60.0


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "table.json"
    path.write_text(json.dumps(fast()))
    return path


@asynccontextmanager
async def serving(path: Path, *flags: str) -> AsyncIterator[tuple[Service, httpx.AsyncClient]]:
    settings = parse_up([f"--engine=emulated:{path}", "--topology=prefill=2,decode=2", *flags])
    assert settings is not None
    async with service(load(make_plan(settings), Report())) as running:
        headers = {"authorization": f"Bearer {KEY}"}
        transport = httpx.ASGITransport(running.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://x", headers=headers, timeout=60) as http:
            await until(http, "ready")
            yield running, http


async def until(http: httpx.AsyncClient, status: str, **states: str) -> dict[str, Any]:
    """Health as soon as it has this status and these states of workers."""
    body: dict[str, Any] = {}
    try:
        with anyio.fail_after(LIMIT_S):
            while True:
                body = (await http.get("/health")).json()
                workers = {name.replace(".", "_"): worker["state"] for name, worker in body["workers"].items()}
                if body["status"] == status and states.items() <= workers.items():
                    return body
                await anyio.lowlevel.checkpoint()
    except TimeoutError:
        raise AssertionError(f"not {status} with {states}: {body}") from None


async def answer(http: httpx.AsyncClient, seed: int, max_tokens: int = 60) -> list[str]:
    body = {"prompt": "What is 37 + 58?", "max_tokens": max_tokens, "seed": seed, "n": 2}
    response = await http.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    return [choice["text"] for choice in response.json()["choices"]]


async def answers(http: httpx.AsyncClient, count: int, max_tokens: int = 60) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}

    async def ask(seed: int) -> None:
        found[seed] = await answer(http, seed, max_tokens)

    async with anyio.create_task_group() as group:
        for seed in range(count):
            group.start_soon(ask, seed)
    return found


async def test_a_drained_worker_degrades_the_server_and_comes_back(path: Path) -> None:
    async with serving(path, "--admin-key", KEY) as (_, http):
        undisturbed = await answers(http, 6)
        async with anyio.create_task_group() as group:

            async def drain() -> None:
                response = await http.post("/admin/workers/decode.0/drain", json={"timeout_s": 0.001})
                assert response.status_code == 202
                assert response.json()["decode.0"]["state"] == "draining"

            group.start_soon(drain)
            assert await answers(http, 6) == undisturbed
        body = await until(http, "degraded", decode_0="drained")
        assert "decode.0 is drained" in body["detail"]
        last = await http.post("/admin/workers/decode.1/drain")
        assert last.status_code == 409
        assert "decode.0 is drained" in last.json()["error"]["message"]
        assert await answers(http, 6) == undisturbed
        assert (await http.post("/admin/workers/decode.0/resume")).status_code == 202
        await until(http, "ready", decode_0="up")


async def test_ordered_failures_show_in_health_and_in_no_answer(path: Path) -> None:
    async with serving(path, "--admin-key", KEY, "--random-seed", "1") as (_, http):
        undisturbed = await answers(http, 8)
        spec = "decode.0:crash@step=20,prefill.1:crash@chunk=1,transfer:fail=0.3,decode.1:slow=1.1"
        assert (await http.post("/admin/chaos", json={"spec": spec})).json()["on"]
        async with anyio.create_task_group() as group:
            group.start_soon(until, http, "degraded")
            assert await answers(http, 8) == undisturbed
        ended = (await http.delete("/admin/chaos")).json()
        assert ended["on"] is False
        assert all(ended["hits"].values()), ended
        await until(http, "ready")


async def test_chaos_of_a_flag_begins_when_the_server_says_so(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        async with serving(path, "--chaos", "decode.0:crash@step=1,decode.1:crash@step=1") as (running, http):
            undisturbed = await answers(http, 4)
            assert "CHAOS" not in caplog.text
            running.begin_chaos()
            assert await answers(http, 4) == undisturbed
    assert "CHAOS IS ON: decode.0:crash@step=1" in caplog.text
    assert "chaos strikes: decode.0:crash@step=1" in caplog.text


async def test_without_a_key_there_are_no_admin_routes(path: Path) -> None:
    async with serving(path) as (_, http):
        assert (await http.get("/admin/workers")).status_code == 404


def test_a_strike_without_a_target_is_one_line_and_no_server(path: Path) -> None:
    settings = parse_up([f"--engine=emulated:{path}", "--topology=mixed=1", "--chaos=decode.0:crash@step=1"])
    assert settings is not None
    with pytest.raises(UsageError, match=r"--chaos 'decode.0:crash@step=1': no worker 'decode.0'; allowed: mixed.0"):
        load(make_plan(settings), Report())
    assert "--chaos 'nonsense': allowed: WORKER:crash@step=N" in refusal("up", "--chaos", "nonsense")


def test_a_process_reads_its_key_from_a_file_and_says_that_chaos_is_on(path: Path, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text(f"{KEY}\n")
    flags = ("--engine", f"emulated:{path}", "--admin-key", f"@{key}", "--chaos", "decode.0:slow=1.5")
    with server_process(*flags) as server:
        server.wait_until_serving()
        assert "CHAOS IS ON" in server.text
        headers = {"authorization": f"Bearer {KEY}"}
        workers = httpx.get(f"{server.url}/admin/workers", headers=headers, timeout=60)
        assert set(workers.json()["workers"]) == {"prefill.0", "decode.0"}
        assert httpx.get(f"{server.url}/admin/workers", timeout=60).status_code == 401
        faked = headers | {"x-forwarded-for": "192.0.2.7"}
        assert httpx.get(f"{server.url}/admin/workers", headers=faked, timeout=60).status_code == 403
        assert KEY not in server.text

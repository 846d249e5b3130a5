"""The operators' routes: probes, load, what the server is, and what can be ordered of it."""

import logging
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette

from actors.messages import Address, WorkerStatus
from actors.telemetry import WorkerLoad
from api.app import create_app
from api.metrics import Metrics
from api.model import ApiSettings, Readiness, ServedModel
from api.operations import Operations
from runtime import __version__
from runtime.errors import RequestError
from tests.api.conftest import chat
from tests.api.fake_client import FakeClient

pytestmark = pytest.mark.anyio
DECODE = WorkerStatus(name=Address("decode.0"), role="decode", state="up")
LOST = WorkerStatus(name=Address("prefill.0"), role="prefill", state="lost", reason="it broke")
LOAD = WorkerLoad(used_pages=3, cached_pages=2, free_pages=5, running=4, leases=1, prefills=0, queued_prefill_tokens=17)


class Caches:
    """Workers whose caches hold so many pages; None does not answer."""

    def __init__(self, **pages: int | None) -> None:
        self.pages = {Address(name.replace("_", ".")): count for name, count in pages.items()}
        self.times = 0

    async def forget_prefixes(self) -> dict[Address, int | None]:
        self.times += 1
        return self.pages


class Profiler:
    """Writes nothing."""

    def __init__(self) -> None:
        self.on = False

    def start(self) -> str:
        if self.on:
            raise RequestError("there is one already", code="profile_running")
        self.on = True
        return "profiles"

    def stop(self) -> str:
        self.on = False
        return "profiles"


Session = Callable[..., httpx.AsyncClient]


@pytest.fixture
def session(model: ServedModel, client: FakeClient) -> Session:
    def make(readiness: Readiness | None = None, keys: tuple[str, ...] = (), **fields: Any) -> httpx.AsyncClient:
        operations = Operations(**({"metrics": Metrics()} | fields))
        state = readiness or Readiness(state="ready", workers=(DECODE,))
        settings = ApiSettings(api_keys=keys, **({"cors_origins": fields.pop("cors")} if "cors" in fields else {}))
        app: Starlette = create_app(model, client, lambda: state, settings, None, operations)
        return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test")

    return make


@pytest.mark.parametrize(
    ("readiness", "ready", "health"),
    [
        (Readiness(state="ready"), 200, 200),
        (Readiness(state="degraded", detail="decode.1 is down"), 200, 200),
        (Readiness(state="starting", takes_requests=True), 200, 503),
        (Readiness(state="starting"), 503, 503),
        (Readiness(state="draining"), 503, 503),
    ],
)
async def test_ready_tells_whether_requests_are_taken_and_live_whether_the_process_is(
    session: Session, readiness: Readiness, ready: int, health: int
) -> None:
    async with session(readiness) as http:
        assert (await http.get("/ready")).status_code == ready
        assert (await http.get("/ready")).json()["status"] == readiness.state
        assert (await http.get("/health")).status_code == health
        live = await http.get("/live")
        assert (live.status_code, live.json()) == (200, {"status": "live"})


async def test_load_tells_the_scheduler_and_each_worker(session: Session) -> None:
    metrics = Metrics()
    metrics.queued(3, 5)
    metrics.holds(DECODE.name, LOAD)
    async with session(Readiness(state="ready", workers=(DECODE, LOST)), metrics=metrics) as http:
        assert (await http.get("/load")).json() == {
            "server_load": 8,
            "running": 5,
            "waiting": 3,
            "workers": {
                "decode.0": {
                    "role": "decode", "state": "up", "running": 4, "leased": 1, "prefilling": 0,
                    "queued_prefill_tokens": 17, "kv_usage": 0.3, "kv_pages": {"used": 3, "cached": 2, "free": 5},
                },
                "prefill.0": {"role": "prefill", "state": "lost", "reason": "it broke"},
            },
        }  # fmt: skip


async def test_server_info_tells_the_version_and_what_composition_says(session: Session) -> None:
    async with session(info={"topology": "mixed=1"}) as http:
        assert (await http.get("/server_info")).json() == {"version": __version__, "topology": "mixed=1"}


@pytest.mark.parametrize("path", ["/reset_prefix_cache", "/flush_cache"])
async def test_caches_are_emptied_and_counted(session: Session, path: str) -> None:
    caches = Caches(prefill_0=4, decode_0=None)
    async with session(caches=caches) as http:
        answer = await http.post(path)
        assert (answer.status_code, caches.times) == (200, 1)
        assert answer.json() == {"pages": 4, "workers": {"prefill.0": 4, "decode.0": None}}
        assert (await http.get(path)).status_code == 405


async def test_caches_that_nobody_answers_for_are_unavailable(session: Session) -> None:
    async with session(caches=Caches(mixed_0=None)) as http:
        answer = await http.post("/reset_prefix_cache")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")


async def test_orders_take_no_parameters(session: Session) -> None:
    caches = Caches(mixed_0=1)
    async with session(caches=caches, profiler=Profiler()) as http:
        for path in ("/reset_prefix_cache", "/start_profile", "/stop_profile"):
            refused = await http.post(path, json={"output_dir": "elsewhere"})
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, "output_dir")
        assert (await http.post("/flush_cache", json={})).status_code == 200
    assert caches.times == 1


async def test_profiles_are_begun_and_ended_once(session: Session) -> None:
    async with session(profiler=Profiler()) as http:
        assert (await http.post("/start_profile")).json() == {"profile": "started", "folder": "profiles"}
        again = await http.post("/start_profile")
        assert (again.status_code, again.json()["error"]["code"]) == (400, "profile_running")
        assert (await http.post("/stop_profile")).json() == {"profile": "written", "folder": "profiles"}


async def test_without_a_profiler_there_is_a_reason(session: Session) -> None:
    async with session() as http:
        refused = await http.post("/start_profile")
        assert refused.status_code == 400
        assert "--profile-dir" in refused.json()["error"]["message"]


async def test_probes_and_metrics_need_no_key_and_orders_do(session: Session) -> None:
    caches = Caches(mixed_0=1)
    async with session(keys=("one", "two"), caches=caches) as http:
        for path in ("/health", "/ready", "/live", "/metrics"):
            assert (await http.get(path)).status_code == 200
        for path in ("/load", "/server_info", "/version", "/tokenizer_info", "/v1/models"):
            assert (await http.get(path)).status_code == 401
            for key in ("one", "two"):
                known = await http.get(path, headers={"authorization": f"bearer {key}"})
                assert known.status_code == 200
        for header in ("Bearer three", "Bearer ", "Bearer", "Basic one", "one", "Bearer on", "Bearer onee"):
            refused = await http.post("/flush_cache", headers={"authorization": header})
            assert refused.status_code == 401
            assert refused.headers["x-request-id"]
            assert refused.headers["www-authenticate"] == "Bearer"
    assert caches.times == 0


async def test_without_keys_an_empty_bearer_is_let_in(session: Session) -> None:
    async with session() as http:
        answer = await http.post("/v1/chat/completions", json=chat(), headers={"authorization": "Bearer "})
        assert answer.status_code == 200


async def test_browsers_of_other_pages_are_let_in_where_these_are_named(model: ServedModel, client: FakeClient) -> None:
    settings = ApiSettings(api_keys=("secret",), cors_origins=("http://localhost:3000",))
    app = create_app(model, client, lambda: Readiness(state="ready"), settings)
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as http:
        ours = await http.options("/v1/models", headers={"origin": "http://localhost:3000"} | asked)
        assert (ours.status_code, ours.headers["access-control-allow-origin"]) == (200, "http://localhost:3000")
        assert ours.headers["x-request-id"]
        foreign = await http.options("/v1/models", headers={"origin": "http://evil.example"} | asked)
        assert (foreign.status_code, "access-control-allow-origin" in foreign.headers) == (400, False)
        refused = await http.get("/v1/models", headers={"origin": "http://localhost:3000"})
        assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, "http://localhost:3000")


async def test_other_pages_see_faults_of_the_server(
    model: ServedModel, client: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the header a browser tells its page of a broken network, and nothing of the server's answer."""
    monkeypatch.setattr("api.app.model_list", lambda model: 1 // 0)
    settings = ApiSettings(cors_origins=("http://localhost:3000",))
    app = create_app(model, client, lambda: Readiness(state="ready"), settings)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as http:
        answer = await http.get("/v1/models", headers={"origin": "http://localhost:3000"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert answer.headers["access-control-allow-origin"] == "http://localhost:3000"
    assert "x-request-id" in answer.headers["access-control-expose-headers"]


async def test_no_other_page_is_let_in_by_default(session: Session) -> None:
    async with session() as http:
        answer = await http.get("/v1/models", headers={"origin": "http://localhost:3000"})
        assert not [name for name in answer.headers if name.startswith("access-control")]


async def test_each_request_is_one_line_without_its_prompt_or_key(
    session: Session, client: FakeClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with session(keys=("hush",)) as http:
        body = chat(n=2) | {"messages": [{"role": "user", "content": "swordfish"}]}
        headers = {"authorization": "Bearer hush", "x-request-id": "mine.1"}
        answer = (await http.post("/v1/chat/completions", json=body, headers=headers)).json()
        await http.get("/nowhere")
    lines = [entry for entry in caplog.records if entry.name == "api.access"]
    assert [(line.levelname, line.getMessage()) for line in lines] == [("INFO", "request")] * 2
    told, other = (vars(line) for line in lines)
    assert (told["method"], told["route"], told["status"]) == ("POST", "/v1/chat/completions", 200)
    usage = answer["usage"]
    assert (told["prompt_tokens"], told["completion_tokens"]) == (usage["prompt_tokens"], usage["completion_tokens"])
    assert told["cached_tokens"] == usage["prompt_tokens_details"]["cached_tokens"]
    assert told["finish_reason"] == "stop"
    assert 0 <= told["ttft_s"] <= told["e2e_s"]
    assert (other["route"], other["status"], "prompt_tokens" in other) == ("unmatched", 401, False)
    everything = "\n".join(f"{entry.getMessage()} {vars(entry)}" for entry in caplog.records)
    assert "swordfish" not in everything
    assert "hush" not in everything

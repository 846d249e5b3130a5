"""What a whole server tells of itself: a run on emulated slices whose requests are counted by hand."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from runtime import __version__
from runtime.cli.console import Report
from runtime.cli.flags import parse_up
from runtime.composition import load, service
from runtime.plan import make_plan
from tests.e2e.server import server_process
from tests.runtime.step_times import fast

pytestmark = pytest.mark.anyio
PROMPT = [5] * 40
"""Two pages of 16 tokens and a half."""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@asynccontextmanager
async def serving(folder: Path, *flags: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client with a key of a server in this process."""
    (table := folder / "table.json").write_text(json.dumps(fast()))
    settings = parse_up([f"--engine=emulated:{table}", "--api-key", "hush", "--page-size", "16", *flags])
    assert settings is not None
    async with service(load(make_plan(settings), Report())) as running:
        headers = {"authorization": "Bearer hush"}
        transport = httpx.ASGITransport(running.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://t", headers=headers, timeout=60) as made:
            yield made


@pytest.fixture
async def http(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(tmp_path, "--topology", "prefill=1,decode=1", "--admin-key", "silent") as made:
        yield made


async def complete(http: httpx.AsyncClient, n: int = 1) -> None:
    body = {"prompt": PROMPT, "max_tokens": 8, "ignore_eos": True, "seed": 1, "n": n}
    assert (await http.post("/v1/completions", json=body)).status_code == 200


async def scrape(http: httpx.AsyncClient) -> dict[str, float]:
    """Samples as the text shows them, with their labels in the order of the alphabet."""
    found = {}
    for family in text_string_to_metric_families((await http.get("/metrics")).text):
        for sample in family.samples:
            labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}"] = sample.value
    return found


async def test_two_requests_are_told_in_numbers(http: httpx.AsyncClient) -> None:
    await complete(http)
    await complete(http, n=2)
    told = await scrape(http)
    assert told["runtime_prompt_tokens_total{}"] == 80
    assert told["runtime_generation_tokens_total{}"] == 24
    assert told["runtime_choices_finished_total{finished_reason=length}"] == 3
    assert (
        told["runtime_time_to_first_token_seconds_count{}"] == told["runtime_e2e_request_latency_seconds_count{}"] == 2
    )
    assert told["runtime_inter_token_latency_seconds_count{}"] == 3 * 7
    for stage in ("queue", "prefill", "transfer_exposed", "handoff", "decode"):
        assert told[f"runtime_request_{stage}_seconds_count{{}}"] == 3
    assert told["runtime_admissions_total{attempt=first}"] == 2
    assert told["runtime_step_prefill_tokens_sum{phase=prefill,role=prefill,worker=prefill.0}"] == 40 + 8
    assert told["runtime_prefix_cache_queries_total{role=prefill,worker=prefill.0}"] == 80
    assert told["runtime_prefix_cache_hits_total{role=prefill,worker=prefill.0}"] == 32
    assert told["runtime_prefix_cache_hits_total{role=decode,worker=decode.0}"] == 32
    assert told["runtime_step_rows_count{phase=decode,role=decode,worker=decode.0}"] >= 2 * 6
    assert told["runtime_kv_transfer_seconds_count{source=prefill.0,target=decode.0}"] == 2
    moved = told["runtime_kv_transfer_bytes_total{source=prefill.0,target=decode.0}"]
    assert moved > 0
    assert moved % 4 == 0  # three pages, then the one that was not cached
    assert told["runtime_http_requests_total{route=/v1/completions,status=200}"] == 2
    assert told["runtime_compiles_after_warm_up{}"] == 0
    pages = [
        told[f"runtime_kv_pages{{role=decode,state={state},worker=decode.0}}"] for state in ("used", "cached", "free")
    ]
    info = (await http.get("/server_info")).json()
    assert sum(pages) == info["workers"]["decode.0"]["kv_pages"]


async def test_the_server_says_what_it_is_and_keeps_its_secrets(http: httpx.AsyncClient) -> None:
    answer = await http.get("/server_info")
    info = answer.json()
    assert (info["version"], info["topology"]) == (__version__, "prefill=1x1,decode=1x1")
    assert info["flags"]["page-size"] == 16
    assert info["workers"]["prefill.0"]["page_size"] == 16
    assert not [secret for secret in ("hush", "silent") if secret in answer.text]


async def test_emptied_caches_are_computed_again(http: httpx.AsyncClient) -> None:
    await complete(http)
    emptied = (await http.post("/flush_cache")).json()
    assert emptied["pages"] == sum(emptied["workers"].values()) >= 4
    await complete(http)
    assert (await scrape(http))["runtime_prefix_cache_hits_total{role=prefill,worker=prefill.0}"] == 0


async def test_what_runs_on_nothing_has_no_profile(http: httpx.AsyncClient) -> None:
    refused = await http.post("/start_profile")
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "no_profiler")
    assert "emulated" in refused.json()["error"]["message"]


async def test_limits_and_origins_are_what_the_flags_say(tmp_path: Path) -> None:
    flags = ("--max-body-bytes=1024", "--max-answers=2", "--cors-origin=http://localhost:3000")
    async with serving(tmp_path, *flags) as http:
        large = await http.post("/v1/completions", json={"prompt": "x" * 1024})
        assert (large.status_code, large.json()["error"]["code"]) == (413, "request_too_large")
        many = await http.post("/v1/completions", json={"prompt": ["a", "b", "c"], "max_tokens": 1})
        assert (many.status_code, many.json()["error"]["param"]) == (400, "prompt")
        await complete(http, n=2)
        answer = await http.get("/v1/models", headers={"origin": "http://localhost:3000"})
        assert answer.headers["access-control-allow-origin"] == "http://localhost:3000"
        info = (await http.get("/server_info")).json()
        assert info["flags"]["cors-origin"] == ["http://localhost:3000"]


async def test_a_process_logs_its_requests_as_json_and_takes_keys_from_a_file(tmp_path: Path) -> None:
    (table := tmp_path / "table.json").write_text(json.dumps(fast()))
    (keys := tmp_path / "keys").write_text("hush\nother\n")
    flags = (f"--engine=emulated:{table}", "--log-level=info", "--log-format=json", f"--api-key-file={keys}")
    with server_process(*flags) as process:
        process.wait_until_serving()
        async with httpx.AsyncClient(base_url=process.url, timeout=60) as http:
            assert (await http.get("/v1/models")).status_code == 401
            headers = {"authorization": "Bearer other", "x-request-id": "mine"}
            body = {"prompt": "swordfish", "max_tokens": 3, "ignore_eos": True}
            assert (await http.post("/v1/completions", json=body, headers=headers)).status_code == 200
        process.stop()
    objects = [json.loads(line) for line in process.output if line.startswith("{")]
    lines = [line for line in objects if line["logger"] == "api.access"]
    assert [(line["route"], line["status"]) for line in lines] == [
        ("/v1/completions", 200),  # the server's own
        ("unmatched", 401),
        ("/v1/completions", 200),
    ]
    assert (lines[2]["request_id"], lines[2]["completion_tokens"], lines[2]["finish_reason"]) == ("mine", 3, "length")
    assert 0 < lines[2]["ttft_s"] <= lines[2]["e2e_s"]
    assert not [word for word in ("swordfish", "hush", "other") if word in process.text]

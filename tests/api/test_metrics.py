"""Metrics against runs that are counted by hand, and scrapes as a scraper reads them."""

import re
import threading
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette

from actors.client import ClientEvent, GenerateRequest
from actors.messages import Address, Completed, Delta, TokenRecord
from actors.stage_clock import StageTimes
from actors.telemetry import StepRecord, WorkerLoad
from api.app import create_app
from api.metric_families import Distribution
from api.metrics import Metrics, MetricsOptions, Snapshot
from api.model import ApiSettings, Readiness, ServedModel
from api.observation import ObservedClient
from api.operations import Operations
from runtime.sampling_params import SamplingParams
from tests.api.conftest import chat
from tests.api.exchange import exchange
from tests.api.fake_client import FakeClient, failed, nothing

pytestmark = pytest.mark.anyio
PREFILL, DECODE = Address("prefill.0"), Address("decode.1")
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scraped(data: bytes) -> Samples:
    """Every sample by its name and labels, as Prometheus' own parser reads them."""
    found: Samples = {}
    for family in text_string_to_metric_families(data.decode()):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found, key
            found[key] = sample.value
    return found


class Scrape:
    """Samples by name and labels."""

    def __init__(self, metrics: Metrics) -> None:
        self.samples = scraped(metrics.snapshot().render())

    def __call__(self, name: str, **labels: str) -> float:
        return self.samples[name, frozenset(labels.items())]

    def at_most(self, name: str, bound: str, **labels: str) -> float:
        return self(f"{name}_bucket", le=bound, **labels)


class Clock:
    """Tells the times that a test gives it, one after the other."""

    def __init__(self, *times_s: float) -> None:
        self._times: Iterator[float] = iter(times_s)

    def __call__(self) -> float:
        return next(self._times)


def delta(choice: int, *tokens: int, finish: str | None = None) -> Delta:
    records = tuple(TokenRecord(token) for token in tokens)
    return Delta(request="r", choice=choice, text="", tokens=records, finish=finish)  # type: ignore[arg-type]


def times(queue_s: float) -> StageTimes:
    return StageTimes(
        queue_s=queue_s, prefill_s=0.25, transfer_s=0.0625, handoff_s=0.002, decode_s=3.0,
        attempts=1, prefill_worker="prefill.0", decode_worker="decode.1",
    )  # fmt: skip


async def observe(metrics: Metrics, events: list[ClientEvent], *times_s: float, leave_after: int | None = None) -> None:
    """A request of two choices and a prompt of five tokens whose events come at these times."""

    async def script(request: GenerateRequest) -> AsyncIterator[ClientEvent]:
        for event in events:
            yield event

    fake = FakeClient(None)  # type: ignore[arg-type]
    fake.script = script
    client = ObservedClient(fake, metrics, Clock(*times_s))
    request = GenerateRequest(
        request="r", prompt=(1, 2, 3, 4, 5), params=SamplingParams(seed=1, max_tokens=9), num_choices=2
    )
    seen = 0
    async with client.stream(request) as stream:
        async for _ in stream:
            seen += 1
            if seen == leave_after:
                return


async def test_a_request_is_counted_token_by_token() -> None:
    metrics = Metrics()
    ended = Completed(
        request="r", prompt_tokens=5, completion_tokens=5, cached_tokens=3, timings=(times(0.02), times(0.7))
    )
    events = [delta(0, 7), delta(1, 8), delta(0, 9), delta(1, 6, 5, finish="stop"), delta(0, 3, finish="length"), ended]
    #               began  first  second  third  fourth  fifth  completed
    await observe(metrics, events, 10.0, 10.2, 10.21, 10.206, 10.41, 10.5, 10.75)
    scrape = Scrape(metrics)
    name = "runtime_time_to_first_token_seconds"
    assert (scrape(f"{name}_count"), scrape(f"{name}_sum")) == (1, pytest.approx(0.2))
    assert (scrape.at_most(name, "0.1"), scrape.at_most(name, "0.25")) == (0, 1)
    name = "runtime_inter_token_latency_seconds"
    # Choice 0: 6 ms, then 294 ms; choice 1: two tokens together after 200 ms are 100 ms each.
    assert (scrape(f"{name}_count"), scrape(f"{name}_sum")) == (4, pytest.approx(0.006 + 0.294 + 0.2))
    assert [scrape.at_most(name, bound) for bound in ("0.005", "0.01", "0.25", "0.5", "+Inf")] == [0, 1, 3, 4, 4]
    name = "runtime_e2e_request_latency_seconds"
    assert (scrape(f"{name}_count"), scrape(f"{name}_sum")) == (1, 0.75)
    assert (scrape("runtime_prompt_tokens_total"), scrape("runtime_generation_tokens_total")) == (5, 6)
    assert scrape("runtime_choices_finished_total", finished_reason="stop") == 1
    assert scrape("runtime_choices_finished_total", finished_reason="length") == 1
    stages = {"queue": 0.72, "prefill": 0.5, "transfer_exposed": 0.125, "handoff": 0.004, "decode": 6.0}
    for stage, total_s in stages.items():
        assert scrape(f"runtime_request_{stage}_seconds_count") == 2
        assert scrape(f"runtime_request_{stage}_seconds_sum") == pytest.approx(total_s)
    assert (scrape.at_most("runtime_request_queue_seconds", "0.025"), scrape("runtime_requests_aborted_total")) == (
        1,
        0,
    )


async def test_a_request_that_fails_or_is_left_is_counted_as_that() -> None:
    metrics = Metrics()
    request = GenerateRequest(request="r", prompt=(1,), params=SamplingParams(seed=1, max_tokens=1))
    await observe(metrics, [failed(request)], 1.0, 1.5)
    await observe(metrics, [delta(0, 1, finish="stop"), delta(1, 2)], 1.0, 1.5, 1.6, 2.0, leave_after=2)
    scrape = Scrape(metrics)
    assert scrape("runtime_requests_failed_total", code="queue_full") == 1
    assert scrape("runtime_requests_aborted_total") == 1
    assert scrape("runtime_choices_finished_total", finished_reason="stop") == 1
    assert scrape("runtime_choices_finished_total", finished_reason="abort") == 1
    assert scrape("runtime_time_to_first_token_seconds_count") == 1
    assert scrape("runtime_e2e_request_latency_seconds_count") == 0


async def test_what_actors_tell_is_counted_by_worker_and_role() -> None:
    options = MetricsOptions(model="demo", page_size=16, page_bytes=1000, compiles=lambda: 2, info={"engine": "jax"})
    metrics = Metrics(options)
    metrics.queued(4, 6)
    for again in (False, False, True):
        metrics.admitted(again=again)
    metrics.recovered("gap")
    metrics.died(DECODE, final=False)
    metrics.moved(PREFILL, DECODE, 33, 0.004)
    metrics.moved(PREFILL, DECODE, 16, 0.5)
    metrics.move_failed(PREFILL, DECODE)
    metrics.stepped(DECODE, StepRecord(phase="decode", duration_s=0.003, rows=5, prefill_tokens=0))
    metrics.stepped(DECODE, StepRecord(phase="decode", duration_s=0.2, rows=8, prefill_tokens=0))
    metrics.stepped(PREFILL, StepRecord(phase="prefill", duration_s=0.05, rows=0, prefill_tokens=200))
    metrics.looked_up(PREFILL, 40, 32)
    metrics.looked_up(PREFILL, 10, 0)
    metrics.preempted(DECODE, 3)
    load = WorkerLoad(
        used_pages=1, cached_pages=2, free_pages=1, running=7, leases=2, prefills=3, queued_prefill_tokens=0
    )
    metrics.holds(DECODE, load)
    scrape = Scrape(metrics)
    assert (scrape("runtime_requests_waiting"), scrape("runtime_requests_running")) == (4, 6)
    assert scrape("runtime_admissions_total", attempt="first") == 2
    assert scrape("runtime_admissions_total", attempt="again") == 1
    assert scrape("runtime_recoveries_total", cause="gap") == 1
    assert scrape("runtime_restarts_total", actor="decode.1", final="false") == 1
    pair = {"source": "prefill.0", "target": "decode.1"}
    assert scrape("runtime_kv_transfer_bytes_total", **pair) == (3 + 1) * 1000
    assert scrape("runtime_kv_transfer_seconds_sum", **pair) == pytest.approx(0.504)
    assert scrape.at_most("runtime_kv_transfer_seconds", "0.005", **pair) == 1
    assert scrape("runtime_kv_transfer_failures_total", **pair) == 1
    decode, prefill = {"worker": "decode.1", "role": "decode"}, {"worker": "prefill.0", "role": "prefill"}
    assert scrape("runtime_step_seconds_count", phase="decode", **decode) == 2
    assert scrape("runtime_step_seconds_sum", phase="decode", **decode) == pytest.approx(0.203)
    assert scrape.at_most("runtime_step_rows", "4.0", phase="decode", **decode) == 0
    assert scrape.at_most("runtime_step_rows", "8.0", phase="decode", **decode) == 2
    assert scrape("runtime_step_prefill_tokens_sum", phase="prefill", **prefill) == 200
    assert scrape("runtime_prefix_cache_queries_total", **prefill) == 50
    assert scrape("runtime_prefix_cache_hits_total", **prefill) == 32
    assert scrape("runtime_preemptions_total", **decode) == 3
    assert [scrape("runtime_kv_pages", state=state, **decode) for state in ("used", "cached", "free")] == [1, 2, 1]
    assert scrape("runtime_kv_cache_usage_ratio", **decode) == 0.25
    assert scrape("runtime_worker_choices", state="running", **decode) == 7
    assert scrape("runtime_compiles_after_warm_up") == 2
    assert scrape("runtime_info", engine="jax") == 1
    assert scrape("vllm:num_preemptions_total", model_name="demo", **decode) == 3
    assert scrape("vllm:num_requests_waiting", model_name="demo") == 4


async def test_what_a_dead_worker_held_is_not_shown_any_more() -> None:
    metrics = Metrics()
    load = WorkerLoad(
        used_pages=1, cached_pages=2, free_pages=1, running=7, leases=2, prefills=3, queued_prefill_tokens=0
    )
    metrics.holds(PREFILL, load)
    metrics.holds(DECODE, load)
    assert len([key for key in Scrape(metrics).samples if ("worker", "decode.1") in key[1]]) > 0
    metrics.died(DECODE, final=False)
    left = {dict(labels).get("worker") for _, labels in Scrape(metrics).samples} - {None}
    assert left == {"prefill.0"}


async def test_every_histogram_adds_up() -> None:
    metrics = Metrics()
    for number, family in enumerate(metrics.families):
        if isinstance(family, Distribution):
            for value in (0.0, 0.001, 0.3, float(number), 1e9):
                family.observe(value, *["x"] * len(family.definition.labels))
    scrape = Scrape(metrics)
    for (name, labels), value in scrape.samples.items():
        if name.endswith("_count"):
            assert value == 5
            assert scrape.samples[name.removesuffix("_count") + "_bucket", labels | {("le", "+Inf")}] == 5


async def test_responses_are_counted_by_route_and_status(app: Starlette, http: httpx.AsyncClient) -> None:
    await http.get("/v1/models/org/tiny-alias")
    await http.get("/v1/models/gpt-9")
    await http.post("/v1/chat/completions", json=chat())
    await http.post("/v1/chat/completions", json=chat(n=-1))
    await http.get("/v1/chat/completions")
    scraped_by_http = await http.get("/metrics")
    assert scraped_by_http.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    samples = scraped(scraped_by_http.content)
    counts = {
        (dict(labels)["route"], dict(labels)["status"]): value
        for (name, labels), value in samples.items()
        if name == "runtime_http_requests_total"
    }
    assert counts == {
        ("/v1/models/{name:path}", "200"): 1,
        ("/v1/models/{name:path}", "404"): 1,
        ("/v1/chat/completions", "200"): 1,
        ("/v1/chat/completions", "400"): 1,
        ("/v1/chat/completions", "405"): 1,
    }


async def test_a_client_that_goes_away_before_an_answer_is_counted(model: ServedModel, client: FakeClient) -> None:
    metrics = Metrics()
    client.script = nothing
    app = create_app(
        model, client, lambda: Readiness(state="ready"), ApiSettings(ping_interval_s=3600), None,
        Operations(metrics=metrics),
    )  # fmt: skip
    async with exchange(app, "/v1/chat/completions", **chat()) as one:
        await client.wait_until(lambda: bool(client.requests))
        one.disconnect()
        await one.wait()
    scrape = Scrape(metrics)
    assert scrape("runtime_http_requests_total", route="/v1/chat/completions", status="499") == 1
    assert scrape("runtime_requests_aborted_total") == 1


async def test_no_client_can_make_the_metrics_grow(app: Starlette, http: httpx.AsyncClient) -> None:
    async def ask(number: int) -> None:
        headers = {"x-request-id": f"id-{number}", "authorization": f"Bearer {number}"}
        await http.post("/v1/chat/completions", json=chat(model=f"model-{number}", user=f"u{number}"), headers=headers)
        await http.get(f"/v1/models/model-{number}", headers=headers)
        await http.get(f"/path/{number}?query={number}", headers=headers)
        await http.request(f"VERB{number}", "/v1/completions", headers=headers)
        await http.post("/v1/completions", json={"prompt": "x", "cache_salt": f"s{number}", "max_tokens": 2})

    await ask(0)
    before = scraped((await http.get("/metrics")).content)
    for number in range(1, 40):
        await ask(number)
    after = scraped((await http.get("/metrics")).content)
    new = {key for key in after.keys() - before.keys() if ("route", "/metrics") not in key[1]}
    assert not new
    assert not [key for key in after if re.search(r"model-\d|path/\d|VERB|id-\d", str(key))]


async def test_a_scrape_does_not_hold_up_the_event_loop(
    model: ServedModel, client: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    renderers: list[int] = []

    def remembered(snapshot: Snapshot) -> bytes:
        renderers.append(threading.get_ident())
        return b""

    monkeypatch.setattr(Snapshot, "render", remembered)
    app = create_app(model, client, lambda: Readiness(state="ready"))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as http:
        assert (await http.get("/metrics")).status_code == 200
    assert len(renderers) == 1
    assert renderers[0] != threading.get_ident()


def test_a_snapshot_shows_the_moment_when_it_was_taken() -> None:
    metrics = Metrics()
    metrics.queued(3, 5)
    snapshot = metrics.snapshot()
    metrics.queued(4, 6)
    assert scraped(snapshot.render())["runtime_requests_waiting", frozenset()] == 3

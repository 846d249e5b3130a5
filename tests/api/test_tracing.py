"""Spans as an exporter of the OpenTelemetry SDK gets them."""

import sys
from collections.abc import AsyncIterator

import httpx
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from actors.client import ClientEvent, GenerateRequest
from api.app import create_app
from api.metrics import Metrics
from api.model import ApiSettings, Readiness, ServedModel
from api.operations import Operations
from api.tracing import STAGES, Tracing, configured_endpoint, otlp_tracing
from runtime.errors import UsageError
from tests.api.conftest import chat
from tests.api.fake_client import FakeClient, failed, stage_times

pytestmark = pytest.mark.anyio
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
async def traced(
    model: ServedModel, client: FakeClient, exporter: InMemorySpanExporter
) -> AsyncIterator[httpx.AsyncClient]:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    operations = Operations(metrics=Metrics(), tracing=Tracing(provider, "tiny"))
    app = create_app(model, client, lambda: Readiness(state="ready"), ApiSettings(), None, operations)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as session:
        yield session
    provider.shutdown()


def split(spans: tuple[ReadableSpan, ...]) -> tuple[ReadableSpan, list[ReadableSpan]]:
    (server,) = (span for span in spans if span.kind.name == "SERVER")
    return server, [span for span in spans if span is not server]


async def test_a_request_is_a_span_in_its_clients_trace_with_a_child_for_each_stage(
    traced: httpx.AsyncClient, exporter: InMemorySpanExporter, client: FakeClient
) -> None:
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "mine"}
    answer = (await traced.post("/v1/chat/completions", json=chat(n=2), headers=headers)).json()
    server, children = split(exporter.get_finished_spans())
    assert server.name == "POST /v1/chat/completions"
    assert server.context is not None
    assert server.parent is not None
    assert (f"{server.context.trace_id:032x}", f"{server.parent.span_id:016x}") == (TRACE, PARENT)
    attributes = dict(server.attributes or {})
    assert attributes["runtime.request_id"] == "mine"
    assert attributes["http.response.status_code"] == 200
    assert attributes["gen_ai.request.model"] == "tiny"
    assert attributes["gen_ai.usage.input_tokens"] == answer["usage"]["prompt_tokens"]
    assert attributes["gen_ai.usage.output_tokens"] == answer["usage"]["completion_tokens"]
    assert attributes["gen_ai.response.finish_reasons"] == ("stop", "stop")
    assert attributes["gen_ai.response.id"] == answer["id"]
    assert [child.name for child in children] == [*STAGES, *STAGES]
    assert {child.parent.span_id for child in children if child.parent is not None} == {server.context.span_id}
    for choice in range(2):
        spans = children[choice * 5 : choice * 5 + 5]
        expected = stage_times(client.requests[0], choice)
        durations = [(span.end_time or 0) - (span.start_time or 0) for span in spans]
        assert sum(durations) == expected.total_s * 1e9
        assert durations[2:] == [125_000_000, 250_000_000, 500_000_000]
        assert [span.start_time for span in spans[1:]] == [span.end_time for span in spans[:-1]]
        assert {(span.attributes or {})["runtime.choice"] for span in spans} == {choice}


async def test_a_failure_is_an_error_by_its_code(
    traced: httpx.AsyncClient, exporter: InMemorySpanExporter, client: FakeClient
) -> None:
    async def script(request: GenerateRequest) -> AsyncIterator[ClientEvent]:
        yield failed(request, status=503)

    client.script = script
    await traced.post("/v1/completions", json={"prompt": "a"})
    server, children = split(exporter.get_finished_spans())
    assert not server.status.is_ok
    assert (server.attributes or {})["error.type"] == "queue_full"
    assert (server.parent, children) == (None, [])


async def test_probes_are_no_spans(traced: httpx.AsyncClient, exporter: InMemorySpanExporter) -> None:
    for path in ("/health", "/ready", "/live", "/metrics"):
        await traced.get(path)
    assert exporter.get_finished_spans() == ()


async def test_a_broken_traceparent_begins_a_trace(traced: httpx.AsyncClient, exporter: InMemorySpanExporter) -> None:
    await traced.get("/v1/models", headers={"traceparent": "nonsense"})
    server, _ = split(exporter.get_finished_spans())
    assert server.parent is None


@pytest.mark.parametrize(
    ("flag", "environment", "source"),
    [
        (None, {}, None),
        (None, {"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, None),
        ("http://a/v1/traces", {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://b"}, "--otlp-traces-endpoint"),
        (None, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://b"}, "OTEL_EXPORTER_OTLP_ENDPOINT"),
    ],
)
def test_flag_or_environment_ask_for_spans(flag: str | None, environment: dict[str, str], source: str | None) -> None:
    assert configured_endpoint(flag, environment) == source


def test_nothing_is_imported_unless_spans_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    assert otlp_tracing(None, "tiny", {}) is None
    with pytest.raises(UsageError, match=r"--otlp-traces-endpoint: .*runtime\[trace\]"):
        otlp_tracing("http://localhost:4318/v1/traces", "tiny", {})

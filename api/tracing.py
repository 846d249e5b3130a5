"""OpenTelemetry spans: one per request, with a child for each stage of each of its choices.

They are made when the request has ended, from the times in its record, so that tracing costs a running request nothing.
A `traceparent` that the client sent makes them part of its trace. The packages are an extra, `runtime[trace]`: they are
imported where an exporter is configured and nowhere else.
"""

import os
from collections.abc import Mapping
from typing import Any

from actors.stage_clock import StageTimes
from api.observation import EngineRecord, RequestRecord
from runtime import __version__
from runtime.errors import UsageError

ENDPOINT_FLAG = "--otlp-traces-endpoint"
ENDPOINT_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
STAGES = ("queue", "prefill", "transfer", "handoff", "decode")
_NS_PER_S = 1_000_000_000


class Tracing:
    """Makes spans by a tracer provider of the OpenTelemetry SDK."""

    def __init__(self, provider: Any, model: str) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("runtime", __version__)
        self._propagator = TraceContextTextMapPropagator()
        self._model = model

    def tell(self, method: str, status: int, headers: Mapping[bytes, bytes], record: RequestRecord) -> None:
        """Makes the spans of a request that has ended."""
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

        assert record.ended_at is not None
        sent = {
            name: headers[name.encode()].decode("latin-1")
            for name in self._propagator.fields
            if name.encode() in headers
        }
        span = self._tracer.start_span(
            f"{method} {record.route}",
            context=self._propagator.extract(sent),
            kind=SpanKind.SERVER,
            start_time=record.wall_ns,
            attributes=_attributes(method, status, record, self._model),
        )
        inside = set_span_in_context(span)
        for one in record.engine:
            for choice, times in enumerate(one.timings):
                self._stages(inside, record, one, choice, times)
        if status >= 500:
            span.set_status(Status(StatusCode.ERROR))
        span.end(_wall_ns(record, record.ended_at))

    def _stages(self, inside: Any, record: RequestRecord, one: EngineRecord, choice: int, times: StageTimes) -> None:
        """One span behind the other, beginning when the engine got the request."""
        at_ns = _wall_ns(record, one.began_at)
        for stage in STAGES:
            duration_s: float = getattr(times, f"{stage}_s")
            worker = times.decode_worker if stage in ("handoff", "decode") else times.prefill_worker
            attributes = {
                "gen_ai.response.id": one.request,
                "runtime.choice": choice,
                "runtime.attempts": times.attempts,
                **({"runtime.worker": worker} if worker is not None and stage != "queue" else {}),
            }
            span = self._tracer.start_span(stage, context=inside, start_time=at_ns, attributes=attributes)
            at_ns += round(duration_s * _NS_PER_S)
            span.end(at_ns)

    def shutdown(self) -> None:
        """Sends what is still to be sent. Blocks."""
        self._provider.shutdown()


def _wall_ns(record: RequestRecord, at: float) -> int:
    return record.wall_ns + round((at - record.began_at) * _NS_PER_S)


def _attributes(method: str, status: int, record: RequestRecord, model: str) -> dict[str, Any]:
    """By OpenTelemetry's names for HTTP servers and for generative models, where it has one."""
    attributes: dict[str, Any] = {
        "http.request.method": method,
        "http.route": record.route,
        "http.response.status_code": status,
        "runtime.request_id": record.request_id,
    }
    if not record.engine:
        return attributes
    firsts = [one.first_at for one in record.engine if one.first_at is not None]
    codes = [one.code for one in record.engine if one.code is not None]
    attributes |= {
        "gen_ai.operation.name": "chat" if "chat" in record.route else "text_completion",
        "gen_ai.provider.name": "runtime",
        "gen_ai.request.model": model,
        "gen_ai.response.model": model,
        "gen_ai.response.id": record.engine[0].request,
        "gen_ai.response.finish_reasons": [
            reason for one in record.engine for _, reason in sorted(one.finished.items())
        ],
        "gen_ai.usage.input_tokens": sum(one.prompt_tokens for one in record.engine),
        "gen_ai.usage.output_tokens": sum(one.completion_tokens for one in record.engine),
        "runtime.cached_tokens": sum(one.cached_tokens for one in record.engine),
    }
    if firsts:
        attributes["gen_ai.response.time_to_first_chunk"] = min(firsts) - record.began_at
    return attributes | ({"error.type": codes[0]} if codes else {})


def configured_endpoint(flag: str | None, environment: Mapping[str, str]) -> str | None:
    """What asks for spans, by name, or None. The flag wins over the environment."""
    if flag is not None:
        return ENDPOINT_FLAG
    return next((name for name in ENDPOINT_VARIABLES if environment.get(name)), None)


def otlp_tracing(flag: str | None, model: str, environment: Mapping[str, str] | None = None) -> Tracing | None:
    """Spans to the collector that flag or environment name; None where neither does.

    The flag is the whole URL for traces; what else may be said is read from the environment by the exporter itself.
    Raises UsageError when the packages are missing or the exporter refuses its settings.
    """
    environment = os.environ if environment is None else environment
    source = configured_endpoint(flag, environment)
    if source is None:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise UsageError(
            f"{source}: spans need a package that is missing ({error.name}); allowed: with pip install 'runtime[trace]'"
        ) from error
    name = environment.get("OTEL_SERVICE_NAME") or "runtime"
    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=flag)))
    return Tracing(provider, model)

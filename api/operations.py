"""What operators and their tools ask: whether the server is well, how loaded it is, what it is, what it counts.

Also what they order: empty prefix caches, and a profile of the device. The composition root hands in what these need;
without it there is a server that counts, but has nothing to empty and nothing to profile.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import anyio.to_thread
import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from actors.client import CacheClient
from actors.messages import ErrorInfo, WorkerStatus
from actors.telemetry import WorkerLoad
from api.bodies import decode_small, read_small
from api.errors import error_body
from api.health import health_body, worker_body
from api.metrics import CONTENT_TYPE, Metrics, kv_usage
from api.model import ApiSettings, Readiness
from api.reply import json_response
from api.tracing import Tracing
from runtime import __version__
from runtime.errors import RequestError


class Profiler(Protocol):
    """Who can write a profile. Both calls block for a while, and raise RequestError when they cannot be done now."""

    def start(self) -> str:
        """Begins a profile; returns the folder that it goes to."""
        ...

    def stop(self) -> str:
        """Ends and writes it; returns the folder."""
        ...


class Operations(msgspec.Struct, frozen=True, kw_only=True):
    """What the routes here need. `info` is what `/server_info` says beside the version.

    Where there is no profiler, `no_profiler` says why.
    """

    metrics: Metrics
    tracing: Tracing | None = None
    info: Mapping[str, Any] = {}
    caches: CacheClient | None = None
    profiler: Profiler | None = None
    no_profiler: str = "profiles are not configured: the server was started without --profile-dir"


def operations_routes(
    operations: Operations, readiness: Callable[[], Readiness], settings: ApiSettings, engine: str
) -> list[BaseRoute]:
    """All routes of this module."""
    return [
        *_probes(readiness, engine),
        *_reports(operations, readiness),
        *_orders(operations, settings),
    ]


def _probes(readiness: Callable[[], Readiness], engine: str) -> list[BaseRoute]:
    async def health(request: Request) -> Response:
        state = readiness()
        return json_response(health_body(state), status=200 if state.is_well else 503)

    async def ready(request: Request) -> Response:
        state = readiness()
        return json_response(health_body(state), status=200 if state.is_open else 503)

    async def live(request: Request) -> Response:
        return json_response({"status": "live"})

    async def version(request: Request) -> Response:
        return json_response({"version": __version__, "engine": engine})

    return [Route("/health", health), Route("/ready", ready), Route("/live", live), Route("/version", version)]


def _reports(operations: Operations, readiness: Callable[[], Readiness]) -> list[BaseRoute]:
    metrics = operations.metrics

    async def scrape(request: Request) -> Response:
        text = await anyio.to_thread.run_sync(metrics.snapshot().render)
        return Response(text, headers={"content-type": CONTENT_TYPE})

    async def load(request: Request) -> Response:
        return json_response(load_body(metrics, readiness().workers))

    async def server_info(request: Request) -> Response:
        return json_response({"version": __version__, **operations.info})

    return [Route("/metrics", scrape), Route("/load", load), Route("/server_info", server_info)]


def load_body(metrics: Metrics, workers: tuple[WorkerStatus, ...]) -> dict[str, Any]:
    """The answer of `/load`: groups of choices as the scheduler has them, and each worker's pool."""
    running, waiting = int(metrics.running.values[()]), int(metrics.waiting.values[()])
    return {
        "server_load": running + waiting,
        "running": running,
        "waiting": waiting,
        "workers": {worker.name: _worker_load(worker, metrics.loads.get(worker.name)) for worker in workers},
    }


def _worker_load(worker: WorkerStatus, load: WorkerLoad | None) -> dict[str, Any]:
    if load is None:
        return worker_body(worker)
    return worker_body(worker) | {
        "running": load.running,
        "leased": load.leases,
        "prefilling": load.prefills,
        "queued_prefill_tokens": load.queued_prefill_tokens,
        "kv_usage": kv_usage(load),
        "kv_pages": {"used": load.used_pages, "cached": load.cached_pages, "free": load.free_pages},
    }


def _orders(operations: Operations, settings: ApiSettings) -> list[BaseRoute]:
    async def reset_caches(request: Request) -> Response:
        await _no_fields(request, settings)
        if operations.caches is None:
            raise RequestError("there are no prefix caches here", status=404, code="no_cache")
        pages = await operations.caches.forget_prefixes()
        if all(count is None for count in pages.values()):
            error = ErrorInfo(status=503, message="No worker answers.", code="overloaded", retry_after_s=5)
            return json_response(error_body(error), status=503, headers={"retry-after": "5"})
        return json_response({"pages": sum(count or 0 for count in pages.values()), "workers": pages})

    async def start_profile(request: Request) -> Response:
        await _no_fields(request, settings)
        return json_response(
            {"profile": "started", "folder": await anyio.to_thread.run_sync(_profiler(operations).start)}
        )

    async def stop_profile(request: Request) -> Response:
        await _no_fields(request, settings)
        return json_response(
            {"profile": "written", "folder": await anyio.to_thread.run_sync(_profiler(operations).stop)}
        )

    return [
        Route("/reset_prefix_cache", reset_caches, methods=["POST"]),
        Route("/flush_cache", reset_caches, methods=["POST"], name="flush_cache"),
        Route("/start_profile", start_profile, methods=["POST"]),
        Route("/stop_profile", stop_profile, methods=["POST"]),
    ]


def _profiler(operations: Operations) -> Profiler:
    if operations.profiler is None:
        raise RequestError(operations.no_profiler, code="no_profiler")
    return operations.profiler


async def _no_fields(request: Request, settings: ApiSettings) -> None:
    """These orders have no parameters: one that a client sends is refused, not ignored."""
    data = await read_small(request.receive, settings)
    for name in decode_small(data, dict[str, msgspec.Raw]) if data else ():
        raise RequestError(f"{name[:100]}: this route takes no parameters", param=name[:100])

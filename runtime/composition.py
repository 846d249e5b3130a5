"""The composition root: from a plan to a running server. The only module that knows all layers.

`load` does the slow part (devices, tokenizer, weights, engines, compiled programs) and runs in a thread; `service`
starts the actors and the HTTP application around the loaded engines.
"""

import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import anyio.to_thread
import msgspec
from starlette.types import ASGIApp

from actors.messages import ErrorInfo
from actors.system import System, running_system
from actors.wiring import SystemOptions
from actors.worker import WorkerOptions
from api.admin import Admin
from api.app import create_app
from api.health import readiness_of
from api.metrics import Metrics, MetricsOptions
from api.model import ApiSettings, Readiness, ServedModel, draw_os_seed
from api.operations import Operations
from api.parsers.forms import choose_forms
from api.tracing import Tracing, otlp_tracing
from runtime import __version__
from runtime.chaos.campaign import Chaos
from runtime.chaos.engine import ChaosEngine
from runtime.chaos.mover import ChaosMover, Corrupt
from runtime.chaos.spec import SpecError
from runtime.cli.console import Report
from runtime.cli.flag_table import SETTINGS_FLAGS
from runtime.constraints import HostConstraints
from runtime.devices import check_fits, choose_platform, find_devices
from runtime.emulated.draws import Draws, drawable_ids
from runtime.emulated.engine import EmulatedEngine
from runtime.emulated.mover import EmulatedMover
from runtime.emulated.setup import Emulation
from runtime.emulated.timeline import Clock
from runtime.engine import Engine, KvChunk, KvMover
from runtime.errors import UsageError
from runtime.folder_code import model_code, tokenizer_code
from runtime.plan import Plan
from runtime.profiler import JaxProfiler
from runtime.settings import Settings
from runtime.text_stream import TextStream
from runtime.tokens import Tokenizer
from runtime.topology import Topology, default_topology


class Loaded(msgspec.Struct, frozen=True, kw_only=True):
    """Warm engines by slice name, and everything that the services around them need.

    `compiles` counts compilations since all of them were warm.
    """

    plan: Plan
    topology: Topology
    tokenizer: Tokenizer
    engines: Mapping[str, Engine]
    mover: KvMover
    compiles: Callable[[], int] = lambda: 0
    tracing: Tracing | None = None
    chaos: Chaos | None = None


class Service(msgspec.Struct, frozen=True, kw_only=True):
    """A running server: its HTTP application, how to drain it (False when time ran out), and a wait for its failure.

    `begin_chaos` begins what `--chaos` orders, if it does.
    """

    app: ASGIApp
    drain: Callable[[float], Awaitable[bool]]
    until_failure: Callable[[], Awaitable[ErrorInfo]]
    begin_chaos: Callable[[], None]


def load(plan: Plan, report: Report) -> Loaded:
    """Builds and warms one engine per slice. Raises UsageError."""
    tracing = otlp_tracing(plan.settings.otlp_traces_endpoint, plan.name)
    loaded = _load_jax(plan, report) if plan.emulation is None else _load_emulated(plan, plan.emulation, report)
    loaded = msgspec.structs.replace(loaded, tracing=tracing)
    return _with_chaos(loaded, report) if plan.settings.allows_chaos else loaded


def _with_chaos(loaded: Loaded, report: Report) -> Loaded:
    """Engines and mover that fail on order; nothing is ordered yet, unless by --chaos. Raises UsageError."""
    settings, emulated = loaded.plan.settings, loaded.plan.emulation is not None
    chaos = Chaos(loaded.topology, settings.random_seed, verifies_kv=settings.verify_kv, has_kv=not emulated)
    if settings.chaos is not None:
        try:
            chaos.check(settings.chaos)
        except SpecError as error:
            raise UsageError(f"--chaos {error}") from error
        report.line(f"CHAOS IS ON, from the first request on: {settings.chaos}", style="bold red")
    engines = {name: ChaosEngine(name, engine, chaos) for name, engine in loaded.engines.items()}
    mover = ChaosMover(loaded.mover, chaos, _leave_alone if emulated else _flip_bit())
    return msgspec.structs.replace(loaded, engines=engines, mover=mover, chaos=chaos)


def _flip_bit() -> Corrupt:
    from runtime.chaos.corrupt import corrupt

    return corrupt


def _leave_alone(chunk: KvChunk, draw_below: Callable[[int], int]) -> KvChunk:
    return chunk


def _load_jax(plan: Plan, report: Report) -> Loaded:
    """Engines on devices. jax is imported here and not before."""
    wanted = plan.settings.parsed_topology()
    platform = choose_platform(plan.settings.device, wanted, plan.settings.tp_size)

    from runtime.compile_cache import enable_compile_cache
    from runtime.kv_mover import DevicePutMover
    from runtime.slices import Slices

    devices = find_devices(platform)
    topology = wanted or default_topology(len(devices), plan.settings.tp_size)
    check_fits(topology, len(devices), platform)
    tokenizer = _tokenizer(plan, report)
    report.line(f"Model {plan.name} ({plan.config.architecture}, {plan.config.dtype}) from {plan.folder}")
    report.table([("compile cache", str(enable_compile_cache()))])
    slices = Slices(plan=plan, topology=topology, devices=tuple(devices), platform=platform)
    engines = slices.build(report)
    mover = DevicePutMover({name: engine.placement.chunk for name, engine in engines.items()}, plan.config.num_kv_heads)
    return Loaded(
        plan=plan,
        topology=topology,
        tokenizer=tokenizer,
        engines=engines,
        mover=mover,
        compiles=lambda: max(engine.compiles_since_warm_up() for engine in engines.values()),
    )


def _load_emulated(plan: Plan, emulation: Emulation, report: Report) -> Loaded:
    """Engines on nothing but a step-time table; jax is not imported at all."""
    tokenizer = _tokenizer(plan, report)
    table = emulation.table
    spec = plan.spec(table.platform, num_pages=emulation.num_pages, page_bytes=emulation.page_bytes)
    report.line(f"EMULATED: no model is computed; tokens are random, times are {table.source}", style="bold yellow")
    report.table(
        [
            ("EMULATED model", f"{table.model}, {table.dtype}, on {table.platform}"),
            (f"{table.source} by", table.how),
            ("tokenizer", f"{plan.name} from {plan.folder}"),
            ("each slice", f"{spec.usable_pages} KV pages of {spec.page_size} tokens, {spec.num_rows} rows"),
        ]
    )
    clock, draws = Clock(), Draws(drawable_ids(tokenizer, plan.config.vocab_size))
    engines = {
        part.name: EmulatedEngine(spec, table, draws, role=part.role, clock=clock) for part in emulation.topology.slices
    }
    mover = EmulatedMover(table.transfer, clock)
    return Loaded(plan=plan, topology=emulation.topology, tokenizer=tokenizer, engines=engines, mover=mover)


@contextlib.asynccontextmanager
async def service(loaded: Loaded) -> AsyncIterator[Service]:
    """Actors and application around the engines, until the context is left."""
    settings = loaded.plan.settings
    metrics = Metrics(_metrics_options(loaded))
    options = SystemOptions(
        max_queued=settings.max_queued_requests,
        decode_reserve_tokens=settings.decode_reserve_tokens,
        prefix_cache=not settings.disable_radix_cache,
        worker=WorkerOptions(verify_kv=settings.verify_kv),
        telemetry=metrics,
    )
    make_text = partial(TextStream, loaded.tokenizer)
    constraints = await anyio.to_thread.run_sync(HostConstraints, loaded.tokenizer, loaded.plan.config.vocab_size)
    async with running_system(
        loaded.engines, loaded.topology, loaded.mover, make_text, options, constraints=constraints
    ) as system:
        gate = _Gate(system)
        app = create_app(
            _served_model(loaded, constraints),
            system.client,
            gate.readiness,
            _api_settings(settings),
            _admin(loaded, system),
            _operations(loaded, metrics, system),
        )
        try:
            yield Service(
                app=app, drain=gate.drain, until_failure=system.until_failure, begin_chaos=partial(_begin_chaos, loaded)
            )
        finally:
            if loaded.tracing is not None:
                with anyio.CancelScope(shield=True):
                    await anyio.to_thread.run_sync(loaded.tracing.shutdown)


def _metrics_options(loaded: Loaded) -> MetricsOptions:
    plan = loaded.plan
    spec = next(iter(loaded.engines.values())).spec
    info = {"version": __version__, "model": plan.name, "engine": plan.engine, "topology": str(loaded.topology)}
    return MetricsOptions(
        model=plan.name, info=info, page_size=spec.page_size, page_bytes=spec.page_bytes, compiles=loaded.compiles
    )


def _operations(loaded: Loaded, metrics: Metrics, system: System) -> Operations:
    settings, emulated = loaded.plan.settings, loaded.plan.emulation is not None
    operations = Operations(metrics=metrics, tracing=loaded.tracing, info=_server_info(loaded), caches=system)
    if emulated:
        return msgspec.structs.replace(operations, no_profiler="an emulated engine has no device to profile")
    if settings.profile_dir is None:
        return operations
    return msgspec.structs.replace(operations, profiler=JaxProfiler(Path(settings.profile_dir)))


def _server_info(loaded: Loaded) -> dict[str, Any]:
    """What `/server_info` tells: what was made of the flags, and the flags themselves without those that are secret."""
    plan = loaded.plan
    return {
        "model": plan.name,
        "engine": plan.engine,
        "dtype": plan.config.dtype,
        "topology": str(loaded.topology),
        "max_model_len": plan.max_context_tokens,
        "workers": {name: _sizes(engine) for name, engine in loaded.engines.items()},
        "flags": {
            flag.key: getattr(plan.settings, flag.field)
            for flag in SETTINGS_FLAGS
            if flag.field is not None and not flag.is_secret
        },
    }


def _sizes(engine: Engine) -> dict[str, int]:
    spec = engine.spec
    return {
        "page_size": spec.page_size,
        "kv_pages": spec.usable_pages,
        "max_running_requests": spec.num_rows,
        "chunked_prefill_size": spec.chunk_tokens,
    }


def _admin(loaded: Loaded, system: System) -> Admin | None:
    key = loaded.plan.settings.admin_key
    return None if key is None else Admin(key=key, client=system, workers=system.workers, chaos=loaded.chaos)


def _begin_chaos(loaded: Loaded) -> None:
    spec = loaded.plan.settings.chaos
    if loaded.chaos is not None and spec is not None:
        loaded.chaos.begin(spec)


class _Gate:
    """Whether the running system takes requests, for `/health` and for the edge."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._draining = False

    def readiness(self) -> Readiness:
        if self._system.failure is not None:
            return Readiness(state="draining", detail=self._system.failure.message)
        return Readiness(state="draining") if self._draining else readiness_of(self._system.workers())

    async def drain(self, timeout_s: float) -> bool:
        self._draining = True
        if await self._system.drain(timeout_s):
            return True
        message = "The server is shutting down and the request ran out of time."
        self._system.fail(ErrorInfo(status=503, message=message, code="shutting_down", retry_after_s=30))
        return False


def _tokenizer(plan: Plan, report: Report) -> Tokenizer:
    """The folder's tokenizer; says what becomes of code that the folder names."""
    trusted = plan.settings.trust_remote_code
    if (code := model_code(plan.folder)) is not None:
        report.line(f"Not run: model code that config.json names ({code}); the model is computed by runtime's own.")
    if trusted and (code := tokenizer_code(plan.folder)) is not None:
        report.line(f"Running code of the model folder for its tokenizer: {code}")
    return Tokenizer.load(plan.folder, trust_remote_code=trusted)


def _served_model(loaded: Loaded, constraints: HostConstraints) -> ServedModel:
    plan = loaded.plan
    specs = [engine.spec for engine in loaded.engines.values()]
    return ServedModel(
        names=(plan.name,),
        tokenizer=loaded.tokenizer,
        max_context_tokens=plan.max_context_tokens,
        max_request_tokens=min(spec.usable_pages * spec.page_size for spec in specs),
        max_choices=min(spec.num_rows for spec in specs),
        max_answers=plan.settings.max_answers,
        vocab_size=plan.config.vocab_size,
        eos_token_ids=plan.config.eos_token_ids,
        created=int(time.time()),
        defaults=plan.generation,
        check_grammar=constraints.check_grammar,
        draw_seed=seed_source(plan.settings.random_seed),
        engine=plan.engine,
        forms=choose_forms(plan.settings.tool_call_parser, plan.settings.reasoning_parser, loaded.tokenizer),
    )


def seed_source(seed: int | None) -> Callable[[], int]:
    """Where seeds of requests without one come from: a reproducible sequence, or the operating system."""
    return draw_os_seed if seed is None else partial(Random(seed).getrandbits, 63)


def _api_settings(settings: Settings) -> ApiSettings:
    return ApiSettings(
        api_keys=settings.api_keys,
        cors_origins=settings.cors_origins,
        max_body_bytes=settings.max_body_bytes,
        queue_timeout_s=settings.queue_timeout_s,
        progress_timeout_s=settings.progress_timeout_s,
        response_store_size=settings.response_store_size,
        response_store_bytes=settings.response_store_bytes,
        response_store_age_s=settings.response_store_age_s,
    )

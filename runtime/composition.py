"""The composition root: from settings to a running server. The only module that knows all layers.

`plan` reads what can be read without jax, `load` does the slow part (devices, tokenizer, weights, engines, compiled
programs) and runs in a thread, `service` starts the actors and the HTTP application around the loaded engines.
"""

import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.types import ASGIApp

from actors.system import RunningSystem, SystemOptions, running_system
from api.app import create_app
from api.model import ApiSettings, GenerationDefaults, Readiness, ServedModel, draw_os_seed
from runtime.cli.console import Report, human_bytes
from runtime.demo import MODEL_DIR
from runtime.devices import check_fits, choose_platform, find_devices, free_host_bytes
from runtime.engine import EngineSpec
from runtime.errors import UsageError
from runtime.model_config import ModelConfig, load_generation_defaults, load_model_config
from runtime.settings import DEMO_NAME, Platform, Settings
from runtime.tokens import Tokenizer
from runtime.topology import Slice, Topology, default_topology

if TYPE_CHECKING:
    import jax

    from runtime.jax_engine import JaxEngine

MAX_PREFILL_SEGMENTS = 16
"""Prompts that one prefill step may touch."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is known before anything slow is done."""

    settings: Settings
    folder: Path
    name: str
    config: ModelConfig
    generation: GenerationDefaults
    max_context_tokens: int


class Loaded(msgspec.Struct, frozen=True, kw_only=True):
    """Warm engines by slice name, and everything that the services around them need."""

    plan: Plan
    topology: Topology
    tokenizer: Tokenizer
    engines: Mapping[str, "JaxEngine"]

    @property
    def name(self) -> str:
        """The name that clients send as `model`."""
        return self.plan.name


class Service(msgspec.Struct, frozen=True, kw_only=True):
    """A running server: its HTTP application, and how to drain it (False when time ran out)."""

    app: ASGIApp
    drain: Callable[[float], Awaitable[bool]]


def plan(settings: Settings) -> Plan:
    """Reads the model folder's descriptions. Raises UsageError."""
    folder = MODEL_DIR if settings.model is None else Path(settings.model).expanduser()
    if not folder.is_dir():
        raise UsageError(f"--model {str(folder)!r}: no such folder; allowed: a local model folder, not a hub name")
    config = load_model_config(folder)
    if settings.dtype != "auto":
        config = msgspec.structs.replace(config, dtype=settings.dtype)
    limit = config.max_position_embeddings
    if settings.context_length is not None and settings.context_length > limit:
        raise UsageError(f"--context-length {settings.context_length}: allowed: at most the model's {limit} tokens")
    default_name = DEMO_NAME if settings.model is None else folder.resolve().name
    stated = msgspec.structs.asdict(load_generation_defaults(folder))
    return Plan(
        settings=settings,
        folder=folder,
        name=settings.served_model_name or default_name,
        config=config,
        generation=GenerationDefaults(**{key: value for key, value in stated.items() if value is not None}),
        max_context_tokens=settings.context_length or limit,
    )


def load(plan: Plan, report: Report) -> Loaded:
    """Builds and warms one engine per slice. Raises UsageError."""
    settings = plan.settings
    platform = choose_platform(settings.device, settings.parsed_topology())
    devices = find_devices(platform)
    topology = settings.parsed_topology() or default_topology(len(devices))
    check_fits(topology, len(devices), platform)
    tokenizer = Tokenizer.load(plan.folder)

    from runtime.compile_cache import enable_compile_cache

    cache_dir = enable_compile_cache()
    report.line(f"Model {plan.name} ({plan.config.architecture}, {plan.config.dtype}) from {plan.folder}")
    weights = _load_weights(plan, topology, devices, report)
    engines = _make_engines(plan, topology, devices, platform, weights)
    report.table(
        [(part.name, _described(part, devices, engines[part.name].spec)) for part in topology.slices]
        + [("compile cache", str(cache_dir))]
    )
    _warm_up(engines, report)
    return Loaded(plan=plan, topology=topology, tokenizer=tokenizer, engines=engines)


@contextlib.asynccontextmanager
async def service(loaded: Loaded) -> AsyncIterator[Service]:
    """Actors and application around the engines, until the context is left."""
    from runtime.kv_mover import DevicePutMover

    settings = loaded.plan.settings
    readiness = _Readiness()
    mover = DevicePutMover({name: engine.placement.chunk for name, engine in loaded.engines.items()})
    options = SystemOptions(
        max_queued=settings.max_queued_requests, decode_reserve_tokens=settings.decode_reserve_tokens
    )
    async with running_system(loaded.engines, loaded.topology, mover, options) as system:
        app = create_app(_served_model(loaded), system.client, readiness, _api_settings(settings))

        async def drain(timeout_s: float) -> bool:
            readiness.state = "draining"
            return await system.drain(timeout_s)

        yield Service(app=app, drain=drain)


class _Readiness:
    """What `/health` says once there is an application."""

    def __init__(self) -> None:
        self.state: str = "ready"

    def __call__(self) -> Readiness:
        return Readiness(state=self.state)


def _described(part: Slice, devices: "list[jax.Device]", spec: EngineSpec) -> str:
    where = ", ".join(str(devices[index]) for index in part.devices)
    pages = f"{spec.usable_pages} KV pages of {spec.page_size} tokens, {human_bytes(spec.num_pages * spec.page_bytes)}"
    return f"{where}: {pages}, {spec.num_rows} rows"

"""The composition root: from settings to a running server. The only module that knows all layers.

`plan` reads what can be read without jax, `load` does the slow part (devices, tokenizer, weights, engines, compiled
programs) and runs in a thread, `service` starts the actors and the HTTP application around the loaded engines.
"""

import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.types import ASGIApp

from actors.system import System, running_system
from actors.wiring import SystemOptions
from api.app import create_app
from api.model import ApiSettings, GenerationDefaults, Readiness, ServedModel, draw_os_seed
from runtime.cli.console import Advance, Report, human_bytes
from runtime.demo import MODEL_DIR
from runtime.devices import check_fits, choose_platform, find_devices, free_host_bytes
from runtime.engine import EngineSpec
from runtime.errors import UsageError
from runtime.model_config import ModelConfig, load_generation_defaults, load_model_config
from runtime.settings import DEMO_NAME, Platform, Settings
from runtime.text_stream import TextStream
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
    with _memory_told():
        engines = _make_engines(plan, topology, devices, platform, report)
    report.table(
        [(part.name, _described(part, devices, engines[part.name].spec)) for part in topology.slices]
        + [("compile cache", str(cache_dir))]
    )
    with _memory_told():
        _warm_up(engines, report)
    return Loaded(plan=plan, topology=topology, tokenizer=tokenizer, engines=engines)


@contextlib.asynccontextmanager
async def service(loaded: Loaded) -> AsyncIterator[Service]:
    """Actors and application around the engines, until the context is left."""
    from runtime.kv_mover import DevicePutMover

    settings = loaded.plan.settings
    mover = DevicePutMover({name: engine.placement.chunk for name, engine in loaded.engines.items()})
    options = SystemOptions(
        max_queued=settings.max_queued_requests,
        decode_reserve_tokens=settings.decode_reserve_tokens,
    )
    make_text = partial(_text_stream, loaded.tokenizer)
    async with running_system(loaded.engines, loaded.topology, mover, make_text, options) as system:
        gate = _Gate(system)
        app = create_app(_served_model(loaded), system.client, gate.readiness, _api_settings(settings))
        yield Service(app=app, drain=gate.drain)


class _Gate:
    """Whether the running system takes requests, for `/health` and for the edge."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._draining = False

    def readiness(self) -> Readiness:
        if self._system.failure is not None:
            return Readiness(state="draining", detail=self._system.failure)
        return Readiness(state="draining" if self._draining else "ready")

    async def drain(self, timeout_s: float) -> bool:
        self._draining = True
        if await self._system.drain(timeout_s):
            return True
        self._system.fail("the server is shutting down and this request ran out of time")
        return False


def _text_stream(tokenizer: Tokenizer, stop: tuple[str, ...], min_tokens: int) -> TextStream:
    return TextStream(tokenizer, stop)


def _load_weights(plan: Plan, topology: Topology, devices: "list[jax.Device]", report: Report) -> dict[str, Any]:
    """Each slice's own copy of the weights; the files are read once."""
    from runtime.placement import Placement
    from runtime.weights import load_weights, place

    targets = {part.name: Placement([devices[index] for index in part.devices]).replicated for part in topology.slices}
    names = list(targets)
    with report.progress("loading weights", "bytes") as advance:
        first = load_weights(plan.folder, plan.config, plan.config.dtype, targets[names[0]], advance)
    return {names[0]: first} | {name: place(first, targets[name]) for name in names[1:]}


def _make_engines(
    plan: Plan, topology: Topology, devices: "list[jax.Device]", platform: Platform, report: Report
) -> "dict[str, JaxEngine]":
    """One engine per slice. The pools take what memory the weights leave, and are alike on all slices."""
    from runtime.jax_engine import JaxEngine

    params = _load_weights(plan, topology, devices, report)
    num_pages = min(_num_pages(plan, topology, devices[part.devices[0]], platform) for part in topology.slices)
    spec = _spec(plan, platform, num_pages)
    return {
        part.name: JaxEngine(
            plan.config,
            params[part.name],
            spec,
            role=part.role,
            devices=[devices[index] for index in part.devices],
            use_sort=plan.settings.use_sort_for_toppk_minp,
        )
        for part in topology.slices
    }


def _num_pages(plan: Plan, topology: Topology, device: "jax.Device", platform: Platform) -> int:
    from runtime.kv_cache import DEFAULT_MEM_FRACTION, pages_that_fit, pool_shape

    settings = plan.settings
    if settings.num_pages is not None:
        return settings.num_pages
    sizes = settings.sizes_for(platform)
    fraction, max_bytes = settings.mem_fraction_static, None
    if platform == "cpu" and fraction is not None:
        max_bytes = int(fraction * free_host_bytes()) // len(topology.slices)
    return pages_that_fit(
        pool_shape(plan.config, sizes.page_size, platform),
        device,
        num_rows=sizes.max_running_requests,
        max_context_tokens=plan.max_context_tokens,
        mem_fraction=fraction or DEFAULT_MEM_FRACTION,
        max_pool_bytes=max_bytes,
    )


def _spec(plan: Plan, platform: Platform, num_pages: int) -> EngineSpec:
    from runtime.kv_cache import pool_shape

    sizes = plan.settings.sizes_for(platform)
    return EngineSpec(
        page_size=sizes.page_size,
        num_pages=num_pages,
        num_rows=sizes.max_running_requests,
        max_context_tokens=plan.max_context_tokens,
        vocab_size=plan.config.vocab_size,
        chunk_tokens=sizes.chunked_prefill_size,
        max_prefill_segments=MAX_PREFILL_SEGMENTS,
        page_bytes=pool_shape(plan.config, sizes.page_size, platform).page_bytes,
    )


@contextlib.contextmanager
def _memory_told() -> Iterator[None]:
    """A device that has too little memory is the operator's to know, in one line."""
    import jax

    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        if "RESOURCE_EXHAUSTED" not in reason:
            raise
        raise UsageError(f"weights and KV do not fit: {reason}; allowed: fewer --num-pages or rows") from error


def _warm_up(engines: "Mapping[str, JaxEngine]", report: Report) -> None:
    for name, engine in engines.items():
        with report.progress(f"compiling {name}", "programs") as advance:
            engine.warm_up(partial(_advance, advance))


def _advance(advance: Advance, label: str, done: int, total: int) -> None:
    advance(done, total)


def _served_model(loaded: Loaded) -> ServedModel:
    plan, settings = loaded.plan, loaded.plan.settings
    smallest = min(engine.spec.usable_pages * engine.spec.page_size for engine in loaded.engines.values())
    draw = draw_os_seed if settings.random_seed is None else partial(Random(settings.random_seed).getrandbits, 63)
    return ServedModel(
        names=(plan.name,),
        tokenizer=loaded.tokenizer,
        max_context_tokens=plan.max_context_tokens,
        max_request_tokens=smallest,
        vocab_size=plan.config.vocab_size,
        eos_token_ids=plan.config.eos_token_ids,
        created=int(time.time()),
        defaults=plan.generation,
        draw_seed=draw,
    )


def _api_settings(settings: Settings) -> ApiSettings:
    return ApiSettings(
        api_keys=settings.api_keys,
        queue_timeout_s=settings.queue_timeout_s,
        progress_timeout_s=settings.progress_timeout_s,
    )


def _described(part: Slice, devices: "list[jax.Device]", spec: EngineSpec) -> str:
    where = ", ".join(str(devices[index]) for index in part.devices)
    size = human_bytes(spec.num_pages * spec.page_bytes)
    return f"{where}: {spec.usable_pages} KV pages of {spec.page_size} tokens ({size}), {spec.num_rows} rows"

"""Compiles the programs of a topology's slices for devices that are not there. jax is imported from here on."""

import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from typing import Any

import jax
import msgspec

from runtime.attention_backend import choose_backend
from runtime.cli.console import Report
from runtime.compile.memory import Need, Static, plan_static
from runtime.compile.outcome import ProgramOutcome, SliceOutcome
from runtime.device_state import RowWriter
from runtime.engine_programs import INIT, EngineParts, build_programs, engine_parts
from runtime.kv_cache import DEFAULT_MEM_FRACTION, pool_shape
from runtime.kv_mover import chunk_heads_of
from runtime.model_config import ModelConfig
from runtime.placement import Placement
from runtime.plan import context_tokens, engine_spec
from runtime.programs import Key, Programs
from runtime.settings import Settings
from runtime.topology import Role, Slice, Topology
from runtime.weights import params_struct

_COMPILE_THREADS = 2


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What to compile for what. `hbm_bytes` is the memory of one device; `devices` are the target's."""

    settings: Settings
    config: ModelConfig
    topology: Topology
    devices: tuple[jax.Device, ...]
    hbm_bytes: int


def compile_slices(request: Request, report: Report) -> tuple[SliceOutcome, ...]:
    """One outcome per role and TP, in the topology's order; slices that are alike run the same programs.

    A slice whose weights and smallest pool do not fit is not compiled. Raises UsageError for kernels that do not cover
    the model.
    """
    alike: dict[tuple[Role, int], list[Slice]] = {}
    for part in request.topology.slices:
        alike.setdefault((part.role, len(part.devices)), []).append(part)
    return tuple(_compile_alike(request, parts, report) for parts in alike.values())


def _compile_alike(request: Request, parts: Sequence[Slice], report: Report) -> SliceOutcome:
    settings, config, first = request.settings, request.config, parts[0]
    sizes, tp = settings.sizes_for("tpu"), len(first.devices)
    kernels, reason = choose_backend(settings.attention_backend, "tpu", config, sizes.page_size, tp)
    placement = Placement([request.devices[index] for index in first.devices])
    params = params_struct(config, placement)
    pool = pool_shape(config, sizes.page_size, "tpu", tp, kernels=kernels != "xla")
    static = plan_static(
        pool,
        weights_bytes=_bytes_per_device(params),
        hbm_bytes=request.hbm_bytes,
        mem_fraction=settings.mem_fraction_static or DEFAULT_MEM_FRACTION,
        num_devices=tp,
        num_pages=settings.num_pages,
        num_rows=sizes.max_running_requests,
        max_context_tokens=context_tokens(settings, config),
    )
    programs: tuple[ProgramOutcome, ...] = ()
    need = None
    if not static.missing_bytes:
        engine = engine_parts(
            config,
            params,
            engine_spec(settings, config, "tpu", num_pages=static.num_pages, page_bytes=pool.page_bytes),
            role=first.role,
            devices=placement.devices,
            use_sort=settings.use_sort_for_toppk_minp,
            kernels=kernels,
            chunk_heads=chunk_heads_of(config.num_kv_heads, _widths(request.topology)),
            checksums=settings.verify_kv,
        )
        programs = _compile_programs(engine, f"compiling {first.role}", report)
        need = _need(static, engine, programs)
    return SliceOutcome(
        role=first.role,
        names=tuple(part.name for part in parts),
        tp=tp,
        attention=f"{kernels} ({reason})" if reason else kernels,
        page_size=sizes.page_size,
        num_rows=sizes.max_running_requests,
        static=static,
        programs=programs,
        need=need,
    )


def _compile_programs(engine: EngineParts, label: str, report: Report) -> tuple[ProgramOutcome, ...]:
    writer = RowWriter(engine.spec.num_rows, engine.table_width, engine.spec.vocab_size)
    programs = build_programs(engine, writer)
    outcomes: dict[Key, ProgramOutcome] = {}
    with report.progress(label, "programs") as advance, ThreadPoolExecutor(_COMPILE_THREADS) as threads:
        futures: Mapping[Future[ProgramOutcome], Key] = {
            threads.submit(_compile_one, programs, key): key for key in programs
        }
        for future in as_completed(futures):
            outcomes[futures[future]] = future.result()
            advance(len(outcomes), len(programs))
    return tuple(outcomes[key] for key in programs)


def _compile_one(programs: Programs, key: Key) -> ProgramOutcome:
    started = time.perf_counter()
    try:
        memory: Any = programs.compiled(key).memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        return ProgramOutcome(name=str(key), compile_s=time.perf_counter() - started, error=_one_line(error))
    return ProgramOutcome(
        name=str(key),
        compile_s=time.perf_counter() - started,
        argument_bytes=memory.argument_size_in_bytes,
        output_bytes=memory.output_size_in_bytes,
        alias_bytes=memory.alias_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        code_bytes=memory.generated_code_size_in_bytes,
    )


def _need(static: Static, engine: EngineParts, programs: Sequence[ProgramOutcome]) -> Need:
    """The program that makes pool and rows needs nothing beside them."""
    _, rows = engine.state_shapes
    return Need(
        static=static,
        rows_bytes=_bytes_per_device(rows),
        code_bytes=sum(program.code_bytes for program in programs),
        temporary_bytes=max((each.extra_bytes for each in programs if each.name != str(INIT)), default=0),
    )


def _bytes_per_device(tree: Any) -> int:
    """Bytes that one device holds of arrays given as shapes with shardings."""
    sizes = (leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in jax.tree.leaves(tree))
    return sum(sizes)


def _widths(topology: Topology) -> frozenset[int]:
    return frozenset(len(part.devices) for part in topology.slices)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:2000]

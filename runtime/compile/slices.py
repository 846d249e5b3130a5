"""Compiles the programs of a topology's slices for devices that are not there. jax is imported from here on."""

import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from typing import Any, NamedTuple

import jax
import msgspec

from kernels.implementations import Implementation
from runtime.attention_backend import choose_backend
from runtime.buckets import Buckets
from runtime.cli.console import Report
from runtime.compile.memory import Need, Static, plan_static
from runtime.compile.outcome import ProgramOutcome, SliceOutcome
from runtime.compile.step_program import STEP_KINDS, StepProgram, compile_step
from runtime.device_state import RowWriter
from runtime.engine_programs import INIT, EngineParts, build_programs, engine_parts
from runtime.kv_cache import DEFAULT_MEM_FRACTION, PoolShape, pool_shape
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
    """What to compile for what. `hbm_bytes` is the memory of one device; `devices` are the target's.

    With `kept` the step programs are read, and put there by their keys.
    """

    settings: Settings
    config: ModelConfig
    topology: Topology
    devices: tuple[jax.Device, ...]
    hbm_bytes: int
    kept: dict[Key, StepProgram] | None = None


def compile_slices(request: Request, report: Report) -> tuple[SliceOutcome, ...]:
    """One outcome per role and TP, in the topology's order; slices that are alike run the same programs.

    A slice whose weights and smallest pool do not fit is not compiled. Raises UsageError for kernels that do not cover
    the model.
    """
    alike: dict[tuple[Role, int], list[Slice]] = {}
    for part in request.topology.slices:
        alike.setdefault((part.role, len(part.devices)), []).append(part)
    return tuple(_compile_alike(request, parts, report) for parts in alike.values())


def compile_steps(request: Request, buckets: Buckets, report: Report) -> tuple[ProgramOutcome, ...]:
    """Compiles the step programs of these buckets that are not in `request.kept` yet, on one device."""
    planned = _plan(request, 1)
    engine = planned.engine(request, "mixed", request.devices[:1])._replace(buckets=buckets)
    return _compile_programs(engine, "compiling for step times", report, request.kept, skip_others=True)


class _Planned(NamedTuple):
    """What is known of slices of one width before anything is compiled."""

    kernels: Implementation
    reason: str
    pool: PoolShape
    static: Static

    def engine(self, request: Request, role: Role, devices: Sequence[jax.Device]) -> EngineParts:
        """The engine of a slice on these devices."""
        settings, config, placement = request.settings, request.config, Placement(devices)
        return engine_parts(
            config,
            params_struct(config, placement),
            engine_spec(settings, config, "tpu", num_pages=self.static.num_pages, page_bytes=self.pool.page_bytes),
            role=role,
            devices=placement.devices,
            use_sort=settings.use_sort_for_toppk_minp,
            kernels=self.kernels,
            chunk_heads=chunk_heads_of(config.num_kv_heads, _widths(request.topology)),
            checksums=settings.verify_kv,
        )


def _plan(request: Request, tp: int) -> _Planned:
    settings, config = request.settings, request.config
    sizes = settings.sizes_for("tpu")
    kernels, reason = choose_backend(settings.attention_backend, "tpu", config, sizes.page_size, tp)
    pool = pool_shape(config, sizes.page_size, "tpu", tp, kernels=kernels != "xla")
    static = plan_static(
        pool,
        weights_bytes=_bytes_per_device(params_struct(config, Placement(request.devices[:tp]))),
        hbm_bytes=request.hbm_bytes,
        mem_fraction=settings.mem_fraction_static or DEFAULT_MEM_FRACTION,
        num_devices=tp,
        num_pages=settings.num_pages,
        num_rows=sizes.max_running_requests,
        max_context_tokens=context_tokens(settings, config),
    )
    return _Planned(kernels, reason, pool, static)


def _compile_alike(request: Request, parts: Sequence[Slice], report: Report) -> SliceOutcome:
    first = parts[0]
    sizes, tp = request.settings.sizes_for("tpu"), len(first.devices)
    planned = _plan(request, tp)
    programs: tuple[ProgramOutcome, ...] = ()
    need = None
    if not planned.static.missing_bytes:
        engine = planned.engine(request, first.role, [request.devices[index] for index in first.devices])
        programs = _compile_programs(engine, f"compiling {first.role}", report, request.kept)
        need = _need(planned.static, engine, programs)
    return SliceOutcome(
        role=first.role,
        names=tuple(part.name for part in parts),
        tp=tp,
        attention=f"{planned.kernels} ({planned.reason})" if planned.reason else planned.kernels,
        page_size=sizes.page_size,
        num_rows=sizes.max_running_requests,
        static=planned.static,
        programs=programs,
        need=need,
    )


def _compile_programs(
    engine: EngineParts,
    label: str,
    report: Report,
    kept: dict[Key, StepProgram] | None,
    *,
    skip_others: bool = False,
) -> tuple[ProgramOutcome, ...]:
    """With `skip_others` only the step programs that are not kept yet."""
    writer = RowWriter(engine.spec.num_rows, engine.table_width, engine.spec.vocab_size)
    programs = build_programs(engine, writer)
    keys = [key for key in programs if not skip_others or (key.kind in STEP_KINDS and key not in (kept or {}))]
    outcomes: dict[Key, ProgramOutcome] = {}
    with report.progress(label, "programs") as advance, ThreadPoolExecutor(_COMPILE_THREADS) as threads:
        futures: Mapping[Future[ProgramOutcome], Key] = {
            threads.submit(_compile_one, programs, key, kept): key for key in keys
        }
        for future in as_completed(futures):
            outcomes[futures[future]] = future.result()
            advance(len(outcomes), len(keys))
    return tuple(outcomes[key] for key in keys)


def _compile_one(programs: Programs, key: Key, kept: dict[Key, StepProgram] | None) -> ProgramOutcome:
    started = time.perf_counter()
    try:
        if kept is not None and key.kind in STEP_KINDS:
            compiled, kept[key] = compile_step(programs, key)
        else:
            compiled = programs.compiled(key)
        memory: Any = compiled.memory_analysis()
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

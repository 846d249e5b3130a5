"""Measures a step-time table for emulated slices: the real engine's operations, one at a time, on this machine.

A prefill and a decode slice, as a server has them, and a mixed one on the prefill slice's device, with every bucket
that the platform's sizes make. Each cell of a grid is timed on an idle device, from its dispatch until the host has the
result, in rounds over all cells; the first round compiles and is not counted, of the others the median is taken. The
decode pool has the pages of a server's; where a cell needs more, rows share pages, far too many to stay in a cache.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax

from runtime.bench.grid import Grid
from runtime.cli.console import Advance, Report
from runtime.emulated.table import DecodeTimes, Linear, MixedTimes, PrefillTimes, StepTable
from runtime.engine import EngineSpec, PrefillSegment, RowState, Step
from runtime.jax_engine import JaxEngine
from runtime.kv_cache import pages_that_fit, pool_shape
from runtime.kv_mover import DevicePutMover
from runtime.model_config import ModelConfig
from runtime.plan import MAX_PREFILL_SEGMENTS
from runtime.sampling_params import SamplingParams
from runtime.settings import BatchSizes, Platform
from runtime.topology import Role

MIXED_START = 0
MIXED_CONTEXT = 512


class Cell(NamedTuple):
    """One operation: `prepare` is not timed and leaves the device idle, `call` returns when it is done."""

    prepare: Callable[[], object]
    call: Callable[[], object]


class _Slices(NamedTuple):
    """Engines of one model on two devices: prefill and mixed on the first, decode on the second."""

    prefill: JaxEngine
    decode: JaxEngine
    mixed: JaxEngine


def measure_table(
    model: ModelConfig,
    name: str,
    params_on: Callable[[jax.Device], Any],
    devices: Sequence[jax.Device],
    platform: Platform,
    sizes: BatchSizes,
    grid: Grid,
    how: str,
    report: Report,
) -> StepTable:
    """The table of `model` on one device, measured with two. Weights come from `params_on`. Takes minutes."""
    slices = _build(model, params_on, devices, platform, sizes, grid)
    page_size, spec = sizes.page_size, slices.decode.spec
    gather, insert, transfer = _kv(slices, grid, report)
    return StepTable(
        model=name,
        dtype=model.dtype,
        platform=platform,
        source="measured",
        how=how,
        max_context_tokens=grid.max_context_tokens,
        kv_bytes_per_token=spec.page_bytes // page_size,
        pool_tokens=spec.usable_pages * page_size,
        prefill=_prefill(slices, grid, report),
        decode=_decode(slices, grid, report),
        mixed=_mixed(slices, grid, report),
        gather=gather,
        insert=insert,
        transfer=transfer,
    )


def medians(cells: Sequence[Cell], repeats: int, advance: Advance) -> list[float]:
    """Median seconds of each cell over `repeats` rounds, after one that is not counted."""
    times: list[list[float]] = [[] for _ in cells]
    for turn in range(repeats + 1):
        for index, (cell, seconds) in enumerate(zip(cells, times, strict=True)):
            cell.prepare()
            started = time.perf_counter()
            cell.call()
            if turn:
                seconds.append(time.perf_counter() - started)
            advance(turn * len(cells) + index + 1, (repeats + 1) * len(cells))
    return [statistics.median(seconds) for seconds in times]


def fitted(points: Sequence[tuple[int, float]]) -> Linear:
    """The line of least squares through (tokens, seconds), with neither part below 0."""
    mean_x = statistics.mean(x for x, _ in points)
    mean_y = statistics.mean(y for _, y in points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0
    if slope <= 0:
        return Linear(fixed_s=mean_y, per_token_s=0.0)
    fixed = mean_y - slope * mean_x
    if fixed < 0:
        return Linear(fixed_s=0.0, per_token_s=sum(x * y for x, y in points) / sum(x * x for x, _ in points))
    return Linear(fixed_s=fixed, per_token_s=slope)


def _build(
    model: ModelConfig,
    params_on: Callable[[jax.Device], Any],
    devices: Sequence[jax.Device],
    platform: Platform,
    sizes: BatchSizes,
    grid: Grid,
) -> _Slices:
    """Engines with the sizes of a server's; programs are compiled in the round that is not counted."""
    shape = pool_shape(model, sizes.page_size, platform)
    context, num_rows = grid.max_context_tokens, sizes.max_running_requests
    first = params_on(devices[0])
    second = params_on(devices[1])
    fit = pages_that_fit(shape, devices[1], num_rows=num_rows, max_context_tokens=context)
    few = min(fit, -(-(context + sizes.chunk_tokens(context)) // sizes.page_size) + 1)
    some = min(fit, few + num_rows * -(-(MIXED_CONTEXT + 1) // sizes.page_size))

    def engine(role: Role, params: Any, device: jax.Device, num_pages: int) -> JaxEngine:
        spec = EngineSpec(
            page_size=sizes.page_size,
            num_pages=num_pages,
            num_rows=num_rows,
            max_context_tokens=context,
            vocab_size=model.vocab_size,
            chunk_tokens=sizes.chunk_tokens(context),
            max_prefill_segments=MAX_PREFILL_SEGMENTS,
            page_bytes=shape.page_bytes,
        )
        return JaxEngine(model, params, spec, role=role, devices=[device])

    return _Slices(
        prefill=engine("prefill", first, devices[0], few),
        decode=engine("decode", second, devices[1], fit),
        mixed=engine("mixed", first, devices[0], some),
    )


def _prefill(slices: _Slices, grid: Grid, report: Report) -> PrefillTimes:
    """Steps that end a prompt and sample its first token, as most do; a bucket on a slice that has it."""
    owners = dict.fromkeys(slices.mixed.buckets.prefill, slices.mixed) | dict.fromkeys(
        slices.prefill.buckets.prefill, slices.prefill
    )
    tokens = tuple(sorted(owners))
    cells = [
        _step(owners[count], rows=[], step=Step(prefill=(_segment(owners[count], count, start),)))
        for count in tokens
        for start in grid.starts
    ]
    return PrefillTimes(
        tokens=tokens, starts=grid.starts, step_s=_rows(_timed("prefill steps", cells, grid, report), len(grid.starts))
    )


def _decode(slices: _Slices, grid: Grid, report: Report) -> DecodeTimes:
    owners = dict.fromkeys(slices.mixed.buckets.decode, slices.mixed) | dict.fromkeys(
        slices.decode.buckets.decode, slices.decode
    )
    rows = tuple(sorted(owners))
    cells = [
        _step(owners[count], rows=_row_states(owners[count], count, context), step=Step(decode=tuple(range(count))))
        for count in rows
        for context in grid.contexts
    ]
    return DecodeTimes(
        rows=rows, contexts=grid.contexts, step_s=_rows(_timed("decode steps", cells, grid, report), len(grid.contexts))
    )


def _mixed(slices: _Slices, grid: Grid, report: Report) -> MixedTimes:
    engine = slices.mixed
    context = min(MIXED_CONTEXT, grid.max_context_tokens)
    tokens = tuple(dict.fromkeys(count for count, _ in engine.buckets.mixed))
    rows = tuple(dict.fromkeys(count for _, count in engine.buckets.mixed))
    cells = [
        _step(
            engine,
            rows=_row_states(engine, num_rows, context),
            step=Step(prefill=(_segment(engine, num_tokens, MIXED_START),), decode=tuple(range(num_rows))),
        )
        for num_tokens, num_rows in engine.buckets.mixed
    ]
    times = _rows(_timed("mixed steps", cells, grid, report), len(rows))
    return MixedTimes(start=MIXED_START, context=context, tokens=tokens, rows=rows, step_s=times)


def _kv(slices: _Slices, grid: Grid, report: Report) -> tuple[Linear, Linear, Linear]:
    """Packing pages on the one slice, moving them, and writing them on the other."""
    source, target = slices.prefill, slices.decode
    mover = DevicePutMover({"target": target.placement.chunk})
    sizes = source.buckets.gather
    lists = {size: _pages(source, 0, size) for size in sizes}
    gathered = {size: source.gather(lists[size]) for size in sizes}
    source.wait()
    moved = {size: mover.move(chunk, "target") for size, chunk in gathered.items()}

    def gather(size: int) -> object:
        source.gather(lists[size])
        return source.wait()

    def insert(size: int) -> object:
        target.insert(moved[size], range(size), _pages(target, 0, size))
        return target.wait()

    kinds: tuple[tuple[str, Callable[[int], object], JaxEngine], ...] = (
        ("gathers", gather, source),
        ("inserts", insert, target),
        ("moves", lambda size: mover.move(gathered[size], "target"), target),
    )
    lines = []
    for label, call, engine in kinds:
        cells = [Cell(engine.wait, partial(call, size)) for size in sizes]
        times = _timed(label, cells, grid, report)
        tokens = [size * source.spec.page_size for size in sizes]
        lines.append(fitted(list(zip(tokens, times, strict=True))))
    return lines[0], lines[1], lines[2]


def _timed(label: str, cells: Sequence[Cell], grid: Grid, report: Report) -> list[float]:
    with report.progress(f"measuring {label}", "steps") as advance:
        return medians(cells, grid.repeats, advance)


def _step(engine: JaxEngine, rows: Sequence[RowState], step: Step) -> Cell:
    """Row state is written anew before each call, so that contexts do not grow."""

    def prepare() -> None:
        if rows:
            engine.set_rows(rows)
        engine.wait()

    return Cell(prepare, lambda: engine.fetch(engine.dispatch(step)))


def _segment(engine: JaxEngine, count: int, start: int) -> PrefillSegment:
    """The last chunk of a prompt; its first token is sampled for the row that only stands for padding."""
    return PrefillSegment(
        tokens=tuple(index % engine.spec.vocab_size for index in range(count)),
        start=start,
        pages=_pages(engine, 0, engine.spec.pages_for(start + count)),
        sample_rows=(engine.spec.num_rows,),
    )


def _row_states(engine: JaxEngine, count: int, context: int) -> list[RowState]:
    """Greedy rows that hold `context` tokens, or the most with which another one fits."""
    spec = engine.spec
    length = min(context, spec.max_context_tokens - 1)
    width = spec.pages_for(length + 1)
    return [
        RowState(
            row=row,
            sampling=SamplingParams(seed=row, max_tokens=1, temperature=0.0),
            choice=0,
            prompt=(),
            output=(),
            pages=_pages(engine, row * width, width),
            length=length,
            last_token=row % spec.vocab_size,
        )
        for row in range(count)
    ]


def _pages(engine: JaxEngine, first: int, count: int) -> tuple[int, ...]:
    """`count` pages from the `first` on, beginning again where the pool ends."""
    return tuple(1 + (first + index) % engine.spec.usable_pages for index in range(count))


def _rows(values: Sequence[float], width: int) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(values[start : start + width]) for start in range(0, len(values), width))

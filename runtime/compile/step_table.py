"""`--step-times`: compiles what a step-time table still needs, prints its times as estimates and writes the file."""

import time
from collections.abc import Iterator, Sequence

import jax
import msgspec

from runtime.cli.console import Report
from runtime.compile.flags import Flags
from runtime.compile.kernel_figures import KernelFigures
from runtime.compile.kernel_schedules import Asked, figures_of
from runtime.compile.outcome import Outcome
from runtime.compile.slices import Request, compile_steps
from runtime.compile.step_times import Estimate, Estimates, Slice, estimate, make_table, plan_grid
from runtime.errors import UsageError


def write_step_times(flags: Flags, request: Request, outcome: Outcome, report: Report) -> None:
    """Everything that the flag asks for. Raises UsageError if a program or kernel cannot be estimated."""
    assert flags.step_times is not None
    assert request.kept is not None
    sizes, config, part = request.settings.sizes_for("tpu"), request.config, outcome.slices[0]
    if not part.attention.startswith("pallas"):
        raise UsageError(f"--step-times with attention {part.attention}: allowed: the kernels, pallas")
    grid = plan_grid(
        chunk_tokens=outcome.chunk_tokens,
        num_rows=part.num_rows,
        page_size=part.page_size,
        max_context_tokens=outcome.context_tokens,
    )
    report.line()
    started = time.perf_counter()
    for program in compile_steps(request, grid.buckets, report):
        if program.error is not None:
            raise UsageError(f"--step-times: {program.name} does not compile: {program.error}")
    kernels = figures_of(
        Asked(
            target=str(flags.target),
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            page_size=sizes.page_size,
            dtype=config.dtype,
        )
    )
    kv_bytes = part.static.page_bytes // part.page_size
    try:
        found = estimate(grid, request.kept, kernels, config, kv_bytes)
    except ValueError as error:
        raise UsageError(f"--step-times: {error}") from None
    about = Slice(
        model=outcome.model,
        how=_how(flags, outcome),
        max_context_tokens=outcome.context_tokens,
        kv_bytes_per_token=kv_bytes,
        pool_tokens=(part.static.num_pages - 1) * part.page_size,
        link_bytes_per_s=flags.link_bytes_per_s,
        link_latency_s=flags.link_latency_s,
    )
    table = make_table(found, kernels, about, config)
    flags.step_times.write_bytes(msgspec.json.format(msgspec.json.encode(table), indent=2) + b"\n")
    for line in _lines(found, kernels):
        report.line(line)
    report.line(
        f"Estimated step times, nothing was run or measured: {flags.step_times}, {time.perf_counter() - started:.0f} s."
    )


def _how(flags: Flags, outcome: Outcome) -> str:
    return (
        f"runtime compile --step-times for one chip of {outcome.target}: the TPU compiler's own estimates "
        f"(libtpu {outcome.libtpu_version}, jax {jax.__version__}), {time.strftime('%Y-%m-%d')}, nothing was run; "
        f"greedy sampling; without host, dispatch and the sampling of first tokens; assumed link "
        f"{flags.link_bytes_per_s / 1e9:g} GB/s, {flags.link_latency_s * 1e6:g} us"
    )


def _lines(found: Estimates, kernels: KernelFigures) -> Iterator[str]:
    """Times in milliseconds, each with its ratio over the roofline."""
    grid = found.grid
    rates = kernels.rates
    yield (
        f"Estimated step times in ms (over the roofline of {rates.peak_flop_per_s / 1e12:.0f} TFLOP/s and "
        f"{rates.hbm_bytes_per_s / 1e12:.2f} TB/s)"
    )
    yield from _grid("prefill tokens", "start", grid.buckets.prefill, grid.starts, found.prefill)
    yield from _grid("decode rows", "context", grid.buckets.decode, grid.contexts, found.decode)
    tokens = tuple(sorted({t for t, _ in grid.buckets.mixed}))
    rows = tuple(sorted({b for _, b in grid.buckets.mixed}))
    yield from _grid(f"mixed tokens, context {grid.mixed_context}", "rows", tokens, rows, found.mixed)
    for size, each in found.sample:
        yield f"  first tokens of {size} prompts, not in the table: {_cell(each)}"


def _grid(
    down: str, across: str, sizes: Sequence[int], places: Sequence[int], rows: Sequence[Sequence[Estimate]]
) -> Iterator[str]:
    cells = [[down, *(f"{across} {place}" for place in places)]]
    cells += [[str(size), *map(_cell, row)] for size, row in zip(sizes, rows, strict=True)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    for row in cells:
        yield "  " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))


def _cell(each: Estimate) -> str:
    return f"{each.step_s * 1e3:.2f} ({each.ratio:.2f})"

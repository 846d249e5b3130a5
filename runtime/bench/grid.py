"""`runtime bench --step-times`: what to measure for a step-time table, checked before jax is imported; and the file."""

import argparse
import os
import platform as host
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import msgspec

from runtime.cli.console import Report
from runtime.devices import choose_platform, find_devices
from runtime.errors import UsageError
from runtime.model_config import ModelConfig
from runtime.settings import Settings
from runtime.topology import parse_topology

if TYPE_CHECKING:
    import jax

TABLE_DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        "starts": [512, 1024, 2048],
        "contexts": [128, 512, 1024, 2048, 4096],
        "max_context": 4096,
        "page_size": None,
        "chunked_prefill_size": None,
        "max_running_requests": None,
        "repeats": 5,
    }
)
"""Of flags that go with --step-times; None is what `runtime up` would take on the platform."""


class Grid(msgspec.Struct, frozen=True, kw_only=True):
    """What is measured, in tokens; the sizes of steps are the engine's buckets. `repeats` counts measured rounds."""

    starts: tuple[int, ...]
    contexts: tuple[int, ...]
    max_context_tokens: int
    repeats: int


def write_step_times(flags: argparse.Namespace, model: ModelConfig, name: str) -> int:
    """Measures a table and writes it; returns the exit code. Raises UsageError."""
    path: Path = flags.step_times
    if not path.resolve().parent.is_dir() or path.is_dir():
        raise UsageError(f"--step-times {str(path)!r}: allowed: a file in a folder that exists")
    platform = choose_platform(flags.device, parse_topology("prefill=1,decode=1"))
    sizes = Settings(
        page_size=flags.page_size,
        chunked_prefill_size=flags.chunked_prefill_size,
        max_running_requests=flags.max_running_requests,
    ).sizes_for(platform)
    grid = _grid(flags)
    _check(grid, sizes.chunk_tokens(grid.max_context_tokens), model.max_position_embeddings)
    devices = find_devices(platform)
    if len(devices) < 2:
        raise UsageError(f"--step-times with one {platform} device: allowed: two, of which one sends KV to the other")

    from runtime.bench.step_times import measure_table
    from runtime.compile_cache import enable_compile_cache
    from runtime.weights import bench_params, load_weights

    def params_on(device: "jax.Device") -> Any:
        if flags.model is None:
            return bench_params(model, model.dtype, device)
        return load_weights(flags.model, model, model.dtype, device)

    enable_compile_cache()
    report = Report()
    report.line(f"Measuring {name} {model.dtype} on {_device_name(devices[0])}")
    how = _how(flags, name, devices[0])
    table = measure_table(model, name, params_on, devices, platform, sizes, grid, how, report)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(table), indent=2) + b"\n")
    report.line(f"Wrote {path}; try: runtime up --engine emulated:{path} --topology prefill=2,decode=2")
    return 0


def _grid(flags: argparse.Namespace) -> Grid:
    return Grid(
        starts=tuple(sorted({0, *flags.starts})),
        contexts=tuple(sorted(set(flags.contexts))),
        max_context_tokens=flags.max_context,
        repeats=flags.repeats,
    )


def _check(grid: Grid, chunk_tokens: int, model_tokens: int) -> None:
    """Raises UsageError for points beyond the context."""
    context = grid.max_context_tokens
    if context > model_tokens:
        raise UsageError(f"--max-context {context}: allowed: at most the model's {model_tokens} tokens")
    if grid.contexts[-1] > context:
        raise UsageError(f"--contexts {grid.contexts[-1]}: allowed: at most --max-context {context}")
    if grid.starts[-1] + chunk_tokens > context:
        allowed = f"at most --max-context {context} less a chunk of {chunk_tokens} tokens"
        raise UsageError(f"--starts {grid.starts[-1]}: allowed: {allowed}")


def _how(flags: argparse.Namespace, name: str, device: "jax.Device") -> str:
    """The measurement in words: command, device, cores, version, date. No path of this machine."""
    import jax

    source = f"--shape {name}" if flags.model is None else f"--model {name}"
    command = f"runtime bench --step-times FILE {source} --repeats {flags.repeats}"
    cores = len(os.sched_getaffinity(0))
    return f"{command} on {_device_name(device)}, {cores} cores, jax {jax.__version__}, {date.today()}"


def _device_name(device: "jax.Device") -> str:
    """What the device calls itself; of a CPU, which says nothing, what the operating system knows."""
    if device.platform != "cpu":
        return str(device.device_kind)
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else host.processor() or "cpu"

"""The `runtime compile` command: from flags to tables, JSON and an exit code. jax is imported once libtpu is set up."""

import os
import time
from collections.abc import Sequence
from importlib.metadata import version

import msgspec

from kernels import aot
from runtime.cli.console import Report
from runtime.compile.flags import Flags, parse_compile
from runtime.compile.outcome import Outcome
from runtime.compile.report import document, print_outcome
from runtime.errors import UsageError
from runtime.known_models import KNOWN_MODELS
from runtime.model_config import ModelConfig, load_model_config
from runtime.model_source import find_local, find_model
from runtime.plan import config_for, context_tokens
from runtime.settings import Settings
from runtime.topology import Topology, default_topology

_CACHE_VARIABLE = "JAX_COMPILATION_CACHE_DIR"


def run(argv: Sequence[str]) -> int:
    """Compiles and prints. Returns 0 if everything compiles and fits, 1 if not. Raises UsageError."""
    flags = parse_compile(argv)
    if flags is None:
        return 0
    report = Report()
    topology = _topology(flags)
    name, config = _model(flags.settings, report)
    if flags.step_times is not None:
        check_step_times(config, topology)
    outcome = _compile(flags, name, config, topology, report)
    if flags.json is not None:
        flags.json.write_bytes(msgspec.json.format(msgspec.json.encode(document(outcome)), indent=2) + b"\n")
    return 0 if outcome.is_good else 1


def _compile(flags: Flags, name: str, config: ModelConfig, topology: Topology, report: Report) -> Outcome:
    os.environ.pop(_CACHE_VARIABLE, None)  # the times are to be the compiler's
    try:
        aot.set_environment(flags.target)
        devices = aot.find_devices(flags.target)
    except RuntimeError as error:
        raise UsageError(f"--target {flags.target}: {' '.join(str(error).split())}") from None

    import jax

    from runtime.compile.slices import Request, compile_slices

    settings = flags.settings
    tokens = context_tokens(settings, config)
    report.line(f"Compiling {name} ({config.architecture}, {config.dtype}) for {flags.target}, {topology}")
    request = Request(
        settings=settings,
        config=config,
        topology=topology,
        devices=tuple(devices),
        hbm_bytes=flags.target.hbm_bytes,
        kept=None if flags.step_times is None else {},
    )
    started = time.perf_counter()
    slices = compile_slices(request, report)
    outcome = Outcome(
        model=name,
        dtype=config.dtype,
        target=str(flags.target),
        topology=str(topology),
        context_tokens=tokens,
        chunk_tokens=settings.sizes_for("tpu").chunk_tokens(tokens),
        jax_version=jax.__version__,
        libtpu_version=version("libtpu"),
        compile_s=time.perf_counter() - started,
        slices=slices,
    )
    print_outcome(outcome, report)
    if flags.step_times is not None and outcome.is_good:
        from runtime.compile.step_table import write_step_times

        write_step_times(flags, request, outcome, report)
    return outcome


def _topology(flags: Flags) -> Topology:
    num_devices, settings = flags.target.num_devices, flags.settings
    topology = settings.parsed_topology() or default_topology(num_devices, settings.tp_size)
    if topology.num_devices > num_devices:
        asked = f"--tp-size {settings.tp_size}" if settings.topology is None else f"--topology {settings.topology!r}"
        raise UsageError(
            f"{asked}: needs {topology.num_devices} devices; allowed: at most the {num_devices} of {flags.target}"
        )
    return topology


def check_step_times(config: ModelConfig, topology: Topology) -> None:
    """Raises UsageError for what a step-time table cannot be estimated of."""
    if any(len(part.devices) != 1 for part in topology.slices):
        raise UsageError(f"--step-times with {topology}: allowed: slices of one device")
    if any(window is not None for window in config.windows):
        raise UsageError("--step-times: allowed: models without a sliding window")


def _model(settings: Settings, report: Report) -> tuple[str, ModelConfig]:
    """The model's name and shape: a well-known one by name, or what a folder or the hub says."""
    known = (settings.model or "").rsplit("/", maxsplit=1)[-1].lower()
    if known in KNOWN_MODELS and (settings.model == known or find_local(settings).folder is None):
        return known, config_for(settings, KNOWN_MODELS[known])
    try:
        name, folder = find_model(settings, report.line)
    except UsageError as error:
        raise UsageError(f"{error}; or the name of a well-known shape: {', '.join(KNOWN_MODELS)}") from None
    return name, config_for(settings, load_model_config(folder))

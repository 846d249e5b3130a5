"""What one server will serve, read from flags and model folder before anything slow is done and without jax."""

from collections.abc import Callable
from pathlib import Path

import msgspec

from runtime.devices import resolve_platform
from runtime.emulated.setup import Emulation, emulation_of
from runtime.engine import EngineSpec
from runtime.errors import UsageError
from runtime.model_config import GenerationDefaults, ModelConfig, load_generation_defaults, load_model_config
from runtime.model_source import find_model
from runtime.models.sharding import check_tp
from runtime.settings import REAL_ENGINE, Platform, Settings
from runtime.topology import Topology

MAX_PREFILL_SEGMENTS = 16
"""Prompts that one prefill step may touch."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A model folder that can be served with these settings. `config.dtype` is the type to compute in.

    With an `emulation` nothing is computed: of the folder only tokenizer, template and vocabulary matter, `settings`
    are those that the step-time table completed, and the context is the table's.
    """

    settings: Settings
    folder: Path
    name: str
    config: ModelConfig
    generation: GenerationDefaults
    max_context_tokens: int
    emulation: Emulation | None = None

    @property
    def engine(self) -> str:
        """What computes, for people and programs: `jax`, or what is emulated and from where its times are."""
        return REAL_ENGINE if self.emulation is None else self.emulation.table.label

    def spec(self, platform: Platform, *, num_pages: int, page_bytes: int) -> EngineSpec:
        """The sizes of every slice's engine."""
        return engine_spec(self.settings, self.config, platform, num_pages=num_pages, page_bytes=page_bytes)


def engine_spec(
    settings: Settings, config: ModelConfig, platform: Platform, *, num_pages: int, page_bytes: int
) -> EngineSpec:
    """The sizes of an engine for a model on a platform. Raises UsageError for a context beyond the model's."""
    sizes, max_context_tokens = settings.sizes_for(platform), context_tokens(settings, config)
    return EngineSpec(
        page_size=sizes.page_size,
        num_pages=num_pages,
        num_rows=sizes.max_running_requests,
        max_context_tokens=max_context_tokens,
        vocab_size=config.vocab_size,
        chunk_tokens=sizes.chunk_tokens(max_context_tokens),
        max_prefill_segments=MAX_PREFILL_SEGMENTS,
        page_bytes=page_bytes,
    )


def make_plan(settings: Settings, say: Callable[[str], None] = lambda line: None) -> Plan:
    """Checks the settings against the machine, finds the model and reads its descriptions. Raises UsageError.

    A hub model that is not on this machine is downloaded; `say` is told.
    """
    if emulation_of(settings) is None:
        platform = resolve_platform(settings.device, settings.parsed_topology(), settings.tp_size)
        settings.sizes_for(platform)
        settings.check_attention_backend(platform)
    name, folder = find_model(settings, say)
    return plan_for(settings, name, folder)


def plan_for(settings: Settings, name: str, folder: Path) -> Plan:
    """The plan for a model in a folder; `name` is its own name. Raises UsageError."""
    emulation, config = emulation_of(settings), load_model_config(folder)
    if emulation is not None:
        settings = emulation.settings
        config = msgspec.structs.replace(config, max_position_embeddings=emulation.table.max_context_tokens)
    config = config_for(settings, config)
    return Plan(
        settings=settings,
        folder=folder,
        name=settings.served_model_name or name,
        config=config,
        generation=load_generation_defaults(folder),
        max_context_tokens=context_tokens(settings, config),
        emulation=emulation,
    )


def config_for(settings: Settings, config: ModelConfig) -> ModelConfig:
    """The model as these settings compute it. Raises UsageError unless the slices can share it and the context fits."""
    _check_widths(config, settings, settings.parsed_topology())
    context_tokens(settings, config)
    return config if settings.dtype == "auto" else msgspec.structs.replace(config, dtype=settings.dtype)


def context_tokens(settings: Settings, config: ModelConfig) -> int:
    """Longest prompt and answer together. Raises UsageError for more than the model's."""
    limit = config.max_position_embeddings
    if settings.context_length is not None and settings.context_length > limit:
        raise UsageError(f"--context-length {settings.context_length}: allowed: at most the model's {limit} tokens")
    return settings.context_length or limit


def _check_widths(config: ModelConfig, settings: Settings, topology: Topology | None) -> None:
    """Raises UsageError unless each slice's devices can share the model."""
    if topology is None:
        check_tp(config, settings.tp_size, f"--tp-size {settings.tp_size}")
        return
    for tp in dict.fromkeys(len(part.devices) for part in topology.slices):
        check_tp(config, tp, f"--topology {settings.topology!r}")

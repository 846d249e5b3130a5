"""What one server will serve, read from flags and model folder before anything slow is done and without jax."""

from pathlib import Path

import msgspec

from runtime.demo import MODEL_DIR
from runtime.devices import resolve_platform
from runtime.engine import EngineSpec
from runtime.errors import UsageError
from runtime.model_config import GenerationDefaults, ModelConfig, load_generation_defaults, load_model_config
from runtime.models.sharding import check_tp
from runtime.settings import DEMO_NAME, Platform, Settings
from runtime.topology import Topology

MAX_PREFILL_SEGMENTS = 16
"""Prompts that one prefill step may touch."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A model folder that can be served with these settings. `config.dtype` is the type to compute in."""

    settings: Settings
    folder: Path
    name: str
    config: ModelConfig
    generation: GenerationDefaults
    max_context_tokens: int

    def spec(self, platform: Platform, *, num_pages: int, page_bytes: int) -> EngineSpec:
        """The sizes of every slice's engine."""
        sizes = self.settings.sizes_for(platform)
        return EngineSpec(
            page_size=sizes.page_size,
            num_pages=num_pages,
            num_rows=sizes.max_running_requests,
            max_context_tokens=self.max_context_tokens,
            vocab_size=self.config.vocab_size,
            chunk_tokens=sizes.chunked_prefill_size,
            max_prefill_segments=MAX_PREFILL_SEGMENTS,
            page_bytes=page_bytes,
        )


def make_plan(settings: Settings) -> Plan:
    """Checks the settings against the machine and reads the folder's descriptions. Raises UsageError."""
    topology = settings.parsed_topology()
    settings.sizes_for(resolve_platform(settings.device, topology, settings.tp_size))
    folder = MODEL_DIR if settings.model is None else Path(settings.model).expanduser()
    if not folder.is_dir():
        raise UsageError(f"--model {str(folder)!r}: no such folder; allowed: a local model folder, not a hub name")
    config = load_model_config(folder)
    _check_widths(config, settings, topology)
    if settings.dtype != "auto":
        config = msgspec.structs.replace(config, dtype=settings.dtype)
    limit = config.max_position_embeddings
    if settings.context_length is not None and settings.context_length > limit:
        raise UsageError(f"--context-length {settings.context_length}: allowed: at most the model's {limit} tokens")
    default_name = DEMO_NAME if settings.model is None else folder.resolve().name
    return Plan(
        settings=settings,
        folder=folder,
        name=settings.served_model_name or default_name,
        config=config,
        generation=load_generation_defaults(folder),
        max_context_tokens=settings.context_length or limit,
    )


def _check_widths(config: ModelConfig, settings: Settings, topology: Topology | None) -> None:
    """Raises UsageError unless each slice's devices can share the model."""
    if topology is None:
        check_tp(config, settings.tp_size, f"--tp-size {settings.tp_size}")
        return
    for tp in dict.fromkeys(len(part.devices) for part in topology.slices):
        check_tp(config, tp, f"--topology {settings.topology!r}")

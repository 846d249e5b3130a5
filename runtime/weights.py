"""From a checkpoint folder to parameters on a device.

Used once per slice at start. Parameters are mapped, cast and placed one after the other, so the host never
holds more than one of them; the experts of a layer are one parameter per projection. A checkpoint that does
not fit its config exactly does not load: whatever is missing, unexpected or misshapen is listed in one error.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeAlias

import jax
import numpy as np
from jax.typing import DTypeLike

from runtime.checkpoint_layout import Source, find_source
from runtime.errors import CheckpointError
from runtime.model_config import ModelConfig
from runtime.models.parameters import Params, abstract_params, checkpoint_names
from runtime.safetensors_files import StoredTensor, open_checkpoint

Progress = Callable[[int, int], None]
"""Called with (done_bytes, total_bytes) of the files, after each tensor."""

Target: TypeAlias = jax.Device | jax.sharding.Sharding

IGNORED_SUFFIXES = ("rotary_emb.inv_freq",)
"""Buffers that old versions of transformers saved and that are computed here."""

TIED_HEAD = "lm_head.weight"
MAX_LISTED = 20
BENCH_BLOCK = 1 << 20


def load_weights(
    folder: Path,
    config: ModelConfig,
    dtype: DTypeLike,
    target: Target | None = None,
    progress: Progress | None = None,
) -> Params:
    """Parameters of the folder's checkpoint as `dtype` ("bfloat16" or "float32") on `target`.

    `target` is a device or a sharding; None is jax's default device. `place` copies the result to more
    devices without reading the files again.

    Raises:
        UsageError: the folder or its index is missing or not JSON, or `target` has devices that the experts cannot
            be dealt to evenly.
        CheckpointError: files are missing, truncated or malformed, or do not hold exactly this model's
            tensors.
    """
    if config.experts is not None and isinstance(target, jax.sharding.NamedSharding):
        config.experts.check_shards(target.mesh.size)
    wanted = abstract_params(config, dtype)
    names = checkpoint_names(wanted)
    stored = open_checkpoint(folder)
    sources = {
        name: find_source(name, leaf.shape, stored)
        for name, leaf in zip(jax.tree.leaves(names), jax.tree.leaves(wanted), strict=True)
    }
    check_tensors(folder, sources.values(), stored, config)
    total = sum(source.num_bytes(stored) for source in sources.values())
    done = 0

    def load(name: str) -> jax.Array:
        nonlocal done
        # Read into memory of its own: on a CPU jax keeps a well aligned host array instead of copying it, whatever
        # `may_alias` says (0.10.2), and parameters must not change or vanish with the file.
        tensor = sources[name].read(stored, dtype)
        placed: jax.Array = jax.device_put(tensor, target, may_alias=False).block_until_ready()
        done += sources[name].num_bytes(stored)
        if progress is not None:
            progress(done, total)
        return placed

    params: Params = jax.tree.map(load, names)
    return params


def place(params: Params, target: Target) -> Params:
    """A copy of the parameters on another device or sharding."""
    placed: Params = jax.device_put(params, target, may_alias=False)
    return placed


def bench_params(config: ModelConfig, dtype: DTypeLike, target: Target | None = None) -> Params:
    """Parameters of a model without a checkpoint: one seeded block of small numbers, repeated. For timing
    only.
    """
    block = np.random.default_rng(0).standard_normal(BENCH_BLOCK, np.float32) * config.hidden_size**-0.5
    block = block.astype(dtype)

    def fill(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        placed: jax.Array = jax.device_put(np.resize(block, leaf.shape), target, may_alias=False)
        return placed

    params: Params = jax.tree.map(fill, abstract_params(config, dtype))
    return params


def check_tensors(
    folder: Path,
    sources: Iterable[Source],
    stored: Mapping[str, StoredTensor],
    config: ModelConfig,
) -> None:
    """Raises CheckpointError that lists every missing, unexpected and misshapen tensor."""
    wanted = {piece.name: piece.shape for source in sources for piece in source.pieces}
    missing = sorted(wanted.keys() - stored.keys())
    unexpected = sorted(
        name
        for name in stored.keys() - wanted.keys()
        if not name.endswith(IGNORED_SUFFIXES) and not (config.tie_word_embeddings and name == TIED_HEAD)
    )
    misshapen = [
        f"{name} {list(stored[name].shape)} instead of {list(wanted[name])}"
        for name in sorted(wanted.keys() & stored.keys())
        if stored[name].shape != wanted[name]
    ]
    problems = [
        f"{kind}: {_listed(names)}"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen))
        if names
    ]
    if problems:
        raise CheckpointError(f"weights of {folder} do not fit its {config.architecture} config; {'; '.join(problems)}")


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:MAX_LISTED])
    return shown if len(names) <= MAX_LISTED else f"{shown} and {len(names) - MAX_LISTED} more"

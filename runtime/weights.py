"""From a checkpoint folder to parameters on the devices of a slice.

Used at start. Parameters are mapped, and each device's part of one is read, cast and placed, one parameter after the
other: the host never holds more than the parts of one of them; the experts of a layer are one parameter per projection.
A checkpoint that does not fit its config exactly does not load: whatever is missing, unexpected or misshapen is listed
in one error.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import jax
import numpy as np
from jax.typing import DTypeLike

from runtime import compat
from runtime.checkpoint_layout import Part, Source, find_source
from runtime.errors import CheckpointError
from runtime.kv_heads import KvHeads
from runtime.model_config import ModelConfig
from runtime.models.parameters import Params, abstract_params, checkpoint_names
from runtime.models.sharding import slice_shape, stored_index
from runtime.placement import Placement, struct
from runtime.safetensors_files import StoredTensor, open_checkpoint

Progress = Callable[[int, int], None]
"""Called with (done_bytes, total_bytes) of the files, after each tensor."""

Target: TypeAlias = jax.Device | jax.sharding.Sharding | Placement
"""A device or a sharding gets every parameter whole; a slice's placement splits them by the table of
`runtime.models.sharding`."""

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

    None is jax's default device. `place` copies the result to more slices of equal TP without reading the files again.

    Raises:
        UsageError: the folder or its index is missing or not JSON.
        CheckpointError: files are missing, truncated or malformed, or do not hold exactly this model's
            tensors.
    """
    wanted = abstract_params(config, dtype)
    names = checkpoint_names(wanted)
    stored = open_checkpoint(folder)
    sources = {
        name: find_source(name, leaf.shape, stored)
        for name, leaf in zip(jax.tree.leaves(names), jax.tree.leaves(wanted), strict=True)
    }
    check_tensors(folder, sources.values(), stored, config)
    heads = _heads(config, target)
    total = sum(source.num_bytes(stored) for source in sources.values())
    done = 0

    def load(name: str) -> jax.Array:
        nonlocal done
        source = sources[name]
        shape = slice_shape(name, source.shape, heads)

        def read(part: Part) -> np.ndarray:
            return source.read(stored, dtype, stored_index(name, part, shape, heads))

        placed = _put_parts(read, name, shape, target)
        done += source.num_bytes(stored)
        if progress is not None:
            progress(done, total)
        return placed

    params: Params = jax.tree.map(load, names)
    return params


def place(params: Params, target: Target) -> Params:
    """A copy of the parameters on another device, sharding or slice, from device to device.

    Raises ValueError if they lie on a slice of another TP than the target's: those have to be loaded.
    """
    where: Any = target
    if isinstance(target, Placement):
        where = jax.tree.map(lambda name, x: target.parameter(name, x.shape), checkpoint_names(params), params)
        widths = {x.sharding.num_devices for x in jax.tree.leaves(params)}
        if widths != {target.tp}:
            raise ValueError(f"parameters lie on {widths} devices, the target has {target.tp}")
    placed: Params = jax.device_put(params, where, may_alias=False)
    return placed


def bench_params(config: ModelConfig, dtype: DTypeLike, target: Target | None = None) -> Params:
    """Parameters of a model without a checkpoint: one seeded block of small numbers, repeated. For timing
    only.
    """
    block = np.random.default_rng(0).standard_normal(BENCH_BLOCK, np.float32) * config.hidden_size**-0.5
    block = block.astype(dtype)
    heads = _heads(config, target)

    def fill(name: str, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        shape = slice_shape(name, leaf.shape, heads)

        def read(part: Part) -> np.ndarray:
            return np.resize(block, [len(range(*axis.indices(size))) for axis, size in zip(part, shape, strict=True)])

        return _put_parts(read, name, shape, target)

    wanted = abstract_params(config, dtype)
    params: Params = jax.tree.map(fill, checkpoint_names(wanted), wanted)
    return params


def params_struct(config: ModelConfig, placement: Placement) -> Params:
    """Shapes and shardings of a slice's parameters, to compile for without any weights."""
    heads = KvHeads(config.num_kv_heads, placement.tp)

    def shape(name: str, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        on_slice = slice_shape(name, leaf.shape, heads)
        return struct(on_slice, leaf.dtype, placement.parameter(name, on_slice))

    wanted = abstract_params(config, config.dtype)
    params: Params = jax.tree.map(shape, checkpoint_names(wanted), wanted)
    return params


def _heads(config: ModelConfig, target: Target | None) -> KvHeads:
    return KvHeads(config.num_kv_heads, target.tp if isinstance(target, Placement) else 1)


def _put_parts(
    read: Callable[[Part], np.ndarray], name: str, shape: tuple[int, ...], target: Target | None
) -> jax.Array:
    """One parameter of the slice's `shape`; `read` gives the part that a device holds, and is asked once for each part.

    Returns when the parts are in place. `read` gives memory of its own that nobody writes to afterwards: a CPU device
    takes it over (0.10.2 does so whatever `may_alias` says), and parameters must not change or vanish with the file.
    """
    if not isinstance(target, Placement) or target.tp == 1:
        whole = read((slice(None),) * len(shape))
        where = target.replicated if isinstance(target, Placement) else target
        alone: jax.Array = jax.device_put(whole, where, may_alias=False).block_until_ready()
        return alone
    sharding = target.parameter(name, shape)
    devices_of: dict[tuple[tuple[int | None, int | None], ...], list[jax.Device]] = {}
    for device, part in sharding.addressable_devices_indices_map(shape).items():
        assert part is not None
        devices_of.setdefault(tuple((axis.start, axis.stop) for axis in part), []).append(device)
    placed: dict[jax.Device, jax.Array] = {}
    for bounds, devices in devices_of.items():
        values = read(tuple(slice(*bound) for bound in bounds))
        placed |= {device: jax.device_put(values, device, may_alias=False) for device in devices}
        compat.block_until_ready(list(placed.values()))
    return jax.make_array_from_single_device_arrays(shape, sharding, [placed[device] for device in target.devices])


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

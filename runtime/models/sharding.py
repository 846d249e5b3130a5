"""How each parameter is split over the devices of a slice: one table of logical axes, one of mesh axes.

Used by the loader, and by the check that a model fits a TP at all, which runs before anything slow. Pure, no jax.

What makes queries, keys, values and the inner activations is split by rows (column-parallel: its output axis), what
takes them back by columns (row-parallel: the partial products are summed over the devices). Norms and the router are
on every device.
"""

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

from runtime.errors import UsageError
from runtime.kv_heads import KvHeads
from runtime.model_config import ModelConfig

TP_AXIS = "tp"
"""The one axis of a slice's mesh."""

MESH_AXES: Mapping[str, str | None] = MappingProxyType(
    {
        "vocab": TP_AXIS,
        "heads": TP_AXIS,
        "kv_heads": TP_AXIS,
        "ffw": TP_AXIS,
        "experts": TP_AXIS,
        "model": None,
        "inner": None,
        "head_dim": None,
        "routes": None,
    }
)
"""Logical axis: mesh axis that it is split over, or None where every device has all of it."""

_EXPERTS = ("experts", "inner", "inner")
PARAMETER_AXES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "embed_tokens.weight": ("vocab", "model"),
        "lm_head.weight": ("vocab", "model"),
        "norm.weight": ("model",),
        "input_layernorm.weight": ("model",),
        "post_attention_layernorm.weight": ("model",),
        "self_attn.q_proj.weight": ("heads", "model"),
        "self_attn.q_proj.bias": ("heads",),
        "self_attn.k_proj.weight": ("kv_heads", "model"),
        "self_attn.k_proj.bias": ("kv_heads",),
        "self_attn.v_proj.weight": ("kv_heads", "model"),
        "self_attn.v_proj.bias": ("kv_heads",),
        "self_attn.o_proj.weight": ("model", "heads"),
        "self_attn.o_proj.bias": ("model",),
        "self_attn.q_norm.weight": ("head_dim",),
        "self_attn.k_norm.weight": ("head_dim",),
        "mlp.gate_proj.weight": ("ffw", "model"),
        "mlp.up_proj.weight": ("ffw", "model"),
        "mlp.down_proj.weight": ("model", "ffw"),
        "mlp.gate_proj.bias": ("ffw",),
        "mlp.up_proj.bias": ("ffw",),
        "mlp.down_proj.bias": ("model",),
        "mlp.gate.weight": ("routes", "model"),
        "mlp.experts.gate_proj.weight": _EXPERTS,
        "mlp.experts.up_proj.weight": _EXPERTS,
        "mlp.experts.down_proj.weight": _EXPERTS,
    }
)
"""End of a parameter's name: its logical axes. A parameter that no row names is an error.

An axis is split where the devices divide it. Of those that they may not divide, only "vocab" is left whole on every
device; for the others `check_tp` refuses the model. "kv_heads" beyond K devices is repeated first (`runtime.kv_heads`).
"""


def logical_axes(name: str) -> tuple[str, ...]:
    """The row of the table. Raises ValueError for a parameter without one."""
    parts = name.split(".")
    for start in range(len(parts)):
        axes = PARAMETER_AXES.get(".".join(parts[start:]))
        if axes is not None:
            return axes
    raise ValueError(f"parameter {name} has no row in PARAMETER_AXES")


def partition(name: str, shape: Sequence[int], tp: int) -> tuple[str | None, ...]:
    """The mesh axis of each axis of a parameter of the slice's `shape` (kv heads repeated).

    Raises ValueError for a parameter without a row, or one that `tp` devices cannot share.
    """
    axes = logical_axes(name)
    if len(axes) != len(shape):
        raise ValueError(f"parameter {name} has shape {list(shape)}, its row has the axes {axes}")
    return tuple(_mesh_axis(name, axis, size, tp) for axis, size in zip(axes, shape, strict=True))


def slice_shape(name: str, shape: Sequence[int], heads: KvHeads) -> tuple[int, ...]:
    """A parameter's shape on a slice, given the checkpoint's: kv heads are repeated as often as devices hold them."""
    axes = logical_axes(name)
    return tuple(size * heads.replicas if axis == "kv_heads" else size for axis, size in zip(axes, shape, strict=True))


def stored_index(name: str, index: Sequence[slice], shape: Sequence[int], heads: KvHeads) -> tuple[slice, ...]:
    """Where in the checkpoint's parameter the part `index` of the slice's lies; `shape` is the slice's.

    A part of a "kv_heads" axis of repeated heads lies within one head.
    """
    axes = logical_axes(name)
    return tuple(
        _first_copy(part, size, heads) if axis == "kv_heads" and heads.replicas > 1 else part
        for axis, part, size in zip(axes, index, shape, strict=True)
    )


def check_tp(config: ModelConfig, tp: int, asked: str) -> None:
    """Raises UsageError, which starts with `asked` (flag and value), unless `tp` devices can share the model."""
    misfits = list(_misfits(config, tp))
    if misfits:
        allowed = ", ".join(str(width) for width in range(1, config.num_heads + 1) if not any(_misfits(config, width)))
        raise UsageError(f"{asked}: {tp} devices per slice {'; '.join(misfits)}; allowed: {allowed}")


def _misfits(config: ModelConfig, tp: int) -> Iterator[str]:
    if config.num_heads % tp:
        yield f"do not divide the model's {config.num_heads} query heads"
    if config.experts is not None and config.experts.num_experts % tp:
        yield f"do not divide the model's {config.experts.num_experts} experts"
    has_dense = any(not config.is_sparse(layer) for layer in range(config.num_layers))
    if has_dense and config.intermediate_size % tp:
        yield f"do not divide the model's intermediate size {config.intermediate_size}"
    if config.num_kv_heads % tp and tp % config.num_kv_heads:
        yield f"neither divide the model's {config.num_kv_heads} kv heads nor are a multiple of them"


def _mesh_axis(name: str, axis: str, size: int, tp: int) -> str | None:
    mesh_axis = MESH_AXES[axis]
    if mesh_axis is None or size % tp == 0:
        return mesh_axis
    if axis == "vocab":
        return None
    raise ValueError(f"parameter {name}: {tp} devices do not divide its axis {axis!r} of {size}")


def _first_copy(part: slice, size: int, heads: KvHeads) -> slice:
    """The rows of the head that `part` holds a copy of; there are `heads.pool_heads` heads in `size` rows."""
    head_size = size // heads.pool_heads
    copy, offset = divmod(part.start or 0, head_size)
    start = copy // heads.replicas * head_size + offset
    return slice(start, start + (size if part.stop is None else part.stop) - (part.start or 0))

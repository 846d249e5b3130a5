"""Where a slice's arrays live: one mesh per slice, and the sharding of each kind of array in one place.

A slice of one device uses the same shardings over a mesh of one. KV is split over its heads on the axis "tp";
weights follow the table of `runtime.models.sharding`; everything else is on every device of the slice.
"""

from collections.abc import Sequence
from typing import Any, cast

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from runtime.models.sharding import TP_AXIS, partition

_spec: Any = PartitionSpec
_struct: Any = jax.ShapeDtypeStruct

EVERYWHERE = _spec()
HEADS_SPEC = _spec(None, TP_AXIS, None)
"""Of queries, keys and values `[T, heads, H]`."""

LOGITS_SPEC = _spec(None, TP_AXIS)
"""Of logits `[S, V]` as a split head makes them."""

POOL_SPEC = _spec(None, TP_AXIS)
"""Of a layer's pool, in either layout: pages, heads, and the rest whole."""

CHUNK_SPEC = _spec(None, None, TP_AXIS)
"""Of gathered pages: layers, pages, heads, and the rest whole."""


class Placement:
    """The shardings of one slice's devices."""

    def __init__(self, devices: Sequence[jax.Device]) -> None:
        self.mesh = Mesh(np.array(list(devices)), (TP_AXIS,), axis_types=(AxisType.Auto,))
        self.replicated = NamedSharding(self.mesh, EVERYWHERE)
        self.pool = NamedSharding(self.mesh, POOL_SPEC)
        """Of each layer's pool, `[P, K, ...]`."""
        self.chunk = NamedSharding(self.mesh, CHUNK_SPEC)
        """Of each array of gathered pages, `[L, n, K, ...]`."""

    @property
    def tp(self) -> int:
        """How many devices share the slice's work."""
        return self.mesh.size

    @property
    def shared_mesh(self) -> Mesh | None:
        """The mesh where there is something to share; None for one device, whose programs need none."""
        return self.mesh if self.tp > 1 else None

    @property
    def devices(self) -> tuple[jax.Device, ...]:
        """The slice's devices in mesh order."""
        return tuple(self.mesh.devices.flat)

    def parameter(self, name: str, shape: Sequence[int]) -> NamedSharding:
        """Of the parameter of that name in the checkpoint, whose shape on this slice is `shape`."""
        if self.tp == 1:
            return self.replicated
        return NamedSharding(self.mesh, _spec(*partition(name, shape, self.tp)))

    def put(self, values: Any) -> Any:
        """Host arrays (a pytree) onto every device of the slice; the host arrays must not change afterwards."""
        return jax.device_put(values, self.replicated)


def struct(shape: tuple[int, ...], dtype: DTypeLike, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    """One array to compile for."""
    return cast(jax.ShapeDtypeStruct, _struct(shape, dtype, sharding=sharding))


def shape_of(arrays: Any) -> Any:
    """The same pytree as shapes with shardings, to compile for without touching the arrays."""
    return jax.tree.map(lambda x: _struct(x.shape, x.dtype, sharding=x.sharding), arrays)


def shaped(shapes: Any, sharding: NamedSharding) -> Any:
    """A pytree of shapes, all with one sharding."""
    return jax.tree.map(lambda x: _struct(x.shape, x.dtype, sharding=sharding), shapes)

"""Where a slice's arrays live: one mesh per slice, and the sharding of each kind of array in one place.

A slice of one device uses the same shardings over a mesh of one. KV is split over its heads on the axis "tp";
everything else that is not a weight is on every device of the slice.
"""

from collections.abc import Sequence
from typing import Any, cast

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

AXIS = "tp"

_spec: Any = PartitionSpec
_struct: Any = jax.ShapeDtypeStruct


class Placement:
    """The shardings of one slice's devices."""

    def __init__(self, devices: Sequence[jax.Device]) -> None:
        self.mesh = Mesh(np.array(list(devices)), (AXIS,))
        self.replicated = NamedSharding(self.mesh, _spec())
        self.pool = NamedSharding(self.mesh, _spec(None, AXIS, None, None, None))
        """Of each layer's `[P, K, 2, page, H]`."""
        self.chunk = NamedSharding(self.mesh, _spec(None, None, AXIS, None, None, None))
        """Of gathered pages `[L, n, K, 2, page, H]`."""

    @property
    def devices(self) -> tuple[jax.Device, ...]:
        """The slice's devices in mesh order."""
        return tuple(self.mesh.devices.flat)

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

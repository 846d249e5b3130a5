"""What differs between the jax versions that we support, and what jax leaves without types, behind one name each."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
from jax import monitoring

_BACKEND_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


block_until_ready: Any = jax.block_until_ready
constrain: Any = jax.lax.with_sharding_constraint
update_config: Any = jax.config.update


def over_shards(function: Callable[..., Any], mesh: Any, in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    """`function` on each device's shards of its arguments.

    Without the check of what varies over the mesh: kernels do not say it of what they compute.
    """
    mapped: Any = jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
    return mapped  # type: ignore[no-any-return]


def traced_for(mesh: Any) -> AbstractContextManager[Any]:
    """Inside, programs are traced for the devices of `mesh`; None changes nothing."""
    set_mesh: Any = jax.set_mesh
    context: AbstractContextManager[Any] = nullcontext() if mesh is None else set_mesh(mesh)
    return context


def on_compilation(callback: Callable[[], None]) -> None:
    """Calls `callback` after each compilation of this process, whether compiled or found in the persistent cache."""

    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == _BACKEND_COMPILE_EVENT:
            callback()

    monitoring.register_event_duration_secs_listener(listen)

"""What differs between the jax versions that we support, and what jax leaves without types, behind one name each."""

from collections.abc import Callable
from typing import Any

import jax
from jax import monitoring

_BACKEND_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


block_until_ready: Any = jax.block_until_ready
update_config: Any = jax.config.update


def on_compilation(callback: Callable[[], None]) -> None:
    """Calls `callback` after each compilation of this process, whether compiled or found in the persistent cache."""

    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == _BACKEND_COMPILE_EVENT:
            callback()

    monitoring.register_event_duration_secs_listener(listen)

"""What differs between the jax versions that we support, behind one name each."""

from collections.abc import Callable

from jax import monitoring

_BACKEND_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


def on_compilation(callback: Callable[[], None]) -> None:
    """Calls `callback` after each compilation of this process, whether compiled or found in the persistent cache."""

    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == _BACKEND_COMPILE_EVENT:
            callback()

    monitoring.register_event_duration_secs_listener(listen)

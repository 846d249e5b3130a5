"""Profiles of the device, by jax's profiler: one at a time, into folders below the one that `--profile-dir` names."""

from pathlib import Path
from threading import Lock

from runtime.errors import RequestError


class JaxProfiler:
    """Begins and ends profiles of this process. Thread safe; both calls block until jax is done."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = Lock()
        self._is_on = False

    def start(self) -> str:
        """Begins a profile; returns the folder below which it will lie. Raises RequestError while there is one."""
        import jax

        with self._lock:
            if self._is_on:
                raise RequestError("a profile is being taken: POST /stop_profile ends it", code="profile_running")
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise RequestError(f"the folder of --profile-dir: {error.strerror}", code="profile_folder") from error
            jax.profiler.start_trace(str(self._folder))
            self._is_on = True
        return str(self._folder)

    def stop(self) -> str:
        """Writes the profile; returns the folder. Raises RequestError when there is none."""
        import jax

        with self._lock:
            if not self._is_on:
                raise RequestError("no profile is being taken: POST /start_profile begins one", code="no_profile")
            self._is_on = False
            jax.profiler.stop_trace()  # type: ignore[no-untyped-call]  # jax has no types for it
        return str(self._folder)

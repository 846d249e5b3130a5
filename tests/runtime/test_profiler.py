"""Profiles by jax's own profiler."""

from pathlib import Path

import jax.numpy as jnp
import pytest

from runtime.errors import RequestError
from runtime.profiler import JaxProfiler


def test_a_profile_is_written_once_it_is_ended(tmp_path: Path) -> None:
    profiler = JaxProfiler(tmp_path / "profiles")
    with pytest.raises(RequestError, match="no profile is being taken"):
        profiler.stop()
    assert profiler.start() == str(tmp_path / "profiles")
    with pytest.raises(RequestError, match="a profile is being taken"):
        profiler.start()
    jnp.ones((4, 4)).sum().block_until_ready()
    assert profiler.stop() == str(tmp_path / "profiles")
    assert [path for path in (tmp_path / "profiles").rglob("*") if path.is_file() and path.stat().st_size]
    with pytest.raises(RequestError, match="no profile is being taken"):
        profiler.stop()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match="the folder of --profile-dir"):
        JaxProfiler(tmp_path / "file" / "below").start()

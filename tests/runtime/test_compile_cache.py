from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from runtime.compile_cache import CACHE_VARIABLE, compilations, default_cache_dir, enable_compile_cache
from runtime.errors import UsageError


@pytest.fixture(autouse=True)
def _same_folder_afterwards() -> object:
    before = jax.config.jax_compilation_cache_dir
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def test_the_folder_is_the_argument_else_the_variable_else_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "variable"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    assert enable_compile_cache(tmp_path / "argument") == tmp_path / "argument"
    assert enable_compile_cache() == tmp_path / "variable"
    monkeypatch.delenv(CACHE_VARIABLE)
    assert enable_compile_cache() == default_cache_dir() == tmp_path / "user" / "runtime" / "jit"
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "user" / "runtime" / "jit")


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file" / "below"))
    with pytest.raises(UsageError, match="JAX_COMPILATION_CACHE_DIR: cannot make the folder"):
        enable_compile_cache()


def test_only_compilations_outside_of_warm_up_count() -> None:
    x = jnp.zeros(3)
    before = compilations.count
    with compilations.warming_up():
        jax.jit(lambda x: x * 2 + 1)(x)
    assert compilations.count == before
    twice = jax.jit(lambda x: x * 2 + 2)
    twice(x)
    twice(x)
    assert compilations.count == before + 1

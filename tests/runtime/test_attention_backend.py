"""Which kernels a slice gets: what was asked for, what the platform can run, and what the kernels cover."""

import threading

import jax
import jax.numpy as jnp
import msgspec
import pytest

from runtime.attention_backend import choose_backend
from runtime.errors import UsageError
from runtime.known_models import KNOWN_MODELS
from runtime.kv_cache import pool_shape
from runtime.plan import make_plan
from runtime.programs import Key, Programs
from runtime.settings import AttentionBackend, Platform, Settings
from tests.runtime.engines import MODEL

LLAMA = KNOWN_MODELS["llama-3.1-8b"]


@pytest.mark.parametrize(
    ("asked", "platform", "wanted"),
    [
        ("auto", "cpu", "xla"),
        ("auto", "gpu", "xla"),
        ("auto", "tpu", "pallas"),
        ("pallas", "tpu", "pallas"),
        ("xla", "tpu", "xla"),
        ("xla", "cpu", "xla"),
        ("pallas-interpret", "cpu", "pallas-interpret"),
    ],
)
def test_the_platform_decides_unless_asked(asked: AttentionBackend, platform: Platform, wanted: str) -> None:
    assert choose_backend(asked, platform, LLAMA, 128, 1) == (wanted, "")


@pytest.mark.parametrize("name", list(KNOWN_MODELS))
@pytest.mark.parametrize("tp", [1, 2, 4])
def test_the_kernels_cover_the_known_models(name: str, tp: int) -> None:
    for page_size in (16, 64, 128, 256):
        assert choose_backend("auto", "tpu", KNOWN_MODELS[name], page_size, tp) == ("pallas", "")


def test_where_kernels_do_not_cover_a_model_the_reason_is_told() -> None:
    chosen, reason = choose_backend("auto", "tpu", MODEL, 128, 1)
    assert chosen == "xla"
    assert reason.startswith("the kernels do not cover this model: ")
    assert str(MODEL.head_dim) in reason


@pytest.mark.parametrize(("asked", "platform"), [("pallas", "tpu"), ("pallas-interpret", "cpu")])
def test_kernels_that_were_asked_for_are_not_replaced(asked: AttentionBackend, platform: Platform) -> None:
    with pytest.raises(UsageError, match=rf"--attention-backend {asked}: .*; allowed for this model: xla"):
        choose_backend(asked, platform, MODEL, 128, 1)


@pytest.mark.parametrize("asked", ["pallas", "pallas-interpret"])
def test_a_window_and_a_head_dim_of_64_are_covered(asked: AttentionBackend) -> None:
    model = msgspec.structs.replace(LLAMA, head_dim=64, windows=(None, 100) * 16)
    assert choose_backend(asked, "tpu" if asked == "pallas" else "cpu", model, 32, 1) == (asked, "")


def test_a_backend_that_the_platform_cannot_run_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(UsageError, match="--attention-backend pallas on cpu: allowed: pallas-interpret, auto, xla"):
        make_plan(Settings(device="cpu", attention_backend="pallas"))
    for platform, allowed in (("tpu", "pallas, auto, xla"), ("gpu", "auto, xla")):
        with pytest.raises(UsageError, match=f"--attention-backend pallas-interpret on {platform}: allowed: {allowed}"):
            Settings(attention_backend="pallas-interpret").check_attention_backend(platform)


def test_the_pool_is_laid_out_for_the_kernels() -> None:
    model = msgspec.structs.replace(LLAMA, head_dim=64)
    plain, packed = pool_shape(model, 16, "cpu"), pool_shape(model, 16, "cpu", kernels=True)
    assert (plain.layer(3), packed.layer(3)) == ((3, 8, 2, 16, 64), (3, 8, 16, 128))
    assert (plain.dtype, packed.dtype) == ("uint16", "bfloat16")
    assert packed.chunk(5, 2) == (32, 5, 4, 16, 128)
    assert plain.page_bytes == packed.page_bytes
    assert pool_shape(LLAMA, 16, "tpu", kernels=True).layer(3) == (3, 8, 2, 16, 128)


def test_programs_that_interpret_kernels_run_one_at_a_time() -> None:
    """The interpreter's memory belongs to the process, and each slice has a thread of its own."""
    running, most = 0, 0

    def enter(x: jax.Array) -> jax.Array:
        nonlocal running, most
        running += 1
        most = max(most, running)
        return x

    def leave(x: jax.Array) -> jax.Array:
        nonlocal running
        running -= 1
        return x

    def work(x: jax.Array) -> jax.Array:
        shape = jax.ShapeDtypeStruct((), jnp.float32)
        x = jax.experimental.io_callback(enter, shape, x)
        x = jax.lax.fori_loop(0, 20000, lambda _, value: jnp.sin(value), x)
        return jax.experimental.io_callback(leave, shape, x)

    programs = Programs(None, alone=True)
    for key in (Key("a"), Key("b")):
        programs.add(key, lambda: jax.jit(work).lower(jax.ShapeDtypeStruct((), jnp.float32)))
    programs.compile_all(lambda label, done, total: None)
    threads = [
        threading.Thread(target=lambda key=key: [programs[key](jnp.float32(1)) for _ in range(10)]) for key in programs
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert (running, most) == (0, 1)

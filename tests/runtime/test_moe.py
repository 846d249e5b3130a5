"""The sparse block against its definition in NumPy, beside padding, and split over devices."""

from typing import Any

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from runtime.model_config import load_model_config
from runtime.model_parts import Experts
from runtime.models import decoder
from runtime.models.moe import sparse_mlp
from runtime.models.ragged import blocked_product, ragged_product, ragged_project
from runtime.weights import load_weights
from tests.golden.cases import HERE

EXPERTS = Experts(num_experts=8, num_experts_per_token=3, intermediate_size=24, renormalize=True, layers=(0,))
MODEL = 32


def random_block(seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    count, inner = EXPERTS.num_experts, EXPERTS.intermediate_size

    def draw(*shape: int) -> dict[str, np.ndarray]:
        return {"weight": rng.standard_normal(shape, np.float32) * np.float32(shape[-1] ** -0.5 * 2)}

    stacks = {
        "gate_proj": draw(count, inner, MODEL),
        "up_proj": draw(count, inner, MODEL),
        "down_proj": draw(count, MODEL, inner),
    }
    return {"gate": draw(count, MODEL), "experts": stacks}


def hidden(num_tokens: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((num_tokens, MODEL), np.float32)


def by_definition(x: np.ndarray, block: dict[str, Any], *, renormalize: bool) -> np.ndarray:
    """One token and one expert at a time, float64."""
    stacks = {name: stack["weight"].astype(np.float64) for name, stack in block["experts"].items()}
    out = np.zeros_like(x, dtype=np.float64)
    for token, row in enumerate(x.astype(np.float64)):
        scores = np.exp(block["gate"]["weight"].astype(np.float64) @ row)
        shares = scores / scores.sum()
        chosen = np.argsort(-shares)[: EXPERTS.num_experts_per_token]
        if renormalize:
            shares = shares / shares[chosen].sum()
        for expert in chosen:
            gate, up = stacks["gate_proj"][expert] @ row, stacks["up_proj"][expert] @ row
            out[token] += shares[expert] * (stacks["down_proj"][expert] @ (gate / (1 + np.exp(-gate)) * up))
    return out


@pytest.mark.parametrize("num_tokens", [1, 7, 150])
@pytest.mark.parametrize("renormalize", [False, True])
def test_the_block_is_its_definition(num_tokens: int, renormalize: bool) -> None:
    experts = msgspec.structs.replace(EXPERTS, renormalize=renormalize)
    block, x = random_block(), hidden(num_tokens)
    got = jax.jit(sparse_mlp, static_argnums=2)(x, block, experts)
    np.testing.assert_allclose(got, by_definition(x, block, renormalize=renormalize), atol=2e-5)


def test_a_router_that_sends_everyone_to_the_same_experts_drops_no_one() -> None:
    block = random_block()
    block["gate"]["weight"] *= 0
    block["gate"]["weight"][[1, 4, 6], 0] = 5
    x = np.abs(hidden(90))
    np.testing.assert_allclose(
        sparse_mlp(x, block, EXPERTS), by_definition(x, block, renormalize=True), atol=1e-4, rtol=1e-5
    )


@pytest.mark.parametrize("filler", [0.0, 50.0, np.nan, np.inf])
def test_padding_does_not_disturb_a_token(filler: float) -> None:
    block, x = random_block(), hidden(20)
    padded = np.concatenate([x, np.full((44, MODEL), filler, np.float32)])
    alone, beside = sparse_mlp(x, block, EXPERTS), sparse_mlp(padded, block, EXPERTS)[:20]
    np.testing.assert_allclose(beside, alone, atol=2e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("sizes", [[0, 0, 0], [5, 0, 3], [0, 90, 0], [70, 1, 60], [1, 1, 1]], ids=str)
def test_the_loop_is_the_ragged_product(sizes: list[int], dtype: str) -> None:
    num_rows = max(sum(sizes), 1) + 6
    x = jnp.asarray(hidden(num_rows), dtype)
    weight = jnp.asarray(random_block()["experts"]["gate_proj"]["weight"][:3], dtype)
    counts, used = jnp.asarray(sizes, jnp.int32), sum(sizes)
    want = jax.jit(ragged_product)(x, weight, counts)[:used]
    for product in (jax.jit(blocked_product), ragged_project):
        np.testing.assert_allclose(product(x, weight, counts)[:used], want, atol=1e-5)


def mesh_of(num_devices: int) -> Mesh:
    return Mesh(np.array(jax.devices()[:num_devices]), ("tp",))


def split(params: Any, mesh: Mesh) -> Any:
    """Stacked experts by expert, all else on every device."""

    def put(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        is_stack = ".experts." in jax.tree_util.keystr(path, simple=True, separator=".")
        return jax.device_put(leaf, NamedSharding(mesh, PartitionSpec("tp") if is_stack else PartitionSpec()))

    return jax.tree_util.tree_map_with_path(put, params)


@pytest.mark.parametrize("num_devices", [2, 4])
@pytest.mark.parametrize("case", ["qwen3_moe", "qwen3_moe_fused"])
def test_experts_split_over_devices_compute_the_same(case: str, num_devices: int) -> None:
    config = load_model_config(HERE / case)
    params = load_weights(HERE / case, config, "float32")
    mesh = mesh_of(num_devices)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, config.vocab_size, 33), jnp.int32)
    positions = jnp.arange(len(tokens), dtype=jnp.int32)

    def attend(kv: jax.Array, q: jax.Array, k: jax.Array, v: jax.Array, window: int | None) -> Any:
        local = None if window is None else (window - 1, 0)
        return kv, jax.nn.dot_product_attention(q[None], k[None], v[None], is_causal=True, local_window_size=local)[0]

    def logits(params: Any, mesh: Mesh | None) -> jax.Array:
        nothing = [jnp.zeros(0)] * config.num_layers
        states, _ = decoder.forward(params, config, tokens, positions, nothing, attend, mesh)
        return decoder.logits(params, config, states)

    want = jax.jit(logits, static_argnums=1)(params, None)
    got = jax.jit(logits, static_argnums=1)(split(params, mesh), mesh)
    np.testing.assert_allclose(got, want, atol=2e-5)


def test_each_device_holds_and_multiplies_its_own_experts() -> None:
    mesh = mesh_of(4)
    block, x = split({"mlp": random_block()}, mesh)["mlp"], hidden(16)
    text = jax.jit(sparse_mlp, static_argnums=(2, 3)).lower(x, block, EXPERTS, mesh).compile().as_text()
    assert "all-reduce" in text
    assert "all-gather" not in text
    shards = block["experts"]["gate_proj"]["weight"].addressable_shards
    assert {shard.data.shape[0] for shard in shards} == {2}

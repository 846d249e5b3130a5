"""A sparse feed-forward block: a router picks k of E experts for every token, each a gated MLP of its own.

Tokens are sorted by expert and multiplied in one ragged product per projection. There is no capacity: no token is
ever dropped, and none, padding included, changes what another one gets. On a slice of several devices each computes
its own experts' tokens, and the partial outputs are summed.

Letters: T tokens, D model, F ffw of one expert, E experts (of one device: e), k experts per token.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from runtime.model_parts import Experts
from runtime.models.layers import project
from runtime.models.ragged import ragged_project

_spec: Any = PartitionSpec
_psum: Any = lax.psum


def sparse_mlp(x: jax.Array, weights: dict[str, Any], experts: Experts, mesh: Mesh | None = None) -> jax.Array:
    """The block's output for `x [T, D]`, float32 `[T, D]`.

    Args:
        x: the normed hidden states, float32 or bfloat16.
        weights: `gate.weight [E, D]` and `experts.{gate,up}_proj.weight [E, F, D]`, `experts.down_proj.weight
            [E, D, F]`, as nested dicts.
        experts: the block's numbers; static.
        mesh: the slice's devices, on the mesh's one axis, when the stacked weights are split over them by expert; their
            number divides E. None when all are on one device.
    """
    shares, chosen = route(x, weights["gate"]["weight"], experts)
    stacks = tuple(weights["experts"][name]["weight"] for name in ("gate_proj", "up_proj", "down_proj"))
    if mesh is None:
        return _chosen_experts(x, shares, chosen, *stacks, first=jnp.int32(0))
    (axis,) = mesh.axis_names
    num_local = experts.num_experts // mesh.size
    assert num_local * mesh.size == experts.num_experts, "experts do not divide over the slice"

    def shard(*arrays: jax.Array) -> jax.Array:
        summed: jax.Array = _psum(_chosen_experts(*arrays, first=lax.axis_index(axis) * num_local), axis)
        return summed

    split, whole = _spec(axis, None, None), _spec()
    run: Any = jax.shard_map(
        shard, mesh=mesh, in_specs=(whole, whole, whole, split, split, split), out_specs=whole, check_vma=False
    )
    summed: jax.Array = run(x, shares, chosen, *stacks)
    return summed


def route(x: jax.Array, gate: jax.Array, experts: Experts) -> tuple[jax.Array, jax.Array]:
    """Which experts a token visits and with what share: float32 `[T, k]` and int32 `[T, k]`, best first.

    Shares are the softmax over all E experts, of `x [T, D]` times `gate [E, D]`, in float32.
    """
    shares, chosen = lax.top_k(jax.nn.softmax(project(x, gate), axis=-1), experts.num_experts_per_token)
    if experts.renormalize:
        shares = shares / jnp.sum(shares, axis=-1, keepdims=True)
    return shares, chosen


def _chosen_experts(
    x: jax.Array,
    shares: jax.Array,
    chosen: jax.Array,
    gate: jax.Array,
    up: jax.Array,
    down: jax.Array,
    *,
    first: jax.Array,
) -> jax.Array:
    """What experts first..first+e-1 add to `x [T, D]`: float32 `[T, D]`.

    `shares` and `chosen` are `route`'s, over all experts; `gate [e, F, D]`, `up [e, F, D]`, `down [e, D, F]` are
    these experts' own.
    """
    num_local, num_chosen = gate.shape[0], chosen.shape[1]
    local = (chosen - first).reshape(-1)
    is_local = (local >= 0) & (local < num_local)
    group = jnp.where(is_local, local, num_local)  # other devices' experts come last and belong to no group
    order = jnp.argsort(group)
    sizes = jnp.bincount(group, length=num_local + 1)[:num_local].astype(jnp.int32)
    multiply = functools.partial(ragged_project, sizes=sizes)
    rows = x[order // num_chosen]
    inner = jax.nn.silu(multiply(rows, gate)) * multiply(rows, up)
    out = multiply(inner.astype(x.dtype), down)
    by_choice = out[jnp.argsort(order)].reshape(*chosen.shape, -1)
    # Rows of no group hold whatever the product left there; 0 times that would not always be 0.
    by_choice = jnp.where(is_local.reshape(*chosen.shape, 1), by_choice, 0)
    return jnp.sum(by_choice * shares[..., None], axis=1)

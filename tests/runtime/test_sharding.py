"""The table of axes, the check of a model against a TP, and each device's part of each parameter."""

from pathlib import Path

import jax
import msgspec
import numpy as np
import pytest

from runtime.errors import UsageError
from runtime.kv_heads import KvHeads
from runtime.model_config import load_model_config
from runtime.model_parts import Experts
from runtime.models.parameters import Params, checkpoint_names
from runtime.models.sharding import MESH_AXES, PARAMETER_AXES, check_tp, logical_axes, partition, slice_shape
from runtime.placement import Placement
from runtime.weights import bench_params, load_weights, place
from tests.checkpoints import random_tensors, write_checkpoint
from tests.e2e.host_reads import HostReads
from tests.runtime.engines import MODEL


def by_name(params: Params) -> dict[str, jax.Array]:
    return dict(zip(jax.tree.leaves(checkpoint_names(params)), jax.tree.leaves(params), strict=True))


def test_every_logical_axis_has_a_mesh_axis() -> None:
    assert {axis for axes in PARAMETER_AXES.values() for axis in axes} == MESH_AXES.keys()


@pytest.mark.parametrize(
    ("name", "shape", "want"),
    [
        ("model.embed_tokens.weight", (160, 64), ("tp", None)),
        ("model.embed_tokens.weight", (161, 64), (None, None)),
        ("lm_head.weight", (160, 64), ("tp", None)),
        ("model.norm.weight", (64,), (None,)),
        ("model.layers.0.input_layernorm.weight", (64,), (None,)),
        ("model.layers.3.self_attn.q_proj.weight", (64, 64), ("tp", None)),
        ("model.layers.3.self_attn.k_proj.bias", (32,), ("tp",)),
        ("model.layers.3.self_attn.o_proj.weight", (64, 64), (None, "tp")),
        ("model.layers.3.self_attn.q_norm.weight", (16,), (None,)),
        ("model.layers.3.mlp.gate_proj.weight", (96, 64), ("tp", None)),
        ("model.layers.3.mlp.down_proj.weight", (64, 96), (None, "tp")),
        ("model.layers.3.mlp.gate.weight", (8, 64), (None, None)),
        ("model.layers.3.mlp.experts.down_proj.weight", (8, 64, 24), ("tp", None, None)),
    ],
)
def test_rows_of_the_table(name: str, shape: tuple[int, ...], want: tuple[str | None, ...]) -> None:
    assert partition(name, shape, 4) == want


def test_a_parameter_without_a_row_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"model\.layers\.0\.mlp\.router\.weight has no row"):
        logical_axes("model.layers.0.mlp.router.weight")
    with pytest.raises(ValueError, match=r"has shape \[64\], its row has the axes"):
        partition("model.layers.0.mlp.down_proj.weight", (64,), 2)
    with pytest.raises(ValueError, match="5 devices do not divide its axis 'ffw' of 96"):
        partition("model.layers.0.mlp.down_proj.weight", (64, 96), 5)


def test_kv_heads_are_repeated_beyond_their_number() -> None:
    name = "model.layers.0.self_attn.v_proj.weight"
    assert slice_shape(name, (32, 64), KvHeads(2, 2)) == (32, 64)
    assert slice_shape(name, (32, 64), KvHeads(2, 8)) == (128, 64)
    assert slice_shape("model.norm.weight", (64,), KvHeads(2, 8)) == (64,)


@pytest.mark.parametrize(
    ("tp", "reason"),
    [
        (
            3,
            "3 devices per slice do not divide the model's 4 query heads; neither divide the model's 2 kv heads",
        ),
        (8, "8 devices per slice do not divide the model's 4 query heads"),
    ],
)
def test_a_tp_that_does_not_fit_is_one_line_with_what_is_allowed(tp: int, reason: str) -> None:
    with pytest.raises(UsageError) as refusal:
        check_tp(MODEL, tp, f"--tp-size {tp}")
    assert str(refusal.value).startswith(f"--tp-size {tp}: {reason}")
    assert str(refusal.value).endswith("; allowed: 1, 2, 4")
    assert "\n" not in str(refusal.value)


def test_an_intermediate_size_limits_too() -> None:
    narrow = msgspec.structs.replace(MODEL, intermediate_size=90)
    check_tp(narrow, 2, "--tp-size 2")
    with pytest.raises(UsageError, match=r"do not divide the model's intermediate size 90; allowed: 1, 2$"):
        check_tp(narrow, 4, "--tp-size 4")


def test_the_number_of_experts_limits_too_and_then_only_dense_layers_limit_by_their_size() -> None:
    experts = Experts(num_experts=6, num_experts_per_token=2, intermediate_size=32, renormalize=True, layers=(0,))
    mixed = msgspec.structs.replace(MODEL, num_layers=2, intermediate_size=90, experts=experts)
    with pytest.raises(
        UsageError, match=r"do not divide the model's 6 experts; do not divide the model's intermediate size 90; "
    ):
        check_tp(mixed, 4, "--tp-size 4")
    sparse = msgspec.structs.replace(mixed, num_layers=1, experts=msgspec.structs.replace(experts, num_experts=8))
    check_tp(sparse, 4, "--tp-size 4")


@pytest.mark.parametrize("tp", [1, 2, 4])
@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_every_device_gets_its_part(tmp_path: Path, tp: int, stored: str) -> None:
    folder = write_checkpoint(tmp_path, dtype=stored, num_shards=2)
    config = load_model_config(folder)
    placement = Placement(jax.devices()[1 : 1 + tp])
    loaded = by_name(load_weights(folder, config, "float32", placement))
    raw = msgspec.json.decode((folder / "config.json").read_bytes())
    for name, tensor in random_tensors(raw, 0).items():
        tensor = tensor.astype("float32" if stored == "float32" else jax.numpy.bfloat16).astype("float32")
        array = loaded[name]
        assert array.devices() == set(placement.devices)
        for device, shard in enumerate(sorted(array.addressable_shards, key=lambda shard: shard.device.id)):
            np.testing.assert_array_equal(shard.data, _part(name, tensor, device, tp), err_msg=name)


def _part(name: str, tensor: np.ndarray, device: int, tp: int) -> np.ndarray:
    """A device's part, cut here by hand: 4 query heads, 2 kv heads, head dim 32."""
    if "norm" in name:
        return tensor
    if ".k_proj." in name or ".v_proj." in name:
        first = device * 2 // tp
        return tensor[first * 32 : (first + max(2 // tp, 1)) * 32]
    axis = 1 if ".o_proj." in name or ".down_proj." in name else 0
    return np.split(tensor, tp, axis)[device]


def test_weights_are_copied_to_slices_of_equal_tp_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_checkpoint(tmp_path)
    config = load_model_config(folder)
    first, second = Placement(jax.devices()[:4]), Placement(jax.devices()[4:])
    params = load_weights(folder, config, "float32", first)
    reads = HostReads(monkeypatch, min_axes=1)
    copies = place(params, second)
    assert reads.count == 0
    for name, copy in by_name(copies).items():
        assert copy.sharding == second.parameter(name, copy.shape)
        np.testing.assert_array_equal(copy, by_name(params)[name])
    with pytest.raises(ValueError, match=r"parameters lie on \{4\} devices, the target has 2"):
        place(params, Placement(jax.devices()[:2]))


def test_only_the_parts_of_a_device_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No host array that is put on a device is larger than that device's part."""
    folder = write_checkpoint(tmp_path)
    config = load_model_config(folder)
    sizes: list[int] = []
    original = jax.device_put

    def counted(x: np.ndarray, *args: object, **options: object) -> jax.Array:
        sizes.append(x.size)
        placed: jax.Array = original(x, *args, **options)
        return placed

    monkeypatch.setattr(jax, "device_put", counted)
    load_weights(folder, config, "float32", Placement(jax.devices()[:4]))
    assert max(sizes) == 272 * 64 // 4


def test_bench_weights_are_split_alike() -> None:
    placement = Placement(jax.devices()[:4])
    params = by_name(bench_params(MODEL, "bfloat16", placement))
    assert params["model.layers.0.self_attn.k_proj.weight"].shape == (64, 64)
    assert all(x.sharding == placement.parameter(name, x.shape) for name, x in params.items())

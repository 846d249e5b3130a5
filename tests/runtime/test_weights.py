import errno
import json
import os
import tracemalloc
from pathlib import Path
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from runtime.checkpoint_layout import find_source
from runtime.errors import CheckpointError, UsageError
from runtime.model_config import load_model_config
from runtime.models.parameters import Params, abstract_params, checkpoint_names
from runtime.safetensors_files import open_checkpoint, read_header
from runtime.weights import bench_params, load_weights, place
from tests.checkpoints import random_tensors, write_checkpoint, write_safetensors, write_weights


def load(folder: Path, dtype: str = "float32", **options: Any) -> Params:
    return load_weights(folder, load_model_config(folder), dtype, **options)


def tensors_of(folder: Path) -> dict[str, np.ndarray]:
    return random_tensors(json.loads((folder / "config.json").read_text()), 0)


def by_name(params: Params) -> dict[str, jax.Array]:
    return dict(zip(jax.tree.leaves(checkpoint_names(params)), jax.tree.leaves(params), strict=True))


@pytest.mark.parametrize("num_shards", [1, 3])
@pytest.mark.parametrize("tied", [False, True])
def test_every_tensor_arrives_under_its_name(tmp_path: Path, num_shards: int, tied: bool) -> None:
    folder = write_checkpoint(tmp_path, num_shards=num_shards, tie_word_embeddings=tied)
    loaded, want = by_name(load(folder)), tensors_of(folder)
    assert loaded.keys() == want.keys()
    for name, tensor in want.items():
        np.testing.assert_array_equal(loaded[name], tensor)


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_are_cast_to_the_type_asked_for(tmp_path: Path, stored: str, dtype: str) -> None:
    folder = write_checkpoint(tmp_path, dtype=stored)
    loaded = by_name(load(folder, dtype))["model.layers.1.mlp.down_proj.weight"]
    want = jnp.asarray(tensors_of(folder)["model.layers.1.mlp.down_proj.weight"], stored).astype(dtype)
    assert loaded.dtype == dtype
    np.testing.assert_array_equal(loaded, want)


def test_the_tree_is_described_without_being_made(tmp_path: Path) -> None:
    config = load_model_config(write_checkpoint(tmp_path))
    leaves = jax.tree.leaves(abstract_params(config, "bfloat16"))
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) and leaf.dtype == jnp.bfloat16 for leaf in leaves)
    shapes = [leaf.shape for leaf in jax.tree.leaves(bench_params(config, "bfloat16"))]
    assert shapes == [leaf.shape for leaf in leaves]


def test_progress_counts_the_bytes_of_the_file(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, dtype="bfloat16")
    calls: list[tuple[int, int]] = []
    load(folder, progress=lambda done, total: calls.append((done, total)))
    total = sum(2 * tensor.size for tensor in tensors_of(folder).values())
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    assert calls[-1] == (total, total)
    assert {total for _, total in calls} == {total}


def test_weights_go_where_they_are_sent_and_do_not_alias_the_file(tmp_path: Path) -> None:
    first, second = jax.devices()[:2]
    folder = write_checkpoint(tmp_path)
    params = load(folder, target=first)
    elsewhere = place(params, second)
    (folder / "model.safetensors").write_bytes(b"")
    for device, tree in ((first, params), (second, elsewhere)):
        assert all(leaf.devices() == {device} for leaf in jax.tree.leaves(tree))
        np.testing.assert_array_equal(tree["norm"]["weight"], tensors_of(folder)["model.norm.weight"])


def test_missing_unexpected_and_misshapen_are_listed_together(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path)
    tensors = tensors_of(folder)
    del tensors["model.norm.weight"], tensors["model.layers.0.self_attn.q_proj.bias"]
    tensors["model.layers.2.mlp.up_proj.weight"] = np.zeros((3, 3), np.float32)
    tensors["lm_head.weight"] = np.zeros((5, 64), np.float32)
    write_weights(folder, tensors)
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    text = str(caught.value)
    assert "missing: model.layers.0.self_attn.q_proj.bias, model.norm.weight" in text
    assert "unexpected: model.layers.2.mlp.up_proj.weight" in text
    assert "misshapen: lm_head.weight [5, 64] instead of [272, 64]" in text
    assert "\n" not in text


def test_long_lists_are_cut(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, num_layers=3)
    write_weights(folder, {"model.norm.weight": np.ones(64, np.float32)})
    with pytest.raises(CheckpointError, match=r"missing: .* and 18 more$"):
        load(folder)


def test_known_buffers_and_a_spare_tied_head_are_ignored(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, tie_word_embeddings=True)
    extra = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(16, np.float32),
        "lm_head.weight": np.ones((1, 1), np.float32),
    }
    write_weights(folder, tensors_of(folder) | extra)
    assert "lm_head" not in load(folder)


MOE: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "mlp_only_layers": [0]}


def moe_folder(folder: Path, **options: Any) -> Path:
    return write_checkpoint(folder, architecture="Qwen3MoeForCausalLM", changes=MOE, **options)


def stacked(tensors: dict[str, np.ndarray], projection: str, layer: int = 1) -> np.ndarray:
    return np.stack([tensors[f"model.layers.{layer}.mlp.experts.{i}.{projection}.weight"] for i in range(4)])


def fuse(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint with its experts as transformers 5 computes with them."""
    prefix = "model.layers.1.mlp.experts."
    gate_up = np.concatenate([stacked(tensors, "gate_proj"), stacked(tensors, "up_proj")], axis=1)
    others = {name: tensor for name, tensor in tensors.items() if ".experts." not in name}
    return others | {prefix + "gate_up_proj": gate_up, prefix + "down_proj": stacked(tensors, "down_proj")}


@pytest.mark.parametrize("num_shards", [1, 5])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_experts_are_stacked(tmp_path: Path, num_shards: int, fused: bool, dtype: str) -> None:
    folder = moe_folder(tmp_path, num_shards=num_shards)
    tensors = tensors_of(folder)
    if fused:
        write_weights(folder, fuse(tensors), num_shards=num_shards)
    calls: list[tuple[int, int]] = []
    params = load(folder, dtype, progress=lambda done, total: calls.append((done, total)))
    for projection in ("gate_proj", "up_proj", "down_proj"):
        got = params["layers"][1]["mlp"]["experts"][projection]["weight"]
        np.testing.assert_array_equal(got, jnp.asarray(stacked(tensors, projection), dtype))
    np.testing.assert_array_equal(
        params["layers"][0]["mlp"]["up_proj"]["weight"],
        jnp.asarray(tensors["model.layers.0.mlp.up_proj.weight"], dtype),
    )
    total = sum(tensor.nbytes for tensor in tensors.values())
    assert calls[-1] == (total, total)


@pytest.mark.parametrize("fused", [False, True])
def test_wrong_experts_are_listed(tmp_path: Path, fused: bool) -> None:
    folder = moe_folder(tmp_path)
    tensors = tensors_of(folder)
    if fused:
        tensors = fuse(tensors)
        del tensors["model.layers.1.mlp.experts.down_proj"]
        tensors["model.layers.1.mlp.experts.gate_up_proj"] = np.zeros((4, 24, 64), np.float32)
    else:
        del tensors["model.layers.1.mlp.experts.2.down_proj.weight"]
        tensors["model.layers.1.mlp.experts.3.up_proj.weight"] = np.zeros((3, 3), np.float32)
    tensors["model.layers.0.mlp.experts.0.up_proj.weight"] = np.zeros((24, 64), np.float32)
    write_weights(folder, tensors)
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    text = str(caught.value)
    if fused:
        assert "missing: model.layers.1.mlp.experts.down_proj;" in text
        assert "misshapen: model.layers.1.mlp.experts.gate_up_proj [4, 24, 64] instead of [4, 48, 64]" in text
    else:
        assert "missing: model.layers.1.mlp.experts.2.down_proj.weight;" in text
        assert "misshapen: model.layers.1.mlp.experts.3.up_proj.weight [3, 3] instead of [24, 64]" in text
    assert "unexpected: model.layers.0.mlp.experts.0.up_proj.weight;" in text
    assert "\n" not in text


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_reading_a_parameter_holds_no_more_than_itself(tmp_path: Path, dtype: str) -> None:
    changes = MOE | {"num_experts": 32, "moe_intermediate_size": 128}
    folder = write_checkpoint(tmp_path, architecture="Qwen3MoeForCausalLM", changes=changes)
    stored = open_checkpoint(folder)
    source = find_source("model.layers.1.mlp.experts.up_proj.weight", (32, 128, 64), stored)
    tracemalloc.start()
    try:
        read = source.read(stored, dtype)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1.1 * read.nbytes


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", ["mlp.experts.up_proj", "mlp.experts.down_proj", "self_attn.q_proj"])
def test_a_part_is_read_alone(tmp_path: Path, name: str, fused: bool) -> None:
    folder = moe_folder(tmp_path)
    if fused:
        write_weights(folder, fuse(tensors_of(folder)))
    stored, full = open_checkpoint(folder), load(folder)["layers"][1]
    for key in name.split("."):
        full = full[key]
    whole = np.asarray(full["weight"])
    source = find_source(f"model.layers.1.{name}.weight", whole.shape, stored)
    part = (slice(1, 3), slice(None), slice(5, 20))[: whole.ndim]
    np.testing.assert_array_equal(source.read(stored, "float32", part), whole[part])


def test_parameters_do_not_change_with_a_file_whose_tensors_are_aligned(tmp_path: Path) -> None:
    """jax would keep a host array that is aligned to 64 bytes, and here that would be the mapped file."""
    folder = write_checkpoint(tmp_path)
    file = folder / "model.safetensors"
    content = file.read_bytes()
    size = 8 + int.from_bytes(content[:8], "little")
    padding = -size % 64
    head = (size - 8 + padding).to_bytes(8, "little") + content[8:size] + b" " * padding
    file.write_bytes(head + content[size:])
    params = by_name(load(folder))
    with file.open("r+b") as stream:
        stream.seek(len(head))
        stream.write(bytes(len(content) - size))
    for name, tensor in tensors_of(folder).items():
        np.testing.assert_array_equal(params[name], tensor)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, num_shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks model-00002-of-00003\.safetensors, which model\.saf"):
        load(folder)


def test_a_shard_outside_the_folder_is_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", num_shards=2)
    write_safetensors(tmp_path / "other.safetensors", {})
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"model.norm.weight": "../other.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"lacks \.\./other\.safetensors"):
        load(folder)


@pytest.mark.parametrize("index", [{}, {"weight_map": []}, {"weight_map": {}}])
def test_an_index_without_a_map(tmp_path: Path, index: dict[str, Any]) -> None:
    folder = write_checkpoint(tmp_path, num_shards=2)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="weight_map must map"):
        load(folder)


def test_no_weights_at_all(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path)
    config = load_model_config(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has neither model\.safetensors nor model\.safetensors\.index"):
        load_weights(folder, config, "float32")
    with pytest.raises(UsageError, match="nowhere does not exist"):
        load_weights(folder / "nowhere", config, "float32")


def test_a_folder_in_place_of_the_weights(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()
    with pytest.raises(CheckpointError, match=r"^\S*model\.safetensors cannot be read: Is a directory$"):
        load(folder)


def test_a_file_that_must_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_checkpoint(tmp_path)

    def refuse(path: Path, mode: str) -> NoReturn:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(CheckpointError, match=r"^\S*model\.safetensors cannot be read: Permission denied$"):
        open_checkpoint(folder)


def test_a_file_that_vanishes_while_it_is_loaded(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path)
    stored = open_checkpoint(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read: No such file or directory$"):
        stored["model.norm.weight"].view()


@pytest.mark.parametrize("kept", [0, 5, 100, -1])
def test_a_truncated_file_is_refused_before_anything_is_read(tmp_path: Path, kept: int) -> None:
    folder = write_checkpoint(tmp_path)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is truncated"):
        load(folder)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"not json", "its header is not JSON"),
        (b"[1, 2]", "its header is not a JSON object"),
        (b'{"a": {"dtype": "F32", "shape": [2]}}', "entry for a is malformed"),
        (b'{"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}', "entry for a is malformed"),
        (b'{"a": {"dtype": "I8", "shape": [8], "data_offsets": [0, 8]}}', "a is stored as I8; supported: F32"),
        (b'{"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}', "12 bytes, but its byte range has 8"),
    ],
)
def test_a_malformed_header(tmp_path: Path, header: bytes, message: str) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 8)
    with pytest.raises(CheckpointError, match=message):
        read_header(file)


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(CheckpointError, match="is not a safetensors file: its header claims"):
        read_header(file)

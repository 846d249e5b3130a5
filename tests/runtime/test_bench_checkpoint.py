"""Model folders with random weights: they load as any other, and every id of theirs is text."""

from pathlib import Path

import jax
import msgspec
import numpy as np
import pytest
from transformers import AutoTokenizer

from runtime.bench import checkpoint
from runtime.bench.shapes import SHAPES
from runtime.errors import UsageError
from runtime.model_config import load_model_config
from runtime.weights import load_weights

SMALL = msgspec.structs.replace(
    SHAPES["0.3b"], vocab_size=600, hidden_size=64, intermediate_size=96, num_layers=2, num_heads=2, head_dim=32
)


def test_the_folder_is_the_shape_and_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "BLOCK", 1000)
    checkpoint.write_folder(SMALL, tmp_path)
    model = load_model_config(tmp_path)
    assert msgspec.structs.replace(model, eos_token_ids=()) == SMALL
    params = load_weights(tmp_path, model, "bfloat16")
    assert all(np.isfinite(np.asarray(leaf, np.float32)).all() for leaf in jax.tree.leaves(params))
    layer = params["layers"][1]
    assert np.all(np.asarray(layer["input_layernorm"]["weight"], np.float32) == 1)
    down = np.asarray(layer["mlp"]["down_proj"]["weight"], np.float32)
    assert down.std() == pytest.approx(96**-0.5, rel=0.05)
    assert not (tmp_path / "model.safetensors.partial").exists()


def test_every_id_is_text_and_texts_are_encoded_as_before(tmp_path: Path) -> None:
    checkpoint.write_folder(SMALL, tmp_path)
    ours, demo = (AutoTokenizer.from_pretrained(folder) for folder in (tmp_path, checkpoint.MODEL_DIR))
    assert ours.decode([512, 599]) == " w512 w599"
    assert ours.encode("What is 37 + 58? w512") == demo.encode("What is 37 + 58? w512")


def test_the_same_seed_writes_the_same(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        checkpoint.write_folder(SMALL, tmp_path / name, seed)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in "abc"]
    assert weights[0] == weights[1] != weights[2]


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="usage: .* shapes: r1-1.5b, 0.3b, demo"):
        checkpoint.main(["demo"])
    with pytest.raises(UsageError, match="'9b': allowed"):
        checkpoint.main(["9b", str(tmp_path)])
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="allowed: a folder"):
        checkpoint.main(["demo", str(tmp_path / "file")])
    assert checkpoint.main(["demo", str(tmp_path / "demo")]) == 0
    assert "random weights" in capsys.readouterr().out

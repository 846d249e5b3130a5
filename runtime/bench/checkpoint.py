"""`python -m runtime.bench.checkpoint SHAPE DIR`: a model folder of a public shape with seeded random weights.

`runtime up --model DIR` serves it as any other, so that a whole server can be timed where no checkpoint is at hand.
Weights are written tensor by tensor: memory holds one block of one of them. The tokenizer is the demo model's, with a
filler word for every further id, for a model that draws ids at random has to answer with text too.
"""

import json
import math
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from runtime.bench.shapes import SHAPES, named_shape
from runtime.demo import MODEL_DIR
from runtime.errors import UsageError
from runtime.model_config import FAMILIES, ModelConfig

BLOCK = 1 << 22
COPIED = ("generation_config.json", "tokenizer_config.json", "chat_template.jinja")
BIAS_STD = 0.02


def write_folder(model: ModelConfig, folder: Path, seed: int = 0) -> None:
    """Config, weights in bfloat16 and tokenizer, in `folder`, which is made if needed; config.json comes last.

    Raises OSError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder, _tokenizer(model.vocab_size))
    partial = folder / "model.safetensors.partial"
    with partial.open("wb") as stream:
        _write_weights(stream, _shapes(model), np.random.default_rng(seed))
    partial.replace(folder / "model.safetensors")
    _write_json(folder / "config.json", _config(model))


def write_tokenizer(folder: Path, tokenizer: dict[str, Any]) -> None:
    """`tokenizer.json` with the demo model's other files of a tokenizer. Raises OSError."""
    for name in COPIED:
        shutil.copyfile(MODEL_DIR / name, folder / name)
    _write_json(folder / "tokenizer.json", tokenizer)


def _config(model: ModelConfig) -> dict[str, Any]:
    generation = json.loads((MODEL_DIR / "generation_config.json").read_bytes())
    return {
        "architectures": [model.architecture],
        "model_type": FAMILIES[model.architecture].model_type,
        "vocab_size": model.vocab_size,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.intermediate_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.num_kv_heads,
        "head_dim": model.head_dim,
        "max_position_embeddings": model.max_position_embeddings,
        "rope_parameters": {"rope_theta": model.rope_theta, "rope_type": "default"},
        "rms_norm_eps": model.rms_norm_eps,
        "tie_word_embeddings": model.tie_word_embeddings,
        "hidden_act": "silu",
        "use_sliding_window": False,
        "eos_token_id": generation["eos_token_id"],
        "dtype": "bfloat16",
    }


def _tokenizer(vocab_size: int) -> dict[str, Any]:
    # The byte-level alphabet writes a blank as Ġ.
    return filled_tokenizer(f"\u0120w{token}" for token in range(vocab_size))


def filled_tokenizer(fillers: Iterable[str]) -> dict[str, Any]:
    """The demo model's, with one of as many words as there are ids for each id that it lacks.

    No merge leads to the words, so encoding never yields them. Words that are tokens already are not used.
    """
    tokenizer: dict[str, Any] = json.loads((MODEL_DIR / "tokenizer.json").read_bytes())
    vocab: dict[str, int] = tokenizer["model"]["vocab"]
    # A special token that the vocabulary lacks would get the first free id, whatever the file says.
    vocab |= {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    taken = set(vocab.values())
    vocab |= {word: token for token, word in enumerate(fillers) if token not in taken and word not in vocab}
    return tokenizer


def _shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Of every tensor, by its name in the checkpoint."""
    import jax

    from runtime.models.parameters import abstract_params, checkpoint_names

    params = abstract_params(model, "bfloat16")
    names = jax.tree.leaves(checkpoint_names(params))
    return {name: leaf.shape for name, leaf in zip(names, jax.tree.leaves(params), strict=True)}


def _write_weights(stream: BinaryIO, shapes: dict[str, tuple[int, ...]], rng: np.random.Generator) -> None:
    """In safetensors' format: the header's length, the header, and the tensors in its order."""
    header, offset = dict[str, object](), 0
    for name, shape in shapes.items():
        end = offset + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    stream.write(len(encoded).to_bytes(8, "little") + encoded)
    for name, shape in shapes.items():
        for block in _blocks(name, shape, rng):
            stream.write(block.astype(ml_dtypes.bfloat16).tobytes())


def _blocks(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> Iterator[np.ndarray]:
    """A tensor's values, float32: norms are 1, matrices keep the size of what they multiply."""
    is_norm = len(shape) == 1 and name.endswith("norm.weight")
    std = BIAS_STD if len(shape) == 1 else shape[-1] ** -0.5
    left = math.prod(shape)
    while left > 0:
        count = min(left, BLOCK)
        yield np.ones(count, np.float32) if is_norm else rng.standard_normal(count, np.float32) * np.float32(std)
        left -= count


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Raises UsageError."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if len(arguments) != 2:
        raise UsageError(f"usage: python -m runtime.bench.checkpoint SHAPE DIR; shapes: {', '.join(SHAPES)}")
    model, folder = named_shape(arguments[0]), Path(arguments[1])
    try:
        write_folder(model, folder)
    except OSError as error:
        raise UsageError(f"{folder}: {error.strerror or error}; allowed: a folder that can be written to") from None
    sys.stdout.write(f"wrote {folder}: {arguments[0]} with random weights\n")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UsageError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)

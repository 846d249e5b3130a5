"""Makes the golden files: small random checkpoints and Hugging Face's float32 logits over whole sequences.

Needs torch, transformers, safetensors, ml_dtypes and numpy in an environment of its own; from the repository's root:

    python -m tests.golden.make_golden

Each folder beside this file is one case: config and weights as transformers wrote them, and logits.npz with
one `tokens_i int64[T]` and one `logits_i float32[T, V]` per sequence.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from tests.checkpoints import write_checkpoint

HERE = Path(__file__).parent
SEQUENCE_LENGTHS = (45, 17, 1)
MAX_SHARD_BYTES = 200_000

CASES: dict[str, dict[str, Any]] = {
    "grouped": {"vocab_size": 131, "hidden_size": 48, "intermediate_size": 80, "seed": 1},
    "tied": {
        "vocab_size": 97,
        "hidden_size": 64,
        "intermediate_size": 72,
        "num_layers": 1,
        "num_heads": 6,
        "num_kv_heads": 1,
        "head_dim": 64,
        "rope_theta": 1e6,
        "tie_word_embeddings": True,
        "seed": 2,
    },
    "ungrouped": {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_layers": 3,
        "num_heads": 2,
        "head_dim": 16,
        "seed": 3,
    },
}


def reference_logits(folder: Path, sequences: list[np.ndarray], dtype: str = "float32") -> list[np.ndarray]:
    """Hugging Face's logits `float32[T, V]` over each whole sequence, computed as `dtype`."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), attn_implementation="eager"
    ).eval()
    with torch.inference_mode():
        return [model(torch.from_numpy(tokens)[None]).logits[0].float().numpy() for tokens in sequences]


def random_sequences(vocab_size: int, lengths: tuple[int, ...]) -> list[np.ndarray]:
    """Seeded random tokens, int64."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, vocab_size, length) for length in lengths]


def make_case(name: str, shape: dict[str, Any]) -> None:
    """Writes one golden folder."""
    from transformers import AutoModelForCausalLM

    folder = HERE / name
    with tempfile.TemporaryDirectory() as scratch:
        source = write_checkpoint(Path(scratch), with_tokenizer=False, **shape)
        model = AutoModelForCausalLM.from_pretrained(source, dtype="float32")
        model.save_pretrained(folder, max_shard_size=MAX_SHARD_BYTES)
    sequences = random_sequences(shape["vocab_size"], SEQUENCE_LENGTHS)
    logits = reference_logits(folder, sequences)
    arrays = {f"tokens_{i}": tokens for i, tokens in enumerate(sequences)}
    arrays |= {f"logits_{i}": rows for i, rows in enumerate(logits)}
    np.savez_compressed(folder / "logits.npz", **arrays)


def main() -> None:
    """Writes all cases."""
    for name, shape in CASES.items():
        make_case(name, shape)


if __name__ == "__main__":
    main()

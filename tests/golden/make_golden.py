"""Makes the golden files: small random checkpoints, Hugging Face's float32 logits over whole sequences, and its
greedy continuation of a prompt.

Needs torch, transformers, safetensors, ml_dtypes and numpy in an environment of its own; from the repository's root:

    python -m tests.golden.make_golden [CASE ...]

Each folder beside this file is one case of `cases`: config and weights as transformers wrote them, logits.npz with one
`tokens_i int64[T]` and one `logits_i float32[T, V]` per sequence, and greedy.json with a `prompt` and the
`continuation` that Hugging Face generates from it, token ids.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from tests.checkpoints import write_checkpoint, write_json, write_safetensors
from tests.golden.cases import CASES, HERE, Case

MAX_SHARD_BYTES = 200_000
PROMPT_LENGTH = 9
NUM_GREEDY = 200


def load_reference(folder: Path, dtype: str = "float32") -> Any:
    """Hugging Face's model of a folder, computing as `dtype`."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), attn_implementation="eager", experts_implementation="eager"
    ).eval()


def reference_logits(folder: Path, sequences: list[np.ndarray], dtype: str = "float32") -> list[np.ndarray]:
    """Hugging Face's logits `float32[T, V]` over each whole sequence, computed as `dtype`."""
    import torch

    model = load_reference(folder, dtype)
    with torch.inference_mode():
        return [model(torch.from_numpy(tokens)[None]).logits[0].float().numpy() for tokens in sequences]


def reference_greedy(folder: Path, prompt: list[int], num_tokens: int) -> list[int]:
    """The `num_tokens` that Hugging Face generates greedily in float32, whatever ends a text."""
    import torch

    model = load_reference(folder)
    model.generation_config.eos_token_id = None
    tokens = torch.tensor([prompt])
    with torch.inference_mode():
        out = model.generate(
            tokens, attention_mask=torch.ones_like(tokens), do_sample=False, max_new_tokens=num_tokens, pad_token_id=0
        )
    return [int(token) for token in out[0, len(prompt) :]]


def random_sequences(vocab_size: int, lengths: tuple[int, ...]) -> list[np.ndarray]:
    """Seeded random tokens, int64."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, vocab_size, length) for length in lengths]


def make_folder(folder: Path, case: Case) -> None:
    """Writes a case's config and weights."""
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as scratch:
        source = write_checkpoint(Path(scratch), with_tokenizer=False, **case.shape)
        model = AutoModelForCausalLM.from_pretrained(source, dtype="float32")
        model.save_pretrained(folder, max_shard_size=MAX_SHARD_BYTES, save_original_format=not case.fused)
    if case.version_4:
        write_as_version_4(folder)


def write_as_version_4(folder: Path) -> None:
    """Rewrites a folder as transformers 4 would have written it, with the rotary buffers of its early releases."""
    config = json.loads((folder / "config.json").read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    config["torch_dtype"] = config.pop("dtype")
    if "num_local_experts" in config:
        config["num_experts"] = config.pop("num_local_experts")
    config["transformers_version"] = "4.57.0"
    write_json(folder / "config.json", dict(sorted(config.items())))
    buffers = {
        f"model.layers.{index}.self_attn.rotary_emb.inv_freq": np.ones(config["head_dim"] // 2, np.float32)
        for index in range(config["num_hidden_layers"])
    }
    files = sorted(folder.glob("*.safetensors"))
    write_safetensors(files[-1], load_file(files[-1]) | buffers)
    index_file = folder / "model.safetensors.index.json"
    if index_file.exists():
        index = json.loads(index_file.read_text())
        index["weight_map"] |= dict.fromkeys(buffers, files[-1].name)
        write_json(index_file, index)


def make_case(name: str) -> None:
    """Writes one golden folder."""
    folder, case = HERE / name, CASES[name]
    make_folder(folder, case)
    vocab_size = case.shape["vocab_size"]
    sequences = random_sequences(vocab_size, case.lengths)
    logits = reference_logits(folder, sequences)
    arrays = {f"tokens_{i}": tokens for i, tokens in enumerate(sequences)}
    arrays |= {f"logits_{i}": rows for i, rows in enumerate(logits)}
    np.savez_compressed(folder / "logits.npz", **arrays)
    prompt = random_sequences(vocab_size, (PROMPT_LENGTH,))[0].tolist()
    greedy = {"prompt": prompt, "continuation": reference_greedy(folder, prompt, NUM_GREEDY)}
    (folder / "greedy.json").write_text(json.dumps(greedy) + "\n")


def main() -> None:
    """Writes the cases named, or all."""
    for name in sys.argv[1:] or CASES:
        make_case(name)


if __name__ == "__main__":
    main()

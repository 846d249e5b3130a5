"""Compares our logits with Hugging Face's on any checkpoint folder, in float32 and bfloat16.

Needs torch and transformers beside the project; from the repository's root:

    python -m tests.golden.compare_checkpoint FOLDER [--lengths 64 128] [--chunk 48] [--num-decode 16]

The last `--num-decode` tokens of each sequence go through decode one by one, the others through prefill chunks. Each
line names two computations, the largest and the mean |difference| of their logits and the share of positions at which
both rank the same token first.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from runtime.model_config import load_model_config
from runtime.weights import load_weights
from tests.golden.make_golden import random_sequences, reference_logits
from tests.paged_model import PagedModel

Logits = list[np.ndarray]


def our_logits(folder: Path, sequences: list[np.ndarray], dtype: str, *, chunk: int, num_decode: int) -> Logits:
    """Logits of every position through the paged KV."""
    config = load_model_config(folder)
    longest = max(map(len, sequences))
    model = PagedModel(load_weights(folder, config, dtype), config, num_sequences=len(sequences), max_tokens=longest)
    return model.logits(sequences, chunk=chunk, num_prefill=longest - num_decode)


def report(name: str, left: Logits, right: Logits) -> None:
    """Prints one line about two sets of logits."""
    a, b = np.concatenate(left), np.concatenate(right)
    gap = np.abs(a - b)
    agreed = np.mean(a.argmax(axis=1) == b.argmax(axis=1))
    sys.stdout.write(
        f"{name:28} max {gap.max():.2e}  mean {gap.mean():.2e}  argmax {agreed:.4f} of {len(a)} positions\n"
    )


def main() -> None:
    """Loads one model at a time, so that the largest fits once."""
    parser = argparse.ArgumentParser(description="compare logits with Hugging Face's")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--lengths", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--chunk", type=int, default=48)
    parser.add_argument("--num-decode", type=int, default=16)
    arguments = parser.parse_args()
    how = {"chunk": arguments.chunk, "num_decode": arguments.num_decode}
    folder = arguments.folder
    sequences = random_sequences(load_model_config(folder).vocab_size, tuple(arguments.lengths))
    theirs_32 = reference_logits(folder, sequences, "float32")
    ours_32 = our_logits(folder, sequences, "float32", **how)
    theirs_16 = reference_logits(folder, sequences, "bfloat16")
    ours_16 = our_logits(folder, sequences, "bfloat16", **how)
    sys.stdout.write(f"logits of the float32 reference: standard deviation {theirs_32[0].std():.3f}\n")
    report("ours f32, reference f32", ours_32, theirs_32)
    report("ours bf16, reference bf16", ours_16, theirs_16)
    report("ours bf16, reference f32", ours_16, theirs_32)
    report("reference bf16, f32", theirs_16, theirs_32)


if __name__ == "__main__":
    main()

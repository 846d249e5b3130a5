"""Measures a checkpoint's Pass@1 on problem files without a server: the training loop's own quick check.

Owns batched generation with the self-contained forward pass and the exact comparison of boxed answers. The numbers
of the model card come from the served API instead.

    python -m runtime.demo.evaluate --model DIR [--temperature 0.6 --top-p 0.95] [--float32]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from runtime.demo import MODEL_DIR
from runtime.demo.examples import chat_prompt
from runtime.demo.network import Cache, Params, Shape, forward
from runtime.demo.phrasing import REASONING_SUFFIX
from runtime.demo.problems import TEST_FILE


def load_checkpoint(folder: Path) -> tuple[Params, Shape, Tokenizer, list[int]]:
    """Parameters in float32, shape, tokenizer and end-of-text ids of a checkpoint folder."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    shape = Shape(**{name: config[name] for name in Shape.__dataclass_fields__})
    arrays = load_file(folder / "model.safetensors")
    params = {name: jnp.asarray(array.astype(np.float32)) for name, array in arrays.items()}
    return params, shape, Tokenizer.from_file(str(folder / "tokenizer.json")), config["eos_token_id"]


def boxed(text: str) -> str | None:
    """What stands in the last ``\\boxed{}`` of a text."""
    _, found, rest = text.rpartition("\\boxed{")
    return rest.partition("}")[0] if found else None


@partial(jax.jit, static_argnames=("shape", "columns", "rounded"))
def _prefill(
    params: Params, shape: Shape, tokens: jax.Array, lengths: jax.Array, columns: int, rounded: bool
) -> tuple[jax.Array, Cache]:
    """Logits[B, V] after left-padded prompts int32[B, T], and a cache with room for ``columns`` tokens."""
    B, T = tokens.shape
    index = jnp.arange(T)
    is_real = index >= T - lengths[:, None]
    mask = is_real[:, None, :] & (index[:, None] >= index)
    logits, cache = forward(params, shape, tokens, _positions(index, T, lengths), mask, rounded=rounded)
    room = [(0, 0), (0, columns - T), (0, 0), (0, 0)]
    return logits[:, -1], [(jnp.pad(k, room), jnp.pad(v, room)) for k, v in cache]


def _positions(columns: jax.Array, prompt_columns: int, lengths: jax.Array) -> jax.Array:
    """Positions [B, T] of cache columns, counted from each prompt's first token."""
    return jnp.maximum(columns - (prompt_columns - lengths[:, None]), 0)


@partial(jax.jit, static_argnames=("shape", "prompt_columns", "rounded"), donate_argnames="cache")
def _decode(
    params: Params,
    shape: Shape,
    token: jax.Array,
    column: jax.Array,
    lengths: jax.Array,
    cache: Cache,
    prompt_columns: int,
    rounded: bool,
) -> tuple[jax.Array, Cache]:
    """Logits[B, V] after one more token per row, written at ``column`` of the cache."""
    index = jnp.arange(cache[0][0].shape[1])
    mask = (index >= prompt_columns - lengths[:, None]) & (index <= column)
    positions = _positions(column[None], prompt_columns, lengths)
    logits, cache = forward(
        params, shape, token[:, None], positions, mask[:, None], cache, write_at=column, rounded=rounded
    )
    return logits[:, 0], cache


@partial(jax.jit, static_argnames=("temperature", "top_p"))
def _choose(logits: jax.Array, random_key: jax.Array, temperature: float, top_p: float) -> jax.Array:
    """Greedy for temperature 0, else a sample from the smallest set of tokens with mass ``top_p``."""
    if temperature == 0.0:
        return jnp.argmax(logits, axis=-1)
    scaled = logits / temperature
    order = jnp.sort(jax.nn.softmax(scaled), axis=-1, descending=True)
    before = jnp.cumsum(order, axis=-1) - order
    threshold = jnp.min(jnp.where(before < top_p, order, jnp.inf), axis=-1, keepdims=True)
    kept = jnp.where(jax.nn.softmax(scaled) >= threshold, scaled, -jnp.inf)
    return jax.random.categorical(random_key, kept, axis=-1)


def generate(
    params: Params,
    shape: Shape,
    tokenizer: Tokenizer,
    eos_ids: list[int],
    prompts: list[str],
    max_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    rounded: bool = True,
) -> list[str]:
    """The continuations of prompts, all in one batch."""
    encoded = [tokenizer.encode(prompt).ids for prompt in prompts]
    T = max(len(ids) for ids in encoded)
    tokens = np.zeros((len(encoded), T), np.int32)
    for row, ids in enumerate(encoded):
        tokens[row, T - len(ids) :] = ids
    lengths = jnp.asarray([len(ids) for ids in encoded])
    logits, cache = _prefill(params, shape, jnp.asarray(tokens), lengths, T + max_tokens, rounded)
    random_key = jax.random.key(seed)
    columns: list[np.ndarray] = []
    is_done = np.zeros(len(encoded), bool)
    for step in range(max_tokens):
        token = _choose(logits, jax.random.fold_in(random_key, step), temperature, top_p)
        columns.append(np.asarray(token))
        is_done |= np.isin(columns[-1], eos_ids)
        if is_done.all():
            break
        column = jnp.asarray(T + step)
        logits, cache = _decode(params, shape, token, column, lengths, cache, T, rounded)
    texts = []
    for ids in np.stack(columns, axis=1).tolist():
        end = next((index for index, token_id in enumerate(ids) if token_id in eos_ids), len(ids))
        texts.append(tokenizer.decode(ids[:end], skip_special_tokens=False))
    return texts


def main() -> None:
    """Print Pass@1 per level."""
    parser = argparse.ArgumentParser(description="Pass@1 of a checkpoint, without a server.")
    parser.add_argument("--model", type=Path, default=MODEL_DIR)
    parser.add_argument("--problems", type=Path, default=TEST_FILE)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--float32", action="store_true", help="do not round to bfloat16")
    parser.add_argument("--no-suffix", action="store_true", help="ask without the reference page's sentence")
    parser.add_argument("--show-errors", type=int, default=0, metavar="N", help="print the first N wrong replies")
    arguments = parser.parse_args()
    params, shape, tokenizer, eos_ids = load_checkpoint(arguments.model)
    with arguments.problems.open(encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines]
    suffix = "" if arguments.no_suffix else REASONING_SUFFIX
    prompts = [chat_prompt(record["problem"] + suffix) for record in records]
    texts = generate(
        params, shape, tokenizer, eos_ids, prompts,
        temperature=arguments.temperature, top_p=arguments.top_p, seed=arguments.seed, rounded=not arguments.float32,
    )  # fmt: skip
    scores: dict[str, list[bool]] = defaultdict(list)
    for record, text in zip(records, texts, strict=True):
        is_right = boxed(text) == record["answer"]
        scores[f"Level {record['level']}"].append(is_right)
        scores["OVERALL"].append(is_right)
        if not is_right and arguments.show_errors > 0:
            arguments.show_errors -= 1
            sys.stdout.write(f"{record['problem']!r}, expected {record['answer']}:\n{text}\n\n")
    for name in sorted(scores, key=lambda name: (name == "OVERALL", name)):
        sys.stdout.write(f"{name:8} {len(scores[name]):4} {np.mean(scores[name]):.4f}\n")


if __name__ == "__main__":
    main()
